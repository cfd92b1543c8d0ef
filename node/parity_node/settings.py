"""The node's settings: the Parity runner's keys verbatim, and ours beside them.

The file is ``--config-path``, else ``PARITY_CONFIG_PATH``, else ``./.env``; the real environment overrides it. Every
field's description is rendered into ``.env.sample``.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from parity_node.shards import parse_shards
from parity_protocol import settings as reading
from parity_protocol.errors import ConfigInvalid, InvalidInput
from parity_protocol.join import JoinString, is_loopback, parse_join, parse_market_url
from parity_protocol.policy import Policy
from parity_protocol.policy_rules import DomainPattern, ImagePattern
from parity_protocol.settings import CommaList, Seconds, Size, Tokens
from parity_protocol.task import TaskKind

__all__ = ["NodeSettings", "load_settings"]

MAX_SLOTS = 256

AddressText = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$", to_lower=True)]


class NodeSettings(BaseSettings):
    """Everything an operator can set; ``load_settings`` reads it and names every mistake at once."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True, hide_input_in_errors=False)

    runner_market_join: str = Field(
        "", description="The market's join string, as `parity market init` prints it: address and pins. Recommended."
    )
    runner_server_url: str = Field(
        "http://localhost:8080",
        description="The market's address. Without a join string only a market on this machine is accepted.",
    )
    runner_state_dir: Path = Field(
        Path("~/.parity/node"), description="Folder of the node's keys, journal and results; mode 0700."
    )
    runner_exec_dir: Path | None = Field(
        None,
        description="Folder of the executions. Default: exec in the state folder; as root /var/lib/parity-node/exec.",
    )
    runner_slots: int = Field(
        default_factory=lambda: max(1, os.cpu_count() or 1),
        ge=1,
        le=MAX_SLOTS,
        description="Tasks that run at the same time. Default: the number of processors.",
    )
    runner_heartbeat_interval: Seconds = Field(
        timedelta(seconds=30), description="Time between two heartbeats; the market's own interval wins if shorter."
    )
    runner_execution_timeout: Seconds = Field(
        timedelta(minutes=15), description="Longest wall time of one task, whatever the task asks for."
    )
    runner_max_memory: Size | None = Field(None, description="Most memory of one task. Default: the machine's.")
    runner_max_cpus: float | None = Field(None, gt=0, description="Most processors of one task. Default: all.")
    runner_grace: Seconds = Field(
        timedelta(seconds=30), description="On SIGTERM: how long running tasks may go on before they are handed back."
    )
    runner_shell_enabled: bool = Field(
        default=False, description="Run `command` tasks, in bubblewrap. Off unless you say so."
    )
    runner_disk_floor: Size = Field(
        256 << 20,
        description="Free space that stays on each disk of the node: below it no new task is taken, and the cache goes.",
        validate_default=True,
    )
    runner_disk_ballast: Size = Field(
        16 << 20,
        le=1 << 30,
        description="Room that is kept beside the journal and given back when the disk is full, so that it can be written.",
    )
    runner_ipfs_gateways: Annotated[tuple[str, ...], NoDecode, CommaList] = Field(
        (),
        description="Public trustless IPFS gateways, separated by commas, for what the market has not got; they see CIDs.",
    )
    runner_ipfs_api: str = Field(
        "", description="RPC address of your own Kubo, such as /ip4/127.0.0.1/tcp/5001; asked after the market."
    )
    runner_shards: str = Field(
        "",
        description="Data sets lent to tasks, read-only, by name: mnist=/data/mnist,logs=/srv/logs. Announced by name.",
    )
    runner_cache_max_bytes: Size = Field(
        4 << 30, gt=0, description="Most disk for data sets that tasks used; the least recently used go first."
    )
    runner_image_cache_max_bytes: Size = Field(
        20 << 30,
        gt=0,
        description="Most disk for images that this node brought to its engine; nobody else's are touched.",
    )
    runner_result_max_bytes: Size = Field(
        8 << 30, gt=0, description="Most disk for results that wait for their upload; at it no new task is taken."
    )
    runner_outbox_max_bytes: Size = Field(
        256 << 20, description="Size of the queue of reports; when it is full no new task is taken."
    )
    runner_outbox_max_rows: int = Field(
        10_000, ge=16, le=1_000_000, description="Reports that may wait for a market that does not answer."
    )
    runner_metrics_port: int = Field(
        0, ge=0, le=65_535, description="Port on 127.0.0.1 for /metrics and /health; 0 turns it off."
    )
    runner_hostname: str = Field(
        "", max_length=64, description="Name shown to you when a key is used by two machines. Default: this machine's."
    )
    runner_log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="debug, info, warning, error."
    )
    runner_log_format: str = Field("text", pattern="^(text|json)$", description="text for people, json for programs.")

    runner_policy_file: Path | None = Field(
        None,
        description="Policy file, see docs/how-to/set-a-policy.md. Default: policy.toml in the state folder, if any.",
    )
    runner_policy_kinds: Annotated[frozenset[TaskKind], NoDecode, CommaList] = Field(
        frozenset(TaskKind), description="Kinds of task to take, separated by commas. Default: all that can run here."
    )
    runner_policy_images: Annotated[frozenset[ImagePattern] | None, NoDecode, CommaList] = Field(
        None, description="Images to run, separated by commas: debian:12, debian@sha256:…, ghcr.io/me/*. Default: all."
    )
    runner_policy_domains: Annotated[frozenset[DomainPattern] | None, NoDecode, CommaList] = Field(
        None,
        description="Hosts that tasks may reach, separated by commas: pypi.org, *.example.org. Default: none.",
    )
    runner_policy_max_input: Size | None = Field(None, description="Most input data of one task.")
    runner_policy_min_reward: Tokens = Field(0, description="Least reward of one task, in tokens such as 0.25.")
    runner_policy_min_reward_per_hour: Tokens = Field(
        0, description="Least reward of an hour of wall time, in tokens, by the time that a task asks for."
    )
    runner_policy_creators: Annotated[frozenset[AddressText] | None, NoDecode, CommaList] = Field(
        None, description="Addresses of the only submitters to work for, separated by commas. Default: everybody."
    )

    runner_docker_enabled: str = Field(
        "auto",
        pattern="^(auto|true|false)$",
        description="Run `docker` tasks: auto when an engine answers at DOCKER_HOST (or its usual socket) and a trial passes.",
    )
    runner_docker_cpu_limit: float = Field(1.0, gt=0, description="Most processors of one Docker task.")
    runner_docker_memory_limit: Size = Field(2 << 30, description="Most memory of one Docker task.")
    runner_docker_timeout: Seconds = Field(
        timedelta(seconds=60),
        description="Longest time of one operation of the Docker engine; of a pull, between two signs of life.",
    )
    runner_docker_max_image: Size = Field(
        8 << 30, description="Largest image: what it takes in its registry, or the layers of an archive."
    )
    runner_docker_local_images: Annotated[tuple[str, ...], NoDecode, CommaList] = Field(
        (),
        description="Images of your own engine that tasks may use by name, such as `me/*`, separated by commas. Default: none; images come from their registry or with the task.",
    )
    runner_docker_gpus: Annotated[tuple[str, ...], NoDecode, CommaList] = Field(
        (),
        description="Device ids (or MIG ids) of the GPUs that Docker tasks may use, separated by commas. Default: none.",
    )
    runner_webhook_port: int = Field(
        8081,
        ge=0,
        le=65_535,
        description="Port of the wake-up webhook. Accepted for the Parity runner's sake; not used.",
    )
    runner_tunnel_enabled: bool = Field(default=False, description="Accepted for the Parity runner's sake; not used.")
    runner_tunnel_type: str = Field("bore", description="Accepted for the Parity runner's sake; not used.")
    runner_tunnel_server_url: str = Field("bore.pub", description="Accepted for the Parity runner's sake; not used.")
    runner_tunnel_port: int = Field(0, ge=0, le=65_535, description="Accepted for the Parity runner's sake; not used.")
    runner_tunnel_secret: SecretStr = Field(
        SecretStr(""), description="Accepted for the Parity runner's sake; not used."
    )

    blockchain_rpc: str = Field("", description="JSON-RPC address of the chain. Default: what the market names.")
    blockchain_chain_id: int | None = Field(
        None, ge=1, description="The chain's id. When set, a market on another chain is refused."
    )
    blockchain_token_address: str = Field(
        "", pattern="^(0x[0-9a-fA-F]{40})?$", description="When set, a market with another token is refused."
    )
    blockchain_stake_wallet_address: str = Field(
        "", pattern="^(0x[0-9a-fA-F]{40})?$", description="The vault. When set, a market with another one is refused."
    )
    blockchain_token_symbol: str = Field("", max_length=32, description="The token's symbol, for display.")

    @model_validator(mode="after")
    def _market_is_reachable_safely(self) -> NodeSettings:
        for name, parse, value in (
            ("RUNNER_MARKET_JOIN", parse_join, self.runner_market_join),
            ("RUNNER_SERVER_URL", parse_market_url, self.runner_server_url),
        ):
            try:
                if value:
                    parse(value)
            except InvalidInput as exc:
                raise ValueError(f"{name}: {exc.message}") from exc
        return self

    @field_validator("runner_ipfs_gateways")
    @classmethod
    def _gateways_are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        from parity_blobs.gateways import parse_gateways  # brings httpx, which most commands do not need

        try:
            parse_gateways(addresses)
        except ConfigInvalid as exc:
            raise ValueError("; ".join(exc.problems)) from exc
        return addresses

    @field_validator("runner_ipfs_api")
    @classmethod
    def _api_is_an_address(cls, text: str) -> str:
        if text:
            from parity_blobs.kubo_rpc import parse_api

            try:
                parse_api(text)
            except ConfigInvalid as exc:
                raise ValueError("; ".join(exc.problems)) from exc
        return text

    @field_validator("runner_shards")
    @classmethod
    def _shards_are_pairs(cls, text: str) -> str:
        parse_shards(text)
        return text

    def shards(self) -> dict[str, Path]:
        """Return the operator's data sets by name."""
        return parse_shards(self.runner_shards)

    def join(self) -> JoinString | None:
        """Return the market that is pinned by the settings, or None when only a loopback address is set."""
        return parse_join(self.runner_market_join) if self.runner_market_join else None

    def market_url(self) -> str:
        """Return the market's address.

        Raises:
            ConfigInvalid: It is on another machine and nothing pins it.
        """
        join = self.join()
        if join is not None:
            return join.url
        url = parse_market_url(self.runner_server_url)
        host = urlsplit(url).hostname or ""
        if not is_loopback(host):
            raise ConfigInvalid(
                [
                    f"RUNNER_MARKET_JOIN is missing: a market on another machine ({url}) must be pinned by its join string"
                ]
            )
        return url

    def state_dir(self) -> Path:
        """Return the state folder's absolute path."""
        return self.runner_state_dir.expanduser().absolute()

    def policy(self) -> Policy:
        """Return what the settings alone limit; ``OperatorPolicy`` joins it with the policy file."""
        images, domains = self.runner_policy_images, self.runner_policy_domains
        return Policy(
            images=frozenset() if images is None else frozenset({images}),
            domains=frozenset() if domains is None else frozenset({domains}),
            kinds=self.runner_policy_kinds,
            max_wall_time_s=self.runner_execution_timeout.total_seconds(),
            max_memory_bytes=self.runner_max_memory,
            max_cpus=self.runner_max_cpus,
            max_input_bytes=self.runner_policy_max_input,
            min_reward=self.runner_policy_min_reward,
            min_reward_per_hour=self.runner_policy_min_reward_per_hour,
            creators=self.runner_policy_creators,
        )


def load_settings(path: Path | None = None, **overrides: Any) -> NodeSettings:
    """Read the settings; as ``parity_protocol.settings.load``."""
    return reading.load(NodeSettings, path, **overrides)
