"""What holds for every command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import pytest

from parity_cli import exit_codes
from parity_cli.app import COMMANDS, cli
from parity_cli.lazy import LazyGroup
from parity_protocol import errors

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any

HEAVY = ["rich", "httpx", "pydantic", "web3", "eth_account", "anyio", "sqlalchemy", "fastapi", "numpy", "coincurve"]


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = list(commands())


def ids(item: tuple[tuple[str, ...], click.Command]) -> str:
    return " ".join(item[0])


def test_every_command_of_the_design_is_there() -> None:
    wanted = {
        "node": "init auth stake unstake withdraw balance run status logs drain",
        "market": "init serve",
        "wallet": "create faucet deposit allow release show",
        "task": "submit list show result logs cancel why",
        "data": "add get info cid",
        "chain": "serve",
        "config": "use show check",
    }
    names = {" ".join(path) for path, _ in ALL}

    assert {f"{group} {leaf}" for group, leaves in wanted.items() for leaf in leaves.split()} <= names
    assert {"demo", "version", "completion"} <= names


@pytest.mark.parametrize("item", ALL, ids=ids)
def test_every_command_explains_itself_with_an_example_and_speaks_json(
    item: tuple[tuple[str, ...], click.Command],
) -> None:
    path, command = item

    text = command.get_help(click.Context(command, info_name=path[-1]))

    assert f"parity {' '.join(path)}" in text.partition("Examples:")[2]
    assert "--json" in text
    assert command.help


def test_lazy_groups_say_of_their_commands_what_these_say_of_themselves() -> None:
    groups: list[LazyGroup] = [cli]
    for name in cli.lazy:
        found = cli.get_command(click.Context(cli), name)
        if isinstance(found, LazyGroup):
            groups.append(found)
    for group in groups:
        for name, (_, text) in group.lazy.items():
            command = group.get_command(click.Context(group), name)
            assert command is not None
            said = [command.short_help, command.help]
            assert next(each for each in said if each).partition("\n")[0] == text


@pytest.mark.parametrize("group", [[], *([name] for name in COMMANDS), ["node", "stake"], ["node", "run"]])
def test_help_loads_nothing_heavy(group: list[str]) -> None:
    call = f"run([*{group}, '--help'])"
    code = f"import sys; from parity_cli.app import run; {call}; print([m for m in {HEAVY} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert "Usage: parity" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def every_error() -> list[type[errors.ParityError]]:
    def below(cls: type[errors.ParityError]) -> Iterator[type[errors.ParityError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from below(child)

    return [cls for cls in below(errors.ParityError) if cls.__module__ == "parity_protocol.errors"]


def test_exit_codes_are_never_shared_and_lie_in_their_block() -> None:
    codes = exit_codes.EXIT_CODES
    named = {cls: code for cls, code in codes.items() if cls is not errors.ParityError}

    assert len(set(named.values())) == len(named)
    assert {exit_codes.OK, exit_codes.FAILED_CHECK, exit_codes.USAGE, exit_codes.INTERRUPTED}.isdisjoint(codes.values())
    blocks = {errors.InvalidInput: 20, errors.Untrusted: 30, errors.Conflict: 40, errors.Unprocessable: 50}
    for parent, block in (blocks | {errors.Unavailable: 60}).items():
        assert all(block <= code < block + 10 for cls, code in codes.items() if parent in cls.__mro__)


@pytest.mark.parametrize("cls", every_error())
def test_every_error_has_an_exit_code(cls: type[errors.ParityError]) -> None:
    error = (
        cls(["x"])
        if cls is errors.ConfigInvalid
        else cls(errors.FailureReason.TIMEOUT)
        if cls is errors.ExecutionFailed
        else cls()
    )

    assert 10 <= exit_codes.exit_code_of(error) < 90


def test_version_is_one_json_document(parity: Parity) -> None:
    done = parity("version", "--json")

    assert done.code == 0
    assert done.json["version"]
    assert done.err == ""


def test_an_unknown_command_is_a_usage_error(parity: Parity) -> None:
    done = parity("nonsense")

    assert done.code == exit_codes.USAGE
    assert "No such command" in done.err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["tsk", "list"], "'parity task'"),
        (["submit"], "'parity task submit'"),
        (["withdraw"], "'parity node withdraw' or 'parity wallet withdraw'"),
        (["node", "stauts"], "'parity node status'"),
    ],
)
def test_a_mistyped_command_is_answered_with_what_was_meant(parity: Parity, typed: list[str], meant: str) -> None:
    done = parity(*typed)

    assert done.code == exit_codes.USAGE
    assert f"Did you mean {meant}?" in done.err


def boom(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("parity_cli.commands.version.version_of", fail)


def test_an_error_is_told_in_words_with_the_next_step(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    boom(monkeypatch, errors.EscrowTooLow("only 1 is free"))

    done = parity("version")

    assert done.code == 52
    assert done.out == ""
    assert "error: only 1 is free" in done.err
    assert "parity wallet deposit" in done.err


def test_an_error_cannot_steer_the_terminal(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    boom(monkeypatch, errors.NotFound("gone \x1b[2J\x07", hint="look \x9b31m"))

    assert not {"\x1b", "\x07", "\x9b"} & set(parity("version").err)


def test_with_json_an_error_is_one_document_too(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    boom(monkeypatch, errors.BadField("no such colour", field="colour"))

    done = parity("version", "--json")

    assert done.code == 20
    assert done.json["error"] == {"code": "bad_field", "message": "no such colour", "hint": "", "field": "colour"}


def test_a_mistake_of_ours_shows_no_traceback_unless_asked(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    boom(monkeypatch, ZeroDivisionError("division by zero"))

    quiet = parity("version")
    monkeypatch.setenv("PARITY_DEBUG", "1")
    loud = parity("version")

    assert (quiet.code, loud.code) == (exit_codes.INTERNAL, exit_codes.INTERNAL)
    assert "Traceback" not in quiet.err
    assert "ZeroDivisionError: division by zero" in quiet.err
    assert "Traceback" in loud.err


def test_an_error_inside_a_task_group_is_told_as_itself(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    boom(monkeypatch, ExceptionGroup("group", [ExceptionGroup("inner", [errors.NotFound("no such thing")])]))

    assert parity("version").code == 22


def test_ctrl_c_is_its_own_exit_code(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    boom(monkeypatch, KeyboardInterrupt())

    done = parity("version")

    assert done.code == 130
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_completion_is_a_script_of_the_shell(parity: Parity, shell: str, word: str) -> None:
    done = parity("completion", shell)

    assert done.code == 0
    assert word in done.out
    assert "_PARITY_COMPLETE" in done.out


def test_completion_completes(
    monkeypatch: pytest.MonkeyPatch, parity: Parity, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_PARITY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "parity task su")
    monkeypatch.setenv("COMP_CWORD", "2")

    with pytest.raises(SystemExit):
        parity()

    assert capsys.readouterr().out.strip() == "plain,submit"


def test_json_documents_are_the_only_thing_on_standard_output(parity: Parity) -> None:
    done = parity("config", "show", "--json")

    assert json.loads(done.out)["markets"] == {}
