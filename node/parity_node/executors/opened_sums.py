"""Which secure sums this node has helped to open, on disk: a restart or a new lease must not make it forget.

Two opened sums of the same over different parts would tell those that are in one of them alone. A trainer remembers what
it opened, but a market can end a lease and offer the part again, and then another trainer answers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import islice
from pathlib import Path

import structlog

from parity_contracts.files import make_private_dir, write_file
from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason, ParityError, StorageFull

__all__ = ["KEPT_FOR", "OpenedSums"]

KEPT_FOR = timedelta(days=400)
"""Without a change; a session's tasks end long before, and then nothing of it is asked for any more."""
MAX_LOOKED_AT = 20_000  # files of one sweep

_NAME = re.compile(r"[0-9a-f]{64}\.json")

log = structlog.get_logger(__name__)


class OpenedSums:
    """One list for each part of a session, named by the part's salt: that is secret, and each order has its own.

    Args:
        folder: Private to this node; made when the first list is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, salt: str) -> list[str]:
        """Return the names of what was opened.

        Raises:
            ExecutionFailed: The list cannot be read: then nothing may be opened.
        """
        try:
            found = json.loads(self._path(salt).read_bytes())
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise ExecutionFailed(failure_of(exc), f"the list of opened sums cannot be read: {exc.strerror}") from exc
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ExecutionFailed(FailureReason.NODE_FAULT, f"the list of opened sums is damaged: {self._path(salt)}")
        return found

    def add(self, salt: str, names: Collection[str]) -> None:
        """Note what is opened now, before anything that opens it leaves this node; durable when it returns.

        Raises:
            ExecutionFailed: It cannot be written.
        """
        known = self.of(salt)
        try:
            make_private_dir(self._folder)
            write_file(self._path(salt), json.dumps(sorted({*known, *names})).encode())
        except OSError as exc:
            raise ExecutionFailed(failure_of(exc), f"an opened sum cannot be noted: {exc.strerror}") from exc
        except ParityError as exc:  # a retry would not be told again what was opened
            full = isinstance(exc, StorageFull)
            reason = FailureReason.DISK_FULL if full else FailureReason.NODE_FAULT
            raise ExecutionFailed(reason, f"an opened sum cannot be noted: {exc.message}") from exc

    def forget_old(self, now: datetime) -> int:
        """Remove the lists that nothing was added to for ``KEPT_FOR``, and return how many; other files are left alone.

        Args:
            now: Current time, UTC. What cannot be read or removed is kept, and looked at again at the next start.
        """
        before = (now - KEPT_FOR).timestamp()
        removed = 0
        try:
            with os.scandir(self._folder) as entries:
                for entry in islice(entries, MAX_LOOKED_AT):
                    if _NAME.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < before:
                        Path(entry.path).unlink()
                        removed += 1
        except FileNotFoundError:  # none was ever written
            return 0
        except OSError as exc:
            log.warning("opened_sums_not_swept", error=exc.strerror)
        if removed:
            log.info("opened_sums_forgotten", lists=removed, older_than_days=KEPT_FOR.days)
        return removed

    def _path(self, salt: str) -> Path:
        return self._folder / f"{sha256(f'parity opened sums {salt}'.encode()).hexdigest()}.json"
