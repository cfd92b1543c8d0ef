"""The ``FL_*`` names of a session: what it says itself, what the market's operator set, and what is documented.

The market resolves them once, when a session is submitted, and publishes them in its plan. Market and node fill the same
values into the same signed text, and never over what that says: a restart with other variables changes no session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from parity_fl.fields import fail
from parity_fl.rounds_config import is_in_rounds, is_phased
from parity_fl.settings import FlSettings
from parity_fl.strategy import STRATEGIES, StrategyConfig, parameters_of, plain_names
from parity_protocol.errors import BadField

__all__ = ["Resolved", "Source", "filled", "read_resolved", "resolve_defaults"]

Source: TypeAlias = Literal["session", "market", "default"]
Resolved: TypeAlias = dict[str, tuple[str | int | float, Source]]
"""By name, ``FL_STRATEGY`` …: the value that holds and who said it. Empty for a session that does not train in rounds."""

_ROUNDS: Final = "FL_NUM_ROUNDS"
_CLIENTS: Final = "FL_MIN_AVAILABLE_CLIENTS"
_RATE: Final = "FL_CLIENT_LR"
_STRATEGY: Final = ("strategy", "proximal_mu", "server_lr", "client_lr", "num_malicious", "trim_beta")
_NAMES: Final = frozenset({_ROUNDS, _CLIENTS, *(f"FL_{name.upper()}" for name in _STRATEGY)})
_SOURCES: Final = ("session", "market", "default")


def resolve_defaults(session: Mapping[str, object], settings: FlSettings, *, parts: int) -> Resolved:
    """Return what holds for a session and why: its own word, else the market's variable, else the documented default.

    A model that trains in rounds only when it names more than one, a linear one, gets no number of rounds from here.

    Args:
        session: ``FederatedLearningSpec.session()``.
        settings: The market's.
        parts: Of the session.

    Raises:
        BadField: A member of the session is wrong, or the rule that the market chose does not suit it.
    """
    if not is_in_rounds(session) or is_phased(session):
        return {}
    own = _plain(session)
    training = session.get("train_config")
    if isinstance(training, Mapping) and training.get("learning_rate") is not None and "client_lr" not in own:
        settings = settings.model_copy(update={"fl_client_lr": None})  # the session says how nodes train
    rule = settings.strategy(own)

    def source(name: str, *, said: bool) -> Source:
        return "session" if said else "market" if f"fl_{name}" in settings.model_fields_set else "default"

    found: Resolved = {"FL_STRATEGY": (STRATEGIES[rule.strategy], source("strategy", said="strategy" in own))}
    found |= {
        f"FL_{name.upper()}": (value, source(name, said=name in own)) for name, value in _parameters(rule).items()
    }
    total = session.get("total_rounds")
    is_said = type(total) is int
    found[_ROUNDS] = (total if is_said else settings.fl_num_rounds, source("num_rounds", said=is_said))  # type: ignore[assignment]  # narrowed by is_said
    rounds = session.get("rounds_config")
    least = rounds.get("min_available_clients") if isinstance(rounds, Mapping) else None
    if type(least) is int:
        found[_CLIENTS] = (least, "session")
    else:
        found[_CLIENTS] = (min(parts, settings.fl_min_available_clients), source("min_available_clients", said=False))
    return found


def filled(session: Mapping[str, object], resolved: Resolved) -> dict[str, object]:
    """Return a session with everything said.

    Args:
        session: ``FederatedLearningSpec.session()``; what it says stays as it is.
        resolved: Of the plan.

    Raises:
        BadField: The plan fills in what the session says itself.
    """
    made = dict(session)
    own = _plain(session)
    rounds = dict(_object(session, "rounds_config"))
    training = dict(_object(session, "train_config"))
    for name, (value, source) in resolved.items():
        if source == "session":
            continue
        short = name[3:].lower()
        if name == _ROUNDS:
            is_free = session.get("total_rounds") is None
            made["total_rounds"] = value
        elif name == _CLIENTS:
            is_free = rounds.get("min_available_clients") is None
            rounds["min_available_clients"] = value
        else:
            is_free = own.get(short) is None
            own[short] = value
        if not is_free:
            fail("plan.settings", f"the plan fills in {name}, which the session says itself")
    if resolved:
        made["rounds_config"], made["strategy_config"] = rounds, own
        if training.get("learning_rate") is None and _RATE in resolved:
            made["train_config"] = {**training, "learning_rate": resolved[_RATE][0]}
    return made


def read_resolved(raw: object) -> Resolved:
    """Read what somebody else resolved.

    Raises:
        BadField: It is something else; values are checked where they are filled in.
    """
    if not isinstance(raw, Mapping):
        raise BadField("a plan's settings must be an object", field="plan.settings")
    found: Resolved = {}
    for name, entry in raw.items():
        if name not in _NAMES or not isinstance(entry, (list, tuple)) or len(entry) != 2 or entry[1] not in _SOURCES:
            raise BadField("a plan's settings must be FL_ names, each with a value and a source", field="plan.settings")
        if type(entry[0]) not in (str, int, float):
            raise BadField(f"a plan's settings: {name} must be a name or a number", field="plan.settings")
        found[str(name)] = (entry[0], entry[1])
    return found


def _parameters(rule: StrategyConfig) -> dict[str, float | int]:
    """Return the rule's own parameters that have an ``FL_`` name, documented defaults filled in."""
    known = parameters_of(rule.strategy) | ({"num_malicious"} if rule.pre_aggregation == "nnm" else frozenset())
    values: dict[str, Any] = {
        "proximal_mu": rule.mu,
        "server_lr": rule.server_rate,
        "client_lr": rule.client_lr,
        "num_malicious": rule.malicious,
        "trim_beta": rule.cut_share,
    }
    return {name: value for name, value in values.items() if name in known and value is not None}


def _plain(session: Mapping[str, object]) -> dict[str, Any]:
    return {
        name: value for name, value in plain_names(_object(session, "strategy_config")).items() if value is not None
    }


def _object(session: Mapping[str, object], name: str) -> dict[Any, Any]:
    found = session.get(name)
    return dict(found) if isinstance(found, Mapping) else {}
