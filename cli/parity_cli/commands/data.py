"""``parity data``: data by content identifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from parity_cli.bridge import run_async
from parity_cli.lazy import Group
from parity_cli.output import Output, pass_output
from parity_cli.place import client_of, market_option, wallet_option
from parity_cli.secrets_input import passphrase_option

PathArgument = click.Path(path_type=Path)


@click.group(cls=Group, short_help="Data by content identifier.")
def data() -> None:
    """Data by content identifier: every block is hashed, so nobody has to be believed."""


@data.command(
    short_help="Store a file at the market.",
    example="""
    parity data add train.csv
    parity data add --public model.bin
    """,
)
@click.argument("path", type=PathArgument)
@click.option(
    "--public", is_flag=True, help="Anybody may read it. Default: you, and nodes while they work on it for you."
)
@market_option
@wallet_option
@passphrase_option
@pass_output
def add(
    out: Output, path: Path, public: bool, market: str | None, wallet: str | None, passphrase_file: Path | None
) -> None:
    """Store a file at the market and print its CID, after comparing it with the one computed here."""
    size = path.stat().st_size if path.is_file() else None

    async def act() -> dict[str, Any]:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
            with Progress(
                *columns, console=out.console, transient=True, disable=not out.console.is_terminal
            ) as progress:
                bar = progress.add_task(f"sending {path.name}", total=size)
                reply = await client.data.add(
                    path,
                    visibility="public" if public else "private",
                    on_bytes=lambda sent: progress.update(bar, completed=sent),
                )
            return reply.model_dump(mode="json")

    document = run_async(act)
    out.emit(document, document["cid"])


@data.command(
    short_help="Fetch content, verified.",
    example="""
    parity data get bafy… -o result.bin
    parity data get bafy… -o result.bin --max-size 1g
    """,
)
@click.argument("cid")
@click.option("-o", "--output", type=PathArgument, help="Where to write it; must not exist. Default: named by the CID.")
@click.option("--max-size", default="1g", show_default=True, metavar="SIZE", help="Refuse more than this.")
@market_option
@wallet_option
@passphrase_option
@pass_output
def get(
    out: Output,
    cid: str,
    output: Path | None,
    max_size: str,
    market: str | None,
    wallet: str | None,
    passphrase_file: Path | None,
) -> None:
    """Fetch a file or a folder from the market, block by block; it appears whole and right, or not at all."""
    from parity_protocol.quantities import format_bytes, parse_bytes

    limit = parse_bytes(max_size)

    async def act() -> dict[str, Any]:
        async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
            target = output or Path(cid)
            with out.console.status(f"fetching {cid} …"):
                stat = await client.data.get(cid, target, max_bytes=limit)
            return {"cid": str(stat.cid), "path": str(target), "kind": stat.kind.name.lower(), "size": stat.size}

    document = run_async(act)
    out.emit(document, f"{document['path']}  {format_bytes(document['size'])}, every block verified")


@data.command(short_help="Show what the market knows of content.", example="parity data info bafy…")
@click.argument("cid")
@market_option
@wallet_option
@passphrase_option
@pass_output
def info(out: Output, cid: str, market: str | None, wallet: str | None, passphrase_file: Path | None) -> None:
    """Show size, visibility, owner and whether the market keeps it."""
    from parity_protocol.quantities import format_bytes

    async def act() -> dict[str, Any]:
        async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
            return (await client.data.info(cid)).model_dump(mode="json")

    document = run_async(act)
    lines = [
        f"{document['cid']}",
        f"  {format_bytes(document['size'])}, {document['visibility']}{', pinned' if document['pinned'] else ''}",
        *([f"  owner {document['owner']}"] if document["owner"] else []),
        *([f"  since {document['created_at']}"] if document["created_at"] else []),
    ]
    out.emit(document, "\n".join(lines))


@data.command(
    short_help="Compute a CID; nothing is sent.",
    example="""
    parity data cid train.csv
    parity data cid --cid-version 0 folder
    """,
)
@click.argument("path", type=PathArgument)
@click.option(
    "--cid-version",
    type=click.Choice(["0", "1"]),
    default="1",
    show_default=True,
    help="As of `ipfs add`, whose own default is 0; the market stores version 1.",
)
@click.option("--raw-leaves/--no-raw-leaves", default=None, help="As of `ipfs add`. Default: on for version 1.")
@click.option("--hidden", is_flag=True, help="Take files whose names start with a dot.")
@pass_output
def cid(out: Output, path: Path, cid_version: str, raw_leaves: bool | None, hidden: bool) -> None:
    """Print the CID that `ipfs add -r` with the same flags would print. Nothing is stored or sent."""
    from parity_blobs.files import cid_of_path

    async def act() -> dict[str, Any]:
        found = await cid_of_path(path, cid_version=int(cid_version), raw_leaves=raw_leaves, hidden=hidden)
        return {"cid": str(found.cid), "path": str(path), "size": found.size, "total_size": found.tsize}

    document = run_async(act)
    out.emit(document, document["cid"])
