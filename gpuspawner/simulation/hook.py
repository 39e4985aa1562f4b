"""The stand-in for `nvidia-container-runtime-hook`: gives a container its GPUs and no others.

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
    """The container can't get what it requests; the engine returns the text with its error."""


def gpus(text: str) -> list[dict[str, str]]:
    """Return the GPUs in a state file's text, each with its `uuid`, `minor_number`, `fault`…"""
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "gpu":
            found.append({"uuid": value})
        elif found:
            found[-1][key] = value
    return found


def only(text: str, uuids: list[str]) -> str:
    """Return a state file's text without the GPUs that aren't in `uuids`."""
    kept, keep = [], True
    for line in text.splitlines(keepends=True):
        if line.startswith("gpu "):
            keep = line.split()[1] in uuids
        if keep:
            kept.append(line)
    return "".join(kept)


def chosen(value: str, text: str) -> list[str]:
    """Return the UUIDs that a value of NVIDIA_VISIBLE_DEVICES means: `all`, indexes or UUIDs.

    Args:
        value: the variable's value.
        text: the state file's text.

    Raises:
        HookError: there is no driver or no such GPU, or the GPU has fallen off the bus.
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
    """Lock the state and the containers' views of it against other writers."""
    descriptor = os.open(directory / "views", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def show(directory: Path, container: str, uuids: list[str]) -> None:
    """Write a container's view of the state, with only these GPUs. The caller holds `locked`."""
    folder = directory / "views" / container
    folder.mkdir(exist_ok=True)
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
    text = only(_read(directory / "state"), shown(directory, container))
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


def attach(state: dict[str, Any], root: Path, numbers: list[str], directory: Path) -> None:
    """Add device files, library, nvidia-smi and state to a container, where they are missing.

    Afterwards this process is in the container's mount namespace, with its root.

    Args:
        state: the container's state as runc passes it to hooks.
        root: the container's root folder.
        numbers: the minor numbers of its GPUs.
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
