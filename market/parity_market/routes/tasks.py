"""Submitting work and following it: tasks and groups."""

from __future__ import annotations

from parity_blobs.cid import Cid
from parity_blobs.spec_cids import cids_of_spec
from parity_market.auth import Access, Caller
from parity_market.followers import end_of
from parity_market.loops.chain_follower import refresh_account
from parity_market.operations import money, tasks, views
from parity_market.operations.steps import load_task
from parity_market.operations.tasks import NewSubmission
from parity_market.routing import CURSOR, LIMIT, MAX_WAIT_S, WAIT, Call, Endpoint, whole_number
from parity_market.state import MarketState
from parity_market.store.base import ReadTx
from parity_protocol import strict_json
from parity_protocol.api import paths
from parity_protocol.api.tasks import (
    AccountReply,
    CancelReply,
    CheckReply,
    CheckRequest,
    EventsReply,
    GroupReply,
    GroupsReply,
    LogsReply,
    ProofReply,
    ResultReply,
    RewardReply,
    SubmitReply,
    SubmitRequest,
    TaskReply,
    TasksReply,
    TaskStatusReply,
    WhyPendingReply,
)
from parity_protocol.errors import BadCid, BadField, EscrowTooLow, Forbidden, NotFound, TooLarge
from parity_protocol.ids import checked_account_id
from parity_protocol.order import check_order
from parity_protocol.shards import open_shards
from parity_protocol.task import (
    FINAL_STATES,
    CidInput,
    CommandSpec,
    DockerSpec,
    FederatedLearningSpec,
    HttpsInput,
    LlmSpec,
    ShardInput,
    TaskState,
    parse_spec,
    parts_of,
)
from parity_protocol.wire import JsonObject

__all__ = ["ENDPOINTS", "submit_order"]

UNFUNDED = "the escrow does not cover your tasks any more: money is being released; cancel the release or some tasks"
MAX_MANIFEST_PART = 190_000  # bytes, base64url makes 253,334 characters of them; a manifest has at most 262,144
SUBMIT_BODY = 1 << 20  # bytes: a spec of 64 KiB, escaped, with its order and the sources of its shards


async def submit(call: Call) -> SubmitReply:
    """Check the order, reserve the reward from the escrow, and queue the work."""
    return await submit_order(call.state, call.caller.id, call.body)


async def submit_order(
    state: MarketState, creator: str, body: SubmitRequest, *, session_id: str | None = None
) -> SubmitReply:
    """Do what ``submit`` does.

    Args:
        creator: Who signed in.
        session_id: What it is to be known by; None makes an id.
    """
    now = state.clock.now()
    if body.order.creator != creator:
        raise Forbidden("the order's creator is not the account that signed in", field="order.creator")
    check_order(body.order, body.spec, body.reward, domain=state.domain, market=state.identity.market_bytes, now=now)
    spec = parse_spec(body.spec)
    order_hash = "0x" + body.order.digest(state.domain).hex()
    plan = None
    sources = _sources_of(spec, body.shards)
    if isinstance(spec, FederatedLearningSpec):
        plan = await state.federation.plan(spec, creator=creator, order_hash=order_hash)
    _check_manifest_fits(body, plan)
    new = NewSubmission(
        creator, body.spec, spec, body.order, order_hash, body.reward, plan, body.shards, sources, session_id
    )
    try:
        made = await state.store.write(lambda tx: tasks.submit(tx, state.market, new, now))
    except EscrowTooLow:
        # An ``allow`` of a moment ago may not have been read yet: look once more before saying no.
        await refresh_account(state, creator)
        made = await state.store.write(lambda tx: tasks.submit(tx, state.market, new, state.clock.now()))
    if made.created and (sources or cids_of_spec(spec)):
        await state.store.write(lambda tx: tasks.link_data(tx, new, made.task_ids, now))
    state.rounds.wake(made.id)
    return made


async def check(call: Call) -> CheckReply:
    """Tell whether a submission would be taken, before its data are stored; changes nothing."""
    state, creator, body = call.state, call.caller.id, call.body
    assert isinstance(body, CheckRequest)
    spec = parse_spec(body.spec)
    if isinstance(spec, FederatedLearningSpec):
        state.federation.check_settings(spec)
    cids_of_spec(spec)

    async def look() -> None:
        now = state.clock.now()
        await state.store.read(lambda tx: tasks.check_money(tx, state.market, creator, body.reward, now))

    try:
        await look()
    except EscrowTooLow:
        await refresh_account(state, creator)
        await look()
    return CheckReply(type=spec.type, parts=parts_of(spec))


def _sources_of(
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec, shards: tuple[str, ...]
) -> tuple[CidInput | HttpsInput | ShardInput, ...]:
    """Return where the parts of a sharded session lie, checked against what was signed; empty for anything else.

    Raises:
        BadField: One is missing, is not what was signed, is no source, or names no CID.
    """
    digests = spec.shards if isinstance(spec, FederatedLearningSpec) else ()
    sources = tuple(shard.source for shard in open_shards(shards, digests))
    for part, source in enumerate(sources):
        if isinstance(source, CidInput):
            try:
                Cid.parse(source.cid)
            except BadCid as exc:
                raise BadField(f"shard of part {part}: {exc.message}", field=f"shards.{part}.source.cid") from exc
    return sources


def _check_manifest_fits(body: SubmitRequest, plan: JsonObject | None) -> None:
    """Refuse what would make a manifest that no node may read or send back.

    Such a task would stay the oldest, be offered again and again, and keep nodes from what waits behind it.

    Raises:
        TooLarge: The spec's text with its escapes, the order with fields of the submitter's own, and the plan together.
    """
    document = {"spec": body.spec, "order": body.order.model_dump(mode="json"), "plan": plan}
    size = len(strict_json.dumps({**document, "shard": max(body.shards, key=len, default="")}))
    if size > MAX_MANIFEST_PART:
        raise TooLarge(
            f"spec, order and plan take {size} bytes together, at most {MAX_MANIFEST_PART} fit", field="spec"
        )


def _check_mine(tx: ReadTx, root_id: str, caller: Caller) -> None:
    """Let the creator see everything of a task, and the node that held it last see the task.

    Raises:
        NotFound: It is not there, or not for this caller: the answers are the same on purpose.
    """
    if caller.is_node:
        if load_task(tx, root_id).last_node == caller.id:
            return
    elif tasks.owner_of(tx, root_id) == caller.id:
        return
    raise NotFound(f"there is no task {root_id} of yours here")


async def get(call: Call) -> TaskReply:
    """Return a task."""
    task_id = call.path("task_id")

    def read(tx: ReadTx) -> TaskReply:
        _check_mine(tx, task_id, call.caller)
        return views.task(tx, task_id, call.state.chain_health.unfunded)

    return await call.state.store.read(read)


async def page(call: Call) -> TasksReply:
    """Return the caller's tasks, newest first."""
    before, limit = call.text("cursor") or None, call.limit()
    return await call.state.store.read(
        lambda tx: views.tasks(
            tx, creator=call.caller.id, before=before, limit=limit, unfunded=call.state.chain_health.unfunded
        )
    )


async def status(call: Call) -> TaskStatusReply:
    """Return where a task is; with ``wait_s``, once an event newer than ``after_seq`` is there."""
    state, task_id = call.state, call.path("task_id")
    after, wait_s = call.whole("after_seq", 0, low=0, high=2**31), call.wait_s()

    def read(tx: ReadTx) -> TaskStatusReply:
        _check_mine(tx, task_id, call.caller)
        return views.status(tx, task_id)

    return await state.scheduler.followers.until(
        task_id, lambda: state.store.read(read), lambda found: found.seq > after, wait_s=wait_s
    )


async def events(call: Call) -> EventsReply:
    """Return a task's life."""
    task_id, after = call.path("task_id"), call.whole("after_seq", 0, low=0, high=2**31)

    def read(tx: ReadTx) -> EventsReply:
        _check_mine(tx, task_id, call.caller)
        return views.events(tx, task_id, after_seq=after)

    return await call.state.store.read(read)


async def result(call: Call) -> ResultReply:
    """Return the result; 404 while there is none after ``wait_s``."""
    state, task_id, wait_s = call.state, call.path("task_id"), call.wait_s()

    def read(tx: ReadTx) -> ResultReply:
        _check_mine(tx, task_id, call.caller)
        return views.result(tx, task_id)

    found = await state.scheduler.followers.until(
        end_of(task_id),
        lambda: state.store.read(read),
        lambda seen: TaskState(seen.state) in FINAL_STATES,
        wait_s=wait_s,
    )
    if TaskState(found.state) not in FINAL_STATES:
        raise NotFound(f"task {task_id} is {found.state}: it has no result yet", hint="Ask again with ?wait_s=30.")
    return found


async def logs(call: Call) -> LogsReply:
    """Return what the newest attempt printed, from a byte offset; waits for more with ``wait_s``."""
    state, task_id, wait_s = call.state, call.path("task_id"), call.wait_s()
    offset = call.whole("offset", 0, low=0, high=2**40)

    def read(tx: ReadTx) -> LogsReply:
        _check_mine(tx, task_id, call.caller)
        return views.logs(tx, task_id, offset=offset)

    return await state.scheduler.followers.until(
        task_id, lambda: state.store.read(read), lambda seen: bool(seen.text) or seen.done, wait_s=wait_s
    )


async def reward(call: Call) -> RewardReply:
    """Return a task's reward and where the money is."""
    task_id = call.path("task_id")

    def read(tx: ReadTx) -> RewardReply:
        _check_mine(tx, task_id, call.caller)
        return views.reward(tx, task_id, call.state.chain_health.unfunded)

    return await call.state.store.read(read)


async def proof(call: Call) -> ProofReply:
    """Return everything that checks the receipt without the market."""
    task_id = call.path("task_id")

    def read(tx: ReadTx) -> ProofReply:
        _check_mine(tx, task_id, call.caller)
        return views.proof(tx, task_id)

    return await call.state.store.read(read)


async def why_pending(call: Call) -> WhyPendingReply:
    """Return, for each online node that did not get the task, the constraint that failed."""
    task_id = call.path("task_id")

    def read(tx: ReadTx) -> WhyPendingReply:
        _check_mine(tx, task_id, call.caller)
        task, market = load_task(tx, task_id), call.state.market
        why = call.state.scheduler.why_pending(task)
        is_unfunded = task.reward > 0 and not money.is_covered(tx, market.chain, market.spender, task.creator)
        if task.state is TaskState.PENDING and is_unfunded:
            return why.model_copy(update={"nodes_fit": 0, "summary": UNFUNDED})
        return why

    return await call.state.store.read(read)


async def cancel(call: Call) -> CancelReply:
    """Cancel a task or a whole group; the first in the writer's order wins."""
    root_id, state, now = call.path("root_id"), call.state, call.state.clock.now()
    return await state.store.write(lambda tx: tasks.cancel(tx, state.market, root_id, call.caller.id, now))


async def groups(call: Call) -> GroupsReply:
    """Return the caller's groups without their tasks, newest first."""
    before, limit = call.text("cursor") or None, call.limit()
    return await call.state.store.read(lambda tx: views.groups(tx, creator=call.caller.id, before=before, limit=limit))


async def group(call: Call) -> GroupReply:
    """Return a group with its tasks; with ``wait_s``, once it has ended."""
    state, group_id, wait_s = call.state, call.path("group_id"), call.wait_s()

    def read(tx: ReadTx) -> GroupReply:
        if tasks.owner_of(tx, group_id) != call.caller.id:
            raise NotFound(f"there is no group {group_id} of yours here")
        return views.group(tx, group_id, call.state.chain_health.unfunded)

    return await state.scheduler.followers.until(
        group_id, lambda: state.store.read(read), lambda found: found.state != "running", wait_s=min(wait_s, MAX_WAIT_S)
    )


async def account(call: Call) -> AccountReply:
    """Return the caller's money at this market, read from the chain now when it answers."""
    state, name = call.state, checked_account_id(call.path("account"))
    if name != call.caller.id:
        raise Forbidden("an account is shown to its owner only")
    if call.caller.is_node:
        raise BadField("a node's money is at /nodes/{id}/earnings", field="account")
    await refresh_account(state, name)
    return await state.store.read(lambda tx: money.account_reply(tx, state.market, name))


def _task(leaf: str) -> str:
    return paths.task_path("{task_id}", leaf)


AFTER = whole_number("after_seq", "Only what is newer than this event", high=2**31)
OFFSET = whole_number("offset", "Byte to begin with", high=2**40)

ENDPOINTS = (
    Endpoint(
        "POST",
        paths.TASKS,
        submit,
        Access.SUBMITTER,
        "Submit work",
        SubmitReply,
        SubmitRequest,
        SUBMIT_BODY,
        status=201,
    ),
    Endpoint(
        "POST", paths.TASK_CHECK, check, Access.SUBMITTER, "Would this be taken?", CheckReply, CheckRequest, SUBMIT_BODY
    ),
    Endpoint("GET", paths.TASKS, page, Access.SUBMITTER, "List your tasks", TasksReply, query=(LIMIT, CURSOR)),
    Endpoint("GET", _task(""), get, Access.SIGNED, "A task", TaskReply),
    Endpoint("GET", _task("status"), status, Access.SIGNED, "Where a task is", TaskStatusReply, query=(AFTER, WAIT)),
    Endpoint("GET", _task("events"), events, Access.SIGNED, "A task's life", EventsReply, query=(AFTER,)),
    Endpoint("GET", _task("result"), result, Access.SIGNED, "A task's result", ResultReply, query=(WAIT,)),
    Endpoint("GET", _task("logs"), logs, Access.SIGNED, "What a task printed", LogsReply, query=(OFFSET, WAIT)),
    Endpoint("GET", _task("reward"), reward, Access.SIGNED, "A task's reward", RewardReply),
    Endpoint("GET", _task("receipt"), proof, Access.SIGNED, "A task's proof", ProofReply),
    Endpoint("GET", _task("why-pending"), why_pending, Access.SIGNED, "Why a task waits", WhyPendingReply),
    Endpoint("POST", paths.task_path("{root_id}", "cancel"), cancel, Access.SUBMITTER, "Cancel", CancelReply),
    Endpoint("GET", paths.GROUPS, groups, Access.SUBMITTER, "List your groups", GroupsReply, query=(LIMIT, CURSOR)),
    Endpoint("GET", paths.group_path("{group_id}"), group, Access.SUBMITTER, "A group", GroupReply, query=(WAIT,)),
    Endpoint("GET", paths.account_path("{account}"), account, Access.SIGNED, "Your money here", AccountReply),
)
