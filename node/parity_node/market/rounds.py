"""Training in rounds over HTTP: what comes next, the global model, and the part's updates."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlencode

from pydantic import ValidationError

from parity_node.executors.rounds import Place, RoundsMarket, new_file
from parity_node.market.http import REPLY_TIMEOUT_S, HttpMarket
from parity_protocol.api import paths
from parity_protocol.api.rounds import RoundStep, UpdateTaken
from parity_protocol.errors import DigestMismatch, Unreachable

__all__ = ["HttpRounds"]

_SLOWEST = 64 << 10  # bytes a second: a market slower than that counts as away


class HttpRounds(RoundsMarket):
    """Asks the node's market; every request is signed by the device key."""

    def __init__(self, market: HttpMarket) -> None:
        self._market = market

    async def next_step(self, place: Place, *, wait_s: float) -> RoundStep:
        """See the port."""
        return await self._step(place, {}, wait_s=wait_s)

    async def _step(self, place: Place, more: Mapping[str, str], *, wait_s: float) -> RoundStep:
        asked = {"part": place.part, "lease_id": place.lease_id, "fence": place.fence, "wait_s": f"{wait_s:g}"}
        query = urlencode({**asked, **more})
        path = paths.fl_session_path(place.group_id, "next")
        answer = await self._market.get(path, query, timeout_s=wait_s + REPLY_TIMEOUT_S)
        try:
            return RoundStep.model_validate_json(answer)
        except ValidationError as exc:
            raise Unreachable(f"the market's answer is not a RoundStep: {exc.error_count()} problems") from exc

    async def flower_step(self, place: Place, *, key: str, known: str, wait_s: float) -> RoundStep:
        """See the port."""
        return await self._step(place, {"flower_key": key, "flower_node": known}, wait_s=wait_s)

    async def model(self, place: Place, step: RoundStep, into: Path, *, max_bytes: int) -> None:
        """See the port."""
        digest = sha256()
        with new_file(into) as file:

            def keep(piece: bytes) -> None:
                digest.update(piece)
                file.write(piece)

            if step.model and len(step.model) <= 4 * (max_bytes // 3 + 1):
                keep(_decoded(step.model))
            else:
                timeout_s = REPLY_TIMEOUT_S + min(step.base_size, max_bytes) / _SLOWEST
                path = paths.fl_session_path(place.group_id, "model")
                await self._market.get(path, timeout_s=timeout_s, max_bytes=max_bytes, sink=keep)
            if digest.hexdigest() != step.base:
                came = digest.hexdigest()
                raise DigestMismatch(f"the model of round {step.round} is {step.base}, {came} came")

    async def send(
        self, place: Place, step: RoundStep, update: bytes, metrics: Mapping[str, float], *, digest: bytes
    ) -> UpdateTaken:
        """See the port."""
        said = {name: f"{value:.9g}" for name, value in metrics.items()}
        query = urlencode({"lease_id": place.lease_id, "fence": place.fence, "base": step.base, **said})
        path = paths.fl_part_path(place.group_id, step.round, step.phase, place.part)
        timeout_s = REPLY_TIMEOUT_S + len(update) / _SLOWEST
        answer = await self._market.put(path, query, update, timeout_s=timeout_s, body_sha256=digest)
        try:
            return UpdateTaken.model_validate_json(answer)
        except ValidationError as exc:
            raise Unreachable(f"the market's answer is not an UpdateTaken: {exc.error_count()} problems") from exc


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError as exc:
        raise Unreachable("the market's answer has a model that is not Base64") from exc
