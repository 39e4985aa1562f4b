"""Users' own volumes and those that groups share: validation, mounts and ownership."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from string import Formatter
from typing import Any

from docker.errors import NotFound

from .volume_folders import folder_of

# Template fields that aren't escaped: a name with "/" or ".." would lead to another volume.
UNESCAPED = ("raw_username", "raw_servername")
# The longest name of a volume: to the engine it is a folder's.
MAX_NAME = 255


@dataclass(frozen=True)
class Volume:
    """A named volume, its path in the container, and whether this user may write to it.

    Args:
        name: its name, or the template of it.
        path: where it is mounted.
        writable: whether the user may write to it.
        own: whether it is the user's own.
        earlier: whether it is mounted only where it exists.
        per_server: whether each of the user's servers has one of its own.
        strict: as for `set_aside.FirstVolume`.
    """

    name: str
    path: str
    writable: bool
    own: bool = False
    earlier: bool = False
    per_server: bool = False
    strict: bool = False


def check_home(template: str) -> str:
    """Validate the name template of users' own volumes ("": none) and return it.

    Raises:
        ValueError: it is unsafe; the message names the trait, the value and an alternative.
    """
    return check_template("home_volume", template, per_user=True)


def check_template(trait: str, template: str, per_user: bool) -> str:
    """Validate a volume's name template and return it.

    Args:
        trait: the trait's name for the error message: "home_volume".
        template: the name template.
        per_user: whether each user must get a volume of their own.

    Raises:
        ValueError: it is unsafe; the message names the trait, the value and an alternative.
    """
    for word in UNESCAPED:
        if word in template:
            safe = word.removeprefix("raw_")
            raise ValueError(
                f"{trait} = {template!r}: {{{word}}} isn't escaped, and a user named '../x' would "
                f"leave their volume. Write {{{safe}}} instead."
            )
    if "/" in template:
        raise ValueError(f"{trait} = {template!r}: name a volume, not a folder: no '/'")
    if per_user and template and "{username}" not in template:
        raise ValueError(
            f"{trait} = {template!r}: without {{username}} all users would share one volume"
        )
    return template


def fields_of(template: str) -> set[str]:
    """Return the names of a template's fields; "?" is among them where it isn't one."""
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        return {"?"}


def check_earlier(earlier: Mapping[str, Any]) -> dict[str, str]:
    """Validate the users' own volumes of an earlier configuration: name template -> path.

    Raises:
        ValueError: an entry is invalid; the message names the volume.
    """
    for name, path in earlier.items():
        where = f"earlier_home_volumes[{name!r}]"
        check_template(where, name, per_user=True)
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"{where} must be a folder in the container, as '/home/…'")
    return dict(earlier)


def check_courses(courses: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Validate course volumes.

    Returns:
        Name -> {"path", "instructors" (a list of groups)}, and "readers" (a list of groups) where
        not everybody has the volume.

    Raises:
        ValueError: an entry is invalid; the message names the volume.
    """
    checked: dict[str, dict[str, Any]] = {}
    for name, entry in courses.items():
        where = f"course_volumes[{name!r}]"
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: a volume's name must be a text")
        check_template(where, name, per_user=False)
        fields = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where} must be a folder, or a mapping with 'path'")
        unknown = sorted(map(str, set(fields) - {"path", "instructors", "readers"}))
        if unknown:
            raise ValueError(
                f"{where}: {unknown[0]!r} is neither 'path' nor 'instructors' nor 'readers'"
            )
        path = fields.get("path")
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"{where}: 'path' must be a folder in the container, as '/home/…'")
        checked[name] = {"path": path, "instructors": _check_groups(where, fields, "instructors")}
        if fields.get("readers") is not None:
            checked[name]["readers"] = _check_groups(where, fields, "readers")
    return checked


def fitting_name(name: str, most: int = MAX_NAME) -> str:
    """Return a volume's name, shortened where the engine couldn't make a folder of it.

    An escaped user name has nine characters for a Chinese one. What it is cut to ends in a digest
    of the whole, so that two users never share a volume.
    """
    if len(name.encode()) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{name.encode()[: most - 33].decode(errors='ignore')}-{digest}"


def _check_groups(where: str, fields: Mapping[str, Any], key: str) -> list[str]:
    groups = fields.get(key) or []
    groups = [groups] if isinstance(groups, str) else groups
    if not isinstance(groups, list | tuple | set) or {type(g) for g in groups} - {str}:
        raise ValueError(f"{where}: {key!r} must be a list of groups, got {groups!r}")
    return list(groups)


def user_volumes(
    home: str,
    home_path: str,
    earlier: Mapping[str, str],
    courses: Mapping[str, Mapping[str, Any]],
    groups: Collection[str],
) -> list[Volume]:
    """Return the volumes that are mounted for a user.

    Args:
        home: the name template of the user's own volume; "": none.
        home_path: its path in the container.
        earlier: the result of `check_earlier`.
        courses: the result of `check_courses`.
        groups: the names of the user's groups.
    """
    own = [Volume(home, home_path, True, own=True)] if home else []
    own += [Volume(name, path, True, own=True, earlier=True) for name, path in earlier.items()]
    for name, course in courses.items():
        writes = not set(groups).isdisjoint(course["instructors"])
        if writes or "readers" not in course or not set(groups).isdisjoint(course["readers"]):
            own.append(Volume(name, course["path"], writes))
    return own


# After this an owner is looked at again: somebody may have restored a backup into the volume.
RECHECK_SECONDS = 3600.0
# What an engine says of itself whose containers' users have other numbers outside.
MAPPED = ("name=userns", "name=rootless")


class VolumeOwners:
    """Who the writable volumes of one engine belong to, asked of the engine no more than needed.

    To look into a container costs the engine more than to start one. A hub that may read the
    engine's folders sees there whose a volume is. Else what was found out is kept for as long as
    this process lives: whether an image's folders give a new volume the right owner, and which
    volumes have it. So are an image's users.

    The methods block: call them in a thread.

    Args:
        client: returns a `docker.APIClient`.
    """

    def __init__(self, client: Callable[[], Any]) -> None:
        self._client = client
        # (image id, user) -> (uid, gid) of a container of both; None where it can't be told.
        self._user_ids: dict[tuple[str, str], tuple[int, int] | None] = {}
        # Held while the engine is asked for these: of many starts at once, one asks.
        self._asking = threading.Lock()
        # Whether users in containers have the same numbers outside; None: the engine wasn't asked.
        self._same_users: bool | None = None
        # (image id, folder, uid) where a new volume gets the right owner from the image's folder.
        self._right_from_start: set[tuple[str, str, int]] = set()
        # Volume -> when it was created, as the engine writes it; its owner's uid; and when that was
        # read, by the monotonic clock.
        self._owned: dict[str, tuple[str, int, float]] = {}

    def chown_to_user(
        self,
        container: Mapping[str, Any],
        volumes: Collection[Volume],
        before: Mapping[str, Mapping[str, Any]],
        made: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Make the container's user the owner of writable volumes that belong to root.

        A new volume has the owner of the image's folder, or root if the image has no such folder.
        Called between the container's creation and its start, and done through the engine, so that
        no process has to run as root.

        Args:
            container: an inspection of it.
            volumes: what is mounted in it.
            before: inspections of those that were there before it was created, by their names.
            made: the same of those that were made for it; others the engine has made with it.

        Raises:
            docker.errors.APIError: the engine refused.
        """
        for volume in (each for each in volumes if each.writable):
            is_new = volume.name not in before
            about = before.get(volume.name) or made.get(volume.name) or self._inspect(volume.name)
            owner = self._owner_seen(about)
            if owner:  # not root's
                continue
            ids = self._ids_in(container)
            if ids is None or ids[0] == 0:
                return
            right = (container["Image"], volume.path, ids[0])
            known = right in self._right_from_start if is_new else self._is_known(about, ids[0])
            if owner == 0 or not known:
                was_right = self._chown(container, volume, ids)
                if is_new and was_right:
                    self._right_from_start.add(right)
            self._remember(about, ids[0])

    def _ids_in(self, container: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return (uid, gid) of a container's user; None where it can't be told."""
        image, user = container["Image"], container["Config"].get("User") or ""
        with self._asking:
            if (image, user) not in self._user_ids:
                self._user_ids[image, user] = _user_ids(self._client(), container["Id"], user)
            return self._user_ids[image, user]

    def _owner_seen(self, about: Mapping[str, Any] | None) -> int | None:
        """Return the uid that a volume's folder belongs to; None where it can't be seen from here.

        Args:
            about: an inspection of the volume.
        """
        folder = folder_of(about)
        if folder is None or not self._users_are_the_same():
            return None
        try:
            return os.lstat(folder).st_uid
        except OSError:
            return None

    def _users_are_the_same(self) -> bool:
        with self._asking:
            if self._same_users is None:
                options = self._client().info().get("SecurityOptions") or []
                self._same_users = not any(each.startswith(MAPPED) for each in options)
            return self._same_users

    def _is_known(self, about: Mapping[str, Any] | None, uid: int) -> bool:
        """Return whether a volume was seen to be a user's not long ago."""
        name, created = _identity(about)
        known, owner, seen_at = self._owned.get(name, ("", -1, 0.0))
        recently = time.monotonic() - seen_at < RECHECK_SECONDS
        return (known, owner) == (created, uid) and recently

    def _remember(self, about: Mapping[str, Any] | None, uid: int) -> None:
        name, created = _identity(about)
        if created and not self._is_known(about, uid):
            self._owned[name] = (created, uid, time.monotonic())

    def _chown(self, container: Mapping[str, Any], volume: Volume, ids: tuple[int, int]) -> bool:
        """Make a user the owner of a volume of root's; return whether it was the user's already."""
        client = self._client()
        entry = _first_entry(client, container["Id"], volume.path)
        if entry is not None and entry.uid == 0:
            # Through the parent folder, since the engine ignores an archive's ".".
            # ref: Unpack in moby's pkg/archive
            above, _, name = volume.path.rstrip("/").rpartition("/")
            client.put_archive(container["Id"], above or "/", _owned_folder(name, *ids))
        return entry is not None and entry.uid == ids[0]

    def _inspect(self, name: str) -> Mapping[str, Any] | None:
        """Return an inspection of a volume; None where there is none."""
        try:
            found: Mapping[str, Any] = self._client().inspect_volume(name)
        except NotFound:
            return None
        return found


def _identity(about: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return a volume's name, and when it was created in the engine's words; "": unknown."""
    if about is None or about.get("Driver") != "local":
        return "", ""  # what other drivers say is often the same for every volume
    return about["Name"], about.get("CreatedAt") or ""


def _user_ids(client: Any, container_id: str, user: str) -> tuple[int, int] | None:
    """Return (uid, gid) of a container's user, from its /etc/passwd if the user is a name."""
    name, _, group = user.partition(":")
    if name.isdigit():
        return int(name), int(group) if group.isdigit() else 0
    if not name:
        return 0, 0
    try:
        stream, _ = client.get_archive(container_id, "/etc/passwd")
    except NotFound:  # an image without a distribution in it
        return None
    with closing(stream), tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        file = archive.extractfile(archive.getmembers()[0])
        text = file.read().decode("utf-8", "replace") if file else ""
    for fields in (line.split(":") for line in text.splitlines()):
        if fields[0] == name and len(fields) > 3:
            return int(fields[2]), int(group) if group.isdigit() else int(fields[3])
    return None


def _first_entry(client: Any, container_id: str, path: str) -> tarfile.TarInfo | None:
    """Return the first entry, the folder itself, of the engine's archive of a folder."""
    stream, _ = client.get_archive(container_id, path + "/.", chunk_size=512)
    with closing(stream):
        head = next(iter(stream), b"")
    return tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape") if len(head) == 512 else None


def _owned_folder(name: str, uid: int, gid: int) -> bytes:
    """Return a tar archive that contains only an empty folder with this owner."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o755, uid, gid
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(entry)
    return packed.getvalue()
