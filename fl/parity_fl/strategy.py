"""Which rule combines the updates of a round, and its parameters under the names that operators know (``FL_*``).

Everything here is settings and arithmetic on them; no NumPy is imported, so that creation and the idle node can check a
session. A parameter is None until somebody gives it: only so can one that the chosen rule ignores be reported.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, TypeAlias

from parity_fl.fields import Section, fail

__all__ = [
    "ROBUST",
    "STRATEGIES",
    "StrategyConfig",
    "StrategyName",
    "borne_updates",
    "check_strategy",
    "client_learning_rate",
    "fewest_updates",
    "parameters_of",
    "plain_names",
    "read_strategy",
    "trimmed_each_side",
]

StrategyName: TypeAlias = Literal[
    "fedavg",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedavgm",
    "krum",
    "multi_krum",
    "bulyan",
    "fedtrimmedavg",
    "fedmedian",
]

# The names as papers and Flower write them, in the order in which people are shown them.
STRATEGIES: Final[dict[StrategyName, str]] = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
    "fedavgm": "FedAvgM",
    "krum": "Krum",
    "multi_krum": "MultiKrum",
    "bulyan": "Bulyan",
    "fedtrimmedavg": "FedTrimmedAvg",
    "fedmedian": "FedMedian",
}
ROBUST: Final[frozenset[StrategyName]] = frozenset({"krum", "multi_krum", "bulyan", "fedtrimmedavg", "fedmedian"})

_ADAPTIVE: Final[frozenset[StrategyName]] = frozenset({"fedadam", "fedyogi"})
_SELECTING: Final[frozenset[StrategyName]] = frozenset({"krum", "multi_krum", "bulyan"})

# To which rules a parameter belongs. `num_malicious` also belongs to mixing, whatever the rule.
_BELONGS: Final[dict[str, frozenset[StrategyName]]] = {
    "proximal_mu": frozenset({"fedprox"}),
    "server_lr": _ADAPTIVE | {"fedavgm"},
    "client_lr": _ADAPTIVE,
    "beta_1": _ADAPTIVE,
    "beta_2": _ADAPTIVE,
    "tau": _ADAPTIVE,
    "server_momentum": frozenset({"fedavgm"}),
    "num_malicious": _SELECTING,
    "keep": frozenset({"multi_krum"}),
    "trim_beta": frozenset({"fedtrimmedavg"}),
    "weighting": frozenset(STRATEGIES) - ROBUST,
}
_SERVER_LR: Final = {"fedadam": 0.1, "fedyogi": 0.01, "fedavgm": 1.0}
_NNM_WITHOUT_F: Final = "pre_aggregation nnm needs num_malicious of at least 1"
_WHOLE_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StrategyConfig:
    """One choice of rule. None means "not given"; the properties of the same name without ``given_`` fill it in.

    Attributes:
        strategy: The rule.
        proximal_mu: FedProx's μ, at least 0; default 0.1. Nodes add μ/2·‖w − w_global‖² to their loss.
        server_lr: η of the server's optimizer, above 0; default 0.1 (FedAdam), 0.01 (FedYogi), 1 (FedAvgM).
        client_lr: η_l of FedAdam and FedYogi: the nodes' learning rate, above 0; see ``client_learning_rate``.
        beta_1: Decay of the first moment, in [0, 1); default 0.9.
        beta_2: Decay of the second moment, in [0, 1); default 0.99.
        tau: Adaptivity, above 0; default 0.001.
        server_momentum: FedAvgM's, in [0, 1); default 0.9.
        num_malicious: f, the Byzantine updates to tolerate in a round; default 0.
        keep: Updates that MultiKrum averages; default n − f.
        trim_beta: Share that FedTrimmedAvg cuts from each side, in (0, 0.5); default 0.2.
        weighting: ``samples``: by the rows that the market assigned; ``uniform``. Robust rules are always uniform.
        pre_aggregation: ``nnm`` replaces each update by the mean of its n − f nearest (Allouah et al., 2023, §4).
        clip: ``median`` scales longer updates down to the running median of norms.
        max_norm_ratio: An update longer than this many running medians is rejected under every rule; above 1.
    """

    strategy: StrategyName = "fedavg"
    proximal_mu: float | None = None
    server_lr: float | None = None
    client_lr: float | None = None
    beta_1: float | None = None
    beta_2: float | None = None
    tau: float | None = None
    server_momentum: float | None = None
    num_malicious: int | None = None
    keep: int | None = None
    trim_beta: float | None = None
    weighting: Literal["samples", "uniform"] | None = None
    pre_aggregation: Literal["none", "nnm"] = "none"
    clip: Literal["none", "median"] = "none"
    max_norm_ratio: float = 20.0

    @property
    def malicious(self) -> int:
        """f, filled in."""
        return self.num_malicious or 0

    @property
    def mu(self) -> float:
        """What nodes train with: FedProx's μ, and 0 under every other rule."""
        if self.strategy != "fedprox":
            return 0.0
        return 0.1 if self.proximal_mu is None else self.proximal_mu

    @property
    def cut_share(self) -> float:
        """β of FedTrimmedAvg, filled in."""
        return 0.2 if self.trim_beta is None else self.trim_beta

    @property
    def server_rate(self) -> float:
        """η of the server's optimizer, filled in; 1 where the rule has none."""
        return _SERVER_LR.get(self.strategy, 1.0) if self.server_lr is None else self.server_lr

    @property
    def is_uniform(self) -> bool:
        """Whether every update counts the same."""
        return self.weighting == "uniform" or self.strategy in ROBUST

    def to_dict(self) -> dict[str, object]:
        """Return the members that were given, JSON-ready; ``read_strategy`` reads them back to an equal config."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_strategy(raw: object, *, place: str = "strategy_config") -> StrategyConfig:
    """Check a session's choice of rule.

    Args:
        raw: An object with members of ``StrategyConfig``, or the same under the names ``FL_STRATEGY``,
            ``FL_PROXIMAL_MU`` …; a text alone is the rule's name; None is FedAvg. Names of rules are read without
            regard to case, ``-`` and ``_``.
        place: Dotted name of the object, for messages.

    Raises:
        BadField: The first member that is unknown or out of range.
    """
    if isinstance(raw, str):
        raw = {"strategy": raw}
    if isinstance(raw, dict):
        raw = plain_names(raw, place)
    section = Section.open(raw, place, [field.name for field in fields(StrategyConfig)])
    config = StrategyConfig(
        strategy=_name(section),
        proximal_mu=_number(section, "proximal_mu", low=0.0, low_is_in=True),
        server_lr=_number(section, "server_lr", low=0.0),
        client_lr=_number(section, "client_lr", low=0.0),
        beta_1=_number(section, "beta_1", low=0.0, low_is_in=True, high=1.0),
        beta_2=_number(section, "beta_2", low=0.0, low_is_in=True, high=1.0),
        tau=_number(section, "tau", low=0.0),
        server_momentum=_number(section, "server_momentum", low=0.0, low_is_in=True, high=1.0),
        num_malicious=_whole(section, "num_malicious", low=0),
        keep=_whole(section, "keep", low=1),
        trim_beta=_number(section, "trim_beta", low=0.0, high=0.5),
    )
    ratio = _number(section, "max_norm_ratio", low=1.0)
    weighting = section.choice("weighting", ("", "samples", "uniform"), "")
    return replace(
        config,
        weighting="samples" if weighting == "samples" else "uniform" if weighting == "uniform" else None,
        pre_aggregation="nnm" if section.choice("pre_aggregation", ("none", "nnm"), "none") == "nnm" else "none",
        clip="median" if section.choice("clip", ("none", "median"), "none") == "median" else "none",
        max_norm_ratio=config.max_norm_ratio if ratio is None else ratio,
    )


def fewest_updates(config: StrategyConfig, malicious: int | None = None) -> int:
    """Return how many updates the rule needs at least to keep its promise about ``malicious`` (default: all f)."""
    f = config.malicious if malicious is None else malicious
    least = 1
    if config.pre_aggregation == "nnm":
        least = 2 * f + 1  # the mean of n - f neighbours needs an honest majority
    if config.strategy in {"krum", "multi_krum"}:
        least = max(least, 2 * f + 3)  # Blanchard et al., 2017, proposition 4.2
    elif config.strategy == "bulyan":
        least = max(least, 4 * f + 3)  # El Mhamdi et al., 2018, §4
    elif config.strategy == "fedtrimmedavg":
        least = max(least, math.ceil(1 / config.cut_share - 1e-9), 3)
    elif config.strategy == "fedmedian":
        least = max(least, 3)
    return least


def borne_updates(config: StrategyConfig, n: int) -> int:
    """Return how many of ``n`` updates may be rejected before a round misses them: so many the rule outweighs anyway.

    A node that sends garbage to a rule that expects some must not be able to hold up a round by it.
    """
    borne = config.malicious if config.strategy in _SELECTING or config.pre_aggregation == "nnm" else 0
    if config.strategy == "fedtrimmedavg":
        return max(borne, trimmed_each_side(config.cut_share, n))
    return max(borne, (n - 1) // 2) if config.strategy == "fedmedian" else borne


def parameters_of(strategy: StrategyName) -> frozenset[str]:
    """Return the members of ``StrategyConfig`` that mean something to a rule, besides those that mean it to all."""
    return frozenset(name for name, rules in _BELONGS.items() if strategy in rules)


def trimmed_each_side(share: float, n: int) -> int:
    """Return how many of ``n`` values a trimmed mean cuts from each side."""
    return int(share * n + 1e-9)  # 0.29 * 100 is 28.999… in floating point


def check_strategy(config: StrategyConfig, *, quorum: int, partition_strategy: str) -> list[str]:
    """Check a rule against the session it is for. The bounds hold for the quorum: a round may close with no more.

    Args:
        quorum: Fewest updates with which a round closes.
        partition_strategy: ``random``, ``non_iid`` …; ``sharded`` where nobody knows how alike the parts are.

    Returns:
        Warnings for people: parameters that the rule ignores, and choices known to work badly.

    Raises:
        BadField: The quorum cannot carry the rule, or members contradict each other.
    """
    shown, f = STRATEGIES[config.strategy], config.malicious
    if config.pre_aggregation == "nnm" and f == 0:
        fail("num_malicious", _NNM_WITHOUT_F)
    least = fewest_updates(config)
    if quorum < least:
        fail("min_available_clients", f"{_bound(config, least)}, but a round may close with {quorum} updates")
    if config.keep is not None and config.strategy == "multi_krum" and config.keep > quorum - f:
        fail("keep", f"keep must be at most n - f = {quorum - f} for a quorum of {quorum}, got {config.keep}")
    warnings = [
        f"{name} is ignored: it belongs to {', '.join(STRATEGIES[rule] for rule in STRATEGIES if rule in rules)},"
        f" not to {shown}"
        for name, rules in _BELONGS.items()
        if getattr(config, name) is not None
        and config.strategy not in rules
        and not (name == "num_malicious" and config.pre_aggregation == "nnm")
    ]
    if config.strategy in {"krum", "bulyan"} and partition_strategy in {"non_iid", "label_skew", "sharded"}:
        warnings.append(
            f"{shown} follows few nodes and loses accuracy on {partition_strategy} data even without an attacker;"
            " MultiKrum, or FedTrimmedAvg with pre_aggregation nnm, tolerate the same number of malicious nodes"
        )
    if config.strategy in _SELECTING and f == 0:
        warnings.append(f"{shown} with num_malicious 0 tolerates no malicious node")
    if config.strategy == "fedprox":
        warnings.append(
            "FedProx needs nodes that add the proximal term: ours do, an own training program must do it itself"
        )
    return warnings


def client_learning_rate(config: StrategyConfig, named: float | None) -> float | None:
    """Return the nodes' learning rate from ``client_lr`` and the session's ``learning_rate``, None if neither is given.

    Raises:
        BadField: Both are given and differ.
    """
    given = config.client_lr if config.strategy in _BELONGS["client_lr"] else None
    if given is not None and named is not None and given != named:
        fail("client_lr", f"client_lr {given} and learning_rate {named} both say how nodes train: give one of them")
    return named if given is None else given


def _bound(config: StrategyConfig, least: int) -> str:
    shown, f = STRATEGIES[config.strategy], config.malicious
    match config.strategy:
        case "krum" | "multi_krum" if least == 2 * f + 3:
            return f"{shown} needs n >= 2f + 3 = {least} updates for num_malicious {f}"
        case "bulyan":
            return f"{shown} needs n >= 4f + 3 = {least} updates for num_malicious {f}"
        case "fedtrimmedavg" if least > 2 * f + 1 or config.pre_aggregation == "none":
            return f"{shown} needs {least} updates to trim anything with trim_beta {config.cut_share}"
        case _ if config.pre_aggregation == "nnm" and least == 2 * f + 1:
            return f"mixing needs n >= 2f + 1 = {least} updates for num_malicious {f}"
        case _:
            return f"{shown} needs {least} updates"


def plain_names(raw: dict[Any, object], place: str = "strategy_config") -> dict[Any, object]:
    """Return a choice of rule under its short names: ``FL_TRIM_BETA`` is ``trim_beta``.

    Raises:
        BadField: One is given under both.
    """
    plain: dict[Any, object] = {}
    for name, value in raw.items():
        short = name[3:].lower() if isinstance(name, str) and name.startswith("FL_") else name
        if short in plain:
            fail(f"{place}.{short}", f"{short} is given twice")
        plain[short] = value
    return plain


def _name(section: Section) -> StrategyName:
    given = section.get("strategy", "fedavg")
    if isinstance(given, str):
        wanted = given.lower().replace("_", "").replace("-", "")
        for name, shown in STRATEGIES.items():
            if wanted == shown.lower():
                return name
    shown = ascii(given)[:64] if isinstance(given, str) else type(given).__name__
    return section.refuse("strategy", f"must be one of {', '.join(STRATEGIES.values())}, got {shown}")


def _number(
    section: Section, name: str, *, low: float, low_is_in: bool = False, high: float | None = None
) -> float | None:
    if section.get(name) is None:
        return None
    value = section.number(name, 0.0)
    if value < low or (value == low and not low_is_in) or (high is not None and value >= high):
        least = f"at least {low:g}" if low_is_in else f"above {low:g}"
        section.refuse(name, f"must be {least}{'' if high is None else f' and below {high:g}'}, got {value:g}")
    return value


def _whole(section: Section, name: str, *, low: int) -> int | None:
    return None if section.get(name) is None else section.whole(name, low, _WHOLE_LIMIT, low)
