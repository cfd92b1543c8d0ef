"""The three keys of a node: owner (encrypted keystore), operator (hot, in the state folder), payout (an address)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity_cli.output import Output
from parity_cli.secrets_input import KeyChoice, asks_again, new_passphrase, passphrase_asker, read_key
from parity_protocol.errors import BadField, Conflict, NotFound

if TYPE_CHECKING:
    from parity_client import Home, Wallet
    from parity_node.settings import NodeSettings
    from parity_protocol.ids import Address, NodeId
    from parity_protocol.signing.keys import EvmKey

__all__ = ["NodeIdentity", "adopt_operator", "checked_address", "identity_of", "make_owner", "new_keystore"]
__all__ += ["next_operator", "owner_wallet"]


NEXT_OPERATOR_FILE = "operator.key.next"
_MAX_KEY_FILE = 256  # bytes


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who a node is, without its secrets."""

    node_id: NodeId
    operator: Address
    owner: Address
    payout: Address
    keystore: Path
    state_dir: Path

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "node_id": self.node_id,
            "owner": self.owner,
            "operator": self.operator,
            "payout": self.payout,
            "keystore": str(self.keystore),
            "state_dir": str(self.state_dir),
        }


def make_owner(out: Output, home: Home, name: str, choice: KeyChoice, passphrase_file: Path | None) -> Address:
    """Write the owner's keystore.

    Raises:
        Conflict: There is one already: a key is never overwritten.
    """
    path = new_keystore(home, name)
    key = read_key(out, choice)
    passphrase = new_passphrase(passphrase_file)
    from parity_contracts import keystore

    return keystore.create(path, key, passphrase)


def new_keystore(home: Home, name: str) -> Path:
    """Return where an owner's new keystore goes.

    Raises:
        Conflict: There is one already: a key is never overwritten.
    """
    path = home.wallet_file(name)
    if path.exists():
        raise Conflict(
            f"the owner's keystore {path} is there already; a keystore is never overwritten",
            hint="Choose another --name, or move the file away.",
        )
    return path


def owner_wallet(home: Home, passphrase_file: Path | None) -> Wallet:
    """Return the wallet that owns this machine's node.

    Raises:
        NotFound: It was not made yet.
    """
    from parity_client import Wallet

    name = home.load().node.wallet
    path = home.wallet_file(name)
    if not path.is_file():
        raise NotFound(
            "this node has no owner yet",
            hint="Set the node up with `parity node init`, or bring a key with `parity node auth`.",
        )
    asker = passphrase_asker(passphrase_file, "the node's owner")
    return Wallet.of_keystore(path, asker, asks_person=True, again=asks_again(passphrase_file))


def identity_of(settings: NodeSettings, home: Home) -> NodeIdentity:
    """Return the node's identity; device and operator key are made when they are missing.

    Raises:
        NotFound: The owner was not made yet.
    """
    from parity_node.keys import load_keys
    from parity_protocol.ids import Address

    owner = owner_wallet(home, None).address
    keys = load_keys(settings.state_dir(), hostname=settings.runner_hostname)
    entry = home.load().node
    return NodeIdentity(
        node_id=keys.node_id,
        operator=keys.operator.address,
        owner=owner,
        payout=Address(entry.payout) if entry.payout else owner,
        keystore=home.wallet_file(entry.wallet),
        state_dir=settings.state_dir(),
    )


def next_operator(state_dir: Path) -> EvmKey:
    """Return the operator key that is about to replace the present one; a crash in between goes on with the same.

    Raises:
        ConfigInvalid: The file is malformed, a link, or readable by others.
    """
    from parity_contracts.files import make_private_dir, read_private, write_file
    from parity_protocol.signing.keys import EvmKey

    path = make_private_dir(state_dir) / NEXT_OPERATOR_FILE
    known = read_private(path, max_bytes=_MAX_KEY_FILE)
    if known is not None:
        return EvmKey.from_hex(known.decode("ascii", errors="replace"))
    key = EvmKey.generate()
    write_file(path, key.reveal_secret().hex().encode() + b"\n")
    return key


def adopt_operator(state_dir: Path, key: EvmKey) -> None:
    """Make ``key`` the operator key, now that the chain names it."""
    from parity_node.keys import store_operator_key

    store_operator_key(state_dir, key)
    (state_dir / NEXT_OPERATOR_FILE).unlink(missing_ok=True)


def checked_address(text: str, *, field: str) -> Address:
    """Return an EVM address in lower case.

    Raises:
        BadField: It is not one, or its mixed case is not its EIP-55 checksum.
    """
    from parity_protocol.ids import Address
    from parity_protocol.signing.keys import checksum_address

    given = text.strip()
    lower = given.lower()
    if len(lower) != 42 or not lower.startswith("0x") or not set(lower[2:]) <= set("0123456789abcdef"):
        raise BadField(f"an address is 0x and 40 hex digits, got {given[:80]!r}", field=field)
    if given[2:] not in (lower[2:], lower[2:].upper()) and given[2:] != checksum_address(lower)[2:]:
        raise BadField(f"the address {given} has a wrong checksum: a letter was mistyped", field=field)
    return Address(lower)
