"""The running node's identity: its device key, its operator key, and which installation this is.

The owner's and the payout key never lie here. A copied state folder is noticed by ``instance_of``, which mixes in the
machine and the folder itself.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from parity_contracts.files import make_private_dir, read_private, write_file
from parity_protocol.errors import BadField, ConfigInvalid
from parity_protocol.ids import NodeId
from parity_protocol.signing.keys import Ed25519PrivateKey, EvmKey, node_id_of

__all__ = ["NodeKeys", "instance_of", "load_keys", "load_operator_key", "store_operator_key"]

DEVICE_KEY_FILE = "device.key"
OPERATOR_KEY_FILE = "operator.key"
INSTANCE_FILE = "instance"

_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_MAX_KEY_FILE = 256  # bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """What the agent signs with and goes by."""

    device: Ed25519PrivateKey
    operator: EvmKey
    instance: str  # 64 hex

    @property
    def node_id(self) -> NodeId:
        """The node's id: SHA-256 of its device key."""
        return node_id_of(self.device.public_key)


def load_keys(state_dir: Path, *, hostname: str = "") -> NodeKeys:
    """Return the node's keys, making those that are not there yet (files of mode 0600, written atomically).

    Raises:
        ConfigInvalid: A file is malformed, a link, or readable by others.
    """
    make_private_dir(state_dir)
    device = _load_or_make(
        state_dir / DEVICE_KEY_FILE,
        lambda: Ed25519PrivateKey.generate().reveal_seed().hex(),
        lambda text: Ed25519PrivateKey(bytes.fromhex(text)),
    )
    operator = load_operator_key(state_dir)
    return NodeKeys(device, operator, instance_of(state_dir, hostname=hostname))


def load_operator_key(state_dir: Path) -> EvmKey:
    """Return the hot key that signs receipts, made on first use.

    Raises:
        ConfigInvalid: The file is malformed, a link, or readable by others.
    """
    make_private_dir(state_dir)
    return _load_or_make(
        state_dir / OPERATOR_KEY_FILE, lambda: EvmKey.generate().reveal_secret().hex(), EvmKey.from_hex
    )


def store_operator_key(state_dir: Path, key: EvmKey) -> None:
    """Write ``key`` as the operator key (``parity node auth``); the vault must be told its address too."""
    make_private_dir(state_dir)
    write_file(state_dir / OPERATOR_KEY_FILE, key.reveal_secret().hex().encode() + b"\n")


def instance_of(state_dir: Path, *, hostname: str = "") -> str:
    """Return which installation this is: another machine, or a copy of the folder, gives another value (64 hex)."""
    found = _load_or_make(state_dir / INSTANCE_FILE, lambda: secrets.token_hex(32), bytes.fromhex)
    where = state_dir.stat()
    parts = (
        found,
        _machine_id(),
        (hostname or socket.gethostname()).encode(),
        f"{where.st_dev}/{where.st_ino}".encode(),
    )
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.hexdigest()


def _load_or_make(path: Path, make: Callable[[], str], read: Callable[[str], T]) -> T:
    data = read_private(path, max_bytes=_MAX_KEY_FILE)
    if data is None:
        write_file(path, make().encode() + b"\n")
        data = read_private(path, max_bytes=_MAX_KEY_FILE) or b""
    try:
        return read(data.decode("ascii").strip())
    except (ValueError, BadField) as exc:
        raise ConfigInvalid([f"{path} is not a key of 64 hex digits; restore it from your backup"]) from exc


def _machine_id() -> bytes:
    for path in _MACHINE_ID_FILES:
        try:
            return path.read_bytes()[:64].strip()
        except OSError:
            continue
    return b""
