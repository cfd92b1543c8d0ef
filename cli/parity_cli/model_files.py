"""Model files: safetensors, which is ours, and the old Parity network's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from parity_protocol.errors import BadField, InvalidInput, NotFound, TooLarge

if TYPE_CHECKING:
    from parity_fl.model import TrainedModel

__all__ = ["FORMS", "Form", "ModelFacts", "form_of", "load_model", "save_model", "write_new"]

Form: TypeAlias = Literal["safetensors", "parity-json"]
FORMS: tuple[Form, ...] = ("safetensors", "parity-json")
MAX_JSON_BYTES = 256 << 20
MAX_JSON_VALUES = 20_000_000  # a model is there three times
MAX_JSON_DEPTH = 8


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the old form tells of a model beside its numbers."""

    metrics: Mapping[str, Any]
    rounds: int
    parts: int
    strategy: str


def form_of(path: Path) -> Form:
    """Return the form that a file's name asks for.

    Raises:
        BadField: It ends in neither .safetensors nor .json.
    """
    match path.suffix.lower():
        case ".safetensors":
            return "safetensors"
        case ".json":
            return "parity-json"
        case _:
            raise BadField(f"{path} must end in .safetensors or .json", field="save")


def save_model(path: Path, data: bytes, facts: ModelFacts, form: Form | None = None) -> None:
    """Write a finished model.

    Args:
        data: Its safetensors file.
        form: None goes by the file's name.

    Raises:
        InvalidInput: The file exists.
    """
    if (form or form_of(path)) == "safetensors":
        write_new(path, data)
        return
    from parity_fl.model import decode_model
    from parity_fl.old_model import old_model_document

    numbers = {
        name: float(value)
        for name, value in facts.metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    document = old_model_document(
        decode_model(data),
        metrics=numbers,
        rounds=facts.rounds,
        participants=facts.parts,
        method=facts.strategy.lower(),
    )
    write_new(path, json.dumps(document, allow_nan=False).encode() + b"\n")


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not be there.

    Raises:
        InvalidInput: It is.
    """
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise InvalidInput(f"{path} exists already", hint="Choose another name.", field="output") from None


def load_model(path: Path) -> TrainedModel:
    """Read a model in either form; what is in it decides.

    Raises:
        NotFound: The file cannot be read.
        InvalidInput: It is no model.
    """
    from parity_fl.limits import MAX_UPDATE_BYTES
    from parity_fl.model import decode_model
    from parity_fl.old_model import read_old_model
    from parity_protocol import strict_json

    try:
        with path.open("rb") as file:
            data = file.read(MAX_UPDATE_BYTES + 1)
    except OSError as exc:
        raise NotFound(f"{path}: {exc.strerror}") from exc
    if data.lstrip()[:1] != b"{":
        return decode_model(data)
    if len(data) > MAX_JSON_BYTES:
        raise TooLarge(f"{path} has over {MAX_JSON_BYTES} bytes", field="model")
    return read_old_model(
        strict_json.loads(data, max_bytes=MAX_JSON_BYTES, max_depth=MAX_JSON_DEPTH, max_values=MAX_JSON_VALUES)
    )
