"""The market's keys: one identity, and four working keys under it that can be replaced (design §8).

``identity.key`` signs nothing but the market's own document (JWKS, chain, terms). It may be taken off this machine
after ``market init``: the signed document stays and is served as it is until it expires.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from parity_contracts.files import read_private, write_file
from parity_protocol.errors import ConfigInvalid, ParityError
from parity_protocol.signing.keys import Ed25519PrivateKey, EvmKey

__all__ = ["MarketKeys", "certificate_fingerprint", "load_keys", "make_certificate", "make_keys"]

IDENTITY, MANIFEST, SPENDER, TRANSACTION = "identity.key", "manifest.key", "spender.key", "transaction.key"
CERTIFICATE, CERTIFICATE_KEY = "tls.crt", "tls.key"
CERTIFICATE_LIFE = timedelta(days=397)  # the longest that browsers accept

_MAX_KEY_FILE = 256  # bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MarketKeys:
    """What the running market signs with. ``identity`` is None when it is kept off this machine."""

    identity: Ed25519PrivateKey | None
    manifest: Ed25519PrivateKey
    spender: EvmKey  # signs vouchers; holds no money
    transaction: EvmKey  # pays the gas of payouts


def make_keys(folder: Path) -> MarketKeys:
    """Make those keys that are not there yet, files of mode 0600 in a folder of mode 0700."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for name in (IDENTITY, MANIFEST):
        if not (folder / name).exists():
            write_file(folder / name, Ed25519PrivateKey.generate().reveal_seed().hex().encode() + b"\n")
    for name in (SPENDER, TRANSACTION):
        if not (folder / name).exists():
            write_file(folder / name, EvmKey.generate().reveal_secret().hex().encode() + b"\n")
    return load_keys(folder)


def load_keys(folder: Path) -> MarketKeys:
    """Read the keys that ``make_keys`` made.

    Raises:
        ConfigInvalid: A file is missing, malformed, a link, or readable by others; names every one.
    """
    problems: list[str] = []

    def read(name: str, parse: Callable[[str], T]) -> T | None:
        try:
            found = read_private(folder / name, max_bytes=_MAX_KEY_FILE)
            if found is not None:
                return parse(found.decode("ascii").strip())
            problems.append(f"{folder / name} is missing: run `parity market init`")
        except ConfigInvalid as exc:
            problems.extend(exc.problems)
        except (ParityError, ValueError) as exc:
            problems.append(f"{folder / name}: {exc}")
        return None

    def ed25519(text: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey(bytes.fromhex(text))

    identity = read(IDENTITY, ed25519) if (folder / IDENTITY).exists() else None
    manifest, spender, transaction = (
        read(MANIFEST, ed25519),
        read(SPENDER, EvmKey.from_hex),
        read(TRANSACTION, EvmKey.from_hex),
    )
    if manifest is None or spender is None or transaction is None or problems:
        raise ConfigInvalid(problems)
    return MarketKeys(identity, manifest, spender, transaction)


def make_certificate(folder: Path, url: str, *, now: datetime) -> None:
    """Make a self-signed TLS certificate for the host of ``url`` unless there is one; nodes pin its fingerprint.

    Args:
        folder: Where ``tls.crt`` and ``tls.key`` go.
        url: The market's public address.
        now: Current time, UTC.
    """
    if (folder / CERTIFICATE).exists() and (folder / CERTIFICATE_KEY).exists():
        return
    host = urlsplit(url).hostname or "localhost"
    try:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + CERTIFICATE_LIFE)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_file(
        folder / CERTIFICATE_KEY,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    write_file(folder / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def certificate_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the certificate (DER), 64 hex digits: what a join string pins.

    Raises:
        ConfigInvalid: There is no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigInvalid(
            [f"{folder / CERTIFICATE} is not a readable certificate: run `parity market init`"]
        ) from exc
    return certificate.fingerprint(hashes.SHA256()).hex()
