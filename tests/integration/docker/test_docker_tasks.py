"""Containers of a real engine: what a task sees, and what becomes of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.isolation import IsolationTier
from parity_protocol.report import Outcome
from parity_protocol.task import (
    CidInput,
    DockerSpec,
    Egress,
    OutputFolder,
    Requirements,
    Resources,
    ShardInput,
)

ASK = "printf 'GET http://elsewhere.example/ HTTP/1.1\\r\\n\\r\\n' | nc -w 5 127.0.0.1 3128 2>&1; true"

pytestmark = [pytest.mark.service("docker", "busybox"), pytest.mark.root]


async def test_the_trial_proves_a_tier(runner):
    state = await runner.executor.describe()

    assert state.available, state.reason
    assert state.isolation in {IsolationTier.DOCKER, IsolationTier.GVISOR}


async def test_the_result_is_what_was_printed_to_the_byte(runner):
    result = await runner.run("echo one; printf two")

    assert runner.output(result) == "one\ntwo"
    assert result.usage.peak_memory_bytes > 0
    assert result.metrics["memory_gb_hours"] > 0


async def test_processor_time_is_counted(runner):
    result = await runner.run("timeout 0.4 sh -c 'while :; do :; done'; true")

    assert 250 <= result.usage.cpu_ms <= 2_000
    assert result.metrics["cpu_seconds"] == result.usage.cpu_ms / 1000


async def test_a_task_is_an_ordinary_user_without_privileges(runner):
    said = await runner.printed("id -u; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status", slot=3)

    lines = said.split()
    assert lines[0] == "61003"
    facts = dict(zip(lines[1::2], lines[2::2], strict=True))
    assert {facts[name] for name in ("CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:")} == {"0" * 16}
    assert (facts["NoNewPrivs:"], facts["Seccomp:"]) == ("1", "2")


async def test_there_is_no_network_but_loopback(runner):
    assert (await runner.printed("ls /sys/class/net")).split() == ["lo"]


async def test_the_environment_is_what_was_declared_and_nothing_of_the_node(runner, monkeypatch):
    monkeypatch.setenv("PARITY_CANARY", "secret")

    said = await runner.printed("env", env={"A": "1", "EMPTY": "", "PARITY_CANARY": "own"})

    found = dict(line.split("=", 1) for line in said.splitlines())
    assert {name: found[name] for name in ("A", "EMPTY", "PARITY_CANARY")} == {
        "A": "1",
        "EMPTY": "",
        "PARITY_CANARY": "own",
    }
    assert set(found) <= {"A", "EMPTY", "PARITY_CANARY", "HOME", "HOSTNAME", "PATH", "PWD", "SHLVL"}


async def test_inputs_are_there_and_cannot_be_changed(runner):
    cid = runner.inputs.add(b"hello\n")

    said = await runner.printed(
        "cat /inputs/words inputs/words; (echo x >> /inputs/words) 2>&1; true",
        inputs=(CidInput(name="words", cid=cid),),
    )

    assert said.startswith("hello\nhello\n")
    assert "Read-only" in said or "denied" in said


async def test_a_working_folder_is_used(runner):
    assert await runner.printed("pwd", workdir="/data") == "/data\n"


async def test_files_of_the_output_folder_become_the_result(runner):
    spec = runner.shell("mkdir /output/a && echo x > /output/a/b && echo said", output=OutputFolder())
    handle = await runner.start(spec)

    result = await runner.executor.wait(handle)

    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert result.result_path is not None
    assert (result.result_path / "output.log").read_text() == "said\n"
    assert (result.result_path / "files" / "a" / "b").read_text() == "x\n"
    await runner.executor.cleanup(handle)


@pytest.mark.parametrize(
    ("script", "reason", "code"),
    [
        ("exit 3", FailureReason.EXIT_STATUS, 3),
        ("nosuchprogram", FailureReason.EXIT_STATUS, 127),
        ("kill -9 $$", FailureReason.EXIT_STATUS, 137),
        ("head -c 2000000 /dev/zero", FailureReason.OUTPUT_TOO_LARGE, None),
    ],
)
async def test_a_failure_says_why(runner, script, reason, code):
    result = await runner.run(script)

    assert (result.outcome, result.reason) == (Outcome.FAILED, reason), result.message
    assert code is None or result.exit_code == code


@pytest.mark.parametrize(
    "script",
    [
        "tail /dev/zero",  # the program itself is killed: 137
        "sh -c 'tail /dev/zero'; exit 0",  # a child is killed, and the task says that all is well
    ],
)
async def test_running_out_of_memory_is_told_apart_from_exit_status(runner, script):
    result = await runner.run(script, limits={"memory_bytes": 32 << 20})

    assert result.reason is FailureReason.OUT_OF_MEMORY, result.message


async def test_a_program_that_is_not_in_the_image_is_the_tasks_mistake(runner):
    handle = await runner.start(DockerSpec(image="parity-test/busybox:1", command=("/no/such",)))

    result = await runner.executor.wait(handle)
    await runner.executor.cleanup(handle)

    assert result.reason is not None
    assert result.reason.blame.value == "task"


async def test_a_task_without_a_program_is_refused(runner):
    job = runner.job(DockerSpec(image="parity-test/busybox:1"))

    with pytest.raises(ExecutionFailed) as caught:
        await runner.executor.prepare(job)
    shutil.rmtree(job.folder)

    assert caught.value.reason is FailureReason.SPEC_INVALID


async def test_gpus_are_refused_without_a_grant(runner):
    job = runner.job(runner.shell("true", resources=Resources(gpus=1)))

    with pytest.raises(ExecutionFailed) as caught:
        await runner.executor.prepare(job)
    shutil.rmtree(job.folder)

    assert "RUNNER_DOCKER_GPUS" in caught.value.message


async def test_a_task_that_asks_for_gvisor_runs_in_gvisor(runner, service_path):
    service_path("runsc")

    said = await runner.printed(
        "i=0; while [ $i -lt 28 ]; do sleep 1 & i=$((i+1)); done; wait; cat /proc/version",
        requires=Requirements(isolation=IsolationTier.GVISOR),
    )

    assert "4.4.0" in said  # gVisor's, whatever the kernel of the machine, and with room for the processes it may have


async def test_progress_and_output_are_one_log_to_read_from_an_offset(runner):
    handle = await runner.start(runner.shell("printf 0123456789"))
    await runner.executor.wait(handle)

    assert await runner.executor.logs(handle, 0) == b"0123456789"
    assert await runner.executor.logs(handle, 7) == b"789"
    await runner.executor.cleanup(handle)


async def test_nothing_is_left_of_a_task(runner, engine):
    handle = await runner.start(runner.shell("true", output=OutputFolder()))
    await runner.executor.wait(handle)

    await runner.executor.cleanup(handle)

    assert engine.containers(label=f"network.parity.node={runner.node_id}") == []
    assert [each for each in runner.exec_dir.iterdir() if "egress-python" not in each.name] == []


async def test_the_image_is_recorded(runner, engine):
    result = await runner.run("true")

    assert result.environment == (await runner.executor.engine.image("parity-test/busybox:1")).id


async def test_a_task_with_egress_has_a_proxy_and_still_no_way_around_it(runner, engine):
    script = f"env | grep -i -E '^https?_proxy' | sort; ls /sys/class/net; {ASK}"

    result = await runner.run(script, egress=Egress(domains=("example.org",)))

    said = runner.output(result)
    assert "HTTPS_PROXY=http://127.0.0.1:3128" in said
    assert "eth0" not in said
    assert "E-EGRESS elsewhere.example" in said
    assert engine.containers(label=f"network.parity.node={runner.node_id}") == []


async def test_what_the_proxy_refused_follows_what_the_task_printed(runner):
    result = await runner.run(f"{ASK}; echo end", egress=Egress(domains=("example.org",)))

    _, _, refused = runner.output(result).partition("\nend\n")
    assert refused.startswith("E-EGRESS elsewhere.example")


async def test_the_operators_data_is_lent_read_only(runner, tmp_path):
    (tmp_path / "rows").write_text("lent")
    tmp_path.chmod(0o755)
    runner.inputs.shards["set"] = tmp_path

    said = await runner.printed(
        "cat /inputs/s/rows; (echo x > /inputs/s/rows) 2>/dev/null && echo changed; true",
        inputs=(ShardInput(name="s", shard="set"),),
    )

    assert said == "lent"


async def test_a_task_with_egress_is_taken_up_with_its_proxy(runner):
    script = f"n=0; while [ $n -lt 12 ]; do sleep 0.1; n=$((n+1)); done; {ASK}"
    handle = await runner.start(runner.shell(script, egress=Egress(domains=("example.org",))))
    await runner.executor.aclose()  # as a node that ends closes it
    later = runner.again()

    assert await later.recover(handle)
    result = await later.wait(handle)
    await later.cleanup(handle)
    await later.aclose()

    said = runner.output(result)
    assert "E-EGRESS elsewhere.example" in said
    await runner.executor.cleanup(handle)


async def test_a_lent_data_set_is_mounted_read_only_and_leads_nowhere_else(runner):
    with tempfile.TemporaryDirectory(prefix="parity-lent-") as name:
        lent = Path(name) / "numbers"
        lent.mkdir()
        (lent / "1.txt").write_text("one\n")
        (Path(name) / "secret").write_text("not lent")
        (lent / "out").symlink_to("../secret")
        for path in (Path(name), lent):
            path.chmod(0o755)
        runner.inputs.shards["numbers"] = lent
        asked = (ShardInput(name="data", shard="numbers"),)

        said = await runner.printed(
            "cat /inputs/data/1.txt; echo x > /inputs/data/2.txt || echo refused; cat /inputs/data/out || echo nowhere",
            inputs=asked,
        )
        left = sorted(path.name for path in lent.iterdir())

    # What it prints and its complaints are two streams: only the order within each is certain.
    assert 0 <= said.find("one") < said.find("refused") < said.find("nowhere")
    assert "not lent" not in said
    assert left == ["1.txt", "out"]
