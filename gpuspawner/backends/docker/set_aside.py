"""Users' volumes that are set aside, so that nobody finds them: for each a mark and its successor.

Docker can't rename a volume, and to copy one takes as long as its files are large. So a mark says
that a volume is set aside, an empty volume with labels as those of GPUs that are out of service,
and the user's next volume has another name: that of the first, a dot and the number of its
generation. Without the mark it is the user's again.

`docker volume prune` removes marks, as it removes users' volumes: always on engines before 23, with
`--all` on newer ones.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import docker.errors

from ...errors import Unknown
from ...leases.labels import LABEL_HUB, LABEL_SERVER, LABEL_USER
from .volumes import MAX_NAME, fitting_name

PREFIX = "gpuspawner-set-aside-"
LABEL = "gpuspawner.set-aside"
LABEL_WHOSE = "gpuspawner.set-aside.user"
LABEL_SINCE = "gpuspawner.set-aside.since"
# Of a user's volume: the name of its first generation.
LABEL_FIRST = "gpuspawner.volume"

# How much of a longer volume's name its mark's has, as well as a digest.
KEPT_OF_NAME = 150
GENERATION = re.compile(r"\.([1-9][0-9]{0,8})")
MAX_SUFFIX = 10

About = Mapping[str, Any]


@dataclass(frozen=True)
class Mark:
    """That a volume is set aside.

    Args:
        name: the mark's own name in the engine.
        volume: the volume's name.
        user: whose it was; "": unknown, as of a mark that was made by hand.
        since: since when, in seconds since the epoch; None: unknown.
    """

    name: str
    volume: str
    user: str
    since: float | None


@dataclass(frozen=True)
class FirstVolume:
    """The first generation of a user's volume, whether there is one or not.

    Args:
        name: its name, which the template gives.
        user: whose it is.
        strict: whether a name with a dot and a number behind it may be somebody else's, so that
            only what its labels say is a later generation of it.
    """

    name: str
    user: str
    strict: bool = False

    def generation(self, name: str) -> int | None:
        """Return which generation of it has this name; None: none."""
        if name == self.name:
            return 1
        found = GENERATION.fullmatch(name.removeprefix(self._stem))
        number = int(found[1]) if found and name.startswith(self._stem) else 1
        return number if number > 1 else None

    def name_of(self, generation: int) -> str:
        """Return the name of one of its generations, from 1 on."""
        return self.name if generation == 1 else f"{self._stem}.{generation}"

    @property
    def _stem(self) -> str:
        """What names of later generations begin with: its name, unless that is very long."""
        return fitting_name(self.name, MAX_NAME - MAX_SUFFIX)

    def is_users(self, about: About) -> bool:
        """Return whether a volume of a generation's name is this user's."""
        labels = about.get("Labels") or {}
        if labels.get(LABEL_USER, self.user) != self.user:
            return False
        first = labels.get(LABEL_FIRST)
        if first is None:  # made before volumes had labels, or by hand
            return not self.strict or about["Name"] == self.name
        return bool(first == self.name)


@dataclass(frozen=True)
class Listing:
    """Volumes of an engine, and which of them are set aside.

    Args:
        volumes: name -> what the engine says of the volume, but for marks.
        marks: the name of a volume, whether there is one or not -> its mark.
    """

    volumes: Mapping[str, About] = field(default_factory=dict)
    marks: Mapping[str, Mark] = field(default_factory=dict)

    def current(self, first: FirstVolume) -> str:
        """Return the name of the volume that the user has, or will have."""
        unmarked = [number for number, about in self._of_user(first) if self._is_free(about)]
        if unmarked:
            return first.name_of(max(unmarked))
        taken = [first.generation(name) or 0 for name in {*self.volumes, *self.marks}]
        return first.name_of(1 + max(taken, default=0))

    def unmarked(self, first: FirstVolume) -> list[str]:
        """Return the names of the generations that there are and that aren't set aside."""
        return [about["Name"] for _, about in self._of_user(first) if self._is_free(about)]

    def labelled(self, user: str, hub: str, server: str | None = None) -> list[str]:
        """Return the names of the volumes that this hub made for a user and that aren't set aside.

        Args:
            user: the user's name.
            hub: the hub's address.
            server: only those of this server's own; None: all of the user's.
        """
        whose = {LABEL_USER: user, LABEL_HUB: hub}
        if server is not None:
            whose[LABEL_SERVER] = server
        return [
            name
            for name, about in self.volumes.items()
            if whose.items() <= (about.get("Labels") or {}).items()
            and LABEL_FIRST in about["Labels"]
            and self._is_free(about)
        ]

    def _of_user(self, first: FirstVolume) -> Iterator[tuple[int, About]]:
        for name, about in self.volumes.items():
            number = first.generation(name)
            if number and first.is_users(about):
                yield number, about

    def _is_free(self, about: About) -> bool:
        return about["Name"] not in self.marks


def list_volumes(client: Any, names: Collection[str] | None = None) -> Listing:
    """Ask the engine, once, for volumes and marks. Blocks.

    Args:
        client: a `docker.APIClient`.
        names: first generations' names, or others': only volumes that have one in their names, and
            their marks. None: all.
    """
    if names is not None and not names:
        return Listing()
    return parse(client.volumes(filters=_filter(names))["Volumes"])


def _filter(names: Collection[str] | None) -> dict[str, list[str]] | None:
    # The engine's takes names that have this in them anywhere.
    return None if names is None else {"name": sorted({name[:KEPT_OF_NAME] for name in names})}


def parse(volumes: Iterable[About] | None) -> Listing:
    """Sort the engine's list of volumes."""
    others, marks = {}, {}
    for about in volumes or ():
        if about["Name"].startswith(PREFIX):
            mark = _mark(about)
            marks[mark.volume] = mark
        else:
            others[about["Name"]] = about
    return Listing(others, marks)


def _mark(about: About) -> Mark:
    """Return what a mark says. Its name counts, so that one that was made by hand does too."""
    labels = about.get("Labels") or {}
    name, labelled = about["Name"], labels.get(LABEL) or ""
    since = labels.get(LABEL_SINCE, "")
    return Mark(
        name,
        labelled if mark_name(labelled) == name else name.removeprefix(PREFIX),
        labels.get(LABEL_WHOSE, ""),
        float(since) if re.fullmatch(r"[0-9]{1,11}", since) else None,
    )


def mark_name(volume: str) -> str:
    """Return the name of a volume's mark."""
    # Whatever is cut, the part stays by which a start's listing finds it.
    return fitting_name(f"{PREFIX}{volume}")


def set_aside(client: Any, volumes: Collection[str], user: str) -> None:
    """Set volumes aside; one that is already, keeps its mark. Blocks.

    Args:
        client: a `docker.APIClient`.
        volumes: their names.
        user: whose they are; "": unknown.

    Raises:
        Unknown: one isn't set aside afterwards.
    """
    for volume in volumes:
        labels = {LABEL: volume, LABEL_WHOSE: user, LABEL_SINCE: str(round(time.time()))}
        client.create_volume(mark_name(volume), labels=labels)
    missing = set(volumes) - list_volumes(client, volumes).marks.keys()
    if missing:
        raise Unknown(f"the Docker Engine doesn't keep that {min(missing)} is set aside")


def give_back(client: Any, volumes: Collection[str]) -> None:
    """Undo `set_aside`. Blocks.

    Raises:
        Unknown: one is set aside still.
    """
    marks = list_volumes(client, volumes).marks
    for volume in marks.keys() & set(volumes):
        with suppress(docker.errors.NotFound):
            client.remove_volume(marks[volume].name)
    left = list_volumes(client, volumes).marks.keys() & set(volumes)
    if left:
        raise Unknown(f"the Docker Engine keeps {min(left)} set aside")


def labels_of(first: FirstVolume, hub: str, server: str | None) -> dict[str, str]:
    """Return the labels of a new volume of a user's.

    Args:
        first: its first generation.
        hub: the address of the user's hub.
        server: the name of the server that alone has it; None: all of the user's have it.
    """
    whose = {LABEL_USER: first.user, LABEL_HUB: hub, LABEL_FIRST: first.name}
    return whose if server is None else {**whose, LABEL_SERVER: server}
