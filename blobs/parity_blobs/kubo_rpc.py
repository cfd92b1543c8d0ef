"""Kubo's RPC: commands, streams and uploads, bounded, with its complaints in our words.

Kubo is reached where the operator says, never where a task says. What it answers is not believed: hashing is the
caller's.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import anyio
import httpx

from parity_blobs.cid import Cid
from parity_blobs.gateway_http import url_problem
from parity_blobs.http_transport import KeepAliveTransport
from parity_protocol.errors import (
    BadDocument,
    ConfigInvalid,
    Forbidden,
    NotFound,
    ParityError,
    StorageFull,
    TooLarge,
    Unavailable,
    Unreachable,
)
from parity_protocol.strict_json import check_depth

__all__ = ["MIN_VERSION", "KuboRpc", "parse_api"]

MIN_VERSION = (0, 8)  # the first whose `dag import` and `files` do what is asked of them here

_CONNECT_S = 5.0
_STALL_S = 30.0  # between two pieces of an answer or of an upload
_COMMAND_S = 60.0
_UPLOAD_END_S = 300.0  # from the last byte of an upload to the answer: Kubo syncs then
_MAX_JSON_BYTES = 64 << 20
_MAX_JSON_DEPTH = 16
_MAX_ERROR_BYTES = 65_536
_MAX_COMPLAINT_CHARS = 300
_BOUNDARY = "parity-node-3c5f0a7e91d24b68"

_MULTIADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/([0-9]{1,5})(?:/(https?))?")
_AUTHORIZATION = re.compile(r"[\x21-\x7e][\x20-\x7e]*")
_ABSENT = ("not found", "could not find", "does not exist", "no link named", "file does not exist")
_FULL = ("no space left", "disk quota exceeded", "storagemax")


def parse_api(text: str, *, key: str = "RUNNER_IPFS_API") -> tuple[str, str | None]:
    """Return the base address and, for a Unix socket, its path.

    Takes ``http://127.0.0.1:5001``, ``https://kubo.example``, ``unix:/run/ipfs/api.sock``, and what Kubo writes into
    its ``api`` file: ``/ip4/127.0.0.1/tcp/5001`` or ``/unix/run/ipfs/api.sock``.

    Raises:
        ConfigInvalid: Anything else; plain http to another machine included.
    """
    for prefix in ("unix:/", "/unix/"):
        if text.startswith(prefix):
            return "http://kubo.localhost", "/" + text.removeprefix(prefix).lstrip("/")
    url = text
    if (found := _MULTIADDR.fullmatch(text)) is not None:
        kind, host, port, scheme = found.groups()
        url = f"{scheme or 'http'}://{f'[{host}]' if kind == 'ip6' else host}:{port}"
    if problem := url_problem(url):
        raise ConfigInvalid([f"{key}: {problem.removeprefix('gateways: ')}"])
    return url.rstrip("/"), None


class KuboRpc:
    """Sends commands to one Kubo. Use it as ``async with KuboRpc(api) as kubo``.

    Args:
        api: As ``parse_api`` takes it.
        authorization: Value of the header, such as ``Bearer …`` or ``Basic …``, when Kubo's
            ``API.Authorizations`` ask for one.

    Raises:
        ConfigInvalid: The address or the header is not accepted.
    """

    def __init__(self, api: str, *, authorization: str = "") -> None:
        self.url, socket = parse_api(api)
        self.name = f"Kubo at {api}"
        headers = {"accept-encoding": "identity", "user-agent": "parity-node"}
        if authorization:
            if _AUTHORIZATION.fullmatch(authorization) is None:
                raise ConfigInvalid(["RUNNER_IPFS_API: the authorization holds characters that a header cannot"])
            headers["authorization"] = authorization
        self._http = httpx.AsyncClient(
            transport=KeepAliveTransport() if socket is None else httpx.AsyncHTTPTransport(uds=socket),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(_STALL_S, connect=_CONNECT_S),
            headers=headers,
        )

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            Unreachable: Nobody answers there.
            Unavailable: Something else answers, or a Kubo that is too old.
        """
        try:
            await self.check_version()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        with anyio.CancelScope(shield=True):
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        await self._http.aclose()

    async def check_version(self) -> str:
        """Return Kubo's version.

        Raises:
            Unavailable: It is too old, or it is no Kubo.
        """
        try:
            answer = await self.command("version")
        except (BadDocument, TooLarge) as exc:
            raise Unavailable(f"{self.name} does not answer as Kubo does") from exc
        text = str(answer.get("Version", "")) if isinstance(answer, dict) else ""
        numbers = re.match(r"(\d{1,4})\.(\d{1,4})\.", text)
        if numbers is None:
            raise Unavailable(f"{self.name} does not answer as Kubo does")
        if (int(numbers[1]), int(numbers[2])) < MIN_VERSION:
            least = ".".join(map(str, MIN_VERSION))
            raise Unavailable(f"{self.name} is version {text[:40]}, at least {least} is needed")
        return text[:40]

    async def command(self, name: str, *arguments: str, limit_s: float = _COMMAND_S, **options: str) -> Any:
        """Run a command and return its JSON answer, None when it is empty.

        Args:
            name: Such as ``pin/add``.
            limit_s: For all of it, in seconds.

        Raises:
            ParityError: As ``stream``.
            TooLarge: The answer is over 64 MiB.
        """
        data = bytearray()
        with self._limit(name, limit_s):
            async with self.stream(name, *arguments, **options) as pieces:
                async for piece in pieces:
                    data += piece
                    if len(data) > _MAX_JSON_BYTES:
                        raise TooLarge(f"{self.name}: `{name}` answers more than {_MAX_JSON_BYTES} bytes")
        return self._json(name, bytes(data))

    async def lines(self, name: str, *arguments: str, **options: str) -> AsyncGenerator[dict[str, Any]]:
        """Run a command that answers a JSON object a line, and yield them.

        Raises:
            ParityError: As ``stream``.
        """
        async with self.stream(name, *arguments, **options) as pieces:
            rest = b""
            async for piece in pieces:
                *whole, rest = (rest + piece).split(b"\n")
                if len(rest) > _MAX_ERROR_BYTES:
                    raise BadDocument(f"{self.name}: `{name}` answers a line of more than {_MAX_ERROR_BYTES} bytes")
                for line in whole:
                    if line.strip():
                        yield self._object(name, line)
            if rest.strip():
                yield self._object(name, rest)

    @asynccontextmanager
    async def stream(self, name: str, *arguments: str, **options: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Run a command and provide its answer as it comes.

        Raises:
            NotFound: Kubo has not got it.
            Forbidden: Kubo wants another authorization.
            StorageFull: Its disk or its repository is full.
            Unreachable: It does not answer.
            Unavailable: It complains; the message says of what.
        """
        request = self._http.build_request("POST", self._address(name, arguments, options))
        async with self._answer(name, request) as response:
            yield response.aiter_raw()

    async def upload(self, name: str, body: AsyncIterable[bytes], **options: str) -> Any:
        """Send one file to a command and return its JSON answer.

        Raises:
            ParityError: As ``stream``; and what ``body`` raised.
        """
        request = self._http.build_request(
            "POST",
            self._address(name, (), options),
            content=_multipart(body),
            headers={"content-type": f"multipart/form-data; boundary={_BOUNDARY}"},
            timeout=httpx.Timeout(_STALL_S, connect=_CONNECT_S, read=_UPLOAD_END_S),
        )
        async with self._answer(name, request) as response:
            data = b"".join([piece async for piece in _capped(response, _MAX_ERROR_BYTES)])
        return self._json(name, data)

    async def pin_add(self, cid: Cid) -> None:
        """Pin content in Kubo itself, which fetches what it has not got; idempotent."""
        await self.command("pin/add", str(cid), limit_s=_UPLOAD_END_S, progress="false")

    async def pin_rm(self, cid: Cid) -> bool:
        """Take a pin of Kubo's own off; return whether there was one."""
        try:
            await self.command("pin/rm", str(cid))
        except Unavailable as exc:
            if "not pinned" in exc.message:
                return False
            raise
        return True

    async def pins(self) -> list[Cid]:
        """Return what Kubo itself has pinned as a whole."""
        answer = await self.command("pin/ls", type="recursive", quiet="true")
        keys = answer.get("Keys", {}) if isinstance(answer, dict) else {}
        return [Cid.parse(str(key)) for key in keys or {}]

    # -- one request -----------------------------------------------------------------------------------------------

    def _address(self, name: str, arguments: tuple[str, ...], options: Mapping[str, str]) -> str:
        pairs = [("arg", each) for each in arguments] + [(key.replace("_", "-"), options[key]) for key in options]
        return f"{self.url}/api/v0/{name}?{urlencode(pairs, quote_via=quote)}"

    @asynccontextmanager
    async def _answer(self, name: str, request: httpx.Request) -> AsyncGenerator[httpx.Response]:
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    said = b"".join([piece async for piece in _capped(response, _MAX_ERROR_BYTES)])
                    raise self._problem(name, response.status_code, said)
                yield response
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as exc:
            raise Unreachable(f"{self.name}, `{name}`: {type(exc).__name__} {exc}".rstrip()) from exc

    def _limit(self, name: str, limit_s: float) -> _Deadline:
        return _Deadline(limit_s, f"{self.name}: `{name}` did not end within {limit_s:g} s")

    def _problem(self, name: str, status: int, said: bytes) -> ParityError:
        if status in (401, 403):
            return Forbidden(
                f"{self.name} refuses `{name}` ({status})",
                hint="Set the authorization that its API.Authorizations ask for.",
            )
        if status != 500:
            return Unavailable(f"{self.name} does not answer as Kubo does: `{name}` gives status {status}")
        try:
            text = str(self._object(name, said).get("Message", ""))
        except BadDocument:
            text = said.decode(errors="replace")
        words = text.lower()
        shown = f"{self.name}, `{name}`: {text[:_MAX_COMPLAINT_CHARS]!r}"
        if any(each in words for each in _ABSENT):
            return NotFound(shown)
        if any(each in words for each in _FULL):
            return StorageFull(shown)
        return Unavailable(shown)

    def _json(self, name: str, data: bytes) -> Any:
        if not data.strip():
            return None
        try:
            check_depth(data, _MAX_JSON_DEPTH)  # libraries raise the recursion limit beyond what the C stack holds
            return json.loads(data)
        except (ValueError, BadDocument) as exc:
            raise BadDocument(f"{self.name}: `{name}` answers something that is not JSON") from exc

    def _object(self, name: str, line: bytes) -> dict[str, Any]:
        found = self._json(name, line)
        if not isinstance(found, dict):
            raise BadDocument(f"{self.name}: `{name}` answers a line that is not an object")
        return found


class _Deadline:
    """A time limit whose end is one of our errors."""

    def __init__(self, limit_s: float, message: str) -> None:
        self._scope = anyio.fail_after(limit_s)
        self._message = message

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return self._scope.__exit__(kind, value, trace)
        except TimeoutError as exc:
            raise Unreachable(self._message) from exc


async def _capped(response: httpx.Response, max_bytes: int) -> AsyncIterator[bytes]:
    came = 0
    async for piece in response.aiter_raw():
        yield piece
        came += len(piece)
        if came >= max_bytes:
            return


async def _multipart(body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield ``body`` as the one file of a form, as Kubo takes uploads."""
    yield (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="blocks.car"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    async for piece in body:
        yield piece
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()
