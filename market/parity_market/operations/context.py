"""What every operation needs besides its transaction: the market's terms, and whom to wake after the commit."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from parity_market.domain.dispatch import Needs
from parity_market.store.rows import TaskRow
from parity_protocol.ids import Address

__all__ = ["Market", "Signals", "new_id"]


class Signals(Protocol):
    """Told after a commit, on the event loop; MUST return at once. The scheduler is one."""

    def task_pending(self, task: TaskRow) -> None:
        """``task`` can be claimed: it is new, or came back."""
        ...

    def task_taken(self, task_id: str, node_id: str) -> None:
        """A pending task was claimed by ``node_id``."""
        ...

    def task_gone(self, task_id: str) -> None:
        """A task will not be claimed any more: it is final or being verified."""
        ...

    def task_changed(self, task_id: str) -> None:
        """A task has a new event: whoever follows it should look."""
        ...

    def lease_ended(self, task_id: str, node_id: str) -> None:
        """``node_id`` has a slot more."""
        ...

    def other_can_run(self, needs: Needs, excluded: AbstractSet[str]) -> bool:
        """Return whether an online node outside ``excluded`` could run such a task; asked inside operations."""
        ...


def new_id() -> str:
    """Return a UUID version 7 (RFC 9562): unguessable, and rows made together lie together on disk.

    The twelve bits beside the milliseconds are a finer fraction (RFC 9562 §6.2, method 3), so that ids of one process
    sort as they were made.
    """
    millis, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = (rest_ns << 12) // 1_000_000
    value = millis << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass(frozen=True, slots=True)
class Market:
    """The market's terms. ``chain`` is what ``money.pin_chain`` returned."""

    chain: str
    spender: Address
    signals: Signals
    min_bond: int = 0  # base units that a node must have bonded to get work
    lease_ttl: timedelta = timedelta(seconds=30)
    chain_grace: timedelta = timedelta(minutes=10)  # how long the follower's last view counts while the chain is down
    max_verify_attempts: int = 5
    max_log_bytes: int = 1 << 20  # of one attempt
    make_id: Callable[[], str] = new_id
