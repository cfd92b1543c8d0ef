"""``--shard``: where each part's data of a sharded session lie, as a person writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from parity_protocol.errors import BadField, ParityError

if TYPE_CHECKING:
    from parity_cli.session_files import SessionFiles
    from parity_client.orders import Source
    from parity_fl.shards import ShardSummary

__all__ = ["ShardFile", "read_shards", "sharded_session", "sources_of", "summaries_of", "table_of"]

MAX_SHARD_BYTES = 128 << 20  # what a node reads of one
FORMS = "a file, cid:CID, local:NAME, or https://…#sha256=HEX"


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A part's data that are here, to be stored at the market, for that part's node alone."""

    path: Path
    size: int  # bytes


def read_shards(texts: Sequence[str]) -> list[ShardFile | Source | str]:
    """Read every ``--shard``; a URL whose size nobody gave is returned as it is.

    Raises:
        BadField: One is none of the forms; the message names it and its part.
    """
    found: list[ShardFile | Source | str] = []
    for part, text in enumerate(texts):
        try:
            found.append(_read(text))
        except (ParityError, ValueError) as exc:
            said = exc.message if isinstance(exc, ParityError) else "it is not one of these"
            raise BadField(
                f"shard {part} ({text[:80]!r}): {said}", hint=f"A shard is {FORMS}.", field=f"shards.{part}"
            ) from exc
    return found


def _read(text: str) -> ShardFile | Source | str:
    from pydantic import ValidationError

    from parity_blobs import Cid
    from parity_protocol.needs import CidInput, HttpsInput, ShardInput

    head, _, rest = text.partition(":")
    try:
        if head == "cid":
            return CidInput(cid=str(Cid.parse(rest)), max_bytes=MAX_SHARD_BYTES)
        if head == "local":
            return ShardInput(shard=rest)
        if head == "https":
            url, _, fragment = text.partition("#")
            said = parse_qs(fragment, strict_parsing=True) if fragment else {}
            if "sha256" not in said:
                raise BadField("a URL needs the digest of what lies there: #sha256=HEX")
            if "size" not in said:
                HttpsInput(url=url, sha256=said["sha256"][0].lower(), size=0)
                return text
            return HttpsInput(url=url, sha256=said["sha256"][0].lower(), size=int(said["size"][0]))
    except ValidationError as exc:
        raise BadField(str(exc.errors(include_url=False)[0]["msg"])) from exc
    if head == "http":
        raise BadField("only https: what comes over http can be changed on its way")
    path = Path(text).expanduser()
    if not path.is_file():
        raise BadField("there is no such file")
    size = path.stat().st_size
    if not 0 < size <= MAX_SHARD_BYTES:
        raise BadField(f"the file has {size} bytes, a shard has 1 to {MAX_SHARD_BYTES}")
    if not os.access(path, os.R_OK):
        raise BadField("the file cannot be read")
    return ShardFile(path, size)


async def sources_of(files: SessionFiles, shards: Sequence[ShardFile | Source | str]) -> list[Source]:
    """Return the sources to sign: files are added to ``files`` for their parts alone; a URL is asked for its size.

    Raises:
        ParityError: A file cannot be read, or a URL does not say its size.
    """
    from parity_client.remote import content_length
    from parity_protocol.needs import CidInput, HttpsInput

    found: list[Source] = []
    for part, shard in enumerate(shards):
        if isinstance(shard, ShardFile):
            cid = await files.name(shard.path, role=f"shard {part}")
            found.append(CidInput(cid=cid, max_bytes=shard.size))
        elif isinstance(shard, str):
            url, _, fragment = shard.partition("#")
            size = await content_length(url)
            if size is None:
                raise BadField(
                    f"shard {part} ({urlsplit(url).netloc}): the server does not say how long it is",
                    hint="Add its size: …#sha256=HEX&size=BYTES",
                    field=f"shards.{part}",
                )
            found.append(HttpsInput(url=url, sha256=parse_qs(fragment)["sha256"][0].lower(), size=size))
        else:
            found.append(shard)
    return found


def summaries_of(spec: Mapping[str, Any], shards: Sequence[ShardFile | Source | str]) -> list[ShardSummary | None]:
    """Return what the nodes will say of the shards that are files here, and see that these fit together.

    Raises:
        BadField: A file cannot be used, or does not fit the others; the message names the shard.
    """
    from parity_fl.data import load_dataset
    from parity_fl.partition_config import SHARDED, PartitionConfig
    from parity_fl.shard_plans import plan_shards
    from parity_fl.shards import summarize

    model = spec.get("model_config") or {}
    regression = spec.get("model_type") == "linear_regression" or model.get("task") == "regression"
    data_format = str(spec.get("data_format", "csv"))
    found: list[ShardSummary | None] = []
    for part, shard in enumerate(shards):
        if not isinstance(shard, ShardFile):
            found.append(None)
            continue
        try:
            dataset = load_dataset(shard.path.read_bytes(), data_format)
            found.append(summarize(dataset, part, classification=not regression))
        except ParityError as exc:
            raise BadField(f"shard {part} ({shard.path}): {exc.message}", field=f"shards.{part}") from exc
    known = [one for one in found if one is not None]
    if len(known) == len(found):
        cut = spec.get("partition_config") or {}
        config = PartitionConfig(
            strategy=SHARDED,
            min_samples=int(cut.get("min_samples", 1)),
            total_parts=len(known),
            holdout_fraction=float(cut.get("holdout_fraction", spec.get("holdout_fraction", 0.2))),
        )
        plan_shards(config, known, seed="0" * 64, classification=not regression)
    return found


def sharded_session(spec: Mapping[str, Any], parts: int) -> dict[str, Any]:
    """Return a session's spec without what only a partitioned one has."""
    cut = {
        name: value
        for name, value in (spec.get("partition_config") or {}).items()
        if name in ("min_samples", "holdout_fraction")
    }
    rest = {name: value for name, value in spec.items() if name not in ("dataset_cid", "partition_config")}
    rounds = dict(spec.get("rounds_config") or {})
    if isinstance(rounds.get("min_available_clients"), int):
        rounds["min_available_clients"] = min(rounds["min_available_clients"], parts)
    return {**rest, "data_mode": "sharded", "partition_config": cut, "rounds_config": rounds}


def table_of(
    shards: Sequence[ShardFile | Source | str], summaries: Sequence[ShardSummary | None]
) -> list[dict[str, Any]]:
    """Return what is known of each part before anything is sent, for people and programs."""
    rows: list[dict[str, Any]] = []
    for part, (shard, summary) in enumerate(zip(shards, summaries, strict=True)):
        row: dict[str, Any] = {"part": part, "source": _shown(shard)}
        if isinstance(shard, ShardFile):
            row["bytes"] = shard.size
        if summary is not None:
            row |= {"rows": summary.n_rows, "features": summary.n_features, "classes": dict(summary.class_counts)}
        rows.append(row)
    return rows


def _shown(shard: ShardFile | Source | str) -> str:
    from parity_protocol.needs import CidInput, HttpsInput, ShardInput

    match shard:
        case ShardFile():
            return str(shard.path)
        case CidInput():
            return f"cid:{shard.cid}"
        case HttpsInput():
            return shard.url
        case ShardInput():
            return f"local:{shard.shard}"
        case _:
            return shard.partition("#")[0]
