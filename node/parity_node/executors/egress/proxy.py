"""The node's proxy for one task: the only way out of its sandbox, to the hosts that were granted and no other.

It runs in the node's event loop and accepts on a listener that lies inside of the sandbox, so that no routable interface is
ever there. Names are looked up by the node, every address is checked and the connection goes to a checked one; nothing of
the node's own proxy settings is used.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

import anyio

from parity_blobs.public_address import Resolver, connect_public
from parity_node.executors.egress.grant import Grant, egress_env
from parity_node.executors.egress.handover import Handover
from parity_node.executors.egress.lookup import Lookups
from parity_node.executors.egress.meter import Meter
from parity_node.executors.egress.refusals import Refusal, Refusals
from parity_node.executors.egress.relay import Tunnel, linger, send
from parity_node.executors.egress.request import MAX_HEAD_BYTES, ProxyRequest, parse_request
from parity_node.waiting import within
from parity_protocol.clock import Clock
from parity_protocol.errors import PolicyDenied, Unreachable
from parity_protocol.needs import Egress

__all__ = ["MAX_CONNECTIONS", "EgressProxy"]

MAX_CONNECTIONS = 64  # of one task at once; more wait in the listener's queue
HEAD_S = 15.0  # for a request's head
_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_ACCESS_DENIED = bytes.fromhex("15 0303 0002 02 31")  # a TLS alert (RFC 8446 §6), so that the client knows at once
_PAUSE_S = 0.2  # after a failed accept: no descriptors left


class EgressProxy:
    """The proxy of one task. Make it on the event loop; ``aclose`` ends all that it started.

    Args:
        egress: The grant, narrowed by the operator's policy already.
        folder: The execution's own folder; the byte count and the sidecar's socket live in it.
        on_refusal: Gets a line for the task's own log, without a line break, at a bounded rate.
        on_refused: Told the rule of each refusal, for counters.
        resolver: How names are looked up; the machine's resolver by default.
        allow: Which addresses are good; by default public ones that are not this machine's own. For tests.

    Raises:
        ExecutionFailed: The folder cannot be written (``node_fault``, ``disk_full``).
    """

    def __init__(
        self,
        egress: Egress,
        *,
        folder: Path,
        on_refusal: Callable[[str], None],
        execution_id: str,
        clock: Clock,
        on_refused: Callable[[str], None] | None = None,
        resolver: Resolver | None = None,
        allow: Callable[[str], bool] | None = None,
    ) -> None:
        self._grant = Grant.of(egress)
        self._folder = folder
        self._clock = clock
        self._resolver = resolver or Lookups()
        self._allow = allow
        self._meter = Meter(folder / "egress.used", egress.max_bytes)
        self._refusals = Refusals(
            on_refusal, path=folder / "egress.log", execution_id=execution_id, clock=clock, on_refused=on_refused
        )
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._handover: Handover | None = None

    @property
    def bytes_used(self) -> int:
        """Bytes that have passed, both directions together, before a restart of the node too."""
        return self._meter.used

    @property
    def refusals(self) -> bytes:
        """The lines about them, before a restart of the node too."""
        return self._refusals.text()

    def env(self) -> dict[str, str]:
        """Return the variables by which the task's programs find the proxy."""
        return egress_env()

    def attach(self, listener: socket.socket) -> None:
        """Begin to accept on a listening socket; the proxy closes it in the end."""
        listener.setblocking(False)  # noqa: FBT003 - the standard library's
        self._listeners.append(listener)
        self._spawn(self._accept(listener))

    def hand_over(self) -> Path:
        """Begin to take listeners from a sidecar container, and return the folder to mount into it.

        Raises:
            ExecutionFailed: The socket cannot be made (``node_fault``).
        """
        if self._handover is None:
            self._handover = Handover(self._folder / "egress", on_listener=self.attach)
            self._spawn(self._handover.serve())
        return self._handover.folder

    def expect_listener(self) -> None:
        """Forget for ``attached`` what a sidecar has handed over before: another one is about to start."""
        if self._handover is not None:
            self._handover.arrived = anyio.Event()

    async def attached(self, timeout_s: float) -> bool:
        """Wait until a sidecar has handed a listener over, at most ``timeout_s``; return whether one has."""
        if self._handover is None:
            return bool(self._listeners)
        with anyio.move_on_after(timeout_s):
            await self._handover.arrived.wait()
        return self._handover.arrived.is_set()

    async def aclose(self) -> None:
        """End every connection and close everything; idempotent."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        for listener in self._listeners:
            listener.close()
        if self._handover is not None:
            self._handover.close()
        if tasks:
            await asyncio.wait(tasks)
        self._meter.close()

    # -- one connection ------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError:
                self._room.release()
                await self._clock.sleep(_PAUSE_S)
            except BaseException:
                self._room.release()
                raise
            else:
                self._spawn(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.setblocking(False)  # noqa: FBT003 - the standard library's
                await self._answer(client)
        except OSError:  # the task's program hung up
            return
        finally:
            self._room.release()

    async def _answer(self, client: socket.socket) -> None:
        is_open = False
        try:
            head, rest = await self._read_head(client)
            if not head:
                return
            request = parse_request(head)
            with await self._connect(request) as upstream:
                is_open = True
                await self._relay(client, upstream, request, rest)
        except Refusal as refusal:
            self._refusals.note(refusal)
            if not is_open:
                await send(client, refusal.answer())
            elif refusal.rule == "egress.server_name":
                await send(client, _ACCESS_DENIED)
            await linger(client)

    async def _read_head(self, client: socket.socket) -> tuple[bytes, bytes]:
        """Return a request's head and what came after it; empty when the program says nothing."""
        loop = asyncio.get_running_loop()
        data = bytearray()

        async def read() -> None:
            while b"\r\n\r\n" not in data and len(data) <= MAX_HEAD_BYTES:
                more = await loop.sock_recv(client, 4_096)
                if not more:
                    return
                data.extend(more)

        try:
            await within(self._clock, HEAD_S, read)
        except TimeoutError:
            raise Refusal("egress.request", "", f"no request within {HEAD_S:g} s", 400) from None
        head, end, rest = bytes(data).partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            raise Refusal("egress.request", "", f"a request's head is over {MAX_HEAD_BYTES} bytes", 431)
        if data and not end:
            raise Refusal("egress.request", "", "the request ended before its head did", 400)
        return head, rest

    async def _connect(self, request: ProxyRequest) -> socket.socket:
        host, port = request.host, request.port
        if not self._grant.allows(host, port):
            raise Refusal("egress.domains", host, f"port {port} of this host is not granted; granted: {self._grant}")
        if self._meter.is_used_up:
            raise Refusal("egress.max_bytes", host, f"the task's {self._meter.max_bytes} bytes of network are used up")
        try:
            return await connect_public(host, port, resolver=self._resolver, allow=self._allow)
        except PolicyDenied as exc:
            raise Refusal("egress.private", host, exc.message) from exc
        except Unreachable as exc:
            raise Refusal("egress.unreachable", host, exc.message, 502) from exc

    async def _relay(self, client: socket.socket, upstream: socket.socket, request: ProxyRequest, rest: bytes) -> None:
        tunnel = Tunnel(
            client,
            upstream,
            host=request.host,
            meter=self._meter,
            clock=self._clock,
            checks_tls=request.is_tunnel,
        )
        if request.is_tunnel:
            await asyncio.get_running_loop().sock_sendall(client, _CONNECTED)
            await tunnel.run(rest)
        else:
            body = rest[: request.body_bytes]
            await tunnel.run(request.head + body, body_bytes=len(request.head) + request.body_bytes)
