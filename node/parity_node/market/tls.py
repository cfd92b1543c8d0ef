"""TLS to a market whose self-signed certificate is pinned by its fingerprint."""

from __future__ import annotations

import hmac
import socket
import ssl
from hashlib import sha256
from urllib.parse import urlsplit

from parity_protocol.errors import Unreachable, Untrusted

__all__ = ["pinned_context", "system_context"]

CONNECT_TIMEOUT_S = 10.0


def system_context() -> ssl.SSLContext:
    """Return a context that trusts the system's authorities, TLS 1.2 or newer, host names checked."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def pinned_context(url: str, fingerprint: str) -> ssl.SSLContext:
    """Return a context that trusts exactly the certificate with ``fingerprint``; blocks while it is fetched.

    The certificate is fetched once without trust, compared, and then made the only trust anchor, so every later
    connection proves possession of its key. Host names are not compared: the pin is stricter than a name.

    Args:
        url: ``https://host[:port]``.
        fingerprint: Hex SHA-256 of the certificate (DER).

    Raises:
        Unreachable: The market does not answer.
        Untrusted: It shows another certificate.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    probe.minimum_version = ssl.TLSVersion.TLSv1_2
    probe.check_hostname = False
    probe.verify_mode = ssl.CERT_NONE  # nothing is sent over this connection; the certificate is compared below
    try:
        with (
            socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain,
            probe.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            certificate = wrapped.getpeercert(binary_form=True) or b""
    except (OSError, ssl.SSLError) as exc:
        raise Unreachable(f"{url} cannot be reached over TLS: {exc}") from exc
    found = sha256(certificate).hexdigest()
    if not hmac.compare_digest(found, fingerprint):
        raise Untrusted(
            f"{url} shows a certificate with fingerprint {found}, pinned is {fingerprint}",
            hint="Ask the market's operator for the current join string; somebody may be in between.",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the pinned certificate need not be its own issuer
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(certificate))
    return context
