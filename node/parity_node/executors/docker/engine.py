"""The Docker engine: every call that has one answer, through the ``docker`` package, in worker threads.

This is the only module that imports the package, and it does so when the first engine is opened. Its exceptions end
here: what leaves is ``Unreachable`` (no answer, or none in time), ``NotFound``, ``Conflict``, ``BadField`` (the request is
wrong) or ``ExecutionFailed``. Answers that come while a container runs are in ``streams``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import anyio
import anyio.to_thread

from parity_node.executors.docker.lifeline import Lifeline
from parity_node.executors.docker.request import LABEL_PREFIX, ContainerRequest
from parity_protocol.errors import BadField, Conflict, ExecutionFailed, FailureReason, NotFound, Unreachable

__all__ = ["DEFAULT_SOCKET", "Container", "Engine", "EngineFacts", "Image", "socket_of"]

DEFAULT_SOCKET = Path("/var/run/docker.sock")
LEAST_VERSION = (20, 10)
OWN_CONTAINERS = "parity-"  # what the names of this node's containers begin with
_MAX_CALLS = 32  # at the same time; each has a thread
_MAX_MESSAGE = 500

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine says of itself."""

    version: str
    api_version: str
    runtimes: frozenset[str]
    cgroup_driver: str  # cgroupfs, systemd, none
    storage_driver: str
    architecture: str  # as images name it
    root: Path  # where images lie
    is_rootless: bool
    init_binary: str

    @property
    def problem(self) -> str:
        """Why this engine cannot be used; empty when it can."""
        numbers = self.version.split(".")[:2]
        if not all(part.isdigit() for part in numbers) or tuple(int(part) for part in numbers) < LEAST_VERSION:
            least = ".".join(str(part) for part in LEAST_VERSION)
            return f"Docker {self.version} is too old: {least} or newer is needed"
        return ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the engine has."""

    id: str  # sha256:…
    repo_digests: tuple[str, ...]  # name@sha256:…
    volumes: tuple[str, ...]
    env: tuple[str, ...]
    has_command: bool
    size: int  # bytes
    architecture: str
    system: str
    layers: tuple[str, ...]  # sha256:… of each layer's uncompressed tar


@dataclass(frozen=True, slots=True)
class Container:
    """A container as it is now."""

    id: str
    status: str  # created, running, paused, restarting, removing, exited, dead
    pid: int  # of its first process; 0 when it does not run
    exit_code: int
    is_oom_killed: bool
    error: str
    labels: Mapping[str, str]  # ours, without their prefix
    finished_at: float | None = None  # unix seconds; None when it runs, or never has

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in {"exited", "dead", "removing"}


def socket_of(environ: Mapping[str, str]) -> tuple[Path | None, str]:
    """Return the engine's socket and an empty text, or None and the reason."""
    host = environ.get("DOCKER_HOST", "")
    if not host:
        return DEFAULT_SOCKET, ""
    parts = urlsplit(host)
    if parts.scheme != "unix" or not parts.path:
        return None, f"DOCKER_HOST is {host}: only an engine on this machine can be used (unix://…)"
    return Path(parts.path), ""


class Engine:
    """Calls of the Engine API.

    Args:
        path: The engine's socket.
        timeout_s: Longest time of one call, in seconds.
    """

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self.socket = path
        self.timeout_s = timeout_s
        self._client: Any = None
        self._lifeline = Lifeline(path)
        self.importing = anyio.Lock()  # two imports to one name would leave an image without a name
        self._opening = anyio.Lock()
        self._limiter: anyio.CapacityLimiter | None = None

    async def facts(self) -> EngineFacts:
        """Return what the engine says of itself."""
        info, version = await self._call(lambda client: (client.info(), client.version()))
        return EngineFacts(
            version=str(version.get("Version", "")),
            api_version=str(version.get("ApiVersion", "")),
            runtimes=frozenset(info.get("Runtimes") or {}),
            cgroup_driver=str(info.get("CgroupDriver", "")),
            storage_driver=str(info.get("Driver", "")),
            architecture=str(version.get("Arch", "")),
            root=Path(str(info.get("DockerRootDir") or "/var/lib/docker")),
            is_rootless=any("rootless" in str(option) for option in info.get("SecurityOptions") or ()),
            init_binary=str(info.get("InitBinary", "")),
        )

    def instance(self) -> str:
        """Return what changes when the engine is started again; empty when nobody listens."""
        return self._lifeline.instance()

    # -- containers ----------------------------------------------------------------------------------------------

    async def create(self, request: ContainerRequest, *, name: str, seccomp: str) -> str:
        """Make a container and return its id.

        Raises:
            Conflict: There is one of this name.
            NotFound: The image is gone.
            BadField: The engine does not take the request, for instance because the image has no command.
        """
        body = request.body(seccomp)
        answer = await self._call(lambda client: client.create_container_from_config(body, name))
        return str(answer["Id"])

    async def start(self, container: str) -> None:
        """Start a container; one that runs already stays as it is.

        Raises:
            BadField: Its program cannot be executed.
        """
        await self._call(lambda client: client.start(container))

    async def inspect(self, name: str) -> Container:
        """Return a container as it is now.

        Raises:
            NotFound: There is none of this name or id.
        """
        found = await self._call(lambda client: client.inspect_container(name))
        state = found["State"]
        return Container(
            id=str(found["Id"]),
            status=str(state.get("Status", "")),
            pid=int(state.get("Pid") or 0),
            exit_code=int(state.get("ExitCode") or 0),
            is_oom_killed=bool(state.get("OOMKilled")),
            error=str(state.get("Error") or ""),
            labels=_own_labels(found["Config"].get("Labels")),
            finished_at=_unix_seconds(str(state.get("FinishedAt") or "")),
        )

    async def kill(self, container: str) -> None:
        """Kill it with SIGKILL; nothing if it does not run or is not there."""
        await self._quietly(lambda client: client.kill(container))

    async def stop(self, container: str, *, grace_s: int) -> None:
        """Ask it to end, and kill it ``grace_s`` seconds later; nothing if it does not run or is not there."""
        await self._quietly(lambda client: client.stop(container, timeout=grace_s))

    async def remove(self, container: str) -> None:
        """Kill and remove it with its volumes; nothing if it is not there."""
        await self._quietly(lambda client: client.remove_container(container, v=True, force=True))

    async def containers(self, **labels: str) -> dict[str, Mapping[str, str]]:
        """Return the containers, running or not, that have a name and all these labels of ours: id → labels.

        Labels alone prove nothing: an image brings its own to every container that is made of it, the operator's too.
        """
        wanted = [f"{LABEL_PREFIX}{name}={value}" for name, value in labels.items()]
        found = await self._call(lambda client: client.containers(all=True, filters={"label": wanted}))
        return {
            str(each["Id"]): _own_labels(each.get("Labels"))
            for each in found
            if any(str(name).startswith(f"/{OWN_CONTAINERS}") for name in each.get("Names") or ())
        }

    async def stats(self, container: str) -> Mapping[str, Any]:
        """Return one sample of its counters, as the engine words it; empty when it does not run."""
        try:
            found = await self._call(lambda client: client.stats(container, stream=False, one_shot=True))
        except (NotFound, Conflict):
            return {}
        return found if isinstance(found, dict) else {}

    # -- images --------------------------------------------------------------------------------------------------

    async def image(self, reference: str) -> Image:
        """Return an image that the engine has.

        Raises:
            NotFound: It has none of this name, digest or id.
        """
        found = await self._call(lambda client: client.inspect_image(reference))
        config = found.get("Config") or {}
        return Image(
            id=str(found["Id"]),
            repo_digests=tuple(found.get("RepoDigests") or ()),
            volumes=tuple(sorted(config.get("Volumes") or {})),
            env=tuple(config.get("Env") or ()),
            has_command=bool(config.get("Cmd") or config.get("Entrypoint")),
            size=int(found.get("Size") or 0),
            architecture=str(found.get("Architecture", "")),
            system=str(found.get("Os", "")),
            layers=tuple((found.get("RootFS") or {}).get("Layers") or ()),
        )

    async def images(self) -> dict[str, int]:
        """Return the bytes of every image that the engine has, by id."""
        found = await self._call(lambda client: client.images())
        return {str(each["Id"]): int(each.get("Size") or 0) for each in found}

    async def find_image(self, reference: str) -> str | None:
        """Return the id of the image that ``reference`` names, or None."""
        try:
            return (await self.image(reference)).id
        except NotFound:
            return None

    async def remove_image(self, image_id: str, reference: str) -> bool:
        """Give back an image that this node brought as ``reference``; return False while a container uses it.

        Nothing else that names it is touched: an image that somebody else named too is theirs from now on.
        """
        try:
            found = await self._call(lambda client: client.inspect_image(image_id))
            names = {*(found.get("RepoTags") or ()), *(found.get("RepoDigests") or ())}
            own = {name for name in names if _familiar(name) == _familiar(reference)}
            if names - own:
                # A digest's name is shared by whoever pulled it; a tag is ours alone.
                own = {name for name in own if "@" not in name}
            for name in own or (() if names else (image_id,)):
                await self._call(partial(_remove_image, name=name))
        except NotFound:
            return True
        except Conflict:
            return False
        return True

    async def digest_of(self, reference: str) -> str:
        """Ask the registry, without credentials, what a reference names now; return its digest, ``sha256:…``.

        Raises:
            NotFound: The registry has no such image, or not for everybody.
            ExecutionFailed: It cannot be asked.
        """
        found = await self._call(lambda client: client.inspect_distribution(reference))
        return str(found["Descriptor"]["digest"])

    async def import_image(self, data: bytes, *, repository: str, tag: str) -> str:
        """Make an image of a file system, a tar, and return its id."""
        answer = await self._call(lambda client: client.import_image_from_data(data, repository=repository, tag=tag))
        last = str(answer).strip().splitlines()[-1]
        found = last.rpartition('"status":"')[2].partition('"')[0]
        if not found.startswith("sha256:"):
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, f"the image was not imported: {last[-300:]}")
        return found

    async def load_image(self, archive: Path) -> None:
        """Load a checked ``docker save`` archive.

        Raises:
            ExecutionFailed: The engine refuses it (``data_invalid``).
        """

        def load(client: Any) -> None:
            with archive.open("rb") as file:
                for event in client.load_image(file, quiet=True):
                    if "error" in event:
                        raise ExecutionFailed(
                            FailureReason.DATA_INVALID, f"the engine refuses the image: {event['error'][:_MAX_MESSAGE]}"
                        )

        await self._call(load)

    async def pull(self, name: str, reference: str, *, on_event: Callable[[Mapping[str, Any]], None]) -> None:
        """Fetch an image from its registry, with no credentials.

        Args:
            name: Without tag and digest.
            reference: A tag or ``sha256:…``.
            on_event: Gets the engine's progress, in a worker thread; an exception of it ends the pull.

        Raises:
            NotFound: The registry has no such image.
        """

        def pull(client: Any) -> None:
            url = f"{client.base_url}/v{client.api_version}/images/create?" + urlencode(
                {"fromImage": name, "tag": reference}
            )
            with client.post(url, stream=True, timeout=self.timeout_s) as answer:
                client._raise_for_status(answer)  # noqa: SLF001 - the package's own translation of a refusal
                for event in _events(client, answer):
                    if "error" in event:
                        raise _refused_pull(str(event["error"]))
                    on_event(event)

        await self._call(pull)

    async def close(self) -> None:
        """Close the connections; idempotent."""
        self._lifeline.close()
        client, self._client = self._client, None
        if client is not None:
            await anyio.to_thread.run_sync(client.close)

    # -- small things --------------------------------------------------------------------------------------------

    async def _quietly(self, call: Callable[[Any], Any]) -> None:
        try:
            await self._call(call)
        except (NotFound, Conflict):
            return

    async def _call(self, call: Callable[[Any], T]) -> T:
        """Make a call in a thread. A cancelled caller does not wait for it: a call ends by itself in bounded time."""
        async with self._opening:
            if self._client is None:
                self._client = await anyio.to_thread.run_sync(self._open, abandon_on_cancel=True)
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_MAX_CALLS)
        return await anyio.to_thread.run_sync(
            self._translated, call, self._client, limiter=self._limiter, abandon_on_cancel=True
        )

    def _open(self) -> Any:
        import docker
        from docker.auth import AuthConfig

        try:
            self.socket.stat()
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise Unreachable(f"no Docker engine: there is no {self.socket}") from exc
        except OSError as exc:  # a folder above it is closed
            raise Unreachable(f"the Docker engine at {self.socket} may not be used by this user") from exc

        def connect(_: object) -> Any:
            client = docker.APIClient(
                base_url=f"unix://{self.socket}", version="auto", timeout=self.timeout_s, max_pool_size=_MAX_CALLS
            )
            # The operator's own ~/.docker must not matter: no stranger's task pulls with their passwords or proxies.
            client.trust_env = False
            client._auth_configs = AuthConfig({})  # noqa: SLF001 - there is no argument for it
            client._general_configs = {}  # noqa: SLF001
            return client

        return self._translated(connect, None)

    def _translated(self, call: Callable[[Any], T], client: Any) -> T:
        import docker.errors
        import requests.exceptions
        import urllib3.exceptions

        try:
            return call(client)
        except docker.errors.APIError as exc:
            raise _refusal(exc.status_code, str(exc.explanation or exc)) from exc
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as exc:
            raise Unreachable(f"the Docker engine did not answer within {self.timeout_s:g} s") from exc
        except PermissionError as exc:
            raise Unreachable(f"{self.socket} may not be used by this user") from exc
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            text = "may not be used by this user" if "Permission denied" in str(exc) else "does not answer"
            raise Unreachable(f"the Docker engine at {self.socket} {text}") from exc
        except docker.errors.DockerException as exc:
            if "Permission denied" in str(exc):
                raise Unreachable(f"the Docker engine at {self.socket} may not be used by this user") from exc
            raise Unreachable(f"the Docker engine at {self.socket} does not answer: {str(exc)[:_MAX_MESSAGE]}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise Unreachable(f"the Docker engine's answer cannot be read: {str(exc)[:_MAX_MESSAGE]}") from exc


def _refusal(status: int | None, text: str) -> NotFound | Conflict | BadField | ExecutionFailed:
    text = " ".join(text.split())[:_MAX_MESSAGE]
    match status:
        case 401 | 403 | 404:
            return NotFound(text)
        case 409 | 304:
            return Conflict(text)
        case 400:
            return BadField(text)
        case _:
            return ExecutionFailed(FailureReason.SANDBOX_FAILED, f"the Docker engine: {text}")


def _refused_pull(text: str) -> NotFound | ExecutionFailed | Unreachable:
    text = " ".join(text.split())[:_MAX_MESSAGE]
    lower = text.lower()
    if "not found" in lower or "manifest unknown" in lower or "denied" in lower or "no basic auth" in lower:
        return NotFound(text)
    if "no space left" in lower:
        return ExecutionFailed(FailureReason.DISK_FULL, text)
    return Unreachable(text)


def _events(client: Any, answer: Any) -> Iterator[dict[str, Any]]:
    for event in client._stream_helper(answer, decode=True):  # noqa: SLF001 - splits the stream of JSON documents
        if isinstance(event, dict):
            yield event


def _remove_image(client: Any, *, name: str) -> None:
    client.remove_image(name, noprune=False)


def _familiar(reference: str) -> str:
    """Return a reference as the engine lists it."""
    return reference.removeprefix("docker.io/").removeprefix("library/")


def _unix_seconds(text: str) -> float | None:
    """Read a time of the engine, RFC 3339 with nanoseconds; None when it is none, or the year 1, which stands for never."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo is not None and found.year > 1 else None


def _own_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    return {
        name.removeprefix(LABEL_PREFIX): value
        for name, value in (labels or {}).items()
        if name.startswith(LABEL_PREFIX)
    }
