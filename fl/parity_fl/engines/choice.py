"""Which kernel a perceptron trains on.

A step of a perceptron costs about 6 floating-point operations per parameter and row. Measured on one core, an epoch of
5 000 rows: 784-128-10 at batches of 32 takes numpy 52 ms and torch 100, at 256 it is 35 and 41; 784-512-512-10 at 32
takes 392 and 338, 2000-1024-10 at 128 takes 586 and 537. So below ``LARGE_STEP`` a framework's dispatch costs more than
the arithmetic, and above it torch is level on one core and ahead wherever it finds a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_protocol.errors import BadField

__all__ = ["LARGE_STEP", "Kernel", "large_kernel", "torch_is_there"]

LARGE_STEP: Final = 20_000_000  # parameters times rows of a batch: 120 MFLOP a step

Kernel: TypeAlias = Callable[..., tuple[NDArray[np.float32], int]]


def torch_is_there() -> bool:
    """Say whether the extra ``[torch]`` is installed; imports nothing."""
    return find_spec("torch") is not None


def large_kernel(kernel: str, step_size: int) -> Kernel | None:
    """Return torch's ``train_dense``, or ``None`` when numpy's is to be used.

    Args:
        kernel: ``numpy``, ``torch`` or ``auto``.
        step_size: Parameters times rows of a batch.

    Raises:
        BadField: ``torch`` is asked for and not installed.
    """
    if kernel == "numpy" or (kernel == "auto" and (step_size < LARGE_STEP or not torch_is_there())):
        return None
    if not torch_is_there():
        raise BadField("the kernel torch needs the extra [torch], which is not installed", field="kernel")
    from parity_fl.engines.torch import train_torch

    return train_torch
