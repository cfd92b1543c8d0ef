"""``parity data``: data by content identifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.bridge import run_async
from parity_cli.lazy import Group
from parity_cli.output import Output, pass_output
from parity_cli.place import client_of, market_option, wallet_option
from parity_cli.secrets_input import passphrase_option
from parity_cli.transfers import transferring

if TYPE_CHECKING:
    from parity_blobs.kubo import KuboBlobStore

MAX_KUBO_BYTES = 1 << 50  # it is the person's own, and has a limit of its own

PathArgument = click.Path(path_type=Path)


@click.group(cls=Group, short_help="Data by content identifier.")
def data() -> None:
    """Data by content identifier: every block is hashed, so nobody has to be believed."""


progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    help="Show bytes, rate and time left on standard error. Default: on a terminal.",
)
kubo_option = click.option(
    "--kubo",
    metavar="API",
    help="Your own Kubo instead of the market: its RPC address, such as /ip4/127.0.0.1/tcp/5001 or a URL.",
)


@data.command(
    short_help="Store a file or a folder at the market.",
    example="""
    parity data add train.csv
    parity data add --public model.bin
    parity data add images
    """,
)
@click.argument("path", type=PathArgument)
@click.option(
    "--public", is_flag=True, help="Anybody may read it. Default: you, and nodes while they work on it for you."
)
@click.option("--hidden", is_flag=True, help="Take files of a folder whose names start with a dot.")
@progress_option
@market_option
@wallet_option
@passphrase_option
@pass_output
def add(
    out: Output,
    path: Path,
    public: bool,
    hidden: bool,
    progress: bool | None,
    market: str | None,
    wallet: str | None,
    passphrase_file: Path | None,
) -> None:
    """Store a file or a folder at the market and print its CID, after comparing it with the one computed here."""

    async def act() -> dict[str, Any]:
        async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
            with transferring(out, f"sending {path.name}", shown=progress) as show:
                reply = await client.data.add(
                    path, visibility="public" if public else "private", hidden=hidden, on_bytes=show
                )
            return reply.model_dump(mode="json")

    document = run_async(act)
    out.emit(document, document["cid"])


@data.command(
    short_help="Fetch content, verified.",
    example="""
    parity data get bafy… -o result.bin
    parity data get bafy… -o result.bin --max-size 1g --progress
    """,
)
@click.argument("cid")
@click.option("-o", "--output", type=PathArgument, help="Where to write it; must not exist. Default: named by the CID.")
@click.option("--max-size", default="1g", show_default=True, metavar="SIZE", help="Refuse more than this.")
@progress_option
@market_option
@wallet_option
@passphrase_option
@pass_output
def get(
    out: Output,
    cid: str,
    output: Path | None,
    max_size: str,
    progress: bool | None,
    market: str | None,
    wallet: str | None,
    passphrase_file: Path | None,
) -> None:
    """Fetch a file or a folder from the market, block by block; it appears whole and right, or not at all.

    A file whose transfer broke off is taken up again by the same command.
    """
    from parity_protocol.quantities import format_bytes, parse_bytes

    limit = parse_bytes(max_size)

    async def act() -> dict[str, Any]:
        async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
            target = output or Path(cid)
            with transferring(out, f"fetching {cid}", shown=progress) as show:
                stat = await client.data.get(cid, target, max_bytes=limit, progress=show)
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


@data.command("ls", short_help="List what you have stored at the market.", example="parity data ls --json")
@market_option
@wallet_option
@passphrase_option
@pass_output
def listing(out: Output, market: str | None, wallet: str | None, passphrase_file: Path | None) -> None:
    """List what you have stored at the market, and how much of your quota it takes."""
    from parity_protocol.quantities import format_bytes

    async def act() -> dict[str, Any]:
        async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
            return (await client.data.list()).model_dump(mode="json", exclude={"next_cursor"})

    document = run_async(act)
    lines = [
        f"{each['cid']}  {format_bytes(each['size']):>9}  {each['visibility']}{', pinned' if each['pinned'] else ''}"
        for each in document["blobs"]
    ]
    lines.append(f"{format_bytes(document['used_bytes'])} of {format_bytes(document['quota_bytes'])} used")
    out.emit(document, "\n".join(lines))


@data.command(
    short_help="Have content kept.",
    example="""
    parity data pin bafy…
    parity data pin bafy… --kubo /ip4/127.0.0.1/tcp/5001
    """,
)
@click.argument("cid")
@kubo_option
@progress_option
@market_option
@wallet_option
@passphrase_option
@pass_output
def pin(
    out: Output,
    cid: str,
    kubo: str | None,
    progress: bool | None,
    market: str | None,
    wallet: str | None,
    passphrase_file: Path | None,
) -> None:
    """Have the market keep content of yours whatever else it needs room for; with --kubo, copy it to your own and pin it."""

    async def act() -> dict[str, Any]:
        async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
            if kubo is None:
                return {**(await client.data.pin(cid)).model_dump(mode="json"), "where": "market"}
            async with _kubo(kubo) as store:
                with transferring(out, f"copying {cid}", shown=progress) as show:
                    stat = await client.data.copy(cid, store, pin=True, progress=show)
            return {"cid": str(stat.cid), "pinned": True, "where": kubo}

    document = run_async(act)
    out.emit(document, f"{document['cid']}  pinned")


@data.command(
    short_help="Have content kept no longer.",
    example="""
    parity data unpin bafy…
    parity data unpin bafy… --kubo /ip4/127.0.0.1/tcp/5001
    """,
)
@click.argument("cid")
@kubo_option
@market_option
@wallet_option
@passphrase_option
@pass_output
def unpin(
    out: Output, cid: str, kubo: str | None, market: str | None, wallet: str | None, passphrase_file: Path | None
) -> None:
    """Give content of yours back: it leaves your quota, and results of your tasks stay with their tasks."""
    from parity_blobs import Cid

    async def act() -> dict[str, Any]:
        if kubo is not None:
            root = Cid.parse(cid)
            async with _kubo(kubo) as store:
                await store.pin(root, keep=False)
            return {"cid": str(root), "pinned": False, "where": kubo}
        async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
            return {**(await client.data.unpin(cid)).model_dump(mode="json"), "where": "market"}

    document = run_async(act)
    out.emit(document, f"{document['cid']}  not pinned any more")


def _kubo(api: str) -> KuboBlobStore:
    from parity_blobs.kubo import KuboBlobStore

    return KuboBlobStore(api, max_bytes=MAX_KUBO_BYTES)


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
