"""Does a task fit on the disks of this node, beside what runs already? Pure: what is free is passed in."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields

from parity_node.disk import Volume
from parity_protocol.policy import Denial
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec, input_bytes

__all__ = ["DiskNeed", "DiskRoom", "need_of"]

UNLIMITED = 1 << 62
_DOCUMENT_BYTES = 1 << 20  # the result of a kind whose tasks choose no size


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """What executions may still write in bytes, by the folder that it goes to."""

    cache: int = 0  # inputs as verified blobs, an image's archive included
    copies: int = 0  # the task's own copies of its inputs, in its execution's folder
    executions: int = 0  # its work space and its output
    results: int = 0  # the output while it waits for its upload
    images: int = 0  # what an engine keeps of an archive

    def __add__(self, other: DiskNeed) -> DiskNeed:
        return DiskNeed(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __sub__(self, other: DiskNeed) -> DiskNeed:
        return DiskNeed(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))

    def inputs_on(self, names: Iterable[str]) -> int:
        """Return the bytes of inputs for the folders of one file system."""
        parts = {"cache": self.cache, "executions": self.copies, "images": self.images}
        return sum(parts.get(name, 0) for name in names)

    def on(self, names: Collection[str]) -> int:
        """Return all bytes for the folders of one file system."""
        output = {"executions": self.executions, "results": self.results}  # both: a folder is packed for its upload
        return self.inputs_on(names) + sum(output.get(name, 0) for name in names)


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """What there is.

    Attributes:
        volumes: The node's file systems, as measured now.
        floor_bytes: Stays free on each of them.
        evictable_bytes: Of the cache, counted as free where the cache lies.
        cache_left_bytes: What may come into the cache beside what must stay in it.
        results_left_bytes: What may come to the results that wait.
        cached_bytes: How much of this task's inputs need not be fetched.
    """

    volumes: tuple[Volume, ...]
    floor_bytes: int = 0
    evictable_bytes: int = 0
    cache_left_bytes: int = UNLIMITED
    results_left_bytes: int = UNLIMITED
    cached_bytes: int = 0

    def denials(self, need: DiskNeed, committed: DiskNeed) -> list[Denial]:
        """Return why a task cannot come; an empty list when it fits.

        A task that would fit without its inputs is refused by the rule ``disk.inputs_do_not_fit``, else by ``disk``.

        Args:
            need: Of the task.
            committed: What the executions that run now may still write.
        """
        incoming = max(0, need.cache - self.cached_bytes)
        if incoming + committed.cache > self.cache_left_bytes:
            left = max(0, self.cache_left_bytes - committed.cache)
            return [_inputs(f"brings {incoming} bytes of input, the cache may take {left} more")]
        if need.results + committed.results > self.results_left_bytes:
            left = max(0, self.results_left_bytes - committed.results)
            return [
                Denial(
                    "disk.results_do_not_fit",
                    f"may bring a result of {need.results} bytes, {left} more may wait for their upload",
                )
            ]
        for volume in self.volumes:
            has_cache = "cache" in volume.names
            here = self.cached_bytes if has_cache else 0
            free = volume.free_bytes - self.floor_bytes - committed.on(volume.names)
            free += self.evictable_bytes if has_cache else 0
            wanted = max(0, need.on(volume.names) - here)
            if wanted > max(0, free):
                text = f"may need {wanted} bytes on the disk of {', '.join(volume.names)}, {max(0, free)} are free"
                inputs = max(0, need.inputs_on(volume.names) - here)
                return [_inputs(text) if inputs and wanted - inputs <= free else Denial("disk", text)]
        return []


def need_of(spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec) -> DiskNeed:
    """Return what one execution of a task may write at most."""
    inputs, archive = input_bytes(spec), 0
    output = _DOCUMENT_BYTES
    if isinstance(spec, CommandSpec | DockerSpec):
        output = spec.max_output_bytes + (spec.output.max_bytes if spec.output is not None else 0)
    if isinstance(spec, DockerSpec) and spec.image_tar is not None:
        archive = inputs - input_bytes(spec.model_copy(update={"image_tar": None}))
    return DiskNeed(
        cache=inputs,
        copies=inputs - archive,
        executions=spec.resources.disk_bytes + output,
        results=output,
        images=archive,
    )


def _inputs(message: str) -> Denial:
    return Denial("disk.inputs_do_not_fit", message)
