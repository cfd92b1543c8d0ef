"""``parity config``: which market is used, and whether everything is set up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from parity_cli.bridge import run_async
from parity_cli.exit_codes import FAILED_CHECK
from parity_cli.lazy import Group
from parity_cli.output import Output, pass_output

if TYPE_CHECKING:
    from parity_client.config import MarketEntry


@click.group(cls=Group, short_help="Join a market; show and check the settings.")
def config() -> None:
    """Join a market by its join string; show and check the settings of this machine."""


@config.command(
    short_help="Join a market and use it.",
    example="""
    parity config use 'https://market.example:8443/#market=…&cert=…'
    parity config use work
    """,
)
@click.argument("join")
@click.option("--name", help="What to call it. Default: made from its address.")
@click.option("--rpc", default="", metavar="URL", help="The chain's endpoint. Default: what the market names.")
@click.option("--no-check", is_flag=True, help="Do not ask the market; it is checked at first use.")
@pass_output
def use(out: Output, join: str, name: str | None, rpc: str, no_check: bool) -> None:
    """Pin the market of JOIN (or a joined market's name), check its signed document, and use it from now on."""
    from parity_client import Home
    from parity_client.config import MarketEntry, checked_name
    from parity_protocol.join import parse_join

    home = Home()
    settings = home.load()
    if "#" not in join and join in settings.markets:
        chosen, entry = join, settings.markets[join]
        if rpc:
            entry = entry.model_copy(update={"rpc": rpc})
    else:
        parsed = parse_join(join)
        chosen = checked_name(name or name_of(parsed.url))
        entry = MarketEntry(join=str(parsed), rpc=rpc)
    known = settings.markets.get(chosen)
    if known is not None and known.parsed().market != entry.parsed().market:
        out.warn(f"{chosen} was another market until now: its pinned identity is replaced")
    document: dict[str, Any] = {"name": chosen, "join": entry.join, "rpc": entry.rpc}
    if not no_check:
        document["market"] = run_async(lambda: _describe(entry))
    markets = {**settings.markets, chosen: entry}
    home.save(settings.model_copy(update={"current": chosen, "markets": markets}))
    out.emit(document, _told(document))


def name_of(url: str) -> str:
    """Return a name for a market, made from its address."""
    host = url.partition("://")[2].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", host).strip("-.")[:64] or "market"


async def _describe(entry: MarketEntry) -> dict[str, Any]:
    from parity_client import Client

    async with Client(entry.parsed()) as client:
        document = client.document
        return {
            "name": document.name,
            "version": document.version,
            "authority": document.authority,
            "chain": document.chain.model_dump(mode="json"),
            "token": document.token,
            "token_symbol": document.token_symbol,
            "token_decimals": document.token_decimals,
            "spender": document.spender,
            "min_bond": str(document.min_bond),
            "rpc_hint": document.rpc_hint,
        }


def _told(document: dict[str, Any]) -> str:
    from parity_protocol.quantities import format_tokens

    found = document.get("market")
    if found is None:
        return f"using {document['name']} (not checked)"
    bond = format_tokens(int(found["min_bond"]), decimals=found["token_decimals"])
    return (
        f"using {document['name']}: {found['name']} {found['version']}, identity checked\n"
        f"chain {found['chain']['chain_id']}, vault {found['chain']['vault']}\n"
        f"a node needs a bond of {bond} {found['token_symbol']}"
    )


@config.command(short_help="Show the settings.", example="parity config show --json")
@pass_output
def show(out: Output) -> None:
    """Show where the settings are and what they say."""
    from parity_client import Home

    home = Home()
    settings = home.load()
    document = {
        "home": str(home.path),
        "config": str(home.config_file),
        "wallets": home.wallets(),
        **settings.model_dump(mode="json"),
    }
    others = [name for name in home.wallets() if name != settings.wallet]
    has = settings.wallet in home.wallets()
    lines = [f"home     {home.path}"]
    lines.append(f"wallet * {settings.wallet}" + ("" if has else "  not made yet: parity wallet create"))
    lines += [f"wallet   {name}" for name in others]
    for name, entry in settings.markets.items():
        mark = "*" if name == settings.current else " "
        lines.append(f"market {mark} {name}  {entry.join}" + (f"  rpc {entry.rpc}" if entry.rpc else ""))
    if not settings.markets:
        lines.append("market   none joined yet: parity config use JOIN")
    out.emit(document, "\n".join(lines))


@config.command(short_help="Check everything that is set up.", example="parity config check")
@click.option("--market", metavar="NAME", help="A joined market. Default: the one in use.")
@pass_output
def check(out: Output, market: str | None) -> int:
    """Check the settings, the market, its chain and the wallet. Exit status 1 if something is wrong."""
    from parity_cli.checks import run_checks
    from parity_client import Home

    found = run_async(lambda: run_checks(Home(), market))
    document = {"ok": all(each.ok for each in found), "checks": [each.to_json() for each in found]}
    from parity_cli.screens.checks import checks_screen

    out.emit(document, lambda: checks_screen(found))
    return 0 if document["ok"] else FAILED_CHECK
