"""The operator's policy: what its file says, what it is joined with, and what an edit under a running node does."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from parity_node.operator_policy import OperatorPolicy, explain, join_policies, policy_path, settings_policy
from parity_node.policy_file import MAX_POLICY_BYTES, read_policy_file
from parity_node.policy_sample import POLICY_SAMPLE
from parity_node.settings import NodeSettings
from parity_protocol.errors import ConfigInvalid
from parity_protocol.isolation import IsolationTier
from parity_protocol.policy import DenyRule, Policy
from parity_protocol.task import TaskKind
from parity_protocol.testing.clock import FakeClock

CREATOR = "0x" + "Ab" * 20


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def settings(tmp_path: Path, **values: Any) -> NodeSettings:
    return NodeSettings(_env_file=None, runner_state_dir=tmp_path, **values)


def write(file: Path, text: str | None) -> None:
    """Do what an operator does with an editor; None removes the file."""
    if text is None:
        file.unlink()
    else:
        file.write_text(text)


def problems_of(file: Path, text: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        read_policy_file(file)
    return [problem.removeprefix(f"{file}") for problem in caught.value.problems]


def test_every_section_is_read_with_the_line_that_said_it(file: Path) -> None:
    file.write_text(
        "[allow]\n"
        'kinds = ["docker", "llm"]\n'
        'images = ["debian:12", "ghcr.io/me/*"]\n'
        f'creators = ["{CREATOR}"]\n'
        "shell = false\n"
        "digest_only = true\n"
        'hours = ["mon-fri  22:00-06:00 Europe/Rome"]\n'
        'sources = ["cid"]\n'
        "[limits]\n"
        'wall_time = "10m"\n'
        'memory = "2g"\n'
        "cpus = 1.5\n"
        "gpus = 0\n"
        'cache = "20g"\n'
        "[price]\n"
        'min_reward_per_hour = "0.25"\n'
        "[isolation]\n"
        'docker = "docker+gvisor"\n'
        "[[deny]]\n"
        'name = "miners"\n'
        'images = ["*miner*"]\n'
        "[[deny]]\n"
        'kinds = ["command"]\n'
        f'creators = ["{CREATOR}"]\n'
    )

    found = read_policy_file(file)

    assert found.policy == Policy(
        kinds=frozenset({TaskKind.DOCKER, TaskKind.LLM}),
        images=frozenset({frozenset({"debian:12", "ghcr.io/me/*"})}),
        creators=frozenset({CREATOR.lower()}),
        shell=False,
        digest_only=True,
        hours=frozenset({frozenset({"mon-fri 22:00-06:00 Europe/Rome"})}),
        sources=frozenset({"cid"}),
        max_wall_time_s=600.0,
        max_memory_bytes=2 << 30,
        max_cpus=1.5,
        max_gpus=0,
        max_cache_bytes=20 << 30,
        min_reward_per_hour=25 * 10**16,
        isolation={TaskKind.DOCKER: IsolationTier.GVISOR},
        deny=frozenset(
            {
                DenyRule(name="miners", images=frozenset({"*miner*"})),
                DenyRule(
                    name="creators+kinds",
                    kinds=frozenset({TaskKind.COMMAND}),
                    creators=frozenset({CREATOR.lower()}),
                ),
            }
        ),
    )
    assert found.origins["images"] == f"{file}:3"
    assert found.origins["max_wall_time_s"] == f"{file}:10"
    assert found.origins["isolation"] == f"{file}:17"
    assert found.origins["deny.creators+kinds"] == f"{file}:22"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[alow]\n", ":1: alow: there is no such section; did you mean allow?"),
        ("[allow]\nimage = []\n", ":2: allow.image: there is no such key; did you mean images?"),
        ("[allow]\nnetwork = true\n", ":2: allow.network: there is no such key; there are kinds, images"),
        ("[allow]\nkinds = ['shell']\n", ":2: allow.kinds = 'shell': expected a list of docker, command"),
        ("[allow]\nimages = 'debian'\n", ":2: allow.images = 'debian': expected a list of images such as"),
        ("\n[allow]\ndomains = ['10.0.0.1']\n", ":3: allow.domains = '10.0.0.1': expected a list of hosts"),
        ("[allow]\nhours = ['mon 25:00-26:00']\n", ":2: allow.hours = 'mon 25:00-26:00': expected a time of day"),
        ("[limits]\nmemory = '2x'\n", ":2: limits.memory = '2x': expected a size such as"),
        ("[limits]\nmemory = 0\n", ":2: limits.memory = 0: expected a size above 0"),
        ("[limits]\nwall_time = '0s'\n", ":2: limits.wall_time: expected a duration above 0"),
        ("[limits]\ncpus = inf\n", ":2: limits.cpus = inf: expected a number above 0"),
        ("[price]\nmin_reward = 0.25\n", ":2: price.min_reward = 0.25: expected an amount of tokens in quotes"),
        ("[isolation]\ndocker = 'gvisor'\n", ":2: isolation.docker = 'gvisor': expected lines such as"),
        ("[isolation]\nimages = ['x']\n", ":2: isolation.images = 'images': expected lines such as docker ="),
        ("[[deny]]\nname = 'x'\n", ":1: a [[deny]] rule must say what it denies"),
        ("[[deny]]\nname = 'Not This'\nkinds = []\n", ":2: deny.name = 'Not This': expected small letters"),
        (
            "[[deny]]\nname = 'x'\nkinds = []\n[[deny]]\nname = 'x'\nkinds = []\n",
            ":4: deny.name: 'x' is another rule's name already",
        ),
        ("[allow\n", ": this is no TOML: "),
        ("a = " + "[" * 100_000, ": this is no TOML that can be read"),
        ("[limits]\npids = " + "9" * 5_000, ": this is no TOML that can be read"),
    ],
)
def test_a_mistake_is_refused_with_line_key_and_expected_form(file: Path, text: str, problem: str) -> None:
    [found] = problems_of(file, text)

    assert found.startswith(problem)


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(file: Path) -> None:
    found = problems_of(file, "[allow]\nkind = []\nimages = 1\n[price]\nmin_reward = 'x'\n[other]\n")

    assert [problem.split(":")[1] for problem in found] == ["2", "3", "5", "6"]


@pytest.mark.parametrize(
    ("mode", "content", "problem"),
    [
        (0o602, b"", "everybody can write"),
        (0o600, b"#" * (MAX_POLICY_BYTES + 1), "over"),
        (0o600, b"# \xff", "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(file: Path, mode: int, content: bytes, problem: str) -> None:
    file.write_bytes(content)
    file.chmod(mode)

    with pytest.raises(ConfigInvalid, match=problem):
        read_policy_file(file)


def test_the_sample_limits_nothing_and_is_right_when_uncommented(file: Path) -> None:
    file.write_text(POLICY_SAMPLE)
    assert read_policy_file(file).policy == Policy()

    file.write_text(re.sub(r"(?m)^# (?=[a-z_]+ = |\[\[)", "", POLICY_SAMPLE).replace("<64 hex digits>", "0" * 64))
    policy = read_policy_file(file).policy
    untouched = {name for name in Policy.model_fields if getattr(policy, name) == getattr(Policy(), name)}
    assert untouched == {"kinds", "sources"}  # the sample lists all of them


def test_settings_and_file_both_limit(tmp_path: Path, file: Path, clock: FakeClock) -> None:
    file.write_text('[allow]\nimages = ["debian"]\n[limits]\nmemory = "1g"\ncpus = 4\n')

    policy = OperatorPolicy(
        settings(tmp_path, runner_max_memory="2g", runner_max_cpus=2, runner_policy_images="alpine,debian"), clock
    )

    assert policy.current.max_memory_bytes == 1 << 30
    assert policy.current.max_cpus == 2
    assert policy.current.images == {frozenset({"debian"}), frozenset({"debian", "alpine"})}
    origins = {(line.rule, line.value): line.origin for line in explain(policy.current, policy.parts)}
    assert origins["policy.max_memory_bytes", "1.0 GiB"] == f"{file}:4"
    assert origins["policy.max_cpus", "2"] == "RUNNER_MAX_CPUS"
    assert origins["policy.images", "alpine, debian"] == "RUNNER_POLICY_IMAGES"
    assert origins["policy.images", "debian"] == f"{file}:2"
    assert origins["policy.max_wall_time_s", "15m"] == "RUNNER_EXECUTION_TIMEOUT, its default"
    assert origins["policy.max_pids", "no limit"] == "default"


def test_no_task_reaches_a_host_that_nobody_named(tmp_path: Path, file: Path, clock: FakeClock) -> None:
    assert OperatorPolicy(settings(tmp_path), clock).current.domains == {frozenset()}

    named = settings(tmp_path, runner_policy_domains="pypi.org")
    assert OperatorPolicy(named, clock).current.domains == {frozenset({"pypi.org"})}

    file.write_text('[allow]\ndomains = ["*"]\n')
    assert OperatorPolicy(settings(tmp_path), clock).current.domains == {frozenset({"*"})}


def test_a_named_file_must_be_there_and_another_may_be_missing(tmp_path: Path, clock: FakeClock) -> None:
    absent = tmp_path / "absent.toml"

    with pytest.raises(ConfigInvalid, match="no such file"):
        OperatorPolicy(settings(tmp_path, runner_policy_file=absent), clock)
    assert policy_path(settings(tmp_path)) == tmp_path / "policy.toml"
    assert OperatorPolicy(settings(tmp_path), clock).to_json()["file"] is None


async def test_an_edit_counts_within_a_second(tmp_path: Path, file: Path, clock: FakeClock) -> None:
    policy = OperatorPolicy(settings(tmp_path), clock)
    before = policy.digest

    write(file, '[allow]\nkinds = ["llm"]\n')
    assert not policy.refresh()
    await clock.advance(timedelta(seconds=1))

    assert policy.refresh()
    assert policy.current.kinds == {TaskKind.LLM}
    assert policy.digest != before


@pytest.mark.parametrize("edit", ["[allow]\nkinds = ['shell']\n", "[[[", None])
async def test_a_broken_edit_or_a_lost_file_changes_nothing_and_is_told(
    tmp_path: Path, file: Path, clock: FakeClock, edit: str | None
) -> None:
    write(file, '[allow]\nkinds = ["llm"]\n')
    policy = OperatorPolicy(settings(tmp_path), clock)

    write(file, edit)
    await clock.advance(timedelta(seconds=1))

    assert not policy.refresh()
    assert policy.current.kinds == {TaskKind.LLM}
    assert "stays in force" in policy.problem
    write(file, '[allow]\nkinds = ["docker"]\n')
    await clock.advance(timedelta(seconds=1))
    assert policy.refresh()
    assert (policy.problem, policy.current.kinds) == ("", frozenset({TaskKind.DOCKER}))


def test_a_pipe_in_the_files_place_does_not_hold_up_the_node(file: Path) -> None:
    os.mkfifo(file)

    with pytest.raises(ConfigInvalid, match="no regular file"):
        read_policy_file(file)


def test_a_rule_that_denies_is_shown_with_its_place(tmp_path: Path, file: Path) -> None:
    file.write_text('[[deny]]\nname = "miners"\nimages = ["*miner*"]\nkinds = ["docker"]\n')
    policy, parts = join_policies(settings_policy(settings(tmp_path)), read_policy_file(file))

    first = explain(policy, parts)[0]

    assert (first.rule, first.origin) == ("policy.deny.miners", f"{file}:1")
    assert first.value == "kinds: docker and images: *miner*"
