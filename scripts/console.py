"""What the commands say, how they call other programs, and how they give up."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
# The hub's working folder: its database, its secrets, and what was installed when.
RUN = ROOT / ".run"
LOG = RUN / "setup.log"


class Stop(Exception):
    """It can't go on. The text is a sentence that says why, and what to do."""


def say(text: str) -> None:
    """Print a line."""
    print(f"gpuspawner: {text}", flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is being done, and afterwards how long it took."""
    say(f"{text} …")
    began = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - began:.0f} s")


def call(words: Sequence[str | Path], failure: str, env: Mapping[str, str] | None = None) -> None:
    """Run a program, its output into the log. If it fails, Stop with `failure` and why."""
    RUN.mkdir(exist_ok=True)
    command = [str(word) for word in words]
    with LOG.open("a+", errors="replace") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        start = log.tell()
        # Standard input stays: `sudo` may have to ask for a password.
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env, check=False
        )
        if done.returncode:
            log.seek(start)
            lines = [line.strip() for line in log if line.strip()]
            last = _telling(lines) or f"exit status {done.returncode}"
            raise Stop(f"{failure} ({last}); all of its output is in {shown(LOG)}")


def _telling(lines: Sequence[str]) -> str:
    """The line that tells most: the first with an error's mark near the end, else the last."""
    marked = [
        line for line in lines[-30:] if line.startswith(("E:", "ERROR:", "npm error", "Error:"))
    ]
    return (marked or list(lines[-1:]) or [""])[0][:300]


def shown(path: Path) -> str:
    """A path as a person in the checkout would write it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def finish(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and end the process: if it stops with a sentence, not a traceback."""
    try:
        status = main()
    except Stop as reason:
        status = _failed(str(reason))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = _failed(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _failed(sentence: str) -> int:
    print(f"gpuspawner: {sentence}", file=sys.stderr, flush=True)
    return 1
