"""Whole rounds between real processes: a market and its nodes on loopback train a small network, and a large one."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
from sklearn.datasets import load_digits

from benchmarks.figures import Aim, Figure, NotAvailable, percentile
from benchmarks.fl_flower import flowers_own
from benchmarks.proc import forget_peak, peak_bytes, program_of, tree_of
from benchmarks.stage import TOKEN, Stage, open_stage
from parity_cli.demo.stack import PARITY, StackSettings
from parity_fl.engines.flower import FLWR_VERSION, is_installed
from parity_fl.engines.flower.home import engines_home

__all__ = ["rounds"]

NODES = 2
ADDING_NODE = (sys.executable, "-m", "benchmarks.adding_node")
ROUNDS, QUICK_ROUNDS = 150, 60
ROWS = 60
SMALL = (13,)  # 985 parameters
MANY, LARGE = 10, (3_095, 3_095)  # 9.8 M parameters
LARGE_BYTES = 4 * sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise((64, *LARGE, 10)))
LARGE_ROUNDS = 5
FLOWER_ROUNDS = 4
SERVICES = Path(__file__).resolve().parents[2] / "scripts" / "services"
WITHIN_S = 300.0


async def rounds(*, quick: bool) -> list[Figure]:
    """Return what a round costs when there is next to nothing to train, and when updates are large."""
    total = QUICK_ROUNDS if quick else ROUNDS
    async with _stage(NODES) as stage:
        took_ms = await _session(stage, _settings(SMALL, NODES, total))
    note = f"{total} rounds, {NODES} nodes, 985 parameters, one pass over {ROWS // NODES} rows; p90"
    note = f"{note} {percentile(took_ms, 0.9):.1f} ms; a round is on disk before the next begins"
    found = [
        Figure("a round with next to nothing to train", median(took_ms), "ms", Aim(20, "at most"), note),
        *await _by_flower(),
    ]
    if quick:  # ten nodes with a large model take minutes where two processors are shared
        return found
    found += await _large(ADDING_NODE, with_peak=True)
    found += await _large([*PARITY, "node", "run"], with_peak=False)
    return found


async def _by_flower() -> list[Figure]:
    """Return the same round with Flower between the market and the nodes, and by Flower alone."""
    name = "  the same, carried by Flower"
    engines = await anyio.to_thread.run_sync(_flower_home)
    if engines is None:
        return [Figure(name, None, "ms", note="not installed: parity fl engine install flower")]
    async with _stage(NODES, {"PARITY_ENGINES": engines}) as stage:
        took_ms = await _session(stage, {**_settings(SMALL, NODES, FLOWER_ROUNDS), "engine": "flower"})
    note = f"{FLOWER_ROUNDS} rounds, flwr {FLWR_VERSION}, TLS, registered keys, sandboxed SuperNodes"
    return [Figure(name, median(took_ms), "ms", note=note), await flowers_own(engines)]


def _flower_home() -> str | None:
    """Return where Flower's environment is: the user's own, or the tests'."""
    if is_installed():
        return str(engines_home())
    found = subprocess.run([SERVICES, "path", "flower"], capture_output=True, check=False, text=True, timeout=60)
    return found.stdout.strip() or None if found.returncode == 0 else None


async def _large(node: Sequence[str], *, with_peak: bool) -> list[Figure]:
    """Return what a round of ten nodes and a large model takes.

    The aims are for the round itself, as the figures that they come from were taken (federated-learning.md §1.6): a
    client that adds to its model. With the nodes' own training, of which ten share this machine, it is another figure.
    """
    found: list[Figure] = []
    async with _stage(MANY, node=node) as stage:
        await _session(stage, _settings(SMALL, MANY, 3))  # every process is there before one is said to be idle
        for update_format, limit_s in (("fp32", 3), ("fp16", 2)):
            aim = Aim(limit_s, "at most") if with_peak else None
            name = f"a large round, {update_format}" if with_peak else f"  with the nodes' training, {update_format}"
            try:
                found += await _large_session(stage, update_format, name, aim)
            except* NotAvailable as exc:
                found.append(Figure(name, None, "s", aim, str(exc.exceptions[0])))
    return found


async def _large_session(stage: Stage, update_format: str, name: str, aim: Aim | None) -> list[Figure]:
    for pid in _of_market(stage):
        forget_peak(pid)
    began = {pid: peak_bytes(pid) for pid in _of_market(stage)}
    took_ms = await _session(stage, _settings(LARGE, MANY, LARGE_ROUNDS, update_format))
    grown = sum(peak_bytes(pid) - began.get(pid, 0) for pid in _of_market(stage))
    note = f"{MANY} nodes on this machine, {LARGE_BYTES / 4e6:.1f} M parameters"
    note = f"{note}; each node adds to its model" if aim else f"{note}; a step of SGD each"
    found = [Figure(name, median(took_ms) / 1e3, "s", aim, note)]
    if aim is None:
        return found
    above = f"market and its worker, each at its own peak, above {sum(began.values()) / 1e6:.0f} MB before the session"
    return [*found, Figure("  market's peak above idle", grown / LARGE_BYTES, "models", Aim(4, "at most"), above)]


def _of_market(stage: Stage) -> list[int]:
    """Return the market and the workers of its rounds; others live for a moment."""
    (market,) = stage.pids()["market"]
    return [market, *(pid for pid in tree_of(market) if "parity_market.round_child" in program_of(pid))]


@asynccontextmanager
async def _stage(
    nodes: int, more: Mapping[str, str] | None = None, *, node: Sequence[str] = (*PARITY, "node", "run")
) -> AsyncGenerator[Stage]:
    settings = StackSettings(slots=1, market=more or {}, node={"RUNNER_DISK_FLOOR": "0", **(more or {})})
    async with open_stage(nodes=nodes, command=node, settings=settings) as stage:
        yield stage


def _settings(hidden: tuple[int, ...], nodes: int, total: int, update_format: str = "fp16") -> dict[str, Any]:
    partition = {"strategy": "random", "total_parts": nodes, "min_samples": 2, "holdout_fraction": 0.1}
    return {
        "type": "federated_learning",
        "model_type": "neural_network",
        "data_format": "csv",
        "model_config": {"hidden_layers": list(hidden)},
        "train_config": {"epochs": 1, "batch_size": ROWS, "learning_rate": 0.01},
        "partition_config": partition,
        "rounds_config": {"update_format": update_format},
        "total_rounds": total,
    }


async def _session(stage: Stage, settings: dict[str, Any]) -> list[float]:
    """Train one session; return the milliseconds from the end of a round to the end of the next."""
    async with stage.client() as client:
        file = stage.stack.folder / f"{uuid4().hex}.csv"
        await anyio.Path(file).write_text(_rows())
        cid = (await client.data.add(file)).cid
        made = await client.submit({**settings, "dataset_cid": cid}, TOKEN)
        group = await client.group(made.id)
        with anyio.move_on_after(WITHIN_S):
            while (group := await client.group(made.id, wait_s=5.0)).state == "running":
                pass
        if group.state == "running":
            raise NotAvailable(f"{settings['total_rounds']} rounds have not ended in {WITHIN_S:g} s")
        if group.state != "completed":
            raise RuntimeError(f"the session ended {group.state}: {group.message}")
        shown = await client.sessions.show(made.id)
    ends = sorted(each.closed_at for each in shown.rounds if each.closed_at is not None)
    return [(after - before).total_seconds() * 1e3 for before, after in pairwise(ends)]


def _rows() -> str:
    found, text = load_digits(), io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*(f"p{place}" for place in range(64)), "digit"])
    table.writerows([*row, label] for row, label in zip(found.data[:ROWS], found.target, strict=False))
    return text.getvalue()
