"""The market's side: carries what the market asks to the nodes, and their updates to the market.

Not a ``Strategy``: ``start`` waits for all nodes for ever, and its rules see what nodes say of themselves. The market's
own rounds decide who is asked, when a round closes, and what an update weighs.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from .line import Line

__all__ = ["app"]

LOOK_S = 0.1  # between two looks for replies and for the market's next round
ANSWER_S = 120.0  # of the market
AGAIN_S = 2.0  # before a node that could not be reached is asked again
MAX_TRIES = 50  # for one part in one round: its deadline ends it earlier


def main(grid: Grid, context: Context) -> None:
    """Carry rounds until the market says that there are none any more."""
    with Line(str(context.run_config["bridge"]), timeout_s=ANSWER_S) as line:
        Courier(grid, line).run()


class Courier:
    """What is on its way."""

    def __init__(self, grid: Grid, line: Line) -> None:
        self._grid = grid
        self._line = line
        self._asked: dict[tuple[int, ...], float] = {}  # round, phase, part, fence → when it may be asked again
        self._tries: Counter[tuple[int, ...]] = Counter()
        self._sent: dict[str, tuple[tuple[int, ...], str]] = {}  # message → key, the model's hash
        self._model = ("", b"")

    def run(self) -> None:
        """Turn until the session has ended."""
        while True:
            step, _ = self._line.ask({"do": "next"})
            if step["state"] == "end":
                return
            if step["state"] == "train":
                self._ask(step)
            self._collect()
            time.sleep(LOOK_S)

    def _ask(self, step: dict[str, Any]) -> None:
        now, messages, keys = time.monotonic(), [], []
        for node in step["nodes"]:
            key = (step["round"], step["phase"], node["part"], node["fence"])
            if self._asked.get(key, 0.0) > now or self._tries[key] >= MAX_TRIES:
                continue
            if not self._has_model(step["base"]):
                return  # the session has moved on
            self._asked[key] = float("inf")
            self._tries[key] += 1
            keys.append((key, step["base"]))
            messages.append(self._message(node, step["round"]))
        if messages:
            for name, sent in zip(self._grid.push_messages(messages), keys, strict=True):
                if name:
                    self._sent[name] = sent
                else:
                    self._asked[sent[0]] = now + AGAIN_S

    def _has_model(self, base: str) -> bool:
        if self._model[0] != base:
            said, model = self._line.ask({"do": "model", "base": base})
            if "refused" in said:
                return False
            self._model = (base, model)
        return True

    def _message(self, node: dict[str, Any], number: int) -> Message:
        content = RecordDict(
            {
                "model": ArrayRecord({"file": Array(np.frombuffer(self._model[1], dtype=np.uint8))}),
                "round": ConfigRecord({"step": node["step"]}),
            }
        )
        return Message(content, int(node["node_id"]), "train", group_id=str(number))

    def _collect(self) -> None:
        for reply in self._replies():
            key, base = self._sent.pop(reply.metadata.reply_to_message_id, ((), ""))
            if not key:
                continue
            try:
                metrics, update = read(reply)
            except Exception as exc:  # noqa: BLE001 - a node wrote it: nothing of it may end the others' session
                self._failed(key, base, f"{type(exc).__name__}: {exc}")
            else:
                self._line.ask({"do": "update", "metrics": metrics, **where(key, base)}, update)

    def _replies(self) -> list[Message]:
        """Return what has come; a reply that flwr cannot read is its node's failure and nobody else's."""
        names = list(self._sent)
        if not names:
            return []
        try:
            return list(self._grid.pull_messages(names))
        except (KeyError, ValueError, TypeError):
            found: list[Message] = []
        for name in names:
            try:
                found += self._grid.pull_messages([name])
            except (KeyError, ValueError, TypeError) as exc:
                self._failed(*self._sent.pop(name), f"its reply cannot be read: {exc}")
        return found

    def _failed(self, key: tuple[int, ...], base: str, reason: str) -> None:
        """Tell the market; the part is asked again while the round is open."""
        self._asked[key] = time.monotonic() + AGAIN_S
        self._line.ask({"do": "failed", "reason": reason[:500], **where(key, base)})


def where(key: tuple[int, ...], base: str) -> dict[str, Any]:
    """Return what a message was about."""
    number, phase, part, fence = key
    return {"round": number, "phase": phase, "part": part, "fence": fence, "base": base}


def read(reply: Message) -> tuple[dict[str, float], bytes]:
    """Return a reply's numbers and update.

    Raises:
        RuntimeError: The node says that it has none.
    """
    if reply.has_error():
        raise RuntimeError(str(reply.error.reason))
    update = reply.content["update"]["file"].numpy().tobytes()  # flwr never unpickles an array
    return {name: float(value) for name, value in reply.content["metrics"].items()}, update


app = ServerApp()
app.main()(main)
