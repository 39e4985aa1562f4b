"""Users' own volumes and course volumes: validation, mounts and ownership."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from docker.errors import NotFound

# Template fields that aren't escaped: a name with "/" or ".." would lead to another volume.
UNESCAPED = ("raw_username", "raw_servername")


@dataclass(frozen=True)
class Volume:
    """A named volume, its path in the container, and whether this user may write to it."""

    name: str
    path: str
    writable: bool


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


def check_courses(courses: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Validate course volumes; return name -> {"path", "instructors" (a list of groups)}.

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
        unknown = sorted(map(str, set(fields) - {"path", "instructors"}))
        if unknown:
            raise ValueError(f"{where}: {unknown[0]!r} is neither 'path' nor 'instructors'")
        path = fields.get("path")
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"{where}: 'path' must be a folder in the container, as '/home/…'")
        groups = fields.get("instructors") or []
        groups = [groups] if isinstance(groups, str) else groups
        if not isinstance(groups, list | tuple | set) or {type(g) for g in groups} - {str}:
            raise ValueError(f"{where}: 'instructors' must be a list of groups, got {groups!r}")
        checked[name] = {"path": path, "instructors": list(groups)}
    return checked


def user_volumes(
    home: str, home_path: str, courses: Mapping[str, Mapping[str, Any]], groups: Collection[str]
) -> list[Volume]:
    """Return the volumes that are mounted for a user.

    Args:
        home: the name template of the user's own volume; "": none.
        home_path: its path in the container.
        courses: the result of `check_courses`.
        groups: the names of the user's groups.
    """
    own = [Volume(home, home_path, True)] if home else []
    return own + [
        Volume(name, course["path"], bool(set(course["instructors"]) & set(groups)))
        for name, course in courses.items()
    ]


# Prefix of `_created` if the time of creation is known.
CREATED_PREFIX = "created "
# After this time a volume's owner is read again: a backup may have been restored into it.
RECHECK_SECONDS = 3600.0


class VolumeOwners:
    """The owners of the writable volumes of one engine.

    Reading files of a container costs the engine as much as starting one, so results are cached for
    the lifetime of this process: the uids of an image's users, whether the image's folders give new
    volumes the right owner, and which volumes have it.

    The methods block: call them in a thread.

    Args:
        client: returns a `docker.APIClient`.
    """

    def __init__(self, client: Callable[[], Any]) -> None:
        self._client = client
        # (image id, user) -> (uid, gid); None if they can't be determined.
        self._user_ids: dict[tuple[str, str], tuple[int, int] | None] = {}
        # (image id, folder, uid) for which the image's folder gives a new volume the right owner.
        self._right_from_start: set[tuple[str, str, int]] = set()
        # Volume -> when it was created, as the engine writes it; its owner's uid; and when that was
        # read, by the monotonic clock.
        self._owned: dict[str, tuple[str, int, float]] = {}

    def missing_volumes(self, volumes: Collection[Volume]) -> frozenset[str]:
        """Return the names of those volumes that don't exist yet."""
        return frozenset(each.name for each in volumes if not self._created(each.name))

    def chown_to_user(
        self,
        container: Mapping[str, Any],
        volumes: Collection[Volume],
        new: Collection[str] = (),
    ) -> None:
        """Make the container's user the owner of writable volumes that belong to root.

        A new volume has the owner of the image's folder, or root if the image has no such folder.
        Called between the container's creation and its start, and done through the engine, so that
        no process has to run as root.

        Args:
            container: the container's inspection.
            volumes: the volumes that are mounted in it.
            new: the names of the volumes that were created with it.

        Raises:
            docker.errors.APIError: the engine refused.
        """
        wanted = [volume for volume in volumes if volume.writable]
        if not wanted:
            return
        image, user = container["Image"], container["Config"].get("User") or ""
        if (image, user) not in self._user_ids:
            self._user_ids[image, user] = _user_ids(self._client(), container["Id"], user)
        ids = self._user_ids[image, user]
        if ids is None or ids[0] == 0:
            return
        for volume in wanted:
            created, now = self._created(volume.name), time.monotonic()
            known, uid, seen_at = self._owned.get(volume.name, ("", -1, 0.0))
            right = (image, volume.path, ids[0])
            if volume.name in new:
                if right not in self._right_from_start and self._chown(container, volume, ids):
                    self._right_from_start.add(right)
            elif (known, uid) == (created, ids[0]) and now - seen_at < RECHECK_SECONDS:
                continue
            else:
                self._chown(container, volume, ids)
            self._owned.pop(volume.name, None)
            if created.startswith(CREATED_PREFIX):
                self._owned[volume.name] = (created, ids[0], now)

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

    def _created(self, name: str) -> str:
        """Return when a volume was created, as the engine writes it; "" if it doesn't exist."""
        try:
            found = self._client().inspect_volume(name)
        except NotFound:
            return ""
        # Other drivers often report the same time for every volume.
        known = found.get("Driver") == "local" and found.get("CreatedAt")
        return f"{CREATED_PREFIX}{found['CreatedAt']}" if known else "unknown"


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
