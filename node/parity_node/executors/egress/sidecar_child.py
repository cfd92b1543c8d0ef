"""Runs as the only program of an egress sidecar container: holds the proxy's listener for the task beside it.

Standard library only. It listens on 127.0.0.1:3128 of the container's network, which the task's container shares, and gives
the listening socket to the node over a Unix socket, in a folder that is mounted into it. While no node is there it tries again;
without one for an hour it ends, and the task's network with it.
"""

from __future__ import annotations

import signal
import socket
import sys
import time

SOCKET = "/egress/node.sock"
ADDRESS = ("127.0.0.1", 3128)
BACKLOG = 128
PAUSE_S = 0.1
ALONE_S = 3_600.0


def main() -> None:
    """Serve until the node has been gone for ``ALONE_S``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the first process of a container ignores it by default
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(ADDRESS)
        listener.listen(BACKLOG)
        alone_since = time.monotonic()
        while time.monotonic() - alone_since < ALONE_S:
            if offer(listener):
                alone_since = time.monotonic()
            time.sleep(PAUSE_S)


def offer(listener: socket.socket) -> bool:
    """Give the listener to a node and return when that node is gone; False at once when there is none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as node:
            node.connect(SOCKET)
            socket.send_fds(node, [b"listener"], [listener.fileno()])
            node.recv(1)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
