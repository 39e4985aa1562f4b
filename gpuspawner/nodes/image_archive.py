"""An image on its way to a node's engine, as `docker save` writes it: one image, and no names.

An archive can bring other images and give any of them any name, also one that servers are started
by. So it is looked at while it goes by: before the part of it that says otherwise reaches the
engine, it is broken off, and the engine has nothing.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from typing import Any

from ..untrusted import parse_json

BLOCK = 512
# Larger than the list of an image's layers.
MAX_LIST_BYTES = 1_048_576
MAX_MEMBERS = 10_000
# What names images, in the two forms that engines write beside each other.
_MANIFEST, _INDEX, _REPOSITORIES = "manifest.json", "index.json", "repositories"
_LISTS = (_MANIFEST, _INDEX, _REPOSITORIES)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
# Stands for the header before a member, whatever that is called: no member has this name.
_EXTENDED = "/"
MAX_EXTENDED_BYTES = 4096
# All that engines write. Go takes a key in other letters, or a second one, for the same.
# ref: manifestItem in moby's image/tarexport, Index and Descriptor in OCI's image-spec
_IMAGE_KEYS = frozenset(("Config", "RepoTags", "Layers", "Parent", "LayerSources"))
_INDEX_KEYS = frozenset(("schemaVersion", "mediaType", "manifests", "annotations"))
_DESCRIPTOR_KEYS = frozenset(("mediaType", "digest", "size", "platform", "annotations"))
# And what begins so: containerd has "io.containerd.image.name.extra.1".
_NAMING = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
# At most as deep as the header before a blob: blobs/sha256/PaxHeaders.0/x.
_MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,3}/?")
# A layer that an engine before 25 wrote once already.
_LAYER_LINK = re.compile(r"[0-9a-f]{64}/layer\.tar")
_LAYER_TARGET = re.compile(r"\.\./[0-9a-f]{64}/layer\.tar")
# Where Python, Go and GNU tar read a header alike: the two kinds of it that have a version, the
# second without the prefix to a name, and a size that is digits or a number of 88 bits.
# ref: "struct posix_header" in tar(5)
_POSIX, _GNU = b"ustar\x0000", b"ustar  \0"
_SIZE = re.compile(rb"[0-7]{11}[0-7\0 ]|\x80.{11}", re.DOTALL)


class ArchiveRefused(ValueError):
    """An archive isn't that of one image without a name. `str()` says why."""


class ArchiveCheck:
    """Looks at the bytes of an archive in their order, in pieces of any size."""

    def __init__(self) -> None:
        self._header = b""
        # Of the member that goes by: how many bytes are to come, with and without its padding.
        self._left = self._padding = 0
        self._name = ""
        self._content = b""
        self._members = 0
        self._seen: set[str] = set()
        # Members that are no folders, and what lies above any.
        self._files: set[str] = set()
        self._folders: set[str] = set()
        # The size of the next member, where an extended header has it.
        self._next_size: int | None = None

    def feed(self, data: bytes) -> None:
        """Look at the next bytes; raises `ArchiveRefused` before they may be passed on."""
        while data:
            if self._left:
                part, data = data[: self._left], data[self._left :]
                self._left -= len(part)
                if self._name in (*_LISTS, _EXTENDED):
                    self._content += part
                if not self._left:
                    self._end_member()
            elif self._padding:
                skipped = min(self._padding, len(data))
                self._padding, data = self._padding - skipped, data[skipped:]
            else:
                taken = BLOCK - len(self._header)
                self._header, data = self._header + data[:taken], data[taken:]
                if len(self._header) == BLOCK:
                    self._begin_member()

    def finish(self) -> None:
        """Raise `ArchiveRefused` unless the archive has ended, and is an image's."""
        if self._left or self._padding or self._header:
            raise ArchiveRefused("it is broken off")
        if _MANIFEST not in self._seen:
            raise ArchiveRefused("it has no list of its images")

    def _begin_member(self) -> None:
        header, self._header = self._header, b""
        if not any(header):
            return
        if not _is_unambiguous(header):
            raise ArchiveRefused("it is no archive")
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeError):
            raise ArchiveRefused("it is no archive") from None
        given, self._next_size = self._next_size, None
        if given is not None and member.type == tarfile.XHDTYPE:
            raise ArchiveRefused("it is no archive")
        size = member.size if given is None else given
        self._check_member(member, size)
        has_content = member.type in (*_FILES, tarfile.XHDTYPE)
        self._name = _EXTENDED if member.type == tarfile.XHDTYPE else member.name.rstrip("/")
        self._content = b""
        self._left = size if has_content else 0
        self._padding = -self._left % BLOCK
        if has_content and not self._left:
            self._end_member()

    def _check_member(self, member: tarfile.TarInfo, size: int) -> None:
        self._members += 1
        # No header of another one's name, and no link by which a list is written elsewhere. What
        # has no content has no size: not all who read an archive agree on what that would mean.
        is_layer_link = (
            member.type == tarfile.SYMTYPE
            and _LAYER_LINK.fullmatch(member.name) is not None
            and _LAYER_TARGET.fullmatch(member.linkname) is not None
        )
        is_plain = member.type in _FILES and not member.name.endswith("/")
        is_empty = (member.type == tarfile.DIRTYPE or is_layer_link) and not size
        is_extended = member.type == tarfile.XHDTYPE and size <= MAX_EXTENDED_BYTES
        is_known = is_plain or is_empty or is_extended
        if not is_known or size < 0 or not _MEMBER.fullmatch(member.name):
            raise ArchiveRefused("it has members that no image has")
        if self._members > MAX_MEMBERS:
            raise ArchiveRefused("it has too many members")
        if is_extended:
            return
        name = member.name.rstrip("/")
        self._place(name, member.type == tarfile.DIRTYPE)
        if name in _LISTS:
            if name in self._seen or not is_plain:
                raise ArchiveRefused("it has two lists of its images")
            if size > MAX_LIST_BYTES:
                raise ArchiveRefused("its list of images is too long")
            self._seen.add(name)

    def _place(self, name: str, is_folder: bool) -> None:
        """Raise `ArchiveRefused` if a member is below a file or a link, or in a folder's place."""
        above = [name[: found.start()] for found in re.finditer("/", name)]
        folders = [*above, name] if is_folder else above
        if not self._files.isdisjoint(folders) or (not is_folder and name in self._folders):
            raise ArchiveRefused("it has members that no image has")
        self._folders.update(folders)
        if not is_folder:
            self._files.add(name)

    def _end_member(self) -> None:
        content, self._content = self._content, b""
        if self._name == _EXTENDED:
            self._next_size = _extended_size(content)
        elif self._name in _LISTS:
            try:
                _check_list(self._name, parse_json(content, with_twins=False))
            except ArchiveRefused:
                raise
            except (AttributeError, KeyError, TypeError, ValueError):
                raise ArchiveRefused("its list of images can't be read") from None


def _is_unambiguous(header: bytes) -> bool:
    kind = header[257:265]
    # After a POSIX header's prefix nothing follows: star's has a shorter one.
    unused = header[500:] if kind == _POSIX else header[345:]
    return kind in (_POSIX, _GNU) and not any(unused) and bool(_SIZE.fullmatch(header[124:136]))


def _extended_size(content: bytes) -> int | None:
    """Return the size that an extended header gives the next member; None: it gives none.

    A layer of more than 8 GiB has one. ref: pax(1), "pax Extended Header"
    """
    size = None
    while content:
        length, _, _ = content.partition(b" ")
        if not re.fullmatch(rb"[1-9][0-9]{0,4}", length) or int(length) > len(content):
            raise ArchiveRefused("it is no archive")
        record, content = content[: int(length)], content[int(length) :]
        found = re.fullmatch(rb"[0-9]+ (mtime|atime|ctime|size)=([0-9.]{1,30})\n", record)
        if found is None:
            raise ArchiveRefused("it has members that no image has")
        if found[1] == b"size":
            if size is not None or not re.fullmatch(rb"[0-9]{1,15}", found[2]):
                raise ArchiveRefused("it is no archive")
            size = int(found[2])
    return size


def _check_list(name: str, found: Any) -> None:
    """Raise `ArchiveRefused` if a list of an archive's images has several, or a name."""
    if name == _REPOSITORIES:
        if found:
            raise ArchiveRefused("it gives images names")
        return
    if name == _INDEX:
        _check_keys(found, _INDEX_KEYS)
        if found["manifests"] is None:
            return  # so engines write it of an image without a name; the other list has it
    listed = found if name == _MANIFEST else found["manifests"]
    if not isinstance(listed, list) or len(listed) != 1:
        raise ArchiveRefused("it isn't of one image")
    (image,) = listed
    if name == _MANIFEST:
        _check_keys(image, _IMAGE_KEYS)
        named = image.get("RepoTags") not in (None, [])
    else:
        _check_keys(image, _DESCRIPTOR_KEYS)
        named = _names(found) or _names(image)
    if named:
        raise ArchiveRefused("it gives images names")


def _check_keys(found: Any, known: frozenset[str]) -> None:
    if not isinstance(found, dict):
        raise TypeError
    if not known.issuperset(found):
        raise ArchiveRefused("its list of images has what no engine writes")


def _names(found: Mapping[str, Any]) -> bool:
    annotations = found.get("annotations") or {}
    return any(key.startswith(_NAMING) for key, _ in annotations.items())
