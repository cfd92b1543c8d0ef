"""The executors that this program has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from parity_node.data import MarketInputs
from parity_node.executors.base import Executor
from parity_node.executors.command import CommandExecutor
from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
from parity_node.executors.federated import FederatedExecutor
from parity_node.executors.opened_sums import OpenedSums
from parity_node.inputs import TaskInputs
from parity_node.keys import DEVICE_KEY_FILE, OPERATOR_KEY_FILE
from parity_node.market.rounds import HttpRounds
from parity_protocol.task import TaskKind

if TYPE_CHECKING:
    from parity_node.run import NodeServices
    from parity_node.settings import NodeSettings

__all__ = ["ExecutorSet", "build_executors"]

KNOWN_FOLDER = "https"  # CIDs of https inputs by their digest


class ExecutorSet(Mapping[TaskKind, Executor]):
    """Executors by kind, and what they share; ``aclose`` when the agent has ended."""

    def __init__(
        self, executors: list[Executor], inputs: tuple[MarketInputs, TaskInputs], docker: DockerExecutor
    ) -> None:
        self._executors = {executor.kind: executor for executor in executors}
        self._inputs = inputs
        self._docker = docker

    def __getitem__(self, kind: TaskKind) -> Executor:
        return self._executors[kind]

    def __iter__(self) -> Iterator[TaskKind]:
        return iter(self._executors)

    def __len__(self) -> int:
        return len(self._executors)

    async def aclose(self) -> None:
        """Close the connections to where inputs come from and to the engine; idempotent. Containers go on."""
        await self._docker.aclose()
        for source in self._inputs:
            await source.aclose()


def build_executors(services: NodeServices) -> ExecutorSet:
    """Return this program's executors; nothing is opened or tried yet, and what is too old to matter is removed."""
    market, settings = services.market, services.settings
    store = services.cache.data.store
    by_cid = MarketInputs(
        market.url,
        sign=market.signed_headers,
        store=store,
        clock=services.clock,
        tls=market.tls,
        gateways=settings.runner_ipfs_gateways,
        kubo_api=settings.runner_ipfs_api,
    )
    inputs = TaskInputs(
        by_cid,
        store=store,
        known=services.folders.cache / KNOWN_FOLDER,
        clock=services.clock,
        shards=services.lent,
    )
    sums = OpenedSums(services.folders.state / "opened-sums")
    sums.forget_old(services.clock.now())
    exec_dir = services.folders.executions
    keys = (services.folders.state / name for name in (DEVICE_KEY_FILE, OPERATOR_KEY_FILE))
    hidden = tuple(path for path in keys if path.exists())
    docker = DockerExecutor(
        exec_dir=exec_dir,
        inputs=inputs,
        clock=services.clock,
        node_id=services.keys.node_id,
        options=_docker_options(settings),
        ledger=services.cache.images,
        watch=partial(services.disk.watch, "images"),
        hidden=hidden,
        on_egress_refused=services.metrics.egress_refused,
    )
    return ExecutorSet(
        [
            docker,
            CommandExecutor(
                exec_dir=exec_dir,
                inputs=inputs,
                clock=services.clock,
                enabled=settings.runner_shell_enabled,
                hidden=hidden,
                on_egress_refused=services.metrics.egress_refused,
            ),
            FederatedExecutor(
                exec_dir=exec_dir,
                inputs=inputs,
                clock=services.clock,
                rounds=HttpRounds(market),
                market_host=urlsplit(market.url).hostname or "",
                sums=sums,
            ),
        ],
        (by_cid, inputs),
        docker,
    )


def _docker_options(settings: NodeSettings) -> DockerOptions:
    return DockerOptions(
        is_enabled={"true": True, "false": False}.get(settings.runner_docker_enabled),
        cpus=settings.runner_docker_cpu_limit,
        memory_bytes=settings.runner_docker_memory_limit,
        timeout_s=settings.runner_docker_timeout.total_seconds(),
        max_image_bytes=settings.runner_docker_max_image,
        floor_bytes=settings.runner_disk_floor,
        gpus=settings.runner_docker_gpus,
        local_images=settings.runner_docker_local_images,
    )
