"""What ``parity node doctor`` asks elsewhere: the market, its clock, the chain, and the node's bond there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from parity_cli.checks import chain_in_words, clock_in_words
from parity_protocol.errors import ConfigInvalid, ParityError

if TYPE_CHECKING:
    from parity_client import Client
    from parity_node.doctor import Finding
    from parity_node.settings import NodeSettings

__all__ = ["check_market"]


async def check_market(settings: NodeSettings) -> list[Finding]:
    """Return the findings about the market that the settings name; each needs the one before it."""
    from parity_cli.commands.node_money import open_market
    from parity_node.doctor.finding import failed, fine, unused

    rest = ("market.clock", "chain", "stake")
    found: list[Finding] = []
    try:
        async with open_market(settings) as client:
            told = client.document
            place = f"{told.name} {told.version} at {client.join.url}"
            pin = ", its certificate pinned" if client.join.certificate else ""
            found.append(fine("market", f"{place}, identity as pinned{pin}"))
            found.append(await _tried("market.clock", lambda: clock_in_words(client)))
            found.append(await _tried("chain", lambda: chain_in_words(client, settings.blockchain_rpc)))
            found.append(await _stake(client, settings))
    except ParityError as exc:
        if not found:
            found.append(failed("market", _words(exc), exc.hint() or "parity config use JOIN"))
    done = {each.id for each in found}
    return [*found, *(unused(name, "the market was not reached") for name in rest if name not in done)]


async def _stake(client: Client, settings: NodeSettings) -> Finding:
    from parity_client import Home, money
    from parity_node.doctor.finding import failed, fine, unused
    from parity_node.doctor.place import hidden_files
    from parity_protocol.quantities import format_tokens

    home = Home()
    if len(hidden_files(settings)) < 2 or not home.wallet_file(home.load().node.wallet).is_file():
        return unused("stake", "this node has no keys yet", "parity node init")
    try:
        from parity_cli.node_keys import identity_of

        identity = identity_of(settings, home)
        chain = await money.connect(client.document, settings.blockchain_rpc)
        try:
            account = await chain.account(identity.node_id)
        finally:
            await chain.aclose()
    except ParityError as exc:
        return failed("stake", _words(exc), exc.hint() or "parity config check")
    told = client.document
    bond, least = (format_tokens(each, decimals=told.token_decimals) for each in (account.bond, told.min_bond))
    if account.bond < told.min_bond:
        return failed("stake", f"{bond} of {least} {told.token_symbol} bonded", "parity node stake")
    if account.operator != identity.operator:
        return failed(
            "stake", f"the vault knows operator {account.operator}, not {identity.operator}", "parity node auth"
        )
    return fine("stake", f"{bond} {told.token_symbol} bonded, {least} needed; operator {identity.operator}")


async def _tried(name: str, look: Callable[[], Awaitable[str]]) -> Finding:
    from parity_node.doctor.finding import failed, fine

    try:
        return fine(name, await look())
    except ParityError as exc:
        return failed(name, _words(exc), exc.hint() or "parity config check")


def _words(error: ParityError) -> str:
    return "; ".join(error.problems) if isinstance(error, ConfigInvalid) else error.message
