"""Federated sessions: list, follow, pause, resume, stop, and the newest model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from parity_client.download import Downloaded, OnProgress, download
from parity_client.http import MarketHttp, parse_reply
from parity_protocol.api import paths
from parity_protocol.api.rounds import FlCheckpointReply, FlRoundReply, FlSessionReply, FlSessionsReply

if TYPE_CHECKING:
    from parity_client.session import Session

__all__ = ["FlSessions"]

MAX_MODEL_BYTES = 1 << 30  # the market makes no larger one
FOLLOW_S = 25.0  # that one question waits at the market
ENDED = frozenset({"completed", "failed", "cancelled"})

SignedCall = Callable[[Callable[["Session"], Awaitable[bytes]]], Awaitable[bytes]]


class FlSessions:
    """The submitter's sessions at one market; ``Client.sessions``. An id is the group's that a submission became.

    Args:
        http: The market.
        signed: Sends with a session's key, and again where that is safe.
    """

    def __init__(self, http: Callable[[], MarketHttp], signed: SignedCall) -> None:
        self._http = http
        self._signed = signed

    async def list(self, *, limit: int = 50, cursor: str | None = None) -> FlSessionsReply:
        """Return sessions, newest first, without their rounds."""
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        return parse_reply(FlSessionsReply, await self._get(paths.FL_SESSIONS, query))

    async def show(
        self,
        session_id: str,
        *,
        from_round: int = 1,
        from_phase: int = 0,
        after_round: int = 0,
        after_phase: int | None = None,
        wait_s: float = 0.0,
    ) -> FlSessionReply:
        """Return a session with at most 200 rounds, each phase of one counted, from ``from_round`` on.

        Args:
            session_id: The group's id.
            from_round: First round that is listed.
            from_phase: First phase of that round that is listed.
            after_round: With ``wait_s``: answer once the session is past this round or has ended.
            after_phase: Or past this phase of it; None waits for all phases.
            wait_s: Seconds to wait for that.

        Raises:
            NotFound: There is no such session of yours.
        """
        query = {"from_round": str(from_round), "after_round": str(after_round)}
        query |= {"from_phase": str(from_phase)} if from_phase else {}
        query |= {} if after_phase is None else {"after_phase": str(after_phase)}
        path = paths.fl_session_path(session_id)
        return parse_reply(FlSessionReply, await self._get(path, query, wait_s=wait_s))

    async def follow(self, session_id: str) -> AsyncIterator[tuple[FlSessionReply, tuple[FlRoundReply, ...]]]:
        """Yield the session and the rounds, phase by phase, that have closed since; to the last one."""
        number, phase = 1, 0  # nothing before has to be listed again
        while True:
            found = await self.show(
                session_id,
                from_round=number,
                from_phase=phase,
                after_round=number,
                after_phase=phase,
                wait_s=FOLLOW_S,
            )
            now = (found.round, found.phase)
            closed = tuple(one for one in found.rounds if one.state == "closed" and (one.round, one.phase) < now)
            yield found, closed
            if closed and (found.rounds[-1].round, found.rounds[-1].phase) != now:  # there may be another page
                number, phase = closed[-1].round, closed[-1].phase + 1
            elif found.state in ENDED:
                return
            else:
                number, phase = now

    async def pause(self, session_id: str) -> FlSessionReply:
        """Let the open round wait."""
        return await self._post(session_id, "pause")

    async def resume(self, session_id: str) -> FlSessionReply:
        """Go on with a paused session."""
        return await self._post(session_id, "resume")

    async def stop(self, session_id: str) -> FlSessionReply:
        """Make the open round the last one; a session that has none yet, or waits for nodes, ends at once."""
        return await self._post(session_id, "stop")

    async def model(
        self, session_id: str, target: Path, *, replace: bool = False, on_progress: OnProgress | None = None
    ) -> Downloaded:
        """Write the newest global model, a safetensors file, to ``target`` while the session runs.

        A transfer that broke off is taken up again by the next call, unless the session has a newer model by then.

        Args:
            target: When it holds the newest model already nothing is fetched.
            replace: Write over another file there.
            on_progress: Told of the bytes that are here, and of all of them once that is known.

        Raises:
            NotFound: It has ended: its result is the finished model.
            InvalidInput: ``target`` is another file; and as ``download``.
        """
        path, made = paths.fl_session_path(session_id, "model"), []

        async def attempt(session: Session) -> bytes:
            http, limit = self._http(), MAX_MODEL_BYTES
            made.append(
                await download(http, session, path, target, max_bytes=limit, replace=replace, on_progress=on_progress)
            )
            return b""

        await self._signed(attempt)
        return made[-1]

    async def checkpoint(self, session_id: str, *, number: int | None = None) -> FlCheckpointReply:
        """Return a session's newest checkpoint, or the one after round ``number``.

        Raises:
            NotFound: There is none of yours.
        """
        query = {} if number is None else {"round": str(number)}
        return parse_reply(FlCheckpointReply, await self._get(paths.fl_session_path(session_id, "checkpoint"), query))

    async def _get(self, path: str, query: dict[str, str], *, wait_s: float = 0.0) -> bytes:
        asked = query | ({"wait_s": f"{wait_s:.3f}"} if wait_s else {})
        return await self._signed(
            lambda session: self._http().send("GET", path, query=asked, session=session, wait_s=wait_s)
        )

    async def _post(self, session_id: str, verb: str) -> FlSessionReply:
        path = paths.fl_session_path(session_id, verb)
        answer = await self._signed(lambda session: self._http().send("POST", path, session=session))
        return parse_reply(FlSessionReply, answer)
