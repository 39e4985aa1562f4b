"""Where users' files are: on one machine of a Swarm each, or the same on all.

The one place that decides it, from the configuration: form, JupyterLab, queue and doctor ask here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...i18n.lazy_text import MachineText, join_sentences, lazy_gettext

# Types of mounts that a machine finds on itself: the engine's own driver mounts what it is told.
OF_ONE_MACHINE = frozenset({"", "tmpfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs"})
# A folder of the machine's, which may be one of a file server.
FOLDER = "none"
CONSEQUENCE = lazy_gettext(
    "A server without GPUs starts there, and so does one with GPUs where it can; on another "
    "machine you don't see them."
)


@dataclass(frozen=True)
class HomesOf:
    """Where the files of a configuration's users are.

    Args:
        local: whether they are on one machine each.
        why: what says so, for administrators: a trait and what follows from it.
    """

    local: bool
    why: str


def homes_of(spawner: Any) -> HomesOf:
    """Return where users' files are, by a spawner's traits.

    Args:
        spawner: a `GPUSwarmSpawner`.
    """
    named, folders = list(_named(spawner)), list(_folders(spawner))
    if not named and not folders:
        return HomesOf(False, "no files of users' are kept")
    if spawner.shared_homes is not None:
        said = "the same on all machines" if spawner.shared_homes else "on one machine each"
        return HomesOf(not spawner.shared_homes, f"shared_homes says that they are {said}")
    if not named:
        return HomesOf(False, f"folders, which every machine has to have: {', '.join(folders)}")
    driver, options = spawner.volume_driver, spawner.volume_driver_options
    if not driver:
        return HomesOf(True, f"volume_driver is empty, and so each machine has its own {named[0]}")
    if driver == "local" and _is_of_one_machine(options):
        return HomesOf(True, f"volume_driver_options name no file server for {named[0]}")
    return HomesOf(False, f"volume_driver = {driver!r} for {named[0]}")


def _is_of_one_machine(options: Mapping[str, str]) -> bool:
    kind = options.get("type", "")
    if kind == FOLDER:
        return not options.get("device")
    return kind in OF_ONE_MACHINE


def _named(spawner: Any) -> Iterator[str]:
    """Yield the names of the volumes in which users can write."""
    if spawner.home_volume:
        yield str(spawner.home_volume)
    yield from (name for name in _writable(spawner) if not _is_folder(name))
    for each in spawner.mounts:
        if isinstance(each, Mapping) and each.get("Type", each.get("type")) == "volume":
            own = (each.get("VolumeOptions") or {}).get("DriverConfig") or {}
            if not own.get("Options") and own.get("Name", "local") in ("", "local"):
                yield str(each.get("Source", each.get("source", "")))


def _folders(spawner: Any) -> Iterator[str]:
    yield from (name for name in _writable(spawner) if _is_folder(name))


def _writable(spawner: Any) -> Iterator[str]:
    for name, where in dict(spawner.volumes).items():
        mode = where.get("mode", "rw") if isinstance(where, Mapping) else "rw"
        if "ro" not in str(mode).split(","):
            yield str(name)


def _is_folder(name: str) -> bool:
    return name.startswith(("/", ".", "~"))


def words(node: str) -> str:
    """Return what users read of files that are on one machine each.

    Args:
        node: the name of the machine with those of the user; "": they have none yet.
    """
    if not node:
        return lazy_gettext(
            "Your files stay on the machine on which your server starts. With a later server on "
            "another machine you don't see them."
        )
    where = MachineText(
        lazy_gettext("Your files are on machine %(node)s.", node=node),
        lazy_gettext("Your files are on one of the machines."),
    )
    return join_sentences(where, CONSEQUENCE)
