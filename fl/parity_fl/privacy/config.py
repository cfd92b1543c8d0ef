"""A session's privacy switches, as the submitter gave them. No NumPy is imported: creation and the idle node read this.

The names are those of the Parity network's ``privacy_config``, and more. A parameter is None until somebody gives it, so
that one whose switch is off can be refused: who names a noise multiplier believes to be protected.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Final

from parity_fl.fields import Section, fail

__all__ = ["MAX_SECURE_PARTS", "PLACE", "PrivacyConfig", "default_threshold", "fewest_shares", "read_privacy"]

MAX_SECURE_PARTS: Final = 256  # every pair exchanges shares, and every node fetches all of them: 6 MB at this many
PLACE: Final = "privacy"
_DELTA: Final = 1e-5
_CLIPPING_RANGE: Final = 8.0  # of a coordinate, as in Flower's SecAgg+
_FIRST_CLIP: Final = 0.1
_QUANTILE: Final = 0.5
_CLIP_RATE: Final = 0.2
_MAX_NOISE: Final = 1e4
_MAX_CLIP: Final = 1e9
_LEAST: Final = 1e-12  # of any of them: products and quotients of two stay far from a float's ends
_OF_DP: Final = ("noise_multiplier", "delta", "adaptive", *("target_quantile", "clip_learning_rate"), "count_stddev")
_OF_ADAPTIVE: Final = ("target_quantile", "clip_learning_rate", "count_stddev")
_OF_SECURE: Final = ("threshold", "clipping_range")


@dataclass(frozen=True, slots=True)
class PrivacyConfig:
    """What is protected, and how. None means "not given"; the properties fill it in.

    Attributes:
        differential_privacy: The market clips every update and adds Gaussian noise to their mean.
        noise_multiplier: z: the noise's standard deviation in units of the clip norm; above 0, required.
        l2_norm_clip: C: longer updates are scaled down to it. Required unless ``adaptive``, whose first C it is.
        adaptive: C follows a quantile of the updates' lengths (Andrew et al., 2021).
        delta: δ for which ε is told, in (0, 1); default 0.00001.
        target_quantile: γ: the share of updates that should be no longer than C, in (0, 1); default 0.5.
        clip_learning_rate: η of C ← C·exp(−η(b − γ)), above 0; default 0.2.
        count_stddev: σ_b of the noise on the count behind b; default the larger of n/20 and z.
        secure_aggregation: The market learns the sum of the updates and no single one (Bonawitz et al., 2017).
        threshold: t: parts without which nothing is unmasked; default ⌊2n/3⌋ + 1.
        clipping_range: Nodes cut each coordinate to ± this, where there is no ``l2_norm_clip``; default 8.
    """

    differential_privacy: bool = False
    noise_multiplier: float | None = None
    l2_norm_clip: float | None = None
    adaptive: bool = False
    delta: float | None = None
    target_quantile: float | None = None
    clip_learning_rate: float | None = None
    count_stddev: float | None = None
    secure_aggregation: bool = False
    threshold: int | None = None
    clipping_range: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether any switch is on."""
        return self.differential_privacy or self.secure_aggregation

    @property
    def noise(self) -> float:
        """z; 0 without differential privacy."""
        return (self.noise_multiplier or 0.0) if self.differential_privacy else 0.0

    @property
    def first_clip(self) -> float:
        """C of the first round."""
        return _FIRST_CLIP if self.l2_norm_clip is None else self.l2_norm_clip

    @property
    def at_delta(self) -> float:
        """δ, filled in."""
        return _DELTA if self.delta is None else self.delta

    @property
    def quantile(self) -> float:
        """γ, filled in."""
        return _QUANTILE if self.target_quantile is None else self.target_quantile

    @property
    def clip_rate(self) -> float:
        """η, filled in."""
        return _CLIP_RATE if self.clip_learning_rate is None else self.clip_learning_rate

    @property
    def range(self) -> float:
        """The bound of a coordinate, filled in."""
        return _CLIPPING_RANGE if self.clipping_range is None else self.clipping_range

    def count_noise(self, n: float) -> float:
        """Return σ_b for ``n`` expected updates, filled in."""
        return max(n / 20, self.noise) if self.count_stddev is None else self.count_stddev

    def sum_noise(self, n: float) -> float:
        """Return z_Δ: the noise multiplier of the sum, so that it and the noisy count together cost z.

        Andrew et al., 2021, theorem 1: z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2).

        Args:
            n: Expected updates.

        Raises:
            BadField: σ_b is too small for any z_Δ.
        """
        z = self.noise
        if not self.adaptive:
            return z
        deviation = self.count_noise(n)
        if 2 * deviation <= z:
            fail(
                f"{PLACE}.count_stddev",
                f"count_stddev must be above noise_multiplier / 2 = {z / 2:g}, got {deviation:g}: the count alone would"
                " cost more than the session's noise allows",
            )
        return float((z**-2 - (2 * deviation) ** -2) ** -0.5)

    def shares(self, parts: int) -> int:
        """Return t for ``parts``, filled in."""
        return default_threshold(parts) if self.threshold is None else self.threshold

    def to_dict(self) -> dict[str, object]:
        """Return the members that were given, JSON-ready; ``read_privacy`` reads them back to an equal config."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


def read_privacy(raw: object, *, place: str = PLACE) -> PrivacyConfig:
    """Check a session's privacy switches.

    Args:
        raw: An object with members of ``PrivacyConfig``; None is none of them.
        place: Dotted name of the object, for messages.

    Raises:
        BadField: The first member that is unknown, out of range, missing, or whose switch is off.
    """
    section = Section.open(raw, place, [field.name for field in fields(PrivacyConfig)])
    config = PrivacyConfig(
        differential_privacy=section.flag("differential_privacy", default=False),
        noise_multiplier=_number(section, "noise_multiplier", most=_MAX_NOISE),
        l2_norm_clip=_number(section, "l2_norm_clip", most=_MAX_CLIP),
        adaptive=section.flag("adaptive", default=False),
        delta=_number(section, "delta", most=1.0),
        target_quantile=_number(section, "target_quantile", most=1.0),
        clip_learning_rate=_number(section, "clip_learning_rate", most=10.0),
        count_stddev=_number(section, "count_stddev", most=_MAX_CLIP),
        secure_aggregation=section.flag("secure_aggregation", default=False),
        threshold=None
        if section.get("threshold") is None
        else section.whole("threshold", 1, MAX_SECURE_PARTS, default=1),
        clipping_range=_number(section, "clipping_range", most=_MAX_CLIP),
    )
    if not config.differential_privacy:
        _needs_switch(section, config, "differential_privacy", _OF_DP)
    if not config.secure_aggregation:
        _needs_switch(section, config, "secure_aggregation", _OF_SECURE)
    if not config.is_on:
        if config.l2_norm_clip is not None and "differential_privacy" not in section.members:
            section.refuse("l2_norm_clip", "does nothing: differential_privacy and secure_aggregation are both off")
        return PrivacyConfig()
    if config.differential_privacy:
        _check_dp(section, config)
    elif config.l2_norm_clip is not None and config.clipping_range is not None:
        section.refuse("clipping_range", "and l2_norm_clip both say how nodes clip: give one of them")
    return config


def default_threshold(parts: int) -> int:
    """Return ⌊2n/3⌋ + 1: it holds against a malicious market with fewer than a third of the nodes on its side."""
    return max(2 * parts // 3 + 1, 3)


def fewest_shares(parts: int) -> int:
    """Return the least threshold that is allowed, for which 2t > n.

    Below, a market could tell one half of the nodes that a part is gone and the other half that it is not, and learn the
    seeds of both its masks (Bonawitz et al., 2017, §6.2). A sum of fewer than three is known to each of the others.
    """
    return max(parts // 2 + 1, 3)


def _check_dp(section: Section, config: PrivacyConfig) -> None:
    if config.noise_multiplier is None:
        section.refuse("noise_multiplier", "is required with differential_privacy: it decides what epsilon will be")
    if config.l2_norm_clip is None and not config.adaptive:
        section.refuse("l2_norm_clip", "is required with differential_privacy, unless adaptive is true")
    if config.clipping_range is not None:
        section.refuse("clipping_range", "means nothing with differential_privacy: l2_norm_clip bounds every update")
    if not config.adaptive:
        given = next((name for name in _OF_ADAPTIVE if getattr(config, name) is not None), None)
        if given is not None:
            section.refuse(given, "belongs to adaptive clipping: set adaptive")
    if config.delta == 1 or config.target_quantile == 1:
        section.refuse("delta" if config.delta == 1 else "target_quantile", "must be above 0 and below 1, got 1")


def _needs_switch(section: Section, config: PrivacyConfig, switch: str, names: tuple[str, ...]) -> None:
    """Refuse parameters of a switch that is off; one that is off in so many words takes them along."""
    if switch in section.members:
        return
    given = next((name for name in names if getattr(config, name) not in {None, False}), None)
    if given is not None:
        section.refuse(given, f"does nothing while {switch} is off: set {PLACE}.{switch} to true")


def _number(section: Section, name: str, *, most: float) -> float | None:
    if section.get(name) is None:
        return None
    value = section.number(name, 0.0)
    if not _LEAST <= value <= most:
        switch = "secure_aggregation" if name in _OF_SECURE else "differential_privacy"
        if value == 0 and section.members.get(switch) is False:  # as clients of the Parity network send it
            return None
        section.refuse(name, f"must be at least {_LEAST:g} and at most {most:g}, got {value:g}")
    return value
