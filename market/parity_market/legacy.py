"""The tier of the old Parity network (design §8): who may speak without a signature, how often, and how they are answered.

Nothing here is an identity. A request without a signature counts only from this machine, unless the operator opens the
tier to all; a browser's never does, for any page could send it; nor does one that a proxy passed on, for then everybody
would be on this machine.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response

from parity_protocol.clock import Clock
from parity_protocol.errors import BadField, Forbidden, InvalidInput, Overloaded, ParityError, Unavailable
from parity_protocol.join import is_loopback

__all__ = ["TIER_HEADER", "LegacyTier", "device_of", "is_unsigned", "old_error", "old_json"]

TIER_HEADER: Final = "X-Parity-Tier"  # on every answer of the tier, so that nobody takes it for a checked one
DEVICE_HEADER: Final = "x-device-id"
MAX_DEVICE_CHARS: Final = 255
RATE: Final = 20.0  # requests a second of one address, on average
BURST: Final = 100.0  # at once
MAX_ADDRESSES: Final = 4_096  # remembered
_FROM_A_PAGE: Final = ("origin", "sec-fetch-site")
_PASSED_ON: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")

Mode = Literal["off", "loopback", "on"]


class LegacyTier:
    """Lets requests without a signature in, or says why not.

    Args:
        mode: ``MARKET_LEGACY_PARITY``.
    """

    def __init__(self, mode: Mode, clock: Clock) -> None:
        self.mode = mode
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address → requests left, monotonic then

    def admits(self, request: Request) -> bool:
        """Return whether a request without a signature is of the tier at all."""
        return self._why_not(request) is None

    def check(self, request: Request) -> None:
        """Count a request of the tier.

        Raises:
            Forbidden: It is none.
            Overloaded: Its address asks too often.
        """
        why = self._why_not(request)
        if why is not None:
            raise Forbidden(why, hint="Sign the request, as `parity` does.")
        host, now = "" if request.client is None else request.client.host, self._clock.monotonic()
        left, then = self._left.pop(host, (BURST, now))
        left = min(BURST, left + (now - then) * RATE)
        self._left[host] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > MAX_ADDRESSES:
            self._left.popitem(last=False)
        if left < 1:
            raise Overloaded("too many requests without a signature", retry_after_s=1.0)

    def _why_not(self, request: Request) -> str | None:
        if self.mode == "off":
            return "programs of the old Parity network are not served here (MARKET_LEGACY_PARITY=off)"
        if any(name in request.headers for name in _FROM_A_PAGE):
            return "a browser's request must be signed"
        if self.mode == "on":
            return None
        if any(name in request.headers for name in _PASSED_ON):
            return "a request that a proxy passed on must be signed (MARKET_LEGACY_PARITY=loopback)"
        if request.client is None or not is_loopback(request.client.host):
            return "a request from another machine must be signed (MARKET_LEGACY_PARITY=loopback)"
        if not _is_here(request.url.hostname or ""):
            return "a request for another host name must be signed (MARKET_LEGACY_PARITY=loopback)"
        return None


def _is_here(host: str) -> bool:
    """Return whether a program on this machine would call the market by this name.

    A proxy that says nothing of whom it speaks for may pass on the public name. A page that has its own name point here
    sends its name, and a browser sends no ``Origin`` with what it takes for its own site. Such names have a dot.
    """
    return is_loopback(host) or ("." not in host and ":" not in host)


def is_unsigned(request: Request) -> bool:
    """Return whether a request carries no signature."""
    return "signature" not in request.headers


def device_of(request: Request) -> str:
    """Return the name that a device says it has.

    Raises:
        InvalidInput: There is none, or it is no name.
    """
    found = request.headers.get(DEVICE_HEADER, "").strip()
    if not found:
        raise InvalidInput("Device ID is required", field="X-Device-ID")
    if len(found) > MAX_DEVICE_CHARS or not (found.isascii() and found.isprintable()):
        raise InvalidInput(f"Device ID must be at most {MAX_DEVICE_CHARS} printable characters", field="X-Device-ID")
    return found


def old_json(document: object, status: int = 200) -> Response:
    """Return an answer as the old server writes it."""
    return Response(
        json.dumps(document, separators=(",", ":"), ensure_ascii=False),
        status_code=status,
        media_type="application/json; charset=utf-8",
    )


def old_error(error: ParityError) -> Response:
    """Return ``{"error": …}``: what is wrong with a body is 400 there, whatever it is."""
    status = 400 if isinstance(error, BadField) else error.status
    response = old_json({"error": error.message}, status)
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s or 1)))
    return response
