"""Enrolment, heartbeat and what nodes and others can learn about nodes."""

from __future__ import annotations

from datetime import timedelta

from parity_market.auth import Access
from parity_market.loops.chain_follower import refresh_account
from parity_market.operations import money, nodes, vouchers
from parity_market.operations.nodes import NewNode
from parity_market.routing import CURSOR, LIMIT, Call, Endpoint
from parity_market.state import MarketState
from parity_market.store import sql
from parity_market.store.base import ReadTx
from parity_market.store.rows import NodeRow, from_us
from parity_protocol.api import paths
from parity_protocol.api.nodes import (
    EarningsReply,
    EnrolReply,
    EnrolRequest,
    Heartbeat,
    HeartbeatReply,
    NodeReply,
    NodesReply,
    WhyNoWorkReply,
    enrolment_statement,
)
from parity_protocol.capability import Capability
from parity_protocol.errors import BadSignature, ClockSkew, Forbidden, Overloaded
from parity_protocol.ids import checked_node_id
from parity_protocol.quantities import format_tokens
from parity_protocol.signing.eip191 import recover_personal
from parity_protocol.signing.jws import b64url_decode
from parity_protocol.signing.keys import Ed25519PublicKey, node_id_of

__all__ = ["ENDPOINTS"]

MAX_UNBONDED = 2_000  # enrolled nodes with less than the minimum bond
ENROLMENT_WINDOW = timedelta(minutes=10)  # between the operator's signature and its arrival


async def enrol(call: Call) -> EnrolReply:
    """Bind id, device key and operator; the chain must name the same operator before the node gets work."""
    body: EnrolRequest = call.body
    state, now = call.state, call.state.clock.now()
    device_key = Ed25519PublicKey(b64url_decode(body.device_key))
    state.authenticator.enrolling(call.request, call.raw, device_key, body.node_id)
    _check_operator(state, body)
    known = await state.store.read(lambda tx: tx.one(sql.NODE, id=body.node_id))
    if known is None and node_id_of(device_key) != body.node_id:
        raise Forbidden("a new node's id is the SHA-256 of its device key", field="node_id")
    account = await refresh_account(state, body.node_id)
    if account is not None and account.operator not in (None, body.operator):
        raise Forbidden(
            f"the chain names {account.operator} as this node's operator, the enrolment is signed by {body.operator}",
            hint="Run `parity node auth` with the operator key that was staked with, or change it on chain.",
        )
    if known is None:
        await _check_room(state, body.node_id)
    new = NewNode(body.node_id, body.device_key, body.operator, body.instance, body.hostname, body.capability)
    seen = state.scheduler.presence.last_seen(body.node_id)
    row = await state.store.write(
        lambda tx: nodes.enrol(tx, new, now, heartbeat=state.scheduler.presence.heartbeat, last_seen=seen)
    )
    bond = await state.store.read(lambda tx: money.bond_of(tx, state.market, body.node_id))
    state.authenticator.remember_node(body.node_id, device_key)
    state.scheduler.presence.enrolled(row, bond=bond)
    state.scheduler.node_changed(body.node_id, bond=bond)
    problems = _problems(state, bond, has_account=account is not None and account.operator is not None)
    return EnrolReply(
        node_id=body.node_id,
        bond=bond,
        min_bond=state.settings.market_min_bond,
        eligible=not problems,
        problems=problems,
        heartbeat_s=state.settings.market_heartbeat.total_seconds(),
        lease_ttl_s=state.market.lease_ttl.total_seconds(),
        time=now,
    )


async def _check_room(state: MarketState, node_id: str) -> None:
    """Let any number of nodes in that have something at stake, and so many others: a key costs nothing.

    Raises:
        Overloaded: Many have enrolled without a bond already.
    """
    bond = await state.store.read(lambda tx: money.bond_of(tx, state.market, node_id))
    if bond < state.settings.market_min_bond and state.scheduler.presence.unbonded() >= MAX_UNBONDED:
        raise Overloaded(
            "too many nodes without a bond have enrolled; `parity node stake` comes first", retry_after_s=60
        )


def _check_operator(state: MarketState, body: EnrolRequest) -> None:
    now = state.clock.now()
    apart = abs(now.timestamp() - body.issued_at)
    if apart > ENROLMENT_WINDOW.total_seconds():
        raise ClockSkew(
            f"the enrolment was signed at unix time {body.issued_at}, the market's is {int(now.timestamp())}: "
            f"{apart:.0f} s apart, {ENROLMENT_WINDOW.total_seconds():g} s are allowed",
            field="issued_at",
        )
    chain = state.identity.document.chain
    statement = enrolment_statement(
        node_id=body.node_id,
        device_key=body.device_key,
        operator=body.operator,
        market=state.identity.thumbprint,
        chain_id=chain.chain_id,
        vault=chain.vault,
        issued_at=body.issued_at,
    )
    signer = recover_personal(statement, bytes.fromhex(body.operator_signature[2:]))
    if signer != body.operator:
        raise BadSignature(f"the enrolment names operator {body.operator}, but {signer} signed it")


def _problems(state: MarketState, bond: int, *, has_account: bool) -> tuple[str, ...]:
    found = []
    minimum = state.settings.market_min_bond
    if bond < minimum:
        have, need = format_tokens(bond), format_tokens(minimum)
        found.append(f"the bond is {have} tokens, this market requires {need}: run `parity node stake`")
    elif minimum and not has_account:
        found.append("the chain names no operator for this node: run `parity node stake` again")
    return tuple(found)


async def heartbeat(call: Call) -> HeartbeatReply:
    """Note that a node is there; answers with the market's time and what it knows of the node."""
    body: Heartbeat = call.body
    state, node_id, now = call.state, call.caller.id, call.state.clock.now()

    def read(tx: ReadTx) -> int:
        nodes.check_instance(tx, node_id, body.instance)
        return money.bond_of(tx, state.market, node_id)

    bond = await state.store.read(read)
    state.scheduler.presence.heard(
        node_id,
        free_slots=body.free_slots,
        draining=body.draining,
        going_offline=body.going_offline,
        capability=body.capability,
    )
    if body.capability is not None:
        capability = body.capability
        await state.store.write(lambda tx: nodes.set_capability(tx, node_id, capability, now))
        state.scheduler.node_changed(node_id)
    if body.going_offline:
        dirty = state.scheduler.presence.take_dirty()
        await state.store.write(lambda tx: nodes.record_seen(tx, dirty))
    problems = _problems(state, bond, has_account=True)
    return HeartbeatReply(time=now, bond=bond, eligible=not problems, problems=problems)


def _reply(state: MarketState, tx: ReadTx, row: NodeRow) -> NodeReply:
    present = state.scheduler.presence.get(row.id)
    bond = money.bond_of(tx, state.market, row.id)
    earned, confirmed = vouchers.totals_of(tx, row.id)
    problems = _problems(state, bond, has_account=True)
    return NodeReply(
        id=row.id,
        operator=row.operator,
        online=present is not None and state.scheduler.presence.is_online(present),
        draining=bool(row.draining) if present is None else present.draining,
        last_seen=from_us(row.last_seen_us) if present is None else present.last_seen,
        enrolled_at=from_us(row.enrolled_us),
        bond=bond,
        eligible=not problems,
        problems=problems,
        running=0 if present is None else present.running,
        completed=row.completed,
        failed=row.failed,
        earned=earned,
        confirmed=confirmed,
        capability=Capability.model_validate_json(row.capability_doc) if present is None else present.capability,
    )


async def get(call: Call) -> NodeReply:
    """Return a node."""
    node_id = checked_node_id(call.path("node_id"))
    return await call.state.store.read(lambda tx: _reply(call.state, tx, nodes.get(tx, node_id)))


async def page(call: Call) -> NodesReply:
    """Return nodes by id."""
    after, limit = call.text("cursor"), call.limit()

    def read(tx: ReadTx) -> NodesReply:
        rows, cursor = nodes.page(tx, after=after, limit=limit)
        return NodesReply(nodes=tuple(_reply(call.state, tx, row) for row in rows), next_cursor=cursor)

    return await call.state.store.read(read)


async def why_no_work(call: Call) -> WhyNoWorkReply:
    """Return the constraints that kept work from this node."""
    node_id = checked_node_id(call.path("node_id"))
    return call.state.scheduler.why_no_work(node_id)


async def earnings(call: Call) -> EarningsReply:
    """Return what a node earned, where the money is, and its vouchers: it can redeem them itself.

    They name who paid it for what, so they are for the node and for whoever signs in with its operator key.
    """
    node_id, caller = checked_node_id(call.path("node_id")), call.caller
    before, limit = call.whole("cursor", 0, low=0, high=2**62) or None, call.limit()

    def read(tx: ReadTx) -> EarningsReply:
        is_own = caller.id == node_id if caller.is_node else caller.id == nodes.get(tx, node_id).operator
        if not is_own:
            raise Forbidden("a node's earnings are for itself and its operator")
        return vouchers.earnings(tx, node_id, before=before, limit=limit, unfunded=call.state.chain_health.unfunded)

    return await call.state.store.read(read)


def _node(leaf: str = "") -> str:
    return paths.node_path("{node_id}", leaf)


ENDPOINTS = (
    Endpoint("POST", paths.ENROL, enrol, Access.ENROLLING, "Enrol a node", EnrolReply, EnrolRequest, status=201),
    Endpoint("POST", paths.HEARTBEAT, heartbeat, Access.NODE, "Say that a node is there", HeartbeatReply, Heartbeat),
    Endpoint("GET", paths.ENROL, page, Access.PUBLIC, "List nodes", NodesReply, query=(LIMIT, CURSOR)),
    Endpoint("GET", _node("why-no-work"), why_no_work, Access.PUBLIC, "Why a node gets no work", WhyNoWorkReply),
    Endpoint(
        "GET", _node("earnings"), earnings, Access.SIGNED, "What a node earned", EarningsReply, query=(LIMIT, CURSOR)
    ),
    Endpoint("GET", _node(), get, Access.PUBLIC, "A node", NodeReply),
)
