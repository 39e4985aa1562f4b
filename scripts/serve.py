"""Build missing images, and run the hub. A program in the environment, on the GPU host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import docker
import docker.errors
from jupyterhub import app

from gpuspawner.backends.docker.network import NetworkError, ensure_network
from gpuspawner.doctor.hub_machine import engine_folders

from .console import ROOT, RUN, Stop, finish, make_run_folder, say
from .ports import CONFIG, check_port, dashboard_port, hub_port, public_url
from .root import give_to_owner, is_root

# The first is the form's default; the second is there for those who need no framework.
IMAGES = ("pytorch-2.7", "minimal")
GIB = 1024**3
# For building both, the engine's cache of the steps included; and where layers are whole copies.
SPACE_GIB = 10
SPACE_GIB_COPYING = 30


def main() -> int:
    """Run the hub until it ends; return the exit status."""
    os.chdir(ROOT)
    try:
        address = ensure_network("gpuspawner")
        check_port(address, hub_port(), "c.JupyterHub.hub_port")
        if port := dashboard_port():
            check_port(address, port, "the url in c.JupyterHub.services")
        _build_images()
    except (docker.errors.DockerException, NetworkError) as error:
        raise Stop(str(error)) from error
    return _be_the_hub()


def _build_images() -> None:
    gpuspawner = [sys.executable, "-m", "gpuspawner", "image"]
    listed = subprocess.run([*gpuspawner, "list", "--json"], stdout=subprocess.PIPE, check=False)
    if listed.returncode:
        raise Stop("the image versions can't be listed; the line above says why")
    states = {row["key"]: row["state"] for row in json.loads(listed.stdout)}
    wanted = [key for key in IMAGES if states.get(key) != "built"]
    if not wanted:
        return
    _check_space()
    say(f"Building the images {' and '.join(wanted)}: some minutes and 8 GB, the first time")
    if subprocess.run([*gpuspawner, "build", *wanted], check=False).returncode:
        raise Stop("the images can't be built; the lines above say why")


def _check_space() -> None:
    """Raise Stop if there is too little space for the images."""
    about = docker.from_env(timeout=20).info()
    needed = SPACE_GIB_COPYING if about["Driver"] == "vfs" else SPACE_GIB
    root, *_ = engine_folders(about)
    if not root.is_dir():  # the engine is on another machine
        return
    free = shutil.disk_usage(root).free / GIB
    if free < needed:
        raise Stop(
            f"the images need {needed} GiB below {root}, and {free:.1f} are free: make room, or "
            "set XDG_CACHE_HOME to a folder on a larger disk"
        )


def _be_the_hub() -> int:
    make_run_folder()
    os.chdir(RUN)
    os.umask(0o077)  # of the hub's database and its log-ins
    # A proxy that outlived its hub would keep the port: it ends with it, however the hub ends.
    proxy = ["setpriv", "--pdeathsig", "TERM", "configurable-http-proxy"]
    words = [f"--ConfigurableHTTPProxy.command={word}" for word in proxy]
    say("Starting JupyterHub; what follows is its log. Ctrl-C ends it")
    JupyterHub.launch_instance(["--config", str(CONFIG), *words])
    return 0


class JupyterHub(app.JupyterHub):  # type: ignore[misc]  # it has no types
    """A JupyterHub that prints how to log in when it is ready; it logs under this class's name."""

    async def start(self) -> None:
        """Start the hub, and print how to log in."""
        await super().start()
        if is_root() and ROOT.stat().st_uid != 0:
            give_to_owner(RUN)
        for line in (
            f"JupyterHub is ready: {public_url()}",
            f"  log in under any name with the password {_secret('user-password')}",
            f"  or as admin with the password {_secret('admin-password')}",
            f"  (kept in {RUN / 'user-password'} and admin-password)",
        ):
            say(line)


def _secret(name: str) -> str:
    try:
        return (RUN / name).read_text().strip()
    except OSError:
        return "of your own configuration"


if __name__ == "__main__":
    finish(main)
