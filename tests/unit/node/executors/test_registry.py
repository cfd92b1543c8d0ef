"""What the executors of this program share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from parity_node.executors.command import CommandExecutor
from parity_node.executors.docker.executor import DockerExecutor
from parity_node.executors.registry import build_executors
from parity_node.observability.metrics import NodeMetrics
from parity_node.run import NodeServices
from parity_node.settings import NodeSettings
from parity_node.shards import LentData
from parity_protocol.task import TaskKind
from parity_protocol.testing.clock import FakeClock


async def test_what_tasks_are_refused_by_the_proxy_is_counted_in_the_nodes_metrics(
    tmp_path: Path, clock: FakeClock
) -> None:
    metrics = NodeMetrics()
    parts: Any = SimpleNamespace(
        settings=NodeSettings(_env_file=None),
        keys=SimpleNamespace(node_id="0xn"),
        folders=SimpleNamespace(cache=tmp_path, executions=tmp_path, state=tmp_path),
        market=SimpleNamespace(url="http://127.0.0.1:1", signed_headers=None, tls=None),
        clock=clock,
        cache=SimpleNamespace(data=SimpleNamespace(store=None), images=None),
        disk=SimpleNamespace(watch=print),
        metrics=metrics,
        lent=LentData({}),
    )

    found = build_executors(cast("NodeServices", parts))

    docker, command = found[TaskKind.DOCKER], found[TaskKind.COMMAND]
    assert isinstance(docker, DockerExecutor)
    assert isinstance(command, CommandExecutor)
    for told in (docker._egress._on_refused, command._on_egress_refused):
        assert told is not None
        told("egress.domains")
    assert b'parity_node_egress_refused_total{rule="egress.domains"} 2.0' in metrics.render()
