"""What a device of the old network may do: its own parts, its own updates, each once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from parity_market.operations import leases
from parity_protocol.api import paths

from .old_network import UNKNOWN, Old, ids_of


async def test_a_device_that_did_not_register_gets_nothing(old: Old) -> None:
    session_id = await old.session()
    await old.register("one")
    task = (await old.tasks(session_id, "one"))[0]["id"]

    replies = [
        await old.call("GET", paths.fl_session_path(session_id, "rounds/1"), device="stranger"),
        await old.start(task, "stranger"),
        await old.call("POST", paths.runner_task_path(task, "result"), {}, device="stranger"),
    ]

    assert [(reply.status_code, reply.json()["error"]) for reply in replies] == [(404, "runner not found")] * 3


async def test_a_part_is_one_devices_at_a_time(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    config = await old.started(session_id, "one")

    again = await old.start(config["task_id"], "one")
    other = await old.start(config["task_id"], "two")
    listed = [task["status"] for task in await old.tasks(session_id, "two")]

    assert again.json()["config"]["round_id"] == config["round_id"]
    assert (other.status_code, other.json()) == (409, {"error": "task unavailable: another runner has it"})
    assert listed == ["running", "pending"]


async def test_an_update_counts_only_from_who_was_given_the_part(old: Old) -> None:
    session_id, elsewhere = await old.session(), await old.session()
    await old.register("one", "two")
    config, theirs = await old.started(session_id, "one"), await old.started(elsewhere, "two")

    replies = {
        "another's lease": await old.update(config, "two"),
        "a guessed lease": await old.update({**config, "round_id": UNKNOWN}, "one"),
        "another session": await old.update({**config, "session_id": elsewhere}, "one"),
        "an unknown session": await old.update({**config, "session_id": UNKNOWN}, "one"),
        "an unknown device": await old.update(config, "three"),
        "another header": await old.call("POST", paths.FL_MODEL_UPDATES, {**ids_of(config, "one")}, device="two"),
    }
    good = await old.update(config, "one")

    assert {name: reply.status_code for name, reply in replies.items()} == dict.fromkeys(replies, 400)
    assert good.status_code == 200
    assert (await old.update(theirs, "two")).status_code == 200


async def test_an_update_that_comes_again_changes_nothing(old: Old) -> None:
    session_id = await old.session()
    await old.register("one")
    config = await old.started(session_id, "one")

    first = await old.update(config, "one")
    again = await old.update(config, "one", weights={"layer_weights": [9.0, 9.0, 9.0]})

    folder = old.served.state.rounds.folder(session_id) / "updates"
    files = [path.name for path in folder.rglob("*") if path.is_file()]
    assert (first.status_code, again.status_code) == (200, 200)
    assert len(files) == 1
    assert [task["status"] for task in await old.tasks(session_id, "one")] == ["completed", "pending"]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"layer_weights": [0.1, 0.2]}, "weights.layer_weights must be a list of 3 numbers, got 2 values"),
        ({"layer_weights": [0.1, 0.2, "NaN"]}, "weights.layer_weights must be a list of numbers"),
        ({"layer_weights": [0.1, 0.2, 1e39]}, "weights.layer_weights has NaN or Inf values"),
        ({"other": [0.1, 0.2, 0.3]}, "weights must have the layers layer_weights"),
        ({"layer_weights": [0] * 20_000}, "the document has more than"),
    ],
)
async def test_an_update_that_is_none_of_the_model_is_refused_by_name_and_may_be_sent_again(
    old: Old, weights: dict[str, Any], words: str
) -> None:
    session_id = await old.session()
    await old.register("one")
    config = await old.started(session_id, "one")

    bad = await old.update(config, "one", weights=weights)
    good = await old.update(config, "one")

    folder = old.served.state.rounds.folder(session_id) / "updates"
    assert (bad.status_code, good.status_code) == (400 if "more than" not in words else bad.status_code, 200), bad.text
    assert bad.json()["error"].startswith(words)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 1


async def test_a_late_update_is_refused_with_the_cause(old: Old) -> None:
    session_id = await old.session(total_rounds=2, min_participants=3)
    await old.register("one", "two", "three")
    configs = [await old.started(session_id, device, part) for part, device in enumerate(("one", "two", "three"))]
    await old.step(session_id)
    for config, device in zip(configs, ("one", "two"), strict=False):
        assert (await old.update(config, device)).status_code == 200
    await old.served.clock.advance(timedelta(minutes=10, seconds=1))
    await old.step(session_id)

    late = await old.update(configs[2], "three")

    assert late.status_code == 400
    assert late.json()["error"].startswith("late: round 1")


async def test_a_device_that_has_sent_its_part_counts_as_there_when_the_rounds_clock_is_started(old: Old) -> None:
    session_id = await old.session(min_participants=3)
    await old.register("one", "two", "three")
    assert (await old.update(await old.started(session_id, "one", 0), "one")).status_code == 200
    configs = [await old.started(session_id, device, part) for part, device in ((1, "two"), (2, "three"))]
    await old.step(session_id)
    assert (await old.update(configs[0], "two")).status_code == 200

    await old.served.clock.advance(timedelta(minutes=10, seconds=1))
    await old.step(session_id)

    shown = (await old.call("GET", paths.fl_session_path(session_id))).json()
    assert shown["current_round"] == 1
    assert (await old.call("GET", paths.fl_session_path(session_id, "rounds/1"))).json()["status"] == "completed"


async def test_a_task_is_of_its_round_alone(old: Old) -> None:
    session_id = await old.session(total_rounds=2)
    await old.register("one", "two", "three")
    configs = [await old.started(session_id, device, part) for part, device in enumerate(("one", "two"))]
    for config, device in zip(configs, ("one", "two"), strict=True):
        assert (await old.update(config, device)).status_code == 200
    await old.step(session_id)

    replayed = await old.update(configs[0], "one")
    old_task = await old.start(configs[0]["task_id"], "three")

    assert replayed.status_code == 200
    assert old_task.json() == {"error": "task unavailable: round 1 is not open"}
    assert (await old.tasks(session_id, "one", 2))[0]["id"] != configs[0]["task_id"]


async def test_a_device_that_fails_gives_the_part_back(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    config = await old.started(session_id, "one")

    failed = await old.call(
        "POST",
        paths.runner_task_path(config["task_id"], "result"),
        {"exit_code": 0, "error": "training failed: \x1b[31mno data\x00".replace("\x00", "")},
        device="one",
    )
    late = await old.update(config, "one")

    assert (failed.status_code, late.status_code) == (200, 400)
    again = await old.start(config["task_id"], "one")
    assert again.json() == {"error": "task unavailable: this runner failed at it before"}
    assert (await old.started(session_id, "two"))["round_id"] != config["round_id"]
    assert (await old.group(session_id)).tasks[0].attempts == 0
    assert "\x1b" not in (await old.group(session_id)).tasks[0].message


async def test_a_device_that_says_nothing_loses_the_part_in_time(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    config = await old.started(session_id, "one")
    state = old.served.state

    await old.served.clock.advance(timedelta(minutes=10, seconds=1))
    await state.store.write(lambda tx: leases.reap(tx, state.market, state.clock.now()))
    late = await old.update(config, "one")

    assert late.status_code == 400
    assert (await old.start(config["task_id"], "two")).status_code == 200


async def test_a_result_is_its_devices_alone(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    config = await old.started(session_id, "one")
    path = paths.runner_task_path(config["task_id"], "result")

    replies = [
        await old.call("POST", path, {"error": "mine now"}, device="two"),
        await old.call("POST", paths.runner_task_path(UNKNOWN, "result"), {}, device="one"),
        await old.call("POST", path, {"exit_code": "0"}, device="one"),
        await old.call("POST", path, {}, device="one"),
    ]

    assert [reply.status_code for reply in replies] == [403, 404, 400, 200]
    assert replies[0].json() == {"error": "task is assigned to a different runner"}
    assert (await old.update(config, "one")).status_code == 200


async def test_a_session_that_scales_its_rows_is_not_for_old_devices(old: Old) -> None:
    config = {**old.description()["config"], "model_config": {"input_size": 2, "standardize": True}}
    session_id = await old.session(config=config)
    await old.register("one")

    reply = await old.start((await old.tasks(session_id, "one"))[0]["id"], "one")

    assert reply.status_code == 409
    assert "do not scale their rows" in reply.json()["error"]


async def test_gradients_alone_are_differences_to_the_rounds_model(old: Old) -> None:
    session_id = await old.session(total_rounds=2)
    await old.register("one", "two")
    for number in (1, 2):
        for part, device in enumerate(("one", "two")):
            task = (await old.tasks(session_id, device, number))[part]
            config = (await old.start(task["id"], device)).json()["config"]
            sent = await old.update(config, device, weights={}, gradients={"layer_weights": [1.0, 2.0, part]})
            assert sent.status_code == 200, sent.text
        await old.step(session_id)

    found = (await old.call("GET", paths.fl_session_path(session_id, "model"))).json()["model_data"]

    assert found["weights"]["layer_weights"] == pytest.approx([2.0, 4.0, 1.0])


async def test_a_model_that_a_program_has_is_not_sent_again(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    for part, device in enumerate(("one", "two")):
        assert (await old.update(await old.started(session_id, device, part), device)).status_code == 200
    await old.step(session_id)
    where = paths.fl_session_path(session_id, "model")

    first = await old.call("GET", where)
    again = await old.call("GET", where, change={"If-None-Match": first.headers["etag"]})

    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert again.headers["etag"] == first.headers["etag"]
