"""The spec of a session that trains in rounds, as the options of ``parity fl run`` and an old session say it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.output import Output
from parity_protocol.errors import InvalidInput, NotFound, ParityError

if TYPE_CHECKING:
    from parity_cli.session_files import SessionFiles
    from parity_fl.settings import FlSettings

__all__ = [
    "SECTIONS",
    "changed",
    "check_free",
    "checkpoint_of",
    "cid_of",
    "privacy_of",
    "read_changes",
    "read_spec",
    "resumed",
    "spec_of",
]

MAX_SPEC_BYTES = 65_536
SECTIONS = {
    "model": "model_config",
    "train": "train_config",
    "partition": "partition_config",
    "strategy": "strategy_config",
    "rounds": "rounds_config",
    "privacy": "privacy",
}
"""What ``--set SECTION.NAME=VALUE`` may change, with the member of a spec that it is."""
MAX_CHECKPOINT_BYTES = 1 << 30


def read_spec(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        InvalidInput: It is none, or holds something else than an object.
    """
    from parity_protocol import strict_json

    try:
        spec = strict_json.loads(path.read_bytes(), max_bytes=MAX_SPEC_BYTES)
    except ParityError as exc:
        raise InvalidInput(f"{path} is no specification of a session: {exc.message}", field="spec") from exc
    if not isinstance(spec, dict):
        raise InvalidInput(f"{path} must hold one JSON object", field="spec")
    return {"type": "federated_learning", **spec}


def read_changes(changes: Sequence[str], sections: Collection[str]) -> dict[str, dict[str, Any]]:
    """Read every ``SECTION.NAME=VALUE`` of ``--set``; a value that is no JSON is a text. Every section is there.

    Raises:
        BadParameter: It is none of these sections, or not of this form.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for change in changes:
        name, is_given, text = change.partition("=")
        section, _, member = name.strip().partition(".")
        if not is_given or section not in found or not member:
            raise click.BadParameter(
                f"{change!r} is not SECTION.NAME=VALUE with one of {', '.join(sections)}", param_hint="--set"
            )
        try:
            found[section][member] = json.loads(text)
        except ValueError:
            found[section][member] = text.strip()
    return found


def changed(spec: dict[str, Any], changes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a spec with what ``--set`` says, by section."""
    model = {name: value for name, value in (spec.get("model_config") or {}).items() if name != "hidden_layers"}
    if "hidden_size" in changes["model"]:  # says the same thing
        spec = {**spec, "model_config": model}
    asked = {SECTIONS[name]: members for name, members in changes.items() if members}
    return spec | {name: {**(spec.get(name) or {}), **members} for name, members in asked.items()}


def privacy_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return the privacy switches that ``--dp-*`` and ``--secure-aggregation`` ask for; empty without one of them."""
    switches: dict[str, Any] = {}
    if given["dp_noise"] is not None:
        switches |= {"differential_privacy": True, "noise_multiplier": given["dp_noise"]}
        switches |= {"adaptive": True} if given["dp_clip"] is None else {}
    if given["secure_aggregation"]:
        switches["secure_aggregation"] = True
    for name, option in (("l2_norm_clip", "dp_clip"), ("delta", "dp_delta")):
        if given[option] is not None:
            switches[name] = given[option]
    return switches


async def spec_of(files: SessionFiles, given: dict[str, Any]) -> dict[str, Any]:
    """Return the spec that the options ask for; data that are given as a file are added to ``files``.

    What neither an option nor an ``FL_*`` variable of this shell says is left to the market.
    """
    from parity_fl.settings import load_fl_settings

    data = [bool(given[name]) for name in ("data", "dataset", "shards")]
    if given["model_type"] is None or sum(data) != 1:
        raise click.UsageError("give a SPEC file, or --model and one of --data, --dataset and --shard")
    if given["shards"] and given["alpha"] is not None:
        raise click.UsageError("--alpha cuts one data set: with --shard every part has its own")
    _check_kind(given)
    defaults = load_fl_settings()
    _check_whole(given, has_rate="fl_client_lr" in defaults.model_fields_set)
    path: Path | None = given["data"]
    cid = given["dataset"] if path is None else await files.name(path)
    if path is not None:
        _check_rows(path)
    if path is None and given["shards"]:
        path = next(filter(None, map(_file, given["shards"])), None)
    training = {name: given[name] for name in ("epochs", "batch_size", "learning_rate") if given[name] is not None}
    cut = {"strategy": given["partition"], "total_parts": given["parts"], "min_samples": given["min_samples"]}
    model_settings: dict[str, Any] = {"hidden_layers": list(given["hidden"])} if given["hidden"] else {}
    model_settings |= {name: given[name] for name in ("solver", "mode", "task") if given[name] is not None}
    if given["model_type"] == "linear_regression" and path is not None:
        model_settings["input_size"] = len(_first_line(path).split(",")) - 1
    return {
        "type": "federated_learning",
        "model_type": given["model_type"],
        "dataset_cid": cid,
        "data_format": _format_of(path),
        "model_config": model_settings,
        "partition_config": cut | ({} if given["alpha"] is None else {"alpha": given["alpha"]}),
        **(
            {}
            if given["model_type"] == "random_forest"
            else {"train_config": training, "strategy_config": _strategy(defaults, given), **_rounds(defaults, given)}
        ),
        "seed": given["seed"],
        **({} if given["engine"] == "parity" else {"engine": given["engine"]}),
    }


def _check_rows(path: Path) -> None:
    """Refuse data that no node could read.

    Raises:
        InvalidInput: They cannot be; the message says where.
    """
    from parity_fl.data import load_dataset

    try:
        load_dataset(path.read_bytes(), _format_of(path))
    except ParityError as exc:
        raise InvalidInput(f"{path}: {exc.message}", field="data") from exc


def _format_of(path: Path | None) -> str:
    return "json" if path is not None and path.suffix.lower() == ".json" else "csv"


def _check_kind(given: dict[str, Any]) -> None:
    """Refuse options that mean nothing to the model.

    Raises:
        UsageError: One of them is given.
    """
    kind, of = given["model_type"], {"mode": ("random_forest",), "task": ("neural_network", "random_forest")}
    of |= {"solver": ("linear_regression",)}
    of |= dict.fromkeys(
        ("strategy", "rounds", "epochs", "batch_size", "learning_rate"), ("neural_network", "linear_regression")
    )
    for name, kinds in {**of, "hidden": ("neural_network",)}.items():
        if given[name] not in (None, ()) and kind not in kinds:
            raise click.UsageError(f"--{name.replace('_', '-')} means nothing to a {kind}")


def _check_whole(given: dict[str, Any], *, has_rate: bool) -> None:
    """Refuse a model that a setting is missing of, with all that are, before anything of it is stored.

    Args:
        has_rate: ``FL_CLIENT_LR`` is set, and is the learning rate.

    Raises:
        UsageError: One is neither an option nor in ``--set``.
    """
    changes = read_changes(given["changes"], SECTIONS)
    model, train = changes["model"], changes["train"]
    kind, is_exact = given["model_type"], "exact" in (given["solver"], model.get("solver"))
    missing = []
    if kind == "neural_network" and not (given["hidden"] or {"hidden_size", "hidden_layers"} & model.keys()):
        missing.append("--hidden")
    if kind != "random_forest" and not is_exact:
        missing += [
            f"--{name.replace('_', '-')}"
            for name in ("epochs", "batch_size", "learning_rate")
            if given[name] is None and name not in train and not (name == "learning_rate" and has_rate)
        ]
    if missing and missing != ["--learning-rate"]:  # that alone may be the market's FL_CLIENT_LR
        raise click.UsageError(f"a {kind.replace('_', ' ')} needs {', '.join(missing)}")


def _strategy(defaults: FlSettings, given: dict[str, Any]) -> dict[str, Any]:
    """Return the rule and its parameters as far as the option or this shell's variables say them."""
    config = defaults.strategy({"strategy": given["strategy"]} if given["strategy"] else None)
    said = {name.removeprefix("fl_") for name in defaults.model_fields_set} & set(config.to_dict())
    if given["strategy"]:
        said.add("strategy")
    if given["learning_rate"] is not None and "client_lr" in said:
        said.remove("client_lr")  # the option wins over the variable
    return {name: value for name, value in config.to_dict().items() if name in said}


def _rounds(defaults: FlSettings, given: dict[str, Any]) -> dict[str, Any]:
    """Return the number of rounds and of clients as far as they are said; a line trains in rounds only if it is."""
    total = given["rounds"]
    if given["solver"] == "exact":  # solved once, whatever the variables say
        return {} if total is None else {"total_rounds": total}
    if total is None and ("fl_num_rounds" in defaults.model_fields_set or given["model_type"] == "linear_regression"):
        total = defaults.fl_num_rounds
    rounds: dict[str, Any] = {}
    if given["model_type"] == "linear_regression" and total == 1:
        return {"rounds_config": rounds, "total_rounds": total}  # the parts' results are merged: nothing runs in rounds
    if "fl_min_available_clients" in defaults.model_fields_set:
        rounds["min_available_clients"] = min(given["parts"], defaults.fl_min_available_clients)
    return {"rounds_config": rounds, **({} if total is None else {"total_rounds": total})}


async def cid_of(files: SessionFiles, given: str, *, field: str) -> str:
    """Return the CID of data; a file is added to ``files``.

    Raises:
        InvalidInput: It is no file and no CID.
    """
    from parity_blobs import Cid

    path = _file(given)
    if path is not None:
        return await files.name(path)
    try:
        return str(Cid.parse(given))
    except InvalidInput as exc:
        raise InvalidInput(f"{given!r} is no file and no CID", field=field) from exc


def _file(text: str) -> Path | None:
    path = Path(text).expanduser()
    return path if path.is_file() else None


async def checkpoint_of(out: Output, files: SessionFiles, given: str) -> str:
    """Return the CID of a checkpoint; one that is given as a file, or as its folder, is added to ``files``.

    Raises:
        InvalidInput: It is neither, and no CID.
        BadDocument: The file is no checkpoint.
        DigestMismatch: The folder's newest checkpoint is not what was written.
        NotFound: The folder has none.
    """
    from parity_blobs import Cid

    file = _checkpoint_file(Path(given))
    if file is None:
        try:
            return str(Cid.parse(given))
        except InvalidInput as exc:
            raise InvalidInput(f"{given!r} is no file, no folder and no CID", field="resume_from") from exc
    from parity_fl.checkpoint import decode_checkpoint

    path, data = file
    found = decode_checkpoint(data)
    cid = await files.name(path)
    out.say(f"goes on after round {found.round} of session {found.session_id}, from {path.name} ({cid})")
    return cid


def _checkpoint_file(given: Path) -> tuple[Path, bytes] | None:
    """Return a checkpoint's file and bytes, of a folder the newest one; None when there is nothing at the path."""
    path = given.expanduser()
    if not path.exists():
        return None
    if path.is_file():
        with path.open("rb") as file:
            return path, file.read(MAX_CHECKPOINT_BYTES + 1)
    from parity_fl.checkpoint import CheckpointFolder

    newest = CheckpointFolder(path).latest_file()
    if newest is None:
        raise NotFound(
            f"{path} has no checkpoint_latest.json", hint="Give the folder of one session: FL_CHECKPOINT_PATH/ID."
        )
    return newest


def check_free(output: Path) -> None:
    """Refuse to train for a file that could not be written.

    Raises:
        InvalidInput: ``output`` exists, or its folder does not.
    """
    if output.exists():
        raise InvalidInput(f"{output} exists already", hint="Choose another --output.", field="output")
    if not output.absolute().parent.is_dir():
        raise InvalidInput(f"the folder {output.absolute().parent} does not exist", field="output")


def resumed(spec: dict[str, Any], cid: str) -> dict[str, Any]:
    """Return a session that goes on from a checkpoint and is otherwise the same."""
    return {**spec, "rounds_config": {**spec.get("rounds_config", {}), "resume_from": cid}}


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline(1 << 20)
