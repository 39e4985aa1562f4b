"""The build of the simulated NVML library and its `nvidia-smi`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

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
_LIBRARY: tuple[str, ...] = ("-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libnvidia-ml.so.1")
# Atomic operations as instructions, since the functions that stand for them are in a library too.
if os.uname().machine == "aarch64":
    _LIBRARY += ("-mno-outline-atomics",)
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
    here = Path(__file__).parent
    contents = b"\0".join(
        (here / name).read_bytes() for name in (*LIBRARY_SOURCES, *PROGRAM_SOURCES, *_HEADERS)
    )
    options = repr((_COMMON, _LIBRARY, _PROGRAM, sorted(missing_functions), os.uname().machine))
    digest = hashlib.sha256(contents + options.encode()).hexdigest()[:16]
    directory = Path(cache) / f"nvml-{digest}"
    if not directory.is_dir():
        _compile(here, directory, missing_functions)
    return Binaries(directory, directory / "libnvidia-ml.so.1", directory / "nvidia-smi")


def _compile(here: Path, directory: Path, missing_functions: Collection[str]) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".building-") as temporary:
        made = Path(temporary) / "made"
        made.mkdir(mode=0o755)
        library = [*_COMMON, *_LIBRARY]
        if missing_functions:
            script = Path(temporary) / "missing.map"
            names = " ".join(f"{name};" for name in sorted(missing_functions))
            script.write_text(f"{{ local: {names} }};\n")
            library.append(f"-Wl,--version-script={script}")
        sources = [str(here / name) for name in LIBRARY_SOURCES]
        _cc(*library, *sources, "-o", str(made / "libnvidia-ml.so.1"))
        sources = [str(here / name) for name in PROGRAM_SOURCES]
        _cc(*_COMMON, *_PROGRAM, *sources, "-o", str(made / "nvidia-smi"))
        try:
            made.rename(directory)
        except OSError:
            # Another process has built the same meanwhile.
            if not directory.is_dir():
                raise


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
