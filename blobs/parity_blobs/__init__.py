"""Content-addressed data: CIDs, UnixFS, verified blocks, and the stores that hold them.

Importing this package does no I/O and loads no HTTP client; adapters are imported by their module:
``parity_blobs.local``, ``parity_blobs.memory``, ``parity_blobs.gateway``, ``parity_blobs.files``.
"""

from parity_blobs.base import BlobStat, BlobStore
from parity_blobs.cid import Block, Cid
from parity_blobs.importer import AddOptions, cid_of_bytes
from parity_blobs.unixfs import Kind
from parity_blobs.verify import DagLimits, DagVerifier, Order

__all__ = [
    "AddOptions",
    "BlobStat",
    "BlobStore",
    "Block",
    "Cid",
    "DagLimits",
    "DagVerifier",
    "Kind",
    "Order",
    "cid_of_bytes",
]
