"""A ``docker save`` archive from a stranger, looked through before the engine sees it.

What is loaded is an archive of our own, made of the one image that was asked for: its manifest names nothing but a private
tag, so that no other image can lose its name to it, and every member is one that the manifest needs. The engine itself
checks each layer against the digest in the image's configuration, and the configuration's digest is the image's id.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from parity_protocol import strict_json
from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason, ParityError

__all__ = ["LoadableImage", "rewrite_archive"]

MAX_MEMBERS = 4_096
MAX_LAYERS = 128
MAX_LAYER_MEMBERS = 1_000_000
MAX_DEPTH = 16
MAX_NAME_CHARS = 512
MAX_EXTENSION_BYTES = 1 << 20  # of a long name, or of attributes, in front of a member
MAX_DOCUMENT_BYTES = 4 << 20  # of the manifest, and of an image's configuration
_PLAIN = frozenset({tarfile.REGTYPE})
_IN_LAYERS = frozenset({*_PLAIN, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE})
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_SKIPPABLE = b"\x2a\x4d\x18"  # and 0x50 … 0x5f before it: a frame that zstd passes over, whatever is in it
_COPY_BYTES = 1 << 20
_SIZE, _KIND = slice(124, 136), 156  # of a header's block
_NUMBER = re.compile(rb" *[0-7]+[ \0]*")
_WITH_CONTENT = _PLAIN | {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}


@dataclass(frozen=True, slots=True)
class LoadableImage:
    """An image in an archive that may be loaded."""

    id: str  # sha256:…, of its configuration
    tag: str  # the only name that the archive gives it
    size: int  # bytes of its layers


def rewrite_archive(source: Path, target: Path, *, image: str, max_bytes: int) -> LoadableImage:
    """Write a loadable archive of the image ``image`` to ``target``; blocking, so call it on a thread.

    Args:
        image: A reference that the archive's manifest lists, or anything when it holds one image only.
        max_bytes: Largest sum of the layers.

    Raises:
        ExecutionFailed: ``data_invalid``: it is not such an archive, holds something else than files and folders, or is
            over a cap; ``disk_full``; ``node_fault``.
    """
    try:
        with source.open("rb") as file:
            _refuse_compressed(file.read(4), "the archive")
        with tarfile.open(source, mode="r:", tarinfo=_Header) as tar:
            members = _members(tar)
            entry = _entry(_document(tar, members, "manifest.json"), image)
            config = _read(tar, _member(members, entry.config), MAX_DOCUMENT_BYTES)
            layers = [_member(members, name) for name in entry.layers]
            size = sum(layer.size for layer in layers)
            if size > max_bytes:
                raise _bad(f"its layers have {size} bytes, at most {max_bytes} are allowed")
            _check_config(config, len(layers))
            for name, layer in {layer.name: layer for layer in layers}.items():
                _check_layer(_open(tar, layer), name, max_bytes)
            digest = hashlib.sha256(config).hexdigest()
            found = LoadableImage(f"sha256:{digest}", f"parity/{digest}:latest", size)
            _write(tar, target, found.tag, config, layers)
    except tarfile.TarError as exc:
        raise _bad(str(exc)[:200]) from exc
    except (OverflowError, ValueError, EOFError, RecursionError) as exc:
        raise _bad("its headers cannot be read") from exc
    except OSError as exc:
        raise ExecutionFailed(failure_of(exc), f"the image's archive: {exc.strerror}") from exc
    return found


class _Header(tarfile.TarInfo):
    """A header that the engine's reader and this one take for the same, with extensions of a bounded size.

    The two differ in the corners: where a number begins with zero bytes, where a header is broken, where a size comes from
    an extension. What one of them reads as content is a member for the other, such as a sparse file of a terabyte. So
    there is one form of a size, a broken header ends everything, and no extension says how long or how sparse a file is.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read one header; the standard library takes a broken one for the end of the archive."""
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError as exc:  # type: ignore[attr-defined]  # not in the type stubs
            raise tarfile.ReadError(f"a broken header: {exc}") from exc
        kind = buf[_KIND : _KIND + 1]
        if _NUMBER.fullmatch(buf[_SIZE]) is None:
            raise tarfile.ReadError("a size that is not written in octal digits")
        if kind not in _WITH_CONTENT and found.size:
            raise tarfile.ReadError(f"a member of kind {kind!r} with content")
        if kind == tarfile.AREGTYPE:  # a folder, if the name that an extension gives it ends in a slash
            raise tarfile.ReadError("a member in the form of before 1988")
        return found

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.XGLTYPE:
            raise tarfile.ReadError("attributes for all members")
        if self.type not in _IN_LAYERS and self.size > MAX_EXTENSION_BYTES:
            raise tarfile.ReadError("a header's extension is too large")
        if self.type in {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}:
            self._refuse_lengths(archive)
        try:
            found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in the type stubs
        except tarfile.InvalidHeaderError as exc:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a broken extension: {exc}") from exc
        return found

    def _refuse_lengths(self, archive: tarfile.TarFile) -> None:
        file = archive.fileobj
        assert file is not None
        at = file.tell()
        records = file.read(self.size)
        file.seek(at)
        if b" size=" in records or b"GNU.sparse." in records:
            raise tarfile.ReadError("attributes that say how long or how sparse a file is")


@dataclass(frozen=True, slots=True)
class _Entry:
    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Return the archive's files by normal name; a link to a file of the archive stands for that file."""
    files: dict[str, tarfile.TarInfo] = {}
    links: dict[str, str] = {}
    for number, member in enumerate(tar):
        if number >= MAX_MEMBERS:
            raise _bad(f"more than {MAX_MEMBERS} members")
        name = _normal(member.name)
        if member.isdir():
            continue
        if name in files or name in links:
            raise _bad(f"{name} is there twice")
        if member.issym() and name.endswith("/layer.tar"):  # older engines save a repeated layer so
            links[name] = _normal(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.type in _PLAIN and not member.issparse():
            files[name] = member
        else:
            raise _bad(f"{name} is neither a file nor a folder")
    return files | {name: files[path] for name, path in links.items() if path in files}


def _normal(name: str) -> str:
    clean = posixpath.normpath(name)
    if name.startswith("/") or clean.split("/", 1)[0] == "..":
        raise _bad(f"{name[:80]!r} leads out of it")
    if len(clean) > MAX_NAME_CHARS or clean.count("/") > MAX_DEPTH:
        raise _bad(f"{name[:80]!r} is too long or too deep")
    return clean


def _entry(manifest: object, image: str) -> _Entry:
    if not isinstance(manifest, list) or not manifest:
        raise _bad("manifest.json lists no image")
    entries = [_parse(each) for each in manifest]
    wanted = {image, image.removeprefix("docker.io/").removeprefix("library/")}
    wanted |= {f"{name}:latest" for name in wanted if ":" not in name.rpartition("/")[2]}
    named = [entry for entry in entries if wanted & set(entry.tags)]
    if named:
        return named[0]
    if len(entries) == 1:
        return entries[0]
    raise _bad(f"it holds {len(entries)} images, and none is called {image}")


def _parse(value: object) -> _Entry:
    if not isinstance(value, dict):
        raise _bad("manifest.json is not a list of images")
    config, tags, layers = value.get("Config"), value.get("RepoTags"), value.get("Layers")
    if not isinstance(config, str) or not isinstance(layers, list) or not all(isinstance(each, str) for each in layers):
        raise _bad("manifest.json does not say what an image is made of")
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise _bad(f"an image of {len(layers)} layers; from 1 to {MAX_LAYERS} are allowed")
    names = tuple(str(each) for each in tags) if isinstance(tags, list) else ()
    return _Entry(config, names, tuple(layers))


def _member(members: Mapping[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    found = members.get(_normal(name))
    if found is None:
        raise _bad(f"{name[:80]} is missing")
    return found


def _document(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> object:
    data = _read(tar, _member(members, name), MAX_DOCUMENT_BYTES)
    try:
        return strict_json.loads(data, max_bytes=MAX_DOCUMENT_BYTES)
    except ParityError as exc:
        raise _bad(f"{name}: {exc.message}") from exc


def _check_config(config: bytes, layers: int) -> None:
    try:
        document = strict_json.loads(config, max_bytes=MAX_DOCUMENT_BYTES)
    except ParityError as exc:
        raise _bad(f"its configuration: {exc.message}") from exc
    root = document.get("rootfs") if isinstance(document, dict) else None
    digests = root.get("diff_ids") if isinstance(root, dict) else None
    if not isinstance(digests, list) or len(digests) != layers:
        raise _bad("its configuration does not name a digest for each layer")


def _check_layer(file: IO[bytes], name: str, max_bytes: int) -> None:
    """Look through one layer: what would grow when it is unpacked, or lie elsewhere, is refused."""
    _refuse_compressed(file.read(4), name)
    file.seek(0)
    total = 0
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as layer:
        for number, member in enumerate(layer):
            total += member.size
            if number >= MAX_LAYER_MEMBERS or total > max_bytes:
                raise _bad(f"{name} is too large: more than {MAX_LAYER_MEMBERS} entries, or over {max_bytes} bytes")
            if member.issparse():
                raise _bad(f"{name} holds a sparse file, {member.name[:80]!r}")
            if member.type not in _IN_LAYERS:
                raise _bad(f"{name} holds a device, {member.name[:80]!r}")
            if ".." in member.name.split("/"):
                raise _bad(f"{name} holds a path that leads out of it, {member.name[:80]!r}")
            layer.members = []  # type: ignore[attr-defined]  # or every header would stay in memory


def _refuse_compressed(head: bytes, what: str) -> None:
    kind = _COMPRESSED.get(head[:2])
    if head[1:4] == _SKIPPABLE and head[0] & 0xF0 == 0x50:
        kind = "zstd"
    if kind is not None:
        raise _bad(f"{what} is compressed ({kind}): only plain archives are taken, as `docker save` writes them")


def _write(tar: tarfile.TarFile, target: Path, tag: str, config: bytes, layers: list[tarfile.TarInfo]) -> None:
    digest = tag.removeprefix("parity/").partition(":")[0]
    distinct = list({layer.name: layer for layer in layers}.values())
    names = {layer.name: f"{number}/layer.tar" for number, layer in enumerate(distinct)}
    manifest = [{"Config": f"{digest}.json", "RepoTags": [tag], "Layers": [names[layer.name] for layer in layers]}]
    with tarfile.open(target, mode="w", format=tarfile.GNU_FORMAT) as out:
        _add(out, "manifest.json", strict_json.dumps(manifest))
        _add(out, f"{digest}.json", config)
        for layer in distinct:
            info = tarfile.TarInfo(names[layer.name])
            info.size, info.mode = layer.size, 0o600
            out.addfile(info, _open(tar, layer))


def _add(out: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    out.addfile(info, io.BytesIO(data))


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes:
    if member.size > max_bytes:
        raise _bad(f"{member.name[:80]} has {member.size} bytes, at most {max_bytes} are allowed")
    return _open(tar, member).read(max_bytes)


def _open(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise _bad(f"{member.name[:80]} is not a file")
    return file


def _bad(text: str) -> ExecutionFailed:
    return ExecutionFailed(FailureReason.DATA_INVALID, f"the image's archive: {text}")
