"""`GET /groups`: a submitter's own groups, newest first, page by page."""

from __future__ import annotations

from typing import Any

import pytest

from parity_market.testing.served import TOKEN, Served, Signer
from parity_protocol.api import paths
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.keys import deterministic_evm_key

ALICE, BOB = deterministic_evm_key("alice"), deterministic_evm_key("bob")
COMMAND = {"type": "command", "command": ["true"]}


async def signed_in(served: Served, account: EvmKey) -> Signer:
    await served.fund(account, 20 * TOKEN)
    return await served.sign_in(account)


async def submitted(served: Served, account: EvmKey, by: Signer, spec: dict[str, Any]) -> str:
    reply = await served.call("POST", paths.TASKS, served.submission(account, spec), by=by)
    assert reply.status_code == 201, reply.text
    return reply.json()["id"]


async def session(served: Served, account: EvmKey, by: Signer, parts: int = 2) -> str:
    rows = "".join(f"{i},{i % 7},{i % 2}\n" for i in range(60))
    where = f"{paths.STORAGE_UPLOAD}?visibility=private"
    stored = await served.call("POST", where, raw=f"a,b,y\n{rows}".encode(), by=by)
    spec = {
        "type": "federated_learning",
        "model_type": "random_forest",
        "model_config": {"num_trees": 4},
        "dataset_cid": stored.json()["cid"],
        "data_format": "csv",
        "partition_config": {"strategy": "random", "total_parts": parts, "min_samples": 1},
    }
    return await submitted(served, account, by, spec)


async def listed(served: Served, by: Signer | None, query: str = "") -> Any:
    return await served.call("GET", paths.GROUPS + query, by=by)


async def test_groups_come_newest_first_page_by_page_and_each_once(served: Served) -> None:
    me = await signed_in(served, ALICE)
    made = [await session(served, ALICE, me) for _ in range(3)]
    await submitted(served, ALICE, me, COMMAND)  # a task is no group

    first = (await listed(served, me, "?limit=2")).json()
    second = (await listed(served, me, f"?limit=2&cursor={first['next_cursor']}")).json()
    whole = (await listed(served, me, "?limit=3")).json()

    assert [row["id"] for row in first["groups"] + second["groups"]] == sorted(made, reverse=True)
    assert whole["groups"] == first["groups"] + second["groups"]
    assert (first["next_cursor"], second["next_cursor"], whole["next_cursor"]) == (sorted(made)[1], None, None)


async def test_a_row_says_where_the_group_is_and_leaves_its_tasks_out(served: Served) -> None:
    me = await signed_in(served, ALICE)
    group_id = await session(served, ALICE, me, parts=3)

    [running] = (await listed(served, me)).json()["groups"]
    await served.call("POST", paths.task_path(group_id, "cancel"), raw=b"", by=me)
    [ended] = (await listed(served, me)).json()["groups"]
    group = (await served.call("GET", paths.group_path(group_id), by=me)).json()

    assert (running["state"], running["completed_at"], running["parts"]) == ("running", None, 3)
    assert ended["state"] == "cancelled"
    assert ended == {"parts": 3} | {name: group[name] for name in ended if name != "parts"}
    assert set(ended) == {"id", "kind", "state", "reward", "parts", "created_at", "completed_at", "message"}


async def test_nobody_sees_the_groups_of_another(served: Served) -> None:
    alice, bob, node = await signed_in(served, ALICE), await signed_in(served, BOB), await served.enrol("node")
    hers, his = await session(served, ALICE, alice), await session(served, BOB, bob)

    assert [row["id"] for row in (await listed(served, alice)).json()["groups"]] == [hers]
    assert [row["id"] for row in (await listed(served, bob)).json()["groups"]] == [his]
    assert (await listed(served, bob, f"?cursor={hers}g")).text.count(hers) == 0
    assert (await listed(served, node)).status_code == 403
    assert (await listed(served, None)).status_code == 401


@pytest.mark.parametrize("query", ["?cursor=" + "x" * 500, "?limit=0", "?limit=201", "?limit=many"])
async def test_a_bad_cursor_or_limit_is_refused(served: Served, query: str) -> None:
    reply = await listed(served, await signed_in(served, ALICE), query)

    assert (reply.status_code, reply.json()["code"]) == (422, "bad_field")
    assert reply.json()["field"] == query[1:].partition("=")[0]
