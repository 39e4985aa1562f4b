"""Programs that see a simulated NVML, for tests: the real nvidia-ml-py over the C library.

A library is chosen when a process starts (LD_LIBRARY_PATH), so each runs in a process of its own.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpuspawner.simulation import library
from gpuspawner.simulation.state import STATE_PATH_VARIABLE, State

SOURCES = Path(library.__file__).parent

# Runs each text that it is sent, and sends back what the text left in `result`, or its exception.
_WORKER = """
import pickle, sys
names = {}
while True:
    try:
        text = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    try:
        names["result"] = None
        exec(text, names)
        answer = (True, names["result"])
    except Exception as error:
        answer = (False, error)
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


def environment(directory: Path, state: Path, **more: str) -> dict[str, str]:
    """What a program needs to see the library in `directory` and the state in the file `state`."""
    ours = {"LD_LIBRARY_PATH": str(directory), STATE_PATH_VARIABLE: str(state)}
    return {**os.environ, **ours, **more}


class Program:
    """A Python process that lives on, with a simulated NVML library and a state file."""

    def __init__(self, directory: Path, state_path: Path, **environment_variables: str) -> None:
        self.state_path = state_path
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(directory, state_path, **environment_variables),
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, text: str, state: State | None = None) -> Any:
        """What the text leaves in `result`, after writing `state`; raises what the text raises."""
        if state is not None:
            state.write(self.state_path)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump(text, self.process.stdin)
        self.process.stdin.flush()
        succeeded, value = pickle.load(self.process.stdout)
        if not succeeded:
            raise value
        return value

    def read(self, state: State | None = None, **arguments: object) -> Any:
        """`inventory.read(**arguments)` in that process, after writing `state`."""
        text = f"from gpuspawner.gpus import nvml; result = nvml.read(**{arguments!r})"
        return self.run(text, state)


def compile_variant(directory: Path, function: str, definition: str) -> Path:
    """The simulated library with one function replaced, as a library gone wrong has it.

    The real one is there for the definition to call, with `original_` before its name.
    """
    source = directory / "variant.c"
    includes = "\n".join(f'#include "{SOURCES / name}"' for name in library.LIBRARY_SOURCES)
    source.write_text(
        f"#define {function} original_{function}\n{includes}\n#undef {function}\n{definition}\n"
    )
    made = directory / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["cc", *flags, str(source), "-o", str(made)], check=True)
    return directory
