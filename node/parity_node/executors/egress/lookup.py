"""The proxy's own name lookups: few at a time, and never in the threads that the node itself needs.

A lookup blocks in the C library for as long as a name server takes, and cannot be cancelled. A task that asks for names of
a slow server of its own would fill the event loop's thread pool, and the node would not find its market any more.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence

__all__ = ["Lookups"]

_MOST = 4  # at once, of one task; also of those that nobody waits for any more


class Lookups:
    """Implements ``parity_blobs.public_address.Resolver`` for one task."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_MOST)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of ``host``, taken as a complete name: no search domain is tried.

        Raises:
            OSError: There are none.
        """
        await self._room.acquire()  # given back when the thread ends, not when the caller stops waiting
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def finish(found: Sequence[str] | OSError) -> None:
            self._room.release()
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def work() -> None:
            found = _addresses(host, port)
            try:
                loop.call_soon_threadsafe(finish, found)
            except RuntimeError:  # the node has ended meanwhile
                return

        try:
            threading.Thread(target=work, name="egress-lookup", daemon=True).start()
        except RuntimeError as exc:  # no more threads
            self._room.release()
            raise OSError(str(exc)) from exc
        return await answer


def _addresses(host: str, port: int) -> Sequence[str] | OSError:
    try:
        found = socket.getaddrinfo(f"{host}.", port, type=socket.SOCK_STREAM)
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV  # with a scope, where there is one: that is refused
        return list(dict.fromkeys(socket.getnameinfo(each[4], numeric)[0] for each in found))
    except OSError as exc:
        return exc
    except UnicodeError as exc:
        return OSError(str(exc))
