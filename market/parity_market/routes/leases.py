"""Work for nodes: poll, claim, renew, start, release, logs, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from starlette.responses import Response

from parity_market.auth import Access
from parity_market.domain.verification import CheckedReport, check_final, is_file_of
from parity_market.metrics import REPORTS
from parity_market.operations import leases, nodes, reports
from parity_market.operations.context import new_id
from parity_market.operations.leases import ClaimRequest, Offer
from parity_market.routing import SMALL_BODY, Call, Endpoint, problem_response
from parity_market.state import MarketState
from parity_market.store.base import Tx
from parity_market.waiting import while_connected
from parity_protocol.api import paths
from parity_protocol.api.leases import (
    AHEAD_A_CLAIM,
    ClaimItem,
    ClaimReply,
    ClaimsReply,
    ClaimsRequest,
    LogsRequest,
    PollReply,
    PollRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    RenewsReply,
    ReportItem,
    ReportReply,
    ReportsRequest,
    SingleClaimRequest,
    StartRequest,
    WriteItem,
    WriteReply,
)
from parity_protocol.api.problem import problem_of
from parity_protocol.errors import BadField, ClaimRefused, LeaseConflict, ParityError, Untrusted
from parity_protocol.lease import LEASE_TYPE, Lease
from parity_protocol.manifest import MANIFEST_TYPE
from parity_protocol.signing import jws
from parity_protocol.wire import JsonObject

__all__ = ["ENDPOINTS", "make_manifest"]

log = structlog.get_logger(__name__)

MANIFEST_LIFE = timedelta(minutes=10)  # a node that does not start by then polls again
LEASE_PROOF_LIFE = timedelta(hours=24)
CLAIMS_BODY = 16 << 20  # bytes: 256 manifests with their plans
MAX_OFFERED = 8 << 20  # characters of one answer to a poll: nodes read no more than 16 MiB, and send all of it back
REPORTS_BODY = 16 << 20  # bytes: 256 reports with small results
LOGS_BODY = 8 << 20


def make_manifest(state: MarketState, offer: Offer, node_id: str, now: datetime) -> str:
    """Return the signed permission for ``node_id`` to run an offered task."""
    task, submission = offer.task, offer.submission
    spec = json.loads(submission.spec)
    jti = new_id()
    payload: JsonObject = {
        **jws.claims(state.identity.thumbprint, task.id, node_id, jti=jti, now=now, ttl=MANIFEST_LIFE),
        "spec": submission.spec,
        "order": json.loads(submission.order_doc),
        "reward": str(task.reward),
        "total_reward": str(submission.reward),
        "group_id": task.group_id,
        "part": task.part,
        "parts": task.parts,
        "attempt": task.attempts + 1,
        "ttl_s": state.market.lease_ttl.total_seconds(),
        "plan": None if offer.plan_doc is None else json.loads(offer.plan_doc),
        **({} if offer.shard is None else {"shard": offer.shard}),
        "min_node_version": spec.get("requires", {}).get("min_node_version") or "0.0.0",
        "chain": state.identity.document.chain.model_dump(include={"chain_id", "genesis", "vault"}),
    }
    token = jws.sign(payload, state.keys.manifest, MANIFEST_TYPE)
    state.issued.remember(
        token,
        task_id=task.id,
        node_id=node_id,
        jti=jti,
        attempt=task.attempts + 1,
        expires_at=now + MANIFEST_LIFE,
    )
    return token


async def poll(call: Call) -> PollReply:
    """Wait for work; the manifests are softly reserved for two seconds."""
    body: PollRequest = call.body
    state, node_id = call.state, call.caller.id
    await state.store.read(lambda tx: nodes.check_instance(tx, node_id, body.instance))
    state.scheduler.refused(node_id, body.policy or "", body.refused)
    offered = await while_connected(call.request, state.scheduler.poll(node_id, body.slots, body.wait_s))
    return PollReply(manifests=_manifests(state, offered, node_id))


def _manifests(state: MarketState, offered: Sequence[Offer], node_id: str) -> tuple[str, ...]:
    """Return a manifest of each offer, as far as they fit into one answer."""
    now = state.clock.now()
    manifests: list[str] = []
    size = 0
    for offer in offered:
        manifest = make_manifest(state, offer, node_id, now)
        size += len(manifest)
        if manifests and size > MAX_OFFERED:
            break  # the others' reservations lapse
        manifests.append(manifest)
    return tuple(manifests)


def _read_manifest(state: MarketState, item: ClaimItem, node_id: str, now: datetime) -> ClaimRequest:
    """Check that the market itself signed the manifest for this node; so no replica has to remember the offer."""
    known = state.issued.find(item.manifest, node_id, now)
    if known is not None:
        return ClaimRequest(known.task_id, item.claim_id, known.jti, known.sha256, known.attempt)
    keys = {state.keys.manifest.public_key.thumbprint(): state.keys.manifest.public_key}
    try:
        verified = jws.verify(
            item.manifest, keys, MANIFEST_TYPE, issuer=state.identity.thumbprint, audience=node_id, now=now
        )
    except Untrusted as exc:
        raise ClaimRefused(f"the manifest is not one of ours for this node, or is over: {exc.message}") from exc
    return ClaimRequest(
        task_id=str(verified.payload["sub"]),
        claim_id=item.claim_id,
        jti=str(verified.payload["jti"]),
        manifest_hash=verified.token_sha256,
        attempt=int(str(verified.payload["attempt"])),
    )


def _lease_reply(state: MarketState, lease: Lease, now: datetime) -> ClaimReply:
    ttl_s = lease.ttl.total_seconds()
    claims = jws.claims(
        state.identity.thumbprint, lease.task_id, lease.node_id, jti=lease.lease_id, now=now, ttl=LEASE_PROOF_LIFE
    )
    document = {
        **claims,
        "fence": lease.fence,
        "claim_id": lease.claim_id,
        "manifest_hash": lease.manifest_hash,
        "ttl_s": ttl_s,
    }
    return ClaimReply(
        status=200,
        claim_id=lease.claim_id,
        lease=jws.sign(document, state.keys.manifest, LEASE_TYPE),
        lease_id=lease.lease_id,
        fence=lease.fence,
        ttl_s=ttl_s,
    )


async def _claim(call: Call, instance: str, items: tuple[ClaimItem, ...]) -> list[ClaimReply | ParityError]:
    state, node_id, now = call.state, call.caller.id, call.state.clock.now()
    wanted: list[ClaimRequest | ParityError] = []
    for item in items:
        try:
            wanted.append(_read_manifest(state, item, node_id, now))
        except ParityError as exc:
            wanted.append(exc)
    good = [item for item in wanted if isinstance(item, ClaimRequest)]
    granted = (
        iter(await state.store.write(lambda tx: leases.claim(tx, state.market, node_id, instance, good, now)))
        if good
        else iter(())
    )
    answers: list[ClaimReply | ParityError] = []
    for asked in wanted:
        outcome = asked if isinstance(asked, ParityError) else next(granted)
        if isinstance(outcome, ParityError) and not isinstance(outcome, LeaseConflict):
            log.warning("claim_refused", node_id=node_id, code=outcome.code, reason=outcome.message)
        answers.append(outcome if isinstance(outcome, ParityError) else _lease_reply(state, outcome, now))
    return answers


async def claims(call: Call) -> ClaimsReply:
    """Claim several tasks; each answer carries the status that it would have had alone."""
    body: ClaimsRequest = call.body
    state, node_id = call.state, call.caller.id
    answers = await _claim(call, body.instance, body.claims)
    ahead = await state.scheduler.ahead(node_id, min(body.ahead, AHEAD_A_CLAIM * len(body.claims)))
    return ClaimsReply(
        claims=tuple(
            answer
            if isinstance(answer, ClaimReply)
            else ClaimReply(status=answer.status, claim_id=item.claim_id, problem=problem_of(answer))
            for item, answer in zip(body.claims, answers, strict=True)
        ),
        manifests=_manifests(state, ahead, node_id),
    )


async def claim_one(call: Call) -> ClaimReply | Response:
    """Claim one task: 200 and the lease (the same for the same claim_id), 409, or 422 with a reason."""
    body: SingleClaimRequest = call.body
    now = call.state.clock.now()
    request = _read_manifest(call.state, body, call.caller.id, now)
    if request.task_id != call.path("task_id"):
        raise ClaimRefused("the manifest is for another task than the path names", field="manifest")
    (answer,) = await _claim(call, body.instance, (body,))
    return answer if isinstance(answer, ClaimReply) else problem_response(answer, call.state)


async def renew(call: Call) -> RenewsReply:
    """Extend leases; 409 tells the node to stop that work."""
    body: RenewRequest = call.body
    state, now = call.state, call.state.clock.now()
    outcomes = await state.store.write(lambda tx: leases.renew(tx, state.market, call.caller.id, body.renewals, now))
    return RenewsReply(
        renewals=tuple(
            RenewReply(status=outcome.status, lease_id=item.lease_id, problem=problem_of(outcome))
            if isinstance(outcome, ParityError)
            else RenewReply(status=200, lease_id=item.lease_id, ttl_s=outcome.ttl.total_seconds())
            for item, outcome in zip(body.renewals, outcomes, strict=True)
        )
    )


def _written(outcomes: list[ParityError | None]) -> WriteReply:
    return WriteReply(
        items=tuple(
            WriteItem(status=200) if outcome is None else WriteItem(status=outcome.status, problem=problem_of(outcome))
            for outcome in outcomes
        )
    )


async def start(call: Call) -> WriteReply:
    """Note that executions have started."""
    body: StartRequest = call.body
    state, now = call.state, call.state.clock.now()
    return _written(
        await state.store.write(lambda tx: leases.start(tx, state.market, call.caller.id, body.starts, now))
    )


async def release(call: Call) -> WriteReply:
    """Take leases back before their work is done; the tasks go to other nodes."""
    body: ReleaseRequest = call.body
    state, now = call.state, call.state.clock.now()
    return _written(
        await state.store.write(lambda tx: leases.release(tx, state.market, call.caller.id, body.releases, now))
    )


async def logs(call: Call) -> WriteReply:
    """Append what executions printed."""
    body: LogsRequest = call.body
    state, now = call.state, call.state.clock.now()
    return _written(
        await state.store.write(lambda tx: leases.append_logs(tx, state.market, call.caller.id, body.chunks, now))
    )


@dataclass(frozen=True, slots=True)
class _Refused:
    id: str
    error: ParityError


async def report(call: Call) -> ReportReply:
    """Take reports, each once. What is not acceptable changes nothing."""
    body: ReportsRequest = call.body
    state, now = call.state, call.state.clock.now()
    checked: list[CheckedReport | _Refused] = []
    for item in body.reports:
        try:
            checked.append(check_final(item, node_id=call.caller.id, domain=state.domain, has_cid=is_file_of))
        except ParityError as exc:
            checked.append(_Refused(item.report.id, exc))
    good = [one for one in checked if isinstance(one, CheckedReport)]

    def take(tx: Tx) -> list[ReportItem]:
        return [reports.take(tx, state.market, one, now) for one in good]

    taken = iter(await state.store.write(take)) if good else iter(())  # all of a message share one commit
    items = []
    for one in checked:
        if isinstance(one, _Refused):
            status = BadField.status if isinstance(one.error, Untrusted) else one.error.status
            items.append(ReportItem(id=one.id, status=status, problem=problem_of(one.error)))
        else:
            items.append(next(taken))
            state.federation.report_taken(items[-1])
    for answered in items:
        REPORTS.labels(str(answered.status)).inc()
        if answered.problem is not None:
            log.warning(
                "report_refused",
                report=answered.id,
                node_id=call.caller.id,
                code=answered.problem.code,
                reason=answered.problem.detail,
            )
    return ReportReply(reports=tuple(items))


ENDPOINTS = (
    Endpoint("POST", paths.LEASE_POLL, poll, Access.NODE, "Wait for work", PollReply, PollRequest),
    Endpoint(
        "POST", paths.LEASE_CLAIMS, claims, Access.NODE, "Claim tasks", ClaimsReply, ClaimsRequest, max_body=CLAIMS_BODY
    ),
    Endpoint(
        "POST",
        paths.task_path("{task_id}", "claim"),
        claim_one,
        Access.NODE,
        "Claim one task",
        ClaimReply,
        SingleClaimRequest,
        max_body=2 * SMALL_BODY,
    ),
    Endpoint("POST", paths.LEASE_RENEW, renew, Access.NODE, "Renew leases", RenewsReply, RenewRequest),
    Endpoint("POST", paths.LEASE_START, start, Access.NODE, "Say that tasks run", WriteReply, StartRequest),
    Endpoint(
        "POST",
        paths.LEASE_RELEASE,
        release,
        Access.NODE,
        "Hand leases back",
        WriteReply,
        ReleaseRequest,
        max_body=2 * SMALL_BODY,
    ),
    Endpoint("POST", paths.LEASE_LOGS, logs, Access.NODE, "Append logs", WriteReply, LogsRequest, max_body=LOGS_BODY),
    Endpoint(
        "POST",
        paths.REPORTS,
        report,
        Access.NODE,
        "Report executions",
        ReportReply,
        ReportsRequest,
        max_body=REPORTS_BODY,
    ),
)
