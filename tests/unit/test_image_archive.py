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


BAD: dict[str, bytes] = {
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
