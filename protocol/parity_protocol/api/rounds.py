"""Training in rounds: what a node asks before each round, and what people are shown of a session."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue

from parity_protocol.wire import WireTime

__all__ = [
    "AcceptedUpdate",
    "FlCheckpointReply",
    "FlRoundReply",
    "FlSessionReply",
    "FlSessionsReply",
    "FlUpdateReply",
    "RoundStep",
    "UpdateTaken",
]


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AcceptedUpdate(_Reply):
    """An update that went into a model. The final receipt's result lists a part's."""

    round: int
    phase: int
    sha256: str


class RoundStep(_Reply):
    """``GET …/sessions/{id}/next``: what a part does now.

    ``state`` is ``train`` (fetch the file named by ``base``, do what ``asks`` says, send the answer), ``wait`` (ask again)
    or ``done`` (report the session's end with ``accepted`` in it). ``asks`` is ``train``; a sharded session also asks for
    a ``summary`` of the part's data, for its ``moments``, and to ``score`` a model on the part's hold-out.
    """

    state: str
    round: int
    phase: int
    total_rounds: int
    asks: str = "train"
    base: str = ""  # hex sha256 of the model file
    base_size: int = 0  # bytes
    model: str = ""  # the model file in Base64 where it is small, so that it need not be fetched
    update_format: str = "fp16"
    proximal_mu: float = 0.0
    closes_in_s: float | None = None  # until the round's deadline; None while it has none
    accepted: tuple[AcceptedUpdate, ...] = ()
    flower_node: str = ""  # of a session that Flower carries: the id under which the part's key is registered
    message: str = ""


class UpdateTaken(_Reply):
    """The update is on disk."""

    sha256: str
    size: int
    created: bool  # False when it was known already


class FlUpdateReply(_Reply):
    """One part's contribution to a round, as it is shown."""

    part: int
    node_id: str
    fence: int
    sha256: str
    size: int
    state: str
    reason: str = ""
    metrics: dict[str, JsonValue] = {}
    received_at: WireTime


class FlRoundReply(_Reply):
    """One round, or one phase of it."""

    round: int
    phase: int
    asks: str = "train"
    state: str
    base: str
    base_size: int
    cohort: tuple[int, ...]
    assignment_hash: str = ""  # of the cut that every part's rows come from; empty where each has rows of its own
    metrics: dict[str, JsonValue] = {}
    updates: tuple[FlUpdateReply, ...] = ()
    opened_at: WireTime
    closed_at: WireTime | None = None


class FlCheckpointReply(_Reply):
    """``GET …/sessions/{id}/checkpoint``: what a new session goes on from, as its ``rounds_config.resume_from``."""

    session_id: str
    cid: str
    round: int  # that it was written after
    total_rounds: int


class FlSessionReply(_Reply):
    """``GET …/sessions/{id}``. ``state`` is the group's once that has ended.

    One that has not begun, or whose parts are merged at once, has no rounds to list.
    """

    id: str
    state: str
    round: int
    phase: int
    total_rounds: int
    closes_at: WireTime | None = None
    settings: dict[str, JsonValue] = {}
    message: str = ""
    result_cid: str | None = None
    metrics: dict[str, JsonValue] = {}
    created_at: WireTime
    updated_at: WireTime
    rounds: tuple[FlRoundReply, ...] = ()


class FlSessionsReply(_Reply):
    """``GET …/sessions``: the caller's, newest first, without their rounds."""

    sessions: tuple[FlSessionReply, ...]
    next_cursor: str | None = None
