"""Transactions: what they cost and change is shown first, then the person agrees, then they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from parity_cli.output import Output

if TYPE_CHECKING:
    from rich.table import Table

    from parity_client import Wallet
    from parity_contracts.chain.base import Chain
    from parity_contracts.chain.calls import Call
    from parity_contracts.deployment import Deployment
    from parity_protocol.quantities import TokenAmount

__all__ = ["Consent", "amount_option", "describe", "parse_amount", "transact", "transaction_options"]


@dataclass(frozen=True, slots=True)
class Consent:
    """What ``--yes`` and ``--dry-run`` said."""

    yes: bool
    dry_run: bool


def transaction_options(function: Any) -> Any:
    """Add ``--yes`` and ``--dry-run``."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Show what it would cost and do; send nothing."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
    ):
        function = option(function)
    return function


amount_option = click.option("--amount", required=True, metavar="TOKENS", help="In whole tokens, exactly: 10 or 0.25.")


def parse_amount(text: str, deployment: Deployment) -> TokenAmount:
    """Return an amount in whole tokens as base units; raises ``BadField`` when it is not one above zero."""
    from parity_protocol.quantities import parse_tokens

    amount = parse_tokens(text, decimals=deployment.decimals)
    if amount == 0:
        raise click.BadParameter("the amount must be above 0", param_hint="--amount")
    return amount


async def transact(
    out: Output,
    chain: Chain,
    calls: Sequence[Call],
    wallet: Wallet,
    *,
    action: str,
    consent: Consent,
) -> dict[str, Any]:
    """Show what ``calls`` cost, ask, send and wait until they are mined.

    Args:
        calls: In order. An approval that is needed is put in front by itself.
        action: What it is, in words: ``stake 10 PDEV``.

    Returns:
        A document for ``--json``.

    Raises:
        Unprocessable: Tokens or ether are missing, or the vault refuses.
        click.Abort: The person said no.
    """
    from parity_client import money

    holdings = await chain.holdings(wallet.address)
    full: list[Call] = []
    for call in calls:
        full += money.approval_before(call, holdings.allowance) if money.spent_by(call) else (call,)
    found = await money.preview(chain, full, wallet.address)
    deployment = chain.deployment
    document: dict[str, Any] = {
        "action": action,
        "dry_run": consent.dry_run,
        "sender": wallet.address,
        "symbol": deployment.symbol,
        "decimals": deployment.decimals,
        "calls": [
            {"name": type(call).__name__, "amount": _amount_text(call), "gas_limit": gas}
            for call, gas in zip(found.calls, found.gas, strict=True)
        ],
        "max_fee_wei": str(found.max_fee_wei),
        "before": {
            "wei": str(holdings.wei),
            "tokens": str(holdings.tokens),
            "allowance": str(holdings.allowance),
        },
        "transactions": [],
    }
    if not out.json or not consent.yes:
        out.show(_screen(document, action, deployment))
    if consent.dry_run:
        out.say("dry run: nothing was sent")
        return document
    out.confirm("Send it?", yes=consent.yes)
    key = await wallet.unlocked()
    with out.console.status("waiting for the chain …"):
        receipts = await money.send(chain, found.calls, key)
    document["transactions"] = [
        {"hash": each.tx_hash, "block": each.block, "gas_used": each.gas_used, "fee_wei": str(each.fee_wei)}
        for each in receipts
    ]
    return document


def _amount_text(call: Call) -> str | None:
    amount = getattr(call, "amount", None)
    return None if amount is None else str(amount)


def _screen(document: dict[str, Any], action: str, deployment: Deployment) -> Table:
    from rich.table import Table

    from parity_protocol.quantities import format_tokens

    table = Table(title=action, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for call in document["calls"]:
        amount = "" if call["amount"] is None else describe(int(call["amount"]), deployment)
        table.add_row(call["name"], f"{amount}  gas ≤ {call['gas_limit']:,}".strip())
    before = document["before"]
    table.add_row("fees at most", f"{format_tokens(int(document['max_fee_wei']))} ether")
    table.add_row("from", document["sender"])
    table.add_row("  has", f"{describe(int(before['tokens']), deployment)}, {format_tokens(int(before['wei']))} ether")
    table.add_row("  vault may pull", describe(int(before["allowance"]), deployment))
    return table


def describe(amount: TokenAmount, deployment: Deployment) -> str:
    """Write an amount for people: in whole tokens, and in base units."""
    from parity_protocol.quantities import format_tokens

    return f"{format_tokens(amount, decimals=deployment.decimals)} {deployment.symbol} ({amount} base units)"


def unbonding_text(deployment: Deployment) -> str:
    """Write the unbonding time for people."""
    from datetime import timedelta

    from parity_protocol.quantities import format_duration

    return format_duration(timedelta(seconds=deployment.unbonding_s))
