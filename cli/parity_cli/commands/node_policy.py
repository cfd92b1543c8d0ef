"""``parity node policy show | test | init``: what this node takes, and why not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.commands.node_setup import config_option
from parity_cli.exit_codes import FAILED_CHECK
from parity_cli.lazy import Command, Group
from parity_cli.node_place import node_settings
from parity_cli.output import Output, pass_output
from parity_protocol.errors import BadField, Conflict, InvalidInput, NotFound, ParityError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from parity_node.settings import NodeSettings
    from parity_protocol.capability import ExecutorState

__all__ = ["policy"]

MAX_DOCUMENT_BYTES = 1 << 20  # of a task, submission or manifest that is tried
NOBODY = "0x" + "0" * 40


@click.group(cls=Group, short_help="Show, try or write the node's policy.")
def policy() -> None:
    """What this node takes: kinds, images, hosts, sizes, prices, hours. Settings and the policy file both limit it."""


@policy.command(
    cls=Command,
    short_help="Show the policy in force.",
    example="""
    parity node policy show
    parity node policy show --json
    """,
)
@config_option
@pass_output
def show(out: Output, config_path: Path | None) -> None:
    """Show each rule, its value and where that comes from. What the running node does differently is told."""
    from parity_node.operator_policy import OperatorPolicy
    from parity_protocol.clock import SystemClock

    settings = node_settings(config_path)
    document = OperatorPolicy(settings, SystemClock()).to_json()
    running = _ask(settings)
    if running is not None:
        document["running"] = {"digest": running["digest"], "problem": running["problem"]}
        if running["problem"]:
            out.warn(running["problem"])
        elif running["digest"] != document["digest"]:
            out.warn("the running node has another policy; settings count from its next start")
    out.emit(document, lambda: _screen(document))


def _screen(document: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("RULE", "VALUE", "FROM"):
        table.add_column(column, overflow="fold")
    for line in document["lines"]:
        table.add_row(line["rule"], line["value"], line["from"], style="dim" if line["from"] == "default" else None)
    return table


def _ask(settings: NodeSettings) -> dict[str, Any] | None:
    """Return the running agent's policy; None when none runs here."""
    from parity_node.control import ask_agent

    try:
        return ask_agent(settings.state_dir(), {"command": "policy"})
    except ParityError:
        return None


@policy.command(
    cls=Command,
    name="test",
    short_help="Try a task on the policy.",
    example="""
    parity node policy test task.json
    parity node policy test task.json --reward 0.5 --creator 0xB0b5…
    cat manifest.jws | parity node policy test -
    """,
)
@click.argument("file", type=click.File("rb"))
@click.option("--reward", metavar="TOKENS", help="What the task pays. Default: what the document says, else 0.")
@click.option("--creator", metavar="ADDRESS", help="Who submits it. Default: who the document says.")
@click.option("--at", metavar="TIME", help="When it is offered, such as 2026-01-05T22:30:00+01:00. Default: now.")
@config_option
@pass_output
@click.pass_context
def try_task(
    ctx: click.Context,
    out: Output,
    file: Any,
    reward: str | None,
    creator: str | None,
    at: str | None,
    config_path: Path | None,
) -> None:
    """Say whether this node would take a task: a spec, a submission or a manifest, of which no signature is checked.

    Names each rule that refuses it, and ends with status 1 if one does. Isolation is compared with what the running node
    has proved; without one that rule is left out and told.
    """
    from parity_cli.node_keys import checked_address
    from parity_node.operator_policy import OperatorPolicy
    from parity_protocol.clock import SystemClock
    from parity_protocol.policy import check_policy, least_tier
    from parity_protocol.quantities import parse_tokens
    from parity_protocol.shards import open_shard
    from parity_protocol.task import FederatedLearningSpec, TaskKind, parse_spec

    settings = node_settings(config_path)
    asked = _read(file.read(MAX_DOCUMENT_BYTES + 1))
    spec = parse_spec(asked.spec)
    if asked.shard is not None and isinstance(spec, FederatedLearningSpec) and asked.part < len(spec.shards):
        source = open_shard(asked.shard, spec.shards[asked.part]).source
        spec = spec.model_copy(update={"inputs": (source,)})
    paid = asked.reward if reward is None else parse_tokens(reward)
    sender = asked.creator if creator is None else checked_address(creator, field="creator")
    effective = OperatorPolicy(settings, SystemClock()).current
    proven = _proven(settings, TaskKind(spec.type))
    denials = check_policy(
        effective,
        spec,
        reward=paid,
        creator=sender or NOBODY,
        tier=proven.isolation if proven is not None else least_tier(effective, spec),
        now=_time(at),
    )
    unchecked = []
    if proven is None and TaskKind(spec.type) in effective.isolation:
        unchecked.append("policy.isolation: no node runs here that has proved any")
    if sender is None and (effective.creators is not None or any(rule.creators for rule in effective.deny)):
        unchecked.append("rules about submitters: give --creator")
    document = {
        "allowed": not denials,
        "kind": spec.type,
        "reward": str(paid),
        "creator": sender,
        "refusals": [{"rule": denial.rule, "message": denial.message} for denial in denials],
        "not_checked": unchecked,
    }
    lines = [f"refused  {denial.rule}: {denial.message}" for denial in denials] or ["allowed"]
    out.emit(document, "\n".join(lines))
    for each in unchecked:
        out.say(f"not checked  {each}")
    if denials:
        ctx.exit(FAILED_CHECK)


@dataclass(frozen=True)
class _Asked:
    spec: str  # JSON text
    reward: int = 0  # base units
    creator: str | None = None
    shard: str | None = None  # of a manifest of a sharded session: its part's sealed source
    part: int = 0


def _read(data: bytes) -> _Asked:
    """Read a spec, a submission (spec, order, reward), or a manifest as JSON or as its JWS.

    Raises:
        InvalidInput: None of them.
    """
    from parity_protocol import strict_json
    from parity_protocol.signing.jws import b64url_decode

    text = data.strip()
    if text.count(b".") == 2 and not text.startswith(b"{"):
        text = b64url_decode(text.split(b".")[1].decode("ascii", errors="replace"))
    document = strict_json.loads(text, max_bytes=MAX_DOCUMENT_BYTES)
    if not isinstance(document, dict):
        raise InvalidInput("expected a task, a submission or a manifest: a JSON object", field="file")
    if "spec" not in document:
        return _Asked(text.decode())
    spec, order, reward = document["spec"], document.get("order"), document.get("reward", "0")
    creator = order.get("creator") if isinstance(order, dict) else None
    shard, part = document.get("shard"), document.get("part", 0)
    if not isinstance(spec, str | dict) or not isinstance(reward, str) or not reward.isdecimal():
        raise InvalidInput("expected spec as JSON text and reward as base units in quotes", field="file")
    return _Asked(
        spec if isinstance(spec, str) else json.dumps(spec),
        int(reward),
        creator.lower() if isinstance(creator, str) else None,
        shard if isinstance(shard, str) else None,
        part if isinstance(part, int) else 0,
    )


def _proven(settings: NodeSettings, kind: str) -> ExecutorState | None:
    """Return what the running node says of a kind of task; None when no node runs or it has no executor for it."""
    from parity_node.control import ask_agent
    from parity_protocol.capability import ExecutorState

    try:
        found = ask_agent(settings.state_dir(), {"command": "status"})["executors"].get(kind)
    except ParityError:
        return None
    return None if found is None else ExecutorState.model_validate_json(json.dumps(found))


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise BadField(
            f"expected a time with its zone such as 2026-01-05T22:30:00+01:00, got {text[:40]!r}", field="at"
        )
    return found.astimezone(UTC)


@policy.command(
    cls=Command,
    short_help="Write a commented policy file.",
    example="""
    parity node policy init
    parity node policy init --file policy.toml
    """,
)
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), help="Where. Default: where the node looks for it."
)
@config_option
@pass_output
def init(out: Output, file: Path | None, config_path: Path | None) -> None:
    """Write a policy file in which everything is explained and commented out. One that is there is left alone."""
    from parity_node.operator_policy import policy_path
    from parity_node.policy_sample import POLICY_SAMPLE

    path = file or policy_path(node_settings(config_path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as exc:
        raise Conflict(f"{path} is there already, and is left as it is") from exc
    except OSError as exc:
        raise NotFound(f"{path} cannot be written") from exc
    with os.fdopen(descriptor, "w", encoding="utf-8") as written:
        written.write(POLICY_SAMPLE)
    out.emit({"file": str(path)}, f"wrote {path}\nnext: edit it, then parity node policy show")
