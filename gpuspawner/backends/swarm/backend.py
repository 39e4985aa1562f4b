"""Docker Swarm as a backend: servers are services, leases are their labels, kept in Raft.

A server that is created is a service without a task: it has its labels, and nothing runs. Its start
gives it a task, if nobody has changed the service since. So hubs claim GPUs as they do with
containers, and Swarm itself admits no second task for a GPU.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import docker.errors

from ...errors import Contested, GPUSpawnerError, Unknown
from ...gpus.health import HealthMark
from ...gpus.out_of_service import with_health
from ...i18n.lazy_text import lazy_gettext
from ...leases.clock import Deadline
from ...leases.labels import ServerRecord
from ...leases.ledger import SharedRead
from ...leases.notes import Notes
from ...leases.server_run import ServerRun
from ...nodes.node_images import LocalImage
from ...nodes.reports import NodeContainer
from ..base import Report
from ..docker.engine_client import EngineClient
from ..docker.poll_interval import PollInterval
from ..leftovers import StaleServerReaper
from . import health_marks, images, listing, out_of_service
from .cluster import SwarmNode, parse_nodes
from .errors import UNREACHABLE, is_out_of_sequence
from .listing import LABEL_END, TASK, Listed
from .service_spec import labelled, started
from .task_list import TaskList
from .tasks import Task, first, is_contested, is_refused, is_terminal, made, run_of, words_of
from .watcher import TaskWatcher

# A service with it isn't started any more: whoever removes it has said so.
LABEL_ABANDONED = "gpuspawner.abandoned"
# How often an update is tried that somebody else's comes before.
UPDATES = 20
# How long a container may take to end after its service is gone, in seconds, beyond its time to
# save; and the pause between two looks.
REMOVAL_SECONDS = 60
PAUSE_SECONDS = 0.2
# Pauses between two looks at a starting task, in seconds: the first, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
# From when on a starting task's node is looked at as well, and for how long a start goes on while
# the Swarm can't be read, in seconds: managers choose a leader within ten.
SOON_SECONDS, UNREADABLE_SECONDS = 3.0, 30.0


class SwarmBackend(EngineClient):
    """One Docker Swarm, by the engine of one of its managers.

    Args:
        make_client: returns a `docker.APIClient`; called when the engine is first needed.
        log: a logger.
    """

    def __init__(self, make_client: Callable[[], Any], log: Any) -> None:
        super().__init__(make_client)
        # The nodes and what there was, as of the last reading of each.
        self.nodes: Sequence[SwarmNode] = ()
        self.listed = Listed([])
        self.poll_interval = PollInterval()
        # What runs with GPUs on the nodes, each with its node, as their daemons have told.
        self.containers: Callable[[], Iterable[tuple[str, NodeContainer]]] = tuple
        # Who asks the nodes for images.
        self.daemons: images.NodeDaemons | None = None
        digests = images.RegistryDigests(self._ask_registry, log)
        self._names = images.ImageNames(self.find_image, digests.of)
        self._places = images.ImagePlaces(self._names)
        self._catalogue = images.CatalogueOnNodes(self._names)
        # Pairs of a node's name and of a ulimit that its engine isn't allowed to set.
        self.refused_ulimits: set[tuple[str, str]] = set()
        self._reaper = StaleServerReaper(self.remove_unstarted, log)
        self.tasks = TaskList(self.call)
        self.list_nodes = SharedRead(self._list_nodes)

    async def _list_nodes(self) -> Sequence[SwarmNode]:
        self.nodes = parse_nodes(await self.call("nodes"))
        return self.nodes

    # -- Backend -----------------------------------------------------------------------------

    @property
    def divides_gpus(self) -> bool:
        """Whether a GPU is handed out whole and in slots in turn: its node offers one of them."""
        return False

    @property
    def sees_processes(self) -> bool:
        """Whether servers' processes can be seen from here: they are on other machines."""
        return False

    async def signal_inside(self, server_id: str, pid: int, number: int) -> None:
        """Refuse: a manager can't reach into other machines' containers."""
        raise GPUSpawnerError("a manager of a Swarm can't signal what runs on other machines")

    async def list(self) -> Sequence[ServerRecord]:
        """Return every service with a lease's labels, and what else runs with GPUs."""
        if not self.nodes:
            await self.list_nodes()
        # What is created in between has a service, and what is removed in between a task.
        tasks = await self.tasks.now()
        services = await self.call("services")
        of_node = {node.id: list(node.offered) for node in self.nodes}
        self.listed = listing.read(services, tasks, of_node)
        servers = [*self.listed.servers, *listing.beside_tasks(self.containers(), tasks)]
        self._reaper.reap(servers)
        return servers

    async def notes(self) -> Notes:
        """Return which GPUs are out of service, and the ends of leases that were extended."""
        marks = await self.in_thread(out_of_service.list_marks, self.client)
        of_health, lifted = health_marks.read(
            await self.in_thread(health_marks.listed, self.client)
        )
        services = await self.call("services", filters={"label": [LABEL_END]})
        return Notes(with_health(marks, of_health), listing.read(services, (), {}).ends, lifted)

    async def create(self, spec: Mapping[str, Any]) -> str:
        """Create a service that has no task yet; return its id.

        Args:
            spec: as the engine's API has it.
        """
        made = await self.call(
            "create_service",
            spec["TaskTemplate"],
            name=spec["Name"],
            labels=spec["Labels"],
            mode=spec["Mode"],
            endpoint_spec=spec["EndpointSpec"],
        )
        return str(made["ID"])

    async def start(self, server_id: str) -> None:
        """Give a service its task, unless somebody has abandoned it.

        Raises:
            Contested: somebody removes it, as one whose hub is dead.
        """

        def change(service: Mapping[str, Any]) -> Mapping[str, Any] | None:
            if LABEL_ABANDONED in listing.labels_of(service):
                raise Contested("the server was removed before it was started")
            return None if listing.replicas_of(service) else started(service)

        await self._update(server_id, change)

    async def remove(self, server_id: str) -> None:
        """Remove a service, and wait until its containers are gone.

        What is on a machine that doesn't answer isn't waited for: its task goes on holding its GPU.
        """
        seconds: float = REMOVAL_SECONDS
        if not server_id.startswith(TASK):
            with suppress(docker.errors.NotFound):
                service = await self.call("inspect_service", server_id)
                seconds += _grace(service)
                await self.call("remove_service", server_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while remaining := [each for each in await self.tasks.now() if _is_of(each, server_id)]:
            there = {node.id for node in await self.list_nodes() if node.state == "ready"}
            # One without a node runs nowhere, and has nobody to say so.
            if not any(each.get("NodeID") in there for each in remaining):
                return
            if loop.time() > deadline:
                raise TimeoutError(f"service {server_id} still runs, after its removal")
            await asyncio.sleep(PAUSE_SECONDS)

    async def stop(self, server_id: str) -> None:
        """Stop a server, which has its time to save, and remove it: Swarm does both at once."""
        await self.remove(server_id)

    async def remove_unstarted(self, server_id: str) -> None:
        """Remove a service unless it has a task that may run."""
        if server_id.startswith(TASK):
            return

        def change(service: Mapping[str, Any]) -> Mapping[str, Any] | None:
            if listing.replicas_of(service):
                return None
            return labelled(service, LABEL_ABANDONED, "1")

        with suppress(docker.errors.NotFound):
            await self._update(server_id, change)
            service = await self.call("inspect_service", server_id)
            own = await self.tasks.of(server_id)
            if listing.server_state(service, own) != "running":
                await self.call("remove_service", server_id)

    async def keep_end(self, server_id: str, end: Deadline) -> None:
        """Keep until when a server's lease was extended, as a label of its service.

        Raises:
            Unknown: it isn't kept afterwards.
        """

        def change(service: Mapping[str, Any]) -> Mapping[str, Any] | None:
            kept = listing.end_of(service, end.clock)
            is_later = kept is not None and kept.at > end.at
            return None if is_later else labelled(service, LABEL_END, listing.as_label(end))

        await self._update(server_id, change)

    def watch(self, notice: Callable[[], None]) -> TaskWatcher:
        """Return a watcher that calls `notice` when a task may have ended."""
        return TaskWatcher(self.tasks.recent, notice)

    async def take_out_of_service(self, uuid: str, by: str, why: str) -> None:
        """Mark a GPU as out of service, by a config."""
        await self.in_thread(lambda: out_of_service.take_out(self.client, uuid, by, why))

    async def put_into_service(self, uuid: str) -> None:
        """Remove a GPU's mark."""
        await self.in_thread(lambda: out_of_service.put_back(self.client, uuid))

    async def keep_health_mark(self, mark: HealthMark) -> None:
        """Keep a mark of a GPU's health, by a config."""
        await self.in_thread(lambda: health_marks.keep(self.client, mark))

    async def end_health_mark(self, mark: HealthMark) -> None:
        """Remove a mark of a GPU's health."""
        await self.in_thread(lambda: health_marks.end(self.client, mark))

    async def forget_lifted(self, uuid: str, cause: str) -> None:
        """Forget that an administrator has lifted a cause."""
        await self.in_thread(lambda: health_marks.forget_lifted(self.client, uuid, cause))

    async def runs(self, server_ids: Collection[str]) -> Mapping[str, ServerRun]:
        """Return when servers ran, as far as the Swarm remembers their tasks."""
        found: dict[str, ServerRun] = {}
        # The first one is the server, and so comes last.
        for task in sorted(await self.tasks.now(), key=made, reverse=True):
            for server_id in (str(task.get("ServiceID")), f"{TASK}{task.get('ID')}"):
                if server_id in server_ids:
                    found[server_id] = run_of(task)
        return found

    async def has_image(self, image: str) -> bool:
        """Return True: each machine has its own images, and a start gets what is missing."""
        return True

    async def pull(self, image: str, policy: str, report: Report) -> None:
        """Do nothing: the node that is chosen for the server gets it, by `image_on`."""

    # -- Swarm only ------------------------------------------------------------------------------

    async def inspect(self, server_id: str) -> Mapping[str, Any] | None:
        """Return a service, by its id or its name; None if there is none."""
        with suppress(docker.errors.NotFound):
            found: Mapping[str, Any] = await self.call("inspect_service", server_id)
            return found
        return None

    async def await_task(self, server_id: str, is_enough: Callable[[Task], bool]) -> Task | None:
        """Wait until the task of a service is as is wanted, or ends.

        While the Swarm can't be read for a moment, as when its managers choose a leader, what it
        was told goes on all the same, and so does this.

        Returns:
            The task; None if the service is gone, or isn't to have one any more.

        Raises:
            Contested: it waits for what another service has, or no node takes it, or its own has
                gone away.
        """
        pause, loop = FIRST_PAUSE, asyncio.get_running_loop()
        began = readable_at = loop.time()
        while True:
            try:
                task = first(await self.tasks.of(server_id))
                if task is None and not await self._is_to_run(server_id):
                    return None
                if task and (is_terminal(task) or is_enough(task)):
                    return task
                if task:
                    await self._check_waiting(task, loop.time() - began > SOON_SECONDS)
                readable_at = loop.time()
            except UNREACHABLE:
                if loop.time() - readable_at > UNREADABLE_SECONDS:
                    raise
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 1.5)

    async def _is_to_run(self, server_id: str) -> bool:
        service = await self.inspect(server_id)
        return service is not None and bool(listing.replicas_of(service))

    async def _check_waiting(self, task: Task, with_node: bool) -> None:
        """Raise `Contested` if what a task waits for doesn't come.

        Args:
            task: one that may run.
            with_node: whether to look at its node as well.
        """
        if is_contested(task):
            raise Contested(f"another service has one of these GPUs: {words_of(task)}")
        if is_refused(task):
            raise Contested(f"its machine takes no servers: {words_of(task)}")
        if with_node and (node_id := task.get("NodeID")):
            there = {node.id for node in await self.list_nodes() if node.state != "down"}
            if node_id not in there:
                raise Contested("its machine doesn't answer the Swarm")

    async def find_image(self, image: str) -> LocalImage | None:
        """Return the image that the hub's engine has by a name; None: it has none."""
        with suppress(docker.errors.NotFound):
            found = await self.call("inspect_image", image)
            return LocalImage(str(found["Id"]), tuple(map(str, found.get("RepoDigests") or ())))
        return None

    async def _ask_registry(self, image: str) -> str:
        """Return the digest that a registry has by a name: the engine asks it, and pulls nothing.

        Raises what the engine does.
        """
        found = await self.call("inspect_distribution", image)
        return str(found["Descriptor"]["digest"])

    async def image_on(self, node: str, image: str, policy: str, report: Report) -> str:
        """Have a node have an image; return by what a service names it there.

        Args:
            node: the node's name.
            image: the image reference.
            policy: DockerSpawner's `pull_policy`.
            report: called with the progress.

        Raises:
            images.ImageError: the node can't have it.
        """
        assert self.daemons
        return await images.ensure(self.daemons, node, image, policy, self._names, report)

    def node_named(self, name: str) -> SwarmNode | None:
        """Return the node of a name, as of the last reading; None if none or several have it."""
        found = [node for node in self.nodes if node.name == name]
        return found[0] if len(found) == 1 else None

    async def nodes_with(self, image: str, policy: str) -> frozenset[str]:
        """Return the names of the nodes that have an image, of those that can be asked at once.

        Args:
            image: the image reference.
            policy: DockerSpawner's `pull_policy`.
        """
        if self.daemons is None:
            return frozenset()
        names = [each.name for each in self.nodes]
        return await self._places.nodes_with(self.daemons, names, image, policy)

    async def images_there(
        self, references: Collection[str], policy: str
    ) -> Mapping[str, frozenset[str] | None]:
        """Return node -> those of some images that it has; None: that isn't known now.

        Args:
            references: the image references.
            policy: DockerSpawner's `pull_policy`.
        """
        if self.daemons is None or not references:
            return {}
        names = [each.name for each in self.nodes]
        return await self._catalogue.known(self.daemons, names, references, policy)

    async def place(self, preferred: str, having: Collection[str] = ()) -> SwarmNode:
        """Return the node for a server without GPUs: the preferred one, or the emptiest.

        Args:
            preferred: a node's name; "": none.
            having: the nodes that have its image: they come before the emptiest.

        Raises:
            Unknown: no node takes servers.
        """
        nodes = [each for each in await self.list_nodes() if each.takes_servers]
        if not nodes:
            raise Unknown(lazy_gettext("No machine of the Swarm takes servers now."))
        running = Counter(
            each.get("NodeID") for each in await self.tasks.now() if not is_terminal(each)
        )
        return min(
            nodes,
            key=lambda node: (
                node.name != preferred,
                node.name not in having,
                running[node.id],
                node.name,
            ),
        )

    async def _update(
        self,
        server_id: str,
        change: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
    ) -> None:
        """Change a service, from what it is now: nobody else's change is lost.

        Args:
            server_id: the service's id.
            change: returns its new specification; None: it stays.
        """
        for tries_left in reversed(range(UPDATES)):
            service = await self.call("inspect_service", server_id)
            spec = change(service)
            if spec is None:
                return
            try:
                await self.call(
                    "update_service",
                    server_id,
                    service["Version"]["Index"],
                    task_template=spec["TaskTemplate"],
                    name=spec["Name"],
                    labels=spec.get("Labels"),
                    mode=spec["Mode"],
                    endpoint_spec=spec.get("EndpointSpec"),
                )
                return
            except docker.errors.APIError as error:
                if not is_out_of_sequence(error) or not tries_left:
                    raise


def _is_of(task: Task, server_id: str) -> bool:
    """Return whether a task that may run is a server's, by the id of its record."""
    mine = server_id in (task.get("ServiceID"), f"{TASK}{task.get('ID')}")
    return mine and not is_terminal(task)


def _grace(service: Mapping[str, Any]) -> float:
    container = service["Spec"]["TaskTemplate"].get("ContainerSpec") or {}
    nanoseconds = container.get("StopGracePeriod")
    return nanoseconds / 1e9 if isinstance(nanoseconds, int) else 10.0
