"""Federated sessions at the market: planned, checked, merged, or ended with a reason."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest

from parity_blobs import Cid, cid_of_bytes
from parity_blobs.gateway import TrustlessGateway
from parity_contracts.chain.memory import MemoryChain
from parity_fl.model import decode_model
from parity_fl.runner import train
from parity_market import federation as module
from parity_market.domain.federation import Session, open_session
from parity_market.federation import Federation, WorkerLost
from parity_market.loops.rounds import Rounds
from parity_market.operations import groups, tasks
from parity_market.operations.groups import Group
from parity_market.operations.steps import load_task
from parity_market.store import sql
from parity_market.store.base import ReadTx
from parity_market.store.rows import EarningRow, TaskRow
from parity_market.testing.builders import TOKEN
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.api.leases import ReportItem
from parity_protocol.errors import BadField, ExecutionFailed, NotFound, Overloaded, Unprocessable
from parity_protocol.task import FederatedLearningSpec, TaskState, parse_spec
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CREATOR = deterministic_evm_key("creator").address
ORDER = "0x" + "5a" * 32
ROWS = 60
DATA = "a,b,target\n" + "".join(f"{i / 10},{(i * 7) % 13},{3 * i / 10 - (i * 7) % 13 + 1}\n" for i in range(ROWS))


def session(cid: str, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": "linear_regression",
        "dataset_cid": cid,
        "data_format": "csv",
        "model_config": {"input_size": 2},
        "train_config": {"epochs": 3, "batch_size": 8, "learning_rate": 0.05},
        "partition_config": {"strategy": "random", "total_parts": 3, "min_samples": 2},
        **changes,
    }


def parsed(spec: dict[str, Any]) -> FederatedLearningSpec:
    found = parse_spec(json.dumps({"type": "federated_learning", **spec}))
    assert isinstance(found, FederatedLearningSpec)
    return found


async def planned(rig: Rig, spec: dict[str, Any], order: str = ORDER, creator: str = CREATOR) -> dict[str, Any]:
    return await rig.state.federation.plan(parsed(spec), creator=creator, order_hash=order)


async def submitted(rig: Rig, **changes: Any) -> Group:
    cid = await rig.upload(DATA.encode())
    reply = await rig.submit_session(session(cid, **changes))
    return await group_of(rig, reply.id)


def dataset_of(group: groups.Group) -> str:
    spec = group.value.spec
    assert isinstance(spec, FederatedLearningSpec)
    return spec.dataset_cid


async def group_of(rig: Rig, group_id: str) -> Group:
    return await rig.store.read(partial(groups.load, group_id=group_id))


def trained(group: Group, part: int) -> bytes:
    found: Session = open_session(group.value.spec, group.row.plan_doc)
    return train(found.spec, found.plan, DATA.encode(), part).update_bytes


async def deliver_all(rig: Rig, group: Group, *, after: int = 0) -> None:
    for task in group.tasks[after:]:
        item = await rig.deliver(f"n{task.part + 1}", task.id, trained(group, task.part))
        assert (item.status, item.task_state) == (200, "verifying")


def earning_of(tx: ReadTx, task_id: str) -> EarningRow | None:
    return tx.one(sql.EARNING_OF_TASK, task_id=task_id)


async def task_of(rig: Rig, task_id: str) -> TaskRow:
    return await rig.store.read(lambda tx: load_task(tx, task_id))


# -- planning ---------------------------------------------------------------------------------------------------------


async def test_the_same_order_gets_the_same_plan_and_another_order_another(rig: Rig) -> None:
    spec = session(await rig.upload(DATA.encode()))

    first, again, other = await planned(rig, spec), await planned(rig, spec), await planned(rig, spec, "0x" + "a5" * 32)

    assert first == again
    assert UUID(first["session_id"]).version == 5
    assert first["session_id"] != first["round_id"]
    assert first["partition"]["seed"] == sha256(f"{first['session_id']} 0".encode()).hexdigest()
    assert other["session_id"] != first["session_id"]
    assert other["partition"]["seed"] != first["partition"]["seed"]


async def test_the_plan_cuts_every_row_once(rig: Rig) -> None:
    plan = (await planned(rig, session(await rig.upload(DATA.encode()))))["partition"]

    assert plan["n_rows"] == ROWS
    assert sum(map(sum, plan["counts"])) + sum(plan["holdout_counts"]) == ROWS


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_type": "random_forest", "model_config": {}, "total_rounds": 2}, "spec.total_rounds"),
        ({"model_type": "random_forest", "model_config": {"mode": "histogram"}, "total_rounds": 2}, "total_rounds"),
        (
            {"model_type": "random_forest", "model_config": {"mode": "leaf_refit"}, "rounds_config": {"quorum": 1}},
            "rounds_config",
        ),
        ({"total_rounds": 2, "rounds_config": {"quorum": 4}}, "rounds_config.quorum"),
        ({"total_rounds": 2, "strategy_config": {"strategy": "krum", "num_malicious": 1}}, "min_available_clients"),
        ({"model_type": "transformer"}, "model_type"),
        ({"train_config": {}}, "train_config.epochs"),
        ({"model_config": {"input_size": 3}}, "model_config.input_size"),
        (
            {"partition_config": {"strategy": "random", "total_parts": 0, "min_samples": 1}},
            "partition_config.total_parts",
        ),
    ],
)
async def test_a_wrong_setting_is_named(rig: Rig, changes: dict[str, Any], field: str) -> None:
    cid = await rig.upload(DATA.encode())

    with pytest.raises(BadField) as refused:
        await planned(rig, session(cid, **changes))

    assert refused.value.field == field


async def test_data_that_cannot_be_used_are_refused_with_the_reason(rig: Rig) -> None:
    cid = await rig.upload(b"a,b,target\n1,2,x\n")

    with pytest.raises(ExecutionFailed) as refused:
        await planned(rig, session(cid))

    assert str(refused.value.reason) == "data_invalid"


async def test_data_that_are_nowhere_are_refused_by_their_cid(rig: Rig) -> None:
    cid = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"

    with pytest.raises(Unprocessable, match=f"data_unavailable.*{cid}"):
        await planned(rig, session(cid))


async def test_somebody_elses_private_data_cannot_be_planned_with(tmp_path: Path, clock: FakeClock) -> None:
    gateways = ["http://127.0.0.1:9"]  # must not be asked, and would not answer
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline, settings={"market_gateways": gateways}) as rig:
        cid = await rig.upload(DATA.encode(), owner="somebody else")

        with pytest.raises(Unprocessable, match="may not be read by this account"):
            await planned(rig, session(cid))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Let the market's gateway serve these blocks by CID."""
    blocks: dict[str, bytes] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        found = blocks.get(request.url.path.removeprefix("/ipfs/"))
        return httpx.Response(404) if found is None else httpx.Response(200, content=body(found))

    async def body(data: bytes) -> AsyncIterator[bytes]:
        yield data

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr("parity_blobs.gateway.TrustlessGateway", partial(TrustlessGateway, transport=transport))
    return blocks


async def test_public_data_are_fetched_from_a_gateway_and_kept_for_their_submitter(
    tmp_path: Path, clock: FakeClock, gateway: dict[str, bytes]
) -> None:
    cid = str(cid_of_bytes(DATA.encode(), version=1, raw=True))
    gateway[cid] = DATA.encode()
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(
        tmp_path, chain, clock, offload=inline, settings={"market_gateways": ["https://gateway.test"]}
    ) as rig:
        plan = await planned(rig, session(cid))
        kept = await rig.state.federation.read(cid, CREATOR, max_bytes=1 << 20)
        with pytest.raises(NotFound):
            await rig.state.federation.read(cid, None, max_bytes=1 << 20)

    assert plan["partition"]["n_rows"] == ROWS
    assert kept == DATA.encode()


async def test_data_of_addresses_that_nobody_has_proved_are_public_and_share_one_quota(
    tmp_path: Path, clock: FakeClock, gateway: dict[str, bytes]
) -> None:
    tables = [DATA.encode(), DATA.encode() + b"9,9,9\n" * 2]
    cids = [str(cid_of_bytes(table, version=1, raw=True)) for table in tables]
    gateway |= dict(zip(cids, tables, strict=True))
    settings = {"market_gateways": ["https://gateway.test"], "market_upload_quota": len(tables[0]) + 1}
    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=inline, settings=settings) as rig:
        for creator in ("legacy:0x" + "1" * 40, "legacy:0x" + "2" * 40):  # the second finds what the first fetched
            await planned(rig, session(cids[0]), creator=creator)
        with pytest.raises(Unprocessable, match="gateways did not deliver"):  # over what is left of the quota
            await planned(rig, session(cids[1]), creator="legacy:0x" + "3" * 40)
        everybodys = await rig.state.federation.read(cids[0], None, max_bytes=1 << 20)

    assert everybodys == tables[0]


async def test_bytes_that_are_not_the_data_are_refused(
    tmp_path: Path, clock: FakeClock, gateway: dict[str, bytes]
) -> None:
    cid = str(cid_of_bytes(DATA.encode(), version=1, raw=True))
    gateway[cid] = DATA.encode() + b"9,9,9\n"
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(
        tmp_path, chain, clock, offload=inline, settings={"market_gateways": ["https://gateway.test"]}
    ) as rig:
        with pytest.raises(Unprocessable, match=cid):
            await planned(rig, session(cid))


async def test_a_plan_too_long_for_manifests_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    cid = await rig.upload(DATA.encode())
    monkeypatch.setattr(module, "MAX_PLAN_CHARS", 100)

    with pytest.raises(BadField, match="fewer parts"):
        await planned(rig, session(cid))


async def test_too_many_plans_at_once_are_turned_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    release = anyio.Event()

    async def slow(message: bytes) -> bytes:
        await release.wait()
        return await inline(message)

    state = rig.state
    busy = Federation(state.store, state.blobs, state.market, state.clock, offload=slow)
    spec = parsed(session(await rig.upload(DATA.encode())))
    monkeypatch.setattr(module, "MAX_WAITING_PLANS", 2)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(partial(busy.plan, spec, creator=CREATOR, order_hash=ORDER))
        await anyio.wait_all_tasks_blocked()

        with pytest.raises(Overloaded):
            await busy.plan(spec, creator=CREATOR, order_hash=ORDER)
        release.set()


# -- checking and merging ---------------------------------------------------------------------------------------------


async def test_a_session_is_checked_merged_and_stored_for_its_creator(rig: Rig) -> None:
    group = await submitted(rig)
    await deliver_all(rig, group)

    await Rounds(rig.state).step()

    ended = await group_of(rig, group.row.id)
    assert ended.row.state == "completed"
    assert {task.state for task in ended.tasks} == {TaskState.COMPLETED}
    metrics = json.loads(ended.row.metrics_doc)
    assert metrics["parts"] == 3
    assert metrics["holdout_samples"] == 12
    model = await rig.state.federation.read(ended.row.result_cid or "", CREATOR, max_bytes=1 << 20)
    assert decode_model(model).n_features == 2
    earnings = [await rig.store.read(partial(earning_of, task_id=task.id)) for task in ended.tasks]
    assert sum(row.amount for row in earnings if row) == 3 * TOKEN


async def test_the_model_is_private_to_the_creator(rig: Rig) -> None:
    group = await submitted(rig)
    await deliver_all(rig, group)
    await Rounds(rig.state).step()
    cid = (await group_of(rig, group.row.id)).row.result_cid or ""

    with pytest.raises(NotFound):
        await rig.state.federation.read(cid, deterministic_evm_key("other").address, max_bytes=1 << 20)


async def test_a_restart_between_check_and_merge_loses_nothing(rig: Rig) -> None:
    group = await submitted(rig)
    await deliver_all(rig, group)
    first = Rounds(rig.state)
    for task in group.tasks:
        await first._verify(await task_of(rig, task.id))
    assert (await group_of(rig, group.row.id)).row.state == "running"

    await Rounds(rig.state).step()

    assert (await group_of(rig, group.row.id)).row.state == "completed"


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(lambda group: b"garbage", id="no document"),
        pytest.param(lambda group: trained(group, 1), id="another part's update"),
        pytest.param(lambda group: trained(group, 0)[:-1], id="cut off"),
    ],
)
async def test_garbage_is_not_paid_and_the_part_goes_to_another_node(
    rig: Rig, garbage: Callable[[Group], bytes]
) -> None:
    group = await submitted(rig)
    task_id = group.tasks[0].id
    rounds = Rounds(rig.state)
    await rig.deliver("n1", task_id, garbage(group))

    await rounds.step()
    refused = await task_of(rig, task_id)
    node = await rig.bench.claim("n1", task_id)
    item = await rig.deliver("n2", task_id, trained(group, 0))
    await rounds.step()
    done = await task_of(rig, task_id)

    assert refused.state is TaskState.PENDING
    assert isinstance(node, Exception)  # never again by the one that sent garbage
    assert item.status == 200
    assert done.state is TaskState.COMPLETED
    earning = await rig.store.read(lambda tx: tx.one(sql.EARNING_OF_TASK, task_id=task_id))
    assert earning is not None
    assert earning.solver == done.last_node


async def test_a_lost_part_fails_the_group_and_cancels_the_rest(rig: Rig) -> None:
    group = await submitted(rig, max_attempts=1)
    await rig.deliver("n1", group.tasks[0].id, b"garbage")
    await rig.deliver("n2", group.tasks[1].id, trained(group, 1))
    lease = await rig.bench.lease("n3", group.tasks[2].id)

    await Rounds(rig.state).step()

    ended = await group_of(rig, group.row.id)
    assert ended.row.state == "failed"
    assert "part 0 is not_verified" in ended.row.message
    assert [str(task.state) for task in ended.tasks] == ["not_verified", "completed", "cancelled"]
    account = await rig.store.read(lambda tx: tx.one(sql.ACCOUNT, chain=rig.state.market.chain, creator=CREATOR))
    assert account is not None
    assert (account.reserved, account.earned) == (0, TOKEN)  # what was done is paid, the rest is free again
    assert lease.fence == 1


async def test_a_cancelled_group_stays_cancelled(rig: Rig) -> None:
    group = await submitted(rig)
    await rig.store.write(lambda tx: tasks.cancel(tx, rig.state.market, group.row.id, CREATOR, rig.bench.now))

    await Rounds(rig.state).step()

    assert (await group_of(rig, group.row.id)).row.state == "cancelled"


async def test_a_result_that_kills_the_worker_twice_counts_as_garbage(tmp_path: Path, clock: FakeClock) -> None:
    is_deadly = False

    async def worker(message: bytes) -> bytes:
        if is_deadly:
            raise WorkerLost("the worker ended with status -9")
        return await inline(message)

    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=worker) as rig:
        await rig.bench.open("n1", "n2")
        group = await submitted(rig)
        await rig.deliver("n1", group.tasks[0].id, trained(group, 0))
        is_deadly = True
        rounds, states = Rounds(rig.state), []
        for _ in range(2):
            await rounds.step()
            states.append((await task_of(rig, group.tasks[0].id)).state)
            await clock.advance(timedelta(seconds=5))

    assert states == [TaskState.VERIFYING, TaskState.PENDING]


async def test_a_worker_without_an_answer_is_not_blamed_on_the_node(tmp_path: Path, clock: FakeClock) -> None:
    is_mute = False

    async def worker(message: bytes) -> bytes:
        return b"" if is_mute else await inline(message)

    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=worker) as rig:
        await rig.bench.open("n1")
        group = await submitted(rig)
        await rig.deliver("n1", group.tasks[0].id, trained(group, 0))
        is_mute = True
        rounds = Rounds(rig.state)
        await rounds.step()
        once = (await task_of(rig, group.tasks[0].id)).state
        is_mute = False
        await clock.advance(timedelta(seconds=5))
        await rounds.step()

        assert (once, (await task_of(rig, group.tasks[0].id)).state) == (TaskState.VERIFYING, TaskState.COMPLETED)


async def test_data_that_vanished_are_the_markets_fault_and_retries_are_bounded(rig: Rig, clock: FakeClock) -> None:
    group = await submitted(rig)
    cid = dataset_of(group)
    await rig.deliver("n1", group.tasks[0].id, trained(group, 0))
    await rig.state.blobs.delete(Cid.parse(cid))
    rounds, steps = Rounds(rig.state), 0
    while (await task_of(rig, group.tasks[0].id)).state is TaskState.VERIFYING:
        await rounds.step()
        await clock.advance(timedelta(seconds=61))
        steps += 1
        assert steps <= 6

    found = await task_of(rig, group.tasks[0].id)
    assert found.state is TaskState.FAILED
    assert "the market could not verify" in found.message


async def test_blobs_of_a_running_session_are_not_evicted_and_let_go_at_its_end(rig: Rig) -> None:
    group = await submitted(rig)
    cid = Cid.parse(dataset_of(group))

    async def is_pinned() -> bool:
        stat = await rig.state.blobs.stat(cid)
        assert stat is not None
        return stat.is_pinned

    rounds = Rounds(rig.state)
    before = await is_pinned()
    await rounds.step()
    during = await is_pinned()
    await deliver_all(rig, group)
    await rounds.step()

    assert (before, during, await is_pinned()) == (False, True, False)


async def test_a_report_that_must_be_checked_wakes_the_loop_and_others_do_not(rig: Rig, clock: FakeClock) -> None:
    federation, woken = rig.state.federation, []

    async def wait() -> None:
        await federation.wait(1000.0)
        woken.append(clock.monotonic())

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        federation.report_taken(ReportItem(id="1", status=200, task_state="completed"))
        federation.report_taken(ReportItem(id="1", status=409, task_state="verifying"))
        await anyio.wait_all_tasks_blocked()
        assert woken == []

        federation.report_taken(ReportItem(id="1", status=200, task_state="verifying"))
        await anyio.wait_all_tasks_blocked()
        assert woken == [0.0]


async def test_waiting_ends_by_itself(rig: Rig, clock: FakeClock) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(rig.state.federation.wait, 3.0)
        await clock.advance(timedelta(seconds=3))
