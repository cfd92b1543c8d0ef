"""What running executions use: neither a data set nor an image that is in use is evicted."""

from __future__ import annotations

from collections.abc import Iterable

from parity_blobs.cid import CODEC_RAW, Cid
from parity_protocol.needs import CidInput, HttpsInput
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec

__all__ = ["Uses", "names_of"]


class Uses:
    """Names of content by execution; a name is a CID, an image id, or an image reference."""

    def __init__(self) -> None:
        self._by_execution: dict[str, frozenset[str]] = {}
        self._names: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Everything in use now; a value of its own, so that another thread may look at it."""
        return self._names

    def take(self, execution_id: str, names: Iterable[str]) -> None:
        """Note that an execution uses ``names``, beside those it used already."""
        self._by_execution[execution_id] = self._by_execution.get(execution_id, frozenset()) | frozenset(names)
        self._names = frozenset().union(*self._by_execution.values())

    def drop(self, execution_id: str) -> None:
        """Note that an execution has ended; idempotent."""
        if self._by_execution.pop(execution_id, None) is not None:
            self._names = frozenset().union(*self._by_execution.values())


def names_of(spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec) -> frozenset[str]:
    """Return the CIDs and the image that a task names."""
    names = {item.cid for item in spec.inputs if isinstance(item, CidInput)}
    # A small https input is one raw block, whose CID is its digest.
    names |= {
        str(Cid(1, CODEC_RAW, bytes.fromhex(item.sha256))) for item in spec.inputs if isinstance(item, HttpsInput)
    }
    if isinstance(spec, DockerSpec):
        names.add(spec.image)
        if isinstance(spec.image_tar, CidInput):
            names.add(spec.image_tar.cid)
    elif isinstance(spec, FederatedLearningSpec) and spec.dataset_cid:
        names.add(spec.dataset_cid)
    return frozenset(names)
