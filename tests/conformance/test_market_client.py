"""One suite for every market as a node sees it: the simulator itself, and the HTTP adapter in front of it."""

from __future__ import annotations

import asyncio
import gzip
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from parity_blobs.car_files import pack_car, weight_of
from parity_blobs.importer import cid_of_bytes
from parity_node.executors.base import ExecutionResult
from parity_node.market import http as market_http
from parity_node.market.base import MarketClient, MarketDirectory
from parity_node.market.http import MAX_REPLY_BYTES, HttpMarket
from parity_node.results import StoredResult, build_report
from parity_node.store.base import Execution
from parity_node.testing.market import MarketSimulator, SimulatedTask
from parity_node.testing.simulator_app import simulator_app
from parity_protocol.api import leases as wire
from parity_protocol.api.nodes import EnrolRequest, Heartbeat, enrolment_statement
from parity_protocol.capability import Capability
from parity_protocol.errors import (
    ClockSkew,
    NodeInUse,
    NotFound,
    Overloaded,
    ParityError,
    StakeTooLow,
    Unavailable,
    Unreachable,
    Untrusted,
)
from parity_protocol.manifest import VerifiedManifest, verify_manifest
from parity_protocol.report import Outcome
from parity_protocol.signing.eip191 import sign_personal
from parity_protocol.signing.jws import b64url_encode
from parity_protocol.signing.keys import node_id_of
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

INSTANCE = "1" * 64
DEVICE = deterministic_ed25519("node")
OPERATOR = deterministic_evm_key("node")
NODE = node_id_of(DEVICE.public_key)
URL = "http://127.0.0.1:9"


@dataclass
class Pair:
    """A client, and the simulator behind it."""

    client: MarketClient
    directory: MarketDirectory
    market: MarketSimulator
    clock: FakeClock

    def enrolment(self, **changes: object) -> EnrolRequest:
        statement = enrolment_statement(
            node_id=NODE,
            device_key=b64url_encode(DEVICE.public_key.raw),
            operator=OPERATOR.address,
            market=self.market.thumbprint,
            chain_id=self.market.chain.chain_id,
            vault=self.market.chain.vault,
            issued_at=int(self.clock.now().timestamp()),
        )
        request = EnrolRequest(
            node_id=NODE,
            device_key=b64url_encode(DEVICE.public_key.raw),
            operator=OPERATOR.address,
            issued_at=int(self.clock.now().timestamp()),
            operator_signature="0x" + sign_personal(statement, OPERATOR).hex(),
            instance=INSTANCE,
            hostname="here",
            capability=Capability(
                node_version="0.1.0", slots=1, cpus=1, memory_bytes=1, disk_free_bytes=1, measured_at=0
            ),
        )
        return request.model_copy(update=changes)

    async def join(self) -> None:
        await self.directory.trust()
        await self.directory.enrol(self.enrolment())

    async def offered(self) -> VerifiedManifest:
        reply = await self.client.poll(wire.PollRequest(instance=INSTANCE, slots=1, wait_s=0))
        trusted = await self.directory.trust()
        return verify_manifest(
            reply.manifests[0],
            trusted.manifest_keys,
            issuer=trusted.thumbprint,
            node_id=NODE,
            chain=trusted.document.chain,
            node_version="0.1.0",
            now=self.clock.now(),
        )

    async def claimed(self, verified: VerifiedManifest, claim_id: str) -> wire.ClaimReply:
        item = wire.ClaimItem(manifest=verified.token, claim_id=claim_id)
        return (await self.client.claim(wire.ClaimsRequest(instance=INSTANCE, claims=(item,)))).claims[0]

    def success(self, verified: VerifiedManifest, lease: wire.ClaimReply, data: bytes = b"ok") -> wire.FinalReport:
        row = Execution(
            id=str(uuid4()),
            task_id=verified.task_id,
            jti=verified.manifest.jti,
            jti_expires_at=0,
            claim_id=lease.claim_id,
            kind="command",
            manifest=verified.token,
            manifest_hash=verified.hash,
            order_hash=verified.order_hash,
            reward=1,
            lease_id=lease.lease_id,
            fence=lease.fence,
        )
        _, report = build_report(
            row,
            ExecutionResult(Outcome.SUCCEEDED, result_bytes=data),
            StoredResult(str(cid_of_bytes(data)), len(data), data, None),
            chain=self.market.chain,
            node_id=NODE,
            operator=OPERATOR,
            finished_at=self.clock.now().timestamp(),
        )
        return report


@pytest.fixture(params=["simulator", "http"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    clock = FakeClock()
    market = MarketSimulator(clock)
    if request.param == "simulator":
        yield Pair(market, market, market, clock)
        return
    adapter = http_market(clock, httpx.ASGITransport(simulator_app(market)), market.thumbprint)
    yield Pair(adapter, adapter, market, clock)
    await adapter.aclose()


def http_market(clock: FakeClock, transport: httpx.AsyncBaseTransport, identity: str | None) -> HttpMarket:
    return HttpMarket(URL, key=DEVICE, clock=clock, identity=identity, transport=transport)


async def leased(pair: Pair) -> tuple[SimulatedTask, VerifiedManifest, wire.ClaimReply]:
    await pair.join()
    task = pair.market.offer()
    verified = await pair.offered()
    return task, verified, await pair.claimed(verified, str(uuid4()))


async def test_poll_returns_a_manifest_that_verifies(pair: Pair) -> None:
    await pair.join()
    task = pair.market.offer()

    verified = await pair.offered()

    assert verified.task_id == task.id


async def test_poll_that_finds_nothing_is_empty(pair: Pair) -> None:
    await pair.join()

    assert (await pair.client.poll(wire.PollRequest(instance=INSTANCE, slots=4, wait_s=0))).manifests == ()


async def test_repeated_claim_gets_the_same_lease_and_another_one_gets_409(pair: Pair) -> None:
    _, verified, first = await leased(pair)

    again = await pair.claimed(verified, first.claim_id)
    other = await pair.claimed(verified, str(uuid4()))

    assert (again.status, again.lease_id, again.fence) == (200, first.lease_id, first.fence)
    assert other.status == 409
    assert other.problem is not None
    assert other.problem.code == "lease_conflict"


async def test_lease_can_be_renewed_until_it_is_cancelled(pair: Pair) -> None:
    task, _, lease = await leased(pair)
    item = wire.RenewItem(task_id=task.id, lease_id=lease.lease_id, fence=lease.fence)

    kept = await pair.client.renew(wire.RenewRequest(renewals=(item,)))
    pair.market.cancel(task)
    ended = await pair.client.renew(wire.RenewRequest(renewals=(item,)))

    assert (kept.renewals[0].status, kept.renewals[0].ttl_s) == (200, 30.0)
    assert ended.renewals[0].status == 409
    assert ended.renewals[0].problem is not None
    assert ended.renewals[0].problem.code == "cancelled"


async def test_start_and_logs_and_release_move_the_task(pair: Pair) -> None:
    task, _, lease = await leased(pair)
    named = {"task_id": task.id, "lease_id": lease.lease_id, "fence": lease.fence}

    await pair.client.start(wire.StartRequest(starts=(wire.StartItem(**named, started_at=1.0),)))
    was = task.state
    for _ in range(2):
        await pair.client.logs(wire.LogsRequest(chunks=(wire.LogChunk(**named, offset=0, text="hello"),)))
    await pair.client.release(wire.ReleaseRequest(releases=(wire.ReleaseItem(**named, reason="drained"),)))

    assert (was, task.log, task.state) == (TaskState.RUNNING, "hello", TaskState.PENDING)


async def test_report_that_comes_three_times_counts_once(pair: Pair) -> None:
    task, verified, lease = await leased(pair)
    report = pair.success(verified, lease)

    replies = [await pair.client.report(wire.ReportsRequest(reports=(report,))) for _ in range(3)]

    assert [reply.reports[0].status for reply in replies] == [200, 200, 200]
    assert (task.state, task.earnings, len(task.reports)) == (TaskState.COMPLETED, 1, 1)


async def test_replay_with_other_metrics_is_refused(pair: Pair) -> None:
    task, verified, lease = await leased(pair)
    report = pair.success(verified, lease)
    await pair.client.report(wire.ReportsRequest(reports=(report,)))
    changed = report.model_copy(update={"report": report.report.model_copy(update={"metrics": {"accuracy": 1.0}})})

    reply = await pair.client.report(wire.ReportsRequest(reports=(changed,)))

    assert reply.reports[0].status >= 400
    assert task.earnings == 1


async def test_result_that_is_not_what_the_receipt_says_is_refused_and_unpaid(pair: Pair) -> None:
    task, verified, lease = await leased(pair)
    report = pair.success(verified, lease).model_copy(update={"result": b64encode(b"other").decode()})

    reply = await pair.client.report(wire.ReportsRequest(reports=(report,)))

    assert reply.reports[0].status >= 400
    assert task.earnings == 0


async def test_uploaded_file_is_stored_under_its_cid(pair: Pair, tmp_path: Path) -> None:
    await pair.join()
    file = tmp_path / "result"
    file.write_bytes(b"r" * 300_000)

    reply = await pair.directory.upload(file)

    assert (reply.cid, reply.size) == (str(cid_of_bytes(b"r" * 300_000)), 300_000)


async def test_uploaded_folder_is_stored_under_its_roots_cid(pair: Pair, tmp_path: Path) -> None:
    await pair.join()
    (tmp_path / "result" / "files").mkdir(parents=True)
    (tmp_path / "result" / "files" / "large").write_bytes(b"r" * 300_000)
    packed = pack_car(tmp_path / "result", tmp_path / "result.car")

    reply = await pair.directory.upload(tmp_path / "result.car")

    assert (reply.cid, reply.size) == (str(packed.root), weight_of(packed))


async def test_last_heartbeat_frees_the_instance_and_a_copy_is_refused_before_it(pair: Pair) -> None:
    await pair.join()
    copy = pair.enrolment(instance="2" * 64)
    with pytest.raises(NodeInUse, match="here"):
        await pair.directory.enrol(copy)

    await pair.client.heartbeat(Heartbeat(instance=INSTANCE, free_slots=0, going_offline=True))

    assert (await pair.directory.enrol(copy)).eligible


async def test_market_that_is_away_is_unreachable(pair: Pair) -> None:
    await pair.join()
    pair.market.go_offline()

    with pytest.raises(Unavailable):
        await pair.client.heartbeat(Heartbeat(instance=INSTANCE, free_slots=0))


@pytest.mark.parametrize("error", [StakeTooLow("10 short"), Overloaded("later"), NotFound("who?"), ClockSkew("late")])
async def test_error_of_the_market_arrives_as_that_error(pair: Pair, error: ParityError) -> None:
    await pair.join()
    pair.market.fail_next("poll", error)

    with pytest.raises(type(error), match=error.message[:-1]) as caught:
        await pair.client.poll(wire.PollRequest(instance=INSTANCE, slots=1, wait_s=0))

    assert caught.value.hint() == error.hint()


# -- HTTP's own --------------------------------------------------------------------------------------------------


def answering(status: int, body: bytes = b"", **headers: str) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _request: httpx.Response(status, content=body, headers=headers))


async def beat(transport: httpx.AsyncBaseTransport) -> object:
    adapter = http_market(FakeClock(), transport, None)
    try:
        return await adapter.heartbeat(Heartbeat(instance=INSTANCE, free_slots=0))
    finally:
        await adapter.aclose()


async def test_retry_after_reaches_the_caller_and_is_capped() -> None:
    with pytest.raises(Overloaded) as caught:
        await beat(answering(429, **{"Retry-After": "999999"}))

    assert caught.value.retry_after_s == 300.0


async def test_redirect_is_not_followed() -> None:
    with pytest.raises(Unreachable, match="307"):
        await beat(answering(307, Location="http://169.254.169.254/"))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"time": 5}', b'{"time": NaN}'])
async def test_answer_that_is_not_the_documented_one_is_no_markets(body: bytes) -> None:
    with pytest.raises(Unreachable, match="not a HeartbeatReply"):
        await beat(answering(200, body))


async def test_answer_without_end_is_cut_off() -> None:
    with pytest.raises(Unreachable, match="over"):
        await beat(answering(200, b"x" * (MAX_REPLY_BYTES + 1)))


class _Stream(httpx.AsyncByteStream):
    """A body whose pieces come when they come."""

    def __init__(self, piece: bytes, *, every_s: float = 0.0, pieces: int = 1) -> None:
        self._piece, self._every_s, self._pieces = piece, every_s, pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._pieces):
            await asyncio.sleep(self._every_s)
            yield self._piece


async def test_compressed_answer_is_not_unpacked() -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * (1 << 20)))
    headers = {"Content-Encoding": "gzip, gzip"}
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["accept-encoding"])
        return httpx.Response(200, headers=headers, stream=_Stream(bomb))

    with pytest.raises(Unreachable, match="compressed"):
        await beat(httpx.MockTransport(answer))
    assert asked == ["identity"]


async def test_answer_that_trickles_for_ever_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market_http, "CONNECT_TIMEOUT_S", 0.0)
    adapter = http_market(
        FakeClock(),
        httpx.MockTransport(lambda _: httpx.Response(200, stream=_Stream(b" ", every_s=0.01, pieces=10_000))),
        None,
    )

    with pytest.raises(Unreachable, match=r"within 0\.05 s"):
        await adapter._send("GET", "/", b"", {}, timeout_s=0.05)
    await adapter.aclose()


async def test_server_error_without_a_problem_document_is_retryable() -> None:
    with pytest.raises(Unavailable) as caught:
        await beat(answering(502, b"<html>bad gateway</html>"))

    assert caught.value.retryable


async def test_broken_connection_is_unreachable_and_keeps_its_cause() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("connection reset", request=request)

    with pytest.raises(Unreachable) as caught:
        await beat(httpx.MockTransport(fail))

    assert isinstance(caught.value.__cause__, httpx.ReadError)


async def test_answer_with_fewer_items_than_were_sent_is_refused() -> None:
    adapter = http_market(FakeClock(), answering(200, b'{"renewals": []}'), None)
    item = wire.RenewItem(task_id=str(uuid4()), lease_id=str(uuid4()), fence=1)

    with pytest.raises(Unreachable, match="0 of 1"):
        await adapter.renew(wire.RenewRequest(renewals=(item,)))
    await adapter.aclose()


async def test_other_identity_than_the_pinned_one_is_not_trusted() -> None:
    market = MarketSimulator(FakeClock())
    adapter = http_market(FakeClock(), httpx.ASGITransport(simulator_app(market)), "A" * 43)

    with pytest.raises(Untrusted):
        await adapter.trust()
    await adapter.aclose()


async def test_clock_that_is_ten_minutes_off_is_told_both_times() -> None:
    clock = FakeClock()
    market = MarketSimulator(FakeClock())
    adapter = http_market(clock, httpx.ASGITransport(simulator_app(market)), market.thumbprint)
    await adapter.trust()
    await clock.advance(timedelta(minutes=10))

    with pytest.raises(ClockSkew, match=r"signed at 2026-01-01T00:10:00Z, the market's time is 2026-01-01T00:00:00Z"):
        await adapter.enrol(Pair(adapter, adapter, market, clock).enrolment())
    await adapter.aclose()
