"""``parity chain``: the embedded development chain."""

from __future__ import annotations

from pathlib import Path

import click

from parity_cli.lazy import Group
from parity_cli.output import Output, pass_output


@click.group(cls=Group, short_help="The embedded development chain.")
def chain() -> None:
    """A chain on this machine, for development: an EVM on loopback that survives being killed."""


@chain.command(
    short_help="Run the embedded chain.",
    example="""
    parity chain serve
    parity chain serve --port 8546 --data ./chain
    """,
)
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Its folder. Default: PARITY_HOME/chain."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address: it gives money to anybody.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8545, show_default=True, help="0 takes a free one.")
@click.option("--chain-id", type=click.IntRange(1, 2**53 - 1), default=31337, show_default=True)
@click.option("--block-interval", default="1s", show_default=True, help="Least time between two blocks.")
@click.option("--idle-interval", default="4s", show_default=True, help="Time after which an empty block is made.")
@click.option("--ready-file", type=click.Path(path_type=Path, dir_okay=False), help="Written when it answers: JSON.")
@pass_output
def serve(
    out: Output,
    data: Path | None,
    host: str,
    port: int,
    chain_id: int,
    block_interval: str,
    idle_interval: str,
    ready_file: Path | None,
) -> None:
    """Run the embedded chain until Ctrl-C or SIGTERM.

    Every transaction is on disk before it is acknowledged: killing the chain loses nothing, and the next start goes
    on where it was. `parity wallet faucet` hands out its money.
    """
    import logging
    import sys

    import structlog

    from parity_client import Home
    from parity_contracts.devnet import ChainSettings
    from parity_contracts.devnet import serve as run
    from parity_protocol.quantities import parse_duration

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    folder = data or Home().path / "chain"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = ChainSettings(
        data=folder,
        host=host,
        port=port,
        ready_file=ready_file,
        chain_id=chain_id,
        block_interval=parse_duration(block_interval),
        idle_interval=parse_duration(idle_interval),
    )
    if port:
        out.say(f"embedded chain {chain_id} at http://{host}:{port}, data in {folder}; Ctrl-C stops it")
    run(settings)
    out.emit({"data": str(folder), "stopped": True})
