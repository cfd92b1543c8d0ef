"""``python -m parity_cli`` equals ``parity``."""

from parity_cli.app import main

if __name__ == "__main__":
    main()
