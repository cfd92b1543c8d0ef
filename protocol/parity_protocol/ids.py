"""Names of things, as distinct types so that one cannot be passed for another."""

from __future__ import annotations

import re
from typing import Annotated, NewType

from pydantic import AfterValidator, StringConstraints

from parity_protocol.errors import BadField

__all__ = [
    "AccountId",
    "Address",
    "ClaimId",
    "Fence",
    "GroupId",
    "LeaseId",
    "NodeId",
    "TaskId",
    "WireAccountId",
    "WireAddress",
    "WireBytes32",
    "WireNodeId",
    "WireSha256",
    "WireUuid",
    "checked_account_id",
    "checked_node_id",
]

TaskId = NewType("TaskId", str)  # UUID in its 36-character form, given by the market; sorts by creation
GroupId = NewType("GroupId", str)  # UUID, as a task's
LeaseId = NewType("LeaseId", str)  # UUID, as a task's
ClaimId = NewType("ClaimId", str)  # UUID version 4, made and journalled by the node
NodeId = NewType("NodeId", str)  # lower-case hex sha256 of the node's first Ed25519 public key, 64 characters
AccountId = NewType("AccountId", str)  # what the vault knows an account by: a node id or a lower-case 0x… address
Address = NewType("Address", str)  # an EVM address in lower case, 0x and 40 hex digits
Fence = NewType("Fence", int)  # generation of a task's lease: grows by one with every claim, starts at 1

_NODE_ID = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"0x[0-9a-f]{40}")

_UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"

WireUuid = Annotated[str, StringConstraints(pattern=_UUID_PATTERN, max_length=36)]
WireNodeId = Annotated[NodeId, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]
WireAddress = Annotated[Address, StringConstraints(pattern=r"^0x[0-9a-f]{40}$", max_length=42)]
WireBytes32 = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{64}$", max_length=66)]
WireSha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]


def checked_node_id(text: str) -> NodeId:
    """Return ``text`` as a node id.

    Raises:
        BadField: It is not 64 lower-case hex digits.
    """
    if not _NODE_ID.fullmatch(text):
        raise BadField(f"a node id is 64 lower-case hex digits, got {text[:80]!r}", field="node_id")
    return NodeId(text)


def checked_account_id(text: str) -> AccountId:
    """Return ``text`` as a vault account id: a node id, or a lower-case EVM address.

    Raises:
        BadField: It is neither.
    """
    if not (_NODE_ID.fullmatch(text) or _ADDRESS.fullmatch(text)):
        raise BadField(f"an account id is 64 hex digits or a lower-case 0x address, got {text[:80]!r}", field="account")
    return AccountId(text)


WireAccountId = Annotated[str, StringConstraints(max_length=64), AfterValidator(checked_account_id)]
