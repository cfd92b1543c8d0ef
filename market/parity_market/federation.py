"""Federated sessions at the market: the plan when one is submitted, the check of each part, the merge at the end.

Data come from the market's own stores; the mathematics runs in a child process (``federation_worker``).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import anyio
import structlog

from parity_blobs import Cid
from parity_blobs.local import LocalBlobStore
from parity_fl.engines.flower import Fleet
from parity_fl.limits import DATA_LIMITS, MAX_UPDATE_BYTES
from parity_fl.plan import PartitionPlan
from parity_fl.resuming import RESUME_FIELD
from parity_fl.session import SessionPlan, ShardTerms
from parity_fl.settings import FlSettings
from parity_market import federation_worker as worker
from parity_market.blob_keeping import let_go
from parity_market.domain.federation import NewSession, Session, new_session, open_session, seed_of
from parity_market.domain.rounds import LEGACY
from parity_market.operations import blobs as blob_operations
from parity_market.operations.context import Market
from parity_market.operations.groups import Group, is_kept_by_owner
from parity_market.store.base import MarketStore
from parity_market.store.rows import TaskRow
from parity_protocol.api.leases import ReportItem
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    BadDocument,
    BadField,
    InvalidInput,
    NotFound,
    Overloaded,
    ParityError,
    TooLarge,
    Unavailable,
    Unprocessable,
)
from parity_protocol.task import FederatedLearningSpec, TaskState
from parity_protocol.wire import JsonObject

__all__ = ["Federation", "Merged", "Offload", "WorkerLost", "run_in_process"]

log = structlog.get_logger(__name__)

Offload: TypeAlias = Callable[[bytes], Awaitable[bytes]]
FleetOf: TypeAlias = Callable[[str], Awaitable[Fleet]]

MAX_PLAN_CHARS = 128 << 10  # of a plan's JSON text: it travels in every manifest of the session
MAX_WAITING_PLANS = 16  # submissions that wait for a worker
MAX_CHECKPOINT_BYTES = 1 << 30  # of one that a session goes on from
MAX_MERGE_BYTES = 1 << 30  # of all updates of one session together
WORKERS = 2  # processes at once
WORK_S = 300.0  # that one job may take
FETCH_S = 30.0  # that a submission waits for data from gateways


class WorkerLost(Unavailable):
    """The process that checks updates and merges them ended without an answer."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A session's result, stored."""

    cid: str
    size: int  # bytes
    metrics: Mapping[str, Any]


async def run_in_process(message: bytes) -> bytes:
    """Do a job in a child process of its own.

    Raises:
        WorkerLost: It took too long, too much memory, or crashed.
    """
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "parity_market.federation_worker", stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env
        )
    except OSError as exc:
        raise WorkerLost(f"a federation job could not run: {exc.strerror}") from exc
    try:
        async with asyncio.timeout(WORK_S):
            answer, said = await process.communicate(message)
    except TimeoutError as exc:
        raise WorkerLost(f"a federation job was stopped after {WORK_S:g} s") from exc
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.communicate()  # reads what is left, so that its pipes close
    if process.returncode != 0:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        log.error("federation_worker_lost", status=process.returncode, said=last)
        raise WorkerLost(f"a federation job ended with status {process.returncode}")
    return answer


class Federation:
    """What the routes and the rounds loop need of federated learning.

    Args:
        gateways: Trustless gateways for data that a submitter names but has not uploaded.
        quota: Bytes that may be fetched for one submitter.
        fleet_of: Prepares a session's SuperLink; without it sessions with ``engine: flower`` are refused.
        check_fleet: Raises what ``fleet_of`` would raise for every session of this market.
        offload: Does a job (see ``federation_worker.execute``) somewhere else than on the event loop.
        settings: What holds for sessions that say nothing themselves.
    """

    def __init__(
        self,
        store: MarketStore,
        blobs: LocalBlobStore,
        market: Market,
        clock: Clock,
        *,
        gateways: Sequence[str] = (),
        quota: int = 2 << 30,
        fleet_of: FleetOf | None = None,
        check_fleet: Callable[[], None] | None = None,
        offload: Offload = run_in_process,
        settings: FlSettings | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._market = market
        self._clock = clock
        self._gateways = tuple(gateways)
        self._quota = quota
        self._fleet_of = fleet_of
        self._check_fleet = check_fleet
        self._offload = offload
        self._settings = settings or FlSettings()
        self._turns = asyncio.Semaphore(WORKERS)
        self._plans = 0
        self._woken = asyncio.Event()

    # -- submitting ---------------------------------------------------------------------------------------------------

    def check_settings(self, spec: FederatedLearningSpec) -> None:
        """Check a session as far as that can be done without its data.

        Raises:
            BadField: The first setting that is wrong.
            Unprocessable: Its engine is not here.
        """
        new_session(spec, "", self._settings)
        if spec.engine == "flower" and self._check_fleet is not None:
            self._check_fleet()

    async def plan(self, spec: FederatedLearningSpec, *, creator: str, order_hash: str) -> JsonObject:
        """Check a session against its data and cut them; the same order always gets the same plan.

        Args:
            creator: Who submits; must be allowed to read the data.
            order_hash: 0x and 64 hex digits.

        Returns:
            The plan that every manifest of the session carries: ``SessionPlan.to_dict()``.

        Raises:
            BadField: A setting is wrong, or does not fit the data.
            ExecutionFailed: ``data_invalid``: the data cannot be used.
            Unprocessable: The data are not here and nobody delivered them; names the CID. Or its engine is not.
            Overloaded: Too many submissions wait already.
        """
        new = new_session(spec, order_hash, self._settings)
        session, resumption = new.spec, new.resumption
        if session.is_sharded:
            terms = await self._terms(new, creator, seed=seed_of(session.session_id, spec.seed))
            fleet = await self._fleet(session.session_id, spec)
            return SessionPlan(session.session_id, session.round_id, terms, fleet, new.settings).to_dict()
        if self._plans >= MAX_WAITING_PLANS:
            raise Overloaded(f"{self._plans} sessions are being planned already", retry_after_s=5.0)
        self._plans += 1
        try:
            await self._make_available(session.dataset_cid, creator)
            seed = seed_of(session.session_id, spec.seed)
            job: dict[str, Any] = {"do": "plan", "spec": session.to_dict(), "seed": seed}
            async with self._turns:
                blobs = [await self.read(session.dataset_cid, creator, max_bytes=DATA_LIMITS.max_bytes)]
                if resumption is not None:
                    job["resume"] = resumption.job
                    blobs.append(await self.checkpoint(resumption.cid, creator))
                doc, _ = await self._work(job, blobs)
        finally:
            self._plans -= 1
        fleet = await self._fleet(session.session_id, spec)
        partition = PartitionPlan.from_dict(doc)
        plan = SessionPlan(session.session_id, session.round_id, partition, fleet, new.settings).to_dict()
        size = len(json.dumps(plan, separators=(",", ":")))
        if size > MAX_PLAN_CHARS:
            raise BadField(
                f"the plan of this session takes {size} characters, at most {MAX_PLAN_CHARS} are sent to nodes: "
                "use fewer parts or classes",
                field="spec.partition_config.total_parts",
            )
        return plan

    async def _terms(self, new: NewSession, creator: str, *, seed: str) -> ShardTerms:
        """Return what can be decided about shards that the market never sees; one that goes on keeps its seed.

        Raises:
            BadField: The checkpoint is not here, or of another session.
            Unprocessable: The data to score by are not here.
        """
        session, resumption = new.spec, new.resumption
        if session.eval_cid:
            await self._make_available(session.eval_cid, creator, field="spec.eval_cid")
        if resumption is not None:
            file = await self.checkpoint(resumption.cid, creator)
            job = {"do": "resume_shards", "spec": session.to_dict(), "resume": resumption.job}
            async with self._turns:
                doc, _ = await self._work(job, [file])
            seed = doc["seed"]
        return ShardTerms(session.partition.total_parts, seed)

    async def checkpoint(self, cid: str, creator: str) -> bytes:
        """Return a checkpoint that a session goes on from.

        Raises:
            BadField: It is not here for this submitter, or no CID.
        """
        try:
            return await self.read(cid, creator, max_bytes=MAX_CHECKPOINT_BYTES)
        except (NotFound, InvalidInput) as exc:
            raise BadField(
                f"resume_from: the checkpoint {cid} cannot be read here: {exc.message}",
                hint="`parity fl run --resume-from FILE` stores a checkpoint and names it.",
                field=RESUME_FIELD,
            ) from exc

    async def _fleet(self, session_id: str, spec: FederatedLearningSpec) -> Fleet | None:
        """Prepare the SuperLink of a session that Flower carries; None for every other one."""
        if spec.engine != "flower":
            return None
        if self._fleet_of is None:
            raise BadField("this market runs no SuperLinks", field="spec.engine")
        return await self._fleet_of(session_id)

    async def _make_available(self, cid_text: str, creator: str, *, field: str = "spec.dataset_cid") -> None:
        """Make sure that a data set lies here and its submitter may read it.

        Raises:
            Unprocessable: It does not, and nobody delivered it.
        """
        cid = Cid.parse(cid_text)
        try:
            await self._store.read(partial(blob_operations.readable, cid=cid_text, reader=creator))
            if await self._has(cid, cid_text):
                return
        except NotFound:
            pass
        problem = await self._fetch(cid, cid_text, creator)
        if problem:
            raise Unprocessable(
                f"data_unavailable: the data set {cid_text} is not stored here for {creator}, and {problem}",
                hint="Upload it with `parity data add` first.",
                field=field,
            )

    async def _has(self, cid: Cid, cid_text: str) -> bool:
        small = await self._store.read(partial(blob_operations.small_blob, cid=cid_text))
        return small is not None or await self._blobs.stat(cid) is not None

    async def _fetch(self, cid: Cid, cid_text: str, creator: str) -> str:
        """Fetch public data for a submitter; return in words why that failed, empty when it did not."""
        if not self._gateways:
            return "no gateway is set (MARKET_GATEWAYS)"
        if await self._blobs.stat(cid) is not None:
            return "it may not be read by this account"  # somebody else's: a gateway was not asked
        # Addresses that nobody has proved cost nothing, so they share one quota; what a gateway gave them is public anyway.
        is_unproven = creator.startswith(LEGACY)
        owner: str = LEGACY if is_unproven else creator
        visibility: Literal["public", "private"] = "public" if is_unproven else "private"
        used = await self._store.read(partial(blob_operations.bytes_of_owner, owner=owner))
        left = min(self._quota - used, DATA_LIMITS.max_bytes)
        if left <= 0:
            return f"the account's quota of {self._quota} bytes is used up"
        from parity_blobs.gateway import TrustlessGateway  # brings httpx, which nothing else here needs

        try:
            async with TrustlessGateway(self._gateways) as gateway:
                with anyio.fail_after(FETCH_S):
                    found = await gateway.fetch_into(cid, self._blobs, max_bytes=left)
        except TimeoutError:
            return f"no gateway delivered it within {FETCH_S:g} s"
        except ParityError as exc:
            return f"the gateways did not deliver it: {exc.message}"
        now = self._clock.now()
        await self._store.write(
            lambda tx: blob_operations.add_ref(tx, cid_text, owner, visibility=visibility, size=found.size, now=now)
        )
        return ""

    async def read(self, cid_text: str, reader: str | None, *, max_bytes: int) -> bytes:
        """Return a stored file that ``reader`` may read; None is anybody.

        Raises:
            NotFound: It is not here for this reader.
            TooLarge: It has more than ``max_bytes``.
            BadCid: Not a CID.
        """
        cid = Cid.parse(cid_text)
        await self._store.read(partial(blob_operations.readable, cid=cid_text, reader=reader))
        return await self._stored(cid, cid_text, max_bytes=max_bytes)

    async def _stored(self, cid: Cid, cid_text: str, *, max_bytes: int) -> bytes:
        small = await self._store.read(partial(blob_operations.small_blob, cid=cid_text))
        if small is not None:
            if len(small) > max_bytes:
                raise TooLarge(f"{cid_text} has {len(small)} bytes, at most {max_bytes} are accepted")
            return small
        return b"".join([piece async for piece in self._blobs.open(cid, max_bytes=max_bytes)])

    # -- checking and merging -----------------------------------------------------------------------------------------

    def report_taken(self, item: ReportItem) -> None:
        """Wake the rounds loop when a report waits for it."""
        if item.status == 200 and item.task_state == TaskState.VERIFYING:
            self.wake()

    def wake(self) -> None:
        """Let ``wait`` return."""
        self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Return when there may be something to check, at the latest after ``seconds``."""
        async with anyio.create_task_group() as group:

            async def sleep() -> None:
                await self._clock.sleep(seconds)
                group.cancel_scope.cancel()

            group.start_soon(sleep)
            await self._woken.wait()
            group.cancel_scope.cancel()
        self._woken.clear()

    async def check(self, group: Group, task: TaskRow) -> str:
        """Check one part's result, a forest's trees against the data too.

        Returns:
            Why it is garbage; empty when it is good.

        Raises:
            ParityError: It could not be checked, which is our fault.
        """
        async with self._turns:
            session, data = await self._open(group)
            try:
                update = await self._update_of(task)
            except (NotFound, InvalidInput) as exc:
                return f"the result cannot be read: {exc.message}"
            job = {"do": "check", "spec": session.spec.to_dict(), "plan": session.plan.to_dict(), "part": task.part}
            try:
                await self._work(job, [data, update])
            except InvalidInput as exc:
                return exc.message
        return ""

    async def store_model(self, data: bytes) -> str:
        """Keep a session's result; returns its CID."""
        return str(await self._blobs.put_bytes(data, pin=True))

    async def result_of(self, task: TaskRow) -> bytes:
        """Return what a part reported.

        Raises:
            NotFound: It has no result, or that is not here.
        """
        return await self._update_of(task)

    async def merge(self, group: Group) -> Merged:
        """Merge all parts, score the result on the hold-out, and store it.

        Raises:
            InvalidInput: The updates do not make a model.
            ParityError: Data or updates are not here any more, or the worker failed.
        """
        total = sum(task.result_size or 0 for task in group.tasks)
        if total > MAX_MERGE_BYTES:
            raise TooLarge(f"the session's updates have {total} bytes together, at most {MAX_MERGE_BYTES} are merged")
        async with self._turns:
            session, data = await self._open(group)
            updates = [await self._update_of(task) for task in group.tasks]
            job = {"do": "finish", "spec": session.spec.to_dict(), "plan": session.plan.to_dict()}
            metrics, [model] = await self._work(job, [data, *updates])
        cid = await self._blobs.put_bytes(model, pin=True)
        return Merged(str(cid), len(model), metrics)

    async def old_forest(self, group: Group, part: int, body: bytes) -> tuple[str, int]:
        """Make a part's update of what an old runner sent, and store it; return its CID and size.

        Raises:
            InvalidInput: It holds no trees over such data.
        """
        async with self._turns:
            session, data = await self._open(group)
            job = {"do": "old_forest", "spec": session.spec.to_dict(), "plan": session.plan.to_dict(), "part": part}
            _, [update] = await self._work(job, [data, body])
        return await self.store_model(update), len(update)

    async def old_layers(self, cid_text: str, reader: str) -> bytes:
        """Return a stored model's lists in the old network's form, JSON.

        Raises:
            NotFound: It is not here for this reader; ``TooLarge``: it has too many numbers for JSON.
        """
        async with self._turns:
            data = await self.read(cid_text, reader, max_bytes=MAX_UPDATE_BYTES)
            _, [layers] = await self._work({"do": "old_model"}, [data])
        return layers

    async def _open(self, group: Group) -> tuple[Session, bytes]:
        session = open_session(group.value.spec, group.row.plan_doc)
        data = await self.read(session.spec.dataset_cid, group.row.creator, max_bytes=DATA_LIMITS.max_bytes)
        return session, data

    async def _update_of(self, task: TaskRow) -> bytes:
        if task.result_cid is None:
            raise NotFound(f"task {task.id} has no result")
        return await self._stored(Cid.parse(task.result_cid), task.result_cid, max_bytes=MAX_UPDATE_BYTES)

    async def keep(self, cid_text: str, *, keep: bool) -> None:
        """Spare a blob from eviction while a session needs it, or no longer unless somebody has pinned it."""
        if not keep and await self._store.read(partial(is_kept_by_owner, cid=cid_text)):
            return
        with suppress(NotFound):  # small ones lie in the database
            await self._blobs.pin(Cid.parse(cid_text), keep=keep)

    async def let_go(self, cid_text: str) -> None:
        """Keep a blob no longer, unless somebody needs it."""
        await let_go(self._store, self._blobs, Cid.parse(cid_text))

    async def _work(self, job: Mapping[str, Any], data: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """Do a job; the caller holds a turn, which bounds both processes and the data in memory."""
        answer = await self._offload(worker.encode_message(job, data))
        try:
            header, out = worker.decode_message(answer)
        except BadDocument as exc:
            raise WorkerLost(f"a federation job gave no answer: {exc.message}") from exc
        if "error" in header:
            raise worker.error_of(header["error"])
        return header["doc"], out
