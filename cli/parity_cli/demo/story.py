"""The demo from beginning to end: what happens, in which order, and how long it may take."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from parity_cli.demo import plan
from parity_cli.demo.audit import Audit, audit
from parity_cli.demo.image import make_image
from parity_cli.demo.plan import DataSets, Work
from parity_cli.demo.progress import Progress
from parity_cli.demo.stack import Node, Stack
from parity_cli.demo.summary import Summary
from parity_client import Client, Submission
from parity_protocol.api.tasks import EventReply
from parity_protocol.errors import NotFound, Unavailable
from parity_protocol.quantities import format_tokens
from parity_protocol.signing.keys import EvmKey
from parity_protocol.task import TaskKind, TaskState

__all__ = ["Demo", "make_folder"]

WORK_WITHIN_S = 180.0  # for all tasks; a stuck one ends the demo with its reason
PAID_WITHIN_S = 60.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Submitted:
    """Some work, and what it became at the market."""

    work: Work
    submission: Submission


def make_folder() -> Path:
    """Make the demo's folder. Slot users of the sandbox pass through it, as root; they list nothing."""
    folder = Path(tempfile.mkdtemp(prefix="parity-demo-"))
    folder.chmod(0o711)
    return folder


class Demo:
    """One run.

    Args:
        folder: Of everything; ``stop`` ends the processes, the caller removes it.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.stack = Stack(folder)
        self.submitter = EvmKey.generate()
        self.progress = self._show = progress
        self._folder = folder
        self._left_out: list[str] = []

    async def run(self) -> Summary:
        """Do all of it and return what came out.

        Raises:
            ParityError: Something did not work at all; what is only untrue is in the summary.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            summary = await self._tell()
            group.cancel_scope.cancel()
        return summary

    async def _watch(self) -> None:
        """End the demo at once when a process ends that should not."""
        while True:
            self.stack.processes.check()
            await self.stack.clock.sleep(_POLL_S)

    async def _tell(self) -> Summary:
        show, stack = self._show, self.stack
        data, epochs = await self._set_up()
        async with Client(stack.join, self.submitter, clock=stack.clock) as market:
            works = await self._add_data(market, data, epochs)
            done = await self._work(market, works)
            with show.step("pay", "vouchers on their way to the chain") as step:
                await self._paid(market, done)
                step.detail = "every earning is confirmed on chain"
            with show.step("check", "every number once more, from the market and the chain") as step:
                inputs = Audit(data, tuple((item.work, item.submission) for item in done), tuple(self._left_out))
                summary = await audit(stack, market, inputs, seconds=show.seconds)
                held = sum(statement.holds for statement in summary.statements)
                step.detail = f"{held} of {len(summary.statements)} statements hold"
        return summary

    # -- setting up ----------------------------------------------------------------------------------------------

    async def _set_up(self) -> tuple[DataSets, int]:
        show, stack = self._show, self.stack
        with show.step("data", "scikit-learn's breast cancer and diabetes") as step:
            data = await anyio.to_thread.run_sync(plan.load_data, abandon_on_cancel=True)
            epochs = await anyio.to_thread.run_sync(plan.calibrate, data, abandon_on_cancel=True)
            step.detail = f"ready; {epochs} epochs take {plan.LONG_S:.0f} s here"
        with show.step("chain", "the embedded chain starts") as step:
            step.detail = f"embedded, a block a second, {await stack.start_chain()}"
        with show.step("contracts", "token and vault are deployed") as step:
            made = await stack.make_market()
            step.detail = f"vault {made.vault}"
        nodes = [stack.make_node(name) for name in plan.NODES]
        self._show.nodes = {node.id: node.name for node in nodes}
        with show.step("money", "three stakes, one escrow") as step:
            async with anyio.create_task_group() as group:
                for node in nodes:
                    group.start_soon(stack.stake, node, plan.STAKE)
                group.start_soon(stack.set_aside, self.submitter, plan.SUBMITTER_FUNDS)
                group.start_soon(stack.start_market)
            stake, funds = format_tokens(plan.STAKE), format_tokens(plan.SUBMITTER_FUNDS)
            step.detail = f"{stake} {made.symbol} at stake for each node, {funds} in escrow"
        with show.step("nodes", "three nodes start and try what they can run") as step:
            for node in nodes:
                stack.start_node(node, RUNNER_SHELL_ENABLED="true")
            await stack.until(lambda: stack.online(nodes), "the nodes")
            await self._check_training(nodes)
            step.detail = ", ".join(node.name for node in nodes) + f" at {stack.join.url}"
        return data, epochs

    async def _check_training(self, nodes: list[Node]) -> None:
        """See that every node can train.

        Raises:
            Unavailable: One cannot; names its reason.
        """
        async with self.stack.client() as market:
            for node in nodes:
                offered = (await market.node(node.id)).capability
                state = None if offered is None else offered.executors.get(TaskKind.FEDERATED_LEARNING)
                if state is None or not state.available:
                    reason = "it does not say why" if state is None else state.reason
                    raise Unavailable(f"{node.name} cannot train models here: {reason}")

    async def _add_data(self, market: Client, data: DataSets, epochs: int) -> dict[str, Work]:
        folder = self._folder / "data"
        folder.mkdir()
        with self._show.step("add data", "by content identifier") as step:
            cids = []
            for name, content in (("cancer.csv", data.breast_cancer), ("diabetes.csv", data.diabetes)):
                await anyio.Path(folder / name).write_bytes(content)
                cids.append((await market.data.add(folder / name)).cid)
            image_cid = await self._add_image(market, folder / "image.tar")
            step.detail = f"breast cancer is {cids[0][:16]}…{cids[0][-6:]}"
        return plan.make_work(cids[0], cids[1], epochs, image_cid)

    async def _add_image(self, market: Client, file: Path) -> str:
        """Store an image for the container, where a node has an engine; return its CID."""
        found = [(await market.node(node.id)).capability for node in self.stack.nodes]
        states = [capability.executors.get(TaskKind.DOCKER) for capability in found if capability is not None]
        if not any(state is not None and state.available for state in states):
            reason = next((state.reason for state in states if state is not None and state.reason), "no reason given")
            self._left_out.append(f"a container: no node has an engine that it can use ({reason})")
            return ""
        try:
            image = await anyio.to_thread.run_sync(make_image)
        except NotFound as exc:
            self._left_out.append(f"a container: {exc.message}")
            return ""
        await anyio.Path(file).write_bytes(image)
        return (await market.data.add(file)).cid

    # -- working -------------------------------------------------------------------------------------------------

    async def _work(self, market: Client, works: dict[str, Work]) -> list[Submitted]:
        """Run the tasks: the forest on all nodes; then the long one, and what else there is while its node is dead."""
        done = [await self._submit(market, works[plan.FOREST])]
        await self._follow(done[0])
        running = anyio.Event()
        delayed = await self._submit(market, works[plan.DELAYED])
        done.append(delayed)
        async with anyio.create_task_group() as group:
            group.start_soon(partial(self._follow, delayed, on_running=running))
            await running.wait()
            others = [works[plan.LINEAR]]
            for name, kind in ((plan.SHELL, TaskKind.COMMAND), (plan.CONTAINER, TaskKind.DOCKER)):
                if name in works and await self._can_run(market, kind, works[name]):
                    others.append(works[name])
            for work in others:
                done.append(await self._submit(market, work))
                group.start_soon(self._follow, done[-1])
        return done

    async def _can_run(self, market: Client, kind: TaskKind, work: Work) -> bool:
        living = [node for node in self.stack.nodes if not node.was_killed]
        found = [await market.node(node.id) for node in living]
        states = [reply.capability.executors.get(kind) for reply in found if reply.capability is not None]
        if any(state is not None and state.available for state in states):
            return True
        reason = next((state.reason for state in states if state is not None and state.reason), "no reason given")
        self._left_out.append(f"{work.name}: no node passes its trial run here ({reason})")
        return False

    async def _submit(self, market: Client, work: Work) -> Submitted:
        submission = await market.submit(work.spec, work.reward)
        parts = len(submission.task_ids)
        for part, task_id in enumerate(submission.task_ids):
            label = work.name if parts == 1 else f"{work.name} {part + 1}/{parts}"
            self._show.task(task_id, label, work.title)
        return Submitted(work, submission)

    async def _follow(self, item: Submitted, *, on_running: anyio.Event | None = None) -> None:
        """Wait for the end, showing events; with ``on_running`` the first node that runs it is killed."""

        def told(task_id: str, event: EventReply) -> None:
            self._show.event(task_id, event.event, event.state, event.node_id)
            if on_running is not None and event.state == TaskState.RUNNING and not on_running.is_set():
                self._kill(task_id, event.node_id)
                on_running.set()

        ended = await item.submission.wait(WORK_WITHIN_S, on_event=told)
        if on_running is not None:
            on_running.set()  # it may have failed before it ran
        if ended.state != TaskState.COMPLETED:
            raise Unavailable(f"{item.work.title}: {ended.state} {ended.message}", hint="See the logs of the nodes.")

    def _kill(self, task_id: str, node_id: str | None) -> None:
        node = next(node for node in self.stack.nodes if node.id == node_id)
        self.stack.kill_node(node)
        self._show.remark(task_id, f"{node.name} was killed (SIGKILL) while it ran")

    async def _paid(self, market: Client, done: list[Submitted]) -> None:
        task_ids = [task_id for item in done for task_id in item.submission.task_ids]

        async def confirmed() -> bool:
            for task_id in list(task_ids):
                payout = (await market.task(task_id)).payout
                if payout is None or payout.state != "confirmed":
                    return False
                task_ids.remove(task_id)
            return True

        await self.stack.until(confirmed, "the payouts", within_s=PAID_WITHIN_S)
