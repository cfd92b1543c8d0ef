"""A load generator: requests made beforehand, one connection a client, and hardly any work for each answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_urlsafe

from pydantic import BaseModel

from parity_protocol.signing.http_signatures import sign_request
from parity_protocol.signing.keys import Ed25519PrivateKey

__all__ = ["Answer", "exchange", "signed_post"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and how long it took."""

    status: int
    body: bytes
    took_s: float


def signed_post(path: str, body: BaseModel, *, authority: str, key: Ed25519PrivateKey, keyid: str) -> bytes:
    """Return a whole signed request as bytes."""
    content = body.model_dump_json(by_alias=True).encode()
    headers = sign_request(
        "POST", path, "", authority, content, key=key, keyid=keyid, now=datetime.now(UTC), nonce=token_urlsafe(18)
    )
    lines = [f"POST {path} HTTP/1.1", f"Host: {authority}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(content)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


async def exchange(host: str, port: int, clients: Sequence[Sequence[bytes]]) -> tuple[list[list[Answer]], float]:
    """Send each client's requests one after another on its own connection, all clients at once.

    Returns:
        The answers by client, and the seconds from the first request to the last answer; connecting is not counted.
    """
    connections = [await asyncio.open_connection(host, port) for _ in clients]

    async def one(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: Sequence[bytes]
    ) -> list[Answer]:
        answers = []
        for request in requests:
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await reader.readexactly(size)
            answers.append(Answer(int(head[9:12]), body, time.perf_counter() - started))
        return answers

    started = time.perf_counter()
    found = await asyncio.gather(*(one(*pair, requests) for pair, requests in zip(connections, clients, strict=True)))
    took = time.perf_counter() - started
    for _, writer in connections:
        writer.close()
    return found, took
