"""Checks of the hub's machine: proxy, disk space, connections and permissions of files."""

from __future__ import annotations

import grp
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from . import configuration_rules, homes
from .engine import socket_path
from .findings import Context, Finding

GIB = 1024**3
# The folder of the engine's images in containerd's image store.
CONTAINERD = Path("/var/lib/containerd")
# In bytes: with less than the first nothing starts, with less than the second soon nothing will.
ENGINE_FULL, ENGINE_TIGHT = 1 * GIB, 10 * GIB
HUB_FULL, HUB_TIGHT = GIB // 10, 1 * GIB
FEW_CONNECTIONS = 8192
INODES_TIGHT = 0.02

OTHERS_READ, OTHERS_WRITE, GROUP_WRITE = stat.S_IROTH, stat.S_IWOTH, stat.S_IWGRP


# ---- The proxy -----------------------------------------------------------------------------------


def proxy(context: Context) -> Iterator[Finding]:
    """Check that the hub finds the proxy that it starts, and that the program runs."""
    given = context.configuration
    kind = str(given.hub.get("proxy") or "") if given else ""
    if kind and "ConfigurableHTTPProxy" not in kind:
        yield Finding("ok", f"the configuration brings its own: {kind}")
        return
    if given and not given.hub.get("proxy_is_started", True):
        yield Finding("ok", "the configuration doesn't have the hub start it")
        return
    command = given.hub.get("proxy_command") if given else None
    words = [str(word) for word in command or ["configurable-http-proxy"]]
    found = shutil.which(words[0])
    if found:
        yield _check_proxy_runs(found)
        return
    beside = [Path(place) / "node_modules" / ".bin" for place in (context.folder, Path.cwd())]
    if given:
        beside.append(given.file.parent / "node_modules" / ".bin")
    for folder in beside:
        if (folder / words[0]).exists():
            yield Finding(
                "warning",
                f"{words[0]} is in {folder}, where a hub doesn't look (`make run` does)",
                f"export PATH={folder}:$PATH",
            )
            return
    yield Finding(
        "failure",
        f"{words[0]} isn't on PATH, and no hub starts without it",
        "sudo apt-get install npm && sudo npm install -g configurable-http-proxy",
    )


def _check_proxy_runs(program: str) -> Finding:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("failure", f"{program} doesn't run: {error}", "node --version")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        return Finding("failure", f"{program} doesn't run: {said}", "sudo apt-get install nodejs")
    return Finding("ok", f"{program}, version {done.stdout.strip()}")


# ---- The disks -----------------------------------------------------------------------------------


def disk(context: Context) -> Iterator[Finding]:
    """Check the free space for the engine's images and volumes, and in the hub's folder."""
    tight = max(ENGINE_TIGHT, context.missing_bytes + GIB)
    for folder in engine_folders(context.engine_info) if context.engine_is_here else ():
        yield from _check_space("the Docker Engine's folder", folder, ENGINE_FULL, tight)
    if context.own_container is not None and not context.engine_is_here:
        root = context.engine_info.get("DockerRootDir")
        yield Finding(
            "note",
            f"the Docker Engine's folder {root}, with images and volumes, can't be seen from here",
            f"on the machine itself: df -h {root}",
        )
    given = context.configuration
    if given and given.is_ours and "storage_opt" not in configuration_rules.host_config(given):
        what = "nothing limits how much of it one server writes, outside of its volume too"
        yield Finding("note", what, homes.PAGE)
    yield from homes.homes(context)
    yield from _check_space("the hub's folder", context.folder, HUB_FULL, HUB_TIGHT)


def engine_folders(info: Mapping[str, Any]) -> list[Path]:
    """Return the folders of an engine's images and volumes, the images' first.

    With containerd's image store, the default of a new Docker 29, images are containerd's.
    """
    root = str(info.get("DockerRootDir") or "")
    folders = [Path(root)] if root else []
    stores = [str(value) for _, value in info.get("DriverStatus") or []]
    if any(store.startswith("io.containerd.snapshotter") for store in stores):
        folders = [folder for folder in (CONTAINERD,) if folder.is_dir()] + folders
    return folders


def _check_space(what: str, folder: Path, full: int, tight: int) -> Iterator[Finding]:
    try:
        about = os.statvfs(folder)
    except OSError as error:
        yield Finding("note", f"{what}, {folder}, can't be looked at: {error.strerror}")
        return
    free = about.f_bavail * about.f_frsize
    advice = "see what takes it: docker system df; remove what nobody needs: docker image prune"
    if what.startswith("the hub"):
        advice = f"see what takes it: du -xh --max-depth=1 {folder} | sort -h"
    said = f"{free / GIB:.1f} GiB are free in {what}, {folder}"
    if free < full:
        yield Finding("failure", f"{said}: nothing can be started", advice, blocks=False)
    elif free < tight:
        yield Finding("warning", f"{said}: little for images, volumes and logs", advice)
    elif about.f_files and about.f_favail < about.f_files * INODES_TIGHT:
        what_else = f"{about.f_favail} more files fit in {what}, {folder}, whatever space is free"
        yield Finding("warning", what_else, advice)
    else:
        yield Finding("ok", said)


# ---- Connections ---------------------------------------------------------------------------------


def connections(context: Context) -> Iterator[Finding]:
    """Check that the hub may have as many connections as users' servers can open to it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < FEW_CONNECTIONS:
        what = f"a process started here can have {most} files and connections open, at most"
        advice = "in the hub's systemd unit: LimitNOFILE=65536    (in a shell: ulimit -Hn 65536)"
        if context.own_container is not None:
            advice = (
                "start the hub's container with --ulimit nofile=65536\n"
                "(in a compose file: ulimits: {nofile: 65536})"
            )
        yield Finding("warning", f"{what}: one server can take them all", advice)
        return
    yield Finding("ok", "the hub can have as many connections as it needs")


# ---- Who may read and write what -----------------------------------------------------------------


def permissions(context: Context) -> Iterator[Finding]:
    """Check who can access the engine, the hub's secrets and its configuration."""
    found = [
        *_check_socket(),
        *_check_secrets(context),
        *_check_configuration(context),
        *_check_user(),
    ]
    yield from found
    if not any(finding.state in ("warning", "failure") for finding in found):
        yield Finding("ok", "engine, secrets and configuration are readable by those who should")


def _check_socket() -> Iterator[Finding]:
    path = socket_path()
    about = _stat(path) if path else None
    if path is None or about is None:
        return
    if about.st_mode & OTHERS_WRITE:
        what = f"everybody on this machine is root: {path} is writable by all"
        yield Finding("failure", what, f"sudo chmod o-rwx {path}")
    if about.st_mode & GROUP_WRITE and about.st_gid != 0:
        try:
            members = grp.getgrgid(about.st_gid).gr_mem
        except KeyError:
            return
        if members:
            what = f"root on this machine, by {path}: {', '.join(sorted(members))}"
            yield Finding("note", what, "take who needn't be out: sudo gpasswd -d NAME docker")


def _check_secrets(context: Context) -> Iterator[Finding]:
    hub = context.configuration.hub if context.configuration else {}
    secret = context.folder / (hub.get("cookie_secret_file") or "jupyterhub_cookie_secret")
    about = _stat(secret)
    if about and about.st_mode & 0o007:
        what = f"{secret} can be read by everybody on this machine: no hub starts with it"
        yield Finding("failure", what, f"rm {secret}    (the hub makes another; all log in anew)")
    database = _database(context.folder, str(hub.get("db_url") or "sqlite:///jupyterhub.sqlite"))
    about = _stat(database) if database and _others_reach(database) else None
    if about and about.st_mode & OTHERS_WRITE:
        what = f"{database} can be written by everybody on this machine"
        yield Finding("failure", what, f"chmod 600 {database}")
    elif about and about.st_mode & OTHERS_READ:
        what = f"{database}, with its users' tokens and state, can be read by everybody here"
        yield Finding("warning", what, f"chmod 600 {database}")


def _database(folder: Path, url: str) -> Path | None:
    """Return the file of an SQLite database; None for another database."""
    parts = urlparse(url)
    if not parts.scheme.startswith("sqlite") or not parts.path.strip("/"):
        return None
    return folder / parts.path[1:]  # "sqlite:////srv/x" has an absolute one


def _check_configuration(context: Context) -> Iterator[Finding]:
    if context.config_file is None:
        return
    for path in (context.config_file, context.config_file.parent):
        about = _stat(path)
        if about is None or not _others_reach(path):
            continue
        if about.st_mode & OTHERS_WRITE and not about.st_mode & stat.S_ISVTX:
            what = f"{path} can be written by everybody, and what is in it runs as the hub"
            yield Finding("failure", what, f"chmod o-w {path}")


def _check_user() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding(
            "note",
            "you are root; a hub that is root is root's to anybody who breaks it",
            "a user of its own in the group docker is enough, but for log-in by PAM",
        )
        return
    path = socket_path()
    if path and path.exists() and os.access(path, os.W_OK):
        yield Finding("note", "you may use the Docker Engine, and so are root on this machine")


def _others_reach(path: Path) -> bool:
    """Return whether everybody may enter all folders above a file; what it allows itself aside."""
    found = [_stat(folder) for folder in path.absolute().parents]
    return all(about is None or about.st_mode & stat.S_IXOTH for about in found)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
