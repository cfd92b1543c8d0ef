"""Registers keys and starts the run of one SuperLink: ``python control.py PARENT FOLDER PORT``; in flwr's environment.

A JSON line on standard input asks, one on standard output answers: ``{"do": "start", "bridge": path}``,
``{"do": "register", "key": PEM}``, ``{"do": "unregister", "node_id": id}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
START_S = 60.0  # for a SuperLink to answer
LOOK_S = 0.2


class Secret:
    """Adds the secret that the SuperLink's gate asks for."""

    def __init__(self, value: str) -> None:
        self._value = value

    def intercept(self, context: Any, call_next: Any) -> Any:
        """Send one request."""
        context.request.headers["x-parity-control"] = self._value
        return call_next(context)


def main(arguments: list[str]) -> None:
    """Answer until standard input ends."""
    parent, folder, port = int(arguments[0]), Path(arguments[1]), arguments[2]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from flwr.supercore.control import ControlHttpClient

    client = ControlHttpClient.from_server_address(
        f"127.0.0.1:{port}",
        insecure=False,
        root_certificates=(folder / "root.pem").read_bytes(),
        interceptors=[Secret((folder / "control.secret").read_text())],
    )
    for line in sys.stdin:
        try:
            found = do(client, folder, json.loads(line))
        except Exception as exc:  # noqa: BLE001 - the edge of a process: the market reads why
            found = {"error": f"{type(exc).__name__}: {exc}"[:500]}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def do(client: Any, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Do one job."""
    from flwr.common.serde import fab_to_proto, user_config_to_proto
    from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest, UnregisterNodeRequest
    from flwr.supercore.fab import Fab

    if job["do"] == "register":
        answer = patiently(lambda: client.RegisterNode(RegisterNodeRequest(public_key=job["key"].encode())))
        return {"node_id": answer.node_id}
    if job["do"] == "unregister":
        client.UnregisterNode(UnregisterNodeRequest(node_id=int(job["node_id"])))
        return {}
    raw = (folder / "bundle.fab").read_bytes()
    fab = fab_to_proto(Fab(sha256(raw).hexdigest(), raw, {}))
    override = user_config_to_proto({"bridge": job["bridge"]})
    answer = patiently(lambda: client.StartRun(StartRunRequest(fab=fab, override_config=override)))
    if not answer.HasField("run_id"):
        raise RuntimeError("the SuperLink started no run")
    return {"run_id": answer.run_id}


def patiently(call: Any) -> Any:
    """Call until the SuperLink listens, for a bounded time."""
    import httpx

    until = time.monotonic() + START_S
    while True:
        try:
            return call()
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_S)


if __name__ == "__main__":
    main(sys.argv[1:])
