from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from parity_contracts.devnet import ChainSettings
from parity_contracts.devnet.server import next_block_at
from parity_protocol.errors import ConfigInvalid


def test_every_bad_setting_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        ChainSettings(
            tmp_path,
            host="0.0.0.0",
            port=70_000,
            chain_id=0,
            block_interval=timedelta(milliseconds=10),
            idle_interval=timedelta(0),
        )

    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "host",
        "port",
        "chain_id",
        "block_interval",
        "idle_interval",
    ]


def test_a_block_is_due_sooner_while_something_is_pending(tmp_path: Path) -> None:
    settings = ChainSettings(tmp_path)

    assert next_block_at(100.0, pending=True, settings=settings) == 101.0
    assert next_block_at(100.0, pending=False, settings=settings) == 104.0
