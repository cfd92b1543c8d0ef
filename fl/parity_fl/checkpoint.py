"""Checkpoints of a session: the model, the strategy's state and where the session was, as one ``.npz`` file.

A folder holds ``checkpoint_round_{N}.npz`` for each checkpoint, ``checkpoint_latest.npz`` (a link to the newest) and
``checkpoint_latest.json``, which names the newest and its SHA-256. The side file is replaced last, whole or not at all:
whatever happens before that, it names a checkpoint that is complete. Equal checkpoints are equal bytes, so one can be
stored under its content identifier. Files are read without pickle, and nothing is allocated that they do not contain.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import MAX_ID_CHARS
from parity_fl.models.base import Weights
from parity_fl.strategy import StrategyConfig, read_strategy
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, BadField, DigestMismatch, NotFound, TooLarge

__all__ = ["Checkpoint", "CheckpointFolder", "decode_checkpoint", "encode_checkpoint"]

_FORMAT: Final = "parity.fl-checkpoint/2"
_META: Final = "meta"
_WEIGHTS: Final = "weights."
_STATE: Final = "state."
_KINDS: Final[Mapping[str, np.dtype[Any]]] = {_WEIGHTS: np.dtype("<f4"), _STATE: np.dtype("<f8"), _META: np.dtype("u1")}
# What NumPy and zipfile raise for files that are none: a header is read as Python's tokens, keys included.
_BROKEN: Final = (
    zipfile.BadZipFile,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    TypeError,
    SyntaxError,
    TokenError,
)
_MAX_ARRAYS: Final = 2048
_MAX_HEADER_BYTES: Final = 4096
_MAX_META_BYTES: Final = 1 << 20
_MAX_META_DEPTH: Final = 8
_MAX_BYTES: Final = 8 << 30
_MAX_SIDE_BYTES: Final = 1 << 16
_MAX_ROUNDS: Final = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A session after a round.

    Attributes:
        round: Rounds done; the session goes on with ``round + 1``.
        weights: The model after that round.
        state: ``Strategy.state()`` after it: the optimizer's moments and the running lengths.
        metrics: Of the round, for people.
        settings: What the session trains, as ``resuming.settings_of`` gives it; empty in a file of somebody else.
        seed: The plan's, 64 hex characters: who goes on cuts the data as they were cut, hold-out included.
        assignment_hash: The plan's.
        owner: Who may have it from a folder that outlives its market; an account, or empty.
    """

    session_id: str
    round: int
    total_rounds: int
    strategy: StrategyConfig
    weights: Weights
    state: Mapping[str, NDArray[np.float64]]
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: str = ""
    assignment_hash: str = ""
    owner: str = ""


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return the ``.npz`` file; equal checkpoints give equal bytes."""
    meta = {
        "format": _FORMAT,
        "session_id": checkpoint.session_id,
        "round": checkpoint.round,
        "total_rounds": checkpoint.total_rounds,
        "strategy": checkpoint.strategy.to_dict(),
        "metrics": dict(checkpoint.metrics),
        "settings": dict(checkpoint.settings),
        "seed": checkpoint.seed,
        "assignment_hash": checkpoint.assignment_hash,
        "owner": checkpoint.owner,
    }
    text = json.dumps(meta, sort_keys=True, allow_nan=False).encode()
    arrays: dict[str, NDArray[Any]] = {_META: np.frombuffer(text, dtype=np.uint8)}
    arrays |= {f"{_WEIGHTS}{name}": checkpoint.weights[name].astype("<f4") for name in sorted(checkpoint.weights)}
    arrays |= {f"{_STATE}{name}": checkpoint.state[name].astype("<f8") for name in sorted(checkpoint.state)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # A fixed date: the moment of writing must not change the bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Read a checkpoint's file.

    Raises:
        BadDocument: It is none, or not whole, or holds values that are not finite.
        TooLarge: Over 8 GiB.
    """
    if len(data) > _MAX_BYTES:
        raise TooLarge(f"the checkpoint is {len(data)} bytes long, at most {_MAX_BYTES} are allowed")
    try:
        found = dict(_arrays(data))
    except _BROKEN as exc:
        raise BadDocument(f"not a checkpoint: {exc}") from exc
    meta = _meta(found)
    try:
        strategy = read_strategy(meta["strategy"])
    except BadField as exc:
        raise BadDocument(f"not a checkpoint: {exc.message}") from exc
    return Checkpoint(
        session_id=meta["session_id"],
        round=meta["round"],
        total_rounds=meta["total_rounds"],
        strategy=strategy,
        weights={name.removeprefix(_WEIGHTS): found[name] for name in sorted(found) if name.startswith(_WEIGHTS)},
        state={name.removeprefix(_STATE): found[name] for name in sorted(found) if name.startswith(_STATE)},
        metrics=meta["metrics"],
        settings=meta["settings"],
        seed=meta["seed"],
        assignment_hash=meta["assignment_hash"],
        owner=meta["owner"],
    )


class CheckpointFolder:
    """The checkpoints of one session on a disk; what keeps that disk is the operator's choice.

    Args:
        path: The folder; it is made.
        keep: Newest checkpoints that stay; 0 keeps all.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        self._path = path
        self._keep = keep

    def save(self, checkpoint: Checkpoint, *, now: datetime) -> Path:
        """Write a checkpoint and make it the latest; it is on disk when this returns.

        Args:
            now: For the side file, with a time zone.

        Returns:
            The file.

        Raises:
            OSError: There is no room, or no permission; the checkpoint before stays the latest.
        """
        data = encode_checkpoint(checkpoint)
        self._path.mkdir(parents=True, exist_ok=True)
        for torn in self._path.glob(".checkpoint_*"):  # of a writer that was killed
            torn.unlink(missing_ok=True)
        path = self._path / f"checkpoint_round_{checkpoint.round}.npz"
        _write(path, data)
        side = {
            "format": _FORMAT,
            "file": path.name,
            "sha256": sha256(data).hexdigest(),
            "size": len(data),
            "session_id": checkpoint.session_id,
            "round": checkpoint.round,
            "total_rounds": checkpoint.total_rounds,
            "strategy": checkpoint.strategy.to_dict(),
            "num_arrays": len(checkpoint.weights),
            "timestamp": now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        _write(self._path / "checkpoint_latest.json", json.dumps(side, indent=1).encode() + b"\n")
        self._link(path)
        if self._keep:
            for old in self.rounds()[: -self._keep]:
                if old < checkpoint.round:
                    (self._path / f"checkpoint_round_{old}.npz").unlink(missing_ok=True)
        return path

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, ascending."""
        names = (path.name.removeprefix("checkpoint_round_") for path in self._path.glob("checkpoint_round_*.npz"))
        return sorted(int(name[:-4]) for name in names if name[:-4].isascii() and name[:-4].isdigit())

    def latest(self) -> Checkpoint | None:
        """Return the checkpoint that the side file names, None when there is none; as of ``latest_file``."""
        found = self.latest_file()
        return None if found is None else decode_checkpoint(found[1])

    def latest_file(self) -> tuple[Path, bytes] | None:
        """Return path and bytes of the checkpoint that the side file names, None when there is none.

        Raises:
            BadDocument: The side file is broken.
            DigestMismatch: The checkpoint's bytes are not those that were written.
            NotFound: The side file names a checkpoint that is not there.
        """
        side = self._path / "checkpoint_latest.json"
        if not side.exists():
            return None
        with side.open("rb") as file:
            raw = strict_json.loads(file.read(_MAX_SIDE_BYTES), max_bytes=_MAX_SIDE_BYTES, max_depth=3)
        number = raw.get("round") if isinstance(raw, dict) else None
        if not isinstance(raw, dict) or raw.get("format") != _FORMAT or not isinstance(number, int):
            raise BadDocument(f"{side.name} is not ours")
        data = self._read(number)
        if sha256(data).hexdigest() != raw.get("sha256"):
            older = [one for one in self.rounds() if one != number]
            hint = f"An older checkpoint is that of round {older[-1]}." if older else ""
            raise DigestMismatch(f"checkpoint_round_{number}.npz is not what was written", hint=hint)
        return self._path / f"checkpoint_round_{number}.npz", data

    def load(self, number: int) -> Checkpoint:
        """Return the checkpoint of a round.

        Raises:
            NotFound: There is none.
            BadDocument: It is broken.
        """
        return decode_checkpoint(self._read(number))

    def file(self, number: int) -> tuple[Path, bytes]:
        """Return path and bytes of the checkpoint of a round; ``NotFound`` when there is none."""
        data = self._read(number)
        return self._path / f"checkpoint_round_{number}.npz", data

    def _read(self, number: int) -> bytes:
        path = self._path / f"checkpoint_round_{number}.npz"
        try:
            with path.open("rb") as file:
                return file.read(_MAX_BYTES + 1)
        except FileNotFoundError as exc:
            raise NotFound(f"there is no {path.name}") from exc

    def _link(self, target: Path) -> None:
        latest = self._path / "checkpoint_latest.npz"
        temporary = self._path / ".checkpoint_latest.npz"
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(target.name)
        except OSError:  # a file system without links
            shutil.copyfile(target, temporary)
        temporary.replace(latest)
        _sync(self._path)


def _arrays(data: bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ARRAYS or len({entry.filename for entry in entries}) != len(entries):
            raise BadDocument(f"not a checkpoint: over {_MAX_ARRAYS} arrays, or one twice")
        # An entry inside another one would let a small file hold its own size two thousand times over.
        if sum(entry.file_size for entry in entries) > len(data):
            raise BadDocument("not a checkpoint: its entries overlap")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:  # stored, there is nothing to inflate
                raise BadDocument("not a checkpoint: an entry is compressed")
            name = entry.filename.removesuffix(".npy")
            prefix = next((prefix for prefix in _KINDS if name == prefix == _META or name.startswith(prefix)), None)
            if prefix is None or entry.filename == name:
                raise BadDocument(f"not a checkpoint: unknown entry {ascii(entry.filename)[:80]}")
            yield name, _array(archive.read(entry), _KINDS[prefix], name)


def _array(body: bytes, dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    file = io.BytesIO(body)
    if np.lib.format.read_magic(file) != (1, 0):
        raise BadDocument(f"not a checkpoint: {name} is of another version")
    shape, is_fortran, found = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER_BYTES)
    size = 1
    for length in shape:
        size *= length
    if found != dtype or is_fortran or size * dtype.itemsize != len(body) - file.tell():
        raise BadDocument(f"not a checkpoint: {name} has another type or size")
    array = np.frombuffer(body, dtype=dtype, offset=file.tell()).reshape(shape).copy()
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise BadDocument(f"not a checkpoint: {name} has NaN or Inf values")
    return array


def _meta(found: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    if _META not in found or found[_META].ndim != 1:
        raise BadDocument("not a checkpoint: meta is missing")
    meta = strict_json.loads(found[_META].tobytes(), max_bytes=_MAX_META_BYTES, max_depth=_MAX_META_DEPTH)
    members = {"format", "session_id", "round", "total_rounds", "strategy", "metrics"}
    members |= {"settings", "seed", "assignment_hash", "owner"}
    if not isinstance(meta, dict) or set(meta) != members or meta["format"] != _FORMAT:
        raise BadDocument(f"not a checkpoint: meta must be {_FORMAT} with {', '.join(sorted(members))}")
    for name in ("session_id", "seed", "assignment_hash", "owner"):
        text = meta[name]
        if not isinstance(text, str) or len(text) > MAX_ID_CHARS:
            raise BadDocument(f"not a checkpoint: {name} must be a short string")
    if not isinstance(meta["settings"], dict):
        raise BadDocument("not a checkpoint: settings must be an object")
    for name in ("round", "total_rounds"):
        value = meta[name]
        if type(value) is not int or not 0 <= value <= _MAX_ROUNDS:
            raise BadDocument(f"not a checkpoint: {name} must be a whole number up to {_MAX_ROUNDS}")
    metrics = meta["metrics"]
    if not isinstance(metrics, dict) or not all(type(value) in (int, float) for value in metrics.values()):
        raise BadDocument("not a checkpoint: metrics must be numbers")
    return meta


def _write(path: Path, data: bytes) -> None:
    """Replace a file so that, whenever the power goes, the old or the new one is there and whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
