"""Why a task waits or a node gets nothing: counted in bounded memory, said in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from parity_market.store.rows import TaskRow
from parity_protocol.api.nodes import Refusal, WhyNoWorkReply
from parity_protocol.api.tasks import WhyPendingReply
from parity_protocol.policy import DENY_PREFIX, HOURS_RULE, Denial, Policy
from parity_protocol.task import TaskState

__all__ = ["OwnRefusals", "RefusalCounts", "shared_rule", "why_no_work", "why_pending"]

MAX_RULES = 48  # kept for one node or kind of task; there are about thirty
MAX_REFUSERS = 256  # nodes whose refusal of one task is remembered
RETRY_S = 10.0  # before a node is offered again what it refused for a reason that passes

_GROUPS = frozenset(
    {
        "policy",
        "executor",
        "isolation",
        "version",
        "cpus",
        "memory",
        "disk",
        "gpus",
        "deadline",
        "excluded",
        "lost_lease",
    }
)


@dataclass(slots=True)
class _Count:
    message: str
    count: int
    task_id: str | None
    node_id: str | None
    at: datetime


@dataclass(slots=True)
class RefusalCounts:
    """How often each rule refused, with the last occasion."""

    taken: int = 0
    _rules: dict[str, _Count] = field(default_factory=dict)

    def add(self, denial: Denial, *, task_id: str | None, node_id: str | None, at: datetime) -> None:
        """Count one refusal."""
        known = self._rules.get(denial.rule)
        if known is not None:
            known.message, known.task_id, known.node_id, known.at = denial.message, task_id, node_id, at
            known.count += 1
        elif len(self._rules) < MAX_RULES:
            self._rules[denial.rule] = _Count(denial.message, 1, task_id, node_id, at)

    def refusals(self) -> tuple[Refusal, ...]:
        """Return the counts, most frequent first."""
        ordered = sorted(self._rules.items(), key=lambda item: (-item[1].count, item[0]))
        return tuple(
            Refusal(
                rule=rule,
                message=found.message,
                count=found.count,
                last_task=found.task_id,
                last_node=found.node_id,
                last_at=found.at,
            )
            for rule, found in ordered
        )

    @property
    def total(self) -> int:
        """Refusals in all."""
        return sum(found.count for found in self._rules.values())


@dataclass(frozen=True, slots=True)
class _OwnRefusal:
    denial: Denial
    policy: str  # digest of the policy that refused
    until: float | None  # monotonic; None while that policy is in force


@dataclass(slots=True)
class OwnRefusals:
    """What nodes themselves said against one task, so that it is not offered to them again and again."""

    _by_node: dict[str, _OwnRefusal] = field(default_factory=dict)

    def add(self, denial: Denial, *, node_id: str, policy: str, now: float) -> None:
        """Note that a node refused.

        Args:
            policy: Digest of its policy.
            now: Monotonic seconds.
        """
        is_lasting = denial.rule.startswith("policy.") and denial.rule != HOURS_RULE
        known = self._by_node.pop(node_id, None)
        if known is not None and known.until is None and known.policy == policy:
            self._by_node[node_id] = known  # one lasting reason is enough
            return
        self._by_node[node_id] = _OwnRefusal(denial, policy, None if is_lasting else now + RETRY_S)
        for oldest in list(islice(self._by_node, max(0, len(self._by_node) - MAX_REFUSERS))):
            del self._by_node[oldest]

    def of(self, node_id: str, *, policy: str, now: float) -> Denial | None:
        """Return what still keeps a node with this policy from the task."""
        found = self._by_node.get(node_id)
        if found is None or found.policy != policy or (found.until is not None and found.until <= now):
            return None
        return found.denial


def shared_rule(denial: Denial) -> Denial:
    """Return a node's refusal as submitters see it: no node can fill their list with names of its own."""
    if denial.rule.startswith(DENY_PREFIX):
        return Denial(DENY_PREFIX.rstrip("."), "denied by a rule of the operator")
    group, _, name = denial.rule.partition(".")
    is_known = name in Policy.model_fields if group == "policy" else not name or group == "disk"
    return denial if is_known and group in _GROUPS else Denial("other", denial.message)


def why_pending(
    task: TaskRow, verdicts: Sequence[tuple[str, Denial | None]], counts: RefusalCounts | None, *, now: datetime
) -> WhyPendingReply:
    """Return why a task waits.

    Args:
        verdicts: Each online node and what keeps the task from it now; None when nothing does.
        counts: Earlier refusals of tasks with the same needs.
    """
    live = RefusalCounts()
    for node_id, denial in verdicts:
        if denial is not None:
            live.add(denial, task_id=task.id, node_id=node_id, at=now)
    fit = sum(1 for _, denial in verdicts if denial is None)
    refusals = live.refusals()
    shown = {refusal.rule for refusal in refusals}
    earlier = tuple(item for item in counts.refusals() if item.rule not in shown) if counts is not None else ()
    return WhyPendingReply(
        task_id=task.id,
        state=str(task.state),
        nodes_seen=len(verdicts),
        nodes_fit=fit,
        refusals=refusals + earlier,
        summary=_pending_summary(task, len(verdicts), fit, refusals),
    )


def _pending_summary(task: TaskRow, seen: int, fit: int, refusals: Sequence[Refusal]) -> str:
    if task.state is not TaskState.PENDING:
        return f"the task is {task.state}: it does not wait for a node"
    if seen == 0:
        return "no node is online; the first one that fits gets the task as soon as it polls"
    if fit:
        return f"{fit} of {seen} nodes could run it; it starts when one of them asks for work"
    first = refusals[0]
    others = f" (and {len(refusals) - 1} other reasons)" if len(refusals) > 1 else ""
    return f"none of the {seen} online nodes can take it: {first.count} of them because {first.message}{others}"


def why_no_work(node_id: str, counts: RefusalCounts, *, pending: int) -> WhyNoWorkReply:
    """Return why a node gets no work.

    Args:
        pending: Tasks that wait now.
    """
    refusals = counts.refusals()
    waiting = "1 task waits" if pending == 1 else f"{pending} tasks wait"
    if pending == 0:
        summary = "no task waits for a node at the moment"
    elif refusals:
        summary = f"{waiting}; the most frequent refusal is: {refusals[0].message}"
    else:
        what = "it" if pending == 1 else "them"
        summary = f"{waiting} and nothing keeps {what} from this node: is it polling?"
    return WhyNoWorkReply(
        node_id=node_id,
        considered=counts.total + counts.taken,
        taken=counts.taken,
        refusals=refusals,
        summary=summary,
    )
