"""What ``parity config check`` looks at: each check tells its result, its cause and the next step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from parity_client import Client, Home
from parity_protocol.errors import ConfigInvalid, ParityError

if TYPE_CHECKING:
    from parity_client import Config

__all__ = ["Check", "chain_in_words", "clock_in_words", "run_checks"]

MAX_SKEW_S = 60.0  # by which request signatures may be off


@dataclass(frozen=True, slots=True)
class Check:
    """One check's outcome."""

    name: str
    ok: bool
    result: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


async def run_checks(home: Home, market: str | None) -> list[Check]:
    """Run every check; one that fails stops only those that need what it checks."""
    return [each async for each in _checks(home, market)]


async def _checks(home: Home, market: str | None) -> AsyncIterator[Check]:
    try:
        config = home.load()
        name, entry = config.market(market)
    except ParityError as exc:
        yield _failed("config", exc)
        return
    yield Check("config", ok=True, result=f"{home.config_file}, market {name}")
    yield await _try("wallet", lambda: _wallet(home, config))
    yield await _try("node.settings", _node_settings)
    yield await _try("market.settings", _market_settings)
    client = Client(entry.parsed())
    try:
        async with client:
            yield Check(
                "market", ok=True, result=f"{client.document.name} {client.document.version}, identity as pinned"
            )
            yield await _try("clock", lambda: clock_in_words(client))
            yield await _try("chain", lambda: chain_in_words(client, entry.rpc))
    except ParityError as exc:
        yield _failed("market", exc)


async def _try(name: str, look: Callable[[], Awaitable[str]]) -> Check:
    try:
        return Check(name, ok=True, result=await look())
    except ParityError as exc:
        return _failed(name, exc)


def _failed(name: str, error: ParityError) -> Check:
    text = "; ".join(error.problems) if isinstance(error, ConfigInvalid) else error.message
    return Check(name, ok=False, result=text, fix=error.hint())


async def _wallet(home: Home, config: Config) -> str:
    from parity_client import Wallet

    known = home.wallets()
    if config.wallet not in known and config.node.wallet in known:
        return f"{config.node.wallet}, the node's owner; to submit work from here too: parity wallet create"
    path = home.existing_wallet(config.wallet)
    if path.stat().st_mode & 0o077:
        raise ConfigInvalid([f"{path}: others can read it; run `chmod 600` on it"])
    return f"{config.wallet}: {Wallet.of_keystore(path, str).address}"


async def _node_settings() -> str:
    from parity_cli.node_place import node_settings

    return f"node settings valid, state in {node_settings().state_dir()}"


async def _market_settings() -> str:
    from parity_cli.market_place import market_settings

    return f"market settings valid, state in {market_settings().state_dir()}"


async def clock_in_words(client: Client) -> str:
    """Return how far this machine's clock is from the market's.

    Raises:
        ConfigInvalid: Further than signatures may be off.
    """
    status = await client.status()
    apart = (datetime.now(UTC) - datetime.fromisoformat(status.time)).total_seconds()
    if abs(apart) > MAX_SKEW_S:
        raise ConfigInvalid(
            [f"this clock is {apart:+.0f} s from the market's; set it, e.g. `timedatectl set-ntp true`"]
        )
    return f"{apart:+.1f} s from the market's"


async def chain_in_words(client: Client, rpc: str) -> str:
    """Return which chain answers, checked against what the market pinned."""
    from parity_client import money

    chain = await money.connect(client.document, rpc)
    try:
        head = await chain.head()
    finally:
        await chain.aclose()
    return f"chain {chain.deployment.chain_id} at block {head.number}, vault as pinned"
