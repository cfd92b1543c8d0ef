"""``parity fl resume``: go on with a session that waits, or in a new one with a session that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.commands.fl_sessions import submit_and_follow
from parity_cli.lazy import Command
from parity_cli.output import Output
from parity_cli.place import with_client
from parity_cli.session_files import SessionFiles
from parity_cli.session_spec import resumed
from parity_cli.shard_sources import read_shards, sources_of
from parity_protocol.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from parity_client import Client
    from parity_protocol.api.rounds import FlCheckpointReply, FlSessionReply

__all__ = ["resume"]

_ENDED = frozenset({"completed", "failed", "cancelled"})


@click.command(
    cls=Command,
    short_help="Go on with a paused session, or from an ended one's checkpoint.",
    example="""
    parity fl resume 3f0c…
    parity fl resume 3f0c… --reward 5 -o model.safetensors
    parity fl resume 3f0c… --reward 5 --rounds 40 --from-round 20
    parity fl resume 3f0c… --reward 5 --shard local:hospital-a --shard local:hospital-b
    """,
)
@click.argument("session_id")
@click.option("--reward", metavar="TOKENS", help="Of the new session that goes on with an ended one, in whole tokens.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Rounds, counted from the first of all. Default: as many as the ended one was to have.",
)
@click.option("--from-round", type=click.IntRange(1), help="The checkpoint after this round. Default: the newest.")
@click.option(
    "--shard",
    "shards",
    metavar="SOURCE",
    multiple=True,
    help="Of a sharded session: each part's data again, in the same order, as of `parity fl run`.",
)
@click.option("--no-wait", is_flag=True, help="Submit only.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the finished model here.")
@with_client
async def resume(
    out: Output,
    client: Client,
    session_id: str,
    reward: str | None,
    rounds: int | None,
    from_round: int | None,
    shards: tuple[str, ...],
    no_wait: bool,
    output: Path | None,
) -> None:
    """Go on where `parity fl pause` stopped, or where a session ended.

    A session that has failed, was stopped or has completed is gone on with in a new one, which costs a reward of its own: the same
    data, model and rule, from a checkpoint's model and moments, in the round after it.
    """
    found = await _session(client, session_id)
    if found.state not in _ENDED:
        if reward is not None or rounds is not None or from_round is not None:
            raise click.UsageError(
                f"session {session_id} is {found.state}: it goes on by itself, without these options"
            )
        changed = await client.sessions.resume(session_id)
        place = f"round {changed.round}/{changed.total_rounds}"
        out.emit(changed.model_dump(mode="json"), f"{changed.id}: {changed.state}, {place}")
        return
    checkpoint = await client.sessions.checkpoint(session_id, number=from_round)
    total = rounds or found.total_rounds
    if total <= checkpoint.round:
        raise click.UsageError(
            f"the checkpoint is of round {checkpoint.round}: say with --rounds how many there shall be in all, above that"
        )
    if reward is None:
        raise click.UsageError(f"session {session_id} is {found.state}: going on is a new session, give it a --reward")
    spec = await _spec_of(client, found, checkpoint, total)
    read, sealed = read_shards(shards), spec.pop("shards", [])
    if len(read) != len(sealed):
        raise InvalidInput(
            f"session {session_id} has {len(sealed)} shards, {len(read)} are given: where its data lie is sealed, only you"
            " know it",
            hint=f"parity fl resume {session_id} --reward {reward} --shard … for each part, in the same order",
            field="shard",
        )
    files = SessionFiles()
    sources = await sources_of(files, read)
    out.say(f"goes on after round {checkpoint.round} of session {session_id} ({checkpoint.cid})")
    await submit_and_follow(out, client, spec, reward, no_wait=no_wait, output=output, shards=sources, files=files)


async def _session(client: Client, session_id: str) -> FlSessionReply:
    try:
        return await client.sessions.show(session_id)
    except NotFound as exc:
        lost = await _checkpoint_of_lost(client, session_id)
        if lost is None:
            raise
        raise NotFound(
            f"this market does not know session {session_id}, but has its checkpoint of round {lost.round}",
            hint=f"Give it the session again: parity fl run SPEC --reward TOKENS --resume-from {lost.cid}",
        ) from exc


async def _checkpoint_of_lost(client: Client, session_id: str) -> FlCheckpointReply | None:
    """Return the checkpoint of a session that another market ran, on whose folder this one was started."""
    try:
        return await client.sessions.checkpoint(session_id)
    except NotFound:
        return None


async def _spec_of(client: Client, found: FlSessionReply, checkpoint: FlCheckpointReply, total: int) -> dict[str, Any]:
    """Return what was signed for the ended session, with the rule that it had: the market's variables may have changed."""
    group = await client.group(found.id)
    spec = resumed(dict(group.tasks[0].spec), checkpoint.cid)
    rule = found.settings.get("strategy")
    return {**spec, "total_rounds": total, **({"strategy_config": rule} if isinstance(rule, dict) else {})}
