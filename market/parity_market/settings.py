"""The market's settings: the Parity server's keys verbatim where they mean the same, ours beside them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from parity_protocol import settings as reading
from parity_protocol.errors import InvalidInput
from parity_protocol.join import is_loopback, parse_market_url
from parity_protocol.settings import CommaList, Seconds, Size, Tokens

__all__ = ["MarketSettings", "load_settings"]

_ADDRESS = "^(0x[0-9a-fA-F]{40})?$"
_FLOWER_ADDRESS = r"^(\[[0-9a-fA-F:]{2,45}\]|[A-Za-z0-9.-]{1,253})(:[0-9]{1,5}-[0-9]{1,5})?$"


class MarketSettings(BaseSettings):
    """Everything that whoever runs a market can set."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True)

    server_host: str = Field("127.0.0.1", description="Address that the market listens on.")
    server_port: int = Field(8080, ge=0, le=65_535, description="Port that the market listens on; 0 takes a free one.")
    market_state_dir: Path = Field(
        Path("~/.parity/market"), description="Folder of the market's keys, database and blobs; mode 0700."
    )
    market_public_url: str = Field(
        "",
        description="Address by which nodes and submitters reach the market; request signatures cover its host. "
        "Default: http://SERVER_HOST:SERVER_PORT, which only works on this machine.",
    )
    market_name: str = Field("parity market", max_length=64, description="Name shown to people.")
    market_tls: bool = Field(
        default=True,
        description="Serve TLS with the certificate in the state folder. Off only behind a proxy or on loopback.",
    )
    market_min_bond: Tokens = Field(
        10 * 10**18, description="Tokens that a node must have bonded to get work.", validate_default=False
    )
    market_lease_ttl: Seconds = Field(
        timedelta(seconds=30), description="How long a lease lasts without renewal; nodes renew at a third of it."
    )
    market_heartbeat: Seconds = Field(timedelta(seconds=10), description="Time between a node's heartbeats.")
    market_confirmations: int = Field(1, ge=1, le=1000, description="Blocks after which a payout counts as final.")
    market_payout_interval: Seconds = Field(
        timedelta(seconds=5), description="Time between two batches of payouts; all that is owed goes in one."
    )
    market_chain_grace: Seconds = Field(
        timedelta(minutes=10), description="How long bonds and escrow count as last seen while the chain is away."
    )
    market_unbonding: Seconds = Field(
        timedelta(days=7), description="Unbonding time of the vault that `market init` deploys, if it deploys one."
    )
    market_storage: Size = Field(10 << 30, description="Most bytes of blobs kept.")
    market_upload_quota: Size = Field(2 << 30, description="Most bytes that one identity may have stored.")
    market_upload_max: Size = Field(1 << 30, description="Most bytes of one upload.")
    market_max_connections: int = Field(2_000, ge=16, le=100_000, description="Open connections at most.")
    market_gateways: Annotated[tuple[str, ...], NoDecode, CommaList] = Field(
        (), description="Trustless IPFS gateways for data that submitters name but did not upload, comma-separated."
    )
    market_flower_address: str = Field(
        "127.0.0.1",
        pattern=_FLOWER_ADDRESS,
        description="Host under which nodes reach the SuperLinks of sessions with engine: flower, one port a session; "
        "with a range of ports where a firewall needs one, such as fl.example.org:9400-9499.",
    )
    market_legacy_parity: Literal["off", "loopback", "on"] = Field(
        "loopback",
        description="Who may use the old Parity network's routes without a signature: nobody, programs on this machine, "
        "or anybody. Devices are named by X-Device-ID, bound to their first wallet, and never paid.",
    )
    market_flower_sessions: int = Field(
        8, ge=0, le=1_000, description="Sessions with engine: flower at once; each has a SuperLink of some 260 MB."
    )
    market_log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level logged.")
    market_log_format: str = Field("text", pattern="^(text|json)$", description="text for people, json for programs.")

    blockchain_rpc: str = Field("http://127.0.0.1:8545", description="JSON-RPC address of the chain.")
    blockchain_chain_id: int | None = Field(None, ge=1, description="When set, another chain is refused.")
    blockchain_token_address: str = Field("", pattern=_ADDRESS, description="The ERC-20 token; empty deploys DevToken.")
    blockchain_stake_wallet_address: str = Field(
        "", pattern=_ADDRESS, description="The vault; empty lets `market init` deploy one."
    )

    @model_validator(mode="after")
    def _is_reachable_safely(self) -> MarketSettings:
        if self.market_public_url:
            try:
                parse_market_url(self.market_public_url)
            except InvalidInput as exc:
                raise ValueError(f"MARKET_PUBLIC_URL: {exc.message}") from exc
        elif not is_loopback(self.server_host):
            raise ValueError(f"MARKET_PUBLIC_URL is missing: others cannot reach {self.server_host} by that name")
        return self

    def state_dir(self) -> Path:
        """Return the state folder's absolute path."""
        return self.market_state_dir.expanduser().absolute()

    def serves_tls(self) -> bool:
        """Return whether the market itself ends TLS."""
        return self.market_tls and not self._is_plain()

    def public_url(self, port: int) -> str:
        """Return the address that others use, given the port that is listened on."""
        if self.market_public_url:
            return parse_market_url(self.market_public_url)
        host = f"[{self.server_host}]" if ":" in self.server_host else self.server_host
        return f"http://{host}:{port}"

    def authority(self, port: int) -> str:
        """Return the host[:port] that request signatures cover."""
        return urlsplit(self.public_url(port)).netloc.lower()

    def _is_plain(self) -> bool:
        return urlsplit(self.market_public_url).scheme in ("", "http")


def load_settings(path: Path | None = None, **overrides: Any) -> MarketSettings:
    """Read the settings; as ``parity_protocol.settings.load``."""
    return reading.load(MarketSettings, path, **overrides)
