"""A submitter's key: its address is known at once, the secret only when something must be signed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread

from parity_protocol import strict_json
from parity_protocol.errors import ConfigInvalid, NotFound, ParityError, Unauthenticated
from parity_protocol.ids import Address
from parity_protocol.signing.keys import EvmKey

__all__ = ["FILE_VARIABLE", "Wallet", "passphrase_from_file"]

FILE_VARIABLE = "PARITY_PASSPHRASE_FILE"  # environment variable
MAX_PASSPHRASE_BYTES = 4_096
MAX_KEYSTORE_BYTES = 16 * 1024
ATTEMPTS = 3  # passphrases that a person may try


class Wallet:
    """An address and the way to its key. Make one with ``of_key`` or ``of_keystore``.

    Args:
        unlock: Gets the key; may take a second, and may ask somebody.
        asks_person: Whether ``unlock`` talks to a terminal, which it must do on the main thread, where Ctrl-C arrives.
    """

    def __init__(self, address: Address, unlock: Callable[[], EvmKey], *, asks_person: bool = False) -> None:
        self.address = address
        self._unlock = unlock
        self._asks_person = asks_person
        self._key: EvmKey | None = None

    @classmethod
    def of_key(cls, key: EvmKey) -> Wallet:
        """Return the wallet of a key that is in memory already."""
        wallet = cls(key.address, lambda: key)
        wallet._key = key
        return wallet

    @classmethod
    def of_keystore(
        cls,
        path: Path,
        passphrase: Callable[[], str],
        *,
        asks_person: bool = False,
        again: Callable[[Unauthenticated], bool] | None = None,
    ) -> Wallet:
        """Return the wallet of an encrypted v3 keystore; ``passphrase`` is asked only when the key is needed.

        Args:
            asks_person: Whether ``passphrase`` talks to a terminal.
            again: Told of a wrong passphrase; whether to ask again, three times in all. None gives up at the first.

        Raises:
            NotFound: There is no such file.
            ConfigInvalid: It is not a keystore, or does not say its address.
        """
        address = _address_in(path)

        def unlock() -> EvmKey:
            from parity_contracts import keystore  # eth_account takes most of a second to load

            for left in reversed(range(ATTEMPTS)):
                text = passphrase()
                try:
                    return keystore.load(path, text)
                except Unauthenticated as exc:
                    if not left or again is None or not again(exc):
                        raise
            raise AssertionError("the last attempt returns or raises")

        return cls(address, unlock, asks_person=asks_person)

    @property
    def opened(self) -> EvmKey | None:
        """The key, if it is in memory already."""
        return self._key

    def key(self) -> EvmKey:
        """Return the key, asking for the passphrase the first time.

        Raises:
            Unauthenticated: The passphrase is wrong, or there is none to be had.
            ConfigInvalid: The keystore is damaged or too weak.
        """
        if self._key is None:
            self._key = self._unlock()
        return self._key

    async def unlocked(self) -> EvmKey:
        """Return the key without holding up the event loop, where no person has to be asked; raises as ``key``."""
        if self._key is None and not self._asks_person:
            self._key = await anyio.to_thread.run_sync(self._unlock, abandon_on_cancel=True)
        return self.key()

    def __repr__(self) -> str:
        return f"Wallet({self.address})"


def passphrase_from_file(path: Path | None = None) -> str:
    """Read the passphrase: the first line of ``path``, else of the file that ``PARITY_PASSPHRASE_FILE`` names.

    Raises:
        Unauthenticated: No file is named.
        ConfigInvalid: It cannot be read, or is not text.
    """
    named = path or (Path(os.environ[FILE_VARIABLE]) if os.environ.get(FILE_VARIABLE) else None)
    if named is None:
        raise Unauthenticated(
            "the wallet is locked and there is no passphrase to open it with",
            hint=f"Set {FILE_VARIABLE} to a file (mode 0600) that holds it.",
        )
    try:
        with named.expanduser().open("rb") as file:
            text = file.read(MAX_PASSPHRASE_BYTES).decode()
    except OSError as exc:
        raise ConfigInvalid([f"{FILE_VARIABLE}={named}: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        raise ConfigInvalid([f"{FILE_VARIABLE}={named}: expected text"]) from exc
    return text.split("\n", 1)[0].rstrip("\r")


def _address_in(path: Path) -> Address:
    try:
        with path.open("rb") as file:
            document = strict_json.loads(file.read(MAX_KEYSTORE_BYTES), max_bytes=MAX_KEYSTORE_BYTES)
    except FileNotFoundError as exc:
        raise NotFound(f"there is no keystore at {path}", hint="Make one with `parity wallet create`.") from exc
    except OSError as exc:
        raise ConfigInvalid([f"{path}: {exc.strerror}"]) from exc
    except ParityError as exc:
        raise ConfigInvalid([f"{path}: not a keystore: {exc.message}"]) from exc
    found = document.get("address") if isinstance(document, dict) else None
    digits = found.lower().removeprefix("0x") if isinstance(found, str) else ""
    if len(digits) != 40 or not set(digits) <= set("0123456789abcdef"):
        raise ConfigInvalid([f"{path}: the keystore does not say its address"])
    return Address("0x" + digits)
