"""Content-addressed data: CIDs, UnixFS, verified blocks, and the stores that hold them."""
