"""Caps that are checked before anything is allocated: an over-long document costs its reader nothing (FL4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from parity_protocol.task import MAX_DATASET_BYTES

__all__ = [
    "DATA_LIMITS",
    "FOREST_LIMITS",
    "MAX_BATCH_SIZE",
    "MAX_CLASSES",
    "MAX_DEPTH",
    "MAX_EPOCHS",
    "MAX_EXACT_FEATURES",
    "MAX_FEATURES",
    "MAX_HEADER_BYTES",
    "MAX_HIDDEN_LAYERS",
    "MAX_HIDDEN_SIZE",
    "MAX_ID_CHARS",
    "MAX_LABEL_CHARS",
    "MAX_NAMES_CHARS",
    "MAX_PARAMETERS",
    "MAX_PARTS",
    "MAX_TREES",
    "MAX_UPDATE_BYTES",
    "DataLimits",
    "ForestLimits",
]

MAX_FEATURES: Final = 10_000
MAX_CLASSES: Final = 1_000
MAX_LABEL_CHARS: Final = 256
MAX_NAMES_CHARS: Final = 1 << 18  # of all feature names together: they travel in a model's header
MAX_PARTS: Final = 1_024
MAX_TREES: Final = 10_000
MAX_DEPTH: Final = 64
MAX_EPOCHS: Final = 100_000
MAX_BATCH_SIZE: Final = 1_000_000
MAX_ID_CHARS: Final = 256
MAX_HEADER_BYTES: Final = 4 << 20  # header of a tensor document: names, shapes, metadata
MAX_UPDATE_BYTES: Final = 256 << 20
MAX_HIDDEN_LAYERS: Final = 16
MAX_HIDDEN_SIZE: Final = 1 << 16
MAX_PARAMETERS: Final = (MAX_UPDATE_BYTES - (1 << 20)) // 4  # float32, with room for names and metadata
MAX_EXACT_FEATURES: Final = 4_096  # the exact solver's statistics are a float64 matrix of this size squared: 128 MiB


@dataclass(frozen=True, slots=True)
class DataLimits:
    """What a data set may measure. ``max_json_cells`` is lower because JSON numbers pass through Python objects."""

    max_bytes: int = MAX_DATASET_BYTES
    max_rows: int = 5_000_000
    max_columns: int = MAX_FEATURES
    max_cells: int = 16_000_000
    max_json_cells: int = 6_000_000
    max_line_chars: int = 1 << 20


@dataclass(frozen=True, slots=True)
class ForestLimits:
    """What an encoded forest may measure."""

    max_bytes: int = MAX_UPDATE_BYTES
    max_trees: int = MAX_TREES
    max_nodes: int = 8_000_000
    max_depth: int = MAX_DEPTH
    max_classes: int = MAX_CLASSES
    max_features: int = MAX_FEATURES


DATA_LIMITS: Final = DataLimits()
FOREST_LIMITS: Final = ForestLimits()
