"""TLS to a market: by the system's authorities, or by the one certificate that the join string pins."""

from __future__ import annotations

import hmac
import socket
import ssl
from hashlib import sha256
from urllib.parse import urlsplit

from parity_protocol.errors import Unreachable, Untrusted
from parity_protocol.join import JoinString

__all__ = ["context_for"]

CONNECT_TIMEOUT_S = 5.0


def context_for(join: JoinString) -> ssl.SSLContext | None:
    """Return the trust to use with the market; None for plain HTTP, which only loopback may use. May block 5 s.

    A pinned certificate is fetched once over a connection that carries nothing, compared with the pin, and then is
    the only trust anchor; every later connection proves possession of its key. Its host name does not matter then.

    Raises:
        Unreachable: The market does not answer.
        Untrusted: It shows another certificate than the pinned one.
    """
    if not join.url.startswith("https://"):
        return None
    if join.certificate is None:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context
    shown = _shown_certificate(join.url)
    fingerprint = sha256(shown).hexdigest()
    if not hmac.compare_digest(fingerprint, join.certificate):
        raise Untrusted(
            f"{join.url} shows the certificate {fingerprint}, the join string pins {join.certificate}",
            hint="Ask the market's operator for the current join string; somebody may be in between.",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be its own issuer
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(shown))
    return context


def _shown_certificate(url: str) -> bytes:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    probe.minimum_version = ssl.TLSVersion.TLSv1_2
    probe.check_hostname = False
    probe.verify_mode = ssl.CERT_NONE  # nothing is sent over it; what it shows is compared with the pin
    try:
        with (
            socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain,
            probe.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            return wrapped.getpeercert(binary_form=True) or b""
    except (OSError, ssl.SSLError) as exc:
        raise Unreachable(f"{url} cannot be reached over TLS: {exc}") from exc
