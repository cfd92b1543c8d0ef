"""``parity fl run|sessions|show|watch|pause|stop``: federated sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.lazy import Command
from parity_cli.output import Output
from parity_cli.place import with_client
from parity_cli.session_files import SessionFiles
from parity_cli.session_spec import (
    SECTIONS,
    changed,
    check_free,
    checkpoint_of,
    cid_of,
    privacy_of,
    read_changes,
    read_spec,
    resumed,
    spec_of,
)
from parity_cli.shard_sources import read_shards, sharded_session, sources_of, summaries_of, table_of
from parity_cli.waiting import tell_why

if TYPE_CHECKING:
    from parity_client import Client
    from parity_client.orders import Source
    from parity_protocol.api.rounds import FlSessionReply

__all__ = [
    "follow",
    "pause",
    "run_session",
    "sessions",
    "show",
    "stop",
    "submit_and_follow",
    "watch",
]

MAX_LISTED = 200
"""Rounds in one answer of a market, each phase counted."""


@click.command(
    "run",
    cls=Command,
    short_help="Submit a session, follow it, and keep its model.",
    example="""
    parity fl run session.json --reward 10 -o model.safetensors
    parity fl run --data digits.csv --model neural_network --hidden 64 --parts 5 --rounds 20 --reward 10 \\
        --epochs 5 --batch-size 32 --learning-rate 0.1 --strategy FedAdam --partition non_iid --alpha 0.5
    parity fl run session.json --reward 5 --resume-from ~/.parity/checkpoints/3f0c…
    parity fl run --data cancer.csv --model random_forest --mode histogram --set model.num_trees=200 --parts 3 --reward 5
    parity fl run --shard north.csv --shard south.csv --model neural_network --hidden 64 --reward 10 \\
        --epochs 5 --batch-size 32 --learning-rate 0.1
    parity fl run session.json --shard local:hospital-a --shard local:hospital-b --reward 10 --dry-run
    """,
)
@click.argument("spec", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--reward", required=True, metavar="TOKENS", help="What it pays in all, in whole tokens.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A CSV or JSON file.")
@click.option("--dataset", metavar="CID", help="Data that are at the market already.")
@click.option(
    "--shard",
    "shards",
    metavar="SOURCE",
    multiple=True,
    help="Data of one part, which no other node is told of; repeat per part. A file, cid:CID, local:NAME, https://…#sha256=…",
)
@click.option("--eval", "evaluation", metavar="CID|FILE", help="With --shard: data that the market scores models with.")
@click.option("--model", "model_type", type=click.Choice(["neural_network", "linear_regression", "random_forest"]))
@click.option("--hidden", type=click.IntRange(1), multiple=True, help="Width of a hidden layer; repeat for more.")
@click.option("--solver", type=click.Choice(["sgd", "exact"]), help="Of a linear regression. Default: sgd.")
@click.option("--mode", type=click.Choice(["union", "leaf_refit", "histogram"]), help="Of a forest. Default: union.")
@click.option("--task", type=click.Choice(["classification", "regression"]), help="Default: classification.")
@click.option("--parts", type=click.IntRange(1), default=2, show_default=True, help="Parts of the data, each a task.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds. Default: FL_NUM_ROUNDS, or 3.")
@click.option(
    "--epochs", type=click.IntRange(1), help="Passes of a node over its rows in a round; required, but of a forest."
)
@click.option("--batch-size", type=click.IntRange(1), help="Rows of a step; as --epochs.")
@click.option("--learning-rate", type=float, help="Of the nodes; as --epochs, unless FL_CLIENT_LR is it.")
@click.option("--strategy", help="FedAvg, FedProx, FedAdam, Krum … Default: FL_STRATEGY, or FedAvg.")
@click.option("--partition", default="stratified", show_default=True, help="How the data are cut.")
@click.option("--alpha", type=float, help="Of the partition non_iid.")
@click.option("--min-samples", type=click.IntRange(1), default=10, show_default=True, help="Fewest rows of a part.")
@click.option(
    "--dp-noise", type=float, metavar="Z", help="With --shard: differential privacy, noise in units of the clip norm."
)
@click.option("--dp-clip", type=float, metavar="C", help="Its clip norm. Without it the norm adapts to the updates.")
@click.option("--dp-delta", type=float, metavar="DELTA", help="Of which epsilon is told. Default: 0.00001.")
@click.option("--secure-aggregation", is_flag=True, help="With --shard: nobody sees a single update, only their sum.")
@click.option(
    "--engine",
    type=click.Choice(["parity", "flower"]),
    default="parity",
    show_default=True,
    help="What carries the rounds; Flower must be installed at market and nodes (parity fl engine).",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="SECTION.NAME=VALUE",
    help="Any other setting, also over SPEC: model., train., partition., strategy., rounds., privacy.",
)
@click.option(
    "--resume-from",
    metavar="CID|FOLDER|FILE",
    help="Go on from a checkpoint, in the round after it; --rounds counts from the first round of all.",
)
@click.option(
    "--dry-run", is_flag=True, help="Ask whether it would be taken, and say what would be sent; store and sign nothing."
)
@click.option("--no-wait", is_flag=True, help="Submit only.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the finished model here.")
@with_client
async def run_session(out: Output, client: Client, **given: Any) -> None:
    """Submit a session, print each round as it closes, and keep the finished model.

    SPEC is a JSON file; without it the options say what to train.
    """
    files = SessionFiles()
    shards, changes = read_shards(given["shards"]), read_changes(given["changes"], SECTIONS)
    given["solver"] = changes["model"].get("solver", given["solver"])
    if given["evaluation"] and not shards:
        raise click.UsageError("--eval belongs to --shard: a partitioned session scores with a part of its data")
    spec = read_spec(given["spec"]) if given["spec"] is not None else await spec_of(files, given)
    spec = changed(spec, changes)
    if switches := privacy_of(given):
        spec = {**spec, "privacy": {**spec.get("privacy", {}), **switches}}
    if shards:
        spec = sharded_session(spec, len(shards))
        summaries = summaries_of(spec, shards)
    if given["evaluation"]:
        spec["eval_cid"] = await cid_of(files, given["evaluation"], field="eval_cid")
    sources = await sources_of(files, shards)
    if given["resume_from"]:
        spec = resumed(spec, await checkpoint_of(out, files, given["resume_from"]))
    if given["dry_run"]:
        await client.check(spec, shards=sources)
        from parity_cli.screens.shards import plan_screen

        found = table_of(shards, summaries) if shards else []
        out.emit({"spec": spec, "shards": found, "reward": given["reward"]}, lambda: plan_screen(spec, found))
        return
    await submit_and_follow(
        out,
        client,
        spec,
        given["reward"],
        no_wait=given["no_wait"],
        output=given["output"],
        shards=sources,
        files=files,
    )


async def submit_and_follow(
    out: Output,
    client: Client,
    spec: dict[str, Any],
    reward: str,
    *,
    no_wait: bool,
    output: Path | None,
    shards: Sequence[Source] = (),
    files: SessionFiles,
) -> None:
    """Submit a session, print each round as it closes, and keep the finished model in ``output``.

    Args:
        files: What it names and the market may not have yet; stored once the market has said that it would take it.
    """
    if output is not None:
        check_free(output)
    await client.check(spec, reward, shards=shards)
    await files.store(out, client)
    made = await client.submit(spec, reward, shards=shards)
    out.say(f"submitted session {made.id} ({len(made.task_ids)} parts)")
    out.context.update({"id": made.id, "task_ids": list(made.task_ids)})
    if no_wait:
        out.emit({"id": made.id, "task_ids": list(made.task_ids)}, made.id)
        return
    out.goes_on = f"The session goes on: `parity fl watch {made.id}` follows it, `parity fl stop {made.id}` ends it."
    found = await follow(out, client, made.id)
    document = found.model_dump(mode="json")
    if output is not None and found.result_cid is not None:
        await client.data.get(found.result_cid, output)
        document["path"] = str(output)
        out.say(f"model  {output}, verified against {found.result_cid}")
    _raise_unless_completed(found)
    out.emit(document, lambda: _screen(found))


@click.command(cls=Command, short_help="List your sessions.", example="parity fl sessions --limit 5")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the next page begins, as the last one told.")
@with_client
async def sessions(out: Output, client: Client, limit: int, cursor: str | None) -> None:
    """List your sessions, newest first."""
    from parity_cli.screens.sessions import sessions_screen

    page = await client.sessions.list(limit=limit, cursor=cursor)
    out.emit(page.model_dump(mode="json"), lambda: sessions_screen(page.sessions))
    if page.next_cursor and not out.json:
        out.say(f"more: parity fl sessions --limit {limit} --cursor {page.next_cursor}")


@click.command(cls=Command, short_help="Show a session, round by round.", example="parity fl show 3f0c…")
@click.argument("session_id")
@click.option("--from-round", type=click.IntRange(0), default=1, show_default=True, help="0: what shards agreed on.")
@with_client
async def show(out: Output, client: Client, session_id: str, from_round: int) -> None:
    """Show a session: each round's scores, who took part, contributions and bytes."""
    found = await client.sessions.show(session_id, from_round=from_round)
    out.emit(found.model_dump(mode="json"), lambda: _screen(found))
    if len(found.rounds) >= MAX_LISTED and found.rounds[-1].round < min(found.round, found.total_rounds):
        out.say(f"more: parity fl show {session_id} --from-round {found.rounds[-1].round}")


@click.command(cls=Command, short_help="Follow a session live.", example="parity fl watch 3f0c…")
@click.argument("session_id")
@with_client
async def watch(out: Output, client: Client, session_id: str) -> None:
    """Print each round as it closes, until the session has ended. Exit status 70 if it failed."""
    found = await follow(out, client, session_id)
    _raise_unless_completed(found)
    # Its rounds have been printed; one that had none would end without a word.
    out.emit(found.model_dump(mode="json"), None if found.rounds else lambda: _screen(found))


def _verb(name: str, short: str, text: str) -> click.Command:
    @click.command(name, cls=Command, short_help=short, example=f"parity fl {name} 3f0c…", help=text)
    @click.argument("session_id")
    @with_client
    async def command(out: Output, client: Client, session_id: str) -> None:
        found: FlSessionReply = await getattr(client.sessions, name)(session_id)
        out.emit(
            found.model_dump(mode="json"),
            f"{found.id}: {found.state}, round {min(found.round, found.total_rounds)}/{found.total_rounds}",
        )
        if name == "stop" and found.message and found.state == "cancelled":
            out.say(f"{found.message}; nothing is left of it, its money is yours again")

    return command


pause = _verb("pause", "Let a session wait.", "Let the open round wait; nodes keep their parts.")
stop = _verb(
    "stop",
    "End a session after the open round.",
    "Make the open round the last one; its model is the result. A session that waits for nodes ends at once.",
)


async def follow(out: Output, client: Client, session_id: str) -> FlSessionReply:
    """Print rounds as they close, and why no node takes a part; return the session when it has ended."""
    import anyio

    from parity_cli.screens.sessions import round_line

    last = None
    said = ""
    async with anyio.create_task_group() as beside:
        beside.start_soon(tell_why, out, client, session_id)
        async for found, closed in client.sessions.follow(session_id):
            last = found
            for one in closed:
                out.say(round_line(one, total=found.total_rounds))
            if found.message and found.message != said:
                said = found.message
                out.say(said)
        beside.cancel_scope.cancel()
    assert last is not None
    return await client.sessions.show(session_id)


def _raise_unless_completed(found: FlSessionReply) -> None:
    from parity_client.results import raise_unless_completed

    raise_unless_completed(found.id, found.state, None, found.message)


def _screen(found: FlSessionReply) -> Any:
    from parity_cli.screens.sessions import session_screen

    return session_screen(found)
