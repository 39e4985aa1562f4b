"""The state that all spawners of a hub share, built at the hub's start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from traitlets import TraitError

from ..backends.base import Backend
from ..backends.leftovers import Leftovers
from ..check_in import CheckIn
from ..choices import form_stream, options
from ..choices.open_forms import OpenForms
from ..courses.catalogue import CourseCatalogue
from ..courses.model import Course
from ..errors import Refused
from ..gpus.machine_names import may_know
from ..gpus.model import Holder
from ..gpus.nvml import InventoryError
from ..gpus.reader import HubReader
from ..gpus.units import sharing_problems
from ..i18n.languages import LOG
from ..images.catalogue import catalogue
from ..images.local_images import LocalImages
from ..leases.audit_log import one_line
from ..leases.endings import Ending
from ..leases.ledger import Ledger, outsiders_of
from ..leases.memory_guard import MemoryGuard
from ..leases.reclaimer import Reclaimer
from ..leases.reconciler import KnownServer, Reconciler
from ..leases.server_lease import ServerLease
from ..notifications.notifier import Notifier, Occasion
from ..scheduling.budgets import DAY, Budgets
from ..scheduling.queue import Queue, QueueSettings
from ..scheduling.shares import Shares
from ..usage import endings as usage_endings
from ..usage.recorder import Recorder
from . import compat, http_errors, metrics, switch_page
from .connections import allow_many_connections
from .control_socket import ControlSocket
from .health_watch import HealthWatch
from .hours_desk import HoursDesk
from .instructors import Instructors
from .messages import Messages
from .nodes import NodeFacts
from .reserved_hours import ReservedTimes
from .rights import CourseRights
from .switches import Switches
from .week import WeekFacts

# How long the log says nothing of a reading that fails for the same reason.
LOG_AGAIN_SECONDS = 600.0
# Its key in the settings of the hub's web application.
KEY = "gpuspawner"
# For how long it is remembered how a server was stopped.
ENDING_SECONDS = 3600.0


@dataclass
class HubState:
    """The state that all spawners of a hub share.

    Args:
        backend: starts the servers.
        ledger: the leases and reservations.
        queue: the requests that wait.
        leftovers: the cleanup after failed starts.
        leases: the leases of this hub's running servers.
        reclaimer: enforces these leases.
        memory_guard: keeps those that share a GPU to their part of its memory.
        spawners: those of all servers that the hub has had since it started.
        reconciler: looks for servers that none of these knows.
        open_forms: what all open forms share.
        local_images: the images on the engine.
        host_metrics: the collector of the hub's metrics.
        switches: the running servers that ask for GPUs.
        control: the control socket; None if it is turned off.
        unguard: ends the check of choices before the hub saves them; None once it has ended.
        notifier: sends messages to users who are elsewhere.
        health: watches the GPUs' health.
        usage: writes who used what into a store.
        courses: the courses.
        reserved: the hours that are reserved for them.
        hours: where such hours are asked for and granted.
        messages: those of instructors, for JupyterLab.
        tasks: strong references to tasks, as the event loop holds them only weakly.
        turns: the turns that have come, and whose users haven't said yet that they are there.
        endings: how servers were lately stopped that haven't been started since.
        name_machines: who may know the machines' names, as `gpus.machine_names.may_know` takes it.
    """

    backend: Backend
    ledger: Ledger
    queue: Queue
    leftovers: Leftovers
    leases: WeakSet[ServerLease]
    reclaimer: Reclaimer
    memory_guard: MemoryGuard
    spawners: WeakSet[KnownServer]
    reconciler: Reconciler
    open_forms: OpenForms
    local_images: LocalImages
    host_metrics: metrics.HostMetrics
    switches: Switches
    notifier: Notifier
    health: HealthWatch
    usage: Recorder
    courses: CourseCatalogue
    reserved: ReservedTimes
    hours: HoursDesk
    messages: Messages = field(default_factory=Messages)
    control: ControlSocket | None = None
    unguard: Callable[[], None] | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    turns: dict[Holder, CheckIn] = field(default_factory=dict)
    endings: dict[Holder, Ending] = field(default_factory=dict)
    name_machines: str = "administrators"

    @classmethod
    def build(cls, spawner: Any, settings: Mapping[str, Any]) -> HubState:
        """Build the state from the traits of a spawner that hasn't spawned yet.

        Needs a running event loop.

        Args:
            spawner: the spawner.
            settings: those of the hub's web application.
        """
        loop = asyncio.get_running_loop()
        log = spawner.log
        backend: Backend = spawner.make_backend()
        reading: Mapping[str, Any] = {
            "excluded": spawner.excluded_gpus,
            "memory_threshold_mib": (spawner.foreign_memory or 0) >> 20 or None,
            "shared": spawner.shared_gpus,
        }
        reader: HubReader = spawner.make_reader(backend, reading)
        leases: WeakSet[ServerLease] = WeakSet()
        health = HealthWatch(reader, backend, lambda: list(leases), log)
        ledger = _make_ledger(spawner, backend, health)
        courses = CourseCatalogue(spawner.courses, spawner.courses_file, log)
        people = compat.People(settings)
        hours = HoursDesk(
            spawner.usage_db,
            courses,
            CourseRights(courses, people),
            ledger,
            spawner.hour_limit,
            log,
            backend.divides_gpus,
        )
        reserved = ReservedTimes(
            courses,
            ledger,
            spawner.hour_limit,
            log,
            hours.granted,
            lambda: hours.is_known,
            backend.divides_gpus,
        )
        spawners: WeakSet[KnownServer] = WeakSet()
        usage = _make_recorder(spawner, backend, ledger, spawners)
        budgets = Budgets(spawner.budgets, usage.past, lambda: _ends(leases))
        shares = _make_shares(spawner, usage)
        queue = Queue(
            ledger,
            _queue_settings(spawner),
            backend.watch,
            reserved,
            budgets,
            shares,
            hours.ensure_read,
            courses.title_of,
        )
        state = cls(
            backend=backend,
            ledger=ledger,
            queue=queue,
            leftovers=Leftovers(),
            leases=leases,
            reclaimer=Reclaimer(ledger, lambda: list(leases), log),
            memory_guard=MemoryGuard(
                reader.memory_of, lambda: list(leases), log, backend.signal_inside
            ),
            spawners=spawners,
            reconciler=_make_reconciler(spawner, backend, ledger, spawners, usage),
            open_forms=OpenForms(ledger, queue),
            local_images=LocalImages(backend.has_image),
            host_metrics=metrics.HostMetrics(
                ledger, queue, loop, health.count, _metrics_name_machines(spawner, settings)
            ),
            switches=Switches(lambda: list(spawners)),
            notifier=Notifier(log),
            health=health,
            usage=usage,
            courses=courses,
            reserved=reserved,
            name_machines=spawner.name_machines,
            hours=hours,
        )
        reserved.tell = state.tell_instructors
        hours.on_change = queue.wake
        hours.tell_instructors = lambda course, words: state.tell_instructors(
            course, words, "hours"
        )
        hours.tell_administrators = lambda words: state.tell_administrators(people, words)
        bounded = not spawner.has_own_options()
        state.unguard = compat.guard_saved_options(
            lambda choice: not (bounded and options.is_too_large(choice)), _too_large
        )
        if spawner.control_socket:
            state.control = state._make_control_socket(spawner, settings, reading)
        checks = (
            _warn_of_gpus(reader, backend, spawner.shared_gpus, spawner.explain_unknown, log),
            state.notifier.check(spawner.notify_urls),
        )
        state._begin(*checks)
        return state

    def _make_control_socket(
        self, spawner: Any, settings: Mapping[str, Any], reading: Mapping[str, Any]
    ) -> ControlSocket:
        instructors = Instructors(
            self.courses,
            compat.People(settings),
            lambda: list(self.spawners),
            self.queue,
            self.ledger,
            self.messages,
            {key: each.title for key, each in catalogue(spawner.images).items()},
            self.reserved.slot_hours,
            spawner.log,
        )
        return ControlSocket(
            spawner.control_socket,
            self.queue,
            lambda: list(self.leases),
            spawner.log,
            reading,
            self.reconciler,
            NodeFacts(
                self.ledger,
                self.backend,
                catalogue(spawner.images),
                spawner.images_of_nodes(self.backend),
            ),
            self.endings,
            lambda: _homes(self.spawners),
            self.switches,
            self.turns,
            self.health,
            self._where_usage_is,
            WeekFacts(self.courses, self.reserved, spawner.hub_address),
            instructors,
            spawner.name_machines,
            self.hours,
        )

    async def _where_usage_is(self) -> dict[str, Any]:
        """Return where the store of the usage is, and what users call the courses in it."""
        titles = {key: each.name for key, each in self.courses.current().items()}
        return {**await self.usage.where(), "courses": titles}

    def _begin(self, *checks: Coroutine[Any, Any, None]) -> None:
        """Begin what runs beside the servers' starts; checks say in the log what is missing."""
        allow_many_connections()
        self.host_metrics.register()
        # They run once the event loop does: by then the hub has the spawners of all servers that
        # its database knows, which the reconciler needs. ref: init_spawners in jupyterhub/app.py
        work = [
            *checks,
            self.reconciler.run(),
            self.health.run(),
            self.usage.run(),
            self.reserved.watch(),
            self.hours.run(),
        ]
        if self.control:
            work.append(self.control.begin())
        self.tasks += [asyncio.ensure_future(each) for each in work]

    def tell_instructors(self, course: Course, words: str, occasion: Occasion = "reserved") -> None:
        """Send a message to a course's instructors, as far as this hub has servers of theirs."""
        self._tell_each(lambda one: course.is_taught_by(one.groups), words, occasion)

    def tell_administrators(self, people: compat.People, words: str) -> None:
        """Send a message to administrators, as far as this hub has servers of theirs.

        Args:
            people: the hub's users.
            words: a sentence.
        """
        self._tell_each(lambda one: people.may_stop_all(one.holder.user), words, "hours")

    def _tell_each(self, is_meant: Callable[[Any], bool], words: str, occasion: Occasion) -> None:
        told: set[str] = set()
        spawners: list[Any] = list(self.spawners)
        for spawner in spawners:
            if spawner.holder.user not in told and is_meant(spawner):
                told.add(spawner.holder.user)
                spawner.tell(occasion, words)

    def forget_last(self, holder: Holder) -> None:
        """Forget what its user was to be told of the last server, as the next one starts."""
        self.endings.pop(holder, None)
        self.messages.forget(holder)

    def remember_ending(self, holder: Holder, ending: Ending) -> None:
        """Remember for a while how a server was stopped: its JupyterLab may still be open."""
        oldest = ending.at - ENDING_SECONDS
        for each in [each for each, old in self.endings.items() if old.at < oldest]:
            del self.endings[each]
        self.endings[holder] = ending

    def close(self) -> None:
        """Close what would outlive a test: metrics, control socket, tasks and backend."""
        self.host_metrics.unregister()
        if self.unguard:
            self.unguard()
            self.unguard = None
        if self.control:
            self.control.close()
        self.health.close()
        self.usage.close()
        self.hours.close()
        self.backend.close()
        for task in self.tasks:
            task.cancel()


def _make_ledger(spawner: Any, backend: Backend, health: HealthWatch) -> Ledger:
    trouble = TroubleLog(spawner.explain_unknown, spawner.log)
    return Ledger(
        backend.list,
        health.read_nodes,
        trouble.explain,
        spawner.hub_address,
        trouble.on_read,
        read_notes=health.read_notes,
        counts_units=spawner.limits_count == "units",
        is_out_of_order=health.is_out_of_order,
    )


def _make_reconciler(
    spawner: Any,
    backend: Backend,
    ledger: Ledger,
    spawners: WeakSet[KnownServer],
    usage: Recorder,
) -> Reconciler:
    async def stop_orphan(server_id: str) -> None:
        usage.note_why(server_id, usage_endings.ORPHAN)
        await backend.stop(server_id)

    minutes = spawner.unknown_server_minutes
    return Reconciler(
        ledger.servers_with_ends,
        lambda: list(spawners),
        stop_orphan,
        spawner.hub_address,
        None if minutes is None else 60 * minutes,
        spawner.log,
    )


def _make_recorder(
    spawner: Any, backend: Backend, ledger: Ledger, spawners: Iterable[Any]
) -> Recorder:
    return Recorder(
        spawner.usage_db,
        ledger,
        backend.runs,
        lambda: {each.server_id: run for each in spawners if (run := each.known_run())},
        spawner.idle_utilization,
        spawner.usage_retention_days,
        metrics.count_usage,
        spawner.log,
        spawner.looks_back,
        [each.group for each in spawner.budgets if each.together],
        spawner.usage_history_days,
    )


def _make_shares(spawner: Any, usage: Recorder) -> Shares | None:
    if spawner.queue_order != "share":
        return None
    return Shares(usage.past, DAY * spawner.share_half_life, spawner.share_weights)


def _ends(leases: Iterable[ServerLease]) -> dict[Holder, float | None]:
    """Return when the leases of running servers end by now."""
    return {lease.holder: lease.until for lease in list(leases) if lease.units}


def _queue_settings(spawner: Any) -> QueueSettings:
    return QueueSettings(
        spawner.queue_order, spawner.gpu_policy, spawner.shared_gpu_policy, spawner.queue_length
    )


def _metrics_name_machines(spawner: Any, settings: Mapping[str, Any]) -> bool:
    """Return whether the metrics' readers may know the machines' names.

    Who may read them has been given a scope for it by an administrator, but where nobody is asked.
    """
    return may_know(spawner.name_machines, settings.get("authenticate_prometheus", True))


async def _homes(spawners: Iterable[Any]) -> list[Mapping[str, Any]]:
    """Return how much the users of the servers that run keep at home; one entry for each home."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for spawner in [each for each in spawners if each.active]:
        await spawner.ensure_rules_applied()
        if facts := spawner.home_facts():
            found[facts["user"], facts["server"]] = facts
    return list(found.values())


async def _warn_of_gpus(
    read: HubReader,
    backend: Backend,
    shared: Mapping[str, int],
    explain: Callable[[Exception], str],
    log: Any,
) -> None:
    """Say in the log at a hub's start which GPUs it doesn't hand out, and why."""
    try:
        nodes = await read()
    except InventoryError as error:
        log.warning("No GPUs are handed out: %s", one_line(error))
        return
    except Exception as error:  # the backend's, which knows of the nodes
        log.warning("No GPUs are handed out: %s", one_line(LOG.say(explain(error))))
        return
    if all(node.driver is None for node in nodes):
        log.warning("Servers get no GPUs: %s", one_line(read.why_no_driver()))
        return
    gpus = [gpu for node in nodes for gpu in node.gpus]
    for problem in sharing_problems(shared, gpus):
        log.warning("%s", one_line(problem))
    try:
        servers = await backend.list()
    except Exception as error:  # whoever asks for GPUs then reads it
        log.debug("Whether other containers have GPUs isn't known: %s", one_line(error))
        return
    # An instance's UUID, too, is known by the number of its GPU.
    indexes = {gpu.uuid: gpu.index for node in nodes for gpu in node.gpus}
    for outsider in outsiders_of(servers, nodes):
        said = ", ".join(map(str, sorted({indexes[uuid] for uuid in outsider.gpus})))
        log.warning(
            "Container %s has GPU %s and no lease: not handed out while it runs",
            one_line(outsider.name),
            said,
        )


def hub_state_of(spawner: Any) -> HubState:
    """Return the state of a spawner's hub; the first call builds it."""
    settings = compat.process_wide(spawner)
    if KEY not in settings:
        settings[KEY] = HubState.build(spawner, settings)
    state: HubState = settings[KEY]
    return state


def built_state_of(spawner: Any) -> HubState | None:
    """Return the state of a spawner's hub, if there is one; it isn't built for this."""
    state: HubState | None = compat.process_wide(spawner).get(KEY) if spawner.user else None
    return state


def build_at_start(app: Any) -> None:
    """Build the state at a hub's start: servers may run that nobody here knows, and services ask.

    Args:
        app: the hub's application.
    """
    settings = app.tornado_settings
    cls = settings["spawner_class"]
    if not issubclass(cls, compat.UnofficialHooks):
        return
    compat.extend_application(app, [(switch_page.PATH, switch_page.SwitchHandler)])
    try:
        with_ssl = bool(settings.get("internal_ssl"))
        spawner = cls(config=settings["config"], hub=app.hub, internal_ssl=with_ssl)
    except TraitError as error:  # each start of a server would fail by it
        app.log.critical("%s", one_line(error))
        app.exit(1)
        return
    except Exception:  # a subclass may need its user; who comes first has one
        if KEY not in settings:
            app.log.warning(
                "No %s can be made without a user: the queue is shown, and servers that this hub "
                "doesn't know are looked for, once somebody has logged in",
                one_line(cls.__name__),
                exc_info=True,
            )
        return
    if refused := [*spawner.refused_settings(), *spawner.contradictions()]:
        for sentence in refused:
            app.log.critical("%s", one_line(sentence))
        app.exit(1)
    if KEY not in settings:
        settings[KEY] = HubState.build(spawner, settings)


def stay_off(settings: dict[str, Any], user: str, server: str) -> None:
    """Have a server's restart, if there is one, leave it off: its user or another has it stopped.

    Args:
        settings: those of the hub's web application.
        user: whose server it is.
        server: its name.
    """
    if state := settings.get(KEY):
        state.switches.stay_off(Holder(user, server))


def build_early(spawner: Any) -> None:
    """Build the state with a hub's first spawner, if its start hasn't.

    Each spawner is part of it: the servers of none are unknown to the hub.
    """
    if spawner.user and spawner.hub:
        with suppress(RuntimeError):  # no event loop: the hub's own command line
            asyncio.get_running_loop()
            hub_state_of(spawner).spawners.add(spawner)


def _too_large() -> Exception | None:
    """Return the refusal of a choice to be saved; None for a start, where the check refuses it."""
    if form_stream.has_request():
        return None
    return http_errors.refusal(Refused(options.TOO_LARGE), by_rest=True)


class TroubleLog:
    """Logs once that nodes or servers can't be read, and once that they can be again.

    Args:
        explain: makes a sentence for users of an error.
        log: a logger.
    """

    def __init__(self, explain: Callable[[Exception], str], log: Any) -> None:
        self._explain = explain
        self._log = log
        self._logged = ""

    def explain(self, error: Exception) -> str:
        """Return the sentence for an error, which is counted in the metrics."""
        metrics.count_read_error(error)
        sentence = self._explain(error)
        if sentence != self._logged:
            self._logged = sentence
            self._log.warning("No GPUs are handed out: %s", one_line(LOG.say(sentence)))
        return sentence

    def on_read(self) -> None:
        """Note that everything could be read."""
        if self._logged:
            self._logged = ""
            self._log.warning("GPUs are handed out again")
