"""One part's training, inside the process that ``parity_node.fl_child`` starts.

Reads ``job.json`` and ``dataset`` in its folder, writes ``update.bin`` and then ``outcome.json``, both whole or not at
all. Progress goes to standard output, a JSON object a line.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
import traceback
from pathlib import Path

from parity_contracts.files import write_file
from parity_fl.plan import PartitionPlan
from parity_fl.spec import resolve_fl_spec
from parity_node.executors.base import Limits
from parity_node.executors.folder import JobFolder
from parity_node.executors.sandbox.limits import apply_own_limits
from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason, InvalidInput, ParityError, StorageFull

__all__ = ["train_in", "try_models"]

LIBRARY_BYTES = 512 << 20  # what Python, NumPy and scikit-learn take before the first row is read
_ADDRESS_SPACE_SLACK = 8 << 30
_CPU_SLACK_S = 10
_MAX_OPEN_FILES = 256
_MAX_FILE_BYTES = 1 << 30

# Two classes, linearly separable; also a line with slope 2. Enough to see every compiled part work.
_TRIAL_ROWS = 40


def train_in(path: str) -> int:
    """Train what the folder says, write down how it went, and return the exit status."""
    folder = JobFolder(Path(path))
    outcome = _outcome(folder)
    if outcome is not None:
        write_file(folder.path / "outcome.json", json.dumps(outcome).encode())
    _say(event="ended", ok=outcome is None or outcome["ok"])
    return 0


def try_models() -> int:
    """Train a tiny model of each type, say which, and return the exit status."""
    _say(event="trial", model_types=_try())
    return 0


def _outcome(folder: JobFolder) -> dict[str, object] | None:
    """Train, and say how it went in words that the node can report; None when the node hung up.

    Rounds end where the node says so. If it was killed instead, the one after it must find nothing that looks finished.
    """
    try:
        metrics = _train(folder)
        return None if metrics is None else {"ok": True, "metrics": metrics}
    except ExecutionFailed as exc:
        return _failure(exc.reason, _STAGE.get(exc.reason, "") + exc.message)
    except InvalidInput as exc:
        return _failure(FailureReason.SPEC_INVALID, exc.message)
    except StorageFull as exc:
        return _failure(FailureReason.DISK_FULL, exc.message)
    except ParityError as exc:
        return _failure(FailureReason.NODE_FAULT, exc.message)
    except MemoryError:
        return _failure(FailureReason.OUT_OF_MEMORY, "training needs more memory than the task asks for")
    except OSError as exc:
        return _failure(failure_of(exc), f"{type(exc).__name__}: {exc.strerror}")
    except Exception as exc:  # noqa: BLE001 - the edge of a process
        traceback.print_exc()
        return _failure(FailureReason.NODE_FAULT, f"training broke down: {type(exc).__name__}")


def _train(folder: JobFolder) -> dict[str, object] | None:
    job, limits = folder.read_job()
    apply_own_limits(_rlimits(limits))
    data = (folder.path / "dataset").read_bytes()
    part = job["part"]
    if not isinstance(part, int):
        raise ExecutionFailed(FailureReason.NODE_RESTARTED, "the execution's folder was lost: no part")
    spec = resolve_fl_spec(job["spec"])
    _say(event="loading", bytes=len(data), part=part, model_type=spec.model_type)

    if job.get("rounds") is True:
        from parity_node.executors.round_training import train_rounds, trainer_of

        trainer = trainer_of(
            spec,
            job["plan"],
            data,
            part,
            salt=bytes.fromhex(str(job.get("salt", ""))),
            opened=_names(job.get("opened")),
        )
        _say(event="ready")
        train_rounds(trainer, folder.path, say=_say)
        return None
    plan = PartitionPlan.from_dict(job["plan"])

    from parity_fl.runner import train  # NumPy comes with it, after the limits

    _say(event="training", rows=plan.part_size(part) if 0 <= part < plan.total_parts else 0)
    began = time.monotonic()
    trained = train(spec, plan, data, part)
    _say(event="trained", seconds=round(time.monotonic() - began, 3), bytes=len(trained.update_bytes))
    write_file(folder.path / "update.bin", trained.update_bytes)
    return {name: value for name, value in trained.metrics.items() if isinstance(value, int | float)}


def _names(raw: object) -> list[str]:
    return [str(name) for name in raw] if isinstance(raw, list) else []


# How the Parity network's runner begins these messages, so that what people search for is found.
_STAGE = {
    FailureReason.DATA_INVALID: "failed to load training data: ",
    FailureReason.NUMERICAL_INSTABILITY: "training failed: ",
}


def _failure(reason: FailureReason, message: str) -> dict[str, object]:
    _say(event="failed", reason=reason.value, message=message)
    return {"ok": False, "reason": reason.value, "message": message}


def _try() -> list[str]:
    """Train a tiny model of each type; whatever is wrong here breaks now and not in a paid task."""
    from parity_fl.runner import plan_session, train
    from parity_fl.session import resolve_session

    rows = [f"{at},{at % 7},{int(at >= _TRIAL_ROWS // 2)}" for at in range(_TRIAL_ROWS)]
    data = ("a,b,target\n" + "\n".join(rows) + "\n").encode()
    session: dict[str, object] = {
        "dataset_cid": "trial",
        "data_format": "csv",
        "train_config": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1},
        "partition_config": {"strategy": "random", "total_parts": 1, "min_samples": 1},
    }
    models: dict[str, dict[str, object]] = {"linear_regression": {"input_size": 2}, "random_forest": {"num_trees": 2}}
    for model_type, settings in models.items():
        members = {**session, "model_type": model_type, "model_config": settings}
        spec = resolve_session(members, session_id="trial", round_id="1")
        train(spec, plan_session(spec, data, "0" * 64), data, 0)
    return sorted([*models, _try_rounds({**session, "model_type": "neural_network"}, data)])


def _try_rounds(session: dict[str, object], data: bytes) -> str:
    """Train one round of a tiny network, and return its model type."""
    from parity_fl.rounds import RoundServer, RoundTrainer
    from parity_fl.runner import plan_session
    from parity_fl.session import resolve_session
    from parity_fl.strategy import StrategyConfig

    spec = resolve_session({**session, "model_config": {"hidden_size": 2}}, session_id="trial", round_id="1")
    plan = plan_session(spec, data, "0" * 64)
    first = RoundServer(spec, plan, data, StrategyConfig()).first()
    RoundTrainer(spec, plan, data, 0).train(first, number=1)
    return spec.model_type


def _rlimits(limits: Limits) -> dict[int, int]:
    found = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: math.ceil(limits.wall_time_s) + _CPU_SLACK_S,
        resource.RLIMIT_FSIZE: _MAX_FILE_BYTES,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
    }
    if sys.platform == "linux":  # macOS accepts these and then refuses to map libraries
        found[resource.RLIMIT_DATA] = limits.memory_bytes + LIBRARY_BYTES
        found[resource.RLIMIT_AS] = limits.memory_bytes + _ADDRESS_SPACE_SLACK
    return found


def _say(**members: object) -> None:
    sys.stdout.write(json.dumps(members) + "\n")
    sys.stdout.flush()
