"""Identity comes from a signature over the whole request; every route has a policy; objects have owners."""

from __future__ import annotations

from datetime import timedelta

import pytest

from parity_market.app import ENDPOINTS
from parity_market.auth import Access
from parity_market.testing.served import TOKEN, Served
from parity_protocol.api import paths
from parity_protocol.signing.keys import Ed25519PrivateKey
from parity_protocol.testing.keys import deterministic_evm_key

PUBLIC_PATHS = {
    ("GET", "/"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/api/v1/market"),
    ("GET", "/api/v1/health"),
    ("GET", "/health"),
    ("GET", "/api/v1/status"),
    ("GET", "/metrics"),
    ("GET", "/api/v1/auth/nonce"),
    ("POST", "/api/v1/auth/siwe"),
    ("GET", "/api/v1/nodes"),
    ("GET", "/api/v1/nodes/{node_id}"),
    ("GET", "/api/v1/nodes/{node_id}/why-no-work"),
}
UUID = "00000000-0000-4000-8000-000000000000"


def _fill(path: str) -> str:
    path = path.replace("{node_id}", "ab" * 32).replace("{account}", "0x" + "ab" * 20)
    path = path.replace("{cid}", "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")
    for name in ("{task_id}", "{group_id}", "{root_id}"):
        path = path.replace(name, UUID)
    return path


def test_only_listed_routes_are_public() -> None:
    public = {(one.method, one.path) for one in ENDPOINTS if one.access is Access.PUBLIC}

    assert public == PUBLIC_PATHS


async def test_anonymous_callers_get_401_from_every_other_route(served: Served) -> None:
    served.state.legacy.mode = "off"
    for one in ENDPOINTS:
        if one.access in (Access.PUBLIC, Access.OPTIONAL, Access.ENROLLING, Access.LEGACY):
            continue
        reply = await served.call(one.method, _fill(one.path), raw=b"{}" if one.method == "POST" else b"")
        assert reply.status_code == 401, (one.path, reply.text)


@pytest.mark.parametrize("header", ["X-Device-ID", "X-Runner-ID", "X-Client-ID", "Authorization"])
async def test_a_header_is_never_identity(served: Served, header: str) -> None:
    node = await served.enrol("node")

    reply = await served.call("POST", paths.HEARTBEAT, {}, change={header: node.keyid})

    assert reply.status_code == 401


async def test_a_session_may_not_do_a_nodes_work_and_the_reverse(served: Served) -> None:
    node, account = await served.enrol("node"), await served.sign_in(deterministic_evm_key("submitter"))

    assert (await served.call("POST", paths.LEASE_POLL, {}, by=account)).status_code == 403
    assert (await served.call("GET", paths.TASKS, by=node)).status_code == 403


async def test_a_captured_request_is_refused_the_second_time(served: Served) -> None:
    account = await served.sign_in(deterministic_evm_key("submitter"))
    headers = served.sign("GET", paths.TASKS, b"", account)

    first = await served.client.get(paths.TASKS, headers=headers)
    second = await served.client.get(paths.TASKS, headers=headers)

    assert (first.status_code, second.status_code) == (200, 401)
    assert second.json()["code"] == "replayed"


async def test_a_signature_for_another_path_body_or_query_is_refused(served: Served) -> None:
    node = await served.enrol("node")
    body = b"{}"

    for method, path, sent in (
        ("POST", paths.LEASE_RENEW, body),
        ("POST", paths.LEASE_POLL + "?a=1", body),
        ("POST", paths.LEASE_POLL, b'{"slots":1}'),
    ):
        headers = served.sign("POST", paths.LEASE_POLL, body, node)
        reply = await served.client.request(method, path, content=sent, headers=headers)
        assert reply.status_code == 401, path


async def test_a_clock_ten_minutes_off_is_told_so_with_the_markets_time(served: Served) -> None:
    account = await served.sign_in(deterministic_evm_key("submitter"))

    for off in (timedelta(minutes=10), timedelta(minutes=-10)):
        reply = await served.call("GET", paths.TASKS, by=account, now=served.clock.now() + off)
        problem = reply.json()
        assert (reply.status_code, problem["code"]) == (401, "clock_skew")
        assert "600 s apart" in problem["detail"]
        assert problem["market_time"].startswith("2026-06-01T00:00")
        assert "clock" in problem["hint"]


async def test_a_session_ends_after_an_hour_and_at_sign_out(served: Served) -> None:
    account = deterministic_evm_key("submitter")
    first, second = await served.sign_in(account), await served.sign_in(account)

    assert (await served.call("DELETE", "/api/v1/auth/session", by=first)).status_code == 204
    assert (await served.call("GET", paths.TASKS, by=first)).status_code == 401
    assert (await served.call("GET", paths.TASKS, by=second)).status_code == 200
    await served.clock.advance(timedelta(minutes=61))
    assert (await served.call("GET", paths.TASKS, by=second)).status_code == 401


async def test_a_sign_in_is_good_once(served: Served) -> None:
    message = await served.siwe(deterministic_evm_key("submitter"), Ed25519PrivateKey.generate())

    replies = [await served.call("POST", paths.SIWE, message) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [200, 401]


@pytest.mark.parametrize(
    "change",
    [
        {"domain": "evil.example"},
        {"uri": "http://evil.example"},
        {"chain_id": 1},
        {"nonce": "0123456789abcdef0123456789abcdef"},
        {"address": deterministic_evm_key("somebody else").address},
    ],
)
async def test_a_sign_in_for_somewhere_or_somebody_else_is_refused(served: Served, change: dict) -> None:
    message = await served.siwe(deterministic_evm_key("submitter"), Ed25519PrivateKey.generate(), **change)

    reply = await served.call("POST", paths.SIWE, message)

    assert reply.status_code == 401, reply.text


async def test_nobody_reads_or_cancels_anothers_task(served: Served) -> None:
    alice, bob = deterministic_evm_key("alice"), deterministic_evm_key("bob")
    await served.fund(alice, 10 * TOKEN)
    mine, other = await served.sign_in(alice), await served.sign_in(bob)
    made = await served.call(
        "POST", paths.TASKS, served.submission(alice, {"type": "command", "command": ["true"]}), by=mine
    )
    task_id = made.json()["id"]
    node = await served.enrol("node")

    for leaf in ("", "status", "events", "result", "logs", "reward", "receipt", "why-pending"):
        for caller in (other, node):
            reply = await served.call("GET", paths.task_path(task_id, leaf), by=caller)
            assert reply.status_code == 404, (leaf, reply.text)
    assert (await served.call("POST", paths.task_path(task_id, "cancel"), raw=b"", by=other)).status_code in (403, 404)
    assert (await served.call("GET", paths.account_path(alice.address), by=other)).status_code == 403
    assert (await served.call("GET", paths.task_path(task_id), by=mine)).status_code == 200
