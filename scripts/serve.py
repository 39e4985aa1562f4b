"""Build missing images, and run the hub. A program in the environment, on the GPU host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

import docker
import docker.errors
from jupyterhub import app

from gpuspawner.backends.docker.network import NetworkError, ensure_network
from gpuspawner.doctor.hub_machine import engine_folders
from gpuspawner.images import load_catalogue
from gpuspawner.simulation.cluster import PUBLIC_IP_VARIABLE
from gpuspawner.simulation.running_host import ClusterFacts, cluster_of, find_running
from gpuspawner.simulation.state import STATE_PATH_VARIABLE

from .console import ROOT, RUN, Stop, finish, make_run_folder, say, step
from .ports import CONFIG, check_port, dashboard_port, hub_port, public_url
from .root import give_to_owner, is_root

# The first is the form's default; the second is there for those who need no framework.
IMAGES = ("pytorch-2.7", "minimal")
# Each of several machines has a copy of its own, so they have the small one alone.
IMAGES_OF_CLUSTER = ("minimal",)
CLUSTER_CONFIG = ROOT / "jupyterhub_swarm_config.py"
GIB = 1024**3
# For building both, the engine's cache of the steps included; and where layers are whole copies.
SPACE_GIB = 10
SPACE_GIB_COPYING = 30


def main() -> int:
    """Run the hub until it ends; return the exit status."""
    os.chdir(ROOT)
    cluster = cluster_of(find_running()) if STATE_PATH_VARIABLE in os.environ else None
    try:
        address = ensure_network("gpuspawner")
        check_port(address, hub_port(), "c.JupyterHub.hub_port")
        if port := dashboard_port():
            check_port(address, port, "the url in c.JupyterHub.services")
        _build_images(IMAGES_OF_CLUSTER if cluster else IMAGES)
        if cluster:
            _spread_images(cluster)
    except (docker.errors.DockerException, NetworkError) as error:
        raise Stop(str(error)) from error
    return _be_the_hub(cluster is not None)


def _build_images(keys: Sequence[str]) -> None:
    gpuspawner = [sys.executable, "-m", "gpuspawner", "image"]
    listed = subprocess.run([*gpuspawner, "list", "--json"], stdout=subprocess.PIPE, check=False)
    if listed.returncode:
        raise Stop("the image versions can't be listed; the line above says why")
    states = {row["key"]: row["state"] for row in json.loads(listed.stdout)}
    wanted = [key for key in keys if states.get(key) != "built"]
    if not wanted:
        return
    _check_space()
    say(f"Building the images {' and '.join(wanted)}: some minutes and up to 8 GB, the first time")
    if subprocess.run([*gpuspawner, "build", *wanted], check=False).returncode:
        raise Stop("the images can't be built; the lines above say why")


def _spread_images(cluster: ClusterFacts) -> None:
    """Bring the manager's images to the other machines of a simulated cluster."""
    catalogue = load_catalogue(ROOT / "image" / "catalogue.yaml")
    references = [catalogue[key]["image"] for key in IMAGES_OF_CLUSTER]
    manager, *others = (
        docker.APIClient(base_url=f"unix://{folder}/docker.sock", version="auto", timeout=600)
        for folder in cluster.nodes.values()
    )
    for name, client in zip(list(cluster.nodes)[1:], others, strict=True):
        for reference in references:
            wanted = manager.inspect_image(reference)["Id"]
            if any(each["Id"] == wanted for each in client.images(reference)):
                continue
            with step(f"Bringing {reference} to {name}"):
                for _ in client.load_image(manager.get_image(reference)):
                    pass


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


def _be_the_hub(on_cluster: bool) -> int:
    make_run_folder()
    os.chdir(RUN)
    os.umask(0o077)  # of the hub's database and its log-ins
    # A proxy that outlived its hub would keep the port: it ends with it, however the hub ends.
    proxy = ["setpriv", "--pdeathsig", "TERM", "configurable-http-proxy"]
    words = [f"--ConfigurableHTTPProxy.command={word}" for word in proxy]
    config = CLUSTER_CONFIG if on_cluster else CONFIG
    if on_cluster:
        # Of the others no machine has the image.
        words += [f"--GPUSwarmSpawner.allowed_versions={key}" for key in IMAGES_OF_CLUSTER]
    say("Starting JupyterHub; what follows is its log. Ctrl-C ends it")
    JupyterHub.launch_instance(["--config", str(config), *words])
    return 0


class JupyterHub(app.JupyterHub):  # type: ignore[misc]  # it has no types
    """A JupyterHub that prints how to log in when it is ready; it logs under this class's name."""

    async def start(self) -> None:
        """Start the hub, and print how to log in."""
        await super().start()
        if is_root() and ROOT.stat().st_uid != 0:
            give_to_owner(RUN)
        public_ip = os.environ.get(PUBLIC_IP_VARIABLE)  # on a simulated cluster
        for line in (
            f"JupyterHub is ready: {f'http://{public_ip}:8000' if public_ip else public_url()}",
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
