"""The base of every wire document: frozen, strict, and errors that name the field.

Requests forbid unknown fields. Signed documents allow them, since a newer signer may add some; what is verified is
the received bytes, never a re-serialisation (RFC 8725 §3.11).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

from parity_protocol.errors import BadField

__all__ = ["JsonObject", "Request", "SignedDocument", "WireTime", "explain", "parse_as"]

JsonObject = dict[str, Any]  # what strict_json returns for an object: str, int, float, bool, None, list, dict

M = TypeVar("M", bound=BaseModel)

_MAX_PROBLEMS = 20  # named in one answer


class Request(BaseModel):
    """A document that must hold exactly the fields that are declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class SignedDocument(BaseModel):
    """A document whose signature covers its received bytes: unknown fields are kept and ignored."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, populate_by_name=True)


def parse_as(model: type[M], data: bytes | str) -> M:
    """Read JSON text that has passed ``strict_json`` into ``model``.

    Raises:
        BadField: A field is missing, unknown, or of another type or range; ``field`` names the first.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        problems = explain(exc)
        field, text = problems[0]
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise BadField(f"{field}: {text}{more}", field=field) from exc


def explain(exc: ValidationError) -> list[tuple[str, str]]:
    """Return (field path, what is wrong) for each problem; what came is described, never echoed."""
    found = []
    for problem in exc.errors(include_url=False, include_input=False, include_context=False)[:_MAX_PROBLEMS]:
        path = ".".join(str(step)[:64] for step in problem["loc"]) or "body"
        found.append((path, problem["msg"][:200]))
    return found


def _read_time(value: Any) -> datetime:
    if isinstance(value, datetime):
        found = value
    elif isinstance(value, str) and len(value) <= 40:
        found = datetime.fromisoformat(value)
    else:
        raise ValueError("expected an RFC 3339 time such as '2026-01-02T03:04:05Z'")
    if found.tzinfo is None:
        raise ValueError("expected a time with its zone, such as '2026-01-02T03:04:05Z'")
    return found.astimezone(UTC)


def _write_time(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


WireTime = Annotated[
    datetime,
    BeforeValidator(_read_time),
    PlainSerializer(_write_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
