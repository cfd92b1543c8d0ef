"""Private keys on disk: the encrypted v3 keystore that other wallets read too."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

from eth_account import Account

from parity_contracts.files import make_private_dir, read_private, sync_dir
from parity_protocol import strict_json
from parity_protocol.errors import BadField, ConfigInvalid, Conflict, NotFound, ParityError, Unauthenticated
from parity_protocol.ids import Address
from parity_protocol.signing.keys import EvmKey

__all__ = ["MIN_PASSPHRASE", "MIN_SCRYPT_N", "SCRYPT_N", "address_of", "create", "load"]

SCRYPT_N = 2**18  # work factor of what is written: about half a second and 256 MiB at most
MIN_SCRYPT_N = 2**17  # what is read without being asked to; less can be guessed at
MIN_PASSPHRASE = 8  # characters
_MAX_SCRYPT_MEMORY = 1 << 30  # bytes; a file from elsewhere must not take the machine down
_MIN_PBKDF2_C, _MAX_PBKDF2_C = 262_144, 10_000_000
_MAX_FILE_BYTES = 16 * 1024
_WRONG = "the passphrase is wrong, or the keystore is damaged"


def create(path: Path, key: EvmKey, passphrase: str, *, scrypt_n: int = SCRYPT_N) -> Address:
    """Encrypt a key into a new file, 0600, in a folder that is 0700 if this makes it.

    Args:
        scrypt_n: Work factor, a power of two; tests take a small one.

    Returns:
        The key's address.

    Raises:
        Conflict: Something is at ``path`` already: a key is never overwritten.
        BadField: The passphrase is shorter than 8 characters.
        ConfigInvalid: The folder is a link, or others may write to it.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise BadField(f"a passphrase has at least {MIN_PASSPHRASE} characters", field="passphrase")
    folder = make_private_dir(path.parent)
    if path.is_symlink() or path.exists():
        raise Conflict(f"{path} is there already; a keystore is never overwritten")
    document = Account.encrypt(key.reveal_secret(), passphrase, kdf="scrypt", iterations=scrypt_n)
    fd, temporary = tempfile.mkstemp(dir=folder, prefix=".keystore.")  # mkstemp makes it 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(document).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError as exc:
            raise Conflict(f"{path} is there already; a keystore is never overwritten") from exc
    finally:
        Path(temporary).unlink()
    sync_dir(folder)
    return key.address


def load(path: Path, passphrase: str, *, min_scrypt_n: int = MIN_SCRYPT_N) -> EvmKey:
    """Decrypt a keystore. Takes about a second of one core, by design.

    Args:
        min_scrypt_n: Least work factor that is accepted.

    Raises:
        NotFound: There is no such file.
        ConfigInvalid: It is a link, others may read it, it is not a v3 keystore, or it is too weak or too costly.
        Unauthenticated: The passphrase is wrong; always the same message.
    """
    document = _read(path)
    _check_kdf(path, document, min_scrypt_n)
    try:
        secret = bytes(Account.decrypt(document, passphrase))
    except (ValueError, TypeError, KeyError, NotImplementedError) as exc:
        raise Unauthenticated(_WRONG) from exc
    key = EvmKey(secret)
    if _address(document) not in (None, key.address):
        raise Unauthenticated(_WRONG)
    return key


def address_of(path: Path) -> Address | None:
    """Return the address that a keystore says it is for, without its passphrase; None if it does not say.

    Raises:
        NotFound: There is no such file.
        ConfigInvalid: It is a link, others may read it, or it is not a v3 keystore.
    """
    return _address(_read(path))


def _read(path: Path) -> dict[str, Any]:
    content = read_private(path, max_bytes=_MAX_FILE_BYTES)
    if content is None:
        raise NotFound(f"there is no keystore at {path}", hint="Make one with `parity node auth`.")
    try:
        document = strict_json.loads(content, max_bytes=_MAX_FILE_BYTES)
    except ParityError as exc:
        raise ConfigInvalid([f"{path}: not a keystore: {exc.message}"]) from exc
    if not isinstance(document, dict) or document.get("version") != 3:
        raise ConfigInvalid([f"{path}: expected a version 3 keystore"])
    return cast("dict[str, Any]", document)


def _check_kdf(path: Path, document: dict[str, Any], min_scrypt_n: int) -> None:
    crypto = document.get("crypto", document.get("Crypto"))
    kdf = crypto.get("kdf") if isinstance(crypto, dict) else None
    values = crypto.get("kdfparams") if isinstance(crypto, dict) else None
    if not isinstance(values, dict):
        raise ConfigInvalid([f"{path}: the keystore does not say how its key is derived"])
    if kdf == "scrypt":
        n, r, p = (_positive(path, values, name) for name in ("n", "r", "p"))
        if n & (n - 1) or n < min_scrypt_n:
            raise ConfigInvalid([f"{path}: scrypt n must be a power of two from {min_scrypt_n} on, got {n}"])
        if 128 * n * r > _MAX_SCRYPT_MEMORY or p > 16:
            raise ConfigInvalid([f"{path}: scrypt with n={n}, r={r}, p={p} takes too much memory or time"])
    elif kdf == "pbkdf2":
        c = _positive(path, values, "c")
        if not _MIN_PBKDF2_C <= c <= _MAX_PBKDF2_C:
            raise ConfigInvalid([f"{path}: pbkdf2 c must be {_MIN_PBKDF2_C} to {_MAX_PBKDF2_C}, got {c}"])
    else:
        raise ConfigInvalid([f"{path}: expected the kdf scrypt or pbkdf2, got {str(kdf)[:40]!r}"])
    if values.get("dklen") != 32:
        raise ConfigInvalid([f"{path}: expected a derived key of 32 bytes"])


def _positive(path: Path, values: dict[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**30:
        raise ConfigInvalid([f"{path}: {name}: expected a whole number from 1 on"])
    return value


def _address(document: dict[str, Any]) -> Address | None:
    found = document.get("address")
    return Address("0x" + found.lower().removeprefix("0x")) if isinstance(found, str) else None
