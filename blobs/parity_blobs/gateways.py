"""Which gateway to ask next: the operator's order, ranks that keep strangers last, and a bench for those that failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from parity_blobs.gateway_http import Gateway, url_problem
from parity_blobs.kubo_rpc import parse_api
from parity_protocol.clock import Clock
from parity_protocol.errors import ConfigInvalid

__all__ = ["KUBO_RANK", "PUBLIC_RANK", "Bench", "GatewayHealth", "parse_gateways", "sources"]

KUBO_RANK = 5  # of the operator's own Kubo, which may ask the public network for what it has not got
PUBLIC_RANK = 10  # of gateways that belong to neither the operator nor the market
MAX_GATEWAYS = 16

_FIRST_PAUSE_S = 2.0  # doubled by each further failure in a row
_MAX_PAUSE_S = 300.0
_MEMORY = 0.8  # weight of the past in a score
_DOUBTFUL = 0.7  # below it a gateway is asked after those above it: one of two tries failing comes to 0.5


class GatewayHealth(NamedTuple):
    """How a gateway did lately.

    Attributes:
        score: 1 while it always delivers, falling towards 0 with each failure; the past fades.
        failures: In a row.
        benched_s: Seconds until it is asked in its turn again; 0 when it may be asked now.
    """

    url: str
    score: float
    failures: int
    benched_s: float


@dataclass
class _Record:
    score: float = 1.0
    failures: int = 0
    benched_until: float = 0.0


class Bench:
    """Remembers how gateways did, and orders them.

    A gateway that failed sits out, at first for 2 s and at most for 300 s, and is then only the last resort of its
    rank. One that flaps keeps a low score and comes after the steady ones even when it is not benched.
    """

    def __init__(self, gateways: Iterable[Gateway], clock: Clock) -> None:
        self._clock = clock
        self._records = {each.url: _Record() for each in gateways}

    def order(self, gateways: Iterable[Gateway]) -> list[Gateway]:
        """Return ``gateways``, the one to ask first at the front."""
        now = self._clock.monotonic()

        def place(gateway: Gateway) -> tuple[int, float, bool]:
            record = self._records[gateway.url]
            return gateway.rank, max(record.benched_until - now, 0.0), record.score < _DOUBTFUL

        return sorted(gateways, key=place)

    def praise(self, gateway: Gateway) -> None:
        """Note that a gateway delivered."""
        record = self._records[gateway.url]
        record.failures, record.benched_until = 0, 0.0
        record.score = 1.0 - _MEMORY * (1.0 - record.score)

    def blame(self, gateway: Gateway, *, at_least_s: float = 0.0) -> None:
        """Note that a gateway failed, and bench it.

        Args:
            at_least_s: What it asked for itself.
        """
        record = self._records[gateway.url]
        record.failures += 1
        record.score *= _MEMORY
        pause = min(_FIRST_PAUSE_S * 2.0 ** min(record.failures - 1, 16), _MAX_PAUSE_S)
        record.benched_until = self._clock.monotonic() + max(pause, at_least_s)

    def health(self) -> list[GatewayHealth]:
        """Return how each gateway did lately, in the operator's order."""
        now = self._clock.monotonic()
        return [
            GatewayHealth(url, each.score, each.failures, max(each.benched_until - now, 0.0))
            for url, each in self._records.items()
        ]


def parse_gateways(addresses: Sequence[str], *, key: str = "RUNNER_IPFS_GATEWAYS") -> list[Gateway]:
    """Return an operator's public gateways, to be asked after every one that is the market's or the operator's own.

    Args:
        key: The setting's name, for the message.

    Raises:
        ConfigInvalid: An address is not accepted, or there are too many; every problem at once.
    """
    problems = [f"{key}: {problem}" for each in addresses if (problem := url_problem(each))]
    if len(addresses) > MAX_GATEWAYS:
        problems.append(f"{key}: at most {MAX_GATEWAYS} gateways, got {len(addresses)}")
    if problems:
        raise ConfigInvalid(problems)
    return [Gateway(each, rank=PUBLIC_RANK) for each in dict.fromkeys(addresses)]


def sources(market: Gateway, *, gateways: Sequence[str] = (), kubo_api: str = "") -> list[Gateway]:
    """Return where to fetch content from, as an operator has set it: market, own Kubo, strangers.

    Each is asked only when those before it have not got the content or do not answer. A stranger that is asked for a
    private CID learns that this machine wants it, never what it holds; an operator who minds names no gateways.

    Args:
        market: Its gateway, with this node's signature.
        gateways: ``RUNNER_IPFS_GATEWAYS``.
        kubo_api: ``RUNNER_IPFS_API``; a Unix socket is for the store only and is left out here.

    Raises:
        ConfigInvalid: An address is not accepted.
    """
    found = [market]
    if kubo_api:
        url, socket = parse_api(kubo_api)
        if socket is None:
            found.append(Gateway(url, rank=KUBO_RANK, is_kubo_rpc=True))
    return [*found, *parse_gateways(gateways)]
