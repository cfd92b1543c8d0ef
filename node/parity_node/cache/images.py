"""Images that this node brought to its engine: how large, how old, pinned or not. Nobody else's image is in here.

A pull is written down before it begins, so that a node killed in the middle still knows what became its own. The
ledger is one small JSON file, replaced in one step; the engine is asked at start what is really there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from parity_contracts.files import write_file
from parity_node.cache.uses import Uses
from parity_protocol.clock import Clock
from parity_protocol.errors import NotFound, ParityError, StorageFull

__all__ = ["ImageCache", "ImageEngine", "ImageRow"]

TOUCH_S = 60.0  # a use is written down at most so often: the order of eviction need not survive a crash to the second

log = structlog.get_logger(__name__)


class ImageEngine(Protocol):
    """What the ledger needs of an engine. Both MUST raise only ``ParityError`` and be bounded in time."""

    async def images(self) -> Mapping[str, int]:
        """Return the bytes of every image that the engine has, by id (``sha256:…``)."""
        ...

    async def find_image(self, reference: str) -> str | None:
        """Return the id of the image that ``reference`` names, or None when the engine has none."""
        ...

    async def remove_image(self, image_id: str, reference: str) -> bool:
        """Give back an image that was brought as ``reference``; return False while a container uses it.

        MUST leave every other name of it, and with that the image.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of ours."""

    id: str  # sha256:…
    reference: str  # as the task named it
    size_bytes: int
    used_at: float  # unix seconds
    is_pinned: bool = False


class ImageCache:
    """The ledger and its cap. Safe on the event loop only.

    Args:
        path: Of the ledger.
        max_bytes: What all images of ours may take together.
        uses: What running executions use.
    """

    def __init__(self, path: Path, *, max_bytes: int, clock: Clock, uses: Uses) -> None:
        self._path = path
        self._clock = clock
        self._uses = uses
        self.max_bytes = max_bytes
        self._engine: ImageEngine | None = None
        self._rows, self._expected = _read(path)
        self._left_over = frozenset(self._expected)  # of an earlier process; ours end as brought or given up
        self._written_at = 0.0

    @property
    def rows(self) -> tuple[ImageRow, ...]:
        """Every image of ours, least recently used first."""
        return tuple(sorted(self._rows.values(), key=lambda row: row.used_at))

    @property
    def can_remove(self) -> bool:
        """Whether there is an engine to remove images from."""
        return self._engine is not None

    @property
    def used_bytes(self) -> int:
        """Bytes of all of them; layers that they share count for each."""
        return sum(row.size_bytes for row in self._rows.values())

    @property
    def kept_bytes(self) -> int:
        """Bytes of those that cannot be removed now: pinned or in use."""
        return sum(row.size_bytes for row in self._rows.values() if row.is_pinned or self.is_used(row))

    async def serve(self, engine: ImageEngine) -> None:
        """Use ``engine`` from now on, and compare the ledger with what it has: after a crash, or what others removed.

        What is brought meanwhile, or on its way, stays.

        Raises:
            ParityError: The engine does not answer; the ledger stays as it was.
        """
        known = frozenset(self._rows)
        found = await engine.images()
        for reference in self._left_over:
            image_id = await engine.find_image(reference)
            if image_id in found and image_id is not None and image_id not in self._rows:
                self._rows[image_id] = ImageRow(image_id, reference, found[image_id], self._now())
        self._expected = {key: at for key, at in self._expected.items() if key not in self._left_over}
        self._left_over = frozenset()
        self._rows = {
            key: replace(row, size_bytes=found.get(key, row.size_bytes))
            for key, row in self._rows.items()
            if key in found or key not in known
        }
        self._engine = engine
        self._save()

    def expect(self, reference: str) -> None:
        """Note, durably, that an image is about to be brought that the engine does not have yet.

        Raises:
            StorageFull: No room for the note, so there is none for an image.
        """
        self._expected[reference] = self._now()
        self._left_over -= {reference}
        self._save(must=True)

    async def brought(self, image_id: str, *, reference: str, size_bytes: int, execution_id: str) -> None:
        """Take an image into the ledger that was pulled or loaded for an execution, and keep to the cap.

        Raises:
            StorageFull: It does not fit even with everything removed that may be; it was removed again.
            ParityError: The engine does not answer.
        """
        known = self._rows.get(image_id)
        is_pinned = known is not None and known.is_pinned
        self._rows[image_id] = ImageRow(image_id, reference, size_bytes, self._now(), is_pinned)
        self._expected.pop(reference, None)
        self._uses.take(execution_id, [image_id])
        self._save()
        await self.trim()
        if self.used_bytes > self.max_bytes and known is None:
            used, limit = self.used_bytes, self.max_bytes
            if self._engine is None or await self._engine.remove_image(image_id, reference):
                self.removed(image_id)
            raise StorageFull(
                f"image {reference} has {size_bytes} bytes: with it the images would take {used}, "
                f"RUNNER_IMAGE_CACHE_MAX_BYTES is {limit}"
            )

    def given_up(self, reference: str) -> None:
        """Note that an expected image did not come; idempotent."""
        if self._expected.pop(reference, None) is not None:
            self._save()

    def has(self, image_id: str) -> bool:
        """Return whether this node brought an image."""
        return image_id in self._rows

    def used(self, image_id: str, *, execution_id: str) -> None:
        """Note that an execution uses an image; one that is not ours is protected and not written down."""
        self._uses.take(execution_id, [image_id])
        row = self._rows.get(image_id)
        if row is not None:
            self._rows[image_id] = replace(row, used_at=self._now())
            if self._now() - self._written_at >= TOUCH_S:
                self._save()

    def removed(self, image_id: str) -> None:
        """Note that the engine does not have an image any more; idempotent."""
        if self._rows.pop(image_id, None) is not None:
            self._save()

    def pin(self, name: str, *, keep: bool) -> ImageRow:
        """Spare an image from eviction, or no longer.

        Args:
            name: Its id, the beginning of its id (12 hexadecimal digits or more), or its reference.

        Raises:
            NotFound: No image of ours is called so.
            StorageFull: No room to write it down.
        """
        row = self._find(name)
        self._rows[row.id] = changed = replace(row, is_pinned=keep)
        self._save(must=True)
        return changed

    def is_used(self, row: ImageRow) -> bool:
        """Whether a running execution uses it."""
        return row.id in self._uses.names or row.reference in self._uses.names

    def candidates(self, max_bytes: int, *, unused_since: float | None = None) -> list[ImageRow]:
        """Return what to remove so that at most ``max_bytes`` are left: least recently used first, none that is kept.

        Args:
            unused_since: Unix seconds; what was used later is kept too. None keeps nothing for its age.
        """
        found, left = [], self.used_bytes
        for row in self.rows:
            if left <= max_bytes:
                break
            is_young = unused_since is not None and row.used_at > unused_since
            if not (row.is_pinned or self.is_used(row) or is_young):
                found.append(row)
                left -= row.size_bytes
        return found

    async def trim(self, max_bytes: int | None = None, *, unused_since: float | None = None) -> list[ImageRow]:
        """Remove ``candidates`` (None: down to the cap) and return those that went.

        Without an engine nothing can be removed. An image that a foreign container uses stays.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        return await self.remove(self.candidates(limit, unused_since=unused_since))

    async def remove(self, rows: Iterable[ImageRow]) -> list[ImageRow]:
        """Remove images of ours and return those that went."""
        gone = []
        for row in rows:
            if self._engine is None:
                break
            try:
                if not await self._engine.remove_image(row.id, row.reference):
                    continue
            except ParityError as exc:
                log.warning("image_not_removed", image=row.id, error=exc.message)
                break
            self._rows.pop(row.id, None)
            gone.append(row)
            log.info("image_evicted", image=row.id, reference=row.reference, freed_bytes=row.size_bytes)
        if gone:
            self._save()
        return gone

    def _find(self, name: str) -> ImageRow:
        bare = name.removeprefix("sha256:")
        found = [
            row
            for row in self._rows.values()
            if row.reference == name or (len(bare) >= 12 and row.id.removeprefix("sha256:").startswith(bare))
        ]
        if len(found) == 1:
            return found[0]
        told = f"{len(found)} images of this node are" if found else "no image of this node is"
        raise NotFound(f"{told} called {name}")

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _save(self, *, must: bool = False) -> None:
        document = {"version": 1, "images": [asdict(row) for row in self.rows], "expected": self._expected}
        try:
            write_file(self._path, json.dumps(document).encode())
            self._written_at = self._now()
        except (StorageFull, OSError) as exc:
            if must:
                raise StorageFull(f"no room for {self._path}") from exc
            log.warning("image_ledger_not_written", error=str(exc))  # written with the next change; the engine knows


def _read(path: Path) -> tuple[dict[str, ImageRow], dict[str, float]]:
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        rows = [ImageRow(**row) for row in document["images"]]
        return {row.id: row for row in rows}, {str(key): float(at) for key, at in document["expected"].items()}
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        # Nothing is removed that the ledger does not name, so a lost one costs room and no image.
        log.error("image_ledger_lost", path=str(path), error=str(exc))  # noqa: TRY400 - says enough
        return {}, {}
