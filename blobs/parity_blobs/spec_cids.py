"""The content identifiers that a task's spec names: checked by whoever submits it, and again by the market."""

from __future__ import annotations

from parity_blobs.cid import CODEC_DAG_PB, Cid
from parity_protocol.errors import BadCid, BadField
from parity_protocol.task import CidInput, CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec

__all__ = ["cids_of_spec", "names_of"]


def cids_of_spec(spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec) -> list[Cid]:
    """Return what a node will have to fetch by CID: inputs, a container's archive, a session's data set.

    Raises:
        BadField: One is no CID that is accepted here; ``field`` names it, such as ``spec.inputs.0.cid``.
    """
    named = [(f"spec.inputs.{at}.cid", item.cid) for at, item in enumerate(spec.inputs) if isinstance(item, CidInput)]
    if isinstance(spec, DockerSpec) and isinstance(spec.image_tar, CidInput):
        named.append(("spec.image_tar.cid", spec.image_tar.cid))
    if isinstance(spec, FederatedLearningSpec) and spec.dataset_cid:
        named.append(("spec.dataset_cid", spec.dataset_cid))
    return [_parse(field, text) for field, text in named]


def names_of(cid: Cid) -> tuple[str, ...]:
    """Return the texts by which the same content is known: as it came first, then in the other version if it has one."""
    if cid.codec != CODEC_DAG_PB or cid.inline is not None:
        return (str(cid),)
    return str(cid), str(Cid(1 - cid.version, cid.codec, cid.digest))


def _parse(field: str, text: str) -> Cid:
    try:
        return Cid.parse(text)
    except BadCid as exc:
        raise BadField(
            f"{field}: {text[:80]!r} is not a CID: {exc.message}",
            hint="`parity data add PATH` stores a file or folder and prints its CID.",
            field=field,
        ) from exc
