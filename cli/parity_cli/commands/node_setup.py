"""``parity node init`` and ``parity node auth``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.bridge import run_async
from parity_cli.lazy import Command
from parity_cli.market_place import write_settings
from parity_cli.node_keys import NodeIdentity, checked_address, identity_of, make_owner, new_keystore
from parity_cli.node_place import node_file, node_settings
from parity_cli.output import Output, is_interactive, pass_output
from parity_cli.secrets_input import MIN_PASSPHRASE, KeyChoice, key_options, passphrase_option, read_key
from parity_cli.transactions import transaction_options
from parity_protocol.errors import BadField, ParityError

if TYPE_CHECKING:
    from parity_client import Home
    from parity_client.config import MarketEntry
    from parity_protocol.api.market import MarketDocument
    from parity_protocol.ids import Address

MAX_SLOTS = 256

config_option = click.option(
    "--config-path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file. Default: PARITY_CONFIG_PATH, ./.env, or the one that init wrote.",
)


@click.command(
    cls=Command,
    short_help="Make or bring the node's keys.",
    example="""
    parity node auth --generate
    parity node auth --key-file owner.txt --payout 0xB0b5…
    cat key | parity node auth --key-file -
    parity node auth --new-operator
    """,
)
@key_options
@click.option("--new-operator", is_flag=True, help="Replace the operator key, by a transaction of the owner.")
@transaction_options
@click.option("--name", help="What to call the owner's wallet. Default: node-owner.")
@click.option("--payout", metavar="ADDRESS", help="Where earnings go. Default: the owner.")
@passphrase_option
@config_option
@pass_output
def auth(
    out: Output,
    generate: bool,
    key_file: str | None,
    private_key: str | None,
    name: str | None,
    payout: str | None,
    new_operator: bool,
    passphrase_file: Path | None,
    config_path: Path | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Set up the node's three keys: the owner's (yours, encrypted), the operator's (the node's own), the payout.

    The operator key is hot: if it may have been seen, replace it with --new-operator. Bond and earnings are not its.
    """
    if new_operator:
        if generate or key_file or private_key or name or payout:
            raise click.UsageError("--new-operator changes nothing else: leave out the other options")
        from parity_cli.commands.node_money import replace_operator

        replace_operator(out, yes=yes, dry_run=dry_run, passphrase_file=passphrase_file, config_path=config_path)
        return
    from parity_client import Home

    home = Home()
    settings, config = node_settings(config_path), home.load()
    choice = KeyChoice(generate=generate, key_file=key_file, private_key=private_key)
    chosen = name or config.node.wallet
    target = None if payout is None else checked_address(payout, field="payout")
    if dry_run:
        _preview(out, new_keystore(home, chosen), choice, target)
        return
    make_owner(out, home, chosen, choice, passphrase_file)
    changes: dict[str, Any] = {"wallet": chosen} | ({} if target is None else {"payout": target})
    home.save(config.model_copy(update={"node": config.node.model_copy(update=changes)}))
    identity = identity_of(settings, home)
    out.emit(identity.to_json(), f"{_told(identity)}\nnext: parity node stake --amount 10")


def _preview(out: Output, keystore: Path, choice: KeyChoice, payout: Address | None) -> None:
    """Say what ``auth`` would write, and write nothing: not even a key that would be made."""
    from parity_protocol.signing.keys import checksum_address

    owner = None if choice.generate else read_key(out, choice).address
    shown = "a new key" if owner is None else checksum_address(owner)
    paid = "the owner" if payout is None else checksum_address(payout)
    out.emit(
        {"owner": owner, "keystore": str(keystore), "payout": payout, "dry_run": True},
        f"owner     {shown}  would be kept in {keystore}\npayout    {paid}\ndry run: nothing was written",
    )


def _told(identity: NodeIdentity) -> str:
    from parity_protocol.signing.keys import checksum_address

    return (
        f"node      {identity.node_id}\n"
        f"owner     {checksum_address(identity.owner)}  keystore {identity.keystore}: keep a copy and its passphrase\n"
        f"operator  {checksum_address(identity.operator)}  in {identity.state_dir}; it can move no money\n"
        f"payout    {checksum_address(identity.payout)}"
    )


@click.command(
    cls=Command,
    short_help="Set up a node; asks what it needs.",
    example="""
    parity node init
    parity node init --yes --join 'https://market.example:8443/#market=…&cert=…' --shell
    """,
)
@click.option("--join", metavar="JOIN", help="The market's join string. Default: the market in use.")
@click.option("--rpc", metavar="URL", help="The chain's endpoint. Default: what the market names.")
@click.option("--payout", metavar="ADDRESS", help="Where earnings go. Default: the owner.")
@click.option("--slots", type=click.IntRange(1, MAX_SLOTS), help="Tasks at the same time. Default: the processors.")
@click.option("--max-memory", metavar="SIZE", help="Most memory of one task. Default: the machine's.")
@click.option("--shell/--no-shell", default=None, help="Whether to run shell tasks, in bubblewrap. Default: no.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask; take what is given, else the defaults.")
@passphrase_option
@config_option
@pass_output
def init(
    out: Output,
    join: str | None,
    rpc: str | None,
    payout: str | None,
    slots: int | None,
    max_memory: str | None,
    shell: bool | None,
    yes: bool,
    passphrase_file: Path | None,
    config_path: Path | None,
) -> None:
    """Set up a node on this machine: market, keys, limits. It may be repeated; keys that are there stay.

    It writes a settings file (node.env in PARITY_HOME, or --config-path) that you can read and change.
    """
    from parity_client import Home
    from parity_protocol.quantities import format_tokens

    if not yes and not is_interactive():
        raise click.UsageError("nobody is here to be asked: add --yes and give what differs from the defaults")
    home = Home()
    asker = _Asker(out, yes=yes)
    out.say("1/4 Market")
    entry = _market(asker, home, join, rpc)
    document = run_async(lambda: _document(entry))
    out.say(f"    {document.name} {document.version} on chain {document.chain.chain_id}: identity as pinned")

    out.say("2/4 Keys")
    config = home.load()
    if not home.wallet_file(config.node.wallet).is_file():
        if not yes and passphrase_file is None:
            out.say("    The owner's key is made now: it holds the bond and the earnings. A passphrase encrypts it,")
            out.say(f"    and nobody can restore either. At least {MIN_PASSPHRASE} characters.")
        make_owner(
            out, home, config.node.wallet, KeyChoice(generate=True, key_file=None, private_key=None), passphrase_file
        )
    current = config.node.payout
    target = asker.text("    Payout address (empty: the owner)", payout, current, _payout)
    home.save(config.model_copy(update={"node": config.node.model_copy(update={"payout": target})}))

    out.say("3/4 Limits")
    known = node_settings(config_path if config_path and config_path.is_file() else None)
    chosen_slots = asker.text("    Tasks at the same time", slots, known.runner_slots, _slots)
    limit = known.runner_max_memory
    memory = asker.text(
        "    Most memory of one task (all: the machine's)", max_memory, "all" if limit is None else str(limit), _memory
    )
    can_shell = sys.platform == "linux"
    runs_shell = can_shell and asker.agrees("    Run shell tasks, in bubblewrap", shell, known.runner_shell_enabled)

    out.say("4/4 Settings")
    file = config_path or node_file(home)
    values: dict[str, str | None] = {
        "RUNNER_MARKET_JOIN": entry.join,
        "RUNNER_STATE_DIR": str(known.state_dir()),
        "RUNNER_SLOTS": chosen_slots,
        "RUNNER_SHELL_ENABLED": "true" if runs_shell else "false",
        "RUNNER_MAX_MEMORY": memory or None,
        "BLOCKCHAIN_RPC": entry.rpc or None,
    }
    chosen = {key: value for key, value in values.items() if value is not None}
    for key, value in chosen.items():
        out.say(f"    {key}={value}")
    asker.proceed(f"    Write {file}")
    write_settings(home, file, values, title="Settings of `parity node`, written by init; see .env.sample for all keys")
    if config_path is None and (Path(".env").is_file() or os.environ.get("PARITY_CONFIG_PATH")):
        out.warn(f"./.env or PARITY_CONFIG_PATH wins over {file}")
    identity = identity_of(node_settings(file), home)
    bond = format_tokens(document.min_bond, decimals=document.token_decimals)
    result = identity.to_json() | {"config": str(file), "settings": chosen, "min_bond": str(document.min_bond)}
    steps = f"next: parity node stake --amount {bond}, then parity node run"
    if document.rpc_hint or entry.rpc:
        steps = f"on a development chain first: parity wallet faucet --to {identity.owner}\n{steps}"
    out.emit(result, f"{_told(identity)}\n{steps}")


class _Asker:
    """Asks a person, or takes the defaults."""

    def __init__(self, out: Output, *, yes: bool) -> None:
        self._out = out
        self._yes = yes

    def text(
        self, question: str, given: str | int | None, default: str | int, check: Callable[[str], str] = str
    ) -> str:
        """Return what was given, else the person's answer, asked again until ``check`` accepts it.

        Raises:
            BadField: What was given, or the default that nobody was asked about, is wrong.
        """
        if given is not None:
            return check(str(given))
        if self._yes:
            return check(str(default))
        while True:
            answer = click.prompt(question, default=str(default), show_default=bool(str(default)), err=True)
            try:
                return check(str(answer).strip())
            except ParityError as exc:
                self._out.say(f"    {exc.message}")

    def agrees(self, question: str, given: bool | None, default: bool) -> bool:
        if given is not None:
            return given
        return default if self._yes else click.confirm(question, default=default, err=True)

    def proceed(self, question: str) -> None:
        if not self._yes and not click.confirm(question, default=True, err=True):
            raise click.Abort


def _payout(text: str) -> str:
    return checked_address(text, field="payout") if text else ""


def _slots(text: str) -> str:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_SLOTS):
        raise BadField(f"expected a whole number from 1 to {MAX_SLOTS}, got {text[:80]!r}", field="slots")
    return str(int(text))


def _memory(text: str) -> str:
    from parity_protocol.quantities import parse_bytes

    if text in ("", "all"):
        return ""
    parse_bytes(text)
    return text


def _market(asker: _Asker, home: Home, join: str | None, rpc: str | None) -> MarketEntry:
    """Return the market of the node, and join it if it is new."""
    from parity_cli.commands.config import name_of
    from parity_client.config import MarketEntry
    from parity_protocol.join import parse_join

    config = home.load()
    if join is None and config.current is not None:
        entry = config.market()[1]
        return entry.model_copy(update={"rpc": rpc}) if rpc else entry
    parsed = parse_join(asker.text("    Join string of the market", join, "", lambda text: str(parse_join(text))))
    entry = MarketEntry(join=str(parsed), rpc=rpc or "")
    name = name_of(parsed.url)
    home.save(config.model_copy(update={"current": name, "markets": {**config.markets, name: entry}}))
    return entry


async def _document(entry: MarketEntry) -> MarketDocument:
    from parity_client import Client

    async with Client(entry.parsed()) as client:
        return client.document
