"""Defaults for federated sessions, from the environment: the ``FL_*`` names of the training guide.

A session's own members win over these. Training parameters of nodes (epochs, batch size, learning rate) are not among
them, but for FedAdam's ``FL_CLIENT_LR``: they never have a default. No NumPy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from parity_fl.strategy import (
    STRATEGIES,
    StrategyConfig,
    check_strategy,
    fewest_updates,
    parameters_of,
    read_strategy,
)
from parity_protocol import settings as reading
from parity_protocol.errors import BadField

__all__ = ["FlSettings", "load_fl_settings"]

_OWN: Final = ("proximal_mu", "server_lr", "client_lr", "num_malicious", "trim_beta")


class FlSettings(BaseSettings):
    """What a session has where it says nothing itself; ``load_fl_settings`` names every mistake at once."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True)

    fl_strategy: str = Field(
        "FedAvg", description=f"Rule that combines the updates of a round: {', '.join(STRATEGIES.values())}."
    )
    fl_num_rounds: int = Field(3, ge=1, le=100_000, description="Rounds of a session.")
    fl_min_available_clients: int = Field(
        2, ge=1, le=1024, description="Parts that nodes must hold before a round begins, and with which it may close."
    )
    fl_proximal_mu: float | None = Field(
        None, description="FedProx: weight of the proximal term, at least 0. Without it 0.1."
    )
    fl_server_lr: float | None = Field(
        None, description="FedAdam, FedYogi, FedAvgM: the server's step, above 0. Without it 0.1, 0.01 and 1."
    )
    fl_client_lr: float | None = Field(
        None, description="FedAdam, FedYogi: the nodes' learning rate, above 0, where a session names none."
    )
    fl_num_malicious: int | None = Field(
        None, description="Krum, MultiKrum, Bulyan: malicious updates to tolerate in a round. Without it 0."
    )
    fl_trim_beta: float | None = Field(
        None, description="FedTrimmedAvg: share cut from each side, above 0 and below 0.5. Without it 0.2."
    )
    fl_checkpoint_enabled: bool = Field(default=False, description="Write checkpoints of sessions (YES or NO).")
    fl_checkpoint_path: Path = Field(
        Path("~/.parity/checkpoints"), description="Folder of the checkpoints, one folder in it for each session."
    )
    fl_checkpoint_interval: int = Field(
        5, ge=1, le=10_000, description="Rounds between two checkpoints; the last round always has one."
    )
    fl_checkpoint_keep: int = Field(
        3,
        ge=1,
        le=10_000,
        description="Newest checkpoints of a session that a market keeps; in a folder named by FL_CHECKPOINT_PATH it keeps all.",
    )

    @field_validator("fl_strategy")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return STRATEGIES[read_strategy(value).strategy]
        except BadField as exc:
            raise ValueError(exc.message) from exc

    @field_validator(*(f"fl_{name}" for name in _OWN))
    @classmethod
    def _in_range(cls, value: Any, info: Any) -> Any:
        try:
            read_strategy({str(info.field_name).removeprefix("fl_"): value})
        except BadField as exc:
            raise ValueError(exc.message) from exc
        return value

    @model_validator(mode="after")
    def _possible(self) -> FlSettings:
        config = self.strategy()
        least = fewest_updates(config)
        if self.fl_min_available_clients < least:
            raise ValueError(
                f"FL_STRATEGY {STRATEGIES[config.strategy]} needs FL_MIN_AVAILABLE_CLIENTS of at least {least},"
                f" got {self.fl_min_available_clients}"
            )
        return self

    def strategy(self, session: Mapping[str, object] | None = None) -> StrategyConfig:
        """Return the rule of a session.

        Args:
            session: Its own ``strategy_config``; its members win. A parameter from the environment is filled in only
                where the session's rule has one.

        Raises:
            BadField: A member of ``session`` is wrong.
        """
        given = {name: value for name in _OWN if (value := getattr(self, f"fl_{name}")) is not None}
        if session is None:
            return read_strategy({"strategy": self.fl_strategy, **given})
        own = read_strategy({"strategy": self.fl_strategy, **session} if "FL_STRATEGY" not in session else session)
        known = parameters_of(own.strategy) | ({"num_malicious"} if own.pre_aggregation == "nnm" else frozenset())
        filled = {name: value for name, value in given.items() if name in known}
        return read_strategy({**filled, **own.to_dict()})

    def notes(self, *, partition_strategy: str = "random") -> list[str]:
        """Return what to log at start: parameters that the chosen rule ignores, by their names here, and warnings."""
        lines = check_strategy(
            self.strategy(), quorum=self.fl_min_available_clients, partition_strategy=partition_strategy
        )
        return [
            f"FL_{line.split(' ', 1)[0].upper()} {line.split(' ', 1)[1]}" if " is ignored: " in line else line
            for line in lines
        ]


def load_fl_settings(path: Path | None = None, **overrides: Any) -> FlSettings:
    """Read the settings.

    Args:
        path: ``--config-path``.
        overrides: Values by field name that win over file and environment.

    Raises:
        ConfigInvalid: Carries every problem at once.
    """
    return reading.load(FlSettings, path, **overrides)
