"""Every attempt to escape from a sandbox, made inside it as a hostile task would. Standard library only.

The node copies this package, with an interpreter, into the input folder of a trial execution; ``probe.json`` there says
what to look for, and ``probes`` reads the one line that is printed.

An attempt is ``denied`` when it was refused, ``escaped`` when it had an effect that a task must not have, or when the
kernel looked at the arguments of a call that should never have reached it. What only fails to run is an ``error``, never
"denied". Calls that an ordinary task may make (an internet socket, a fork) are judged by their effect.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from parity_node.executors.sandbox.escape import files, kernel, network, processes
from parity_node.executors.sandbox.escape.basics import ASKED, CONNECT_S, SEEN, Attempt, call, own_status, run

__all__ = ["ATTEMPTS", "CONTROLS", "MARK", "main"]

MARK: Final = "parity-probe "  # begins the line with the answer
_LIMIT_S = 30
_MAX_DETAIL_CHARS = 160

ATTEMPTS: Final[dict[str, Attempt]] = {
    **files.ATTEMPTS,
    **processes.ATTEMPTS,
    **network.ATTEMPTS,
    **kernel.ATTEMPTS,
}


def main(place: str) -> None:
    """Make every attempt and print one line of JSON.

    Args:
        place: The folder of ``probe.json``.
    """
    signal.alarm(_LIMIT_S)
    ASKED.update(json.loads(Path(place, "probe.json").read_text()), place=place)
    controls = {name: _check(control)[:_MAX_DETAIL_CHARS] for name, control in CONTROLS.items()}
    probes = {}
    for name, attempt in ATTEMPTS.items():
        result, detail = run(attempt.make)
        probes[name] = [result, detail[:_MAX_DETAIL_CHARS]]
    answer = {
        "controls": controls,
        "probes": probes,
        "kernel": f"{os.uname().release} {os.uname().version}",
        "uid": os.getuid(),
        "seen": sorted(SEEN),
    }
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()


# -- controls: what an ordinary task must be able to do, or the attempts prove nothing ---------------------------------


def _control_file() -> bool:
    path = Path(ASKED["scratch"], "parity-probe-control")
    path.write_bytes(b"written")
    ok = path.read_bytes() == b"written" and b"parity-probe" in Path(__file__).read_bytes()
    path.unlink()
    return ok


def _control_process() -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7 and int(own_status()["Pid"]) == os.getpid()


def _control_kernel() -> bool:
    return call("getpid") == os.getpid()


def _control_socket() -> bool:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        left.sendall(b"x")
        return right.recv(1) == b"x"


def _control_net() -> bool:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as door,
    ):
        server.bind(("127.0.0.1", 0))
        server.listen()
        door.settimeout(CONNECT_S)
        door.connect(server.getsockname())
        return True


def _check(control: Callable[[], bool]) -> str:
    """Return what is wrong; empty when it worked."""
    try:
        return "" if control() else "did not work"
    except Exception as exc:  # noqa: BLE001 - whatever it is, the sandbox proves nothing
        return f"{type(exc).__name__}: {exc}"


CONTROLS: Final[dict[str, Callable[[], bool]]] = {
    "file": _control_file,
    "proc": _control_process,
    "kernel": _control_kernel,
    "socket": _control_socket,
    "net": _control_net,
}
