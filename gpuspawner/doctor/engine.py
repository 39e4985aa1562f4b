"""The check of the Docker Engine: its address, version, kind and warnings."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests.exceptions

from ..backends.docker.errors import UNREACHABLE, explain
from ..backends.docker.network import own_container, shares_host_network
from ..gpus.missing_driver import own_container_id
from .findings import Context, Finding

ANSWER_SECONDS = 20
OLDEST_ENGINE = (20, 10)
DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
# `sudo` and a plain user's shell often leave these out.
SEARCH_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin"])


def find_program(name: str) -> str | None:
    """Return a program's path, from PATH or an administrator's folders."""
    return shutil.which(name) or shutil.which(name, path=SEARCH_PATH)


def address() -> str:
    """Return the engine's address, as docker-py finds it."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_ADDRESS


def socket_path() -> Path | None:
    """Return the path of the engine's socket; None where it is reached over the network."""
    scheme, _, path = address().partition("://")
    return Path(path) if scheme in ("unix", "http+unix") else None


def engine(context: Context) -> Iterator[Finding]:
    """Check that a recent Docker Engine answers, not Podman; keep its client and `GET /info`."""
    client = None
    try:
        client = docker.from_env(timeout=ANSWER_SECONDS)
        about, info = client.version(), client.info()
    except (*UNREACHABLE, OSError) as error:
        if client:
            client.close()
        yield unreachable(error)
        return
    context.engine, context.engine_info = client, info
    context.own_container = own_container(client)
    # A container may have the engine's socket without the engine's files.
    root = Path(str(info.get("DockerRootDir") or "/nowhere"))
    context.engine_is_here = socket_path() is not None and _is_folder(root)
    yield check_version(about)
    if context.own_container is not None:
        yield _in_container(context.own_container)
    yield from _warnings(info)


def _in_container(container: Mapping[str, Any]) -> Finding:
    name = str(container["Name"]).lstrip("/")
    network = "in the host's network" if shares_host_network(container) else "in one of its own"
    what = (
        f"this is its container {name}, {network}: driver, files and programs are looked for in it"
    )
    return Finding("note", what)


def check_version(about: Mapping[str, Any]) -> Finding:
    """Return the finding for an engine's `GET /version`."""
    names = [str(part.get("Name", "")) for part in about.get("Components") or []]
    version = str(about.get("Version") or "")
    if any("podman" in name.lower() for name in names):
        return Finding(
            "failure",
            f"Podman {version} answers at {address()}: it ignores requests for GPUs, or hands "
            "out others than were asked for",
            "install Docker Engine: sudo apt-get install docker.io\n"
            "and unset DOCKER_HOST, or point it to Docker's socket",
        )
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if not numbers:
        return Finding("warning", f"its version can't be told from {version!r}", "docker version")
    if numbers < OLDEST_ENGINE:
        return Finding(
            "failure",
            f"version {version} is too old: it must be 20.10 or newer",
            "update it: sudo apt-get update && sudo apt-get install docker.io",
        )
    return Finding("ok", f"version {version} at {address()}")


def unreachable(error: Exception) -> Finding:
    """Return the finding for an engine that can't be reached: the likely cause, and what to do."""
    path = socket_path()
    where = f"at {address()}" + (" (DOCKER_HOST)" if os.environ.get("DOCKER_HOST") else "")
    if _timed_out(error):
        found, advice = f"it doesn't answer {where}", "sudo systemctl restart docker"
    elif isinstance(error, docker.errors.APIError):
        found, advice = explain(error), "see what `docker version` says"
    elif path is None:
        found = f"nothing answers {where}"
        advice = "start it there, or unset DOCKER_HOST to use this machine's"
    elif not path.exists() and own_container_id():
        found = f"there is no socket {where} in this container"
        advice = f"start the hub's container with -v {path}:{path}"
    elif not path.exists():
        found = f"there is no socket {where}"
        advice = (
            "start it: sudo systemctl start docker"
            if find_program("dockerd")
            else "install it: sudo apt-get install docker.io"
        )
    elif not os.access(path, os.R_OK | os.W_OK):
        found = f"you ({_user()}) may not speak with it {where}"
        advice = (
            f"start the hub's container with --group-add {path.stat().st_gid}"
            if own_container_id()
            else f"sudo usermod -aG docker {_user()}    (then log in anew; whoever is in that "
            "group is root on this machine)"
        )
    else:
        found = f"its socket is there and nobody answers {where}"
        advice = "sudo systemctl restart docker    (why it ended: sudo journalctl -u docker)"
    return Finding("failure", found, advice)


def _timed_out(error: BaseException | None) -> bool:
    """Return whether an error was caused by a timeout; docker-py wraps that of its first call."""
    while error is not None:
        if isinstance(error, requests.exceptions.Timeout):
            return True
        error = error.__cause__ or error.__context__
    return False


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _warnings(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings about an engine's properties that affect servers."""
    if address().startswith("tcp://") and not os.environ.get("DOCKER_TLS_VERIFY"):
        yield Finding(
            "warning",
            f"everybody who reaches {address()} is root on that machine",
            "use its socket: unset DOCKER_HOST",
        )
    name = info.get("Name")
    if socket_path() is None and name != socket.gethostname():
        yield Finding(
            "warning",
            f"it runs on another machine ({name}), and the GPUs are looked for on this one",
            "run the hub on the GPU machine",
        )
    if info.get("MemoryLimit") is False:
        yield Finding(
            "warning",
            "it can't limit memory, so c.GPUSpawner.mem_limit has no effect",
            "start the kernel with `cgroup_enable=memory` (/etc/default/grub), or use cgroup v2",
        )
    if info.get("Driver") == "vfs":
        yield Finding(
            "note",
            "it stores images by copying (vfs): slow, and several times as large",
            "keep its folder on ext4 or xfs; see `docker info`",
        )
    # Swarm refuses that setting.
    in_swarm = (info.get("Swarm") or {}).get("LocalNodeState") == "active"
    if info.get("LiveRestoreEnabled") is False and not in_swarm:
        yield Finding(
            "note",
            "when it is restarted, as by an update, it stops all servers",
            '{"live-restore": true}    (in /etc/docker/daemon.json)\nsudo systemctl reload docker',
        )
    if is_rootless(info):
        yield Finding(
            "note", "it runs without root, so limits may have no effect", "see docker info"
        )


def is_rootless(info: Mapping[str, Any]) -> bool:
    """Return whether an engine runs in rootless mode, by its `GET /info`."""
    return any("rootless" in str(option) for option in info.get("SecurityOptions") or [])


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
