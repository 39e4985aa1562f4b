"""Hubs that start at once: forks of a process that has loaded JupyterHub and us already.

Loading them takes a hub most of its start, and the tests start a hundred hubs. A fork runs the same
`jupyterhub.app.main` as `python -m jupyterhub`, in a process and a session of its own.

As a program it is that process: `python -m tests.support.hub_nursery SOCKET`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .paths import ROOT

# What a process reads once, at its own start; a hub with others of these can't be a fork.
READ_AT_START = (
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PYTHONPATH",
    "PYTHONHOME",
    "LANG",
    "LC_ALL",
    "TZ",
)


# What a doctor says of a hub's configuration, in the hub's folder.
DOCTORS = "doctor.json"


class HubProcess:
    """A hub that was forked, with what `subprocess.Popen` has and the tests use."""

    def __init__(self, connection: socket.socket) -> None:
        self._news = connection.makefile("r")
        self._connection = connection
        self.pid = int(self._news.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("jupyterhub", timeout or 0)
            self.returncode = int(self._news.readline())
            self._connection.close()
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class HubNursery:
    """The process whose forks hubs are; ends with `close`, or with the process that made this."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._socket = folder / "hubs.sock"
        self._environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.hub_nursery", str(self._socket)],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Return whether a hub with this environment can be a fork."""
        return all(environment.get(n) == self._environment.get(n) for n in READ_AT_START)

    def start(
        self, folder: Path, environment: Mapping[str, str], log: Path, program: str = "hub"
    ) -> HubProcess:
        """Start a hub in the folder that has its configuration; it appends to `log`.

        Args:
            program: "doctor" for what only reads the configuration, as `gpuspawner doctor` does,
                and writes what it found to doctor.json.
        """
        assert self._process.stdout is not None
        if not self._process.stdout.closed:
            assert self._process.stdout.readline() == b"ready\n"
            self._process.stdout.close()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._socket))
        wanted = {
            "folder": str(folder),
            "environment": dict(environment),
            "log": str(log),
            "program": program,
        }
        connection.sendall(json.dumps(wanted).encode() + b"\n")
        return HubProcess(connection)

    def close(self) -> None:
        """End it, and hubs that still run."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _become_hub(wanted: Mapping[str, str], environment: Mapping[str, str]) -> None:
    os.setsid()
    os.chdir(wanted["folder"])
    log = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = ["jupyterhub", "-f", "jupyterhub_config.py"]


def _examine(folder: Path) -> int:
    from gpuspawner.doctor.configuration import linked
    from gpuspawner.doctor.loading import load

    file = folder / "jupyterhub_config.py"
    with linked(folder) as there:
        os.chdir(there)
        (folder / DOCTORS).write_text(json.dumps(load(file)))
        os.chdir(folder)
    return 0


def _load() -> None:
    """Load what every hub loads at its start."""
    import functools

    import alembic.command  # noqa: F401
    import jupyterhub.app
    import jupyterhub.authenticators.shared
    import jupyterhub.orm
    import jupyterhub.traitlets
    import sqlalchemy.orm

    import gpuspawner.doctor.configuration
    import gpuspawner.doctor.loading
    import gpuspawner.network
    import gpuspawner.spawner  # noqa: F401
    from gpuspawner.choices import form

    # What is registered for a configuration to name, each hub looks for and loads at its start.
    jupyterhub.traitlets.entry_points = functools.cache(jupyterhub.traitlets.entry_points)
    assert jupyterhub.app.JupyterHub().classes
    for template in form._templates.list_templates():
        form._templates.get_template(template)
    # What SQLAlchemy makes at a process's first use of a database, it keeps.
    database = sqlalchemy.create_engine("sqlite:///:memory:")
    jupyterhub.orm.Base.metadata.create_all(database)
    with sqlalchemy.orm.Session(database) as session:
        session.query(jupyterhub.orm.User).all()
    database.dispose()


def serve(path: str) -> None:
    """Fork a hub for each connection, until standard input ends."""
    import faulthandler
    import gc

    faulthandler.enable()
    _load()
    import jupyterhub.app

    # Nothing of all this is looked through, and so copied, by the forks' collectors of garbage.
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    hubs: dict[int, tuple[int, socket.socket]] = {}
    while True:
        readable, _, _ = select.select([sys.stdin, listener, *hubs], [], [])
        if sys.stdin in readable:  # the run has ended; if it was killed, its hubs run still
            for pid, _ in hubs.values():
                os.kill(pid, signal.SIGTERM)
            return
        for ended in [each for each in readable if each in hubs]:
            pid, connection = hubs.pop(ended)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(BrokenPipeError):
                connection.sendall(f"{code}\n".encode())
            connection.close()
            os.close(ended)
        if listener not in readable:
            continue
        connection = listener.accept()[0]
        wanted = json.loads(connection.makefile().readline())
        pid = os.fork()
        if pid == 0:
            for descriptor, (_, other) in hubs.items():
                os.close(descriptor)
                other.close()
            listener.close()
            connection.close()
            _become_hub(wanted, wanted["environment"])
            if wanted["program"] == "doctor":
                sys.exit(_examine(Path(wanted["folder"])))
            sys.exit(jupyterhub.app.main())
        connection.sendall(f"{pid}\n".encode())
        hubs[os.pidfd_open(pid)] = (pid, connection)


if __name__ == "__main__":
    serve(sys.argv[1])
