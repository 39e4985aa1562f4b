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


NAMED = archive(("manifest.json", as_json([{**MANIFEST[0], "RepoTags": ["lab:1"]}])))


def hidden(kind: bytes, name: str) -> bytes:
    """A list with a name in what some take for a member's content, and others for members."""
    about = tarfile.TarInfo(name)
    about.type = kind
    return sized(about, len(NAMED), NAMED) + archive(*GOOD)


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
