"""The summary, made from nothing but the market's API, the chain and the data: each number is worked out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anyio.to_thread

from parity_cli.demo import plan
from parity_cli.demo.plan import DataSets, Work
from parity_cli.demo.scores import Judgement, Session, central_forest, central_linear, judge
from parity_cli.demo.stack import Node, Stack
from parity_cli.demo.summary import ForestScores, LinearScores, NodeLine, Statement, Summary, TaskLine
from parity_client import Client, Submission
from parity_contracts.chain.base import PaidKey
from parity_fl.session import SessionPlan
from parity_protocol.api.tasks import TaskReply
from parity_protocol.errors import ParityError
from parity_protocol.quantities import format_tokens
from parity_protocol.task import TaskState, parse_spec

__all__ = ["LEAST_LONG_MS", "Audit", "audit", "money_statements", "work_statements"]

LEAST_LONG_MS = 5_000  # the delayed task must have run so long
ACCURACY_MARGIN = 0.08  # how far below the central forest the federated one may be; 114 rows tell no more
R2_MARGIN = 0.1
_MAX_MODEL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Audit:
    """What was submitted, on which data; and what could not be shown."""

    data: DataSets
    submitted: tuple[tuple[Work, Submission], ...]
    left_out: tuple[str, ...] = ()


async def audit(stack: Stack, market: Client, inputs: Audit, *, seconds: float) -> Summary:
    """Return the summary of what was done.

    Raises:
        ParityError: Market or chain do not answer, or something that must be there is not.
    """
    tasks = [await _task(stack, market, work, task_id) for work, sent in inputs.submitted for task_id in sent.task_ids]
    nodes = [await _node(stack, market, node, tasks) for node in stack.nodes]
    found = {work.name: sent for work, sent in inputs.submitted}
    forest = await _judge(market, found[plan.FOREST], inputs.data.breast_cancer)
    linear = await _judge(market, found[plan.LINEAR], inputs.data.diabetes)
    central = await anyio.to_thread.run_sync(central_forest, forest.table)
    scores = ForestScores(
        accuracy=forest.score,
        central_accuracy=central,
        oob_local_mean=float(forest.metrics["oob_local_mean"]),
        oob_federated=float(forest.metrics["oob_federated"]),
    )
    fitted = LinearScores(r2=linear.score, central_r2=await anyio.to_thread.run_sync(central_linear, linear.table))
    statements = [*work_statements(tasks, nodes), *money_statements(tasks, nodes)]
    statements.append(await _vault_statement(stack, market, tasks, nodes))
    for name, judged in ((plan.FOREST, forest), (plan.LINEAR, linear)):
        statements.append(await _merge_statement(market, name, found[name], judged))
    statements += [
        Statement(
            f"the forest is as good as one trained in one place (within {ACCURACY_MARGIN:.0%})",
            scores.accuracy >= scores.central_accuracy - ACCURACY_MARGIN,
            f"{scores.accuracy:.3f} against {scores.central_accuracy:.3f}",
        ),
        Statement(
            f"the line is as good as least squares (R² within {R2_MARGIN})",
            fitted.r2 >= fitted.central_r2 - R2_MARGIN,
            f"{fitted.r2:.3f} against {fitted.central_r2:.3f}",
        ),
    ]
    for name in (plan.SHELL, plan.CONTAINER):
        if name in found:
            statements.append(await _count_statement(name, found[name], inputs.data.breast_cancer))
    return Summary(seconds, tuple(tasks), tuple(nodes), scores, fitted, tuple(statements), inputs.left_out)


async def _task(stack: Stack, market: Client, work: Work, task_id: str) -> TaskLine:
    task = await market.task(task_id)
    is_paid = task.payout is not None and task.payout.state == "confirmed"
    return TaskLine(
        name=work.name if task.parts == 1 else f"{work.name} {task.part + 1}/{task.parts}",
        id=task.id,
        type=task.type,
        state=task.state,
        node=task.runner_id,
        attempts=task.attempts,
        reward=task.reward,
        paid=task.reward if is_paid else 0,
        receipt_valid=await _has_receipt(stack, market, task),
        wall_ms=task.usage.get("wall_ms", 0),
    )


async def _has_receipt(stack: Stack, market: Client, task: TaskReply) -> bool:
    """Check order and receipt offline, by the operator key that the chain names for the node."""
    if task.state != TaskState.COMPLETED or task.runner_id is None or task.result_cid is None:
        return False
    operator = (await stack.chain.account(task.runner_id)).operator
    try:
        receipt = market.verify(await market.proof(task.id), operator=operator)
    except ParityError:
        return False
    proven = (receipt.task_id, receipt.node_id, receipt.result_cid, receipt.operator)
    return proven == (task.id, task.runner_id, task.result_cid, operator)


async def _node(stack: Stack, market: Client, node: Node, tasks: Sequence[TaskLine]) -> NodeLine:
    on_chain = await stack.chain.account(node.id)
    return NodeLine(
        name=node.name,
        id=node.id,
        address=on_chain.payout or "",
        stake=on_chain.bond,
        earned=(await market.node(node.id)).earned,
        earned_on_chain=on_chain.credit,
        killed=node.was_killed,
        did=tuple(task.name for task in tasks if task.node == node.id and task.state == TaskState.COMPLETED),
    )


def work_statements(tasks: Sequence[TaskLine], nodes: Sequence[NodeLine]) -> list[Statement]:
    """Return what the summary says of the work, and whether it is so."""
    killed = {node.id for node in nodes if node.killed}
    open_ones = [f"{task.name} is {task.state}" for task in tasks if task.state != TaskState.COMPLETED]
    unproven = [task.name for task in tasks if not task.receipt_valid]
    delayed = [task for task in tasks if task.name == plan.DELAYED]
    return [
        Statement(f"all {len(tasks)} tasks are completed", not open_ones, "; ".join(open_ones)),
        Statement(
            "every receipt is valid, checked offline by the key that the chain names",
            not unproven,
            ", ".join(unproven),
        ),
        Statement(
            "the killed node's task was done by another one, at its second attempt",
            len(delayed) == 1 and all(task.attempts == 2 and task.node not in killed for task in delayed),
            ", ".join(f"{task.attempts} attempts, done by {task.node}" for task in delayed),
        ),
        Statement(
            f"it ran for {LEAST_LONG_MS / 1000:.0f} s or more",
            all(task.wall_ms >= LEAST_LONG_MS for task in delayed),
            ", ".join(f"{task.wall_ms} ms" for task in delayed),
        ),
    ]


def money_statements(tasks: Sequence[TaskLine], nodes: Sequence[NodeLine]) -> list[Statement]:
    """Return what the summary says of stakes and pay, and whether it is so."""
    rewards, paid = sum(task.reward for task in tasks), sum(task.paid for task in tasks)
    stakes = [f"{node.name} has {format_tokens(node.stake)}" for node in nodes if node.stake != plan.STAKE]
    unlike = []
    for node in nodes:
        did = sum(task.paid for task in tasks if task.node == node.id)
        if not did == node.earned == node.earned_on_chain:
            amounts = ", ".join(format_tokens(amount) for amount in (did, node.earned, node.earned_on_chain))
            unlike.append(f"{node.name}: {amounts}")
    killed = [node.name for node in nodes if node.killed]
    return [
        Statement(f"each node has {format_tokens(plan.STAKE)} at stake", not stakes, "; ".join(stakes)),
        Statement(
            f"all rewards are paid: {format_tokens(rewards)}",
            paid == rewards,
            f"{format_tokens(paid)} of {format_tokens(rewards)}",
        ),
        Statement(
            "each node did, earned by the market's word, and has on chain the same amount",
            not unlike,
            "; ".join(unlike),
        ),
        Statement("one node was killed, and keeps what it had earned", len(killed) == 1, ", ".join(killed) or "none"),
    ]


async def _vault_statement(
    stack: Stack, market: Client, tasks: Sequence[TaskLine], nodes: Sequence[NodeLine]
) -> Statement:
    """The submitter's escrow went down by what the vault paid to these nodes, and by nothing else."""
    creator = market.address
    keys = [PaidKey(creator, stack.spender, node.id) for node in nodes]
    paid = sum((await stack.chain.paid(keys)).amounts)
    left = (await stack.chain.escrow(creator, stack.spender)).amount
    rewards = sum(task.reward for task in tasks)
    return Statement(
        "the escrow has shrunk by exactly these rewards",
        paid == rewards == plan.SUBMITTER_FUNDS - left,
        f"paid {format_tokens(paid)}, left {format_tokens(left)} of {format_tokens(plan.SUBMITTER_FUNDS)}",
    )


async def _judge(market: Client, sent: Submission, data: bytes) -> Judgement:
    group = await market.group(sent.id)
    assert group.plan is not None
    assert group.result_cid is not None
    parts = sorted(group.tasks, key=lambda task: task.part)
    updates = [await market.result(task.id, max_bytes=_MAX_MODEL_BYTES) for task in parts]
    spec = parse_spec((await market.proof(parts[0].id)).spec)
    session = Session(
        settings=dict(spec.session()),  # type: ignore[union-attr]  # the demo submitted it
        plan=SessionPlan.from_dict(group.plan),
        data=data,
        updates=tuple(update.data or b"" for update in updates),
        model=await market.data.read(group.result_cid, max_bytes=_MAX_MODEL_BYTES),
    )
    return await anyio.to_thread.run_sync(judge, session)


async def _merge_statement(market: Client, name: str, sent: Submission, judged: Judgement) -> Statement:
    told = (await market.group(sent.id)).metrics
    key = "accuracy" if name == plan.FOREST else "r2"
    wrong = [
        f"{metric}: the market says {told.get(metric)}, here it is {value}"
        for metric, value in ((key, judged.score), *((one, judged.metrics[one]) for one in _OOB if name == plan.FOREST))
        if told.get(metric) != value
    ]
    if not judged.is_same_model:
        wrong.append("the model is another one")
    return Statement(f"merging the {name}'s parts here gives the same model and scores", not wrong, "; ".join(wrong))


_OOB = ("oob_local_mean", "oob_federated")


async def _count_statement(name: str, sent: Submission, data: bytes) -> Statement:
    """Count the classes here too."""
    labels = [line.rsplit(b",", 1)[1].decode() for line in data.splitlines()[1:]]
    wanted = {name: labels.count(name) for name in plan.CLASSES}
    output = (await sent.result(wait=0)).output or ""
    pairs = [line.split() for line in output.splitlines()]
    counted = {pair[1]: int(pair[0]) for pair in pairs if len(pair) == 2 and pair[0].isdigit()}
    return Statement(f"the {name} task counted right", counted == wanted, f"{counted} against {wanted}")
