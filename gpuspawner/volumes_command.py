"""`gpuspawner volumes`: users' own volumes, with those of users who were deleted."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import docker

from .backends.docker import set_aside, volume_folders
from .backends.docker.deleted_volumes import remove
from .backends.docker.errors import UNREACHABLE, explain
from .backends.docker.set_aside import LABEL_FIRST, FirstVolume, Listing, Mark, list_volumes
from .errors import GPUSpawnerError
from .i18n.phrases import memory_words
from .leases.labels import LABEL_SERVER, LABEL_USER

# Of tar: a file changed while it was read.
CHANGED = 1


class NotDone(GPUSpawnerError):
    """What was asked for isn't done. `str()` says why, and what to do."""


@dataclass(frozen=True)
class UserVolume:
    """A user's own volume.

    Args:
        about: what the engine says of it.
        user: whose it is; "": unknown.
        server: the server that alone has it; "": all of the user's, or the one without a name.
        mark: that it is set aside; None: it isn't.
        containers: the names of those that mount it, in whatever state.
    """

    about: Mapping[str, Any]
    user: str
    server: str
    mark: Mark | None
    containers: Sequence[str]

    @property
    def name(self) -> str:
        """Its name in the engine."""
        return str(self.about["Name"])

    @property
    def state(self) -> str:
        """What there is to say of it, in a word or two."""
        if self.mark:
            return "set aside"
        return "in use" if self.containers else "unused"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this subcommand's arguments."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")

    def add(name: str, help_text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help_text, description=f"{help_text.capitalize()}.")

    listing = add("list", "list users' volumes: whose they are, since when, how large")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.add_argument(
        "--prefix",
        action="append",
        default=[],
        metavar="NAME",
        help="also volumes whose names begin so and that don't say whose they are: those that were "
        "made before volumes had labels, and that no container mounts",
    )
    listing.add_argument("--no-size", action="store_true", help="don't measure, which takes long")
    archive = add("archive", "write a volume's files into a tar.gz, as root on its machine")
    archive.add_argument("name", metavar="NAME", help="the volume's name")
    archive.add_argument("--to", type=Path, required=True, metavar="FILE", help="a new file")
    removing = add("remove", "remove volumes with their files; of one in use nothing")
    removing.add_argument("names", nargs="+", metavar="NAME", help="a volume's name")
    removing.add_argument("--yes", action="store_true", help="don't ask")
    aside = add("set-aside", "have nobody find volumes: a user of that name gets others")
    aside.add_argument("names", nargs="+", metavar="NAME", help="a volume's name")
    restoring = add("restore", "undo what set a volume aside")
    restoring.add_argument("name", metavar="NAME", help="the volume's name")
    restoring.add_argument(
        "--yes", action="store_true", help="set aside what the user has now in its place"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; return 0, or 1 if it isn't done."""
    do = {
        "list": _list,
        "archive": _archive,
        "remove": _remove,
        "set-aside": _set_aside,
        "restore": _restore,
    }[arguments.what]
    client = None
    try:
        client = docker.from_env(timeout=60).api
        do(client, arguments)
    except (*UNREACHABLE, GPUSpawnerError, OSError) as error:
        said = str(error) if isinstance(error, GPUSpawnerError) else explain(error)
        print(f"gpuspawner: {printable(said)}", file=sys.stderr)
        return 1
    finally:
        if client:
            client.close()
    return 0


# ---- list ----------------------------------------------------------------------------------------


def _list(client: Any, arguments: argparse.Namespace) -> None:
    found = user_volumes(list_volumes(client), client.containers(all=True), arguments.prefix)
    sizes = {}
    if not arguments.no_size:
        sizes = volume_folders.measure(client, [each.about for each in found])
    if arguments.json:
        print(json.dumps([as_json(each, sizes.get(each.name)) for each in found], indent=2))
    else:
        print(as_text(found, sizes))


def user_volumes(
    listing: Listing, containers: Iterable[Mapping[str, Any]], prefixes: Collection[str] = ()
) -> list[UserVolume]:
    """Return users' own volumes, by whose they are.

    Args:
        listing: all of the engine's.
        containers: all of the engine's, as it lists them.
        prefixes: what the names of volumes begin with that are taken for users' without a label.
    """
    users, mounted = _mounts(containers)
    found = []
    for name, about in listing.volumes.items():
        labels, mark = about.get("Labels") or {}, listing.marks.get(name)
        named = name.startswith(tuple(prefixes))
        if LABEL_FIRST in labels or mark or named or len(users.get(name, ())) == 1:
            user = labels.get(LABEL_USER) or (mark.user if mark else "")
            user = user or "".join(users.get(name, ()))
            in_use = sorted(mounted.get(name, ()))
            found.append(UserVolume(about, user, labels.get(LABEL_SERVER, ""), mark, in_use))
    return sorted(found, key=lambda each: (each.user, each.name))


def _mounts(
    containers: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return volume -> the users whose servers write to it, and volume -> names of containers."""
    users: dict[str, set[str]] = {}
    mounted: dict[str, set[str]] = {}
    for entry in containers:
        for mount in entry.get("Mounts") or ():
            name = mount.get("Name")
            if not name or mount.get("Type") != "volume":
                continue
            mounted.setdefault(name, set()).add(container_name(entry))
            user = (entry.get("Labels") or {}).get(LABEL_USER)
            if user and mount.get("RW"):
                users.setdefault(name, set()).add(user)
    return users, mounted


def container_name(entry: Mapping[str, Any]) -> str:
    """Return a container's name, of the engine's list."""
    return str(next(iter(entry.get("Names") or ()), entry["Id"][:12])).lstrip("/")


def as_json(volume: UserVolume, size: int | None) -> dict[str, Any]:
    """Return the documented JSON value of a volume."""
    mark = volume.mark
    return {
        "name": volume.name,
        "user": volume.user,
        "server": volume.server,
        "created": volume.about.get("CreatedAt"),
        "set_aside": bool(mark),
        "set_aside_since": moment(mark.since) if mark and mark.since else None,
        "containers": list(volume.containers),
        "size_bytes": size,
    }


def as_text(volumes: Sequence[UserVolume], sizes: Mapping[str, int]) -> str:
    """Return a table for a terminal."""
    rows: list[tuple[str, ...]] = [("VOLUME", "USER", "STATE", "SINCE", "SIZE")]
    for each in volumes:
        since = each.about.get("CreatedAt") or ""
        if each.mark:
            since = moment(each.mark.since) if each.mark.since else ""
        size = str(memory_words(sizes[each.name])) if each.name in sizes else "?"
        user = f"{each.user}/{each.server}" if each.server else each.user
        rows.append((each.name, user or "?", each.state, since[:16].replace("T", " "), size))
    if not volumes:
        return "No volume says that it is a user's. --prefix NAME takes those that begin so."
    cells = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def moment(seconds: float) -> str:
    """Return a time as ISO 8601 has it, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def printable(text: str) -> str:
    """Return text without control characters: names may contain any."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# ---- archive -------------------------------------------------------------------------------------


def _archive(client: Any, arguments: argparse.Namespace) -> None:
    about = _existing(list_volumes(client, [arguments.name]), arguments.name)
    folder = volume_folders.folder_of(about)
    if folder is None or not os.access(folder, os.R_OK | os.X_OK):
        raise NotDone(
            f"the files of {arguments.name} can't be read from here. On the machine of the Docker "
            "Engine, run it as root: sudo $(which gpuspawner) volumes archive"
        )
    used = _users_of(client, arguments.name)
    if used:
        print(
            f"{arguments.name} is in use by {', '.join(used)}: what is written now may be missing"
        )
    try:
        # Files of a user's are nobody else's to read.
        file = os.open(arguments.to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise NotDone(f"{arguments.to} is there already, and stays as it is") from None
    with os.fdopen(file, "wb") as archive:
        words = ["tar", "--create", "--gzip", "--numeric-owner", "--one-file-system"]
        try:
            status = subprocess.run(
                volume_folders.gently([*words, "--directory", str(folder), "."]),
                stdout=archive,
                check=False,
            ).returncode
        except BaseException:
            arguments.to.unlink()
            raise
    if status not in (0, CHANGED):
        arguments.to.unlink()
        raise NotDone(f"tar failed on {arguments.name} ({status}), and {arguments.to} is removed")
    if status == CHANGED:
        print("some files changed while they were read: archive it again when nobody uses it")
    size = volume_folders.size_of(folder)
    held = f"{memory_words(size)} of files in " if size is not None else ""
    written = memory_words(arguments.to.stat().st_size)
    print(f"{arguments.name}: {held}{arguments.to}, {written}. The volume stays as it is.")


# ---- remove, set aside, restore ------------------------------------------------------------------


def _remove(client: Any, arguments: argparse.Namespace) -> None:
    listing = list_volumes(client)
    for name in arguments.names:
        if name not in listing.volumes and name not in listing.marks:
            _existing(listing, name)
        if used := _users_of(client, name):
            raise NotDone(f"{name} is in use by {', '.join(used)}, and stays")
    for name in arguments.names:
        if not arguments.yes and not _agreed(f"Remove {name} with all its files?"):
            print(f"{name} stays")
            continue
        remove(client, name)
        print(f"removed {name}")


def _agreed(question: str) -> bool:
    try:
        return input(f"{printable(question)} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _set_aside(client: Any, arguments: argparse.Namespace) -> None:
    listing = list_volumes(client, arguments.names)
    for name in arguments.names:
        labels = _existing(listing, name).get("Labels") or {}
        set_aside.set_aside(client, [name], labels.get(LABEL_USER, ""))
        print(f"{name} is set aside, and nobody's server gets it from its next start on")
        if used := _users_of(client, name):
            print(f"until it stops, it is in use by {', '.join(used)}")


def _restore(client: Any, arguments: argparse.Namespace) -> None:
    name, listing = arguments.name, list_volumes(client)
    if name not in listing.marks:
        _existing(listing, name)
        raise NotDone(f"{name} isn't set aside")
    first = _first_of(name, listing)
    number = first.generation(name) or 1
    newer = [each for each in listing.unmarked(first) if (first.generation(each) or 1) > number]
    if newer and not arguments.yes:
        raise NotDone(
            f"the user has {', '.join(newer)} now. With --yes that is set aside, with its files, "
            f"and {name} is what they get at the next start"
        )
    set_aside.set_aside(client, newer, first.user)
    set_aside.give_back(client, [name])
    for each in newer:
        print(f"{each} is set aside")
    print(f"{name} is no longer set aside: its user gets it at the next start")


def _first_of(name: str, listing: Listing) -> FirstVolume:
    """Return the first generation of a volume that is set aside."""
    about = listing.volumes.get(name)
    labels = (about or {}).get("Labels") or {}
    user = labels.get(LABEL_USER) or listing.marks[name].user
    if LABEL_FIRST in labels:
        return FirstVolume(labels[LABEL_FIRST], user)
    before, _, _ = name.rpartition(".")
    is_later = FirstVolume(before, user).generation(name) and before
    known = before in listing.volumes or before in listing.marks
    return FirstVolume(before if is_later and known else name, user)


def _existing(listing: Listing, name: str) -> Mapping[str, Any]:
    if name not in listing.volumes:
        raise NotDone(f"there is no volume {name}: see gpuspawner volumes list")
    return listing.volumes[name]


def _users_of(client: Any, name: str) -> list[str]:
    """Return the names of the containers that mount a volume, in whatever state."""
    found = client.containers(all=True, filters={"volume": name})
    return sorted(
        container_name(entry)
        for entry in found
        if any(mount.get("Name") == name for mount in entry.get("Mounts") or ())
    )
