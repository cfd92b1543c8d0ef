"""Counters of control groups, of both versions, and of the engine's own samples."""

from __future__ import annotations

from pathlib import Path

from parity_node.executors.docker.usage import (
    Counters,
    group_of_pid,
    own_group,
    read_counters,
    remove_group,
    stats_counters,
)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_counters_of_version_1(tmp_path):
    write(
        tmp_path,
        {
            "memory/p/e/memory.max_usage_in_bytes": "5000\n",
            "memory/p/e/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            "cpuacct/p/e/cpuacct.usage": "1500000000\n",
            "blkio/p/e/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Total 7\n9:0 Total 3\nTotal 10\n",
        },
    )

    assert read_counters("/p/e", root=tmp_path) == Counters(1_500, 5_000, 10, 2)


def test_counters_of_version_2(tmp_path):
    write(
        tmp_path,
        {
            "p/e/memory.peak": "5000\n",
            "p/e/memory.events": "low 0\noom 3\noom_kill 1\noom_group_kill 0\n",
            "p/e/cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
            "p/e/io.stat": "8:0 rbytes=4 wbytes=6 rios=1 wios=1 dbytes=9 dios=1\n",
        },
    )

    assert read_counters("/p/e", root=tmp_path) == Counters(1_500, 5_000, 10, 1)


def test_a_kernel_without_a_peak_gives_the_current_memory(tmp_path):
    write(tmp_path, {"e/cpu.stat": "usage_usec 0\n", "e/memory.current": "77\n"})

    assert read_counters("e", root=tmp_path) == Counters(peak_memory_bytes=77)


def test_a_group_that_is_not_there_has_no_counters(tmp_path):
    assert read_counters("/p/e", root=tmp_path) is None


def test_later_readings_never_lower_a_counter():
    found = Counters(5, 100, 3, 1, 9).merged(Counters(7, 50, 2, 0, 10))

    assert found == Counters(7, 100, 3, 1, 10)


def test_only_the_nodes_own_groups_are_removed(tmp_path):
    for name in ("memory/parity-node/e", "cpu/parity-node/e", "memory/docker/e"):
        (tmp_path / name).mkdir(parents=True)

    remove_group("/parity-node/e", root=tmp_path)
    remove_group("/docker/e", root=tmp_path)
    remove_group("/parity-node/e", root=tmp_path)

    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*/*")) == ["memory/docker/e"]


def test_an_engine_that_lets_systemd_make_groups_gets_no_parent(tmp_path):
    assert own_group("e", cgroup_driver="systemd", root=tmp_path) == ""
    assert own_group("e", cgroup_driver="cgroupfs", root=tmp_path / "nothing") == ""


def test_a_process_that_is_gone_has_no_group():
    assert group_of_pid(2**22 + 1) == ""


def test_a_sample_of_the_engine_is_read_whatever_it_lacks():
    sample = {
        "cpu_stats": {"cpu_usage": {"total_usage": 2_000_000_000}},
        "memory_stats": {"usage": 10, "max_usage": 20},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 3}, {"op": "write", "value": 4}, {"op": "Total", "value": 7}]},
        "networks": {"eth0": {"rx_bytes": 5, "tx_bytes": 6}},
    }  # fmt: skip

    assert stats_counters(sample) == Counters(2_000, 20, 7, 0, 11)
    assert stats_counters({}) == Counters()
    assert stats_counters({"blkio_stats": None, "networks": None, "memory_stats": {"usage": 9}}) == Counters(
        peak_memory_bytes=9
    )
