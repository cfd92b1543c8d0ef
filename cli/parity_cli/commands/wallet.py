"""``parity wallet``: a submitter's key, and the money set aside for a market."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from parity_cli.bridge import run_async
from parity_cli.lazy import Group
from parity_cli.node_keys import checked_address
from parity_cli.output import Output, pass_output
from parity_cli.place import client_of, market_option, open_chain, rpc_of, stored_wallet, wallet_option
from parity_cli.secrets_input import KeyChoice, key_options, new_passphrase, passphrase_option, read_key
from parity_cli.transactions import (
    Consent,
    amount_option,
    describe,
    parse_amount,
    transact,
    transaction_options,
    unbonding_text,
)
from parity_protocol.errors import Conflict, ParityError, Unprocessable

if TYPE_CHECKING:
    from parity_client import Client, Config
    from parity_contracts.chain.calls import Call
    from parity_contracts.chain.web3_chain import Web3Chain
    from parity_protocol.ids import Address

FAUCET_TOKENS = "1000"
FAUCET_WITHIN_S = 60.0
POLL_S = 0.2

F = TypeVar("F", bound=Callable[..., Any])
Planned = tuple[str, "list[Call]"]  # what it is in words, and what to call


def _moves_money(command: F) -> F:
    """Add what every command takes that sends transactions, and give it its ``Output`` first."""
    found = pass_output(command)
    for option in (passphrase_option, wallet_option, market_option, transaction_options):
        found = option(found)
    return cast("F", found)


@click.group(cls=Group, short_help="A submitter's key and money.")
def wallet() -> None:
    """A submitter's key and money.

    deposit moves tokens into the vault as credit; allow sets credit aside for one market, which is what your tasks
    are paid from; release takes it back after the unbonding time; withdraw pays credit out.
    """


@wallet.command(
    short_help="Make a wallet, or bring a key.",
    example="""
    parity wallet create
    parity wallet create --name work --key-file key.txt
    """,
)
@click.option("--name", default="default", show_default=True, help="What to call it.")
@key_options
@passphrase_option
@pass_output
def create(
    out: Output, name: str, generate: bool, key_file: str | None, private_key: str | None, passphrase_file: Path | None
) -> None:
    """Write a new encrypted keystore (v3, mode 0600), with a new key unless you give one."""
    from parity_client import Home

    home = Home()
    path = home.wallet_file(name)
    if path.exists():
        raise Conflict(f"{path} is there already; a keystore is never overwritten", hint="Choose another --name.")
    choice = KeyChoice(generate=generate, key_file=key_file, private_key=private_key)
    key = read_key(out, choice, generate_by_default=True)
    passphrase = new_passphrase(passphrase_file)
    from parity_contracts import keystore

    address = keystore.create(path, key, passphrase)
    settings = home.load()
    if not (home.path / "wallets" / f"{settings.wallet}.json").exists() or settings.wallet == name:
        home.save(settings.model_copy(update={"wallet": name}))
    out.emit(
        {"name": name, "address": address, "keystore": str(path)},
        f"{address}\nkeystore {path} (encrypted): keep a copy and its passphrase, nobody can restore them\n"
        f"{_first_steps(settings, '' if home.load().wallet == name else name)}",
    )


def _of(wallet: str | None) -> str:
    return f" --wallet {wallet}" if wallet else ""


def _first_steps(settings: Config, wallet: str) -> str:
    """Return what comes before a task can be paid for, as far as this machine knows; no ``wallet`` is the one in use."""
    if settings.current is None:
        return "next: parity config use 'JOIN', the string that `parity market serve` prints"
    of = _of(wallet)
    deposit = f"parity wallet deposit --amount 10{of}, then parity wallet allow --amount 10{of}"
    return f"on a development chain first: parity wallet faucet{of}\nnext: {deposit}"


@wallet.command(
    short_help="Get play money on a development chain.",
    example="""
    parity wallet faucet
    parity wallet faucet --to 0x71c7656ec7ab88b098defb751b7401b5f6d8976f --amount 50
    """,
)
@click.option("--amount", default=FAUCET_TOKENS, show_default=True, metavar="TOKENS", help="In whole tokens.")
@click.option("--to", metavar="ADDRESS", help="Who gets it. Default: your wallet.")
@market_option
@wallet_option
@pass_output
def faucet(out: Output, amount: str, to: str | None, market: str | None, wallet: str | None) -> None:
    """Give an address 100 ether for fees, and tokens. Only development chains have a faucet."""
    from parity_client import Home
    from parity_protocol.quantities import format_tokens, parse_tokens

    address = checked_address(to, field="to") if to else stored_wallet(Home(), wallet, None).address

    async def ask() -> dict[str, Any]:
        async with client_of(market, signs=False) as client, open_chain(client, market) as chain:
            base_units = parse_tokens(amount, decimals=chain.deployment.decimals)
            with out.console.status("waiting for the chain …"):
                await _give(chain, rpc_of(market) or client.document.rpc_hint, address, base_units)
            found = await chain.holdings(address)
            return {
                "address": address,
                "wei": str(found.wei),
                "tokens": str(found.tokens),
                "symbol": chain.deployment.symbol,
                "decimals": chain.deployment.decimals,
            }

    document = run_async(ask)
    tokens = format_tokens(int(document["tokens"]), decimals=document["decimals"])
    has = f"{address} has {tokens} {document['symbol']} and {format_tokens(int(document['wei']))} ether"
    out.emit(document, has if to else f"{has}\nnext: parity wallet deposit --amount 10{_of(wallet)}")


async def _give(chain: Web3Chain, rpc_url: str, address: Address, tokens: int) -> None:
    """Mint through a key of a moment, so that the faucet needs nobody's passphrase."""
    from parity_client import money
    from parity_contracts.chain.calls import Faucet
    from parity_contracts.deploy import faucet as give_ether
    from parity_protocol.clock import SystemClock
    from parity_protocol.errors import ChainUnavailable
    from parity_protocol.signing.keys import EvmKey

    clock, helper = SystemClock(), EvmKey.generate()
    try:
        for each in (address, helper.address):
            await give_ether(rpc_url, each)
    except ChainUnavailable as exc:
        raise Unprocessable(f"the chain at {rpc_url} has no faucet; get tokens and ether from somebody") from exc
    deadline = clock.monotonic() + FAUCET_WITHIN_S
    while (await chain.holdings(helper.address)).wei == 0:
        if clock.monotonic() >= deadline:
            raise ChainUnavailable(f"the faucet's ether did not arrive within {FAUCET_WITHIN_S:g} s")
        await clock.sleep(POLL_S)
    if tokens:
        await money.send(chain, [Faucet(address, tokens)], helper)


@wallet.command(
    short_help="Move tokens into the vault.",
    example="parity wallet deposit --amount 5\nparity wallet deposit --amount 5 --dry-run",
)
@amount_option
@_moves_money
def deposit(out: Output, amount: str, **common: Any) -> None:
    """Move tokens from your address into your account of the vault, as credit."""

    async def plan(client: Client, chain: Web3Chain) -> Planned:
        from parity_contracts.chain.calls import AddFunds

        value = parse_amount(amount, chain.deployment)
        return f"deposit {describe(value, chain.deployment)}", [AddFunds(value, client.address, client.address)]

    _transaction(out, plan, next_step=f"parity wallet allow --amount {amount}{_of(common['wallet'])}", **common)


@wallet.command(short_help="Set credit aside for a market.", example="parity wallet allow --amount 5")
@amount_option
@_moves_money
def allow(out: Output, amount: str, **common: Any) -> None:
    """Set credit aside as escrow of the market in use: your tasks are paid from it, and nothing else can be."""
    from parity_protocol.quantities import format_tokens

    async def plan(client: Client, chain: Web3Chain) -> Planned:
        from parity_contracts.chain.calls import Allow

        value = parse_amount(amount, chain.deployment)
        credit = (await chain.account(client.address)).credit
        if credit < value:
            text = format_tokens(credit, decimals=chain.deployment.decimals)
            raise Unprocessable(
                f"the account has {text} {chain.deployment.symbol} of credit",
                hint="Deposit first: `parity wallet deposit`.",
            )
        spender = client.document.spender
        return f"allow {describe(value, chain.deployment)} to {spender}", [Allow(client.address, spender, value)]

    next_step = f"parity task submit --reward 0.1{_of(common['wallet'])} -- echo hello"
    _transaction(out, plan, next_step=next_step, **common)


@wallet.command(
    short_help="Take escrow back from a market.",
    example="""
    parity wallet release --amount 5
    parity wallet release --finish
    """,
)
@click.option("--amount", metavar="TOKENS", help="Start taking so much back, in whole tokens.")
@click.option("--finish", is_flag=True, help="Move a release whose time is over to your credit.")
@click.option("--cancel", is_flag=True, help="Leave the market what was being taken back.")
@_moves_money
def release(out: Output, amount: str | None, finish: bool, cancel: bool, **common: Any) -> None:
    """Take escrow back. It takes the unbonding time, in which nodes can still draw what they have earned."""
    if sum([amount is not None, finish, cancel]) != 1:
        raise click.UsageError("give exactly one of --amount, --finish and --cancel")

    async def plan(client: Client, chain: Web3Chain) -> Planned:
        from parity_contracts.chain.calls import CancelRelease, FinishRelease, RequestRelease

        who, spender = client.address, client.document.spender
        if amount is not None:
            value = parse_amount(amount, chain.deployment)
            text = f"release {describe(value, chain.deployment)}, ready after {unbonding_text(chain.deployment)}"
            return text, [RequestRelease(who, spender, value)]
        if finish:
            ready = (await chain.escrow(who, spender)).ready_at
            if ready is not None and ready > (await chain.head()).time:
                raise Conflict(f"the unbonding time is not over: it is ready from {ready:%Y-%m-%d %H:%M:%S} UTC on")
            return "finish the release", [FinishRelease(who, spender)]
        return "cancel the release", [CancelRelease(who, spender)]

    _transaction(out, plan, next_step="parity wallet show", **common)


@wallet.command(short_help="Pay credit out.", example="parity wallet withdraw --amount 2.5")
@amount_option
@_moves_money
def withdraw(out: Output, amount: str, **common: Any) -> None:
    """Pay credit out of the vault to your address."""

    async def plan(client: Client, chain: Web3Chain) -> Planned:
        from parity_contracts.chain.calls import Withdraw

        value = parse_amount(amount, chain.deployment)
        credit = (await chain.account(client.address)).credit
        if credit < value:
            raise Unprocessable(
                f"{describe(credit, chain.deployment)} can be paid out now",
                hint="What is set aside for a market is taken back with `parity wallet release`.",
            )
        return f"withdraw {describe(value, chain.deployment)}", [Withdraw(client.address, value)]

    _transaction(out, plan, next_step="parity wallet show", **common)


@wallet.command(short_help="Show keys and money.", example="parity wallet show\nparity wallet show --json")
@market_option
@wallet_option
@passphrase_option
@pass_output
def show(out: Output, market: str | None, wallet: str | None, passphrase_file: Path | None) -> None:
    """Show the wallet, its money on chain, and what the market says of it. A part that fails hides no other."""
    from parity_client import Home

    home = Home()
    config = home.load()
    if market is not None:
        config.market(market)  # a name that was mistyped is not a part that fails
    chosen = wallet or config.wallet
    address = stored_wallet(home, chosen, passphrase_file).address
    document: dict[str, Any] = {"name": chosen, "address": address, "wallets": home.wallets()}

    async def look() -> None:
        client = client_of(market, chosen, passphrase_file=passphrase_file)
        async with client:
            document["market"] = {
                "name": client.document.name,
                "url": client.join.url,
                "spender": client.document.spender,
            }
            document["symbol"], document["decimals"] = client.document.token_symbol, client.document.token_decimals
            document["chain"] = await _part(lambda: _on_chain(client, market))
            document["account"] = await _part(lambda: _at_market(client))

    try:
        run_async(look)
    except ParityError as exc:
        document["error"] = exc.message
    from parity_cli.screens.wallet import wallet_screen

    out.emit(document, lambda: wallet_screen(document))


async def _part(look: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    try:
        return await look()
    except ParityError as exc:
        return {"error": exc.message}


async def _on_chain(client: Client, market: str | None) -> dict[str, Any]:
    async with open_chain(client, market) as chain:
        holdings = await chain.holdings(client.address)
        account = await chain.account(client.address, at=holdings.block)
        escrow = await chain.escrow(client.address, client.document.spender, at=holdings.block)
        return {
            "block": holdings.block,
            "wei": str(holdings.wei),
            "tokens": str(holdings.tokens),
            "allowance": str(holdings.allowance),
            "credit": str(account.credit),
            "escrow": str(escrow.amount),
            "releasing": str(escrow.releasing),
            "release_ready_at": escrow.ready_at.isoformat() if escrow.ready_at else None,
        }


async def _at_market(client: Client) -> dict[str, Any]:
    return (await client.account()).model_dump(mode="json")


def _transaction(
    out: Output,
    plan: Callable[[Client, Web3Chain], Awaitable[Planned]],
    *,
    next_step: str,
    yes: bool,
    dry_run: bool,
    market: str | None,
    wallet: str | None,
    passphrase_file: Path | None,
) -> None:
    async def act() -> dict[str, Any]:
        client = client_of(market, wallet, passphrase_file=passphrase_file)
        async with client, open_chain(client, market) as chain:
            action, calls = await plan(client, chain)
            assert client.wallet is not None
            return await transact(out, chain, calls, client.wallet, action=action, consent=Consent(yes, dry_run))

    document = run_async(act)
    sent = document["transactions"]
    out.emit(document, f"done in block {sent[-1]['block']}: {sent[-1]['hash']}\nnext: {next_step}" if sent else None)
