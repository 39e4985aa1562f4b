"""The specifications of the Container Device Interface, compared with this machine's devices.

A specification is written once, and may be of an earlier driver, of other GPUs, or of before a
restart that gave devices other numbers.

ref: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backends.docker.device_requests import GPU_KIND
from ..untrusted import parse_json, parse_yaml

# Where NVIDIA's driver says which device file a GPU has.
DRIVERS_GPUS = Path("/proc/driver/nvidia/gpus")
MOST_BYTES = 4 << 20
# What a value of another shape than the specification's raises.
MALFORMED = (ValueError, LookupError, AttributeError, TypeError)


@dataclass(frozen=True)
class Device:
    """A GPU or MIG instance of a specification, with what it adds to a container."""

    name: str
    file: Path
    edits: Sequence[Mapping[str, Any]]


@dataclass
class Found:
    """What an engine finds in its folders of specifications.

    Args:
        devices: name -> device, of kind nvidia.com/gpu, as the engine takes them.
        unread: file -> why it can't be read or isn't a specification.
        twice: the names that two files of one folder have: the engine knows neither then.
    """

    devices: dict[str, Device] = field(default_factory=dict)
    unread: dict[Path, str] = field(default_factory=dict)
    twice: dict[str, tuple[Path, Path]] = field(default_factory=dict)


def read(folders: Iterable[Path]) -> Found:
    """Read the specifications in folders; what is in a later one goes before an earlier one's."""
    found = Found()
    for folder in folders:
        here: dict[str, Device] = {}
        try:
            files = sorted(each for each in folder.iterdir() if each.suffix in (".json", ".yaml"))
        except FileNotFoundError:
            continue
        except OSError as error:
            found.unread[folder] = error.strerror or str(error)
            continue
        for file in files:
            try:
                devices = list(_devices(file))
            except OSError as error:
                found.unread[file] = error.strerror or str(error)
            except MALFORMED as error:
                found.unread[file] = f"it is no specification ({str(error)[:100]})"
            else:
                for each in devices:
                    if each.name in here:
                        found.twice[each.name] = (here[each.name].file, file)
                    here[each.name] = each
        found.devices |= here
    return found


def _devices(file: Path) -> Iterator[Device]:
    with file.open(errors="replace") as opened:
        text = opened.read(MOST_BYTES)
    specification = parse_json(text) if file.suffix == ".json" else parse_yaml(text)
    if specification.get("kind") != GPU_KIND:
        return
    common = specification.get("containerEdits") or {}
    for device in specification.get("devices") or []:
        yield Device(str(device["name"]), file, [common, device.get("containerEdits") or {}])


def problems(devices: Iterable[Device], minors: Mapping[str, int]) -> dict[Path, list[str]]:
    """Return file -> what in it isn't as on this machine, as parts of a sentence.

    Args:
        devices: of one engine.
        minors: UUID -> the number of its device file, of the GPUs whose driver tells it.
    """
    found: dict[Path, dict[str, None]] = {}
    for device in devices:
        told = found.setdefault(device.file, {})
        for edits in device.edits:
            with suppress(*MALFORMED):  # the engine doesn't take it
                told |= dict.fromkeys(_problems(device.name, edits, minors))
    return {file: list(told) for file, told in found.items() if told}


def _problems(name: str, edits: Mapping[str, Any], minors: Mapping[str, int]) -> Iterator[str]:
    for node in edits.get("deviceNodes") or []:
        inside, path = str(node["path"]), str(node.get("hostPath") or node["path"])
        yield from _other_numbers(path, node.get("major"), node.get("minor"))
        wanted = minors.get(name.lower())
        given = inside.removeprefix("/dev/nvidia")
        if wanted is not None and given.isdecimal() and int(given) != wanted:
            yield f"{name} is {inside} there, which is another GPU: it is /dev/nvidia{wanted}"
    for mount in edits.get("mounts") or []:
        if not Path(str(mount["hostPath"])).exists():
            yield f"it mounts {mount['hostPath']}, which isn't there"


def _other_numbers(path: str, major: Any, minor: Any) -> Iterator[str]:
    """Yield what is wrong with a device file whose numbers a specification may have."""
    try:
        there = os.stat(path)  # noqa: PTH116 - a path that the engine takes as it is
    except FileNotFoundError:
        yield f"{path} isn't there"
        return
    except OSError:
        return
    if major is None or not stat.S_ISCHR(there.st_mode):
        return
    numbers = (os.major(there.st_rdev), os.minor(there.st_rdev))
    said = (int(major), int(minor or 0))
    if numbers != said:
        yield (
            f"{path} has the numbers {numbers[0]}:{numbers[1]} here, and {said[0]}:{said[1]} there"
        )


def device_numbers(folder: Path | None = None) -> dict[str, int]:
    """Return UUID in lower case -> the number of its device file, as NVIDIA's driver says.

    Args:
        folder: where it says so; None: `DRIVERS_GPUS`.
    """
    found = {}
    for file in (folder or DRIVERS_GPUS).glob("*/information"):
        with suppress(OSError, ValueError, KeyError):
            lines = file.read_text(errors="replace").splitlines()
            parts = (line.partition(":") for line in lines)
            said = {key.strip(): value.strip() for key, _, value in parts}
            found[said["GPU UUID"].lower()] = int(said["Device Minor"])
    return found
