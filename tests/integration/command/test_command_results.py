"""The result of a command in a real bubblewrap."""

from __future__ import annotations

import signal

import anyio
import anyio.to_thread
import pytest

from parity_node.executors.base import ExecutionResult
from parity_node.executors.command import CommandExecutor
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.errors import FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CidInput, CommandSpec, ShardInput

from .commands import (
    Runner,
    output,
)

pytestmark = pytest.mark.service("bubblewrap")


# -- results ---------------------------------------------------------------------------------------------------------


async def test_the_result_is_what_the_task_printed_on_both_streams_in_order(runner):
    result = await runner.run("sh", "-c", "echo one; echo two >&2; echo three")

    assert output(result) == "one\ntwo\nthree\n"
    assert result.exit_code == 0


async def test_arguments_are_data_and_no_shell_reads_them(runner):
    result = await runner.run("printf", "%s|", "a b", "$(id)", "; rm -rf /", "*", "ü")

    assert output(result) == "a b|$(id)|; rm -rf /|*|ü|"


async def test_an_exit_status_fails_the_task_and_its_last_words_say_why(runner):
    result = await runner.run("sh", "-c", "echo broken pipe wrench >&2; exit 7")

    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, FailureReason.EXIT_STATUS, 7)
    assert "broken pipe wrench" in result.message


def test_it_runs_on_the_event_loop_that_nodes_use(exec_dir):
    async def main() -> ExecutionResult:
        executor = CommandExecutor(exec_dir=exec_dir, inputs=StaticInputs(), clock=SystemClock(), enabled=True)
        return await Runner(executor, exec_dir).run("sh", "-c", "sleep 0.1; echo done")

    result = anyio.run(main, backend_options={"use_uvloop": True})

    assert output(result) == "done\n"


async def test_a_program_that_is_not_here_fails_the_task(runner):
    result = await runner.run("no-such-program")

    assert (result.reason, result.exit_code) == (FailureReason.EXIT_STATUS, 127)
    assert "no-such-program" in result.message


async def test_a_signal_is_named(runner):
    result = await runner.run("sh", "-c", "kill -SEGV $$")

    assert (result.reason, result.exit_code) == (FailureReason.EXIT_STATUS, 128 + signal.SIGSEGV)
    assert "signal 11" in result.message


async def test_a_large_result_is_a_file(executor, exec_dir):
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("head", "-c", "100000", "/dev/zero")))

    result = await executor.wait(handle)

    assert result.result_path is not None
    assert result.result_path.stat().st_size == 100_000
    await executor.cleanup(handle)


async def test_a_lent_data_set_is_there_read_only_and_leads_nowhere_else(runner, inputs, open_dir):
    lent = open_dir / "lent"
    lent.mkdir()
    lent.chmod(0o755)
    (lent / "1.txt").write_text("one\n")
    (lent / "1.txt").chmod(0o644)
    (open_dir / "secret").write_text("not lent")
    (lent / "out").symlink_to("../secret")
    inputs.shards["numbers"] = lent
    asked = (ShardInput(name="data", shard="numbers"),)

    read = await runner.run("cat", "/task/inputs/data/1.txt", inputs=asked)
    write = await runner.run("sh", "-c", "echo x > /task/inputs/data/2.txt", inputs=asked)
    out = await runner.run("cat", "/task/inputs/data/out", inputs=asked)

    assert read.result_bytes == b"one\n"
    assert (write.reason, out.reason) == (FailureReason.EXIT_STATUS, FailureReason.EXIT_STATUS)
    assert sorted(path.name for path in lent.iterdir()) == ["1.txt", "out"]


async def test_inputs_are_there_read_only(runner, inputs):
    cid = inputs.add(b"forty-two\n")
    spec_inputs = (CidInput(name="answer.txt", cid=cid),)

    read = await runner.run("cat", "/task/inputs/answer.txt", inputs=spec_inputs)
    write = await runner.run("sh", "-c", "echo x > /task/inputs/answer.txt", inputs=spec_inputs)

    assert output(read) == "forty-two\n"
    assert write.outcome is Outcome.FAILED
    assert "Read-only file system" in write.message


async def test_usage_is_what_the_task_and_its_children_used(runner):
    busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"

    result = await runner.run("sh", "-c", f"sh -c '{busy}'; {busy}")

    assert result.outcome is Outcome.SUCCEEDED
    assert result.usage.cpu_ms >= 100
    assert result.usage.wall_ms >= result.usage.cpu_ms * 0.5
    assert result.usage.peak_memory_bytes > 0
