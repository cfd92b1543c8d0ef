"""Archives of strangers: what is refused, and what becomes of the rest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from parity_node.executors.docker.archive import rewrite_archive
from parity_protocol.errors import ExecutionFailed, FailureReason

CONFIG = json.dumps({"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}, "config": {}}).encode()
MANIFEST = [{"Config": "c.json", "RepoTags": ["other/image:latest", "me/tool:1"], "Layers": ["l/layer.tar"]}]


def member(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


LAYER = archive(member("bin", kind=tarfile.DIRTYPE), member("bin/tool", b"tool"))


def image(
    manifest: object = MANIFEST, config: bytes = CONFIG, layer: bytes = LAYER
) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        member("manifest.json", json.dumps(manifest).encode()),
        member("c.json", config),
        member("l", kind=tarfile.DIRTYPE),
        member("l/layer.tar", layer),
        member("repositories", b"{}"),
    ]


def rewrite(folder: Path, data: bytes, *, name: str = "me/tool:1", max_bytes: int = 1 << 20) -> tuple[object, Path]:
    source, target = folder / "in.tar", folder / "out.tar"
    source.write_bytes(data)
    return rewrite_archive(source, target, image=name, max_bytes=max_bytes), target


def test_what_is_loaded_names_nothing_but_a_private_tag(tmp_path):
    found, target = rewrite(tmp_path, archive(*image()))

    digest = hashlib.sha256(CONFIG).hexdigest()
    assert (found.id, found.tag, found.size) == (f"sha256:{digest}", f"parity/{digest}:latest", len(LAYER))
    with tarfile.open(target) as tar:
        assert sorted(tar.getnames()) == ["0/layer.tar", f"{digest}.json", "manifest.json"]
        manifest = json.loads(tar.extractfile("manifest.json").read())
        assert manifest == [
            {"Config": f"{digest}.json", "RepoTags": [f"parity/{digest}:latest"], "Layers": ["0/layer.tar"]}
        ]
        assert tar.extractfile("0/layer.tar").read() == LAYER


def test_one_image_of_several_is_taken(tmp_path):
    config = CONFIG.replace(b'"config": {}', b'"config": {"User": "x"}')
    manifest = [{**MANIFEST[0], "RepoTags": ["a:1"]}, {**MANIFEST[0], "RepoTags": ["b:1"], "Config": "d.json"}]

    found, _ = rewrite(tmp_path, archive(*image(manifest), member("d.json", config)), name="b:1")

    assert found.id == f"sha256:{hashlib.sha256(config).hexdigest()}"


def test_a_layer_that_older_engines_link_to_is_found(tmp_path):
    config = CONFIG.replace(b'["sha', b'["sha256:1", "sha')
    manifest = [{**MANIFEST[0], "Layers": ["l/layer.tar", "m/layer.tar"]}]

    _, target = rewrite(
        tmp_path, archive(*image(manifest, config), member("m/layer.tar", kind=tarfile.SYMTYPE, link="../l/layer.tar"))
    )

    with tarfile.open(target) as tar:
        assert json.loads(tar.extractfile("manifest.json").read())[0]["Layers"] == ["0/layer.tar", "0/layer.tar"]


def sparse_layer() -> bytes:
    head = tarfile.TarInfo("huge")
    head.type = tarfile.GNUTYPE_SPARSE
    data = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    data[483:495] = b"%011o\0" % (1 << 30)
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data) + bytes(1024)


def header(name: bytes, size: bytes, *, kind: bytes = b"0", is_whole: bool = True) -> bytes:
    """Return a header as a hostile program writes it."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:124] = b"0000644\x000000000\x000000000\x00"
    block[124:136], block[136:148], block[156:157] = size, b"00000000000\0", kind
    block[257:265], block[148:156] = b"ustar\x0000", b"        "
    block[148:156] = b"%06o\0 " % (sum(block) + (not is_whole))
    return bytes(block)


def attributes(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    text = b""
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + 2 if len(body) < 98 else len(body) + 3
        text += b"%d" % length + body
    return header(b"x", b"%011o\0" % len(text), kind=kind) + text.ljust(512, b"\0")


SPARSE = attributes(
    (b"GNU.sparse.size", b"%d" % (1 << 40)), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"0,512")
)
HUGE = SPARSE + header(b"bomb", b"00000001000\0") + bytes(512)
END = bytes(1024)
COVER = header(b"cover", b"%011o\0" % len(HUGE))

# What the engine's reader takes for a file of a terabyte, and Python's for the content of another one, or for nothing.
TWO_READINGS = {
    "a size that begins with zero bytes": header(b"a", b"\0\x00000001000\0") + COVER + HUGE + END,
    "an empty size in the attributes": attributes((b"size", b"")) + header(b"a", b"00000001000\0") + COVER + HUGE + END,
    "a size for all members": attributes((b"size", b"0"), kind=b"g")
    + attributes((b"comment", b"x"))
    + header(b"a", b"00000001000\0")
    + COVER
    + HUGE
    + END,
    "a folder with content": header(b"a/", b"00000001000\0", kind=b"5") + COVER + HUGE + END,
    "a folder of before 1988": header(b"a/", b"00000001000\0", kind=b"\0") + COVER + HUGE + END,
    "a header that one of them cannot read": header(b"a", b"\x80" + bytes(11))
    + header(b"b", b"0" * 11 + b"\xff")
    + HUGE
    + END,
    "a broken header": header(b"a", b"00000000000\0") + header(b"b", b"00000000000\0", is_whole=False) + HUGE + END,
    "sparse by its attributes": HUGE + END,
    "a frame that zstd passes over": header(b"P*M\x18\xf0\x01", b"00000000000\0") + END,
}

HOSTILE = {
    **{name: archive(*image(layer=layer)) for name, layer in TWO_READINGS.items()},
    **{f"{name}, outside": layer for name, layer in TWO_READINGS.items()},
    "no manifest": archive(*image()[1:]),
    "manifest of nothing": archive(*image([])),
    "manifest that is none": archive(*image({"Config": 1})),
    "no layers": archive(*image([{**MANIFEST[0], "Layers": []}])),
    "a layer that is missing": archive(*image([{**MANIFEST[0], "Layers": ["x/layer.tar"]}])),
    "a config that is missing": archive(*image([{**MANIFEST[0], "Config": "x.json"}])),
    "a config elsewhere": archive(*image([{**MANIFEST[0], "Config": "../../etc/passwd"}])),
    "fewer digests than layers": archive(*image(config=b'{"rootfs": {"diff_ids": []}}')),
    "a config that is no document": archive(*image(config=b"{")),
    "a config twice": archive(*image(), member("c.json", CONFIG)),
    "a path out of it": archive(*image(), member("../x", b"x")),
    "an absolute path": archive(*image(), member("/etc/x", b"x")),
    "a link": archive(*image(), member("x", kind=tarfile.SYMTYPE, link="/etc/passwd")),
    "a link as layer": archive(
        *image([{**MANIFEST[0], "Layers": ["k/layer.tar"]}]),
        member("k/layer.tar", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    ),
    "a hard link": archive(*image(), member("x", kind=tarfile.LNKTYPE, link="c.json")),
    "a device": archive(*image(), member("x", kind=tarfile.CHRTYPE)),
    "a pipe": archive(*image(), member("x", kind=tarfile.FIFOTYPE)),
    "depth": archive(*image(), member("/".join("x" * 1 for _ in range(20)), b"x")),
    "a long name": archive(*image(), member("x" * 600, b"x")),
    "too many members": archive(*image(), *(member(f"x{n}") for n in range(4_100))),
    "compressed": gzip.compress(archive(*image())),
    "a compressed layer": archive(*image(layer=gzip.compress(LAYER))),
    "a layer with a device": archive(*image(layer=archive(member("dev/mem", kind=tarfile.CHRTYPE)))),
    "a layer with a way out": archive(*image(layer=archive(member("a/../../x", b"x")))),
    "a layer with a sparse file": archive(*image(layer=sparse_layer())),
    "a layer that is too large": archive(*image(layer=archive(member("x", bytes(2 << 20))))),
    "nothing": b"",
    "no archive": b"x" * 4_096,
    "the beginning of one": archive(*image())[:1_500],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path, name):
    with pytest.raises(ExecutionFailed) as caught:
        rewrite(tmp_path, HOSTILE[name])

    assert caught.value.reason is FailureReason.DATA_INVALID
    assert "archive" in caught.value.message


def test_an_image_that_is_not_named_is_not_guessed(tmp_path):
    manifest = [{**MANIFEST[0], "RepoTags": ["a:1"]}, {**MANIFEST[0], "RepoTags": ["b:1"]}]

    with pytest.raises(ExecutionFailed, match="none is called"):
        rewrite(tmp_path, archive(*image(manifest)))


def test_a_header_that_claims_an_endless_name_costs_nothing(tmp_path):
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 7 << 30
    source = tmp_path / "in.tar"
    with source.open("wb") as file:
        file.write(head.tobuf(tarfile.GNU_FORMAT))
        file.truncate(8 << 30)  # sparse: it takes no room here either

    with pytest.raises(ExecutionFailed) as caught:
        rewrite_archive(source, tmp_path / "out.tar", image="x", max_bytes=1 << 20)

    assert caught.value.reason is FailureReason.DATA_INVALID
