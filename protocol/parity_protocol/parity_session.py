"""A federated session as the Parity network's programs create it (parity-protocol.md §1.9), read as one of our specs.

What has no meaning here is refused by name, except that members which the old server does not know are passed over, as it
does. ``features`` and ``labels`` are placeholders that the old client always sends: the last column is the label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from parity_protocol.errors import BadField
from parity_protocol.ids import Address

__all__ = ["OldSession", "read_old_session"]

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_MAX_NAME: Final = 255  # characters
_MAX_TEXT: Final = 4_096
_MAX_WHOLE: Final = 1 << 31
_PARTICIPANTS: Final = 2  # when it is 0 or missing
_ATTEMPTS: Final = 10  # of a part: old devices come and go without a word
_SWITCHES: Final = ("differential_privacy", "secure_aggregation")
_PRIVACY: Final = (*_SWITCHES, "noise_multiplier", "l2_norm_clip")


@dataclass(frozen=True, slots=True)
class OldSession:
    """A session that was asked for.

    Attributes:
        name: Shown to people.
        description: Shown to people.
        model_type: As it was written.
        total_rounds: At least 1.
        min_participants: Parts that the data are cut into.
        creator: The address that the body names, in lower case; nobody has proved it.
        creator_address: The same as it was written.
        config: What a reply shows as ``config``.
        spec: Our spec's document; ``parse_spec`` must still check it.
    """

    name: str
    description: str
    model_type: str
    total_rounds: int
    min_participants: int
    creator: Address
    creator_address: str
    config: dict[str, Any]
    spec: dict[str, Any]


def read_old_session(body: object) -> OldSession:
    """Read the body of ``POST /federated-learning/sessions``.

    Training parameters that are 0 count as missing: the old programs write 0 for what nobody gave.

    Args:
        body: Parsed JSON.

    Raises:
        BadField: A required member is missing, of another type, or asks for what there is not; ``field`` names it.
    """
    if not isinstance(body, dict):
        raise BadField("expected an object", field="body")
    name = _text(body, "name", required=True, most=_MAX_NAME)
    description = _text(body, "description", most=_MAX_TEXT)
    model_type = _text(body, "model_type", required=True, most=64)
    rounds = _whole(body, "total_rounds")
    if rounds < 1:
        raise BadField("total_rounds is required", field="total_rounds")
    parts = _whole(body, "min_participants") or _PARTICIPANTS
    address = _text(body, "creator_address", required=True, most=42)
    if not _ADDRESS.fullmatch(address):
        raise BadField("creator_address must be 0x and 40 hex digits", field="creator_address")
    data, config = _object(body, "training_data"), _object(body, "config")
    metadata = _object(data, "metadata", "training_data.", required=False)
    privacy = _object(config, "privacy_config", "config.", required=False)
    selection = _text(config, "client_selection", "config.", most=64)
    if selection not in ("", "random", "all"):
        raise BadField("client_selection must be random or all", field="config.client_selection")
    shown: dict[str, Any] = {
        "aggregation_method": _text(config, "aggregation_method", "config.", most=64) or "fedavg",
        "learning_rate": config.get("learning_rate", 0),
        "batch_size": config.get("batch_size", 0),
        "local_epochs": config.get("local_epochs", 0),
        "client_selection": selection,
        "model_config": _object(config, "model_config", "config."),
        "privacy_config": {**dict.fromkeys(_SWITCHES, False), **privacy},
    }
    spec: dict[str, Any] = {
        "type": "federated_learning",
        "title": name,
        "description": description,
        "model_type": model_type,
        "dataset_cid": _text(data, "dataset_cid", "training_data.", required=True, most=128),
        "data_format": _text(data, "data_format", "training_data.", required=True, most=16),
        "model_config": _model(model_type, shown["model_config"]),
        "train_config": _training(config),
        "partition_config": {
            "strategy": _text(data, "split_strategy", "training_data.", most=64),
            "total_parts": parts,
            **{one: metadata[one] for one in ("alpha", "min_samples", "overlap_ratio") if one in metadata},
        },
        # Old programs write 0 for what nobody gave here too.
        "privacy": {one: privacy[one] for one in _PRIVACY if privacy.get(one) not in (None, False, 0)},
        "total_rounds": rounds,
        "max_attempts": _ATTEMPTS,
        **_rule(model_type, shown["aggregation_method"], parts),
    }
    return OldSession(name, description, model_type, rounds, parts, Address(address.lower()), address, shown, spec)


def _model(model_type: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return our ``model_config``: old devices do not scale their data, so nobody does unless it is asked for."""
    found = dict(settings)
    if model_type == "random_forest":
        return found
    if model_type == "linear_regression" and found.get("output_size") in (0, 1):
        del found["output_size"]
    return {"standardize": False, **found}


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training parameters that were given, for every one that is missing to be named."""
    wanted = {"epochs": "local_epochs", "batch_size": "batch_size", "learning_rate": "learning_rate"}
    given = {ours: config.get(theirs) for ours, theirs in wanted.items()}
    return {name: value for name, value in given.items() if value is not None and value != 0}


def _rule(model_type: str, method: str, parts: int) -> dict[str, Any]:
    """Return how the rounds run: old devices have no other way to take part than a round."""
    if model_type == "random_forest":
        if method.lower() not in ("fedavg", "union"):
            raise BadField("a forest is merged: aggregation_method must be fedavg", field="config.aggregation_method")
        return {}
    rounds = {"min_available_clients": parts, "update_format": "fp32"}
    return {"strategy_config": {"strategy": method}, "rounds_config": rounds}


def _object(body: Mapping[str, Any], name: str, place: str = "", *, required: bool = True) -> dict[str, Any]:
    value = body.get(name)
    if value is None and not required:
        return {}
    if not isinstance(value, dict) or (required and not value):
        raise BadField(f"{place}{name} is required", field=f"{place}{name}")
    return value


def _text(body: Mapping[str, Any], name: str, place: str = "", *, required: bool = False, most: int) -> str:
    value = body.get(name)
    if value is None or value == "":
        if required:
            raise BadField(f"{place}{name} is required", field=f"{place}{name}")
        return ""
    if not isinstance(value, str) or len(value) > most:
        raise BadField(f"{place}{name} must be a text of at most {most} characters", field=f"{place}{name}")
    return value


def _whole(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name, 0)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < _MAX_WHOLE:
        raise BadField(f"{name} must be a whole number", field=name)
    return value
