"""TLS to a market: by the system's authorities, or by the one certificate that a join string pins."""

from __future__ import annotations

import hmac
import socket
import ssl
from hashlib import sha256
from urllib.parse import urlsplit

from parity_protocol.errors import Unreachable, Untrusted

__all__ = ["context_for", "pinned_context", "system_context"]

CONNECT_TIMEOUT_S = 5.0


def context_for(url: str, fingerprint: str | None) -> ssl.SSLContext | None:
    """Return the trust to use with ``url``; None for plain HTTP, which only loopback may use. May block 5 s.

    Args:
        fingerprint: As of ``pinned_context``; None trusts the system's authorities.

    Raises:
        Unreachable: Nobody answers there.
        Untrusted: It shows another certificate than the pinned one.
    """
    if not url.startswith("https://"):
        return None
    return system_context() if fingerprint is None else pinned_context(url, fingerprint)


def system_context() -> ssl.SSLContext:
    """Return a context that trusts the system's authorities, TLS 1.2 or newer, host names checked."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def pinned_context(url: str, fingerprint: str) -> ssl.SSLContext:
    """Return a context that trusts exactly the certificate with ``fingerprint``; may block 5 s while it is fetched.

    The certificate is fetched once over a connection that carries nothing, compared, and then made the only trust
    anchor, so every later connection proves possession of its key. Host names do not matter: the pin is stricter.

    Args:
        url: ``https://host[:port]``.
        fingerprint: Hex SHA-256 of the certificate (DER).

    Raises:
        Unreachable: Nobody answers there.
        Untrusted: It shows another certificate.
    """
    shown = _shown_certificate(url)
    found = sha256(shown).hexdigest()
    if not hmac.compare_digest(found, fingerprint):
        raise Untrusted(
            f"{url} shows the certificate {found}, the join string pins {fingerprint}",
            hint="Ask the market's operator for the current join string; somebody may be in between.",
        )
    context = _context_without_names()
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be its own issuer
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(shown))
    return context


def _shown_certificate(url: str) -> bytes:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    probe = _context_without_names()
    probe.verify_mode = ssl.CERT_NONE  # nothing is sent over it; what it shows is compared with the pin
    try:
        with (
            socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain,
            probe.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            return wrapped.getpeercert(binary_form=True) or b""
    except OSError as exc:  # ssl.SSLError is one too
        raise Unreachable(f"{url} cannot be reached over TLS: {exc}") from exc


def _context_without_names() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    return context
