"""The commands' output, calls of other programs, and errors."""

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


# Parts of messages of apt-get, pip and npm -> what to do.
ADVICE: Mapping[tuple[str, ...], str] = {
    ("certificate verify failed", "CERT_", "Certificate verification failed"): (
        ": if a proxy inspects TLS here, name its CA bundle in PIP_CERT, SSL_CERT_FILE and "
        "NODE_EXTRA_CA_CERTS"
    ),
    (
        *("Temporary failure resolving", "Could not resolve", "Could not connect", "unreachable"),
        *("Failed to establish a new connection", "ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED"),
    ): ": go online, or name the proxy of this network in http_proxy and https_proxy",
    ("No space left on device", "ENOSPC"): ": make room on the disk",
}


class Stop(Exception):
    """A command can't go on. `str()` is a sentence that says why and what to do."""


def say(text: str) -> None:
    """Print a line."""
    print(f"gpuspawner: {text}", flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Print a step, and how long it took at the end of the context."""
    say(f"{text} …")
    began = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - began:.0f} s")


def make_run_folder() -> None:
    """Create the run's folder, which only its owner can read, since it has secrets."""
    RUN.mkdir(exist_ok=True)
    RUN.chmod(0o700)


def call(words: Sequence[str | Path], failure: str, env: Mapping[str, str] | None = None) -> None:
    """Run a program with its output in the log.

    Args:
        words: the program and its arguments.
        failure: the beginning of the error message.
        env: the environment; None: this process's own.

    Raises:
        Stop: it fails; the message has the reason from its output.
    """
    make_run_folder()
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
            raise Stop(f"{failure} ({last}){_advice(lines)}; all of its output is in {shown(LOG)}")


def _telling(lines: Sequence[str]) -> str:
    """Return the most helpful line: the first with an error's mark near the end, else the last."""
    marked = [
        line for line in lines[-30:] if line.startswith(("E:", "ERROR:", "npm error", "Error:"))
    ]
    return (marked or list(lines[-1:]) or [""])[0][:300]


def _advice(lines: Sequence[str]) -> str:
    """Return what to do, by the output of apt-get, pip or npm; "" if the cause is unknown."""
    text = "\n".join(lines)
    for marks, advice in ADVICE.items():
        if any(mark in text for mark in marks):
            return advice
    return ""


def shown(path: Path) -> str:
    """Return a path relative to the checkout, if it is in it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def finish(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and exit with its status; print the message of a `Stop`."""
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
