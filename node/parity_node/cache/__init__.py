"""What a node keeps to be faster: data sets, images, and results on their way; each under a cap."""

from parity_node.cache.images import ImageCache, ImageEngine, ImageRow
from parity_node.cache.uses import Uses, names_of

__all__ = ["ImageCache", "ImageEngine", "ImageRow", "Uses", "names_of"]
