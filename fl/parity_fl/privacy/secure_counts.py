"""Tables of counts under secure aggregation: every cell travels, so that not even which cells are empty is seen."""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import numpy as np

from parity_fl.histogram_codec import Sparse
from parity_fl.privacy.config import PrivacyConfig
from parity_fl.privacy.fixed_point import Words
from parity_fl.privacy.secagg import SumSetup
from parity_fl.privacy.secure_part import SumTerms
from parity_protocol.errors import BadDocument

__all__ = ["MAX_CELLS", "cell_bytes", "counts_setup", "counts_table", "counts_vector"]

MAX_CELLS: Final = 1 << 25  # of one table: 128 MiB in 32 bits
_SMALL: Final = 1 << 32


def cell_bytes(most: int) -> Literal[4, 8]:
    """Return how many bytes a cell takes whose sum over all parts is at most ``most``."""
    return 4 if most < _SMALL else 8


def counts_setup(
    privacy: PrivacyConfig, terms: SumTerms, request: bytes, *, session_id: str, parts: int, cells: int
) -> SumSetup:
    """Return the sum of all parts' answers to one request.

    Args:
        terms: ``full_weight`` is the largest sum of a cell.
        cells: Of the table, empty ones too.

    Raises:
        BadDocument: The terms do not say how large a sum can be, or the table is too large.
    """
    if terms.full_weight is None or not 1 <= cells <= MAX_CELLS:
        raise BadDocument(f"a secure sum of counts has a largest sum and up to {MAX_CELLS} cells, got {cells}")
    head = f"parity-fl/secure-counts/1 {session_id} {terms.to_dict()!r} ".encode()
    context = hashlib.sha256(head + hashlib.sha256(request).digest()).digest()
    bits: Literal[32, 64] = 32 if cell_bytes(int(terms.full_weight)) == 4 else 64
    return SumSetup(context, parts, privacy.shares(parts), cells, bits)


def counts_vector(table: Sparse, setup: SumSetup) -> Words:
    """Return all cells of a part's table."""
    vector = np.zeros(setup.size, dtype=setup.dtype)
    vector[table.index] = table.value.astype(np.uint64).astype(setup.dtype)
    return vector


def counts_table(total: Words) -> Sparse:
    """Return the cells of a sum that are not 0; one beyond 63 bits is no count, and becomes 0 and is refused later."""
    index = np.flatnonzero(total)
    return Sparse(index.astype(np.int64), (total[index].astype(np.uint64) & np.uint64((1 << 63) - 1)).astype(np.int64))
