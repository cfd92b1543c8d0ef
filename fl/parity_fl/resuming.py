"""Going on from a checkpoint: what a session must have in common with the one that wrote it.

The rounds after a checkpoint are those that its session would have had only if the same model trains on the same cut of
the same data under the same rule. How many rounds there are, how long one may take, and who takes part may differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from parity_fl.fields import fail
from parity_fl.spec import FlSpec
from parity_fl.strategy import StrategyConfig

if TYPE_CHECKING:
    from parity_fl.checkpoint import Checkpoint

__all__ = ["RESUME_FIELD", "check_checkpoint", "settings_of"]

RESUME_FIELD: Final = "spec.rounds_config.resume_from"

_NAMES: Final = ("session_id", "round_id", "output_format")  # differ between any two sessions, or mean nothing
_MAX_SHOWN: Final = 48  # characters of a value in a message
_MAX_LISTED: Final = 6  # members in a message
_HEX: Final = frozenset("0123456789abcdef")


def settings_of(spec: FlSpec) -> dict[str, Any]:
    """Return what a session trains, without its names; equal for two sessions that train the same."""
    members = {name: value for name, value in spec.to_dict().items() if name not in _NAMES}
    found: dict[str, Any] = json.loads(json.dumps(members))  # as it comes back from a file
    return found


def check_checkpoint(checkpoint: Checkpoint, spec: FlSpec, strategy: StrategyConfig, *, total_rounds: int) -> None:
    """Check that a session may go on from a checkpoint.

    Args:
        checkpoint: Decoded.
        spec: Resolved settings of the session that goes on.
        strategy: Its rule.
        total_rounds: Its rounds, those before the checkpoint included.

    Raises:
        BadField: They do not belong together; the message names each member that differs, with both values.
    """
    if not checkpoint.settings or len(checkpoint.seed) != 64 or not set(checkpoint.seed) <= _HEX:
        fail(
            RESUME_FIELD,
            "resume_from: the checkpoint does not say what it was trained with; no session goes on from it",
        )
    before = {**checkpoint.settings, "strategy_config": checkpoint.strategy.to_dict()}
    now = {**settings_of(spec), "strategy_config": json.loads(json.dumps(strategy.to_dict()))}
    found = _differences(before, now, "")
    if found:
        more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
        fail(RESUME_FIELD, f"resume_from: the checkpoint has {', '.join(found[:_MAX_LISTED])}{more}")
    if total_rounds <= checkpoint.round:
        fail(
            "spec.total_rounds",
            f"total_rounds counts from the first round of all: it must be above {checkpoint.round}, the checkpoint's"
            f" round, got {total_rounds}",
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str) -> list[str]:
    """Return each member that differs, with both values."""
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        one, two, dotted = before.get(name), now.get(name), f"{place}{name}"
        if isinstance(one, dict) and isinstance(two, dict):
            found += _differences(one, two, f"{dotted}.")
        elif one != two:
            found.append(f"{dotted} {_shown(one)} where this session has {_shown(two)}")
    return found


def _shown(value: object) -> str:
    return "nothing" if value is None else ascii(value)[:_MAX_SHOWN]
