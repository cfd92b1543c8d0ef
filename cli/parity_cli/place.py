"""Where a command acts: the joined market, the wallet, the chain; and the options that choose them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from parity_cli.bridge import run_async
from parity_cli.output import Output, pass_output
from parity_cli.secrets_input import asks_again, passphrase_asker, passphrase_option

if TYPE_CHECKING:
    from parity_client import Client, Home, Wallet
    from parity_contracts.chain.web3_chain import Web3Chain

__all__ = ["client_of", "market_option", "open_chain", "rpc_of", "stored_wallet", "wallet_option", "with_client"]

F = TypeVar("F", bound=Callable[..., Any])

market_option = click.option("--market", metavar="NAME", help="A joined market. Default: the one in use.")
wallet_option = click.option("--wallet", metavar="NAME", help="A wallet. Default: the one in use.")


def stored_wallet(home: Home, name: str | None, passphrase_file: Path | None) -> Wallet:
    """Return a wallet by name, or the one in use; its passphrase is asked when it must sign.

    Raises:
        NotFound: There is no such wallet.
    """
    from parity_client import Wallet

    chosen = name or home.load().wallet
    return Wallet.of_keystore(
        home.existing_wallet(chosen),
        passphrase_asker(passphrase_file, f"wallet {chosen!r}"),
        asks_person=True,
        again=asks_again(passphrase_file),
    )


def client_of(
    market: str | None, wallet: str | None = None, *, passphrase_file: Path | None = None, signs: bool = True
) -> Client:
    """Return a client of a joined market.

    Args:
        signs: Whether requests are signed by a wallet; without one only public things can be asked.

    Raises:
        ConfigInvalid: No such market was joined.
        NotFound: There is no such wallet.
    """
    from parity_client import Client, Home

    home = Home()
    _, entry = home.load().market(market)
    return Client(entry.parsed(), stored_wallet(home, wallet, passphrase_file) if signs else None, home=home)


def with_client(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """Make a command of an async function that takes (out, client, …): adds the options that choose the client."""

    @market_option
    @wallet_option
    @passphrase_option
    @pass_output
    @wraps(function)
    def command(
        out: Output, market: str | None, wallet: str | None, passphrase_file: Path | None, **arguments: Any
    ) -> Any:
        async def act() -> Any:
            async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
                return await function(out, client, **arguments)

        return run_async(act)

    return command


def rpc_of(market: str | None) -> str:
    """Return the chain's endpoint that this machine should use; empty takes what the market names."""
    from parity_client import Home

    if os.environ.get("BLOCKCHAIN_RPC"):
        return os.environ["BLOCKCHAIN_RPC"]
    return Home().load().market(market)[1].rpc


@asynccontextmanager
async def open_chain(client: Client, market: str | None) -> AsyncIterator[Web3Chain]:
    """Connect to the market's chain; it is checked to be the pinned one.

    Raises:
        ChainUnavailable: It does not answer.
        ConfigInvalid: It is another chain.
    """
    from parity_client import money

    chain = await money.connect(client.document, rpc_of(market))
    try:
        yield chain
    finally:
        await chain.aclose()
