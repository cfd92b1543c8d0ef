"""From what a task calls its image to an image that the engine has, by its id.

An image comes from its registry, without credentials and by its digest, so that no name in the engine moves; or from an
archive among the task's data. What the operator's own engine holds beside that is the operator's: a stranger cannot run it
by guessing its name, unless the operator lends it.
What a node brings is written into its ledger first, so that the cap on images holds and nobody else's image is removed.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
import structlog

from parity_node.data import InputSource
from parity_node.executors.docker.archive import rewrite_archive
from parity_node.executors.docker.engine import Engine, Image
from parity_node.executors.folder import JobFolder
from parity_node.waiting import within
from parity_protocol.clock import Clock
from parity_protocol.errors import ExecutionFailed, FailureReason, NotFound
from parity_protocol.needs import CidInput, HttpsInput, split_image
from parity_protocol.task import DockerSpec

__all__ = ["PREPARE_LOG", "ImageLedger", "Images", "Resolved"]

PREPARE_LOG = "prepare.log"  # what the submitter sees of a pull; not part of the result
PULL_TIMEOUT_S = 1_800.0
TAG_S = 300.0  # for which a registry's answer about a tag is believed
_SHOW_S = 2.0  # between two lines of progress
_MAX_LOG_BYTES = 65_536
_GIB = 1 << 30

log = structlog.get_logger(__name__)


class ImageLedger(Protocol):
    """What of the node's images is written down; ``parity_node.cache.ImageCache`` is one."""

    async def serve(self, engine: Engine) -> None:
        """Use an engine from now on."""
        ...

    def expect(self, reference: str) -> None:
        """Note that an image is about to be brought."""
        ...

    async def brought(self, image_id: str, *, reference: str, size_bytes: int, execution_id: str) -> None:
        """Take it into the ledger."""
        ...

    def given_up(self, reference: str) -> None:
        """Note that it did not come."""
        ...

    def has(self, image_id: str) -> bool:
        """Whether this node brought it, rather than somebody else who uses the engine."""
        ...

    def used(self, image_id: str, *, execution_id: str) -> None:
        """Note that an execution uses an image."""
        ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """The image of a task."""

    image: Image
    digest: str  # sha256:…, the repository's where there is one, else the image's id


class Images:
    """Finds, pulls and loads.

    Args:
        ledger: None keeps no account; for tests.
        max_bytes: Of one image: what its layers take in the registry, or unpacked in an archive.
        floor_bytes: Free space that a pull must leave on the engine's disk.
        local: Patterns of the operator's own images that tasks may use by name.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: InputSource,
        *,
        clock: Clock,
        ledger: ImageLedger | None,
        max_bytes: int,
        floor_bytes: int,
        local: Sequence[str] = (),
    ) -> None:
        self._local = tuple(local)
        self._tags: dict[str, tuple[str, float]] = {}  # digest, and Clock.monotonic() of the answer
        self._engine = engine
        self._inputs = inputs
        self._clock = clock
        self._ledger = ledger
        self._max_bytes = max_bytes
        self._floor_bytes = floor_bytes
        self._bringing: dict[str, anyio.Lock] = {}  # so that the tasks of one image bring it once

    async def resolve(self, spec: DockerSpec, folder: JobFolder, *, execution_id: str, root: Path) -> Resolved:
        """Return the task's image, brought here if it was not.

        Args:
            folder: Gets the progress, and an archive for as long as it is read.
            root: Where the engine keeps images.

        Raises:
            ExecutionFailed: It cannot be had; the reason says whose fault that is.
            Unreachable: The engine does not answer.
        """
        if spec.image_tar is not None:
            resolved = await self._from_archive(spec, spec.image_tar, folder, execution_id)
        else:
            resolved = await self._from_registry(spec.image, folder, execution_id, root)
        if self._ledger is not None:
            self._ledger.used(resolved.image.id, execution_id=execution_id)
        return resolved

    async def _from_registry(self, reference: str, folder: JobFolder, execution_id: str, root: Path) -> Resolved:
        if any(fnmatchcase(reference, pattern) for pattern in self._local):
            try:
                image = await self._engine.image(reference)
            except NotFound:
                pass
            else:
                return Resolved(image, _digest(reference, image))
        name, _, digest = split_image(reference)
        digest = digest or await self._digest_now(reference)
        exact = f"{name}@{digest}"
        async with self._alone(exact):
            try:
                image = await self._engine.image(exact)
            except NotFound:
                image = await self._pull(name, digest, folder, execution_id, root)
            else:
                if self._ledger is None or not self._ledger.has(image.id):
                    await self._digest_now(
                        exact
                    )  # the operator's own: for a stranger only if its registry gives it to all
        return Resolved(image, digest)

    async def _digest_now(self, reference: str) -> str:
        """Return what a tag names in its registry, asked at most once in ``TAG_S``."""
        now = self._clock.monotonic()
        known = self._tags.get(reference)
        if known is not None and now - known[1] < TAG_S:
            return known[0]
        try:
            digest = await self._engine.digest_of(reference)
        except (NotFound, ExecutionFailed) as exc:
            raise ExecutionFailed(FailureReason.DATA_UNAVAILABLE, f"image {reference}: {exc.message}") from exc
        self._tags = {key: value for key, value in self._tags.items() if now - value[1] < TAG_S}
        self._tags[reference] = (digest, now)
        return digest

    async def _pull(self, name: str, digest: str, folder: JobFolder, execution_id: str, root: Path) -> Image:
        reference = f"{name}@{digest}"
        progress = _Progress(
            folder.path / PREPARE_LOG, reference, max_bytes=self._max_bytes, root=root, floor_bytes=self._floor_bytes
        )
        if self._ledger is not None:
            self._ledger.expect(reference)
        log.info("image_pull_started", image=reference, execution_id=execution_id)
        try:
            await within(self._clock, PULL_TIMEOUT_S, lambda: self._engine.pull(name, digest, on_event=progress.take))
            image = await self._engine.image(reference)
        except BaseException as exc:
            progress.abandon()
            if self._ledger is not None:
                self._ledger.given_up(reference)
            if isinstance(exc, NotFound):
                raise ExecutionFailed(FailureReason.DATA_UNAVAILABLE, f"image {reference}: {exc.message}") from exc
            if isinstance(exc, TimeoutError):
                text = f"image {reference} did not come within {PULL_TIMEOUT_S:g} s"
                raise ExecutionFailed(FailureReason.DATA_UNAVAILABLE, text) from exc
            raise
        progress.done(image.id)
        log.info("image_pulled", image=reference, id=image.id, size_bytes=image.size, execution_id=execution_id)
        if self._ledger is not None:
            await self._ledger.brought(image.id, reference=reference, size_bytes=image.size, execution_id=execution_id)
        return image

    async def _from_archive(
        self, spec: DockerSpec, source: CidInput | HttpsInput, folder: JobFolder, execution_id: str
    ) -> Resolved:
        raw, checked = folder.path / "image.tar", folder.path / "image.checked.tar"
        async with self._alone(source.cid if isinstance(source, CidInput) else source.sha256):
            try:
                await self._inputs.bring(source, raw)
                found = await anyio.to_thread.run_sync(
                    lambda: rewrite_archive(raw, checked, image=spec.image, max_bytes=self._max_bytes)
                )
                try:
                    image = await self._engine.image(found.id)
                except NotFound:
                    image = await self._load(checked, found.tag, found.id, execution_id)
            finally:
                for path in (raw, checked):
                    path.unlink(missing_ok=True)
        return Resolved(image, image.id)

    async def _load(self, archive: Path, tag: str, image_id: str, execution_id: str) -> Image:
        if self._ledger is not None:
            self._ledger.expect(tag)
        try:
            await self._engine.load_image(archive)
            image = await self._engine.image(image_id)
        except BaseException as exc:
            if self._ledger is not None:
                self._ledger.given_up(tag)
            if isinstance(exc, NotFound):
                raise ExecutionFailed(
                    FailureReason.DATA_INVALID, "the engine made another image of the archive"
                ) from exc
            raise
        log.info("image_loaded", id=image.id, size_bytes=image.size, execution_id=execution_id)
        if self._ledger is not None:
            await self._ledger.brought(image.id, reference=tag, size_bytes=image.size, execution_id=execution_id)
        return image

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        lock = self._bringing.setdefault(name, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._bringing.pop(name, None)


class _Progress:
    """Watches a pull from the thread that reads it: says how far it is, and ends one that takes too much."""

    def __init__(self, path: Path, reference: str, *, max_bytes: int, root: Path, floor_bytes: int) -> None:
        self._path = path
        self._reference = reference
        self._max_bytes = max_bytes
        self._root = root
        self._floor_bytes = floor_bytes
        self._layers: dict[str, tuple[int, int]] = {}  # bytes here and in all, by layer
        self._shown_at = 0.0
        self._is_abandoned = threading.Event()

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event of the engine.

        Raises:
            ExecutionFailed: The image is too large (``policy``'s cap, or the disk's), or nobody waits any more.
        """
        if self._is_abandoned.is_set():
            raise ExecutionFailed(FailureReason.INTERRUPTED, "the pull was given up")
        layer, detail = event.get("id"), event.get("progressDetail")
        if event.get("status") == "Downloading" and isinstance(layer, str) and isinstance(detail, dict):
            self._layers[layer] = (int(detail.get("current") or 0), int(detail.get("total") or 0))
        if sum(total for _, total in self._layers.values()) > self._max_bytes:
            text = f"image {self._reference} is larger than the {self._max_bytes} bytes that are allowed here"
            raise ExecutionFailed(FailureReason.DATA_INVALID, text)
        if time.monotonic() - self._shown_at < _SHOW_S:
            return
        self._shown_at = time.monotonic()
        if _free(self._root) < self._floor_bytes:
            raise ExecutionFailed(FailureReason.DISK_FULL, f"image {self._reference} does not fit on this node's disk")
        here, whole = (sum(column) for column in zip(*self._layers.values(), strict=True)) if self._layers else (0, 0)
        self._say(f"pulling {self._reference}" + (f": {here / 1e6:.1f} of {whole / 1e6:.1f} MB" if whole else ""))

    def done(self, image_id: str) -> None:
        """Note the end."""
        self._say(f"pulled {self._reference}: {image_id}")

    def abandon(self) -> None:
        """End the pull with its next event: its thread cannot be cancelled."""
        self._is_abandoned.set()

    def _say(self, line: str) -> None:
        try:
            with self._path.open("a") as file:
                if file.tell() < _MAX_LOG_BYTES:
                    file.write(f"{line}\n")
        except OSError:
            return


def _digest(reference: str, image: Image) -> str:
    """Return what the receipt says of an image: the repository's digest, under the name that the task used, or the id."""
    name, _, digest = split_image(reference)
    if digest:
        return digest
    split = [each.rpartition("@") for each in image.repo_digests]
    found = [each for repository, _, each in split if _familiar(repository) == _familiar(name)]
    return found[0] if found else image.id


def _familiar(name: str) -> str:
    return name.removeprefix("docker.io/").removeprefix("library/")


def _free(root: Path) -> int:
    try:
        return shutil.disk_usage(root).free
    except OSError:  # another user's folder
        return 1 << 62
