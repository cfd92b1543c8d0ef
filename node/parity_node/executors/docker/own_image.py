"""Images of the node's own: file systems of a few bytes, known by their content.

A name proves nothing: a task may name any image, and a pull of that name moves it. The node's own containers would then
start in a stranger's file system, where a file such as ``/etc/ld.so.preload`` runs code beside the program.
"""

from __future__ import annotations

from hashlib import sha256

from parity_node.executors.docker.engine import Engine
from parity_protocol.errors import NotFound

__all__ = ["own_image"]


async def own_image(engine: Engine, data: bytes, *, repository: str, tag: str) -> str:
    """Return the id of an image that holds exactly the file system ``data`` and names nothing else; import it if needed.

    Args:
        data: An uncompressed tar, the same bytes each time.
    """
    async with engine.importing:
        try:
            found = await engine.image(f"{repository}:{tag}")
        except NotFound:
            pass
        else:
            is_plain = not (found.env or found.volumes or found.has_command)
            if is_plain and found.layers == (f"sha256:{sha256(data).hexdigest()}",):
                return found.id
        return await engine.import_image(data, repository=repository, tag=tag)
