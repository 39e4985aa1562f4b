"""Where users' files are: on one machine of a Swarm each, or the same on all.

The one place that decides it, from the configuration: form, JupyterLab, queue and doctor ask here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...i18n.lazy_text import MachineText, join_sentences, lazy_gettext
from ..docker.volumes import fitting_name
from .service_spec import VOLUME

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


@dataclass(frozen=True)
class HomesPlace:
    """A place of users' files that is to be the same on all machines.

    Args:
        name: what administrators call it: a folder, or what is mounted.
        mount: a service's mount of what the files of all users are in, without its target, and
            without its source if it is a volume. {}: it has none.
        own: the folder of one user in it; "": it has no user's.
        untried: why a service can't mount it without leaving something behind; "": it can.
    """

    name: str
    mount: Mapping[str, Any] = field(default_factory=dict)
    own: str = ""
    untried: str = ""


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


def places(spawner: Any) -> list[HomesPlace]:
    """Return where the files of users are that are the same on all machines.

    Args:
        spawner: a `GPUSwarmSpawner`; what is one user's own is that of its user.

    Raises:
        Exception: what a function of the administrator's raises, or a template that is wrong.
    """
    found = [_of_folder(spawner, each) for each in _folders(spawner)]
    found += [_of_volume(spawner, each) for each in _named(spawner)]
    # Templates of several volumes may be of one file server.
    return [each for number, each in enumerate(found) if each not in found[:number]]


def _of_folder(spawner: Any, template: str) -> HomesPlace:
    whole, own = _split(template, spawner.format_volume_name(template, spawner))
    if whole in ("", "/"):
        return HomesPlace(template, untried="it has no folder of its own")
    return HomesPlace(whole, {"Type": "bind", "Source": whole}, own)


def _of_volume(spawner: Any, template: str) -> HomesPlace:
    """Return where the volumes of a template are, for `volume_driver` with its options."""
    driver, options = spawner.volume_driver, dict(spawner.volume_driver_options)
    device = str(options.pop("device", ""))
    if not driver:
        why = "volume_driver is empty, so that each machine's engine has volumes of its own"
    elif driver != "local" or not device:
        why = f"a volume of the driver {driver!r} would be left on each machine"
    elif any(VOLUME in str(each) for each in options.values()):
        why = f"volume_driver_options have {VOLUME} elsewhere than in device"
    else:
        why = ""
    if why:
        return HomesPlace(template, untried=why)
    name = fitting_name(spawner.format_volume_name(template, spawner))
    whole, own = _split(device.replace(VOLUME, "{}"), device.replace(VOLUME, name))
    # Of an NFS server the rest is its root; of a Windows server it is no share.
    whole += "/" if whole.endswith(":") else ""
    if whole.count("/") < 3 and whole.startswith("//"):
        return HomesPlace(device, untried="each volume is a share of its own")
    config = {"Name": driver, "Options": {**options, "device": whole}}
    mount = {"Type": "volume", "VolumeOptions": {"NoCopy": True, "DriverConfig": config}}
    return HomesPlace(f"{whole} ({options.get('o') or driver})", mount, own)


def _split(template: str, path: str) -> tuple[str, str]:
    """Return the folder in which a template's are, and which of it a path is; "": it is that one.

    Args:
        template: a path with fields in braces.
        path: what it is for one user.
    """
    before, has_fields, _ = template.partition("{")
    if not has_fields:
        return path.rstrip("/"), ""
    whole = before.rpartition("/")[0]
    return whole, path.removeprefix(whole).strip("/") if path.startswith(f"{whole}/") else ""


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
