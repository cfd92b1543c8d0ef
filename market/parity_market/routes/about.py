"""The market itself: its signed document, health, status and metrics."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from parity_market import metrics
from parity_market.auth import Access
from parity_market.operations import money, views
from parity_market.routing import Call, Endpoint
from parity_market.state import MarketState
from parity_market.store.base import ReadTx
from parity_protocol.api import paths
from parity_protocol.api.market import Health, JwksReply, MarketDocument, MarketStatus
from parity_protocol.errors import ParityError

__all__ = ["ENDPOINTS"]


class Welcome(BaseModel):
    """Answer of ``/``."""

    model_config = ConfigDict(frozen=True)

    service: str
    version: str
    status: str
    endpoints: dict[str, str]


async def welcome(call: Call) -> Welcome:
    """Say what this is."""
    return Welcome(
        service="parity-market",
        version=call.state.version,
        status="running",
        endpoints={"api": paths.API, "health": "/api/health", "keys": paths.JWKS, "openapi": "/openapi.json"},
    )


async def jwks(call: Call) -> Response:
    """Return the market's keys and the signed document that vouches for them."""
    return Response(call.state.identity.reply, media_type="application/json", headers={"Cache-Control": "max-age=60"})


async def market(call: Call) -> MarketDocument:
    """Return the market's terms in the open; whoever relies on them checks the signed document."""
    return call.state.identity.document


def _checks(state: MarketState) -> dict[str, str]:
    health = state.chain_health
    age = None if health.seen_at is None else (state.clock.now() - health.seen_at).total_seconds()
    chain = "ok" if not health.problem else health.problem
    if age is not None and age > state.market.chain_grace.total_seconds():
        chain = f"last read {age:.0f} s ago"
    return {"chain": chain}


async def health(call: Call) -> Response:
    """Say whether the market works: 200, or 503 when its store does not answer."""
    state = call.state
    checks = _checks(state)
    try:
        await state.store.read(views.counts)
        checks["store"] = "ok"
    except ParityError as exc:
        checks["store"] = exc.message
    uptime = (state.clock.now() - state.started_at).total_seconds()
    word = "ok" if all(value == "ok" for value in checks.values()) else "degraded"
    body = Health(status=word, version=state.version, uptime_s=round(uptime, 3), checks=checks)
    status = 200 if checks["store"] == "ok" else 503
    return Response(body.model_dump_json(), status_code=status, media_type="application/json")


async def status(call: Call) -> MarketStatus:
    """Return counts for people and dashboards."""
    state = call.state

    def read(tx: ReadTx) -> tuple[dict[str, int], int, int]:
        return *views.counts(tx), money.unsettled(tx, state.market)

    tasks, live, unsettled = await state.store.read(read)
    online = sum(1 for _ in state.scheduler.presence.online())
    return MarketStatus(
        name=state.settings.market_name,
        version=state.version,
        time=state.clock.now().isoformat(),
        nodes_online=online,
        nodes_total=len(state.scheduler.presence),
        tasks=tasks,
        leases_live=live,
        chain_head=state.chain_health.head,
        chain_ok=not state.chain_health.problem,
        unsettled=unsettled,
    )


async def prometheus(call: Call) -> Response:
    """Return metrics; from this machine only, since they say more than strangers need."""
    client = call.request.client
    host = client.host if client is not None else ""
    if host not in ("127.0.0.1", "::1", "testclient"):
        return Response("metrics are served to this machine only\n", status_code=403, media_type="text/plain")
    return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


ENDPOINTS = (
    Endpoint("GET", "/", welcome, Access.PUBLIC, "What this is", Welcome),
    Endpoint("GET", paths.JWKS, jwks, Access.PUBLIC, "Signed keys and terms", JwksReply),
    Endpoint("GET", f"{paths.API}/market", market, Access.PUBLIC, "Terms", MarketDocument),
    Endpoint("GET", f"{paths.API}/health", health, Access.PUBLIC, "Health", Health),
    Endpoint("GET", "/health", health, Access.PUBLIC, "Health", Health),
    Endpoint("GET", f"{paths.API}/status", status, Access.PUBLIC, "Counts", MarketStatus),
    Endpoint("GET", "/metrics", prometheus, Access.PUBLIC, "Prometheus metrics"),
)
