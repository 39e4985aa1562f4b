"""Simulated hosts to try things on, and containers and commands that say what they see."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tarfile
import termios
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import docker
from docker.types import DeviceRequest

from gpuspawner.simulation import slots
from gpuspawner.simulation.host import SimulatedHost
from gpuspawner.simulation.state import describe

from .paths import ROOT

IMAGE = "simulation-test:1"
STATE = describe([("A100-40GB", 2), ("T4", 2)])
UUIDS = [gpu.uuid for gpu in STATE.gpus]

# What a container has to say for itself; a static program is an image that needs no registry.
PROBE = r"""
#include <arpa/inet.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void leave(int number) { (void)number; _exit(0); }

static int connected(int kind, const char *host, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int s = socket(AF_INET, kind, 0);
    inet_pton(AF_INET, host, &address.sin_addr);
    return connect(s, (struct sockaddr *)&address, sizeof address) ? -1 : s;
}

static int copy(int from)
{
    char text[65536];
    ssize_t got;
    if (from < 0)
        return 1;
    while ((got = read(from, text, sizeof text)) > 0)
        if (write(1, text, got) < 0)
            return 1;
    return 0;
}

int main(int count, char **words)
{
    const char *what = count > 1 ? words[1] : "";
    signal(SIGTERM, leave);
    if (!strcmp(what, "devices")) {
        DIR *folder = opendir("/dev");
        for (struct dirent *entry; (entry = readdir(folder));)
            if (!strncmp(entry->d_name, "nvidia", 6))
                puts(entry->d_name);
        return 0;
    }
    if (!strcmp(what, "open"))
        return fopen(words[2], "r+") ? 0 : 1;
    if (!strcmp(what, "variables")) {
        extern char **environ;
        for (char **each = environ; *each; each++)
            puts(*each);
        return 0;
    }
    if (!strcmp(what, "read")) {
        FILE *file = fopen(words[2], "r");
        return file ? copy(fileno(file)) : 1;
    }
    if (!strcmp(what, "write")) {
        FILE *file = fopen(words[2], "w");
        return file && fputs(words[3], file) >= 0 && !fclose(file) ? 0 : 1;
    }
    if (!strcmp(what, "fetch"))
        return copy(connected(SOCK_STREAM, words[2], words[3]));
    if (!strcmp(what, "ask")) {
        char text[512];
        int s = connected(SOCK_DGRAM, words[2], words[3]);
        if (s < 0 || write(s, words[4], strlen(words[4])) < 0)
            return 1;
        ssize_t got = read(s, text, sizeof text);
        return got < 0 || write(1, text, got) != got;
    }
    if (!strcmp(what, "serve")) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[2]))};
        int s = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(s, (struct sockaddr *)&address, sizeof address) || listen(s, 5))
            return 1;
        for (;;) {
            int peer = accept(s, NULL, NULL);
            dprintf(peer, "from inside");
            close(peer);
        }
    }
    if (!strcmp(what, "wait"))
        for (;;)
            pause();
    return 2;
}
"""


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something that happens soon, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it didn't come about that {what}"
        time.sleep(0.02)


class Lab:
    """A simulated host, with a client of its engine."""

    def __init__(self, host: SimulatedHost) -> None:
        self.host = host
        self.client = docker.DockerClient(base_url=host.docker_host, version="auto", timeout=60)

    def load(self, files: dict[str, bytes], name: str = IMAGE, links: dict | None = None) -> None:
        """Make an image of these files."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
            for path, target in (links or {}).items():
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
        repository, tag = name.split(":")
        self.client.api.import_image_from_data(packed.getvalue(), repository, tag)

    def run(self, *words: str, gpus: list[str] | None = None, **settings: object) -> str:
        """What a container prints. It must end well."""
        # docker-py's own way follows the log, and the engine loses the words of a short life.
        container = self.begin(*words, gpus=gpus, **settings)
        try:
            status = container.wait()["StatusCode"]
            said = container.logs().decode()
        finally:
            container.remove(force=True)
        assert status == 0, f"{words} ended with {status}: {said}"
        return said

    def begin(self, *words: str, gpus: list[str] | None = None, **settings: object):
        """A container that runs."""
        settings = {"image": IMAGE, "detach": True, **self._wanted(gpus), **settings}
        return self.client.containers.run(command=list(words), **settings)

    @staticmethod
    def _wanted(gpus: list[str] | None) -> dict:
        request = DeviceRequest(device_ids=gpus, capabilities=[["gpu"]])
        return {"device_requests": [request]} if gpus is not None else {}


def answers(path: Path) -> bool:
    """Whether somebody listens at this socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def ended(pid: int) -> bool:
    """Whether a process has ended, if only its parent hasn't been told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def left_by(directory: Path) -> list[str]:
    """What there still is of a simulated host whose keeper has ended; see `belongings`.

    Nothing if another host, such as another test run's, has taken its place since.
    """
    with slots._one_at_a_time():
        return [] if slots._folder_is_held(int(directory.name)) else belongings(directory)


def belongings(directory: Path) -> list[str]:
    """What there is on this machine of the simulated host that has or had this folder."""
    name = slots.slot_name(int(directory.name))
    found = [str(directory)] if directory.exists() else []
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"{name}")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{name}")]
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    interfaces = Path("/proc/self/net/dev").read_text()
    mounts = Path("/proc/self/mounts").read_text()
    for line in (*rules.splitlines(), *interfaces.splitlines(), *mounts.splitlines()):
        if name in line.replace(":", " ").split() or f"{directory}/" in line:
            found.append(line)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # A container or chroot may have a simulated host of its own in the same folder.
            if f"{directory}/" in line and (process / "root/run").samefile("/run"):
                found.append(line)
        except OSError:
            continue
    return found


def simulate(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `gpuspawner simulate` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gpuspawner", "simulate", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


# A COMMAND that says where it is, and what it gets. Its arguments: how many signals end it.
COMMAND = textwrap.dedent(
    r"""
    import json, os, signal, socket, sys, time
    got = []
    def handle(number, frame):
        got.append(number)
        # Not `print`, in the middle of which it may have come.
        os.write(1, f"got {signal.Signals(number).name}\n".encode())
        engine = socket.socket(socket.AF_UNIX)
        engine.connect(os.environ["DOCKER_HOST"].removeprefix("unix://"))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)
    print(json.dumps({**os.environ, "COMMAND_PID": str(os.getpid())}), flush=True)
    while len(got) < int(sys.argv[1]):
        time.sleep(0.01)
    time.sleep(float(sys.argv[2]))
    print("got in all", len(got), flush=True)
    sys.exit(5)
    """
)


def _begin(terminal: bool) -> None:
    # Where the tests run under `nohup`, it is ignored, and simulate leaves that so.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Session:
    """`gpuspawner simulate` with COMMAND, in a terminal of its own or without one."""

    def __init__(self, cache: Path, *, signals: int, terminal: bool = False, seconds: float = 0):
        master, slave = pty.openpty()
        words = ["--gpus", "1", "--", sys.executable, "-c", COMMAND, str(signals), str(seconds)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuspawner", "simulate", *words],
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: _begin(terminal),
        )
        os.close(slave)
        self.terminal = master
        assert self.process.stdout is not None
        self.environment = json.loads(self.process.stdout.readline() or "{}")
        assert self.environment, self.process.communicate()
        self.directory = Path(self.environment["GPUSPAWNER_SIMULATED_STATE"]).parent

    def keeper(self) -> int:
        """The process that takes everything down."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        (keeper,) = [
            int(child)
            for child in children
            if b"keeper" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        return keeper

    def end(self) -> tuple[int, str]:
        """Its status and what COMMAND printed after its first line."""
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        self.process.communicate()
        os.close(self.terminal)
        return self.process.returncode, out
