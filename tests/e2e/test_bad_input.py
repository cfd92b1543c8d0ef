"""Bad input over the network to a real market: a 4xx problem document that names the field, and nothing happens."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from parity_cli.testing.town import REWARD, Town
from parity_client.orders import make_submission, spec_text
from parity_client.session import Session
from parity_protocol.api import paths
from parity_protocol.errors import EscrowTooLow
from parity_protocol.signing.http_signatures import sign_request
from parity_protocol.signing.keys import Ed25519PrivateKey, EvmKey

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20


@pytest.fixture
async def session(town: Town) -> Session:
    sessions = town.market._sessions
    assert sessions is not None
    return await sessions.get()


def signed(town: Town, session: Session, method: str, path: str, body: bytes) -> dict[str, str]:
    return sign_request(
        method,
        path,
        "",
        urlsplit(town.stack.join.url).netloc,
        body,
        key=session.key,
        keyid=session.id,
        now=town.stack.clock.now(),
        nonce=token_urlsafe(18),
    )


async def post(town: Town, session: Session, path: str, body: bytes) -> httpx.Response:
    headers = {**signed(town, session, "POST", path, body), "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=town.stack.join.url, trust_env=False) as client:
        return await client.post(path, content=body, headers=headers)


def valid(town: Town, spec: dict[str, Any] | str | None = None, **options: Any) -> dict[str, Any]:
    text = spec if isinstance(spec, str) else spec_text(spec or {"type": "command", "command": ["true"]})
    made = make_submission(
        town.submitter, text, REWARD, market=town.market.trusted, now=town.stack.clock.now(), **options
    )
    return json.loads(made.model_dump_json(by_alias=True))


def problem_of(reply: httpx.Response) -> dict[str, Any]:
    assert 400 <= reply.status_code < 500, reply.text
    assert reply.headers["content-type"].startswith("application/problem+json")
    problem: dict[str, Any] = reply.json()
    assert problem["status"] == reply.status_code
    assert problem["title"]
    return problem


HOSTILE_BODIES: dict[str, tuple[bytes, str]] = {
    "NaN": (b'{"spec":"{}","reward":NaN}', "/reward"),
    "lone surrogate": (b'{"spec":"\\ud800"}', "/spec"),
    "duplicate member": (b'{"spec":"{}","spec":"{}"}', "/spec"),
    "5000 digits": (b'{"reward":' + b"9" * 5000 + b"}", "/reward"),
    "depth 10000": (b'{"spec":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "/spec" + "/0" * 31),
    "bad UTF-8": (b'{"spec":"\xff\xfe"}', "/spec"),
    "NUL": (b'{"spec":"\\u0000"}', "/spec"),
    "raw NUL": (b'{"spec":"\x00"}', "/spec"),
    "not JSON": (b"spec=1", ""),  # it has no fields
    "empty": (b"", ""),
    "over-long string": (json.dumps({"spec": "a" * 100_000}).encode(), "spec"),
}


@pytest.mark.parametrize("name", HOSTILE_BODIES)
async def test_body_that_is_no_document_is_refused_naming_the_field(town: Town, session: Session, name: str) -> None:
    body, field = HOSTILE_BODIES[name]

    problem = problem_of(await post(town, session, paths.TASKS, body))

    assert problem["field"] == field
    assert problem["code"] in {"bad_document", "bad_field", "too_large"}
    assert await town.stack.market_answers()


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"surprise": 1}, "surprise"),
    "wrong type": ({"spec": 7}, "spec"),
    "number for an amount": ({"reward": 7}, "reward"),
    "negative amount": ({"reward": "-1"}, "reward"),
    "amount of 5000 digits": ({"reward": "9" * 5000}, "reward"),
    "amount with a fraction": ({"reward": "0.5"}, "reward"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_wrong_field_is_refused_by_its_name(town: Town, session: Session, name: str) -> None:
    change, field = CHANGES[name]
    body = json.dumps({**valid(town), **change}).encode()

    problem = problem_of(await post(town, session, paths.TASKS, body))

    assert problem["field"] == field


SPECS: dict[str, tuple[str, str]] = {
    "unknown field": ('{"type":"command","command":["true"],"surprise":1}', "spec.surprise"),
    "unknown type": ('{"type":"alchemy"}', "spec.type"),
    "wrong type": ('{"type":"command","command":7}', "spec.command"),
    "NUL in an argument": ('{"type":"command","command":["a\\u0000b"]}', "/spec/command/0"),
    "infinite time": (
        '{"type":"command","command":["true"],"budgets":{"wall_time_s":1e999}}',
        "/spec/budgets/wall_time_s",
    ),
    "over-long title": (json.dumps({"type": "command", "command": ["true"], "title": "t" * 300}), "spec.title"),
    "a thousand and one arguments too many": (
        json.dumps({"type": "command", "command": ["x"] * 2_000}),
        "spec.command",
    ),
}


@pytest.mark.parametrize("name", SPECS)
async def test_wrong_spec_is_refused_by_the_fields_name(town: Town, session: Session, name: str) -> None:
    text, field = SPECS[name]

    problem = problem_of(await post(town, session, paths.TASKS, json.dumps(valid(town, text)).encode()))

    assert problem["field"] == field


async def test_100_mb_body_is_refused_without_being_read(town: Town, session: Session) -> None:
    url = urlsplit(town.stack.join.url)
    head = f"POST {paths.TASKS} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {100 * MIB}\r\n"
    headers = "".join(f"{name}: {value}\r\n" for name, value in signed(town, session, "POST", paths.TASKS, b"").items())

    with socket.create_connection((url.hostname or "", url.port or 80), 5) as connection:
        connection.sendall((head + headers + "\r\n").encode() + b"[" * 65_536)
        connection.settimeout(5)
        answer = connection.recv(65_536)

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer.lower()


async def test_chunked_body_without_end_is_refused_while_it_still_comes(town: Town, session: Session) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100 * MIB // 65_536):
            yield b"[" * 65_536

    headers = signed(town, session, "POST", paths.TASKS, b"")
    async with httpx.AsyncClient(base_url=town.stack.join.url, trust_env=False) as client:
        try:
            reply = await client.post(paths.TASKS, content=pieces(), headers=headers)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            pass  # the market has closed the connection, which is as good
        else:
            assert problem_of(reply)["code"] == "too_large"
    assert await town.stack.market_answers()


async def test_bad_input_leaves_no_task_behind(town: Town, session: Session) -> None:
    before = (await town.market.tasks(limit=1)).tasks

    for body, _ in HOSTILE_BODIES.values():
        await post(town, session, paths.TASKS, body)

    assert (await town.market.tasks(limit=1)).tasks == before


# -- orders --------------------------------------------------------------------------------------------------------------


def flip(text: str, place: int) -> str:
    return text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1 :]


async def test_order_that_is_not_the_submitters_for_this_market_is_refused(town: Town, session: Session) -> None:
    before = (await town.market.tasks(limit=1)).tasks
    now, trusted = town.stack.clock.now(), town.market.trusted
    text = spec_text({"type": "command", "command": ["true"]})
    elsewhere = replace(trusted, thumbprint=Ed25519PrivateKey.generate().public_key.thumbprint())
    good = valid(town)
    stranger = make_submission(EvmKey.generate(), text, REWARD, market=trusted, now=now)
    foreign = make_submission(town.submitter, text, REWARD, market=elsewhere, now=now)
    late = make_submission(
        town.submitter, text, REWARD, market=trusted, now=now - timedelta(days=2), valid_for=timedelta(days=1)
    )
    bodies = {
        "one bit of the signature": {
            **good,
            "order": {**good["order"], "signature": flip(good["order"]["signature"], 9)},
        },
        "one digit of the maximum": {**good, "order": {**good["order"], "max_reward": str(REWARD * 9)}},
        "one bit of the nonce": {**good, "order": {**good["order"], "nonce": flip(good["order"]["nonce"], 9)}},
        "another spec": {**good, "spec": spec_text({"type": "command", "command": ["false"]})},
        "a reward above the maximum": {**good, "reward": str(REWARD + 1)},
        "somebody else's": json.loads(stranger.model_dump_json()),
        "for another market": json.loads(foreign.model_dump_json()),
        "after its deadline": json.loads(late.model_dump_json()),
    }

    for what, body in bodies.items():
        reply = await post(town, session, paths.TASKS, json.dumps(body).encode())
        assert 400 <= reply.status_code < 500, what
        assert reply.json()["code"] not in {"", "internal"}, what
    assert (await town.market.tasks(limit=1)).tasks == before


async def test_repeated_order_makes_one_task_and_its_nonce_no_other(town: Town, session: Session) -> None:
    body = valid(town, max_reward=2 * REWARD)
    again = json.dumps(body).encode()

    first, second = [(await post(town, session, paths.TASKS, again)).json() for _ in range(2)]
    other = await post(town, session, paths.TASKS, json.dumps({**body, "reward": str(2 * REWARD)}).encode())

    assert first["id"] == second["id"]
    assert (first["created"], second["created"]) == (True, False)
    assert other.status_code in (409, 422)


async def test_reward_beyond_the_escrow_is_refused_with_what_to_do(town: Town) -> None:
    with pytest.raises(EscrowTooLow) as refused:
        await town.market.submit({"type": "command", "command": ["true"]}, 10**25)

    assert "parity wallet" in refused.value.hint()
