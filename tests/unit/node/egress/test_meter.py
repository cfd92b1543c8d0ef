from __future__ import annotations

from pathlib import Path

import pytest

from parity_node.executors.egress.meter import Meter
from parity_protocol.errors import ExecutionFailed


def test_no_byte_passes_over_the_cap(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "used", 10)

    assert [meter.take(4), meter.take(4), meter.take(4), meter.take(4)] == [4, 4, 2, 0]
    assert meter.is_used_up
    meter.close()


def test_a_restarted_node_counts_on(tmp_path: Path) -> None:
    first = Meter(tmp_path / "used", 10)
    first.take(7)
    first.close()

    second = Meter(tmp_path / "used", 10)

    assert second.used == 7
    assert second.take(7) == 3
    second.close()


def test_a_link_in_place_of_the_count_is_refused(tmp_path: Path) -> None:
    (tmp_path / "used").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ExecutionFailed):
        Meter(tmp_path / "used", 10)
    assert not (tmp_path / "elsewhere").exists()
