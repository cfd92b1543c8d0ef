"""``parity market init``: keys, certificate, contracts and the join string; safe to repeat."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parity_contracts.chain.web3_chain import Web3Chain
from parity_contracts.deploy import deploy, faucet
from parity_contracts.deployment import Deployment
from parity_contracts.discover import discover, ether_of
from parity_contracts.files import write_file
from parity_market.identity import Identity, sign_document
from parity_market.keys import MarketKeys, make_certificate, make_keys
from parity_market.settings import MarketSettings
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import ChainUnavailable, ConfigInvalid
from parity_protocol.ids import Address
from parity_protocol.join import JoinString

__all__ = ["Initialised", "initialise", "load_deployment"]

DEPLOYMENT = "deployment.json"
FUNDING_TIMEOUT_S = 30.0  # for the embedded chain's faucet to reach the transaction key
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was made, for the summary."""

    identity: Identity
    deployment: Deployment
    join: JoinString
    spender: Address
    transaction: Address
    deployed: bool


async def initialise(
    settings: MarketSettings,
    *,
    version: str,
    progress: Callable[[str], None] = lambda _: None,
    clock: Clock | None = None,
) -> Initialised:
    """Make whatever of the market's state is missing.

    Args:
        settings: As ``load_settings`` gave them.
        version: This program's, for the signed document.
        progress: Told each step in words.
        clock: Source of time.

    Raises:
        ConfigInvalid: The identity key is away, the port is not fixed, or the configured vault is not usable.
        ChainUnavailable: The chain does not answer, or the transaction key has no ether to deploy with.
    """
    clock = clock or SystemClock()
    folder = settings.state_dir()
    if not settings.market_public_url and settings.server_port == 0:
        raise ConfigInvalid(["SERVER_PORT=0: the join string needs a fixed port, or set MARKET_PUBLIC_URL"])
    keys = make_keys(folder)
    progress(f"keys in {folder}")
    if settings.serves_tls():
        make_certificate(folder, settings.market_public_url, now=clock.now())
        progress("TLS certificate")
    deployment, deployed = await _deployment(settings, keys, progress, clock)
    if keys.identity is None:
        raise ConfigInvalid(["identity.key is not here: bring it back to sign the market's document anew"])
    identity = sign_document(
        keys.identity, keys, settings, deployment, port=settings.server_port, version=version, now=clock.now()
    )
    progress("signed document")
    return Initialised(
        identity,
        deployment,
        identity.join(settings, settings.server_port),
        keys.spender.address,
        keys.transaction.address,
        deployed,
    )


def load_deployment(folder: Path) -> Deployment:
    """Return the contracts that this market was initialised with.

    Raises:
        ConfigInvalid: There are none, or the file is not one of ours.
    """
    path = folder / DEPLOYMENT
    try:
        return Deployment.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError as exc:
        raise ConfigInvalid([f"{path} is missing: run `parity market init`"]) from exc
    except ValueError as exc:
        raise ConfigInvalid([f"{path} is not a deployment: {exc}"]) from exc


async def _deployment(
    settings: MarketSettings, keys: MarketKeys, progress: Callable[[str], None], clock: Clock
) -> tuple[Deployment, bool]:
    folder = settings.state_dir()
    if (folder / DEPLOYMENT).exists():
        known = load_deployment(folder)
        chain = await Web3Chain.connect(settings.blockchain_rpc, known)
        await chain.aclose()
        progress(f"vault {known.vault} on chain {known.chain_id}")
        return known, False
    if settings.blockchain_stake_wallet_address:
        made = await discover(settings.blockchain_rpc, Address(settings.blockchain_stake_wallet_address.lower()))
        deployed = False
    else:
        await _fund(settings.blockchain_rpc, keys.transaction.address, progress, clock)
        progress("deploying contracts")
        token = Address(settings.blockchain_token_address.lower()) if settings.blockchain_token_address else None
        made = await deploy(
            settings.blockchain_rpc,
            keys.transaction,
            unbonding_s=int(settings.market_unbonding.total_seconds()),
            token=token,
        )
        deployed = True
    if settings.blockchain_chain_id not in (None, made.chain_id):
        raise ConfigInvalid([f"BLOCKCHAIN_CHAIN_ID={settings.blockchain_chain_id}: the chain's id is {made.chain_id}"])
    write_file(folder / DEPLOYMENT, json.dumps(made.to_json(), indent=2).encode() + b"\n", mode=0o644)
    progress(f"vault {made.vault} on chain {made.chain_id}")
    return made, deployed


async def _fund(rpc_url: str, address: Address, progress: Callable[[str], None], clock: Clock) -> None:
    """Give the transaction key ether from the embedded chain's faucet; elsewhere its owner has to."""
    if await ether_of(rpc_url, address) > 0:
        return
    try:
        await faucet(rpc_url, address)
    except ChainUnavailable as exc:
        raise ChainUnavailable(
            f"the transaction key {address} has no ether on {rpc_url}",
            hint=f"Send ether to {address}, or use the embedded chain: `parity chain serve`.",
        ) from exc
    progress("gas money from the embedded chain's faucet")
    deadline = clock.monotonic() + FUNDING_TIMEOUT_S
    while await ether_of(rpc_url, address) == 0:
        if clock.monotonic() >= deadline:
            raise ChainUnavailable(f"the faucet's ether did not arrive within {FUNDING_TIMEOUT_S:g} s")
        await clock.sleep(_POLL_S)
