"""What nodes fetch and send in a round: the newest model, and updates, which are on disk before they are acknowledged."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from parity_fl.limits import MAX_UPDATE_BYTES
from parity_market.bodies import Digest
from parity_market.operations import rounds
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate
from parity_market.round_bodies import Bodies, receive
from parity_market.round_files import SMALL_BYTES, model_file, on_disk, settle, start_file, update_file
from parity_market.store.base import MarketStore
from parity_market.store.rows import FlRoundRow
from parity_protocol.api.rounds import RoundStep, UpdateTaken
from parity_protocol.clock import Clock
from parity_protocol.errors import NotFound

__all__ = ["EXTRA_BYTES", "RoundIntake"]

ANSWER_BYTES = 4 << 20  # of what is said of a shard: names of columns and classes, moments, a score
EXTRA_BYTES = 1 << 16  # of an update beyond its model's size: names and metadata
MODEL_LOOKS = 3  # for the newest model


class RoundIntake:
    """The nodes' side of sessions; used by routes.

    Args:
        folder: Returns a session's folder.
        is_phased: Whether what a part of a session answers is not bounded by what it was asked.
        make_id: For names of files on their way in.
        wake: Called with a session's id when an update has come.
    """

    def __init__(
        self,
        store: MarketStore,
        clock: Clock,
        *,
        folder: Callable[[str], Path],
        is_phased: Callable[[Group], bool],
        make_id: Callable[[], str],
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._folder = folder
        self._is_phased = is_phased
        self._make_id = make_id
        self._wake = wake
        self._bodies = Bodies()
        self._small: dict[str, tuple[str, str]] = {}  # running session → SHA-256 of its newest model, and that

    async def model(self, group_id: str) -> tuple[Path, str, int]:
        """Return the newest model's file, its sha256 and size.

        Raises:
            NotFound: There is none.
        """
        for _ in range(MODEL_LOOKS):  # a round may close between the row and its file: then the next one's is there
            row = await self._row(group_id)
            path = start_file(self._folder(group_id), row.round, row.phase)
            if path.exists():
                return path, row.base_hash, row.base_size
        raise NotFound(f"the model of session {group_id} is not here any more")

    def remember(self, group_id: str, digest: str, model: str) -> None:
        """Keep a session's newest model, in Base64, for ``with_model``."""
        self._small[group_id] = (digest, model)

    def forget(self, group_id: str) -> None:
        """Keep nothing of a session any more."""
        self._small.pop(group_id, None)

    async def with_model(self, group_id: str, step: RoundStep) -> RoundStep:
        """Return what a part does now, with a small model in it: fetching it would cost a third of a small round."""
        if step.state != "train" or step.base_size > SMALL_BYTES:
            return step
        digest, model = self._small.get(group_id, ("", ""))
        if digest != step.base:
            path = model_file(self._folder(group_id), step.round, step.phase)
            data = await on_disk(_read_small, path)
            if sha256(data).hexdigest() != step.base:  # the session has moved on: the node asks for the newest
                return step
            model = b64encode(data).decode()
            self.remember(group_id, step.base, model)
        return step.model_copy(update={"model": model})

    async def take(
        self,
        group: Group,
        node_id: str,
        new: NewUpdate,
        body: AsyncIterator[bytes],
        *,
        digest: Digest | None = None,
    ) -> UpdateTaken:
        """Put an update on disk and then note it.

        Args:
            new: ``sha256`` and ``size`` are filled in here.
            body: At its end the digest has been compared with the signed one.
            digest: See ``receive``.

        Raises:
            Conflict: It is late or not wanted; as ``operations.rounds.take``.
            TooLarge: It is longer than any update of this model.
            Overloaded: Another body of the part is on its way under the same lease; try again.
        """
        group_id, is_phased = group.value.id, self._is_phased(group)
        most = MAX_UPDATE_BYTES if is_phased else _most_bytes(await self._row(group_id), self._folder(group_id))
        # What is refused is not written first: nobody fills the disk with rounds that are not asked for.
        known = await self._store.read(partial(rounds.examine, group_id=group_id, node_id=node_id, new=new))
        with self._bodies.only(f"part {new.part} of session {group_id} with fence {new.fence}"):
            path = partial(update_file, self._folder(group_id), new.number, new.phase, new.part)
            temporary = path(f".{self._make_id()}")
            try:
                held = await receive(body, temporary, max_bytes=most, digest=digest)
                done = replace(new, sha256=held.sha256, size=held.size)
                small: dict[str, bytes] = {}
                if known is None:
                    place, is_small = path(done.sha256), held.size <= SMALL_BYTES
                    await on_disk(settle, temporary, held.rest, place, is_synced=not is_small)
                    small = {str(place.relative_to(self._folder(group_id))): held.rest} if is_small else {}
                now = self._clock.now()
                created = await self._store.write(lambda tx: rounds.take(tx, group_id, node_id, done, now, small))
            finally:
                with suppress(FileNotFoundError):
                    temporary.unlink()
        if created:
            self._wake(group_id)
        return UpdateTaken(sha256=done.sha256, size=done.size, created=created)

    async def _row(self, group_id: str) -> FlRoundRow:
        found = await self._store.read(partial(rounds.open_row, group_id=group_id))
        if found is None:
            raise NotFound(f"session {group_id} has not begun")
        return found[1]


def _read_small(path: Path) -> bytes:
    """Return a file's content, or nothing when it is gone or not small."""
    try:
        with path.open("rb") as file:
            data = file.read(SMALL_BYTES + 1)
    except FileNotFoundError:
        return b""
    return data if len(data) <= SMALL_BYTES else b""


def _most_bytes(row: FlRoundRow, folder: Path) -> int:
    """Return the longest answer to a phase: an update is as long as its model, what is said of data is not."""
    if row.asks != "train":
        return EXTRA_BYTES + ANSWER_BYTES
    try:
        return EXTRA_BYTES + model_file(folder, row.round, row.phase).stat().st_size  # what is sent may be shorter
    except FileNotFoundError:  # the round is over, as the update will be told
        return EXTRA_BYTES + row.base_size
