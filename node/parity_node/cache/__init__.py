"""What a node keeps to be faster: data sets, images, and results on their way; each under a cap."""

from parity_node.cache.data import DataCache
from parity_node.cache.images import ImageCache, ImageEngine, ImageRow
from parity_node.cache.keeper import CacheItem, CacheKind, CacheTotal, NodeCache
from parity_node.cache.requests import answer_cache
from parity_node.cache.uses import Uses, names_of

__all__ = [
    "CacheItem",
    "CacheKind",
    "CacheTotal",
    "DataCache",
    "ImageCache",
    "ImageEngine",
    "ImageRow",
    "NodeCache",
    "Uses",
    "answer_cache",
    "names_of",
]
