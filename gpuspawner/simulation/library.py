"""The build of the simulated NVML library and its `nvidia-smi`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
LIBRARY_SOURCES = (
    *("nvml.c", "nvml_gpu.c", "nvml_health.c", "nvml_links.c", "nvml_mig.c", "nvml_events.c"),
    "nvml_trouble.c",
)
PROGRAM_SOURCES = ("nvidia_smi.c", "nvidia_smi_query.c", "nvidia_smi_topology.c")
_HEADERS = ("state.h", "nvml_abi.h", "nvml_call.h", "nvidia_smi.h")
_COMMON = ("-O2", "-Wall", "-Wextra", "-fno-stack-protector", "-U_FORTIFY_SOURCE")

# The library is also loaded in containers, whose C library may be older than this one, or musl.
# Linked against none, its few undefined symbols have no version and are resolved in whatever the
# program has loaded.
_CODE: tuple[str, ...] = ("-fPIC", "-nostdlib")
_SONAME, _OBJECT, _NVIDIA_SMI = "libnvidia-ml.so.1", "libnvidia-ml.o", "nvidia-smi"
_LIBRARY = (*_CODE, "-shared", f"-Wl,-soname,{_SONAME}")
# Atomic operations as instructions, since the functions that stand for them are in a library too.
if os.uname().machine == "aarch64":
    _CODE += ("-mno-outline-atomics",)
_PROGRAM = ("-static",)


class BuildError(RuntimeError):
    """The simulated NVML can't be built here. `str()` says why."""


@dataclass(frozen=True)
class Binaries:
    """The result of `build`. `directory` can be used in LD_LIBRARY_PATH and in PATH."""

    directory: Path
    library: Path
    nvidia_smi: Path


def build(cache: str | os.PathLike[str], missing_functions: Collection[str] = ()) -> Binaries:
    """Compile `libnvidia-ml.so.1` and `nvidia-smi` into a folder below `cache`, once per content.

    Args:
        cache: the folder in which builds are kept.
        missing_functions: functions to leave out of the library, as in an older driver's.

    Raises:
        BuildError: there is no C compiler, or it fails.
    """
    contents = b"\0".join(
        (_HERE / name).read_bytes() for name in (*LIBRARY_SOURCES, *PROGRAM_SOURCES, *_HEADERS)
    )
    ways = (_COMMON, _CODE, _LIBRARY, _PROGRAM, os.uname().machine)
    compiled = _made_once(Path(cache), "compiled", (contents, ways), _compile)

    def link(folder: Path) -> None:
        _link(compiled, folder, missing_functions)

    directory = _made_once(Path(cache), "nvml", (contents, ways, sorted(missing_functions)), link)
    return Binaries(directory, directory / _SONAME, directory / _NVIDIA_SMI)


def _made_once(cache: Path, kind: str, content: object, make: Callable[[Path], None]) -> Path:
    """Return the folder in `cache` that has been made of a content, now or before."""
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    directory = cache / f"{kind}-{digest}"
    if directory.is_dir():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as temporary:
        made = Path(temporary) / "made"
        made.mkdir(mode=0o755)
        make(made)
        try:
            made.rename(directory)
        except OSError:
            # Another process has built the same meanwhile.
            if not directory.is_dir():
                raise
    return directory


def _compile(folder: Path) -> None:
    """Make the library's code, to be linked with and without some functions, and the program."""
    sources = [str(_HERE / name) for name in LIBRARY_SOURCES]
    _cc(*_COMMON, *_CODE, "-r", *sources, "-o", str(folder / _OBJECT))
    sources = [str(_HERE / name) for name in PROGRAM_SOURCES]
    _cc(*_COMMON, *_PROGRAM, *sources, "-o", str(folder / _NVIDIA_SMI))


def _link(compiled: Path, folder: Path, missing_functions: Collection[str]) -> None:
    script = folder.parent / "missing.map"
    names = " ".join(f"{name};" for name in sorted(missing_functions))
    script.write_text(f"{{ local: {names} }};\n" if names else "{};\n")
    output = ("-o", str(folder / _SONAME))
    _cc(*_LIBRARY, f"-Wl,--version-script={script}", str(compiled / _OBJECT), *output)
    shutil.copy(compiled / _NVIDIA_SMI, folder)


def _cc(*arguments: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        raise BuildError(
            "The simulated NVML needs a C compiler and there is no `cc` on PATH:"
            " install gcc and the C library's headers (on Debian: gcc libc6-dev)."
        )
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"`cc {' '.join(arguments)}` failed: {done.stderr.strip()}")
