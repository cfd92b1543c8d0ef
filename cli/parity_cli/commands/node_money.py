"""``parity node stake | unstake | withdraw | balance``: the owner's transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.bridge import run_async
from parity_cli.commands.node_setup import config_option
from parity_cli.lazy import Command
from parity_cli.node_keys import NodeIdentity, adopt_operator, identity_of, next_operator, owner_wallet
from parity_cli.node_place import node_settings
from parity_cli.output import Output, pass_output
from parity_cli.secrets_input import passphrase_option
from parity_cli.transactions import (
    Consent,
    amount_option,
    describe,
    parse_amount,
    transact,
    transaction_options,
    unbonding_text,
)
from parity_protocol.errors import ConfigInvalid, Forbidden, NotFound, ParityError, Unprocessable

if TYPE_CHECKING:
    from parity_client import Client
    from parity_contracts.chain.base import AccountState
    from parity_contracts.chain.calls import Call
    from parity_contracts.chain.web3_chain import Web3Chain
    from parity_node.settings import NodeSettings

__all__ = ["NodeChain", "balance", "open_node_chain", "replace_operator", "stake", "unstake", "withdraw"]


node_option = click.option(
    "--node", "node_id", metavar="ID", help="Another node of this owner, such as one whose machine is lost."
)


@dataclass(frozen=True, slots=True)
class NodeChain:
    """A node, its market and its chain."""

    identity: NodeIdentity
    client: Client
    chain: Web3Chain


@asynccontextmanager
async def open_market(settings: NodeSettings) -> AsyncIterator[Client]:
    """Connect to the node's market, without signing in.

    Raises:
        ConfigInvalid: No market is pinned.
    """
    from parity_client import Client

    join = settings.join()
    if join is None:
        raise ConfigInvalid(["RUNNER_MARKET_JOIN is missing: run `parity config use JOIN` or `parity node init`"])
    async with Client(join) as client:
        yield client


@asynccontextmanager
async def open_node_chain(settings: NodeSettings) -> AsyncIterator[NodeChain]:
    """Connect to the node's market and its chain."""
    from parity_client import Home, money

    identity = identity_of(settings, Home())
    async with open_market(settings) as client:
        chain = await money.connect(client.document, settings.blockchain_rpc)
        try:
            yield NodeChain(identity, client, chain)
        finally:
            await chain.aclose()


Plan = Callable[[NodeChain, "AccountState"], Awaitable[tuple[str, "list[Call]"]]]


def _transaction(
    out: Output,
    plan: Plan,
    *,
    next_step: str,
    yes: bool,
    dry_run: bool,
    passphrase_file: Path | None,
    config_path: Path | None,
    done: Callable[[], None] = lambda: None,
    node_id: str | None = None,
) -> None:
    from parity_client import Home
    from parity_protocol.ids import checked_node_id

    settings = node_settings(config_path)

    async def act() -> dict[str, Any]:
        async with open_node_chain(settings) as opened:
            node = opened
            if node_id is not None:
                node = replace(opened, identity=replace(opened.identity, node_id=checked_node_id(node_id)))
            account = await node.chain.account(node.identity.node_id)
            if account.exists and account.owner != node.identity.owner:
                raise Forbidden(
                    f"the chain names {account.owner} as this node's owner, the wallet here is {node.identity.owner}",
                    hint="Use the machine or the keystore that staked first.",
                )
            action, calls = await plan(node, account)
            wallet = owner_wallet(Home(), passphrase_file)
            return await transact(out, node.chain, calls, wallet, action=action, consent=Consent(yes, dry_run))

    document = run_async(act)
    sent = document["transactions"]
    if sent:
        done()
    out.emit(document, f"done in block {sent[-1]['block']}: {sent[-1]['hash']}\nnext: {next_step}" if sent else None)


@click.command(
    cls=Command,
    short_help="Bond tokens, so that the node gets work.",
    example="""
    parity node stake --amount 10
    parity node stake --amount 10 --dry-run
    """,
)
@amount_option
@transaction_options
@passphrase_option
@config_option
@pass_output
def stake(out: Output, amount: str, **common: Any) -> None:
    """Move tokens from the owner into the node's bond. The first stake also names operator and payout on chain.

    A bond leaves only by `parity node unstake` and the unbonding time; the operator key cannot touch it.
    """

    async def plan(node: NodeChain, account: AccountState) -> tuple[str, list[Call]]:
        from parity_contracts.chain.calls import SetOperator, SetPayout, Stake

        identity, value = node.identity, parse_amount(amount, node.chain.deployment)
        first = identity.operator if account.operator is None else None
        calls: list[Call] = [Stake(value, identity.node_id, identity.owner, first)]
        if account.operator not in (None, identity.operator):
            out.warn(f"the chain names the operator {account.operator}; it is replaced by {identity.operator}")
            calls.append(SetOperator(identity.node_id, identity.operator))
        if identity.payout != (account.payout or identity.owner):
            calls.append(SetPayout(identity.node_id, identity.payout))
        return f"stake {describe(value, node.chain.deployment)} for node {identity.node_id}", calls

    _transaction(out, plan, next_step="parity node run", **common)


def replace_operator(
    out: Output, *, yes: bool, dry_run: bool, passphrase_file: Path | None, config_path: Path | None
) -> None:
    """Give the node a new operator key: named on chain by the owner first, then used here."""
    settings = node_settings(config_path)
    state_dir = settings.state_dir()
    key = next_operator(state_dir)

    async def plan(node: NodeChain, account: AccountState) -> tuple[str, list[Call]]:
        from parity_contracts.chain.calls import SetOperator

        if not account.exists:
            raise NotFound(
                "this node has not staked yet, so the chain names no operator", hint="`parity node stake` names it."
            )
        return f"make {key.address} the operator of node {node.identity.node_id}", [
            SetOperator(node.identity.node_id, key.address)
        ]

    def done() -> None:
        adopt_operator(state_dir, key)
        out.say(f"operator {key.address} in {state_dir}; restart the node to use it")

    _transaction(
        out,
        plan,
        next_step="parity node drain, then parity node run",
        yes=yes,
        dry_run=dry_run,
        passphrase_file=passphrase_file,
        config_path=config_path,
        done=done,
    )


@click.command(
    cls=Command,
    short_help="Start taking the bond back.",
    example="""
    parity node unstake --amount 10
    parity node unstake --cancel
    """,
)
@click.option("--amount", metavar="TOKENS", help="In whole tokens.")
@click.option("--cancel", is_flag=True, help="Put everything that is unbonding back into the bond.")
@node_option
@transaction_options
@passphrase_option
@config_option
@pass_output
def unstake(out: Output, amount: str | None, cancel: bool, **common: Any) -> None:
    """Start the unbonding time of a part of the bond. Another request starts the time anew for all of it."""
    if (amount is None) != cancel:
        raise click.UsageError("give exactly one of --amount and --cancel")

    async def plan(node: NodeChain, account: AccountState) -> tuple[str, list[Call]]:
        from parity_contracts.chain.calls import CancelUnstake, RequestUnstake

        deployment, node_id = node.chain.deployment, node.identity.node_id
        if amount is None:
            return "put what is unbonding back into the bond", [CancelUnstake(node_id)]
        value = parse_amount(amount, deployment)
        if value > account.bond:
            raise Unprocessable(f"the bond is {describe(account.bond, deployment)}")
        text = f"unstake {describe(value, deployment)}, ready after {unbonding_text(deployment)}"
        return text, [RequestUnstake(node_id, value)]

    _transaction(out, plan, next_step="parity node balance", **common)


@click.command(
    cls=Command,
    short_help="Pay earnings and finished unbonding out.",
    example="""
    parity node withdraw --all
    parity node withdraw --amount 2.5
    """,
)
@click.option("--amount", metavar="TOKENS", help="In whole tokens.")
@click.option("--all", "everything", is_flag=True, help="All that can be paid out now.")
@node_option
@transaction_options
@passphrase_option
@config_option
@pass_output
def withdraw(out: Output, amount: str | None, everything: bool, **common: Any) -> None:
    """Pay out to the payout address: earnings first, then what has finished unbonding."""
    if (amount is None) != everything:
        raise click.UsageError("give exactly one of --amount and --all")

    async def plan(node: NodeChain, account: AccountState) -> tuple[str, list[Call]]:
        from parity_contracts.chain.calls import Withdraw

        deployment = node.chain.deployment
        head = await node.chain.head()
        is_ready = account.unbonding_ready_at is not None and account.unbonding_ready_at <= head.time
        free = account.credit + (account.unbonding if is_ready else 0)
        value = free if amount is None else parse_amount(amount, deployment)
        if value > free or free == 0:
            later = "" if is_ready or not account.unbonding else f"; {_later(account, node)}"
            raise Unprocessable(f"{describe(free, deployment)} can be paid out now{later}")
        return f"withdraw {describe(value, deployment)} to {account.payout}", [Withdraw(node.identity.node_id, value)]

    _transaction(out, plan, next_step="parity node balance", **common)


def _later(account: AccountState, node: NodeChain) -> str:
    from parity_protocol.quantities import format_tokens

    deployment = node.chain.deployment
    amount = format_tokens(account.unbonding, decimals=deployment.decimals)
    return f"{amount} {deployment.symbol} more from {account.unbonding_ready_at} on"


@click.command(
    cls=Command,
    short_help="Show bond, earnings and the owner's money.",
    example="parity node balance\nparity node balance --json",
)
@config_option
@pass_output
def balance(out: Output, config_path: Path | None) -> None:
    """Show the bond, what is unbonding, earnings, the owner's tokens and ether. A part that fails hides no other."""
    from parity_client import Home

    settings = node_settings(config_path)
    identity = identity_of(settings, Home())
    document: dict[str, Any] = identity.to_json()
    run_async(lambda: look_at_money(settings, document))
    from parity_cli.screens.node import balance_screen

    out.emit(document, lambda: balance_screen(document))


async def look_at_money(settings: NodeSettings, document: dict[str, Any]) -> None:
    """Add the sections ``terms``, ``chain`` and ``market`` to ``document``; one that fails holds its ``error``."""
    sections = ("terms", "chain", "market")
    node_id = document["node_id"]
    try:
        async with open_market(settings) as client:
            terms = client.document
            document["terms"] = {
                "name": terms.name,
                "url": client.join.url,
                "min_bond": str(terms.min_bond),
                "symbol": terms.token_symbol,
                "decimals": terms.token_decimals,
            }
            try:
                document["chain"] = await _on_chain(client, settings, document)
            except ParityError as exc:
                document["chain"] = {"error": exc.message}
            try:
                document["market"] = (await client.node(node_id)).model_dump(mode="json", exclude={"capability"})
            except ParityError as exc:
                document["market"] = {"error": exc.message}
    except ParityError as exc:
        for section in sections:
            document.setdefault(section, {"error": exc.message})


async def _on_chain(client: Client, settings: NodeSettings, document: dict[str, Any]) -> dict[str, Any]:
    from parity_client import money

    chain = await money.connect(client.document, settings.blockchain_rpc)
    try:
        account = await chain.account(document["node_id"])
        holdings = await chain.holdings(document["owner"], at=account.block)
    finally:
        await chain.aclose()
    return account_json(account) | {"owner_wei": str(holdings.wei), "owner_tokens": str(holdings.tokens)}


def account_json(account: AccountState) -> dict[str, Any]:
    """Return an account of the vault as JSON values."""
    ready = account.unbonding_ready_at
    return {
        "block": account.block,
        "exists": account.exists,
        "bond": str(account.bond),
        "unbonding": str(account.unbonding),
        "unbonding_ready_at": ready.isoformat() if ready else None,
        "unbonding_ready": ready is not None and ready <= datetime.now(UTC),
        "credit": str(account.credit),
        "owner": account.owner,
        "payout": account.payout,
        "operator": account.operator,
    }
