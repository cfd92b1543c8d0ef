"""Walking over all coordinates of a model in pieces of bounded size, so that memory does not grow with the updates."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate.base import Update, Updates
from parity_fl.models.base import Weights

__all__ = ["Block", "Layout", "load_block", "pieces", "take_block"]

_PIECE: Final = 1 << 14  # coordinates worked on at a time, of few updates
_SMALLEST_PIECE: Final = 1 << 10  # below, NumPy's cost of a call outweighs its work
_PIECE_VALUES: Final = 1 << 18  # of all updates together: two megabytes of float64 stay near the core
_BLOCK: Final = 1 << 20  # coordinates of one walk over the updates; few walks, since each may map every file again
_MATRIX_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Coordinates ``begin`` to ``end`` of one tensor, counted in its flat row-major form."""

    name: str
    begin: int
    end: int

    @property
    def size(self) -> int:
        """How many coordinates."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a model's tensors, in sorted order of names."""

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, weights: Weights) -> Layout:
        """Return the layout of a model."""
        return cls({name: weights[name].shape for name in sorted(weights)})

    def size(self, name: str) -> int:
        """Return the number of coordinates of one tensor."""
        size = 1
        for length in self.shapes[name]:
            size *= length
        return size

    def mismatch(self, delta: Weights) -> str:
        """Return in what an update differs from the model, empty when in nothing."""
        missing = [name for name in self.shapes if name not in delta]
        if missing or len(delta) != len(self.shapes):
            return f"tensors must be {', '.join(self.shapes)}"[:200]
        for name, shape in self.shapes.items():
            if delta[name].shape != shape:
                return f"{name} must have shape {shape}, got {delta[name].shape}"
            if delta[name].dtype not in (np.float32, np.float16):
                return f"{name} must be float32 or float16, got {delta[name].dtype}"
        return ""

    def blocks(self, rows: int = 1) -> Iterator[Block]:
        """Yield every coordinate once. ``rows`` updates of one block fit into 8 MiB of float32."""
        step = max(_SMALLEST_PIECE, min(_BLOCK, _MATRIX_BYTES // (4 * max(rows, 1))))
        for name in self.shapes:
            size = self.size(name)
            for begin in range(0, size, step):
                yield Block(name, begin, min(begin + step, size))


def pieces(size: int, rows: int = 1) -> Iterator[slice]:
    """Yield slices that cover ``size`` coordinates, so short that ``rows`` updates of one stay in a core's cache."""
    step = max(_SMALLEST_PIECE, min(_PIECE, _PIECE_VALUES // max(rows, 1)))
    for begin in range(0, size, step):
        yield slice(begin, min(begin + step, size))


def take_block(update: Update, block: Block) -> NDArray[np.float32]:
    """Return one block of an update, shape ``(block.size,)``: a view of float32 or float16, or what decodes slices."""
    flat = update.delta[block.name].reshape(-1)
    part = getattr(flat, "part", None)  # of one that decodes what is read of it: pieces of a block stay near the core
    return flat[block.begin : block.end] if part is None else cast("NDArray[np.float32]", part(block.begin, block.end))


def load_block(updates: Updates, parts: Collection[int], block: Block) -> NDArray[np.float32]:
    """Return one block of all ``parts``, shape ``(len(parts), block.size)``, in the order of the updates.

    It is copied, so that nothing of an update stays alive; float32 holds what can come in exactly.
    """
    out = np.empty((len(parts), block.size), dtype=np.float32)
    row = 0
    for update in updates():
        if update.part in parts:
            out[row] = take_block(update, block)
            row += 1
    return out
