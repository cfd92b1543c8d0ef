from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from parity_contracts import keystore
from parity_protocol.errors import BadField, ConfigInvalid, Conflict, NotFound, Unauthenticated
from parity_protocol.testing.keys import deterministic_evm_key

KEY = deterministic_evm_key("owner")
PASSPHRASE = "correct horse battery staple"
LIGHT = 2**4  # scrypt work factor of tests


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "keys" / "owner.json"
    keystore.create(found, KEY, PASSPHRASE, scrypt_n=LIGHT)
    return found


def edited(path: Path, **changes: Any) -> Path:
    document = json.loads(path.read_text())
    for name, value in changes.items():
        place = document
        *parents, last = name.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(document))
    return path


def test_a_key_comes_back_and_other_wallets_can_read_it(path: Path) -> None:
    assert keystore.load(path, PASSPHRASE, min_scrypt_n=LIGHT).address == KEY.address
    assert keystore.address_of(path) == KEY.address
    assert bytes(Account.decrypt(json.loads(path.read_text()), PASSPHRASE)) == KEY.reveal_secret()


def test_only_the_owner_can_read_the_file_and_the_secret_is_not_in_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert KEY.reveal_secret().hex() not in path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == ["owner.json"]


def test_a_keystore_is_never_overwritten(path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(Conflict, match="never overwritten"):
        keystore.create(path, deterministic_evm_key("other"), PASSPHRASE, scrypt_n=LIGHT)

    assert path.read_bytes() == before


@pytest.mark.parametrize("change", [{}, {"crypto__mac": "00" * 32}, {"address": "11" * 20}])
def test_a_wrong_passphrase_and_a_changed_file_say_the_same(path: Path, change: dict[str, Any]) -> None:
    edited(path, **change)

    with pytest.raises(Unauthenticated) as caught:
        keystore.load(path, PASSPHRASE if change else "wrong passphrase", min_scrypt_n=LIGHT)

    assert str(caught.value) == "the passphrase is wrong, or the keystore is damaged"


def test_a_weak_keystore_is_refused_unless_asked(path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="scrypt n must be a power of two from 131072"):
        keystore.load(path, PASSPHRASE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 4}, "version 3"),
        ({"crypto__kdf": "md5"}, "expected the kdf"),
        ({"crypto__kdfparams": None}, "does not say how"),
        ({"crypto__kdfparams__n": 2**30}, "too much memory"),
        ({"crypto__kdfparams__n": 1000}, "power of two"),
        ({"crypto__kdfparams__r": True}, "whole number"),
        ({"crypto__kdfparams__p": 17}, "too much memory or time"),
        ({"crypto__kdfparams__dklen": 16}, "32 bytes"),
        ({"crypto": 5}, "does not say how"),
    ],
)
def test_a_file_from_elsewhere_cannot_take_the_machine_down(path: Path, change: dict[str, Any], words: str) -> None:
    edited(path, **change)

    with pytest.raises(ConfigInvalid, match=words):
        keystore.load(path, PASSPHRASE, min_scrypt_n=LIGHT)


def test_a_few_rounds_of_pbkdf2_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pbkdf2.json"
    path.touch(0o600)
    path.write_text(json.dumps(Account.encrypt(KEY.reveal_secret(), PASSPHRASE, kdf="pbkdf2", iterations=1000)))

    with pytest.raises(ConfigInvalid, match="pbkdf2 c must be"):
        keystore.load(path, PASSPHRASE)


def test_a_readable_file_a_link_and_a_folder_are_refused(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with pytest.raises(ConfigInvalid, match="not a link"):
        keystore.load(link, PASSPHRASE, min_scrypt_n=LIGHT)
    with pytest.raises(Conflict):
        keystore.create(link, KEY, PASSPHRASE, scrypt_n=LIGHT)
    with pytest.raises(ConfigInvalid, match="plain file"):
        keystore.load(tmp_path, PASSPHRASE)
    with pytest.raises(NotFound):
        keystore.load(tmp_path / "missing", PASSPHRASE)
    path.chmod(0o640)
    with pytest.raises(ConfigInvalid, match="chmod 600"):
        keystore.load(path, PASSPHRASE, min_scrypt_n=LIGHT)


def test_a_folder_that_others_write_to_or_a_linked_one_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()

    for folder in (shared, linked):
        with pytest.raises(ConfigInvalid):
            keystore.create(folder / "key.json", KEY, PASSPHRASE, scrypt_n=LIGHT)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"x" * 20_000, b'{"version":3,"version":3}'])
def test_what_is_no_keystore_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.json"
    path.touch(0o600)
    path.write_bytes(content)

    with pytest.raises(ConfigInvalid):
        keystore.load(path, PASSPHRASE)


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadField, match="at least 8"):
        keystore.create(tmp_path / "key.json", KEY, "short", scrypt_n=LIGHT)
    assert not (tmp_path / "key.json").exists()
