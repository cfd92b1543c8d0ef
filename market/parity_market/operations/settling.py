"""The money bound to a task when that ends: who has earned what of it; the rest is its creator's again.

A part of a session that trains in rounds may have had several holders. Each is paid for the rounds, and the phases of one,
that the market accepted its answers in, however the part and the session end; only a lease whose own report of them was
refused is not. Who reports the session's end has a receipt for it. The others have none: what is put under their vouchers
is a digest of the market's list of their updates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from parity_fl.rounds_config import RoundsConfig
from parity_market.domain.round_pay import Held, asked_of, shares_of
from parity_market.domain.rounds import LEGACY
from parity_market.operations.context import Market
from parity_market.operations.round_rows import closed_rounds, first_round, phases_left
from parity_market.store import sql, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import AccountRow, EarningRow, FlSessionRow, FlUpdateRow, TaskRow
from parity_protocol.errors import Internal

__all__ = ["PAY_ROUNDS", "Share", "earn", "release_reserve", "release_unfinished", "shares_of_part"]

PAY_ROUNDS = "rounds"  # kind of an earning without a receipt


@dataclass(frozen=True, slots=True)
class Share:
    """What a node earns for rounds under leases that it lost."""

    node_id: str
    amount: int  # base units, above 0
    digest: str  # 0x and 64 hex digits; of its accepted updates


def release_reserve(tx: Tx, market: Market, task: TaskRow, *, earned: int) -> None:
    """Unbind a task's reward in the step that makes it final; ``earned`` of it is owed now."""
    if task.reward == 0:
        return
    account = tx.one(sql.ACCOUNT, chain=market.chain, creator=task.creator)
    if account is None or account.reserved < task.reward or earned > task.reward:
        raise Internal(f"the reserve of {task.creator} does not cover task {task.id}")
    tx.insert(
        sql.ACCOUNT_PUT,
        AccountRow(market.chain, task.creator, account.reserved - task.reward, account.earned + earned),
    )


def release_unfinished(tx: Tx, market: Market, task: TaskRow, *, now_us: int) -> None:
    """Unbind the reward of a task that ends without an accepted result; rounds that it did are owed to their nodes."""
    _, others = shares_of_part(tx, task, accepted=None)
    release_reserve(tx, market, task, earned=sum(share.amount for share in others))
    earn(tx, market, task, others, now_us=now_us)


def earn(tx: Tx, market: Market, task: TaskRow, shares: Sequence[Share], *, now_us: int) -> None:
    """Note what nodes without a receipt earned; the amount was released before."""
    for share in shares:
        tx.insert(
            sql.EARNING_INSERT,
            EarningRow(
                0, market.chain, task.id, share.node_id, PAY_ROUNDS, task.creator, market.spender, share.amount,
                share.digest, now_us, None, None,
            )[1:],
        )  # fmt: skip


def shares_of_part(tx: ReadTx, task: TaskRow, *, accepted: int | None) -> tuple[int, tuple[Share, ...]]:
    """Return what a part's accepted report has earned, and what its other holders have.

    Args:
        accepted: Fence of the report that is accepted now; None when the part ends without one.
    """
    session = None if task.group_id is None else tx.one(sql_rounds.FL_SESSION, group_id=task.group_id)
    if session is None:
        return 0, ()
    config = RoundsConfig.from_dict(json.loads(session.settings_doc)["rounds"], parts=task.parts)
    asked, expected = _asked(tx, session, task.part)
    updates: dict[int, list[FlUpdateRow]] = {}
    for update in tx.all(sql_rounds.FL_UPDATES_OF_PART, group_id=session.group_id, part=task.part):
        updates.setdefault(update.fence, []).append(update)
    for fence in [fence for fence in updates if fence != accepted]:
        # Who reported listed other updates than these; the owner of an old device has proved nothing.
        is_legacy = updates[fence][0].node_id.startswith(LEGACY)
        if is_legacy or tx.one(sql.RECEIPT, task_id=task.id, fence=fence) is not None:
            del updates[fence]
    earned = shares_of(
        task.reward,
        base_share=config.base_share,
        asked=asked,
        expected=expected,
        holders={fence: Held(len(own), sum(_contribution(one) for one in own)) for fence, own in updates.items()},
        contributions={} if config.base_share == 1 else _contributions(tx, session, task.parts),
        part=task.part,
    )
    own = 0 if accepted is None else earned.pop(accepted, 0)
    by_node: dict[str, list[int]] = {}
    for fence, amount in earned.items():
        if amount:
            by_node.setdefault(updates[fence][0].node_id, []).append(fence)
    return own, tuple(
        Share(node_id, sum(earned[fence] for fence in fences), _digest(task, node_id, updates, fences))
        for node_id, fences in sorted(by_node.items())
    )


def _asked(tx: ReadTx, session: FlSessionRow, part: int) -> tuple[int, int]:
    """Return in how many closed phases a part was asked, and in how many it is in the whole session; see ``asked_of``."""
    rows = closed_rounds(tx, session.group_id)
    return asked_of(
        [(row.round, tuple(json.loads(row.cohort_doc))) for row in rows],
        part=part,
        open_round=session.round,
        rounds=range(first_round(session), session.total_rounds + 1),
        left=phases_left(rows[-1]) if rows else 0,
    )


def _contribution(update: FlUpdateRow) -> float:
    return float(json.loads(update.metrics_doc).get("contribution") or 0.0)


def _contributions(tx: ReadTx, session: FlSessionRow, parts: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for part in range(parts):
        for update in tx.all(sql_rounds.FL_UPDATES_OF_PART, group_id=session.group_id, part=part):
            if "contribution" in json.loads(update.metrics_doc):
                found[part] = found.get(part, 0.0) + _contribution(update)
    return found


def _digest(task: TaskRow, node_id: str, updates: dict[int, list[FlUpdateRow]], fences: Sequence[int]) -> str:
    lines = [f"{one.fence} {one.round} {one.phase} {one.sha256}" for fence in sorted(fences) for one in updates[fence]]
    text = "\n".join(["parity-fl/rounds-pay/1", task.id, node_id, *lines])
    return "0x" + sha256(text.encode()).hexdigest()
