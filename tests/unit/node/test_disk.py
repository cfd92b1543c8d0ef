"""Free space: which disk is short, why no work is taken, the ballast, and what a task may still need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from parity_node.disk import AFTER_FULL_S, Ballast, DiskGuard, Volume, free_bytes, measure_volumes
from parity_node.disk_need import DiskNeed, DiskRoom, need_of
from parity_node.testing.small_disk import space_returns
from parity_protocol.clock import SystemClock
from parity_protocol.errors import StorageFull
from parity_protocol.task import CommandSpec, DockerSpec
from parity_protocol.testing.clock import FakeClock

GIB = 1 << 30
MIB = 1 << 20
CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


class Disks:
    """Two file systems whose free space a test sets."""

    def __init__(self) -> None:
        self.state, self.cache = 10 * GIB, 10 * GIB

    def __call__(self, folders: Mapping[str, Path]) -> tuple[Volume, ...]:
        return (Volume(1, ("state", "executions", "results"), self.state), Volume(2, ("cache",), self.cache))


@pytest.fixture
def disks() -> Disks:
    return Disks()


@pytest.fixture
def guard(disks: Disks) -> DiskGuard:
    return DiskGuard({}, floor_bytes=GIB, clock=FakeClock(), measure=disks)


@pytest.mark.parametrize("short", ["state", "cache"])
def test_each_disk_below_the_floor_is_an_obstacle_and_named(guard: DiskGuard, disks: Disks, short: str) -> None:
    assert guard.obstacle() == ""

    setattr(disks, short, GIB - 1)

    assert short in guard.obstacle()
    assert guard.shortage_bytes()[short] == 1
    setattr(disks, short, GIB)
    assert guard.obstacle() == ""


async def test_full_disk_is_an_obstacle_for_a_moment_longer(disks: Disks) -> None:
    clock = FakeClock()
    guard = DiskGuard({}, floor_bytes=0, clock=clock, measure=disks)
    guard.note_full()

    assert "full" in guard.obstacle()
    await clock.advance(timedelta(seconds=AFTER_FULL_S + 0.1))
    assert guard.obstacle() == ""


def test_folders_of_one_file_system_are_one_volume_and_a_lost_folder_counts_as_full(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    found = measure_volumes({"state": tmp_path, "cache": tmp_path / "a", "images": tmp_path / "gone"})

    assert [(volume.names, volume.free_bytes > 0) for volume in found] == [
        (("state", "cache"), True),
        (("images",), False),
    ]


def test_ballast_takes_real_blocks_gives_them_back_once_and_mends_a_short_one(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast", MIB)

    assert ballast.fill()
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= MIB
    assert (ballast.free(), ballast.free()) == (True, False)
    (tmp_path / "ballast").write_bytes(b"half")
    was_whole = ballast.is_whole
    assert (was_whole, ballast.fill(), ballast.is_whole) == (False, True, True)
    assert [path.name for path in tmp_path.iterdir()] == ["ballast"]


def test_no_ballast_is_whole_and_has_nothing_to_free(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast", 0)

    assert ballast.fill()
    assert not ballast.free()
    assert not list(tmp_path.iterdir())


async def test_space_that_comes_back_is_timed_and_space_that_does_not_is_told(tmp_path: Path) -> None:
    clock = SystemClock()
    before = free_bytes(tmp_path)

    assert await space_returns(tmp_path, before, clock, slack_bytes=before) < 1.0
    with pytest.raises(StorageFull, match="did not come back"):
        await space_returns(tmp_path, before + (1 << 50), clock, within_s=0.0)


# -- what a task needs -------------------------------------------------------------------------------------------


def command(**changes: object) -> CommandSpec:
    return CommandSpec.model_validate_json(json.dumps({"type": "command", "command": ["true"]} | changes))


def room(**changes: object) -> DiskRoom:
    values: dict[str, object] = {
        "volumes": (Volume(1, ("state", "executions", "results"), 3 * GIB), Volume(2, ("cache",), 3 * GIB)),
        "floor_bytes": GIB,
    }
    return DiskRoom(**(values | changes))  # type: ignore[arg-type]


def rules(found: DiskRoom, need: DiskNeed, committed: DiskNeed | None = None) -> list[str]:
    return [denial.rule for denial in found.denials(need, committed or DiskNeed())]


def test_need_of_a_task_counts_inputs_twice_and_its_output_where_it_waits() -> None:
    spec = command(
        inputs=[{"kind": "cid", "cid": CID, "max_bytes": 100}],
        resources={"disk_bytes": 1_000},
        output={"max_bytes": 30},
        max_output_bytes=7,
    )

    assert need_of(spec) == DiskNeed(cache=100, copies=100, executions=1_037, results=37)


def test_archive_of_an_image_needs_the_cache_and_the_engine_but_no_copy() -> None:
    spec = DockerSpec.model_validate(
        {
            "type": "docker",
            "image": "busybox:1",
            "image_tar": {"kind": "cid", "cid": CID, "max_bytes": 500},
            "resources": {"disk_bytes": 0},
            "max_output_bytes": 1,
        }
    )

    assert need_of(spec) == DiskNeed(cache=500, copies=0, executions=1, results=1, images=500)


@pytest.mark.parametrize(
    ("need", "changes", "expected"),
    [
        (DiskNeed(executions=2 * GIB), {}, []),
        (DiskNeed(executions=2 * GIB + 1), {}, ["disk"]),
        (DiskNeed(cache=2 * GIB), {}, []),
        (DiskNeed(cache=2 * GIB + 1), {}, ["disk.inputs_do_not_fit"]),
        (DiskNeed(copies=GIB, executions=GIB + 1), {}, ["disk.inputs_do_not_fit"]),
        (DiskNeed(cache=2 * GIB + 1), {"evictable_bytes": 1}, []),
        (DiskNeed(cache=2 * GIB + 1), {"cached_bytes": 1}, []),
        (DiskNeed(cache=2 * MIB), {"cache_left_bytes": MIB}, ["disk.inputs_do_not_fit"]),
        (DiskNeed(cache=2 * MIB), {"cache_left_bytes": MIB, "cached_bytes": MIB}, []),
        (DiskNeed(results=2 * MIB), {"results_left_bytes": MIB}, ["disk.results_do_not_fit"]),
        (DiskNeed(images=1), {"volumes": (Volume(3, ("images",), GIB),)}, ["disk.inputs_do_not_fit"]),
    ],
)
def test_task_that_does_not_fit_is_refused_by_the_rule_that_says_why(
    need: DiskNeed, changes: dict[str, object], expected: list[str]
) -> None:
    assert rules(room(**changes), need) == expected


def test_what_running_tasks_may_still_write_is_not_given_twice() -> None:
    need = DiskNeed(executions=GIB)

    assert rules(room(), need, need) == []
    assert rules(room(), need, need + DiskNeed(executions=1)) == ["disk"]
    assert rules(room(cache_left_bytes=10), DiskNeed(cache=6), DiskNeed(cache=6)) == ["disk.inputs_do_not_fit"]


def test_task_that_needs_nothing_is_not_refused_for_a_disk_that_is_short() -> None:
    assert rules(room(volumes=(Volume(1, ("cache",), 0),)), DiskNeed(executions=5)) == []
