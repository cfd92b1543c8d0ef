"""Updates on their way in: one body of a part at a time, to a file without a name, hashed as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from parity_market.bodies import Digest
from parity_market.round_files import append, on_disk
from parity_protocol.errors import Overloaded, TooLarge

__all__ = ["Bodies", "Received", "receive"]

HELD_BYTES = 512 << 10  # of an update in memory before it is written
RETRY_S = 1.0  # that a second sender is asked to wait


@dataclass(frozen=True, slots=True)
class Received:
    """A body that has come to its end.

    Attributes:
        sha256: Hex, of all of it.
        size: Bytes.
        rest: Its last bytes, which are not in the file yet.
    """

    sha256: str
    size: int
    rest: bytes


class Bodies:
    """What is on its way now. A node that sends one update many times at once fills no disk: the first one counts."""

    def __init__(self) -> None:
        self._under_way: set[str] = set()

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Hold ``name`` while its body comes.

        Raises:
            Overloaded: One is on its way.
        """
        if name in self._under_way:
            raise Overloaded(f"an update of {name} is on its way already", retry_after_s=RETRY_S)
        self._under_way.add(name)
        try:
            yield
        finally:
            self._under_way.discard(name)


async def receive(
    body: AsyncIterator[bytes], temporary: Path, *, max_bytes: int, digest: Digest | None = None
) -> Received:
    """Write a body to a file as it comes, but for its last bytes; the caller removes the file.

    Args:
        digest: Of who hashes the body on its way here: large ones need not be hashed twice.

    Raises:
        TooLarge: It has over ``max_bytes``; no more than they are on disk.
        StorageFull: See ``on_disk``.
    """
    found = sha256() if digest is None else digest
    size, held_size = 0, 0
    held: list[bytes] = []
    async for piece in body:
        size += len(piece)
        if size > max_bytes:
            raise TooLarge(f"an update of this model has at most {max_bytes} bytes", field="body")
        if digest is None:
            found.update(piece)
        held.append(piece)
        held_size += len(piece)
        if held_size > HELD_BYTES:
            await on_disk(append, temporary, held)
            held, held_size = [], 0
    return Received(found.hexdigest(), size, b"".join(held))
