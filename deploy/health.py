#!/usr/bin/env python3
"""Exit 0 when a part of ours answers on this machine: ``parity-health URL``, or ``parity-health --rpc URL`` for a chain.

It asks loopback only, and does not check certificates: whoever can answer there is this very container.
"""

from __future__ import annotations

import json
import ssl
import sys
import urllib.request
from urllib.parse import urlsplit

TIMEOUT_S = 4.0
MAX_BYTES = 1 << 20
HOSTS = ("127.0.0.1", "localhost", "::1")


def main(arguments: list[str]) -> int:
    """Ask and return the exit status; what is wrong goes to standard error."""
    is_rpc = arguments[:1] == ["--rpc"]
    urls = arguments[1:] if is_rpc else arguments
    if len(urls) != 1 or urlsplit(urls[0]).scheme not in ("http", "https") or urlsplit(urls[0]).hostname not in HOSTS:
        _say("usage: parity-health [--rpc] http[s]://127.0.0.1:PORT/PATH")
        return 2
    call = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}).encode() if is_rpc else None
    request = urllib.request.Request(urls[0], data=call, headers={"Content-Type": "application/json"})  # noqa: S310
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    # No proxy of the environment: it would be asked about its own loopback.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
    )
    try:
        with opener.open(request, timeout=TIMEOUT_S) as reply:
            document = json.loads(reply.read(MAX_BYTES))
    except (OSError, ValueError) as exc:
        _say(f"{urls[0]}: {exc}")
        return 1
    if is_rpc and "result" not in document:
        _say(f"{urls[0]}: {document}")
        return 1
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
