"""The stand-in for `nvidia-container-runtime-hook`: gives a container its GPUs and no others.

The engine adds the hook to a container that has a device request, and runc calls it when the
container's namespaces are there and its program isn't yet, with the container's state on standard
input. Like NVIDIA's it goes by `NVIDIA_VISIBLE_DEVICES`, makes device files and mounts libraries.

It is run by itself, without the package (`python -I -S hook.py DIRECTORY prestart`), hence imports
nothing of it. DIRECTORY is the simulation's; with `cdi UUID` in place of `prestart` it adds one GPU
or MIG instance to those that the container has.

ref: https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks
ref: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
PROGRAM = "nvidia-smi"

# Where the two look for the state when no variable says otherwise, as in a container.
STATE_FOLDER = Path("/run/gpuspawner")

# Writing to /dev/null's number does no harm, and every container may open it.
DEVICE = os.makedev(1, 3)

# ref: open_tree(2), move_mount(2), mount(2), setns(2). The numbers are the same on every machine.
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_SYMLINKS = 0x10
AT_FDCWD = -100
MS_RDONLY_REMOUNT_BIND = 0x1 | 0x20 | 0x1000
CLONE_NEWNS = 0x20000


# Lines that a GPU may have several of.
_REPEATED = (
    *("process", "graphics_process", "mps_process", "nvlink", "function_fault", "event"),
    *("instance", "instance_process"),
)
# Faults with which a GPU has no handle, in NVML's words.
_NO_HANDLE = {"lost": "gpu is lost", "unreachable": "unknown error"}
_BUS_ID = re.compile(r"([0-9a-f]{1,8}):([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.0)?\Z")
# Variables that let a container see and change MIG, which it must be privileged for.
_MIG_VARIABLES = ("MIG_CONFIG_DEVICES", "MIG_MONITOR_DEVICES")


class HookError(Exception):
    """The container can't get what it requests; the engine returns the text with its error."""


def gpus(text: str) -> list[dict[str, str]]:
    """Return the GPUs in a state file's text, each with its `uuid`, `minor_number`, `fault`…"""
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "gpu":
            found.append({"uuid": value})
        elif found and key not in _REPEATED:
            found[-1][key] = value
    return found


class Instance:
    """A MIG instance, from its line of a state file: INDEX GI CI TOTAL USED UUID PROFILE.

    `parent` is its GPU's UUID, `gpu` the GPU's index.
    """

    def __init__(self, gpu: int, parent: str, line: str) -> None:
        self.gpu, self.parent, words = gpu, parent, line.split()
        self.index, self.gi, self.ci = map(int, words[:3])
        self.uuid = words[5]


def instances(text: str) -> list[Instance]:
    """Return the MIG instances in a state file's text."""
    found: list[Instance] = []
    gpu, parent = -1, ""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "gpu":
            gpu, parent = gpu + 1, value
        elif key == "instance":
            found.append(Instance(gpu, parent, value))
    return found


def only(text: str, uuids: list[str], privileged: bool = False) -> str:
    """Return a state file's text as a container sees it.

    Args:
        text: the host's.
        uuids: the GPUs and MIG instances that the container has. A GPU of which it has instances
            is there with those alone, numbered from 0.
        privileged: whether it sees the use of all instances of its GPUs.
    """
    there = [each for each in instances(text) if each.uuid in uuids]
    seen = {*uuids, *(each.parent for each in there)}
    numbers: dict[str, str] = {}
    kept, keep = [], True
    for line in text.splitlines(keepends=True):
        key, _, value = line.partition(" ")
        if key == "gpu":
            keep, numbers = value.rstrip() in seen, {}
        elif key == "privileged":
            line = f"privileged {int(privileged)}\n"
        elif key == "instance":
            index, uuid = value.split()[0], value.split()[5]
            if uuid not in uuids:
                continue
            numbers[index] = str(len(numbers))
            line = f"instance {numbers[index]} {value.partition(' ')[2]}"
        elif key == "instance_process":
            index, _, process = value.partition(" ")
            if index not in numbers:
                continue
            line = f"instance_process {numbers[index]} {process}"
        if keep:
            kept.append(line)
    return "".join(kept)


def chosen(value: str, text: str, detects: bool = True) -> list[str]:
    """Return the UUIDs that a value of NVIDIA_VISIBLE_DEVICES means.

    Its names, in any case, are `all` (with all MIG instances), UUIDs of GPUs and of instances, bus
    ids, indexes of GPUs, and of instances as GPU:INSTANCE.

    Args:
        value: the variable's value.
        text: the state file's text.
        detects: whether all of the host's GPUs are looked at first, as NVIDIA's hook does: then
            one that doesn't answer fails every container. CDI doesn't.

    Raises:
        HookError: there is no driver or no such GPU, or a GPU has fallen off the bus.
    """
    fault = next((line[6:] for line in text.splitlines() if line.startswith("fault ")), "-")
    if fault != "-":
        problem = fault.replace("_", " ")
        raise HookError(f"nvidia-container-cli: initialization error: nvml error: {problem}")
    there = gpus(text)
    for gpu in there if detects else ():
        if gpu.get("fault") in _NO_HANDLE:
            problem = _NO_HANDLE[gpu["fault"]]
            raise HookError(f"nvidia-container-cli: detection error: nvml error: {problem}")
    wanted: list[str] = []
    parts = _within_reach(text) if detects else instances(text)
    for name in filter(None, value.split(",")):
        if name.casefold() == "all":
            named = [*(gpu["uuid"] for gpu in there), *(each.uuid for each in parts)]
        else:
            named = [_named(name, there, parts)]
        wanted += [uuid for uuid in named if uuid not in wanted]
    return wanted


def _within_reach(text: str) -> list[Instance]:
    """Return the instances that NVIDIA's hook finds: each GPU's up to the first gap."""
    found: list[Instance] = []
    for each in sorted(instances(text), key=lambda each: (each.gpu, each.index)):
        if each.index == sum(one.gpu == each.gpu for one in found):
            found.append(each)
    return found


def _named(name: str, there: list[dict[str, str]], parts: list[Instance]) -> str:
    low = name.casefold()
    place = _BUS_ID.match(low)
    bus_id = place and f"{int(place[1], 16):08x}:{int(place[2], 16):02x}:{int(place[3], 16):02x}.0"
    for index, gpu in enumerate(there):
        if (
            low in (gpu["uuid"].casefold(), str(index))
            or bus_id == gpu.get("bus_id", "").casefold()
        ):
            return gpu["uuid"]
    for each in parts:
        # One of before driver 470 has capitals: MIG-GPU-…/gi/ci.
        if low in (each.uuid.casefold(), f"{each.gpu}:{each.index}"):
            return each.uuid
    raise HookError(f"nvidia-container-cli: device error: {name}: unknown device")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock the state and the containers' views of it against other writers."""
    descriptor = os.open(directory / "views", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def show(directory: Path, container: str, uuids: list[str], privileged: bool = False) -> None:
    """Write a container's view of the state, as `only` makes it. The caller holds `locked`."""
    folder = directory / "views" / container
    folder.mkdir(exist_ok=True)
    if privileged:
        _replace(folder / "privileged", "")
    _replace(folder / "visible", "\n".join(uuids) + "\n")
    refresh(directory, container)


def shown(directory: Path, container: str) -> list[str]:
    """Return the UUIDs in a container's view; [] if it has no view."""
    try:
        return _read(directory / "views" / container / "visible").split()
    except FileNotFoundError:
        return []


def refresh(directory: Path, container: str) -> None:
    """Write a container's view from the current state again. The caller holds `locked`."""
    privileged = (directory / "views" / container / "privileged").exists()
    text = only(_read(directory / "state"), shown(directory, container), privileged)
    _replace(directory / "views" / container / "state", text)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8", errors="surrogateescape")
    new.replace(path)


class _Kernel:
    """System calls for mounts and namespaces that Python 3.10 doesn't have."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int, what: str) -> int:
        if result < 0:
            raise HookError(f"gpuspawner's hook can't {what}: {os.strerror(ctypes.get_errno())}")
        return result

    def copy_of(self, path: Path) -> int:
        """Return the descriptor of a detached mount of a file or folder. ref: open_tree(2)"""
        flags = OPEN_TREE_CLONE | os.O_CLOEXEC
        copy = self._library.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)
        return self._check(copy, f"take {path}")

    def enter_mounts_of(self, pid: int) -> None:
        """Enter a process's mount namespace. ref: setns(2)"""
        descriptor = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        self._check(self._library.setns(descriptor, CLONE_NEWNS), f"enter the mounts of {pid}")
        os.close(descriptor)

    def put(self, copy: int, target: Path) -> None:
        """Attach a mount of `copy_of` read-only. ref: move_mount(2)"""
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS
        place = os.fsencode(target)
        done = self._library.syscall(SYS_MOVE_MOUNT, copy, b"", AT_FDCWD, place, flags)
        self._check(done, f"mount {target}")
        done = self._library.mount(None, place, None, MS_RDONLY_REMOUNT_BIND, None)
        self._check(done, f"mount {target} to be read only")


def attach(state: dict[str, Any], root: Path, devices: list[str], directory: Path) -> None:
    """Add device files, library, nvidia-smi and state to a container, where they are missing.

    Afterwards this process is in the container's mount namespace, with its root.

    Args:
        state: the container's state as runc passes it to hooks.
        root: the container's root folder.
        devices: the names in /dev of its GPUs and MIG instances.
        directory: the simulated host's folder.
    """
    kernel = _Kernel()
    view = kernel.copy_of(directory / "views" / state["id"])
    library = kernel.copy_of(directory / "nvml" / LIBRARY)
    program = kernel.copy_of(directory / "nvml" / PROGRAM)
    kernel.enter_mounts_of(state["pid"])
    # From here no link in an image, such as /run -> /host, leads out of it.
    os.chroot(root)
    os.chdir("/")
    os.umask(0)
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", *devices):
        Path("/dev", name).parent.mkdir(mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mknod(f"/dev/{name}", 0o666 | stat.S_IFCHR, DEVICE)
    if (STATE_FOLDER / "visible").exists():  # a CDI hook before this one has put them there
        return
    STATE_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    kernel.put(view, STATE_FOLDER)
    kernel.put(library, _file(_library_folder() / LIBRARY))
    kernel.put(program, _file(Path("/usr/bin") / PROGRAM))


def devices_of(text: str, uuids: list[str]) -> list[str]:
    """Return the names in /dev of GPUs, and of MIG instances with their GPUs.

    Args:
        text: a state file's text.
        uuids: of both.
    """
    parts = [each for each in instances(text) if each.uuid in uuids]
    parents = {*uuids, *(each.parent for each in parts)}
    minors = {gpu["uuid"]: int(gpu["minor_number"]) for gpu in gpus(text)}
    found = [f"nvidia{minor}" for uuid, minor in minors.items() if uuid in parents]
    for each in parts:
        # As the driver numbers them, in /proc/driver/nvidia-caps/mig-minors.
        first = 3 + 135 * minors[each.parent] + 9 * each.gi
        found += [f"nvidia-caps/nvidia-cap{n}" for n in (first, first + 1 + each.ci)]
    return list(dict.fromkeys(found))


def _library_folder() -> Path:
    """Return the folder in the container where its distribution's loader looks for libraries."""
    places = [f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib"]
    return next((place for place in map(Path, places) if place.is_dir()), Path(places[-1]))


def _file(path: Path) -> Path:
    """Return the path of a file to mount on; it is created if it doesn't exist."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o755))
    return path


def root_of(config: dict[str, Any], bundle: str) -> Path:
    """Return the container's root folder.

    Raises:
        HookError: it has none, or the host's own.
    """
    path = config.get("root", {}).get("path", "")
    root = Path(bundle, path).resolve()
    # The container's mount namespace still has the host's files: with no root it would be them.
    if not path or root in (Path("/"), Path(bundle).resolve()):
        raise HookError(f"gpuspawner's hook doesn't work on a container whose root is {path!r}")
    return root


def environment_of(config: dict[str, Any]) -> dict[str, str]:
    """Return the container's environment; the last value counts, as the engine appends its own."""
    words = config.get("process", {}).get("env") or []
    return dict(word.partition("=")[::2] for word in words)


def sees_all_instances(config: dict[str, Any]) -> bool:
    """Return whether a container sees the use of all instances of its GPUs in MIG mode.

    Raises:
        HookError: it wants to, and isn't privileged.
    """
    variables = environment_of(config)
    wanted = [name for name in _MIG_VARIABLES if variables.get(f"NVIDIA_{name}")]
    held = (config.get("process", {}).get("capabilities") or {}).get("bounding") or []
    if wanted and "CAP_SYS_ADMIN" not in held:
        raise HookError(f"cannot set {wanted[0]} in non privileged container")
    return bool(wanted)


def main(directory: Path, stage: str, *added: str) -> int:
    """Handle one container; the exit status."""
    state = json.load(sys.stdin)
    config = json.loads(_read(Path(state["bundle"], "config.json")))
    visible = environment_of(config).get("NVIDIA_VISIBLE_DEVICES", "")
    value = ",".join(added) if stage == "cdi" else visible
    if value in ("", "none", "void"):
        return 0
    try:
        root = root_of(config, state["bundle"])
        with locked(directory):
            text = _read(directory / "state")
            uuids = chosen(value, text, detects=stage != "cdi")
            privileged = stage != "cdi" and sees_all_instances(config)
            before = shown(directory, state["id"]) if stage == "cdi" else []
            every = [*before, *(each for each in uuids if each not in before)]
            show(directory, state["id"], every, privileged)
        attach(state, root, devices_of(text, uuids), directory)
    except (HookError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[2:] and sys.argv[2] in ("prestart", "cdi"):
        sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
    # NVIDIA's hook is also called for other stages, where it has nothing to do.
