"""Keys, identity and lock of a state folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parity_contracts.files import write_file
from parity_node.keys import instance_of, load_keys, load_operator_key, store_operator_key
from parity_node.lockfile import exclusive_lock
from parity_protocol.errors import ConfigInvalid, NodeInUse
from parity_protocol.signing.keys import EvmKey


def test_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    first, second = load_keys(tmp_path / "s"), load_keys(tmp_path / "s")

    assert first.node_id == second.node_id
    assert first.operator.address == second.operator.address
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"device.key", "operator.key", "instance"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "s").iterdir())
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_keys_never_show_in_their_representation(tmp_path: Path) -> None:
    keys = load_keys(tmp_path)

    shown = repr(keys)

    assert keys.device.reveal_seed().hex() not in shown
    assert keys.operator.reveal_secret().hex() not in shown


def test_stored_operator_key_is_used(tmp_path: Path) -> None:
    key = EvmKey.generate()
    store_operator_key(tmp_path, key)

    assert load_operator_key(tmp_path).address == key.address


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"00" * 32, b"ab" * 31, b"\xff" * 64])
def test_damaged_key_file_is_named_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "operator.key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(ConfigInvalid, match=r"operator\.key"):
        load_operator_key(tmp_path)

    assert path.read_bytes() == content


def test_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    load_keys(tmp_path)
    (tmp_path / "device.key").chmod(0o644)

    with pytest.raises(ConfigInvalid, match="chmod 600"):
        load_keys(tmp_path)


def test_key_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    load_keys(tmp_path / "a")
    (tmp_path / "b").mkdir(mode=0o700)
    (tmp_path / "b" / "device.key").symlink_to(tmp_path / "a" / "device.key")

    with pytest.raises(ConfigInvalid):
        load_keys(tmp_path / "b")


def test_copied_folder_is_another_instance(tmp_path: Path) -> None:
    load_keys(tmp_path / "a")
    (tmp_path / "b").mkdir(mode=0o700)
    for file in (tmp_path / "a").iterdir():
        write_file(tmp_path / "b" / file.name, file.read_bytes())

    one, copy = load_keys(tmp_path / "a"), load_keys(tmp_path / "b")

    assert one.node_id == copy.node_id
    assert one.instance != copy.instance


def test_same_folder_on_another_machine_is_another_instance(tmp_path: Path) -> None:
    assert instance_of(tmp_path, hostname="a") != instance_of(tmp_path, hostname="b")
    assert instance_of(tmp_path, hostname="a") == instance_of(tmp_path, hostname="a")


def test_second_agent_on_a_state_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / "lock"),
        pytest.raises(NodeInUse, match=rf"node abc is already running here \(pid {os.getpid()}\)") as caught,
        exclusive_lock(tmp_path / "lock", node_id="abc"),
    ):
        pass
    assert "parity node status" in caught.value.hint()


def test_lock_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from parity_node.lockfile import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        holder.wait()

    with exclusive_lock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
