"""Sessions at the market in memory: nothing is learned, but rounds close and models move on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import httpx

from parity_client.testing.clock import JumpClock
from parity_client.testing.storage import FakeStorage
from parity_protocol.api import paths
from parity_protocol.errors import InvalidTransition, NotFound

__all__ = ["FakeSession", "FakeTraining"]

ENDED = frozenset({"completed", "failed", "cancelled"})
_PIECE_BYTES = 1 << 16


@dataclass
class FakeSession:
    """A session as the market has it. Change what a test needs."""

    id: str
    creator: str
    spec: dict[str, Any]
    parts: int
    total_rounds: int
    created_at: datetime
    state: str = "running"
    round: int = 1
    message: str = ""
    result_cid: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)  # that have closed
    model: bytes = b"the model of round 1"
    checkpoints: dict[int, str] = field(default_factory=dict)  # CIDs by round


class FakeTraining:
    """Answers the requests about sessions.

    Attributes:
        sessions: By id.
        closes_rounds: Whether a long poll closes the open round, and after the last one the session.
        breaks_after: Bytes of a model after which the next transfer breaks, once.
        sent: Range and status of each transfer of a model.
    """

    def __init__(self, storage: FakeStorage, clock: JumpClock, node_id: str) -> None:
        self.sessions: dict[str, FakeSession] = {}
        self.closes_rounds = True
        self.breaks_after: int | None = None
        self.sent: list[tuple[str, int]] = []
        self._storage = storage
        self._clock = clock
        self._node_id = node_id

    def begin(
        self, session_id: str, creator: str, spec: dict[str, Any], parts: int, *, in_rounds: bool = True
    ) -> FakeSession:
        """Begin a session; its first round is open. One that does not train in rounds has none."""
        rounds = spec.get("rounds_config", {})
        total = spec.get("total_rounds", 3) if in_rounds else 1
        made = FakeSession(session_id, creator, spec, parts, total, self._clock.now(), round=int(in_rounds))
        made.settings = {"rounds": rounds, "strategy": spec.get("strategy_config", {}), "warnings": []}
        self.sessions[session_id] = made
        return made

    async def close_round(self, session: FakeSession, **metrics: float) -> None:
        """Close the open round; after the last one the session has completed."""
        number, now = session.round, self._clock.now().isoformat()
        loss = 1.0 / number
        scores = {"accuracy": round(1.0 - loss / 2, 4), "loss": round(loss, 4), **metrics}
        update = {"node_id": self._node_id, "fence": 1, "sha256": "ab" * 32, "size": 1 << 20, "received_at": now}
        session.rounds.append(
            {
                "round": number,
                "phase": 0,
                "state": "closed",
                "base": sha256(session.model).hexdigest(),
                "base_size": len(session.model),
                "cohort": list(range(session.parts)),
                "metrics": scores,
                "updates": [{**update, "part": part, "state": "accepted"} for part in range(session.parts)],
                "opened_at": now,
                "closed_at": now,
            }
        )
        session.round += 1
        session.model = b"the model of round %d" % session.round
        if number >= session.total_rounds or session.state == "stopping":
            session.state, session.metrics = "completed", scores
            session.result_cid = await self._storage.put(b"the finished model")

    async def answer(
        self, request: httpx.Request, path: str, query: dict[str, str], account: str
    ) -> dict[str, Any] | httpx.Response | None:
        """Return the answer to a request, or None when it is about something else."""
        if path == paths.FL_SESSIONS:
            mine = [self._shown(one) for one in self.sessions.values() if one.creator == account]
            return {"sessions": mine[::-1][: int(query["limit"])], "next_cursor": None}
        if not path.startswith(f"{paths.FL_SESSIONS}/"):
            return None
        session_id, _, leaf = path.removeprefix(f"{paths.FL_SESSIONS}/").partition("/")
        session = self.sessions.get(session_id)
        if session is None or session.creator != account:
            raise NotFound(f"there is no session {session_id} of yours here")
        if leaf == "model":
            return self._model(request, session)
        if leaf == "checkpoint":
            return _checkpoint(session, query)
        if leaf in ("pause", "resume", "stop"):
            _change(session, leaf)
        elif "wait_s" in query and session.state not in ENDED:
            await self._polled(session, float(query["wait_s"]))
        found = self._shown(session)
        first = (int(query.get("from_round", "1")), int(query.get("from_phase", "0")))
        rounds = [*session.rounds, *_open(session, found)]
        return {**found, "rounds": [one for one in rounds if (one["round"], one["phase"]) >= first][:200]}

    async def _polled(self, session: FakeSession, wait_s: float) -> None:
        self._clock.advance(wait_s)
        if not self.closes_rounds or session.state not in ("running", "stopping"):
            return
        if session.round:
            await self.close_round(session)
        else:
            session.round, session.state, session.metrics = 2, "completed", {"accuracy": 0.9, "oob_federated": 0.8}
            session.result_cid = await self._storage.put(b"the merged model")

    def _shown(self, session: FakeSession) -> dict[str, Any]:
        return {
            "id": session.id,
            "state": session.state,
            "round": session.round,
            "phase": 0,
            "total_rounds": session.total_rounds,
            "settings": session.settings,
            "message": session.message,
            "result_cid": session.result_cid,
            "metrics": session.metrics,
            "created_at": session.created_at.isoformat(),
            "updated_at": self._clock.now().isoformat(),
        }

    def _model(self, request: httpx.Request, session: FakeSession) -> httpx.Response:
        if session.state in ENDED:
            raise NotFound(f"the model of session {session.id} is not here any more")
        data, asked = session.model, request.headers.get("range", "")
        headers = {"etag": f'"{sha256(data).hexdigest()}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            self.sent.append((asked, 304))
            return httpx.Response(304, headers=headers)
        begin = 0
        if asked and request.headers.get("if-range") == headers["etag"]:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            if begin >= len(data):
                self.sent.append((asked, 416))
                return httpx.Response(416, headers=headers)
            headers["content-range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        status = 206 if begin else 200
        self.sent.append((asked, status))
        headers["content-length"] = str(len(data) - begin)
        breaks, self.breaks_after = self.breaks_after, None
        return httpx.Response(status, headers=headers, stream=_Body(data[begin:], breaks))


class _Body(httpx.AsyncByteStream):
    """A body that may break off."""

    def __init__(self, data: bytes, breaks_after: int | None) -> None:
        self._data = data
        self._breaks_after = breaks_after

    async def __aiter__(self) -> AsyncIterator[bytes]:
        whole = self._data if self._breaks_after is None else self._data[: self._breaks_after]
        for at in range(0, len(whole), _PIECE_BYTES):
            yield whole[at : at + _PIECE_BYTES]
        if self._breaks_after is not None:
            raise httpx.ReadError("the connection broke")


def _open(session: FakeSession, found: dict[str, Any]) -> list[dict[str, Any]]:
    if session.state in ENDED or not session.round:
        return []
    named = {"base": sha256(session.model).hexdigest(), "base_size": len(session.model)}
    cohort = list(range(session.parts))
    return [
        {
            "round": session.round,
            "phase": 0,
            "state": "open",
            "cohort": cohort,
            "opened_at": found["updated_at"],
            **named,
        }
    ]


def _checkpoint(session: FakeSession, query: dict[str, str]) -> dict[str, Any]:
    number = int(query.get("round", 0)) or max(session.checkpoints, default=0)
    if number not in session.checkpoints:
        raise NotFound(f"session {session.id} of yours has no checkpoint here")
    return {
        "session_id": session.id,
        "cid": session.checkpoints[number],
        "round": number,
        "total_rounds": session.total_rounds,
    }


def _change(session: FakeSession, verb: str) -> None:
    if session.state in ENDED:
        raise InvalidTransition(f"session {session.id} has ended: it is {session.state}")
    session.state = {"pause": "paused", "resume": "running", "stop": "stopping"}[verb]
    if verb == "stop" and session.round == 0:
        session.state, session.message = "cancelled", "stopped by its submitter before its first round had begun"
