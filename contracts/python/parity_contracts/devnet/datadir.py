"""The chain's folder: who may use it, which chain it holds, and the faucet's key."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from parity_contracts.devnet.ledger import Genesis, address_of_key
from parity_contracts.files import write_file
from parity_protocol.errors import ConfigInvalid, Conflict

__all__ = ["DataDir"]

_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141  # of secp256k1


@dataclass(frozen=True, slots=True)
class DataDir:
    """An open, locked folder. ``faucet_key`` is 32 bytes; it never leaves the process."""

    path: Path
    genesis: Genesis
    genesis_hash: bytes | None  # None on the first start: the chain has not said it yet
    faucet_key: bytes
    lock_fd: int

    def __repr__(self) -> str:
        return f"DataDir({str(self.path)!r}, faucet_key='***')"

    @classmethod
    def open(cls, path: Path, *, chain_id: int, now: datetime) -> DataDir:
        """Lock the folder and read its chain, or decide a new one with a genesis nobody else has.

        Args:
            now: Current time, UTC; the timestamp of a new chain's block 0.

        Raises:
            Conflict: Another process uses the folder.
            ConfigInvalid: The folder holds a chain with another id, or its files are damaged.
        """
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock_fd = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock_fd)
            raise Conflict(
                f"another chain process uses {path}",
                hint="Stop it first, or give this one its own --data folder.",
            ) from exc
        try:
            key = _faucet_key(path / "faucet.key")
            genesis, genesis_hash = _read_genesis(path / "genesis.json", key, chain_id, now)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, genesis, genesis_hash, key, lock_fd)

    def remember(self, genesis_hash: bytes) -> None:
        """Write down the chain of a first start, or check that the chain is the one written down.

        Raises:
            ConfigInvalid: This program builds another genesis block than the one that made the folder.
        """
        if self.genesis_hash is not None:
            if self.genesis_hash != genesis_hash:
                raise ConfigInvalid(
                    [
                        f"{self.path}: expected genesis 0x{self.genesis_hash.hex()}, "
                        f"this version of the chain makes 0x{genesis_hash.hex()}"
                    ]
                )
            return
        document = {
            "chain_id": self.genesis.chain_id,
            "timestamp": self.genesis.timestamp,
            "salt": self.genesis.salt.hex(),
            "faucet": "0x" + self.genesis.faucet.hex(),
            "genesis_hash": "0x" + genesis_hash.hex(),
        }
        write_file(self.path / "genesis.json", json.dumps(document, indent=2).encode() + b"\n")

    def close(self) -> None:
        """Give the folder free."""
        os.close(self.lock_fd)


def _faucet_key(path: Path) -> bytes:
    if not path.exists():
        write_file(path, (1 + secrets.randbelow(_ORDER - 1)).to_bytes(32, "big").hex().encode() + b"\n")
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigInvalid([f"{path}: expected a private key as 64 hex digits"])
    return key


def _read_genesis(path: Path, key: bytes, chain_id: int, now: datetime) -> tuple[Genesis, bytes | None]:
    faucet = address_of_key(key)
    if not path.exists():
        return Genesis(chain_id, int(now.timestamp()), secrets.token_bytes(32), faucet), None
    try:
        document = json.loads(path.read_bytes())
        genesis = Genesis(
            int(document["chain_id"]), int(document["timestamp"]), bytes.fromhex(document["salt"]), faucet
        )
        genesis_hash = bytes.fromhex(document["genesis_hash"][2:])
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigInvalid([f"{path}: not the description of a chain ({exc})"]) from exc
    if genesis.chain_id != chain_id:
        raise ConfigInvalid([f"{path.parent} holds a chain with id {genesis.chain_id}, expected {chain_id}"])
    if document["faucet"] != "0x" + faucet.hex():
        raise ConfigInvalid([f"{path.parent}/faucet.key is not the key of this chain's faucet {document['faucet']}"])
    return genesis, genesis_hash
