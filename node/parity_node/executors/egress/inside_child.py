"""Runs as a program of its own: opens the proxy's listener inside of a sandbox and sends it back to the node.

Standard library only, no package of ours: the interpreter starts with ``-I -S``. Standard input is a Unix socket. The
arguments are the pid of the sandbox's first process and the user to become, or -1.

A process may enter the user namespaces that its own user made. bubblewrap nests two; the network belongs to the outer one,
which the kernel names (``NS_GET_USERNS``, ioctl_ns(2)). Entering that one gives the rights over the network, and over
nothing else.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

NS_GET_USERNS = 0xB701
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
ADDRESS = ("127.0.0.1", 3128)
BACKLOG = 128


def main(pid: int, uid: int, gid: int) -> None:
    """Send the listener, or a text that says what failed."""
    with socket.socket(fileno=os.dup(0)) as channel:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if uid >= 0:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            enter(libc, fcntl.ioctl(network, NS_GET_USERNS), CLONE_NEWUSER)
            enter(libc, network, CLONE_NEWNET)
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
                bring_up(listener)
                listener.bind(ADDRESS)
                listener.listen(BACKLOG)
                socket.send_fds(channel, [b"listener"], [listener.fileno()])
        except OSError as exc:
            channel.send(str(exc).encode())


def enter(libc: ctypes.CDLL, namespace: int, kind: int) -> None:
    """Enter a namespace by its descriptor."""
    if libc.setns(namespace, kind) != 0:
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


def bring_up(sock: socket.socket) -> None:
    """Let loopback run, if it does not yet."""
    answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
    flags = struct.unpack("16sh14x", answer)[1]
    if not flags & IFF_UP:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4]))
