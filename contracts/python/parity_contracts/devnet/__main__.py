"""``python -m parity_contracts.devnet``: the chain as a process of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from parity_contracts.devnet.server import ChainSettings, serve
from parity_protocol.errors import ParityError
from parity_protocol.quantities import parse_duration


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m parity_contracts.devnet", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of this chain")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: the system chooses")
    parser.add_argument("--ready-file", type=Path, help="written when requests are answered")
    parser.add_argument("--chain-id", type=int, default=31337)
    parser.add_argument("--block-interval", default="1s")
    parser.add_argument("--idle-interval", default="4s")
    asked = parser.parse_args(argv)
    try:
        serve(
            ChainSettings(
                data=asked.data,
                host=asked.host,
                port=asked.port,
                ready_file=asked.ready_file,
                chain_id=asked.chain_id,
                block_interval=parse_duration(asked.block_interval),
                idle_interval=parse_duration(asked.idle_interval),
            )
        )
    except ParityError as exc:
        print(f"error: {exc.message}", exc.hint(), sep="\n", file=sys.stderr)  # noqa: T201  (a process's edge)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
