"""A node that adds to a model and does not train it: what remains is what a round costs, whatever is trained in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parity_node.executors import federated
from parity_node.executors.process import Child
from parity_node.run import run_node
from parity_node.settings import load_settings

TRAINER = Path(__file__).with_name("adding_child.py")


def start_adder(argv: list[str], **settings: Any) -> Child:
    """Start ``adding_child`` with the arguments of ``python -I -m parity_node.fl_child``."""
    return Child([argv[0], "-I", str(TRAINER), *argv[4:]], **settings)


if __name__ == "__main__":
    federated.Child = start_adder  # type: ignore[assignment, misc]
    run_node(load_settings())
