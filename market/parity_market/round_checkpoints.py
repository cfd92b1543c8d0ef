"""Checkpoints of sessions at the market: when one is due, where it goes, and which one a session is gone on with from.

A checkpoint lies in a folder and, by CID, among its submitter's blobs. The folder may outlive the market's own state: a
market that is started on it gives its checkpoints to the accounts that they were written for.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from parity_fl.rounds_config import RoundsConfig, is_due
from parity_fl.settings import FlSettings
from parity_market.federation import Federation
from parity_market.operations import round_checkpoints as operations
from parity_market.operations.blobs import add_ref
from parity_market.operations.rounds import Published
from parity_market.round_files import on_disk
from parity_market.round_worker import RoundWork
from parity_market.store.base import MarketStore
from parity_protocol.api.rounds import FlCheckpointReply
from parity_protocol.clock import Clock
from parity_protocol.errors import NotFound, ParityError

__all__ = ["RoundCheckpoints"]

log = structlog.get_logger(__name__)

_SESSION_ID = re.compile(r"[0-9A-Za-z-]{1,64}")  # becomes the name of a folder
_HINT = (
    "A session keeps checkpoints when its rounds_config has a checkpoint_interval, or the market FL_CHECKPOINT_ENABLED;"
    " one that fails or is stopped leaves its last round."
)


class RoundCheckpoints:
    """What is written of sessions, and found again.

    Args:
        folder: The market's own, for sessions that ask for checkpoints where the operator set no folder.
        settings: The operator's folder and interval.
        work: Reads checkpoints somewhere else than on the event loop.
    """

    def __init__(
        self,
        store: MarketStore,
        federation: Federation,
        clock: Clock,
        work: RoundWork,
        *,
        folder: Path,
        settings: FlSettings,
    ) -> None:
        self._store = store
        self._federation = federation
        self._clock = clock
        self._work = work
        self._own = folder
        self._settings = settings

    def wanted(
        self, group_id: str, config: RoundsConfig, number: int, *, owner: str, is_last: bool
    ) -> dict[str, Any] | None:
        """Return where a checkpoint after a round goes, for the worker, or None when none is due.

        Args:
            config: The session's.
            number: Of the round.
            owner: The session's submitter.
            is_last: The session was stopped, or has failed: what it did is always kept.
        """
        interval = config.checkpoint_interval
        if interval == 0 and self._settings.fl_checkpoint_enabled:
            interval = self._settings.fl_checkpoint_interval
        regular = interval > 0 and is_due(number, interval=interval, total_rounds=config.total_rounds)
        if number < 1 or (not regular and not is_last):
            return None
        folder = self._folders()[0].absolute() / group_id
        return {
            "folder": str(folder),
            "total_rounds": config.total_rounds,
            "now": self._clock.now().isoformat(),
            "owner": owner,
            "keep": 0 if self._is_named() else self._settings.fl_checkpoint_keep,
        }

    async def keep(self, path: str | None) -> Published | None:
        """Store a checkpoint that the worker wrote among the market's blobs; its CID is in ``sha256``."""
        if path is None:
            return None
        data = await on_disk(Path(path).read_bytes)
        return Published(await self._federation.store_model(data), len(data))

    async def note(self, group_id: str, number: int, path: str) -> None:
        """Store the checkpoint of a session that has ended, for its submitter."""
        saved, now = await self.keep(path), self._clock.now()
        assert saved is not None
        await self._store.write(lambda tx: operations.note(tx, group_id, number, saved, now))
        await self.thin_out(group_id)

    async def thin_out(self, group_id: str) -> None:
        """Keep a session's newest checkpoints alone, once the next one is there; what cannot be done now is done then."""
        keep = self._settings.fl_checkpoint_keep
        try:
            free = await self._store.write(partial(operations.thin_out, group_id=group_id, keep=keep))
            for cid in free:
                await self._federation.let_go(cid)
        except ParityError as exc:
            log.warning("checkpoints_not_thinned_out", group_id=group_id, problem=exc.message)

    async def find(self, session_id: str, account: str, *, number: int | None = None) -> FlCheckpointReply:
        """Return a session's newest checkpoint, or the one after round ``number``, as stored for its submitter.

        Raises:
            NotFound: There is none, or none for this account.
        """
        known = await self._store.read(partial(operations.newest, group_id=session_id, account=account, number=number))
        if known is not None:
            return known
        if _SESSION_ID.fullmatch(session_id):
            for folder in self._folders():
                if not await on_disk((folder / session_id).is_dir):  # no process is started for a name that is none
                    continue
                job = {"do": "latest", "folder": str(folder.absolute() / session_id), "round": number}
                found = await self._work(session_id, job)
                if found.get("path") and found["owner"] == account:
                    return await self._adopt(session_id, account, found)
        what = "no checkpoint" if number is None else f"no checkpoint after round {number}"
        raise NotFound(f"session {session_id} of yours has {what} here", hint=_HINT)

    async def _adopt(self, session_id: str, account: str, found: dict[str, Any]) -> FlCheckpointReply:
        saved, now = await self.keep(found["path"]), self._clock.now()
        assert saved is not None
        await self._store.write(
            lambda tx: add_ref(tx, saved.sha256, account, visibility="private", size=saved.size, now=now)
        )
        return FlCheckpointReply(
            session_id=session_id, cid=saved.sha256, round=found["round"], total_rounds=found["total_rounds"]
        )

    def _is_named(self) -> bool:
        """Return whether checkpoints go to a folder that the operator chose: nothing is ever deleted there."""
        return self._settings.fl_checkpoint_enabled and "fl_checkpoint_path" in self._settings.model_fields_set

    def _folders(self) -> list[Path]:
        """Return where checkpoints may lie, first the one that new ones are written to."""
        theirs = self._settings.fl_checkpoint_path.expanduser()
        return [theirs, self._own] if self._settings.fl_checkpoint_enabled else [self._own]
