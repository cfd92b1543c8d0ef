"""Enrolment, heartbeat, and what a node can learn about itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from parity_protocol.capability import Capability
from parity_protocol.ids import WireAddress, WireNodeId, WireSha256
from parity_protocol.quantities import WireTokenAmount
from parity_protocol.receipt import Voucher
from parity_protocol.wire import Request, WireTime

__all__ = [
    "Earning",
    "EarningsReply",
    "EnrolReply",
    "EnrolRequest",
    "Heartbeat",
    "HeartbeatReply",
    "NodeReply",
    "NodesReply",
    "PayoutState",
    "Refusal",
    "WhyNoWorkReply",
    "enrolment_statement",
]

Instance = WireSha256  # which machine and state folder an agent runs from; a copied key has another one


def enrolment_statement(
    *, node_id: str, device_key: str, operator: str, market: str, chain_id: int, vault: str, issued_at: int
) -> str:
    """Return the text that the operator key signs (EIP-191) to bind id, device key, market and chain."""
    return (
        "parity-node enrolment\n"
        f"node: {node_id}\n"
        f"device key: {device_key}\n"
        f"operator: {operator}\n"
        f"market: {market}\n"
        f"chain: {chain_id}\n"
        f"vault: {vault}\n"
        f"issued at: {issued_at}"
    )


class EnrolRequest(Request):
    """``POST /api/v1/nodes``, signed by the device key; repeated at each start."""

    node_id: WireNodeId
    device_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]  # raw Ed25519 public key, base64url
    operator: WireAddress
    issued_at: int = Field(ge=0, lt=2**40)  # unix seconds, within 10 minutes of the market's clock
    operator_signature: Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{130}$")]
    instance: Instance
    hostname: Annotated[str, StringConstraints(max_length=64)] = ""  # shown to the operator when a key is in use twice
    capability: Capability


class EnrolReply(BaseModel):
    """The market's view of the node."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    node_id: str
    bond: WireTokenAmount
    min_bond: WireTokenAmount
    eligible: bool
    problems: tuple[str, ...] = ()  # why it gets no work yet, in words
    heartbeat_s: float
    lease_ttl_s: float
    time: WireTime


class Heartbeat(Request):
    """``POST /api/v1/nodes/heartbeat``."""

    instance: Instance
    free_slots: int = Field(ge=0, le=4096)
    running: Annotated[tuple[Annotated[str, StringConstraints(max_length=36)], ...], Field(max_length=4096)] = ()
    draining: bool = False
    going_offline: bool = False  # the last one of a graceful stop: frees the instance at once
    outbox: int = Field(default=0, ge=0)  # reports waiting
    capability: Capability | None = None  # when it changed


class HeartbeatReply(BaseModel):
    """The market's time and what it knows of the node."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: WireTime
    bond: WireTokenAmount
    eligible: bool
    problems: tuple[str, ...] = ()


class NodeReply(BaseModel):
    """``GET /api/v1/nodes/{id}``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    operator: str
    online: bool
    draining: bool
    last_seen: WireTime | None
    enrolled_at: WireTime
    bond: WireTokenAmount
    eligible: bool
    problems: tuple[str, ...] = ()
    running: int
    completed: int
    failed: int
    earned: WireTokenAmount
    confirmed: WireTokenAmount
    capability: Capability | None = None


class NodesReply(BaseModel):
    """``GET /api/v1/nodes``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nodes: tuple[NodeReply, ...]
    next_cursor: str | None = None


class Refusal(BaseModel):
    """One reason, and how often it applied."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rule: str
    message: str
    count: int
    last_task: str | None = None
    last_node: str | None = None
    last_at: WireTime | None = None


class WhyNoWorkReply(BaseModel):
    """``GET /api/v1/nodes/{id}/why-no-work``: the constraint that failed, for each recent refusal."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    node_id: str
    considered: int
    taken: int
    refusals: tuple[Refusal, ...]
    summary: str


class PayoutState(BaseModel):
    """Where the money of one earning is; derived, never stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: str  # earned | vouchered | submitted | confirmed | unfunded
    tx_hash: str | None = None
    confirmations: int | None = None
    reason: str = ""


class Earning(BaseModel):
    """One task's pay."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task_id: str
    node_id: str
    creator: str
    kind: str
    amount: WireTokenAmount
    earned_at: WireTime
    payout: PayoutState


class EarningsReply(BaseModel):
    """``GET /api/v1/nodes/{id}/earnings``; with the vouchers, so that a node can redeem them itself."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    node_id: str
    earned: WireTokenAmount
    confirmed: WireTokenAmount
    earnings: tuple[Earning, ...]
    vouchers: tuple[Voucher, ...]
    next_cursor: str | None = None
