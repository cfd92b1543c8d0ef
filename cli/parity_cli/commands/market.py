"""``parity market``: run a market."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from parity_cli.bridge import run_async
from parity_cli.lazy import Group
from parity_cli.market_place import market_file, market_settings, serving_settings, write_settings
from parity_cli.output import Output, pass_output

if TYPE_CHECKING:
    from parity_client import Home
    from parity_market.init import Initialised

config_option = click.option(
    "--config-path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file. Default: PARITY_CONFIG_PATH, ./.env, or the one that init wrote.",
)


@click.group(cls=Group, short_help="Run a market.")
def market() -> None:
    """Run a market: match work to nodes, verify results, settle on a chain."""


@market.command(
    short_help="Make a market's keys, contracts and join string.",
    example="""
    parity market init
    parity market init --public-url https://market.example:8443 --min-bond 10
    """,
)
@click.option("--public-url", metavar="URL", help="Address by which others reach it. Default: this machine only.")
@click.option("--host", metavar="ADDRESS", help="Address to listen on. Default: all, or loopback if the URL is.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Port to listen on. Default: the URL's, else 8080.")
@click.option("--name", help="Name shown to people.")
@click.option("--min-bond", metavar="TOKENS", help="What a node must have bonded, in whole tokens.")
@click.option("--rpc", metavar="URL", help="The chain's endpoint. Default: the embedded chain on this machine.")
@click.option("--vault", metavar="ADDRESS", help="A vault that is there already. Default: deploy one.")
@click.option("--unbonding", metavar="DURATION", help="Unbonding time of a vault that is deployed, such as 7d.")
@config_option
@pass_output
def init(out: Output, config_path: Path | None, **given: str | int | None) -> None:
    """Make keys, a TLS certificate and contracts where they are missing, and print the join string.

    It is safe to repeat: what is there stays. The options are written to a settings file that `serve` reads.
    """
    from parity_client import Home
    from parity_protocol.settings import config_path as config_path_of

    overrides = _overrides(given)
    settings = market_settings(config_path, **overrides)
    if overrides:
        home = Home()
        file = config_path_of(config_path)
        if file is None:
            values = _as_lines({**_known(home), **overrides})
            write_settings(home, market_file(home), values, title="Settings of `parity market`, written by init")
        else:
            out.warn(f"the options hold for this run only: put them into {file} for `parity market serve`")
    from parity_market.init import initialise

    version = version_of("parity-node")
    made = run_async(lambda: initialise(settings, version=version, progress=lambda text: out.say(f"  ✓ {text}")))
    out.emit(_document(made), f"{made.join}\n\nnext: parity market serve, and give nodes and submitters the line above")


def _overrides(given: dict[str, str | int | None]) -> dict[str, Any]:
    """Return the options as settings; the port and the address to listen on follow from the public URL."""
    from parity_protocol.join import is_loopback, parse_market_url

    names = {
        "public_url": "market_public_url",
        "host": "server_host",
        "port": "server_port",
        "name": "market_name",
        "min_bond": "market_min_bond",
        "rpc": "blockchain_rpc",
        "vault": "blockchain_stake_wallet_address",
        "unbonding": "market_unbonding",
    }
    found: dict[str, Any] = {names[name]: value for name, value in given.items() if value is not None}
    if "market_public_url" in found:
        parts = urlsplit(parse_market_url(str(found["market_public_url"])))
        default_port = 443 if parts.scheme == "https" else 80
        found.setdefault("server_port", parts.port or default_port)
        found.setdefault("server_host", "127.0.0.1" if is_loopback(parts.hostname or "") else "0.0.0.0")  # noqa: S104
    return found


def _known(home: Home) -> dict[str, Any]:
    """Return what an earlier init wrote, so that repeating it with one option keeps the others."""
    file = market_file(home)
    if not file.is_file():
        return {}
    from dotenv import dotenv_values

    return {key.lower(): value for key, value in dotenv_values(file).items() if value is not None}


def _as_lines(values: dict[str, Any]) -> dict[str, str]:
    return {name.upper(): str(value) for name, value in values.items()}


def _document(made: Initialised) -> dict[str, Any]:
    return {
        "join": str(made.join),
        "url": made.join.url,
        "identity": made.identity.thumbprint,
        "spender": made.spender,
        "transaction_key": made.transaction,
        "deployed": made.deployed,
        "deployment": made.deployment.to_json(),
    }


@market.command(
    short_help="Run the market.", example="parity market serve\nparity market serve --config-path market.env"
)
@config_option
@pass_output
def serve(out: Output, config_path: Path | None) -> None:
    """Run the market until Ctrl-C or SIGTERM. Killing it loses nothing."""
    settings, training = serving_settings(config_path)
    from parity_market.serve import serve as run

    def ready(join: str) -> None:
        if out.json:
            out.emit({"join": join})
        else:
            out.say("the market runs; nodes and submitters join it with: parity config use 'JOIN', where JOIN is")
            click.echo(join)
        sys.stdout.flush()

    out.say("starting the market …")
    run(settings, version=version_of("parity-node"), ready=ready, training=training)
