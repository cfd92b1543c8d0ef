"""Settings: Parity's keys, precedence, and every mistake named at once."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from parity_node.settings import NodeSettings, load_settings
from parity_protocol.errors import ConfigInvalid
from parity_protocol.settings import config_path
from parity_protocol.task import TaskKind

JOIN = "https://market.example:8443/#market=" + "A" * 43 + "&cert=" + "0" * 64


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("RUNNER_", "BLOCKCHAIN_", "PARITY_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = ".env") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def test_defaults_need_no_file() -> None:
    settings = load_settings()

    assert settings.market_url() == "http://localhost:8080"
    assert not settings.runner_shell_enabled
    assert settings.runner_slots == (os.cpu_count() or 1)


def test_file_of_the_parity_runner_is_read_as_it_is() -> None:
    write(
        "RUNNER_SERVER_URL=http://localhost:8080/api   # coordinator\nRUNNER_HEARTBEAT_INTERVAL=30s\n"
        "RUNNER_EXECUTION_TIMEOUT=15m     # Maximum time\nRUNNER_DOCKER_MEMORY_LIMIT=2g\nRUNNER_DOCKER_CPU_LIMIT=1.0\n"
        "RUNNER_DOCKER_TIMEOUT=\nRUNNER_WEBHOOK_PORT=8081\nRUNNER_TUNNEL_ENABLED=true\nBLOCKCHAIN_CHAIN_ID=31337\n"
        "SERVER_PORT=3000\n"
    )

    settings = load_settings()

    assert settings.runner_heartbeat_interval == timedelta(seconds=30)
    assert settings.runner_execution_timeout == timedelta(minutes=15)
    assert settings.runner_docker_memory_limit == 2 << 30
    assert settings.blockchain_chain_id == 31337
    assert settings.market_url() == "http://localhost:8080"


def test_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("RUNNER_SLOTS=3\nRUNNER_GRACE=1m\n")
    monkeypatch.setenv("RUNNER_SLOTS", "5")

    settings = load_settings()

    assert settings.runner_slots == 5
    assert settings.runner_grace == timedelta(minutes=1)


def test_named_file_comes_before_the_variable_and_that_before_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    write("RUNNER_SLOTS=1\n")
    monkeypatch.setenv("PARITY_CONFIG_PATH", str(write("RUNNER_SLOTS=2\n", "other.env").absolute()))

    by_variable = load_settings()
    by_name = load_settings(write("RUNNER_SLOTS=3\n", "third.env"))

    assert (by_variable.runner_slots, by_name.runner_slots) == (2, 3)


def test_named_file_that_is_missing_is_an_error() -> None:
    with pytest.raises(ConfigInvalid, match=r"nowhere\.env does not exist"):
        config_path(Path("nowhere.env"))


def test_all_mistakes_are_named_at_once_with_key_and_value() -> None:
    write(
        "RUNNER_SLOTS=lots\nRUNNER_GRACE=soon\nRUNNER_METRICS_PORT=70000\nBLOCKCHAIN_CHAIN_ID=0\nRUNNER_DISK_FLOOR=much\n"
    )

    with pytest.raises(ConfigInvalid) as caught:
        load_settings()

    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    for expected in ('RUNNER_SLOTS="lots"', 'RUNNER_GRACE="soon"', "70000", "RUNNER_DISK_FLOOR", "such as '15m'"):
        assert expected in problems


def test_secret_is_not_repeated_in_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_TUNNEL_SECRET", "hunter2")

    assert "hunter2" not in repr(load_settings())


def test_plain_http_off_this_machine_is_refused() -> None:
    write("RUNNER_SERVER_URL=http://market.example:8080\n")

    with pytest.raises(ConfigInvalid, match="http:// is refused off this machine"):
        load_settings()


def test_market_on_another_machine_must_be_pinned() -> None:
    write("RUNNER_SERVER_URL=https://market.example\n")

    with pytest.raises(ConfigInvalid, match="RUNNER_MARKET_JOIN is missing"):
        load_settings().market_url()


def test_join_string_names_the_market_and_its_pins() -> None:
    settings = load_settings(runner_market_join=JOIN)
    join = settings.join()

    assert settings.market_url() == "https://market.example:8443"
    assert join is not None
    assert join.certificate == "0" * 64


def test_policy_is_what_the_operator_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_POLICY_KINDS", "command, federated_learning")
    monkeypatch.setenv("RUNNER_POLICY_MIN_REWARD", "0.25")
    monkeypatch.setenv("RUNNER_POLICY_CREATORS", "0x" + "AB" * 20)
    monkeypatch.setenv("RUNNER_MAX_MEMORY", "2g")

    policy = load_settings().policy()

    assert policy.kinds == {TaskKind.COMMAND, TaskKind.FEDERATED_LEARNING}
    assert policy.min_reward == 25 * 10**16
    assert policy.creators == {"0x" + "ab" * 20}
    assert policy.max_memory_bytes == 2 << 30
    assert policy.max_wall_time_s == 900.0


def test_creator_that_is_not_an_address_is_a_mistake_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_POLICY_CREATORS", "somebody")

    with pytest.raises(ConfigInvalid, match="RUNNER_POLICY_CREATORS"):
        load_settings()


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in NodeSettings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("RUNNER_IPFS_GATEWAYS", "https://ok.example,http://stranger.example"), ("RUNNER_IPFS_API", "nonsense")],
)
def test_an_address_of_ipfs_that_is_not_accepted_is_named(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.setenv(key, value)

    with pytest.raises(ConfigInvalid, match=key):
        load_settings()


def test_gateways_are_read_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_IPFS_GATEWAYS", "https://b.example, https://a.example")

    assert load_settings().runner_ipfs_gateways == ("https://b.example", "https://a.example")
