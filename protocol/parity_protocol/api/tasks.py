"""Sign-in, submission, and following a task to its end and its pay."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from parity_protocol.api.nodes import Earning, PayoutState, Refusal
from parity_protocol.order import Order
from parity_protocol.quantities import WireTokenAmount
from parity_protocol.receipt import Receipt
from parity_protocol.shards import MAX_SEALED_CHARS
from parity_protocol.task import MAX_PARTS, MAX_SPEC_BYTES
from parity_protocol.wire import Request, WireTime

__all__ = [
    "AccountReply",
    "CancelReply",
    "CheckReply",
    "CheckRequest",
    "EventReply",
    "EventsReply",
    "GroupReply",
    "GroupRowReply",
    "GroupsReply",
    "LogsReply",
    "NonceReply",
    "ProofReply",
    "ResultReply",
    "RewardReply",
    "SignInReply",
    "SignInRequest",
    "SubmitReply",
    "SubmitRequest",
    "TaskReply",
    "TaskStatusReply",
    "TasksReply",
    "WhyPendingReply",
]


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class NonceReply(_Reply):
    """``GET /api/v1/auth/nonce``: single use, five minutes."""

    nonce: str
    domain: str
    uri: str
    chain_id: int
    expires_at: WireTime


class SignInRequest(Request):
    """``POST /api/v1/auth/siwe``: an EIP-4361 message that names the session's Ed25519 key as a resource."""

    message: Annotated[str, StringConstraints(max_length=4096)]
    signature: Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{130}$")]


class SignInReply(_Reply):
    """A session; requests are signed by its key with ``keyid`` = ``session_id``."""

    session_id: str
    account: str
    expires_at: WireTime


class SubmitRequest(Request):
    """``POST /api/v1/tasks``: the spec's exact text, and the order that signs its hash.

    Repeating it (same creator and order nonce) returns what the first one made.
    """

    spec: Annotated[str, StringConstraints(min_length=2, max_length=MAX_SPEC_BYTES)]
    order: Order
    reward: WireTokenAmount  # for everything the spec becomes; at most the order's maximum
    # Of a sharded session: each part's sealed source, whose hashes the spec signs; a node is told its own alone.
    shards: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=MAX_SEALED_CHARS)], ...], Field(max_length=MAX_PARTS)
    ] = ()


class CheckRequest(Request):
    """``POST /api/v1/tasks/check``: a spec that may be submitted later. Nothing is signed, stored or bound.

    Data that it names need not be at the market yet, so what only they can show is not looked at.
    """

    spec: Annotated[str, StringConstraints(min_length=2, max_length=MAX_SPEC_BYTES)]
    reward: WireTokenAmount = 0  # for everything the spec becomes; 0 looks at no money


class CheckReply(_Reply):
    """The market would take it, as far as that can be said without its data."""

    type: str
    parts: int  # tasks that it would become


class TaskReply(_Reply):
    """One task, in the Parity network's words where it has them; ``state`` is exact."""

    id: str
    group_id: str | None = None
    part: int = 0
    parts: int = 1
    title: str = ""
    description: str = ""
    type: str
    status: str  # pending | running | completed | failed | not_verified | cancelled
    state: str
    spec: dict[str, Any] = {}
    reward: WireTokenAmount
    creator_address: str
    runner_id: str | None = None  # node that holds or held it last
    attempts: int
    max_attempts: int
    fence: int
    created_at: WireTime
    updated_at: WireTime
    started_at: WireTime | None = None
    completed_at: WireTime | None = None
    deadline: WireTime | None = None
    result_cid: str | None = None
    failure: str | None = None  # FailureReason of the last failed attempt
    message: str = ""
    exit_code: int | None = None
    usage: dict[str, int] = {}
    metrics: dict[str, float] = {}
    payout: PayoutState | None = None


class TasksReply(_Reply):
    """``GET /api/v1/tasks``."""

    tasks: tuple[TaskReply, ...]
    next_cursor: str | None = None


class GroupReply(_Reply):
    """``GET /api/v1/groups/{id}``: an FL session or an array; its result is the market's merge of its tasks'."""

    id: str
    kind: str
    state: str
    creator_address: str
    reward: WireTokenAmount
    created_at: WireTime
    completed_at: WireTime | None = None
    tasks: tuple[TaskReply, ...]
    plan: dict[str, Any] | None = None
    result_cid: str | None = None  # the merged model
    metrics: dict[str, JsonValue] = {}  # scores, and words and tables such as the importance of each feature
    message: str = ""


class GroupRowReply(_Reply):
    """One group of a list; ``GET /api/v1/groups/{id}`` has its tasks, plan and scores."""

    id: str
    kind: str
    state: str  # running | completed | failed | cancelled
    reward: WireTokenAmount  # of all its tasks together
    parts: int  # tasks that it became
    created_at: WireTime
    completed_at: WireTime | None = None
    message: str = ""


class GroupsReply(_Reply):
    """``GET /api/v1/groups``: the caller's own, newest first."""

    groups: tuple[GroupRowReply, ...]
    next_cursor: str | None = None


class SubmitReply(_Reply):
    """What the submission became. ``id`` is the group's when there is one, else the task's."""

    id: str
    kind: str  # task | group
    task_ids: tuple[str, ...]
    created: bool  # False when this submission was known already


class TaskStatusReply(_Reply):
    """``GET /api/v1/tasks/{id}/status?after_seq=&wait_s=``: returns at once when an event newer than ``after_seq`` exists."""

    id: str
    status: str
    state: str
    seq: int  # of the newest event
    attempts: int
    runner_id: str | None = None
    result_cid: str | None = None
    failure: str | None = None
    message: str = ""


class EventReply(_Reply):
    """One step of a task's life."""

    seq: int
    event: str
    state: str
    at: WireTime
    node_id: str | None = None
    fence: int = 0
    detail: str = ""


class EventsReply(_Reply):
    """``GET /api/v1/tasks/{id}/events``."""

    id: str
    events: tuple[EventReply, ...]


class ResultReply(_Reply):
    """``GET /api/v1/tasks/{id}/result?wait_s=`` (404 until there is one)."""

    task_id: str
    state: str
    cid: str | None = None
    size: int | None = None
    inline: str | None = None  # base64, when the result is small
    exit_code: int | None = None
    output: str | None = None  # text of a command's standard output and error, when it is UTF-8 and small
    metrics: dict[str, float] = {}
    failure: str | None = None
    message: str = ""
    node_id: str | None = None


class LogsReply(_Reply):
    """``GET /api/v1/tasks/{id}/logs?offset=&wait_s=``: text from a byte offset of the newest attempt."""

    task_id: str
    attempt: int
    offset: int
    next_offset: int
    text: str
    done: bool
    truncated: bool = False


class RewardReply(_Reply):
    """``GET /api/v1/tasks/{id}/reward``."""

    task_id: str
    reward: WireTokenAmount
    payout: PayoutState | None = None
    earnings: tuple[
        Earning, ...
    ] = ()  # a training part that changed hands has several; they are never above the reward


class ProofReply(_Reply):
    """``GET /api/v1/tasks/{id}/receipt``: everything needed to check the receipt without the market."""

    task_id: str
    receipt: Receipt
    order: Order
    spec: str
    manifest_hash: str
    result_cid: str
    operator: str
    node_id: str
    fence: int
    voucher_count: int | None = None


class WhyPendingReply(_Reply):
    """``GET /api/v1/tasks/{id}/why-pending``: for each node that did not get it, the constraint that failed."""

    task_id: str
    state: str
    nodes_seen: int
    nodes_fit: int
    refusals: tuple[Refusal, ...]
    summary: str


class CancelReply(_Reply):
    """``POST /api/v1/tasks/{id}/cancel``."""

    id: str
    state: str
    cancelled: tuple[str, ...]


class AccountReply(_Reply):
    """``GET /api/v1/accounts/{address}``: what the submitter has set aside here and what it is bound to."""

    account: str
    spender: str
    escrow: WireTokenAmount  # on chain now, less what is being released
    releasing: WireTokenAmount
    reserved: WireTokenAmount  # for live tasks
    owed: WireTokenAmount  # earned by nodes, not yet redeemed
    available: WireTokenAmount  # escrow - reserved - owed
    spent: WireTokenAmount  # redeemed so far
    as_of_block: int | None = Field(default=None)
