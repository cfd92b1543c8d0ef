"""What the whole agent does with manifests: only the market's own, for this node, once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from structlog.testing import CapturingLogger

from parity_node.store.memory import MemoryNodeStore
from parity_node.testing.market import MarketSimulator, command_spec
from parity_protocol.task import TaskState
from parity_protocol.testing.keys import deterministic_ed25519


def _flip_a_bit(token: str) -> str:
    head, payload, signature = token.split(".")
    middle = len(payload) // 2
    return f"{head}.{payload[:middle]}{'A' if payload[middle] != 'A' else 'B'}{payload[middle + 1 :]}.{signature}"


def _without_signature(token: str) -> str:
    return token.rsplit(".", 1)[0] + "."


def _alg_none(token: str) -> str:
    return "eyJhbGciOiJub25lIiwidHlwIjoibWFuaWZlc3QrandzIn0." + token.split(".")[1] + "."


def _alg_hs256(token: str) -> str:
    """Sign with something that everybody knows, as if the issuer's public name were a shared secret."""
    head, payload, _ = token.split(".")
    kid = json.loads(base64.urlsafe_b64decode(head + "=="))["kid"]
    header = json.dumps({"alg": "HS256", "kid": kid, "typ": "manifest+jws"}).encode()
    signed = f"{base64.urlsafe_b64encode(header).decode().rstrip('=')}.{payload}"
    mac = hmac.digest(kid.encode(), signed.encode(), hashlib.sha256)
    return f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


@pytest.mark.parametrize("forge", [_flip_a_bit, _without_signature, _alg_none, _alg_hs256])
async def test_forged_manifest_is_refused_logged_and_nothing_is_executed(
    node, market: MarketSimulator, monkeypatch, forge
) -> None:
    logged = CapturingLogger()
    monkeypatch.setattr("parity_node.acquire.log", logged)
    market.tamper_token = forge
    market.offer()

    async with node() as running:
        await running.until(lambda: bool(running.agent.metrics.refusals))
        await running.pass_time(10)

    assert running.executor.jobs == []
    assert market.calls.get("claim", 0) == 0
    (refused, *_) = logged.calls
    assert (refused.method_name, refused.args) == ("warning", ("offer_refused",))
    assert refused.kwargs["rule"].startswith("manifest")
    assert refused.kwargs["reason"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aud", "f" * 64),
        ("iss", "A" * 43),
        ("exp", 1_000_000_001),
        ("nbf", 4_000_000_000),
        ("spec", command_spec("rm", "-rf", "/")),
        ("reward", "999"),
        ("total_reward", "1001"),
        ("parts", 2),
        ("min_node_version", "99.0.0"),
        ("chain", {"chain_id": 1, "genesis": "0x" + "00" * 32, "vault": "0x" + "11" * 20}),
        ("jti", "not-a-uuid"),
    ],
)
async def test_manifest_that_the_order_does_not_cover_is_refused(
    node, market: MarketSimulator, field: str, value: object
) -> None:
    market.tamper = lambda payload: payload.update({field: value, **({"iat": 1_000_000_000, "nbf": 1_000_000_000} if field == "exp" else {}), **({"iat": value, "exp": 4_000_000_060} if field == "nbf" else {})})  # fmt: skip
    market.offer()

    async with node() as running:
        await running.until(lambda: bool(running.agent.metrics.refusals))

    assert running.executor.jobs == []
    assert market.calls.get("claim", 0) == 0


async def test_manifest_is_used_once_even_across_a_restart(node, market: MarketSimulator) -> None:
    first, store = market.offer(), MemoryNodeStore()
    tokens: list[str] = []
    market.tamper_token = lambda token: tokens.append(token) or tokens[0]

    async with node(store=store) as running:
        await running.until(lambda: first.state is TaskState.COMPLETED)
        await running.until(running.is_idle)
    market.offer()
    async with node(store=store) as running:
        await running.until(lambda: "replayed" in running.agent.metrics.refusals)

    assert running.executor.jobs == []


async def test_unknown_manifest_key_refreshes_the_key_set_once_a_minute(node, market: MarketSimulator) -> None:
    async with node() as running:
        await running.pass_time(120)
        before = market.calls["trust"]
        market.book.manifest_key = market.manifest_key = deterministic_ed25519("rotated")
        market.tamper_token = _flip_a_bit  # stays refused after the refresh
        for _ in range(5):
            market.offer()
        await running.pass_time(30)
        assert market.calls["trust"] == before + 1


async def test_rotated_manifest_key_is_accepted_after_one_refresh(node, market: MarketSimulator) -> None:
    async with node() as running:
        await running.pass_time(120)
        market.book.manifest_key = market.manifest_key = deterministic_ed25519("rotated")
        task = market.offer()
        await running.until(lambda: task.state is TaskState.COMPLETED)


async def test_task_that_the_policy_forbids_is_not_claimed_and_the_rule_is_counted(
    node, market: MarketSimulator
) -> None:
    market.offer(command_spec("true", budgets={"wall_time_s": 7200}))

    async with node() as running:
        await running.until(lambda: "policy.max_wall_time_s" in running.agent.metrics.refusals)

    assert market.calls.get("claim", 0) == 0


async def test_lease_that_the_market_did_not_sign_is_not_worked_on(node, market: MarketSimulator, monkeypatch) -> None:
    task = market.offer()
    honest = market.book.claim
    monkeypatch.setattr(
        market.book, "claim", lambda item, node_id: honest(item, node_id).model_copy(update={"fence": 7})
    )

    async with node() as running:
        await running.until(lambda: "lease.digest_mismatch" in running.agent.metrics.refusals)

    assert running.executor.jobs == []
    assert task.reports == {}
