"""Federated-learning mathematics on NumPy: pure, deterministic, no I/O.

Only the settings are re-exported, because they need no NumPy: an idle node checks them. Import the rest from where it
lives: ``parity_fl.runner`` (plan, train, check, finish), ``parity_fl.plan``, ``parity_fl.model``.
"""

from parity_fl.spec import FlSpec, resolve_fl_spec

__all__ = ["FlSpec", "resolve_fl_spec"]
