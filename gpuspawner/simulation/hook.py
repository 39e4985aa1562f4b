"""The stand-in for `nvidia-container-runtime-hook`: puts leased GPUs, no others, in a container.

The engine adds the hook to a container that has a device request, and runc calls it when the
container's namespaces are there and its program isn't yet, with the container's state on standard
input. Like NVIDIA's it goes by `NVIDIA_VISIBLE_DEVICES`, makes device files and mounts libraries.

It is run by itself, without the package (`python -I -S hook.py DIRECTORY prestart`), hence imports
nothing of it. DIRECTORY is the simulation's; with `cdi UUID` in place of `prestart` it adds one GPU
to those that the container has.

ref: https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks
ref: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
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


class HookError(Exception):
    """The container can't have what it asks for; the engine shows the text to who started it."""


def gpus(text: str) -> list[dict[str, str]]:
    """The GPUs in a state file's text, each with its `uuid`, `minor_number`, `fault`…"""
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "gpu":
            found.append({"uuid": value})
        elif found:
            found[-1][key] = value
    return found


def only(text: str, uuids: list[str]) -> str:
    """A state file's text without the GPUs that aren't in `uuids`."""
    kept, keep = [], True
    for line in text.splitlines(keepends=True):
        if line.startswith("gpu "):
            keep = line.split()[1] in uuids
        if keep:
            kept.append(line)
    return "".join(kept)


def chosen(value: str, text: str) -> list[str]:
    """The UUIDs that a value of NVIDIA_VISIBLE_DEVICES stands for: `all`, indices or UUIDs.

    HookError for a GPU that isn't there or has fallen off the bus, and without a driver.
    """
    fault = next((line[6:] for line in text.splitlines() if line.startswith("fault ")), "-")
    if fault != "-":
        problem = fault.replace("_", " ")
        raise HookError(f"nvidia-container-cli: initialization error: nvml error: {problem}")
    wanted: list[str] = []
    for name in value.split(","):
        named = [
            gpu for index, gpu in enumerate(gpus(text)) if name in ("all", gpu["uuid"], str(index))
        ]
        if not named and name != "all":
            raise HookError(f"nvidia-container-cli: device error: {name}: unknown device")
        if any(gpu.get("fault") == "lost" for gpu in named):
            raise HookError("nvidia-container-cli: detection error: nvml error: gpu is lost")
        wanted += [gpu["uuid"] for gpu in named if gpu["uuid"] not in wanted]
    return wanted


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Held while the state or a container's view of it is written."""
    descriptor = os.open(directory / "views", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def show(directory: Path, container: str, uuids: list[str]) -> None:
    """Write a container's view of the state: with these GPUs. Hold `locked`."""
    folder = directory / "views" / container
    folder.mkdir(exist_ok=True)
    _replace(folder / "visible", "\n".join(uuids) + "\n")
    refresh(directory, container)


def shown(directory: Path, container: str) -> list[str]:
    """The UUIDs in a container's view; none if it has no view."""
    try:
        return _read(directory / "views" / container / "visible").split()
    except FileNotFoundError:
        return []


def refresh(directory: Path, container: str) -> None:
    """Write a container's view again, from the state as it is now. Hold `locked`."""
    text = only(_read(directory / "state"), shown(directory, container))
    _replace(directory / "views" / container / "state", text)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8", errors="surrogateescape")
    new.replace(path)


class _Kernel:
    """System calls that Python doesn't have, or not yet in 3.10."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int, what: str) -> int:
        if result < 0:
            raise HookError(f"gpuspawner's hook can't {what}: {os.strerror(ctypes.get_errno())}")
        return result

    def copy_of(self, path: Path) -> int:
        """A descriptor of a mount of this file or folder that isn't anywhere yet."""
        flags = OPEN_TREE_CLONE | os.O_CLOEXEC
        copy = self._library.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)
        return self._check(copy, f"take {path}")

    def enter_mounts_of(self, pid: int) -> None:
        """Become part of a process's mount namespace."""
        descriptor = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        self._check(self._library.setns(descriptor, CLONE_NEWNS), f"enter the mounts of {pid}")
        os.close(descriptor)

    def put(self, copy: int, target: Path) -> None:
        """Mount what `copy_of` took, to be read only."""
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS
        place = os.fsencode(target)
        done = self._library.syscall(SYS_MOVE_MOUNT, copy, b"", AT_FDCWD, place, flags)
        self._check(done, f"mount {target}")
        done = self._library.mount(None, place, None, MS_RDONLY_REMOUNT_BIND, None)
        self._check(done, f"mount {target} to be read only")


def attach(state: dict[str, Any], root: Path, numbers: list[str], directory: Path) -> None:
    """Put device files, library, nvidia-smi and state in a container, unless they are there.

    `directory` is the simulation's. From now on this process is inside of the container's root.
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
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", *(f"nvidia{n}" for n in numbers)):
        with contextlib.suppress(FileExistsError):
            os.mknod(f"/dev/{name}", 0o666 | stat.S_IFCHR, DEVICE)
    if (STATE_FOLDER / "visible").exists():  # a CDI hook before this one has put them there
        return
    STATE_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    kernel.put(view, STATE_FOLDER)
    kernel.put(library, _file(_library_folder() / LIBRARY))
    kernel.put(program, _file(Path("/usr/bin") / PROGRAM))


def _library_folder() -> Path:
    """Where this distribution's loader looks, seen from inside."""
    places = [f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib"]
    return next((place for place in map(Path, places) if place.is_dir()), Path(places[-1]))


def _file(path: Path) -> Path:
    """An empty file to mount on, unless there is one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o755))
    return path


def root_of(config: dict[str, Any], bundle: str) -> Path:
    """The container's root folder. HookError for none or the host's own."""
    path = config.get("root", {}).get("path", "")
    root = Path(bundle, path).resolve()
    # The container's mount namespace still has the host's files: with no root it would be them.
    if not path or root in (Path("/"), Path(bundle).resolve()):
        raise HookError(f"gpuspawner's hook doesn't work on a container whose root is {path!r}")
    return root


def environment_of(config: dict[str, Any]) -> dict[str, str]:
    """The container's variables. The engine appends its own: of several values the last counts."""
    words = config.get("process", {}).get("env") or []
    return dict(word.partition("=")[::2] for word in words)


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
            uuids = chosen(value, text)
            before = shown(directory, state["id"]) if stage == "cdi" else []
            show(directory, state["id"], [*before, *(each for each in uuids if each not in before)])
        numbers = [gpu["minor_number"] for gpu in gpus(text) if gpu["uuid"] in uuids]
        attach(state, root, numbers, directory)
    except (HookError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[2:] and sys.argv[2] in ("prestart", "cdi"):
        sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
    # NVIDIA's hook is also called for other stages, where it has nothing to do.
