"""A simulated Swarm for the tests: its hubs, and what is on its nodes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import docker
import docker.errors

from gpuspawner.backends.swarm.backend import SwarmBackend
from gpuspawner.simulation.cluster import NETWORK, SimulatedCluster, name_of
from gpuspawner.simulation.programs import SimulationError
from gpuspawner.simulation.state import State, describe

from . import plain_image
from .dashboards import ADMIN_PASSWORD
from .engine_roots import cache_of, engine_root
from .flaky import flaky_engine
from .hubs import ALWAYS, PASSWORD, TOKEN, Hub, free_port, until, with_groups
from .paths import ROOT
from .requirements import cannot

CONFIG = """
c = get_config()
c.JupyterHub.spawner_class = "gpu-swarm"
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = {password!r}
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.DockerSpawner.network_name = {network!r}
c.DockerSpawner.prefix = {prefix!r}
c.DockerSpawner.cmd = {command!r}
c.DockerSpawner.pull_policy = "never"
c.GPUSwarmSpawner.images = {{"plain": {image!r}}}
c.GPUSwarmSpawner.longest_wait_minutes = 0
c.GPUSwarmSpawner.stop_grace = 1
"""
ADDRESSES = """
c.JupyterHub.bind_url = "http://0.0.0.0:{public}"
c.JupyterHub.hub_ip = {hub_ip!r}
"""
# A hub that soon sees what happens to its machines, and whose users wait for GPUs meanwhile.
WATCHFUL = (
    "from gpuspawner.pages import TEMPLATES",
    "c.JupyterHub.template_paths = [TEMPLATES]",
    "c.GPUSwarmSpawner.longest_wait_minutes = 60",
    "c.GPUSwarmSpawner.poll_interval = 1",
    "c.GPUSwarmSpawner.nvml_timeout = 2",
    "c.GPUSwarmSpawner.client_kwargs = {'timeout': 5}",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
    "c.Spawner.consecutive_failure_limit = 0",
    with_groups({"deaf": {"cmd": plain_image.DEAF}}),
)
# The GPUs of three machines, no two of one model.
THREE_MODELS = (
    describe([("A100-40GB", 2)], "570.133.20"),
    describe([("T4", 2)], "550.54.15"),
    describe([("H100", 1)], "575.57.08"),
)
# The shipped configuration for several machines, with what a test has to have of its own.
SHIPPED = f"""
c = get_config()
load_subconfig({str(ROOT / "jupyterhub_swarm_config.py")!r})
kept = c.JupyterHub.services, c.JupyterHub.load_roles
kept[0][0]["url"] = f"http://{{{{c.JupyterHub.hub_ip}}}}:{{dashboard}}"
{ALWAYS}
{ADDRESSES}
c.JupyterHub.services = [*kept[0], *c.JupyterHub.services]
c.JupyterHub.load_roles = [*kept[1], *c.JupyterHub.load_roles]
c.Authenticator.admin_users = {{{{"boss"}}}}
c.SharedPasswordAuthenticator.user_password = {PASSWORD!r}
c.SharedPasswordAuthenticator.admin_password = {ADMIN_PASSWORD!r}
c.GPUSwarmSpawner.images = {{{{"plain": {plain_image.IMAGE!r}}}}}
c.GPUSwarmSpawner.cmd = {plain_image.COMMAND!r}
c.GPUSwarmSpawner.stop_grace = 1
"""


class SwarmHub(Hub):
    """A hub in the network of a simulated cluster's hub and servers."""

    def __init__(self, folder: Path, cluster: SimulatedCluster, **more: str) -> None:
        super().__init__(folder, {**cluster.environment, **more})
        self.words_before = cluster.enter([])
        self.url = f"http://{cluster.public_ip}:{self.port}"


class Swarm:
    """A simulated cluster with an image, and clients of its engines.

    Args:
        cluster: the cluster, which runs.
        folder: where to compile the image.
        asks: the number of the manager that tests ask, from 1.
    """

    def __init__(self, cluster: SimulatedCluster, folder: Path, asks: int = 1) -> None:
        self.cluster = cluster
        self.asks = asks
        self.clients = [
            docker.APIClient(base_url=host.docker_host, version="auto", timeout=60)
            for host in cluster.hosts
        ]
        plain_image.load(self.manager, folder)
        archive = b"".join(self.manager.get_image(plain_image.IMAGE))
        for client in self.clients:
            for _ in client.load_image(archive):
                pass

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def take_over(self, engine: docker.APIClient, image: str, *nodes: int) -> None:
        """Have nodes have an image of another engine, by their numbers from 1."""
        image_id = engine.inspect_image(image)["Id"]
        for number in nodes:
            url = self.cluster.hosts[number - 1].docker_host
            with closing(docker.APIClient(base_url=url, version="auto", timeout=600)) as client:
                with suppress(docker.errors.ImageNotFound):
                    client.inspect_image(image_id)
                    continue
                for _ in client.load_image(engine.get_image(image)):
                    pass

    @property
    def manager(self) -> docker.APIClient:
        """A client of a manager's engine."""
        return self.clients[self.asks - 1]

    @cached_property
    def node_ids(self) -> dict[str, str]:
        """The name of each node -> Swarm's id of it."""
        return self.cluster.node_ids()

    def hub(
        self, folder: Path, *lines: str, prefix: str = "jupyter", docker_host: str = ""
    ) -> SwarmHub:
        """Return a hub that isn't started, with more lines of a configuration.

        Args:
            docker_host: the engine's address; "": the manager's.
        """
        ports = {"public": free_port(), "hub": free_port(), "api": free_port()}
        settings = {
            "password": PASSWORD,
            "network": NETWORK,
            "prefix": prefix,
            "command": plain_image.COMMAND,
            "image": plain_image.IMAGE,
        }
        text = CONFIG.format(**settings)
        text += ALWAYS.format(token=TOKEN, prefix="", **ports)
        text += ADDRESSES.format(public=ports["public"], hub_ip=self.cluster.hub_ip)
        folder.mkdir(exist_ok=True)
        (folder / "jupyterhub_config.py").write_text("\n".join([text, *lines, ""]))
        (folder / "ports").write_text("\n".join(map(str, ports.values())))
        (folder / "prefix").touch()
        more = {"DOCKER_HOST": docker_host} if docker_host else {}
        return SwarmHub(folder, self.cluster, **more)

    def shipped_hub(self, folder: Path, *lines: str) -> SwarmHub:
        """Return a hub of the shipped configuration with the dashboard, which isn't started."""
        ports = {name: free_port() for name in ("public", "hub", "api", "dashboard")}
        text = SHIPPED.format(token=TOKEN, prefix="", hub_ip=self.cluster.hub_ip, **ports)
        (folder / "jupyterhub_config.py").write_text("\n".join([text, *lines, ""]))
        three = (ports[name] for name in ("public", "hub", "api"))
        (folder / "ports").write_text("\n".join(map(str, three)))
        (folder / "prefix").touch()
        return SwarmHub(folder, self.cluster)

    @contextmanager
    def started(self, hub: SwarmHub) -> Iterator[SwarmHub]:
        """Have a hub run in this context; afterwards nothing of it runs on any node."""
        try:
            hub.start()
            yield hub
        finally:
            hub.stop()
            self.clear()
            until(lambda: not self.running(), "nothing runs any more")

    # -- What is there -------------------------------------------------------------------------

    def services(self) -> dict[str, Any]:
        """Return name -> service."""
        return {each["Spec"]["Name"]: each for each in self.manager.services()}

    def leased(self) -> dict[str, list[str]]:
        """Return user -> the GPUs that the labels of their services name."""
        found = (each["Spec"]["Labels"] for each in self.services().values())
        return {
            each["gpuspawner.user"]: [gpu for gpu in each["gpuspawner.gpus"].split(",") if gpu]
            for each in found
            if "gpuspawner.user" in each
        }

    def containers(self, node: int) -> list[Any]:
        """Return the containers of a node, by its number from 1, without the hub's."""
        found = self.clients[node - 1].containers()
        return [each for each in found if "com.docker.swarm.service.id" in each["Labels"]]

    def node_of(self, user: str) -> int:
        """Return the number of the node that a user's container runs on."""
        (number,) = (
            number
            for number in range(1, len(self.clients) + 1)
            for each in self.containers(number)
            if each["Labels"].get("gpuspawner.user") == user
        )
        return number

    def inside(self, user: str, *words: str) -> str:
        """Return what a program prints in a user's container."""
        number = self.node_of(user)
        (container,) = (
            each
            for each in self.containers(number)
            if each["Labels"].get("gpuspawner.user") == user
        )
        client = self.clients[number - 1]
        job = client.exec_create(container["Id"], list(words))
        return str(client.exec_start(job["Id"]).decode())

    def seen(self, user: str) -> list[str]:
        """Return the UUIDs of the GPUs that `nvidia-smi` lists in a user's container."""
        listed = self.inside(user, "nvidia-smi", "-L").splitlines()
        return [line.split("UUID: ")[1].rstrip(")") for line in listed if "UUID: " in line]

    def availability(self, node: int, word: str) -> None:
        """Do as `docker node update --availability` with a node, by its number from 1."""
        found = self.manager.inspect_node(self.node_ids[name_of(node)])
        spec = {**found["Spec"], "Availability": word}
        self.manager.update_node(found["ID"], found["Version"]["Index"], spec)

    def role(self, node: int, word: str) -> None:
        """Do as `docker node promote` and `demote` with a node: "manager" or "worker"."""

        def is_done() -> bool:
            # Managers change it as well, as one of them is lost.
            with suppress(docker.errors.APIError):
                found = self.manager.inspect_node(self.node_ids[name_of(node)])
                spec = {**found["Spec"], "Role": word}
                self.manager.update_node(found["ID"], found["Version"]["Index"], spec)
                return True
            return False

        until(is_done, f"it is a {word}")

    def managers(self) -> dict[str, str]:
        """Return the name of each node that decides -> "leader", or what it is else."""
        return {
            each["Description"]["Hostname"]: "leader"
            if each["ManagerStatus"].get("Leader")
            else each["ManagerStatus"]["Reachability"]
            for each in self.manager.nodes()
            if each.get("ManagerStatus")
        }

    def state(self, node: int) -> str:
        """Return what Swarm says of a node, by its number from 1: "ready" or "down"."""
        found = self.manager.inspect_node(self.node_ids[name_of(node)])
        return str(found["Status"]["State"])

    def update(self, user: str, **changes: Any) -> None:
        """Change the service of a user by hand: `force`, or `replicas`."""
        (service,) = (
            each
            for each in self.services().values()
            if each["Spec"]["Labels"].get("gpuspawner.user") == user
        )
        spec = service["Spec"]
        template = spec["TaskTemplate"]
        if changes.get("force"):
            template = {**template, "ForceUpdate": template.get("ForceUpdate", 0) + 1}
        mode = {"Replicated": {"Replicas": changes.get("replicas", 1)}}
        self.manager.update_service(
            service["ID"],
            service["Version"]["Index"],
            task_template=template,
            name=spec["Name"],
            labels=spec["Labels"],
            mode=mode,
            endpoint_spec=spec["EndpointSpec"],
        )

    def running(self) -> list[Any]:
        """Return the tasks that run, or may."""
        over = {"complete", "shutdown", "failed", "rejected", "orphaned", "remove"}
        return [each for each in self.manager.tasks() if each["Status"]["State"] not in over]

    def backend(self) -> SwarmBackend:
        """Return the backend as a hub has it, to be closed."""
        url = self.cluster.hosts[self.asks - 1].docker_host
        make = partial(docker.APIClient, base_url=url, version="auto", timeout=60)
        return SwarmBackend(make, logging.getLogger("tests"))

    def clear(self) -> None:
        """Remove all services and marks."""
        for each in self.manager.services():
            self.manager.remove_service(each["ID"])
        for each in self.manager.configs():
            self.manager.remove_config(each["ID"])


def every_gpu(cluster: SimulatedCluster) -> dict[str, list[str]]:
    """Return the name of each node -> the UUIDs of its GPUs."""
    return {
        name_of(number): [gpu.uuid for gpu in host.read().gpus]
        for number, host in enumerate(cluster.hosts, 1)
    }


def held_twice(swarm: Swarm) -> list[str]:
    """Return the GPUs that several containers that run were given; there must be none."""
    given: list[str] = []
    for number, client in enumerate(swarm.clients, 1):
        for each in swarm.containers(number):
            variables = client.inspect_container(each["Id"])["Config"]["Env"]
            (value,) = (
                line.partition("=")[2]
                for line in variables
                if line.startswith("NVIDIA_VISIBLE_DEVICES=")
            )
            given += [uuid for uuid in value.split(",") if uuid != "void"]
    return sorted({uuid for uuid in given if given.count(uuid) > 1})


@contextmanager
def open_swarm(states: Sequence[State], folder: Path, asks: int = 1, **how: Any) -> Iterator[Swarm]:
    """Have a cluster with the engine of Debian trixie, or skip the test where it can't be had.

    Args:
        states: what the GPUs of each node are.
        folder: where to compile the image.
        asks: the number of the manager that tests ask, from 1.
        how: more arguments of the cluster.
    """
    root = engine_root("trixie")
    try:
        with SimulatedCluster(states, cache_of("trixie"), root, **how) as cluster:
            made = Swarm(cluster, folder, asks)
            try:
                yield made
            finally:
                made.close()
    except SimulationError as error:
        cannot(str(error))


@contextmanager
def flaky_manager(swarm: Swarm, number: int, folder: Path) -> Iterator[Any]:
    """Yield what is between a hub and its manager's engine, as `docker_host` of the hub.

    Args:
        number: of the manager, from 1.
        folder: an empty one.
    """
    with flaky_engine(swarm.cluster.hosts[number - 1].socket, folder / "docker.sock") as made:
        yield made


@contextmanager
def watchful_hub(swarm: Swarm, flaky: Any, folder: Path) -> Iterator[Hub]:
    """Have a hub that speaks to its manager by way of what is between."""
    hub = swarm.hub(folder, *WATCHFUL, docker_host=flaky.url)
    try:
        hub.start()
        yield hub
    finally:
        hub.stop()
