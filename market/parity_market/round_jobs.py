"""What the training rounds' worker computes: models and updates are files, a job names them.

Runs in the process of ``round_child``; files are written whole or not at all, before the answer is.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from parity_contracts.files import write_file
from parity_market.round_files import (
    SMALL_BYTES,
    model_file,
    noise_file,
    resume_file,
    sent_file,
    state_file,
    sync_folder,
    update_file,
    write_synced,
)
from parity_market.round_old_jobs import OLD_JOBS, execute_old
from parity_protocol.errors import BadDocument, ExecutionFailed, NotFound, ParityError, StorageFull, TooLarge

if TYPE_CHECKING:
    from parity_fl.averaging import Bodies
    from parity_fl.contribution import Credit
    from parity_fl.forest_rounds import ForestRounds
    from parity_fl.privacy.config import PrivacyConfig
    from parity_fl.privacy.dp import NoiseSetup
    from parity_fl.rounds import Reduced, RoundServer
    from parity_fl.sharded import ShardedServer

    Server: TypeAlias = RoundServer | ForestRounds | ShardedServer

__all__ = ["execute"]

MAX_OPEN = 4  # sessions whose data one worker keeps in memory
MAX_FILE_BYTES = 1 << 30

_open: OrderedDict[str, Server] = OrderedDict()


def execute(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one job and return the answer; an error of ours is an answer too.

    ``begin`` writes the first model, ``reduce`` closes a round, ``final`` writes the session's result; see also
    ``round_old_jobs``.
    """
    try:
        return {"doc": _on_disk(job)}
    except ParityError as exc:
        reason = str(exc.reason) if isinstance(exc, ExecutionFailed) else ""
        described: dict[str, Any] = {"code": exc.code, "message": exc.message, "field": exc.field, "reason": reason}
        return {"error": described}
    except MemoryError:
        return {"error": {"code": "internal", "message": "the round needs more memory", "field": None, "reason": ""}}


def _on_disk(job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _do(job)
    except OSError as exc:  # the session waits, and the operator reads which file
        raise StorageFull(f"the market cannot use its files of a session: {exc.filename}: {exc.strerror}") from exc


def _do(job: Mapping[str, Any]) -> dict[str, Any]:
    if job["do"] in OLD_JOBS:
        return execute_old(job)
    folder = Path(job["folder"])
    if job["do"] == "latest":
        return _latest(folder, job["round"])
    server = _server(job, folder)
    match job["do"]:
        case "begin" if job.get("resumes"):
            return _resume(server, folder, job)
        case "checkpoint":
            return _keep(server, folder, job)
        case "begin":
            number = 0 if _is_sharded(server) else 1
            asks = "train" if number else "summary"
            model = server.first()
            files = _sent(server, model, sent_file(folder, number, 0), job)
            _write_all([(model_file(folder, number, 0), model), *files])
            return {**_named(*(data for _, data in files), model), "round": number, "asks": asks}
        case "reduce":
            return _reduce(server, folder, job)
        case "final":
            return _final(server, folder, job)
        case other:
            raise BadDocument(f"there is no job {other!a}")


def _final(server: Server, folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    from parity_fl.sharded import ShardedServer

    place = folder, job["round"], job["phase"]
    model = _read(model_file(*place))
    if isinstance(server, ShardedServer):
        done = server.final(model, _read(state_file(*place)), rounds=job["rounds"])
    else:
        done = server.final(model, rounds=job["rounds"])
    write_file(folder / "final.safetensors", done.model_bytes)
    return {"metrics": done.metrics}


def _reduce(server: Server, folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    from parity_fl.forest_rounds import ForestRounds
    from parity_fl.rounds import Refused
    from parity_fl.sharded import ShardedServer
    from parity_fl.spool import map_file

    number, phase = job["round"], job["phase"]
    base = model_file(folder, number, phase)
    updates: Bodies = {
        part: partial(map_file, update_file(folder, number, phase, part, digest)) for part, digest in job["updates"]
    }
    path, credit = state_file(folder, number, phase), _credit(job.get("credit"))
    states = partial(_states, folder, number, phase)
    if isinstance(server, ForestRounds):
        reduced = server.reduce(_read(base), states, updates)
    elif isinstance(server, ShardedServer):
        before = _read(path) if path.exists() else None
        reduced = server.reduce(_read(base), before, updates, states=states, credit=credit)
    else:  # mapped, and no name of it is kept here
        fetched = sent_file(folder, number, phase)
        reduced = server.reduce(
            map_file(base, max_bytes=MAX_FILE_BYTES),
            map_file(path, max_bytes=MAX_FILE_BYTES) if path.exists() else None,
            updates,
            number=number,
            start=partial(map_file, fetched, max_bytes=MAX_FILE_BYTES) if fetched.exists() else None,
            credit=credit,
        )
    if isinstance(reduced, Refused):
        return _refused(reduced.reason, reduced.rejected)
    if reduced.rejected and (missing := _missing(reduced, job)):
        return _refused(missing, reduced.rejected, is_short=True)
    following = (number, phase + 1) if reduced.more_phases else (reduced.next_round or number + 1, 0)
    model, state = model_file(folder, *following), state_file(folder, *following)
    is_small = max(len(reduced.model), len(reduced.state)) <= SMALL_BYTES
    sent = _sent(server, reduced.model, sent_file(folder, *following), job)
    _write_all([(model, reduced.model), (state, reduced.state), *sent], is_synced=not is_small)
    small = {model.name: reduced.model, state.name: reduced.state} if is_small else {}
    saved = None
    if job.get("checkpoint") is not None and not reduced.more_phases and _saves(server):
        saved = _save(server, reduced.model, reduced.state, job, metrics=reduced.metrics)
    return {
        **_named(*(data for _, data in sent), reduced.model),
        "small": {name: b64encode(data).decode() for name, data in small.items()},  # durable with the rows to come
        "checkpoint": saved,
        "more_phases": reduced.more_phases,
        "asks": reduced.asks,
        "next_round": reduced.next_round,
        "restarts": reduced.restarts,
        "left": reduced.left,
        "present": None if reduced.present is None else list(reduced.present),
        "keeps_state": reduced.appends and reduced.more_phases,
        "drops_state": reduced.drops,
        "accepted": list(reduced.accepted),
        "rejected": {str(part): reason for part, reason in reduced.rejected.items()},
        "metrics": reduced.metrics,
        "contributions": {str(part): value for part, value in reduced.contributions.items()},
    }


def _refused(reason: str, rejected: Mapping[int, str], *, is_short: bool = False) -> dict[str, Any]:
    """Return the answer of a round that stays open.

    Args:
        is_short: Its model could be made, of fewer updates than the session wants.
    """
    return {"refused": reason, "rejected": {str(part): why for part, why in rejected.items()}, "is_short": is_short}


def _missing(reduced: Reduced, job: Mapping[str, Any]) -> str:
    """Say that too few updates are left after some were rejected; empty when there are enough."""
    from parity_fl.strategy import borne_updates, read_strategy

    left, caught, quorum = len(reduced.accepted), len(reduced.rejected), job["needed"]
    if left + min(caught, borne_updates(read_strategy(job["strategy"]), left + caught)) >= quorum:
        return ""
    return f"{left} of {quorum} needed updates were accepted, {caught} rejected"


def _is_sharded(server: Server) -> TypeGuard[ShardedServer]:
    from parity_fl.sharded import ShardedServer

    return isinstance(server, ShardedServer)


def _saves(server: Server) -> TypeGuard[RoundServer | ShardedServer]:
    """Return whether a session is one of rounds that another can go on from."""
    from parity_fl.rounds import RoundServer

    return isinstance(server, RoundServer) or (_is_sharded(server) and server.saves)


def _credit(wanted: Mapping[str, Any] | None) -> Credit | None:
    """Return how a round's parts are scored; what bounds the time begins with it."""
    from parity_fl.contribution import Credit

    if wanted is None:
        return None
    end = time.monotonic() + wanted["seconds"]
    return Credit(
        wanted["method"],
        bytes.fromhex(wanted["seed"]),
        wanted["max_permutations"],
        is_over=lambda: time.monotonic() >= end,
    )


def _states(folder: Path, number: int, phase: int) -> bytes:
    """Return what every phase of a round so far has kept, one after the other."""
    files = (state_file(folder, number, one) for one in range(phase + 1))
    return b"".join(_read(path) for path in files if path.exists())


def _save(
    server: RoundServer | ShardedServer,
    model: bytes,
    state: bytes,
    job: Mapping[str, Any],
    *,
    metrics: Mapping[str, float],
) -> str:
    """Write a checkpoint to its folder and return its path."""
    from parity_fl.checkpoint import CheckpointFolder

    wanted = job["checkpoint"]
    checkpoint = server.checkpoint(
        model,
        state,
        number=job["round"],
        total_rounds=wanted["total_rounds"],
        metrics=metrics,
        owner=wanted["owner"],
    )
    path = CheckpointFolder(Path(wanted["folder"]), keep=wanted["keep"]).save(
        checkpoint, now=datetime.fromisoformat(wanted["now"])
    )
    return str(path)


def _keep(server: Server, folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Write the checkpoint of a session that has ended in the round after ``job["round"]``; sharded ones have none."""
    if not _saves(server):
        raise BadDocument("this session has no checkpoints")
    place = job["round"] + 1, 0
    model, state = _read(model_file(folder, *place)), _read(state_file(folder, *place))
    return {"checkpoint": _save(server, model, state, job, metrics={})}


def _resume(server: Server, folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Write model and state of the round after the checkpoint that a session goes on from."""
    from parity_fl.checkpoint import decode_checkpoint
    from parity_fl.rounds import RoundServer

    checkpoint = decode_checkpoint(_read(resume_file(folder)))
    number, origin = checkpoint.round + 1, {"after": checkpoint.round, "session_id": checkpoint.session_id}
    if _is_sharded(server):  # its shards agree again first; then it goes on from the checkpoint
        model = server.first()
        _write_all([(model_file(folder, 0, 0), model)])
        return {**_named(model), "round": 0, "asks": "summary", **origin}
    assert isinstance(server, RoundServer)
    model, state = server.resume(checkpoint)
    sent = _sent(server, model, sent_file(folder, number, 0), job)
    _write_all([(model_file(folder, number, 0), model), (state_file(folder, number, 0), state), *sent])
    return {**_named(*(data for _, data in sent), model), "round": number, **origin}


def _latest(folder: Path, number: int | None) -> dict[str, Any]:
    """Return path, round and owner of a folder's newest checkpoint, or of the one after a round; empty without one."""
    from parity_fl.checkpoint import CheckpointFolder, decode_checkpoint

    checkpoints = CheckpointFolder(folder)
    try:
        found = checkpoints.latest_file() if number is None else checkpoints.file(number)
    except NotFound:
        return {}
    if found is None:
        return {}
    path, data = found
    checkpoint = decode_checkpoint(data)
    total = checkpoint.total_rounds
    return {"path": str(path), "round": checkpoint.round, "total_rounds": total, "owner": checkpoint.owner}


def _sent(server: Server, model: bytes, path: Path, job: Mapping[str, Any]) -> list[tuple[Path, bytes]]:
    """Return the file that nodes start from and its place, if it is another than the market's own."""
    from parity_fl.rounds import RoundServer

    if not isinstance(server, RoundServer):
        return []
    sent = server.sent(model, job["format"]) if job["format"] != "fp32" and len(model) > SMALL_BYTES else model
    return [] if sent == model else [(path, sent)]


def _write_all(files: Sequence[tuple[Path, bytes]], *, is_synced: bool = True) -> None:
    """Write files of one folder, durably if they are not so elsewhere; the disk is waited for once for all."""
    if not is_synced:
        for path, data in files:
            temporary_of(path).write_bytes(data)
            temporary_of(path).replace(path)
        return
    with ThreadPoolExecutor(len(files)) as pool:
        list(pool.map(write_synced, (temporary_of(path) for path, _ in files), (data for _, data in files)))
    for path, _ in files:
        temporary_of(path).replace(path)
    sync_folder(files[0][0].parent)


def temporary_of(path: Path) -> Path:
    """Return where a file is written before it has its name; one that was left behind is overwritten."""
    return path.with_name(f".{path.name}.tmp")


def _named(*files: bytes) -> dict[str, Any]:
    """Return the digest and the size of the first file: what nodes fetch, where that is another than the model."""
    return {"sha256": sha256(files[0]).hexdigest(), "size": len(files[0])}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise BadDocument(f"{path.name} cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise TooLarge(f"{path.name} has over {MAX_FILE_BYTES} bytes")
    return data


def _noise(privacy: PrivacyConfig, job: Mapping[str, Any], folder: Path, parts: int) -> NoiseSetup | None:
    """Return what a private session's noise is made with; its key is drawn when the session begins."""
    if not privacy.differential_privacy:
        return None
    from parity_fl.privacy.dp import NoiseSetup
    from parity_fl.privacy.noise import KEY_BYTES

    path = noise_file(folder)
    if job["do"] == "begin" and not path.exists():
        write_file(path, token_bytes(KEY_BYTES), mode=0o600)
    key = _read(path)
    if len(key) != KEY_BYTES:
        raise BadDocument(f"{path.name} is no key")
    fraction = float(job["fraction"])
    return NoiseSetup(privacy, fraction * parts, key, fraction)


def _server(job: Mapping[str, Any], folder: Path) -> Server:
    """Return a session's mathematics; its data are parsed once, since that may take longer than a round."""
    from parity_fl.checkpoint import decode_checkpoint
    from parity_fl.forest_rounds import ForestRounds
    from parity_fl.plan import PartitionPlan  # NumPy: only the process that computes loads it
    from parity_fl.rounds import RoundServer
    from parity_fl.session import ShardTerms
    from parity_fl.sharded import ShardedServer
    from parity_fl.spec import ForestConfig, resolve_fl_spec
    from parity_fl.strategy import read_strategy

    key = str(folder)
    known = _open.pop(key, None)
    if known is None:
        spec, strategy = resolve_fl_spec(job["spec"]), read_strategy(job["strategy"])
        dataset = b"" if spec.is_sharded and not spec.eval_cid else _read(folder / "dataset")
        if spec.is_sharded:
            terms = ShardTerms.from_dict(job["plan"])
            private = _noise(spec.privacy, job, folder, terms.total_parts)
            resumes = decode_checkpoint(_read(resume_file(folder))) if resume_file(folder).exists() else None
            known = ShardedServer(
                spec, terms, strategy, dataset or None, private=private, resumes=resumes, quorum=job["quorum"]
            )
        elif isinstance(spec.model, ForestConfig):
            known = ForestRounds(spec, PartitionPlan.from_dict(job["plan"]), dataset)
        else:
            known = RoundServer(spec, PartitionPlan.from_dict(job["plan"]), dataset, strategy)
    _open[key] = known
    while len(_open) > MAX_OPEN:
        _open.popitem(last=False)
    if job["do"] == "final":
        del _open[key]
    return known
