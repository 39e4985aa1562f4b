"""Users' own volumes and their courses': what is mounted, who may write, whose the files are."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from docker.errors import NotFound

# ref: a name in a template that isn't escaped leads out of the volume, or into somebody else's
UNESCAPED = ("raw_username", "raw_servername")


@dataclass(frozen=True)
class Volume:
    """A named volume, where it is mounted, and whether this user may write to it."""

    name: str
    path: str
    writable: bool


def check_home(template: str) -> str:
    """Return the name template of users' own volumes if it is safe; "" is none.

    Raises:
        ValueError: with the trait, the value and what to write instead.
    """
    return check_template("home_volume", template, per_user=True)


def check_template(trait: str, template: str, per_user: bool) -> str:
    """Return a volume's name template if it is safe.

    Args:
        trait: what the sentence names: "home_volume".
        per_user: whether each user must get one of their own.

    Raises:
        ValueError: with the trait, the value and what to write instead.
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
    """Return the course volumes: name -> {"path", "instructors" (a list of groups)}.

    Raises:
        ValueError: with the volume's name and what is wrong.
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


def mounted(
    home: str, home_path: str, courses: Mapping[str, Mapping[str, Any]], groups: Collection[str]
) -> list[Volume]:
    """Return the volumes that a user gets.

    Args:
        home: the name template of the user's own volume; "" for none.
        home_path: where it is mounted.
        courses: as from `check_courses`.
        groups: the groups that the user is in.
    """
    own = [Volume(home, home_path, True)] if home else []
    return own + [
        Volume(name, course["path"], bool(set(course["instructors"]) & set(groups)))
        for name, course in courses.items()
    ]


def give_to_user(client: Any, container_id: str, user: str, volumes: Collection[Volume]) -> None:
    """Make the container's user the owner of the writable volumes that still belong to root.

    A new volume takes its owner from the image's folder, and is root's where the image has none.
    Done between create and start, through the engine, so that no process runs as root for it.
    Blocking: call it in a thread.

    Args:
        client: a `docker.APIClient`.
        user: the container's `Config.User`: "", a name or "1000:100".

    Raises:
        docker.errors.APIError: the engine refused.
    """
    wanted = [volume for volume in volumes if volume.writable]
    if not wanted:
        return
    ids = _ids(client, container_id, user)
    if ids is None or ids[0] == 0:
        return
    for volume in wanted:
        entry = _first_entry(client, container_id, volume.path)
        if entry is not None and entry.uid == 0:
            # By way of the folder above it, since the engine passes over an archive's own ".".
            # ref: Unpack in moby's pkg/archive
            above, _, name = volume.path.rstrip("/").rpartition("/")
            client.put_archive(container_id, above or "/", _owned_folder(name, *ids))


def _ids(client: Any, container_id: str, user: str) -> tuple[int, int] | None:
    """Return (uid, gid) of a container's user, read from its own /etc/passwd if it is a name."""
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
    """Return the folder itself out of the archive that the engine makes of it, and read no more."""
    stream, _ = client.get_archive(container_id, path + "/.", chunk_size=512)
    with closing(stream):
        head = next(iter(stream), b"")
    return tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape") if len(head) == 512 else None


def _owned_folder(name: str, uid: int, gid: int) -> bytes:
    """Return an archive that holds only a folder, with an owner."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o755, uid, gid
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(entry)
    return packed.getvalue()
