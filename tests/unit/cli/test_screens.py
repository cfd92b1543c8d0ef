"""Text from elsewhere cannot steer a terminal, and screens fit 80 and 120 columns."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from parity_cli.checks import Check
from parity_cli.output import printable
from parity_cli.screens.cells import cell, measure
from parity_cli.screens.checks import checks_screen
from parity_cli.screens.node import balance_screen, status_screen
from parity_cli.screens.sessions import round_line
from parity_cli.screens.task import event_line, group_screen, task_screen, tasks_screen, why_screen
from parity_cli.screens.wallet import wallet_screen
from parity_protocol.api.nodes import PayoutState, Refusal
from parity_protocol.api.rounds import FlRoundReply
from parity_protocol.api.tasks import EventReply, GroupReply, TaskReply, WhyPendingReply

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
EVIL = "[red]x[/red] [/nothing] \x1b[2J\x1b]0;title\x07 ‮evil"
NODE = "ab" * 32
ADDRESS = "0x" + "cd" * 20


def drawn(screen: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, color_system=None).print(screen)
    text = file.getvalue()
    assert max(len(line.rstrip("\n")) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    assert "‮" not in text
    return text


def task(**changes: Any) -> TaskReply:
    fields = {
        "id": "01a2079d-70fa-7eb5-b10d-4c327c5990a3",
        "type": "command",
        "status": "completed",
        "state": "completed",
        "spec": {"type": "command", "command": ["sh", "-c", "echo 'hello world'"]},
        "reward": 10**17,
        "creator_address": ADDRESS,
        "runner_id": NODE,
        "attempts": 1,
        "max_attempts": 3,
        "fence": 1,
        "created_at": NOW - timedelta(minutes=5),
        "updated_at": NOW,
        "result_cid": "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am",
        "payout": PayoutState(state="confirmed", tx_hash="0x" + "ef" * 32),
    }
    return TaskReply.model_validate(fields | changes)


def event(**changes: Any) -> EventReply:
    fields = {"seq": 1, "event": "claim", "state": "leased", "at": NOW, "node_id": NODE, "fence": 1, "detail": ""}
    return EventReply.model_validate(fields | changes)


def test_control_characters_and_markup_are_shown_not_obeyed() -> None:
    assert printable("a\x1b[31mb\r\nc\td\x07\x9b‮") == "a�[31mb\nc\td���"
    assert cell("[red]") == r"\[red]"
    assert printable("日本語 ü ✓") == "日本語 ü ✓"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345678, "0.123457"),
        (3, "3"),
        ("word", "word"),
        ([1, 2], "[1, 2]"),
        (list(range(99)), "(99 values, with --json)"),
        ("x" * 99, "x" * 59 + "…"),
    ],
)
def test_a_metric_fits_a_line(value: object, shown: str) -> None:
    assert measure(value) == shown


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_of_tasks_has_a_line_for_each_task(width: int) -> None:
    tasks = [task(), task(title=EVIL, state="running"), task(state="not_verified", reward=123456 * 10**14)]

    text = drawn(tasks_screen(tasks, symbol="PDEV", decimals=18, now=NOW), width)

    lines = text.splitlines()
    assert len(lines) == 4
    assert all("01a2079d-70fa-7eb5-b10d-4c327c5990a3" in line for line in lines[1:])
    assert "0.1 PDEV" in lines[1]
    assert "5m" in lines[1]
    assert "12.3456 PDEV" in lines[3]
    assert ("echo 'hello world'" in lines[1]) == (width == 120)


def test_no_tasks_say_what_to_do() -> None:
    assert "parity task submit" in drawn(tasks_screen([], symbol="", decimals=18, now=NOW), 80)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("receipt", [{"valid": True, "operator": ADDRESS}, {"valid": False, "problem": EVIL}])
def test_a_task_shows_its_steps_receipt_and_pay(width: int, receipt: dict[str, Any]) -> None:
    found = task(title=EVIL, message=EVIL, failure="exit_status", group_id="g", parts=3, runner_id=EVIL)

    text = drawn(task_screen(found, [event(), event(detail=EVIL)], receipt, symbol=EVIL, decimals=18), width)

    assert "claim" in text
    assert "confirmed" in text
    assert ("not valid" in text) == (not receipt["valid"])


def test_a_step_is_one_line_whatever_it_says() -> None:
    line = event_line("01a2079d-70fa-7eb5-b10d-4c327c5990a3", event(detail=f"first\nsecond\n{EVIL}"))

    assert line.plain.count("\n") == 0
    assert "7c5990a3" in line.plain
    assert "first …" in line.plain


def test_a_markets_name_of_a_step_steers_no_terminal() -> None:
    line = event_line("01a2079d-70fa-7eb5-b10d-4c327c5990a3", event(event="\x1b[2J", state="\x1b[2J"))

    assert "\x1b" not in line.plain


@pytest.mark.parametrize("width", [80, 120])
def test_a_group_shows_its_metrics_and_tasks(width: int) -> None:
    group = GroupReply(
        id="g",
        kind="federated_learning",
        state="completed",
        creator_address=ADDRESS,
        reward=3 * 10**18,
        created_at=NOW,
        tasks=(task(), task()),
        metrics={"accuracy": 0.95, "importance": [0.1] * 30, EVIL: EVIL},
        message=EVIL,
    )

    text = drawn(group_screen(group, symbol="PDEV", decimals=18, now=NOW), width)

    assert "0.95" in text
    assert "(30 values" in text


def test_why_names_rule_message_and_count() -> None:
    refusal = Refusal(rule="capability.memory", message=EVIL, count=12)
    reply = WhyPendingReply(
        task_id="t", state="pending", nodes_seen=12, nodes_fit=0, refusals=(refusal,), summary="none"
    )

    text = drawn(why_screen([reply]), 80)

    assert "12" in text
    assert "capability.memory" in text
    assert "nodes seen: 12, that fit: 0" in text


def test_checks_show_cause_and_fix() -> None:
    checks = [Check("config", ok=True, result="fine"), Check("chain", ok=False, result=EVIL, fix="start it")]

    text = drawn(checks_screen(checks), 80)

    assert "PASS" in text
    assert "FAIL" in text
    assert "→ start it" in text
    assert "1 passed, 1 failed" in text


WALLET = {
    "name": "default",
    "address": ADDRESS,
    "symbol": "PDEV",
    "decimals": 18,
    "market": {"name": EVIL, "url": "http://127.0.0.1:8080", "spender": ADDRESS},
    "chain": dict.fromkeys(("wei", "tokens", "allowance", "credit", "escrow", "releasing"), str(15 * 10**17))
    | {"release_ready_at": "2026-01-09T00:00:00+00:00"},
    "account": dict.fromkeys(("available", "reserved", "owed", "spent"), "0"),
}


@pytest.mark.parametrize("width", [80, 120])
def test_a_part_of_the_wallet_that_fails_hides_no_other(width: int) -> None:
    whole = drawn(wallet_screen(WALLET), width)
    half = drawn(wallet_screen(WALLET | {"chain": {"error": EVIL}}), width)
    none = drawn(wallet_screen({"name": "default", "address": ADDRESS, "error": EVIL}), width)

    assert "1.5 PDEV" in whole
    assert "ready 2026-01-09" in whole
    assert "available" in half
    assert "escrow" not in half
    assert "default" in none


AGENT: dict[str, Any] = {
    "node_id": NODE,
    "uptime_s": 3725.2,
    "version": "0.1.0",
    "state": "online",
    "market": {
        "name": EVIL,
        "url": "http://127.0.0.1:8080",
        "heard_s_ago": 1.5,
        "clock_offset_s": -0.25,
        "problems": [EVIL],
    },
    "slots": {"total": 2, "free": 1},
    "executors": {
        "command": {"available": True, "isolation": "bwrap", "reason": ""},
        "docker": {"available": False, "isolation": "none", "reason": EVIL},
    },
    "running": [{"task_id": "t-1", "kind": "command", "phase": "started", "seconds": 61.0}],
    "outbox": {"reports": 2, "bytes": 2048, "error": EVIL},
    "refusals": [{"rule": "policy.kinds", "message": EVIL, "count": 3}],
    "disk_free_bytes": 3 << 30,
}
MONEY: dict[str, Any] = {
    "node_id": NODE,
    "owner": ADDRESS,
    "operator": ADDRESS,
    "payout": ADDRESS,
    "terms": {"symbol": "PDEV", "decimals": 18, "min_bond": str(10 * 10**18)},
    "chain": {
        "bond": str(4 * 10**18),
        "unbonding": str(10**18),
        "unbonding_ready": False,
        "unbonding_ready_at": "2026-01-09T00:00:00+00:00",
        "credit": "0",
        "owner_tokens": "0",
        "owner_wei": "0",
        "operator": "0x" + "ee" * 20,
    },
    "market": {"earned": str(10**17), "confirmed": "0", "completed": 5, "failed": 1},
}


@pytest.mark.parametrize("width", [80, 120])
def test_a_nodes_status_names_what_is_wrong_and_the_next_command(width: int) -> None:
    text = drawn(status_screen({"agent": AGENT} | MONEY), width)

    assert "ONLINE" in text
    assert "1h2m5s" in text
    assert "command ready (bwrap)" in text
    assert "4 PDEV bonded, 10 PDEV needed" in text
    assert "parity node stake --amount 6" in text
    assert "another operator" in text
    assert "3 × policy.kinds" in text


@pytest.mark.parametrize("gone", ["agent", "terms", "chain", "market"])
def test_a_part_of_the_status_that_fails_hides_no_other(gone: str) -> None:
    document = {"agent": AGENT} | MONEY | {gone: {"error": f"{gone} is away", "hint": "start it"}}

    text = drawn(status_screen(document), 80)

    assert f"{gone} is away" in text
    assert ("ONLINE" in text) == (gone != "agent")
    assert ("earned" in text) == (gone != "terms")
    assert ("5 completed" in text) == (gone not in ("terms", "market"))


def test_a_node_without_keys_has_a_status() -> None:
    text = drawn(status_screen({"agent": {"error": "no agent", "hint": ""}, "identity_error": "no owner yet"}), 80)

    assert "STOPPED" in text
    assert "no owner yet" in text


def test_the_balance_shows_the_three_keys() -> None:
    text = drawn(balance_screen(MONEY), 120)

    assert text.count(ADDRESS) == 3
    assert "unbonding 1 PDEV (ready 2026-01-09" in text


def test_a_phase_says_about_how_many_are_left() -> None:
    told = {"phases_left": 24}
    one = FlRoundReply(
        round=1, phase=3, state="closed", base="", base_size=0, cohort=(0, 1), metrics=told, opened_at=NOW
    )

    assert round_line(one, total=1) == "round 1/1 phase 3    about 24 left  0 of 2 updates"
