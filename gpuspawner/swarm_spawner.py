"""GPUSwarmSpawner: servers as services of a Docker Swarm, on several machines with GPUs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jupyterhub.utils import url_path_join
from traitlets import Bool, Dict, Unicode, default

from .backends.base import Backend, ImagesOfNodes
from .backends.docker import errors as engine_errors
from .backends.docker.backend import UlimitRefused, connect
from .backends.docker.container_config import refused_ulimit, with_kept_folders, with_log
from .backends.docker.readiness import QUICK_START, wait_until_answering
from .backends.docker.stopping import GRACE
from .backends.swarm import errors, homes, refusals
from .backends.swarm.backend import SwarmBackend
from .backends.swarm.listing import LABEL_NODE, labels_of, replicas_of
from .backends.swarm.reader import SwarmReader
from .backends.swarm.service_spec import NotForServices, service_spec
from .backends.swarm.tasks import (
    AWAY,
    DRAINED,
    REMOVED,
    RESTARTED,
    WAITING,
    Task,
    address_of,
    away_words,
    end_of,
    exit_code,
    explain_end,
    explain_refusal,
    first,
    is_given_up,
    is_terminal,
    lacks_network,
    never_ran,
    state_of,
    words_of,
)
from .configured_container import ConfiguredContainer
from .errors import Contested, GPUSpawnerError, StartAgain
from .gpus.model import Request
from .gpus.reader import HubReader
from .hub import compat, http_errors
from .i18n.lazy_text import MachineText, lazy_gettext, lazy_ngettext
from .images.catalogue import catalogue
from .leases import audit_log
from .leases.audit_log import one_line
from .leases.labels import (
    LABEL_HUB,
    LABEL_REMOVE,
    LABEL_SERVER,
    LABEL_USER,
    ServerRecord,
    belongs_to,
    lease_of,
)
from .leases.ledger import Reservation
from .nodes.addresses import hub_folder
from .nodes.client import TIMEOUT_SECONDS
from .nodes.invited import InvitedNodes
from .nodes.resources import kind_of, reservations
from .spawn_attempt import SpawnAttempt

# The pause between two looks whether a server that starts has ended, in seconds.
PAUSE_SECONDS = 0.5
# After this time a service without any task has lost it, in seconds.
TASK_SECONDS = 30
LAST_LINES = 12
# Tells JupyterLab that what is kept is on this server's machine alone.
ON_ONE_MACHINE = "GPUSPAWNER_KEPT_ON_ONE_MACHINE"
# Sockets and the like of a running server: off the home, which may be full, or hold another's.
RUNTIME = {"JUPYTER_RUNTIME_DIR": "/tmp/jupyter-runtime"}  # noqa: S108 - a container's own


class StartRefused(GPUSpawnerError):
    """A machine doesn't run the server. `str()` is a sentence for its user."""


@dataclass(eq=False)
class ServiceAttempt(SpawnAttempt):
    """The state of one spawn of a service.

    Args:
        node: the name of its node; "": none is chosen yet.
        image: by what its service names its image there.
        task: its task, when it was last looked for; None: none was there.
        task_id: Swarm's id of that, also after a restart of the hub; "": not known.
        cause: why Swarm ends it, one of the rules in `tasks`; "": it doesn't, or nobody knows.
        memory: its limit of memory, in bytes; 0: none, or it was never seen.
        output: the last lines of its output, if it has ended as it started.
        taskless_since: since when it has no task, by the monotonic clock; 0: it has one.
        is_noted: whether it was seen to run since it started, with its labels.
        lacked_network: whether its node couldn't join the servers' network, and it was tried again.
    """

    node: str = ""
    image: str = ""
    task: Task | None = None
    task_id: str = ""
    cause: str = ""
    memory: int = 0
    output: tuple[str, ...] = ()
    taskless_since: float = 0.0
    is_noted: bool = False
    lacked_network: bool = False


class NetworkLacked(StartAgain):
    """A node couldn't join the servers' network; the next try may find it mended."""


class GPUSwarmSpawner(ConfiguredContainer):
    """Spawner of servers that are services of a Docker Swarm and see exactly their GPUs."""

    attempt: ServiceAttempt
    # The node of its last server, where its files are if its volumes are on the nodes.
    _last_node = ""

    volume_driver = Unicode(
        help="""The driver of servers' named volumes, on each node of the Swarm. Empty: the engine's
        own, whose volumes stay on one node.""",
    ).tag(config=True)

    volume_driver_options = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="""Options of `volume_driver`, as {"type": "nfs", "o": "addr=nas", "device":
        ":/homes/{volume}"} for "local", with which every node has the same files. {volume} is the
        volume's name; without it, all volumes would be one folder.""",
    ).tag(config=True)

    shared_homes = Bool(
        None,
        allow_none=True,
        help="""Whether users' files are the same on all machines. None: that is decided from
        `volume_driver`, `volume_driver_options` and `volumes`: the engine's own volumes are on one
        machine each, folders and a file server on all. Where a folder is each machine's own, or a
        driver's volumes are, this is False: form and JupyterLab say so then, and servers start
        where their user's files are, if they can.""",
    ).tag(config=True)

    nodes_folder = Unicode(
        help="""The folder with the hub's key and the list of its machines, as `gpuspawner node
        invite` writes them. It is looked at again whenever the machines are asked.""",
    ).tag(config=True)

    @default("nodes_folder")
    def _nodes_folder_default(self) -> str:
        return str(hub_folder())

    @default("nvml_timeout")
    def _nvml_timeout_default(self) -> float:
        return TIMEOUT_SECONDS

    @default("deleted_user_volumes")
    def _deleted_user_volumes_default(self) -> str:
        return "keep"

    def new_attempt(self) -> ServiceAttempt:
        """Return the state of a new spawn."""
        return ServiceAttempt()

    # -- The Swarm, shared by all servers of a hub ------------------------------------------------

    def make_backend(self) -> SwarmBackend:
        """Make the backend for the Swarm of the engine that the configuration names."""
        tls, more = dict(self.tls_config), dict(self.client_kwargs)
        return SwarmBackend(lambda: connect(tls, more), self.log)

    @property
    def backend(self) -> SwarmBackend:
        """The backend, one Docker Swarm."""
        backend = self.hub_state.backend
        assert isinstance(backend, SwarmBackend)
        return backend

    def make_reader(self, backend: Backend, settings: Mapping[str, Any]) -> HubReader:
        """Make the reader of all nodes of the Swarm."""
        assert isinstance(backend, SwarmBackend)
        backend.daemons = inventory = self.make_inventory(settings)
        reader = SwarmReader(inventory, backend.list_nodes, self.log)
        backend.containers = reader.containers
        return reader

    def make_inventory(self, settings: Mapping[str, Any]) -> InvitedNodes:
        """Make the reader of the nodes' GPUs, each of which bears its node's hostname.

        Args:
            settings: the arguments of `gpus.reader.read_node`.
        """
        return InvitedNodes(Path(self.nodes_folder), self.nvml_timeout, self.log, **settings)

    def refused_settings(self) -> Sequence[str]:
        """Return sentences about configured traits that no service can carry."""
        return list(refusals.refused(self))

    def explain(self, error: BaseException) -> str:
        """Return what an error of the Swarm means, as a sentence for users."""
        return errors.explain(error)

    def explain_unknown(self, error: BaseException) -> str:
        """Return why the nodes or leases couldn't be read, as a sentence for users."""
        return errors.explain_unknown(error)

    # -- The service -------------------------------------------------------------------------------

    @property
    def volume_binds(self) -> dict[str, dict[str, Any]]:
        """DockerSpawner's binds, and those of the users' own volumes and `course_volumes`."""
        ours = {
            volume.name: {"bind": volume.path, "mode": "rw" if volume.writable else "ro"}
            for volume in self.volumes_of_user()
        }
        return super().volume_binds | ours

    def get_env(self) -> dict[str, str]:
        """Return the server's environment; the administrator's variables override ours."""
        kept = RUNTIME if self.home_volume else {}
        grace = {GRACE: f"{self.stop_grace:g}"}
        apart = {ON_ONE_MACHINE: "1"} if self.homes_are_apart() else {}
        return {**QUICK_START, **grace, **kept, **apart, **super().get_env()}

    def homes_are_apart(self) -> bool:
        """Return whether there are several machines, and users' files are on one of them each."""
        nodes = self.backend.nodes if self._hub_state else ()
        return len(nodes) > 1 and homes.homes_of(self).local

    def home_node(self) -> str:
        """Return the name of the node of the user's last server, where files are on one each."""
        if not self.homes_are_apart():
            return ""
        others = compat.servers_of(self.user) if self.user else ()
        known = (each._last_node for each in (self, *others) if isinstance(each, GPUSwarmSpawner))
        return next(filter(None, known), "")

    def home_words(self) -> str:
        """Return where the user's files are, as sentences; "" where that makes no difference."""
        return homes.words(self.home_node()) if self.homes_are_apart() else ""

    def get_state(self) -> dict[str, Any]:
        """Return the state for `load_state`, with the node of the last server."""
        state = super().get_state()
        ours = {"node": self._last_node, "task": self.attempt.task_id}
        return {**state, **{name: each for name, each in ours.items() if each}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state that an earlier hub process saved."""
        super().load_state(state)
        self._last_node = str(state.get("node") or "")
        self.attempt.node = self._last_node
        self.attempt.task_id = str(state.get("task") or "")

    async def service(self, reservation: Reservation) -> dict[str, Any]:
        """Return the service that is created, as the engine's API has it.

        Raises:
            Misconfigured: the configuration has something that a service can't carry.
            StartRefused: the node doesn't offer a GPU any more.
        """
        units = [gpu.id for gpu in reservation.gpus if gpu.id]
        node = self.backend.node_named(self.attempt.node)
        if node is None:
            raise Contested("the machine of these GPUs isn't in the Swarm any more")
        try:
            kinds = reservations(units, node.offered)
        except ValueError as error:
            raise Contested(f"{node.name} doesn't offer {error} to the Swarm") from error
        create = with_kept_folders(await self.plan())
        create["image"] = self.attempt.image
        if self.log_driver:
            create = with_log(create, self.log_driver, self.log_options)
        try:
            return service_spec(
                create,
                name=self.object_name,
                labels={
                    **self.lease_labels(reservation),
                    LABEL_REMOVE: "1",
                    LABEL_NODE: node.name,
                },
                uuids=reservation.uuids,
                kinds=kinds,
                node_id=node.id,
                network=self.network_name,
                shm_size=self.shm_size,
                ulimits=self._ulimits_on(node.name),
                stop_seconds=self.stop_grace,
                volume_driver=self.volume_driver,
                volume_options=self.volume_driver_options,
            )
        except NotForServices as error:
            raise engine_errors.Misconfigured(str(error), error.setting) from error

    def _ulimits_on(self, node: str) -> dict[str, int]:
        refused = self.backend.refused_ulimits
        return {name: n for name, n in self.ulimits.items() if (node, name) not in refused}

    # -- The steps of a start, in their order ------------------------------------------------------

    async def nodes_with_image(self) -> frozenset[str]:
        """Return the names of the nodes that have the server's image, as far as that is known."""
        return await self.backend.nodes_with(self.image, self.pull_policy)

    def images_of_nodes(self, backend: Backend) -> ImagesOfNodes:
        """Return what asks the nodes which images of the catalogue they have.

        Args:
            backend: of `make_backend`.
        """
        assert isinstance(backend, SwarmBackend)
        references = {each.image for each in catalogue(self.images).values()}
        return partial(backend.images_there, references, self.pull_policy)

    async def prepare_node(self, reservation: Reservation) -> None:
        """Choose the node of a server without GPUs, and have the node get the image.

        Raises:
            Unknown: no node takes servers.
            images.ImageError: the node can't get the image.
        """
        nodes = {gpu.node for gpu in reservation.gpus}
        if nodes:
            (self.attempt.node,) = nodes
        else:
            having = await self.nodes_with_image()
            self.attempt.node = (await self.backend.place(self.home_node(), having)).name
        await self._get_image()

    async def _get_image(self) -> None:
        attempt, image = self.attempt, self.image

        attempt.image = await self.backend.image_on(
            attempt.node, image, self.pull_policy, self.report_pull
        )
        attempt.pulled = image

    async def remove_leftovers(self, request: Request) -> None:
        """Remove the services of earlier starts of this server."""
        since, self.attempt.began = self.attempt.began, None
        for server in await self._own_services(since):
            said = one_line(server.id[:12])
            self.log.warning("Removing service %s, left by an earlier server", said)
            await self.backend.remove(server.id)
        self.object_id = ""

    async def _own_services(self, since: int | None = None) -> list[ServerRecord]:
        """List this server's services by their labels, whatever their names are."""
        whose = {
            LABEL_USER: self.holder.user,
            LABEL_SERVER: self.holder.server,
            LABEL_HUB: self.hub_address,
        }
        servers = await self.ledger.servers(since)
        return [each for each in servers if whose.items() <= each.labels.items()]

    async def create_server(self, reservation: Reservation) -> str:
        """Create the service, which has no task yet."""
        await self.apply_image_option()
        if self.attempt.pulled != self.image:  # a subclass or a hook has changed it
            await self._get_image()
        self.progress_steps.add(40, lazy_gettext("Creating the service"))
        spec = await self.service(reservation)
        limits = spec["TaskTemplate"]["Resources"]["Limits"]
        self.attempt.memory = limits.get("MemoryBytes") or 0
        service_id = await self.backend.create(spec)
        self.log.info(
            "Created service %s (id: %s) for %s on %s from image %s",
            one_line(self.object_name),
            one_line(service_id[:7]),
            self.log_name,
            one_line(self.attempt.node),
            one_line(self.image),
        )
        return service_id

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        """Raise an exception if the service was created with other GPUs than were reserved."""
        self.object_id = server_id
        service = await self.backend.inspect(server_id)
        template = (service or {}).get("Spec", {}).get("TaskTemplate", {})
        wanted = (template.get("Resources") or {}).get("Reservations") or {}
        kinds = {
            (each.get("DiscreteResourceSpec") or {}).get("Kind")
            for each in wanted.get("GenericResources") or []
        }
        if kinds != {kind_of(uuid) for uuid in reservation.uuids}:
            raise http_errors.failure(
                lazy_gettext("The service was created with other GPUs than were granted.")
            )

    async def start_server(self, server_id: str) -> None:
        """Give the service its task, and wait until Swarm has given that its node.

        Raises:
            Contested: another service has one of the GPUs, or the node takes no servers now.
            StartRefused: the node doesn't run it.
        """
        await self.backend.start(server_id)
        await self._wait_for_task(server_id, lambda task: state_of(task) not in WAITING)

    async def _wait_for_task(self, server_id: str, is_enough: Callable[[Task], bool]) -> Task:
        """Wait until the task of the service is as is wanted; return it.

        Raises:
            Contested: it waits for what another service has, or for a node.
            StartRefused: the node doesn't run it.
        """
        task = await self.backend.await_task(server_id, is_enough)
        if task is None:
            raise http_errors.failure(lazy_gettext("The service was removed as it started."))
        self.attempt.task = task
        if is_terminal(task):
            await self._raise_end(server_id, task)
        return task

    async def await_server(self, server_id: str) -> tuple[str, int]:
        """Wait for the server's first answer; return its (ip, port)."""
        where = MachineText(
            lazy_gettext("Starting on machine %(node)s", node=self.attempt.node),
            lazy_ngettext(
                "Starting on %(num)s machine",
                "Starting on one of %(num)s machines",
                len(self.backend.nodes),
            ),
        )
        self.progress_steps.add(60, where)
        task = await self._wait_for_task(server_id, lambda task: state_of(task) == "running")
        ip = self._address(task)
        self.progress_steps.add(70, lazy_gettext("Container started, waiting for JupyterLab"))
        ended = asyncio.Event()
        watching = asyncio.ensure_future(self._set_at_end(server_id, ended))
        try:
            path = url_path_join(self.server.base_url if self.server else "/", "api")
            url, interval = f"http://{ip}:{self.port}{path}", self.backend.poll_interval
            if (
                not await wait_until_answering(
                    url, ip, self.port, ended, self.http_timeout, interval
                )
                and ended.is_set()
            ):
                await self._raise_end(server_id, self.attempt.task)
        finally:
            watching.cancel()
        self._last_node, self.attempt.task_id = self.attempt.node, str(task.get("ID") or "")
        return ip, self.port

    async def _set_at_end(self, server_id: str, ended: asyncio.Event) -> None:
        while True:
            with suppress(*errors.UNREACHABLE):
                task = first(await self.backend.tasks.of(server_id))
                self.attempt.task = task or self.attempt.task
                if task is None or is_terminal(task):
                    break
            await asyncio.sleep(PAUSE_SECONDS)
        ended.set()

    def _address(self, task: Task) -> str:
        ip = address_of(task, self.network_name)
        if not ip:
            raise StartRefused(
                lazy_gettext(
                    "The server has no address on the network %(name)s. An administrator can see "
                    "with docker network inspect whether the hub and all machines have it.",
                    name=self.network_name,
                )
            )
        return ip

    async def _raise_end(self, server_id: str, task: Task | None) -> None:
        """Raise why a server has ended as it started."""
        if task is not None and never_ran(task):
            self._note_refused_ulimit(words_of(task))
            if lacks_network(task) and not self.attempt.lacked_network:
                self.attempt.lacked_network = True
                raise NetworkLacked(f"{self.attempt.node}: {words_of(task)}")
            raise StartRefused(explain_refusal(task, self.attempt.node))
        with suppress(*errors.UNREACHABLE):
            self.attempt.output = await self.backend.in_thread(self._last_output, server_id)
        code = exit_code(task) if task else None
        raise http_errors.container_died(code, list(self.attempt.output))

    def _note_refused_ulimit(self, words: str) -> None:
        """Start again without a ulimit that the node's engine isn't allowed to set."""
        name = refused_ulimit(words, self.ulimits)
        if name is None or (self.attempt.node, name) in self.backend.refused_ulimits:
            return
        self.backend.refused_ulimits.add((self.attempt.node, name))
        raise UlimitRefused(
            f"the engine of {self.attempt.node} may not set ulimits[{name!r}] = "
            f"{self.ulimits[name]}, so its servers go without it from now on ({words})"
        )

    def _last_output(self, server_id: str) -> tuple[str, ...]:
        """Return the last lines of a service's output. Blocks."""
        found = self.client.service_logs(server_id, stdout=True, stderr=True, tail=LAST_LINES)
        text = b"".join(found).decode("utf-8", "replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return tuple(lines[-LAST_LINES:])

    def last_lines(self) -> list[str]:
        """Return the last lines of the server's output, if it has ended as it started."""
        return list(self.attempt.output)

    # -- While the server runs, and its end --------------------------------------------------------

    async def poll(self) -> Any:
        """Return None while the server runs or the Swarm can't be read, else its exit status.

        The hub asks for it before it stops what a refused choice was to start: the Swarm is told
        nothing of that.
        """
        if self.attempt.is_refused:
            return 0
        try:
            return await self._status()
        except errors.UNREACHABLE as error:
            self.log.warning("Whether %s runs isn't known: %s", self.log_name, one_line(error))
            return None

    async def _status(self) -> Any:
        if self.attempt.is_noted and await self._ran_lately():
            return None
        service = await self._own_service()
        if service is None:
            if self.attempt.is_noted or self.attempt.task is not None:
                # Else it was gone when this hub began, which an earlier one may have removed.
                self._note_cause(REMOVED)
            self.object_id, self.attempt.task = "", None
            return 0
        attempt, tasks = self.attempt, await self.backend.tasks.of(self.object_id)
        task = first(tasks)
        if task is None and not replicas_of(service):
            return 0  # its hub was killed before it started it
        if task is None:
            # It has none for a moment after its start, and none if Swarm keeps no history of them.
            now = time.monotonic()
            attempt.taskless_since = attempt.taskless_since or now
            return None if now - attempt.taskless_since < TASK_SECONDS else 0
        attempt.taskless_since = 0.0
        ended = end_of(tasks, attempt.task_id)
        if ended == RESTARTED:
            self._note_cause(RESTARTED)
            return ended
        attempt.task, attempt.task_id = task, str(task.get("ID") or "")
        if ended is None:
            self._note_running(service)
        else:
            self.log.info(
                "The task of %s has ended: %s, %s",
                self.log_name,
                one_line(ended),
                one_line(words_of(task)),
            )
        self._note_cause(await self._cause_of(task, len(tasks) > 1))
        return ended

    async def _cause_of(self, task: Task, has_others: bool) -> str:
        """Return why Swarm ends a task, or has ended it; "" if it doesn't, or nothing says so."""
        if not is_given_up(task) and state_of(task) not in ("shutdown", "orphaned", "remove"):
            return ""
        if has_others:
            return RESTARTED
        nodes = {node.id: node for node in await self.backend.list_nodes()}
        node = nodes.get(str(task.get("NodeID")))
        if node is None or node.state != "ready":
            return AWAY
        return DRAINED if node.availability == "drain" else ""

    def _note_cause(self, cause: str) -> None:
        """Note why Swarm ends the server, and tell its user and administrators, once."""
        if not cause or self.attempt.cause or not self.attempt.is_up or self.lease.cause:
            return
        self.attempt.cause = cause
        node = self.attempt.node
        self.log.warning(
            "Docker Swarm ends the server of %s on %s: %s",
            self.log_name,
            one_line(node),
            one_line(cause),
        )
        self.lease.note_ended_by(audit_log.SWARM, cause)
        if cause == AWAY:
            self.lease.note_away(away_words(node))

    async def _ran_lately(self) -> bool:
        """Return whether a server that is known ran a moment ago: hubs ask for each of them."""
        attempt, tasks = self.attempt, (await self.backend.tasks.recent()).get(self.object_id, ())
        if attempt.cause or len(tasks) != 1:
            return False  # or it is newer than that: the Swarm is asked
        (task,) = tasks
        own = str(task.get("ID")) == attempt.task_id
        return own and state_of(task) == "running" and not is_given_up(task)

    async def _own_service(self) -> Mapping[str, Any] | None:
        """Return this server's service, by its id, else by its name; None if there is none.

        One of its name may be another hub's, or another server's.
        """
        for key in filter(None, (self.object_id, self.object_name)):
            found = await self.backend.inspect(key)
            if found is None:
                continue
            if found["ID"] != self.object_id and not belongs_to(
                labels_of(found), self.holder, self.hub_address
            ):
                self.log.warning(
                    "Service %s is another hub's or server's", one_line(self.object_name)
                )
                return None
            self.object_id = str(found["ID"])
            return found
        return None

    def _note_running(self, service: Mapping[str, Any]) -> None:
        """Note that the server runs, also where an earlier hub process has started it."""
        self.attempt.node = self._last_node = labels_of(service).get(LABEL_NODE, "")
        limits = service["Spec"]["TaskTemplate"].get("Resources", {}).get("Limits") or {}
        self.attempt.memory = limits.get("MemoryBytes") or 0
        if self.pending:
            return
        self.attempt.is_noted = True
        self.on_found()
        lease = lease_of(ServerRecord(str(service["ID"]), labels_of(service)))
        if lease:
            self.attempt.course = lease.course
        if lease and lease.gpus and not self.lease.units:
            self.lease.adopt(lease)

    async def get_url(self) -> str:
        """Return a running server's URL, for a hub that was killed while the server started."""
        try:
            task = first(await self.backend.tasks.of(self.object_id))
            ip = address_of(task, self.network_name) if task else ""
        except Exception:  # the Swarm can't be read: use the URL in the database
            ip = ""
        return f"http://{ip}:{self.port}" if ip else str(self.server.url)

    async def stop_server(self, now: bool) -> None:
        """Remove the service; its container has its time to save, and is gone then."""
        attempt = self.attempt
        if self.object_id:
            self.log.info("Stopping the service of %s", self.log_name)
            await self.backend.stop(self.object_id)
        if self.attempt is attempt:
            self.object_id = ""
            self.clear_state()

    def explain_end(self) -> str:
        """Return why the server has ended by itself, as sentences for its user."""
        attempt = self.attempt
        return explain_end(attempt.task, time.time(), attempt.node, attempt.memory, attempt.cause)

    async def clean_up_ended(self) -> None:
        """Remove the services of a server that has ended, for whatever reason."""
        leftovers, remove = self.hub_state.leftovers, self.backend.remove
        try:
            for service in await self._own_services():
                leftovers.remove_later(self.server_key, remove, service.id)
                self.object_id = ""
            await leftovers.wait_until_cleared(self.server_key)
        except errors.UNREACHABLE as error:
            self.log.warning(
                "Service %s may remain: %s", one_line(self.object_name), one_line(error)
            )
            if self.object_id:
                leftovers.remove_later(self.server_key, remove, self.object_id)

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        """Return the function that removes this try's service."""
        return self.backend.remove
