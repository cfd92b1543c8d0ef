"""Whole rounds between real processes: a market and two nodes on loopback train a small network."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from statistics import median
from uuid import uuid4

import anyio
from sklearn.datasets import load_digits

from benchmarks.figures import Aim, Figure, percentile
from benchmarks.stage import TOKEN, Stage, open_stage
from parity_cli.demo.stack import PARITY, StackSettings

__all__ = ["rounds"]

NODES = 2
ROUNDS, QUICK_ROUNDS = 150, 60
ROWS = 60
HIDDEN = 13  # 985 parameters
WITHIN_S = 120.0


async def rounds(*, quick: bool) -> list[Figure]:
    """Return what a round costs when there is next to nothing to train."""
    total = QUICK_ROUNDS if quick else ROUNDS
    settings = StackSettings(slots=1, node={"RUNNER_DISK_FLOOR": "0"})
    async with open_stage(nodes=NODES, command=[*PARITY, "node", "run"], settings=settings) as stage:
        took_ms = await _session(stage, total)
    note = f"{total} rounds, {NODES} nodes, 985 parameters, one pass over {ROWS // NODES} rows; p90"
    note = f"{note} {percentile(took_ms, 0.9):.1f} ms; a round is on disk before the next begins"
    return [Figure("a round with next to nothing to train", median(took_ms), "ms", Aim(20, "at most"), note)]


async def _session(stage: Stage, total: int) -> list[float]:
    """Train one session; return the milliseconds from the end of a round to the end of the next."""
    async with stage.client() as client:
        file = stage.stack.folder / f"{uuid4().hex}.csv"
        await anyio.Path(file).write_text(_rows())
        cid = (await client.data.add(file)).cid
        session = {
            "type": "federated_learning",
            "model_type": "neural_network",
            "dataset_cid": cid,
            "data_format": "csv",
            "model_config": {"hidden_size": HIDDEN},
            "train_config": {"epochs": 1, "batch_size": ROWS, "learning_rate": 0.1},
            "partition_config": {"strategy": "random", "total_parts": NODES, "min_samples": 5, "holdout_fraction": 0.1},
            "total_rounds": total,
        }
        made = await client.submit(session, TOKEN)
        with anyio.fail_after(WITHIN_S):
            while (group := await client.group(made.id, wait_s=5.0)).state == "running":
                pass
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
