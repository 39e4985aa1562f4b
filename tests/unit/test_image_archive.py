"""An archive of an image is passed on only as long as it is that of one image without a name."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import pytest

from gpuspawner.nodes.image_archive import ArchiveCheck, ArchiveRefused

MANIFEST = [{"Config": "blobs/sha256/1", "RepoTags": None, "Layers": ["blobs/sha256/2"]}]
INDEX = {"schemaVersion": 2, "manifests": [{"digest": "sha256:1"}]}

Member = tuple[str, bytes]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


GOOD: Sequence[Member] = (
    ("blobs/sha256/2", b"layer" * 1000),
    ("manifest.json", as_json(MANIFEST)),
    ("index.json", as_json(INDEX)),
    ("oci-layout", b"{}"),
)


def archive(*members: Member | tarfile.TarInfo, how: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=how) as made:
        for each in members:
            if isinstance(each, tarfile.TarInfo):
                made.addfile(each)
                continue
            about = tarfile.TarInfo(each[0])
            about.size = len(each[1])
            made.addfile(about, io.BytesIO(each[1]))
    return out.getvalue()


def unended(*members: Member) -> bytes:
    """An archive to which others can be added: without the zeros at its end."""
    data = archive(*members).rstrip(b"\0")
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


def passed(data: bytes, size: int = 700) -> int:
    """How many bytes are passed on; raises `ArchiveRefused`."""
    check, done = ArchiveCheck(), 0
    for start in range(0, len(data), size):
        check.feed(data[start : start + size])
        done += size
    check.finish()
    return done


@pytest.mark.parametrize("size", [1, 511, 512, 513, 10**6])
def test_an_image_without_a_name_is_passed_on(size):
    assert passed(archive(*GOOD), size)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, target
    return about


def listing(**changes: Any) -> Member:
    return "manifest.json", as_json([{**MANIFEST[0], **changes}])


def sized(about: tarfile.TarInfo, size: int, content: bytes) -> bytes:
    """A member whose header says a size, and what follows."""
    about.size = size
    return about.tobuf(tarfile.USTAR_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def extended(**records: str) -> bytes:
    """An extended header."""
    text = b""
    for key, value in records.items():
        line = f" {key}={value}\n".encode()
        length = next(n for n in range(1, 999) if n == len(str(n)) + len(line))
        text += str(length).encode() + line
    about = tarfile.TarInfo("PaxHeaders.0/x")
    about.type = tarfile.XHDTYPE
    return sized(about, len(text), text)


OLD, OLDER = "a" * 64, "b" * 64
NAME = {"io.containerd.image.name": "registry.example.org/library/lab:1"}
# What engine 28.2 writes for an id: the index has the platform.
INDEX_28: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.index.v1+json",
    "manifests": [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": f"sha256:{OLD}",
            "size": 406,
            "platform": {"architecture": "amd64", "os": "linux"},
        }
    ],
}
SOURCE = {"mediaType": "application/x", "size": 1, "digest": f"sha256:{OLD}", "urls": ["https://x"]}


def folder(name: str) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.mode = tarfile.DIRTYPE, 0o755
    return about


def index(**changes: Any) -> Member:
    return "index.json", as_json({**INDEX_28, **changes})


def described(**changes: Any) -> Member:
    return index(manifests=[{**INDEX_28["manifests"][0], **changes}])


# As the engines write them for an id.
REAL: dict[str, bytes] = {
    "20.10": archive(
        folder(OLD),
        (f"{OLD}/VERSION", b"1.0"),
        (f"{OLD}/json", b"{}"),
        (f"{OLD}/layer.tar", b"layer" * 1000),
        folder(OLDER),
        (f"{OLDER}/VERSION", b"1.0"),
        (f"{OLDER}/json", b"{}"),
        link(f"{OLDER}/layer.tar", f"../{OLD}/layer.tar"),
        (f"{OLD}.json", b"{}"),
        listing(Parent=f"sha256:{OLDER}", LayerSources={f"sha256:{OLD}": SOURCE}),
    ),
    "28": archive(
        folder("blobs"), folder("blobs/sha256"), *GOOD[:2], index(), ("oci-layout", b"{}")
    ),
    "28 of an image without a name": archive(
        folder("blobs"), folder("blobs/sha256"), *GOOD[:2], index(manifests=None), GOOD[3]
    ),
    "28 with containerd": archive(
        described(annotations={"org.opencontainers.image.created": "2026-10-05T00:00:00Z"}),
        listing(),
        ("oci-layout", b"{}"),
    ),
}


@pytest.mark.parametrize("engine", REAL)
def test_what_engines_write_is_passed_on(engine):
    passed(REAL[engine])


NAMED = archive(("manifest.json", as_json([{**MANIFEST[0], "RepoTags": ["lab:1"]}])))


def hidden(kind: bytes, name: str) -> bytes:
    """A list with a name in what some take for a member's content, and others for members."""
    about = tarfile.TarInfo(name)
    about.type = kind
    return sized(about, len(NAMED), NAMED) + archive(*GOOD)


def raw(data: bytes, **changes: tuple[int, bytes]) -> bytes:
    """An archive's first header with other bytes at some places, and the sum that fits."""
    header = bytearray(data[:512])
    for start, part in changes.values():
        header[start : start + len(part)] = part
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def test_a_size_in_either_form_is_read():
    for size in (b"000000003610", b"00000003610 ", b"\x80" + (1928).to_bytes(11, "big")):
        data = archive(("blobs/sha256/3", b"x" * 1928), *GOOD)
        passed(raw(data, size=(124, size)))
    passed(archive(*GOOD, how=tarfile.GNU_FORMAT))


def test_a_layer_of_any_size_is_passed_on():
    large = tarfile.TarInfo("blobs/sha256/3")
    check = ArchiveCheck()
    check.feed(extended(size=str(9 * 2**30), mtime="1.5") + large.tobuf(tarfile.USTAR_FORMAT))
    for _ in range(9):
        check._left -= 2**30 - 1  # as if it had gone by
        check.feed(b"x")
    check.feed(archive(*GOOD))
    check.finish()


BAD: dict[str, bytes] = {
    "a folder with content": hidden(tarfile.DIRTYPE, "blobs"),
    "a folder of the oldest kind": hidden(tarfile.AREGTYPE, "blobs/"),
    "a file that ends as a folder does": archive(*GOOD[:1])[:-10240]
    + sized(tarfile.TarInfo("blobs/sha256/4/"), 5, b"hello")
    + archive(*GOOD[1:]),
    "a link with content": hidden(tarfile.SYMTYPE, "blobs/layer.tar"),
    "a list that another header makes longer": extended(size="5000000") + archive(*GOOD),
    "a name by another header": extended(path="manifest.json") + archive(*GOOD),
    "two headers": extended(size="1") + extended(size="1") + archive(*GOOD),
    "a size twice": extended(size="1").replace(b"\0" * 20, b"10 size=2\n", 1) + archive(*GOOD),
    "a header for all": archive(link("g", "", tarfile.XGLTYPE), *GOOD),
    "a name": archive(*GOOD[:1], listing(RepoTags=["lab:1"])),
    "two images": archive(*GOOD[:1], ("manifest.json", as_json(MANIFEST * 2))),
    "no image but in an index": archive(*GOOD[:1], index(manifests=None)),
    "no image": archive(*GOOD[:1], ("manifest.json", as_json([]))),
    "no list": archive(*GOOD[:1]),
    "a list that is none": archive(("manifest.json", b"{")),
    "a deep list": archive(("manifest.json", b"[" * 100_000)),
    "a list of texts": archive(("manifest.json", b'["lab"]')),
    "an empty list": archive(("manifest.json", b"")),
    "a long list": archive(("manifest.json", b" " * 2_000_000)),
    "a second list": archive(*GOOD, listing(RepoTags=["lab:1"])),
    "the older form of names": archive(*GOOD, ("repositories", as_json({"lab": {"1": "2"}}))),
    "a name in the index": archive(
        *GOOD[:2],
        (
            "index.json",
            as_json({"manifests": [{"annotations": {"io.containerd.image.name": "lab:1"}}]}),
        ),
    ),
    "a list elsewhere": archive(*GOOD, ("./manifest.json", as_json([]))),
    "a list above": archive(("../manifest.json", as_json([])), *GOOD),
    "a rooted list": archive(("/manifest.json", as_json([])), *GOOD),
    "a link in place of a list": archive(link("manifest.json", "blobs/sha256/2"), *GOOD),
    "a folder that is the whole": archive(link("a", "."), *GOOD, ("a/manifest.json", b"[]")),
    "a hard link": archive(link("blobs/x/layer.tar", "manifest.json", tarfile.LNKTYPE), *GOOD),
    "a device": archive(link("dev", "", tarfile.CHRTYPE), *GOOD),
    "a name in another header": archive(("a" * 150, b"x"), *GOOD, how=tarfile.GNU_FORMAT),
    "a name in a PAX header": archive(("é", b"x"), *GOOD, how=tarfile.PAX_FORMAT),
    "a name by a key in other letters": archive(
        ("manifest.json", as_json([{"Config": "1", "Layers": [], "repotags": ["lab:1"]}]))
    ),
    "a name by a key that Go folds": archive(listing(**{"RepoTag\u017f": ["lab:1"]})),
    "a key twice": archive(
        (
            "manifest.json",
            as_json(MANIFEST).replace(b'"Config"', b'"RepoTags": ["lab:1"], "Config"'),
        )
    ),
    "a key that no engine writes": archive(listing(Names=["lab:1"])),
    "names that are no list": archive(listing(RepoTags={})),
    "annotations in other letters": archive(*GOOD[:2], described(Annotations=NAME)),
    "annotations that Go folds": archive(*GOOD[:2], described(**{"annotation\u017f": NAME})),
    "a second list in the index": archive(*GOOD[:2], index(Manifests=[{"annotations": NAME}])),
    "a second list that Go folds": archive(*GOOD[:2], index(**{"manife\u017fts": [NAME]})),
    "a list in the index twice": archive(
        *GOOD[:2],
        (
            "index.json",
            as_json(INDEX_28).replace(b"{", b'{"manifests": [{"annotations": {}}], ', 1),
        ),
    ),
    "annotations that are none": archive(*GOOD[:2], described(annotations=[1])),
    "an index that is none": archive(*GOOD[:2], ("index.json", b"[]")),
    "a deep folder": archive(*GOOD, ("a/b/c/d/e", b"x")),
    "addresses in the index": archive(*GOOD[:2], described(urls=["https://x"])),
    "the index's own name": archive(*GOOD[:2], index(annotations=NAME)),
    "the older name in the index": archive(
        *GOOD[:2], described(annotations={"org.opencontainers.image.ref.name": "1"})
    ),
    "a further name in the index": archive(
        *GOOD[:2], described(annotations={"io.containerd.image.name.extra.1": "lab:1"})
    ),
    "a prefix in a header of the oldest kind": unended(*GOOD)
    + raw(NAMED, magic=(257, b"\0" * 8), prefix=(345, b"x")),
    "a header of the oldest kind": raw(archive(*GOOD), magic=(257, b"\0" * 8)),
    "a prefix in GNU's header": unended(*GOOD)
    + raw(NAMED, magic=(257, b"ustar  \0"), prefix=(345, b"1")),
    "another version": unended(*GOOD) + raw(NAMED, magic=(257, b"ustar\x0001"), prefix=(345, b"x")),
    "a header of star's": unended(*GOOD) + raw(NAMED, prefix=(345, b"x"), star=(508, b"tar\0")),
    "a link upwards": archive(*GOOD, link(f"{OLD}/layer.tar", "..")),
    "a link to a list": archive(*GOOD, link(f"{OLD}/layer.tar", "../manifest.json")),
    "a link elsewhere": archive(*GOOD, link(f"a/{OLD}/layer.tar", f"../{OLD}/layer.tar")),
    "a link that isn't a layer's": archive(*GOOD, link("a/layer.tar", f"../{OLD}/layer.tar")),
    "a list below a link": archive(
        *GOOD,
        link(f"{OLD}/layer.tar", f"../{OLDER}/layer.tar"),
        (f"{OLD}/layer.tar/manifest.json", b"[]"),
    ),
    "a file below a file": archive(*GOOD, ("a", b"x"), ("a/b/c", b"x")),
    "a file in place of a folder": archive(*GOOD, ("a/b", b"x"), ("a", b"x")),
    "a folder in place of a file": archive(*GOOD, ("a", b"x"), folder("a")),
    "a size after a zero byte": raw(unended(("b", b"")), size=(124, b"\0" + b"0000001000\0"))
    + archive(*GOOD),
    "a size with a sign": raw(archive(*GOOD), size=(124, b"+0000011610\0")),
    "a size below zero": raw(archive(*GOOD), size=(124, b"\xff" * 12)),
    "a size with other digits": raw(archive(*GOOD), size=(124, b"0000001_1610")),
    "a size with bits above it": raw(archive(*GOOD), size=(124, b"\x81" + b"\0" * 9 + b"\x13\x88")),
    "no archive": b"hello" * 1000,
    "half": archive(*GOOD)[:700],
}


@pytest.mark.parametrize("how", BAD)
def test_everything_else_is_broken_off(how):
    with pytest.raises(ArchiveRefused):
        passed(BAD[how])


def pass_on(parts: Sequence[bytes], to: list[bytes]) -> None:
    check = ArchiveCheck()
    for part in parts:
        check.feed(part)
        to.append(part)


def test_what_names_an_image_is_never_passed_on():
    """The piece that ends the list is refused as a whole, whatever comes with it."""
    data = BAD["a name"]
    end = data.index(b"lab:1")
    parts = [data[start : start + 64] for start in range(0, len(data), 64)]
    passed_on: list[bytes] = []
    with pytest.raises(ArchiveRefused):
        pass_on(parts, passed_on)
    assert len(b"".join(passed_on)) <= end + 512
