"""The real child process that does federated mathematics: answers, errors, and what happens when it dies."""

from __future__ import annotations

from typing import Any

import pytest

from parity_fl import resolve_fl_spec
from parity_fl.plan import PartitionPlan
from parity_fl.runner import train
from parity_market import federation
from parity_market.federation import WorkerLost, run_in_process
from parity_market.federation_worker import decode_message, encode_message, error_of
from parity_protocol.errors import BadDocument, ExecutionFailed

DATA = ("a,b,target\n" + "".join(f"{i},{(i * 7) % 13},{3 * i - (i * 7) % 13}\n" for i in range(40))).encode()
SPEC = resolve_fl_spec(
    {
        "session_id": "s",
        "round_id": "r",
        "model_type": "linear_regression",
        "dataset_cid": "QmData",
        "data_format": "csv",
        "model_config": {"input_size": 2},
        "train_config": {"epochs": 2, "batch_size": 8, "learning_rate": 0.05},
        "partition_config": {"strategy": "random", "total_parts": 2, "min_samples": 2},
    }
)


async def ask(job: dict[str, Any], *blobs: bytes) -> tuple[dict[str, Any], list[bytes]]:
    return decode_message(await run_in_process(encode_message({"spec": SPEC.to_dict(), **job}, blobs)))


async def test_a_session_is_planned_checked_and_merged_in_child_processes() -> None:
    planned, _ = await ask({"do": "plan", "seed": "5a" * 32}, DATA)
    plan = PartitionPlan.from_dict(planned["doc"])
    updates = [train(SPEC, plan, DATA, part).update_bytes for part in range(2)]
    checked, _ = await ask({"do": "check", "plan": planned["doc"], "part": 0}, DATA, updates[0])
    wrong, _ = await ask({"do": "check", "plan": planned["doc"], "part": 1}, DATA, updates[0])
    merged, [model] = await ask({"do": "finish", "plan": planned["doc"]}, DATA, *updates)

    assert checked["doc"] == {}
    assert isinstance(error_of(wrong["error"]), BadDocument)
    assert merged["doc"]["parts"] == 2
    assert len(model) > 100


async def test_an_error_keeps_its_reason() -> None:
    answer, _ = await ask({"do": "plan", "seed": "5a" * 32}, b"a,b,target\n1,2,x\n")

    found = error_of(answer["error"])

    assert isinstance(found, ExecutionFailed)
    assert str(found.reason) == "data_invalid"


async def test_a_job_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federation, "WORK_S", 0.01)

    with pytest.raises(WorkerLost, match="stopped after"):
        await ask({"do": "plan", "seed": "5a" * 32}, DATA)


async def test_a_worker_that_dies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")

    with pytest.raises(WorkerLost, match="status 1"):
        await ask({"do": "plan", "seed": "5a" * 32}, DATA)
