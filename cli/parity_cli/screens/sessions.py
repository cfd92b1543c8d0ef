"""The screens of federated sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity_cli.output import printable
from parity_cli.screens.cells import cell, measure
from parity_protocol.api.rounds import FlRoundReply, FlSessionReply
from parity_protocol.quantities import format_bytes

__all__ = ["contributions_screen", "round_line", "session_screen", "sessions_screen"]

_SCORES = ("accuracy", "r2", "loss")
_ESTIMATES = ("oob_local_mean", "oob_federated")  # of a forest, on rows that trained
_PRIVACY = {"epsilon": "EPSILON", "clip_norm": "CLIP"}  # of sessions with differential privacy
_SHORT = 8


def round_line(one: FlRoundReply, *, total: int) -> str:
    """Return one closed round for a running display."""
    scores = "  ".join(f"{name} {one.metrics[name]:.4f}" for name in _SCORES if _is_number(one.metrics.get(name)))
    scores += "".join(f"  {name} {_short(one.metrics[name])}" for name in _PRIVACY if name in one.metrics)
    if left := one.metrics.get("phases_left"):  # of a forest an estimate
        scores += f"  about {left} left"
    taken = sum(update.state == "accepted" for update in one.updates)
    rejected = [f"part {update.part}: {update.reason}" for update in one.updates if update.state == "rejected"]
    phase = _phase(one)
    line = f"round {one.round}/{total}{phase}  {scores}  {taken} of {len(one.cohort)} updates"
    return printable("; ".join([line, *rejected]))


def sessions_screen(sessions: Sequence[FlSessionReply]) -> RenderableType:
    """Return the list of sessions, one line each."""
    if not sessions:
        return Text("no sessions yet: parity fl run --help")
    table = Table(box=None, pad_edge=False)
    for name in ("ID", "STATE", "ROUND", "BEGAN"):
        table.add_column(name, no_wrap=True)
    for one in sessions:
        done = min(one.round, one.total_rounds)
        table.add_row(one.id, cell(one.state), f"{done}/{one.total_rounds}", f"{one.created_at:%Y-%m-%d %H:%M}")
    return table


def session_screen(found: FlSessionReply) -> RenderableType:
    """Return a session: its rounds, then what each part gave."""
    head = [
        f"session  {found.id}",
        f"state    {found.state}, round {min(found.round, found.total_rounds)}/{found.total_rounds}",
    ]
    if "engine" in found.settings:
        head.append(f"engine   {printable(str(found.settings['engine']))}")
    if found.message:
        head.append(f"message  {printable(found.message)}")
    warnings = found.settings.get("warnings")
    head += [f"note     {printable(str(one))}" for one in warnings] if isinstance(warnings, list) else []
    head += _origin(found)
    if found.result_cid:
        head.append(f"model    {found.result_cid}")
    told = [name for name in (*_SCORES, *_ESTIMATES) if found.metrics.get(name) is not None]
    head += [f"{name:<8} {measure(found.metrics[name])}" for name in told]
    if not found.rounds:
        return Text(printable("\n".join(head)))
    table = Table(box=None, pad_edge=False)
    private = [name for name in _PRIVACY if any(name in one.metrics for one in found.rounds)]
    spent = [_PRIVACY[name] for name in private]
    for name in ("ROUND", "STATE", "ACCURACY", "R2", "LOSS", *spent, "UPDATES", "BYTES"):
        table.add_column(name, justify="left" if name == "STATE" else "right", no_wrap=True)
    for one in found.rounds:
        taken = sum(update.state == "accepted" for update in one.updates)
        table.add_row(
            cell(f"{one.round}{_phase(one)}"),
            cell(one.state),
            *(_number(one.metrics.get(name)) for name in _SCORES),
            *(_short(one.metrics.get(name)) for name in private),
            f"{taken}/{len(one.cohort)}",
            format_bytes(sum(update.size for update in one.updates)),
        )
    return Group(Text(printable("\n".join(head))), Text(""), table, Text(""), _parts(found))


def contributions_screen(
    session_id: str, method: str, base_share: float, parts: Sequence[Mapping[str, Any]]
) -> RenderableType:
    """Return what each part of a session gave, and the share of its reward that follows that."""
    head = [f"session  {session_id}", f"scored   {method}, {1 - base_share:.0%} of the reward follows it"]
    table = Table(box=None, pad_edge=False)
    for name in ("PART", "NODE", "ROUNDS", "CONTRIBUTION", "SHARE"):
        table.add_column(name, justify="left" if name == "NODE" else "right", no_wrap=True)
    for part in parts:
        share = "" if part["share"] is None else f"{part['share']:.0%}"
        row = (str(part["part"]), part["node_id"][:_SHORT], str(len(part["rounds"])))
        table.add_row(*row, f"{part['contribution']:+.4f}", share)
    if not parts:
        head.append("no round has scored parts yet")
    return Group(Text(printable("\n".join(head))), Text(""), table)


def _phase(one: FlRoundReply) -> str:
    """Return what is behind a round's number: what a phase asks for, or which one it is."""
    return f" {printable(one.asks)}" if one.asks != "train" else f" phase {one.phase}" if one.phase else ""


def _origin(found: FlSessionReply) -> list[str]:
    """Return what holds of the settings and who said it, and what the session goes on from."""
    lines = []
    sources = found.settings.get("sources")
    if isinstance(sources, dict) and sources:
        said = [f"{name} {entry[0]} ({entry[1]})" for name, entry in sources.items() if isinstance(entry, list)]
        lines.append(f"settings {', '.join(said)}")
    if assignment := found.settings.get("assignment_hash"):
        lines.append(f"cut      {printable(str(assignment))}")
    origin = found.settings.get("resumed_from")
    if isinstance(origin, dict):
        lines.append(f"resumed  after round {origin.get('round')} of {origin.get('session_id')}, {origin.get('cid')}")
    return lines


def _parts(found: FlSessionReply) -> RenderableType:
    """Return what each part gave over all rounds that are shown."""
    table = Table(box=None, pad_edge=False)
    for name in ("PART", "NODE", "ACCEPTED", "REJECTED", "CONTRIBUTION"):
        table.add_column(name, justify="left" if name == "NODE" else "right", no_wrap=True)
    updates = [update for one in found.rounds for update in one.updates]
    for part in sorted({update.part for update in updates}):
        mine = [update for update in updates if update.part == part]
        scored = [value for update in mine if _is_number(value := update.metrics.get("contribution"))]
        table.add_row(
            str(part),
            mine[-1].node_id[:_SHORT],
            str(sum(update.state == "accepted" for update in mine)),
            str(sum(update.state == "rejected" for update in mine)),
            f"{sum(float(str(value)) for value in scored):+.4f}" if scored else "",
        )
    return table


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else ""
