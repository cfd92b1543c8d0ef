"""``parity task``: submit work and follow it."""

from __future__ import annotations

import base64
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.exit_codes import FAILED_CHECK, OK
from parity_cli.lazy import Group
from parity_cli.output import Output
from parity_cli.place import open_chain, with_client
from parity_cli.task_spec import spec_of, spec_options
from parity_cli.waiting import tell_why
from parity_protocol.errors import InvalidInput, NotFound, ParityError, Unavailable

if TYPE_CHECKING:
    from parity_client import Client, Result
    from parity_protocol.api.tasks import EventReply, GroupReply, TaskReply
    from parity_protocol.ids import Address

MAX_SHOWN_FILES = 20  # of a result folder


@click.group(cls=Group, short_help="Submit work and follow it.")
def task() -> None:
    """Submit work and follow it: to its result, to its receipt, to its pay."""


@task.command(
    short_help="Submit work.",
    context_settings={"ignore_unknown_options": False},
    example="""
    parity task submit --reward 0.1 --wait -- echo hello
    parity task submit --reward 0.5 --input rows=bafy… --timeout 10m -- wc -l inputs/rows
    parity task submit --reward 1 --image debian:12 --memory 256m --wait -- cat /etc/os-release
    parity task submit --reward 2 --spec forest.json --wait
    parity task submit --reward 2 --spec forest.json --dry-run
    """,
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--reward", required=True, metavar="TOKENS", help="What it pays in all, in whole tokens.")
@click.option("--max-reward", metavar="TOKENS", help="What the signed order allows at most. Default: the reward.")
@spec_options
@click.option("--valid-for", default="24h", show_default=True, metavar="DURATION", help="Time in which it may start.")
@click.option("--dry-run", is_flag=True, help="Ask whether it would be taken; sign and send nothing.")
@click.option("--wait", "waits", is_flag=True, help="Follow it, and print the result.")
@with_client
async def submit(out: Output, client: Client, **given: Any) -> None:
    """Sign an order and submit work: a COMMAND (behind --), a container with --image, or any task by --spec.

    A command is an argument list, which no shell reads, unless --shell asks for one. Its inputs lie in the folder `inputs`,
    of a container in `/inputs`, by their names; with --output the files that it writes to `/output` come back. It
    reaches no network but the hosts of --egress. --spec takes the Parity network's form too. A federated-learning
    spec becomes one task for each part, and its merged result is the group's.
    """
    from parity_protocol.quantities import parse_duration

    spec = spec_of(given)
    if given["dry_run"]:
        checked = await client.check(spec, given["reward"])
        tasks = "1 task" if checked.parts == 1 else f"{checked.parts} tasks"
        out.emit(checked.model_dump(mode="json"), f"the market would take it, as {tasks}; nothing was signed")
        return
    submission = await client.submit(
        spec, given["reward"], max_reward=given["max_reward"], valid_for=parse_duration(given["valid_for"])
    )
    document: dict[str, Any] = {
        "id": submission.id,
        "kind": submission.kind,
        "task_ids": list(submission.task_ids),
        "created": submission.created,
    }
    if not given["waits"]:
        parts = f" ({len(submission.task_ids)} parts)" if submission.kind == "group" else ""
        out.say(f"submitted {submission.kind}{parts}; next: parity task result --wait {submission.id}")
        out.emit(document, submission.id)
        return
    out.context.update(document)
    out.say(f"submitted {submission.kind} {submission.id}")
    await _follow(out, client, submission.id, None)
    found = await client.result(submission.id)
    out.emit({**document, "result": _result_document(found)}, _result_text(found))


@task.command("list", short_help="List your tasks.", example="parity task list --limit 20")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the next page begins, as the last one told.")
@with_client
async def list_tasks(out: Output, client: Client, limit: int, cursor: str | None) -> None:
    """List your tasks, newest first."""
    page = await client.tasks(limit=limit, cursor=cursor)
    from parity_cli.screens.task import tasks_screen

    document = client.document
    out.emit(
        page.model_dump(mode="json"),
        lambda: tasks_screen(
            page.tasks, symbol=document.token_symbol, decimals=document.token_decimals, now=datetime.now(UTC)
        ),
    )
    if page.next_cursor and not out.json:
        out.say(f"more: parity task list --limit {limit} --cursor {page.next_cursor}")


@task.command(
    short_help="Show a task, step by step.",
    example="""
    parity task show 3f0c…
    parity task show --prove 3f0c…
    """,
)
@click.argument("task_id")
@click.option(
    "--prove", is_flag=True, help="Check the receipt's signer on chain too; exit status 1 if it does not hold."
)
@with_client
async def show(out: Output, client: Client, task_id: str, prove: bool) -> int:
    """Show a task or a group: state, steps, who did it, what it paid.

    The receipt of a completed task is checked here: order, spec, lease, result and the operator's signature.
    """
    from parity_protocol.api.tasks import GroupReply

    found, now = await client.find(task_id), datetime.now(UTC)
    from parity_cli.screens.task import group_screen, task_screen

    symbol, decimals = client.document.token_symbol, client.document.token_decimals
    if isinstance(found, GroupReply):
        if prove:
            raise click.UsageError("each task of a group has a receipt of its own: name one of them")
        group = found
        out.emit(group.model_dump(mode="json"), lambda: group_screen(group, symbol=symbol, decimals=decimals, now=now))
        return OK
    events = (await client.events(task_id)).events
    document = found.model_dump(mode="json") | {"events": [each.model_dump(mode="json") for each in events]}
    if found.state == "completed" or prove:
        document["receipt"] = await _receipt(client, task_id, prove=prove)
    out.emit(document, lambda: task_screen(found, events, document.get("receipt"), symbol=symbol, decimals=decimals))
    return FAILED_CHECK if prove and not document["receipt"]["valid"] else OK


async def _receipt(client: Client, task_id: str, *, prove: bool) -> dict[str, Any]:
    """Return whether the receipt holds; what is wrong with it is part of the screen, not its end."""
    try:
        proof = await client.proof(task_id)
        operator = await _operator_on_chain(client, proof.node_id) if prove else None
        verified = client.verify(proof, operator=operator)
    except Unavailable:
        raise  # nothing is known about it
    except ParityError as exc:
        return {"valid": False, "problem": exc.message}
    return {
        "valid": True,
        "operator": verified.operator,
        "on_chain": prove,
        "finished_at": verified.finished_at.isoformat(),
    }


async def _operator_on_chain(client: Client, node_id: str) -> Address:
    """Return who may sign for a node, as the chain says.

    Raises:
        NotFound: The chain names nobody.
    """
    async with open_chain(client, click.get_current_context().params["market"]) as chain:
        operator = (await chain.account(node_id)).operator
    if operator is None:
        raise NotFound(f"the chain names no operator for node {node_id}")
    return operator


@task.command(
    short_help="Print a task's result.",
    example="""
    parity task result 3f0c… --wait
    parity task result 3f0c… -o model.bin
    parity task result 3f0c… -o folder
    """,
)
@click.argument("task_id")
@click.option("--wait", "waits", is_flag=True, help="Wait until it has ended.")
@click.option("--timeout", metavar="DURATION", help="Wait at most so long.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the content to a new file or folder.")
@with_client
async def result(
    out: Output, client: Client, task_id: str, waits: bool, timeout: str | None, output: Path | None
) -> None:
    """Print the result of a task or a group, verified against its CID. Exit status 70 if the task failed."""
    from parity_protocol.quantities import format_bytes, parse_duration

    if waits or timeout:
        await _follow(out, client, task_id, parse_duration(timeout).total_seconds() if timeout else None)
    found = await client.result(task_id)
    document = _result_document(found)
    if output is not None:
        if found.cid is None:
            raise NotFound(f"{task_id} has metrics and no content")
        if found.data is not None and found.files is None:
            _write_new(output, found.data)
        else:
            await client.data.get(found.cid, output)
        document["path"] = str(output)
        out.emit(document, f"{output}  {format_bytes(found.size or 0)}, verified against {found.cid}")
        return
    out.emit(document, _result_text(found))


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise InvalidInput(f"{path} exists already", hint="Choose another --output.", field="output") from None
    except OSError as exc:
        raise NotFound(f"{path}: {exc.strerror}") from exc


def _result_document(found: Result) -> dict[str, Any]:
    return {
        "id": found.id,
        "kind": found.kind,
        "state": found.state,
        "node_id": found.node_id,
        "cid": found.cid,
        "size": found.size,
        "exit_code": found.exit_code,
        "metrics": found.metrics,
        "output": found.output,
        "data": None if found.data is None or found.output is not None else base64.b64encode(found.data).decode(),
        "files": None if found.files is None else [{"path": each.path, "size": each.size} for each in found.files],
    }


def _result_text(found: Result) -> str:
    from parity_cli.output import printable
    from parity_cli.screens.cells import measure
    from parity_protocol.quantities import format_bytes

    # What it printed, alone; a model is no text: its header alone has zero bytes, and is described by its metrics.
    if found.kind == "task" and found.output is not None and found.files is None and "\0" not in found.output:
        return found.output.removesuffix("\n")
    lines = [found.output.removesuffix("\n")] if found.files is not None and found.output else []
    lines += [f"{printable(name):<24} {measure(value)}" for name, value in sorted(found.metrics.items())]
    if found.cid is not None:
        lines += [
            f"{format_bytes(each.size):>9}  {printable(each.path)}" for each in (found.files or ())[:MAX_SHOWN_FILES]
        ]
        if found.files is not None and len(found.files) > MAX_SHOWN_FILES:
            lines.append(f"{'':>9}  … and {len(found.files) - MAX_SHOWN_FILES} more")
        lines.append(f"content  {found.cid}  {format_bytes(found.size or 0)}")
        lines.append(f"next: parity task result {found.id} -o {'FILE' if found.files is None else 'FOLDER'}")
    return "\n".join(lines)


@task.command(
    short_help="Print what a task prints.",
    example="""
    parity task logs 3f0c…
    parity task logs -f 3f0c…
    """,
)
@click.argument("task_id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@with_client
async def logs(out: Output, client: Client, task_id: str, follow: bool) -> None:
    """Print the newest attempt's standard output and error."""
    text = []
    if follow and (await client.find(task_id)).state == "pending":
        out.say(f"it waits for a node; the reason: parity task why {task_id}")
    async for piece in client.logs(task_id, follow=follow):
        if out.json:
            text.append(piece)
        else:
            click.echo(_for_terminal(piece), nl=False)
    out.emit({"task_id": task_id, "text": "".join(text)})


@task.command(short_help="Cancel a task or a group.", example="parity task cancel 3f0c…")
@click.argument("task_id")
@with_client
async def cancel(out: Output, client: Client, task_id: str) -> None:
    """Cancel a task, or every task of a group that has not ended; what was bound for it is free again."""
    reply = await client.cancel(task_id)
    out.emit(reply.model_dump(mode="json"), f"{reply.id}: {reply.state}, {len(reply.cancelled)} cancelled")


@task.command(short_help="Tell why a task waits.", example="parity task why 3f0c…")
@click.argument("task_id")
@with_client
async def why(out: Output, client: Client, task_id: str) -> None:
    """Tell, for each node that did not get it, the constraint that failed."""
    from parity_protocol.api.tasks import GroupReply

    found = await client.find(task_id)
    members = found.tasks if isinstance(found, GroupReply) else (found,)
    waiting = [each.id for each in members if each.state == "pending"] or [members[0].id]
    replies = [await client.why(each) for each in waiting[:32]]
    from parity_cli.screens.task import why_screen

    document: dict[str, Any] = {"id": task_id, "tasks": [reply.model_dump(mode="json") for reply in replies]}
    out.emit(document, lambda: why_screen(replies))


def _for_terminal(text: str) -> str:
    """Return what a task printed: as it is for a program or a file, harmless for a terminal."""
    from parity_cli.output import printable

    return printable(text) if sys.stdout.isatty() else text


async def _follow(out: Output, client: Client, root_id: str, timeout_s: float | None) -> TaskReply | GroupReply:
    """Show each step on standard error until the end, and why nothing happens while nothing does."""
    import anyio

    from parity_cli.screens.task import event_line

    def tell(task_id: str, event: EventReply) -> None:
        out.show(event_line(task_id, event))

    out.goes_on = f"The work goes on: `parity task result --wait {root_id}` gets its result, `parity task cancel {root_id}` ends it."
    with out.console.status("waiting … Ctrl-C stops watching, not the work"):
        async with anyio.create_task_group() as beside:
            beside.start_soon(tell_why, out, client, root_id)
            found = await client.wait(root_id, timeout=timeout_s, on_event=tell)
            beside.cancel_scope.cancel()
    return found
