"""The traits that all GPU spawners share, with their defaults and validation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import traitlets
from jupyterhub.traitlets import ByteSpecification
from traitlets import Bool, Dict, Enum, Float, Int, List, TraitError, Unicode, default, validate

from .choices import options
from .choices.course_choice import with_courses
from .choices.limits import MAX_HOURS, Limits
from .choices.slot_hours import SlotHours
from .counts import Counts
from .courses.catalogue import CourseCatalogue, check_courses
from .courses.model import Course
from .gpus.allocation import POLICIES
from .gpus.machine_names import AUDIENCES
from .gpus.model import Request, counted_in
from .gpus.unit_names import MAX_SLOTS
from .group_overrides import common, lower
from .images.catalogue import ImageVersion, as_fields, catalogue, default_key
from .notifications import addresses
from .scheduling.budgets import DAY, MAX_DAYS, Budget, check_budgets
from .scheduling.plan import ORDERS
from .scheduling.queue import RequestLimits
from .scheduling.shares import HALF_LIVES, WEEK, check_weights
from .usage import database

if TYPE_CHECKING:
    from jupyterhub.spawner import Spawner as SpawnerMixin
else:
    # JupyterHub refuses a subclass of `Spawner` that doesn't define `start`, `stop` and `poll`.
    from traitlets import HasTraits as SpawnerMixin


class GPUTraits(SpawnerMixin):
    """The traits of every GPU spawner."""

    images = Dict(
        help="""The image versions that users choose from: key -> image reference, or key -> a
        mapping with `image`, and optionally `title`, `description`, `framework`, `cuda`, `cudnn`,
        `nccl`, `python`, `min_driver`, `toolkit_driver`, `compute_capabilities`, `size`,
        `deprecated` and `default`. Where it is empty, DockerSpawner's `allowed_images` and `image`
        say what there is.""",
    ).tag(config=True)

    default_gpus = Int(
        1,
        min=0,
        help="""The number of GPUs of a server whose user names none. Never more than `gpu_limit` or
        than the host has, so a host without GPUs starts servers without.""",
    ).tag(config=True)

    gpu_limit = Int(
        None,
        min=0,
        allow_none=True,
        help="""The most GPUs that one server may have. None: as many as the host has. Can be set
        for groups through `Spawner.group_overrides`.""",
    ).tag(config=True, stricter=lower)

    user_gpu_limit = Int(
        None,
        min=0,
        allow_none=True,
        help="""The most GPUs that one user may hold with all their servers together. None: no such
        limit.""",
    ).tag(config=True, stricter=lower)

    group_gpu_limits = Counts(
        least=0,
        help="""The most GPUs that a group's members may hold at a time: {"students": 4}. A user in
        several of these groups counts in each.""",
    ).tag(config=True)

    gpu_hours = Dict(
        help="""The GPU hours that users may have in a rolling window: group -> a mapping with
        `hours` and `days`, {"students": {"hours": 40, "days": 7}}. Each of the group's members has
        so many; with `together: True` all of them share them. The key "*" is for all users. What
        runs or waits counts up to its end. Of several the strictest decides. Needs `usage_db`. The
        same for all users.""",
    ).tag(config=True)

    allowed_models = List(
        Unicode(),
        help="""The GPU models that users may have, as NVML names them. Empty: all.""",
    ).tag(config=True, stricter=common)

    allowed_versions = List(
        Unicode(),
        help="""The keys of `images` that users may choose. Empty: all.""",
    ).tag(config=True, stricter=common)

    hour_limit = Float(
        None,
        min=0,
        allow_none=True,
        help="""The most hours that a server may keep its GPUs; at the end it is stopped. None: for
        ever. Servers without GPUs have no end.""",
    ).tag(config=True, while_running=True, stricter=lower)

    shared_gpus = Counts(
        least=1,
        most=MAX_SLOTS,
        help="""GPUs that several servers share, by model or UUID, and how many:
        {"NVIDIA A100-SXM4-40GB": 8}. A UUID counts before its model; 1: not shared. Their servers
        compute by turns and see all of the GPU's memory, which nothing divides by hardware. Which
        users may have them whole or shared, `allowed_kinds` says. The same for all users.""",
    ).tag(config=True)

    memory_guard = Bool(
        True,
        help="""Whether servers that share a GPU are kept to their part of its memory: who holds
        more for `memory_guard_seconds` is warned; after as long again the server's largest process
        on that GPU is ended, and after as long once more the server is stopped. It takes a hub that
        sees the machine's processes: the label `gpuspawner.memory-guard` says whether it does.
        Whole GPUs and MIG instances are never touched.""",
    ).tag(config=True, while_running=True)

    memory_guard_seconds = Float(
        60,
        min=1,
        max=3600,
        help="""How many seconds a server that shares a GPU may hold more than its part of the
        memory, without a break, before the next step of `memory_guard`.""",
    ).tag(config=True, stricter=lower, while_running=True)

    shared_gpu_policy = Enum(
        sorted(POLICIES),
        "spread",
        help="""Which slot of the shared GPUs a server gets, and which of equal MIG instances:
        `spread` one of the GPU with the fewest servers, `pack` one of the GPU with the most.""",
    ).tag(config=True)

    allowed_kinds = List(
        Unicode(),
        help="""The kinds of GPUs that users may have: "gpu" for whole ones, "shared" for a slot of
        a shared one, and the profiles of MIG instances, such as "1g.10gb". Empty: all.""",
    ).tag(config=True, stricter=common)

    default_kind = Unicode(
        "",
        help="""The kind of a server's GPU whose user names neither it nor a number. Empty: whole
        GPUs where there are any that the user may have, then shared ones, then the smallest MIG
        instance.""",
    ).tag(config=True)

    limits_count = Enum(
        ["gpus", "units"],
        "gpus",
        help="""What the limits count: "gpus", where a slot of eight counts as 1/8 and a MIG
        instance as its part of the compute slices; "units", where each counts as one. The same for
        all users.""",
    ).tag(config=True)

    courses = Dict(
        help="""The courses: key -> a mapping with `group` (of its students) and, if wanted,
        `title`, `instructors`, `images`, `limits`, `material`, `shared`, `teams`, `repository`,
        `reserved`, `calendar` and `required`. The same for all users.""",
    ).tag(config=True)

    courses_file = Unicode(
        "",
        help="""The path of a YAML file with more courses, as in `courses`. It is read again when it
        has changed; an entry that is wrong is named in the log, and stays as it was before. The
        same for all users.""",
    ).tag(config=True)

    default_hours = Float(
        None,
        min=0,
        allow_none=True,
        help="""The hours of a server with GPUs whose user names none. Never more than `hour_limit`.
        None: `hour_limit`.""",
    ).tag(config=True)

    warning_minutes = Float(
        15,
        min=0,
        help="""How long before the end of a server's time its user is warned.""",
    ).tag(config=True, while_running=True)

    extend_minutes = Float(
        60,
        min=0,
        allow_none=True,
        help="""From how long before the end of a server's time its user can extend it; of a short
        time its second half, and from the warning on always. None: at any time. An administrator
        can extend others' servers at any time.""",
    ).tag(config=True, stricter=lower, while_running=True)

    longest_wait_minutes = Float(
        24 * 60,
        min=0,
        allow_none=True,
        help="""How long a request waits at most if too few GPUs are free. 0: it is refused at once.
        None: no limit.""",
    ).tag(config=True, stricter=lower)

    claim_minutes = Float(
        10,
        min=0,
        max=24 * 60,
        help="""How long GPUs stay reserved for a server without GPUs that has asked for some while
        it runs, once its turn has come; then the next in line has them. 0: servers that run can't
        ask for any.""",
    ).tag(config=True, stricter=lower, while_running=True)
    check_in_minutes = Float(
        0,
        min=0,
        help="""How long the GPUs of who has waited for longer than this are held until they say on
        the waiting page that they are there; else the next in line has them. 0: a server starts
        when its turn has come, whether its user is there or not.""",
    ).tag(config=True)

    not_before_hours = Float(
        168,
        min=0,
        help="""How far ahead a user can put the start of a server with GPUs ("not before 8:00").
        Its request waits in the queue, at its place; until then others have the GPUs if they are
        done by then. 0: users can't.""",
    ).tag(config=True, stricter=lower)

    queue_length = Int(
        100,
        min=0,
        help="""The most requests that may wait at a time; further ones are refused. The same for
        all users.""",
    ).tag(config=True)

    queue_order = Enum(
        sorted(ORDERS),
        "fifo",
        help="""The order of the queue. `fifo`: first come, first served. `fair`: users who hold
        fewer GPUs first; each GPU counts as having come half an hour later. `share`: users who have
        used less lately first; each GPU hour counts as having come ten minutes later, and half as
        much after `share_half_life`. In all, a later request is granted before an earlier one if
        that delays nobody. The same for all users.""",
    ).tag(config=True)

    share_half_life = Float(
        7,
        help="""For `queue_order = "share"`: after how many days a GPU hour counts as half of one.
        The same for all users.""",
    ).tag(config=True)

    share_weights = Dict(
        help="""For `queue_order = "share"`: group -> how many times as much as others its members
        may have, {"staff": 2}. Of several groups the highest counts. The same for all users.""",
    ).tag(config=True)

    idle_minutes = Float(
        0,
        min=0,
        help="""After how long a server is warned whose GPUs all do nothing: their utilization stays
        at `idle_utilization` or below, and their memory in use doesn't grow. 0: never.""",
    ).tag(config=True, while_running=True)

    idle_warning_minutes = Float(
        10,
        min=0,
        help="""How long after that warning it is stopped.""",
    ).tag(config=True, while_running=True)

    idle_utilization = Float(
        5,
        min=0,
        max=100,
        help="""Up to which utilization, in percent, a GPU counts as doing nothing.""",
    ).tag(config=True, while_running=True)

    idle_exempt_groups = List(
        Unicode(),
        help="""Groups whose members' idle GPUs are left to them.""",
    ).tag(config=True, while_running=True)

    idle_only_while_waiting = Bool(
        False,
        help="""Warn and stop idle servers only while somebody waits who could use their GPUs.""",
    ).tag(config=True, while_running=True)

    stop_grace = Float(
        60,
        min=0,
        max=3600,
        help="""How many seconds a server has to save when it is stopped, by whomever; then it is
        ended by force. One in which nothing runs ends at once. A change counts for servers that
        are started after it.""",
    ).tag(config=True, stricter=lower)

    ssh_path = Unicode(
        "",
        help="""Where a server of one's own takes SSH through a websocket, below its address:
        "sshd" in our images. The home page then shows the lines for it. Empty: it shows none.""",
    ).tag(config=True)

    # Any value, as traitlets' own words on a wrong one have it in them, with its passwords.
    notify_urls = traitlets.Any(
        [],
        help="""Where messages to users go: when their turn has come, their server's time is nearly
        over or its GPUs do nothing, and when it was stopped. A list of addresses as Apprise writes
        them, in which `{username}` stands for the user's name; or a function, which may be async,
        that takes the spawner and returns such a list. Needs the package `apprise`. Empty: no
        messages.""",
    ).tag(config=True)

    control_socket = Unicode(
        "gpuspawner.sock",
        help="""The path, in the hub's folder, of a Unix socket through which services that the hub
        starts can read the queue and extend leases. Only the hub's account can open it. Empty:
        none.""",
    ).tag(config=True)

    name_machines = Enum(
        AUDIENCES,
        "administrators",
        help="""Who reads the names of the machines, where there are several: only `administrators`,
        as they tell of a network, or `everybody`. Others read "machine 2" or "on one of 3
        machines", on all pages, in the REST API, in live updates and in messages. The same for
        everybody: a group override changes nothing.""",
    ).tag(config=True)

    usage_db = Unicode(
        "sqlite:///gpuspawner-usage.sqlite",
        help="""Where it is kept who used what, as a URL of SQLAlchemy's: a SQLite file, by default
        in the hub's folder, or a PostgreSQL database, which several hubs can share. Empty: nothing
        is kept. The same for everybody.""",
    ).tag(config=True)

    usage_retention_days = Float(
        None,
        min=1,
        allow_none=True,
        help="""After how many days what a server used is removed from there. None: never. The same
        for everybody.""",
    ).tag(config=True)

    usage_history_days = Float(
        400,
        min=0,
        help="""For how many days what each GPU did is kept there, for the dashboard's history:
        utilization and memory in use, of two days every five minutes and of older ones every half
        hour. Eight GPUs take about 17 MB a year. 0: nothing. The same for everybody.""",
    ).tag(config=True)

    unknown_server_minutes = Float(
        5,
        min=0,
        allow_none=True,
        help="""How long after its announcement in the log a server is stopped that runs with this
        hub's label past its end, and that the hub doesn't know, as after a loss of its database.
        None: administrators see it on the dashboard and stop it there. The same for everybody.""",
    ).tag(config=True)

    gpu_policy = Enum(
        sorted(POLICIES),
        "pack",
        help="""Which of the free GPUs a server gets: `pack` fills gaps, so that neighbouring GPUs
        stay free for requests for several; `spread` keeps single ones apart, for cooling and
        bandwidth. Several for one server are those that are connected best, where the driver
        tells.""",
    ).tag(config=True)

    excluded_gpus = List(
        Unicode(),
        help="""UUIDs of GPUs that are never handed out, such as the one that drives a screen.""",
    ).tag(config=True)

    foreign_memory = ByteSpecification(
        0,
        help="""The used memory from which a GPU counts as in use by a program outside the hub, even
        if NVML reports no process. 0: the larger of 1 GiB and 2 %.""",
    ).tag(config=True)

    nvml_timeout = Float(
        10,
        help="""Seconds to wait for NVML, which hangs on some broken GPUs. After that nothing is
        handed out until it answers. With several machines, seconds to wait for each of them, which
        waits 4 for its NVML.""",
    ).tag(config=True)

    @default("start_timeout")
    def _start_timeout_default(self) -> int:
        # Here, start() includes the wait for the server's first answer.
        return 120

    @default("options_from_form")
    def _options_from_form_default(self) -> Any:
        return options.from_fields

    @default("notify_urls")
    def _notify_urls_default(self) -> Any:
        return []  # one for each spawner, as a hook may add to it

    @validate("images")
    def _check_images(self, proposal: Any) -> Any:
        checked(catalogue, proposal.value)
        # As mappings, which a group override can be merged into.
        return {key: as_fields(entry) for key, entry in proposal.value.items()}

    @validate("courses")
    def _check_courses(self, proposal: Any) -> Any:
        return checked(check_courses, proposal.value)

    @validate("share_half_life")
    def _check_share_half_life(self, proposal: Any) -> Any:
        if not 0 < proposal.value <= MAX_DAYS / HALF_LIVES:
            raise TraitError(
                f"c.GPUSpawner.share_half_life must be more than 0 and at most "
                f"{MAX_DAYS / HALF_LIVES:g} days, got {proposal.value}"
            )
        return proposal.value

    @validate("share_weights")
    def _check_share_weights(self, proposal: Any) -> Any:
        checked(check_weights, proposal.value)
        return proposal.value

    @validate("gpu_hours")
    def _check_gpu_hours(self, proposal: Any) -> Any:
        checked(check_budgets, proposal.value)
        return proposal.value

    @validate("notify_urls")
    def _check_notify_urls(self, proposal: Any) -> Any:
        given = proposal.value
        try:
            return given if callable(given) else list(addresses.check(given or ()))
        except ValueError as error:
            raise TraitError(f"c.GPUSpawner.notify_urls: {error}") from None

    @validate("usage_db")
    def _check_usage_db(self, proposal: Any) -> Any:
        try:
            return proposal.value and database.check(proposal.value) and proposal.value
        except ValueError as error:
            # Without the value, as there may be a password in it.
            raise TraitError(f"c.GPUSpawner.usage_db: {error}") from None

    @validate("hour_limit", "default_hours")
    def _check_hours(self, proposal: Any) -> Any:
        if proposal.value is not None and not 0 < proposal.value <= MAX_HOURS:
            raise TraitError(
                f"{proposal.trait.name} must be more than 0 and at most {MAX_HOURS:g}, or None "
                f"for no end, got {proposal.value}"
            )
        return proposal.value

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets of GPU hours."""
        return check_budgets(self.gpu_hours)

    @property
    def looks_back(self) -> float:
        """How far back it matters what users have had, in seconds; 0: it doesn't."""
        windows = [each.seconds for each in self.budgets]
        if self.queue_order == "share":
            windows += [WEEK, HALF_LIVES * DAY * self.share_half_life]
        return max(windows, default=0.0)

    def contradictions(self) -> list[str]:
        """Return sentences about traits that can't be together. A hub doesn't start with one."""
        longest, kept = (
            max((each.days for each in self.budgets), default=0),
            self.usage_retention_days,
        )
        if self.queue_order == "share" and not self.usage_db:
            return [
                'c.GPUSpawner.queue_order = "share" goes by what users have had, and with an empty '
                "c.GPUSpawner.usage_db nothing is kept of it"
            ]
        if longest and not self.usage_db:
            return [
                "c.GPUSpawner.gpu_hours counts what users have had, and with an empty "
                "c.GPUSpawner.usage_db nothing is kept of it"
            ]
        if kept is not None and kept < longest:
            return [
                f"c.GPUSpawner.gpu_hours looks back {longest:g} days, and "
                f"c.GPUSpawner.usage_retention_days = {kept:g} removes what is older"
            ]
        return []

    @property
    def course_catalogue(self) -> CourseCatalogue:
        """The courses of the hub."""
        return CourseCatalogue(self.courses, self.courses_file, self.log)

    def own_courses(self) -> dict[str, Course]:
        """Return key -> course, of those that the user is in as things are now."""
        groups, courses = self.groups, self.course_catalogue.current()
        return {key: each for key, each in courses.items() if each.has_member(groups)}

    def course_now(self, courses: Iterable[str]) -> str:
        """Return the key of the first of these courses whose reserved hours they are; "": none."""
        return ""

    def slot_hours(self, courses: Iterable[str]) -> Mapping[str, SlotHours]:
        """Return course -> its next reserved hours in which servers share GPUs."""
        return {}

    def limits(self) -> Limits:
        """Return the limits of a choice of this server's user."""
        allowed, image = self.allowed_image_names(), self.default_image()
        versions = catalogue(self.images)
        if self.allowed_versions:
            versions = {key: v for key, v in versions.items() if key in self.allowed_versions}
        if isinstance(allowed, dict):
            versions |= {key: v for key, v in catalogue(allowed).items() if key not in versions}
        can_choose = bool(versions) or allowed == "*"
        if image and not self.images and image not in {v.image for v in versions.values()}:
            # An empty choice starts this image, whether or not it can be chosen.
            default_image, known = image, ImageVersion(image=image, title=image)
            extra = {} if can_choose else {default_image: known}
        else:
            # Without versions there is no default.
            default_image, extra = default_key(versions, image) if versions else "", {}
        groups, courses = self.groups, self.own_courses()
        slot_hours = self.slot_hours(courses)
        is_guarded = bool(self.shared_gpus or slot_hours) and self.guards_memory()
        return Limits(
            versions=versions | extra,
            default_image=default_image,
            image_can_be_chosen=can_choose,
            any_image=allowed == "*",
            default_gpus=self.default_gpus,
            gpus=self.gpu_limit,
            user_gpus=self.user_gpu_limit,
            group_gpus={name: n for name, n in self.group_gpu_limits.items() if name in groups},
            models=frozenset(self.allowed_models) or None,
            kinds=frozenset(self.allowed_kinds) or None,
            default_kind=self.default_kind,
            hours=self.hour_limit,
            default_hours=self.default_hours,
            ahead=3600 * self.not_before_hours if self.longest_wait_minutes != 0 else 0.0,
            waits=self.longest_wait_minutes != 0,
            has_catalogue=bool(self.images),
            memory=bytes_of(self.mem_limit),
            guard_seconds=self.memory_guard_seconds if is_guarded else None,
            processors=self.cpu_limit or None,
            courses=tuple(courses.values()),
            course_now=self.course_now(courses),
            slot_hours=slot_hours,
            counts_units=self.limits_count == "units",
            taught_courses=frozenset(k for k, each in courses.items() if each.is_taught_by(groups)),
        )

    def guards_memory(self) -> bool:
        """Return whether servers that share a GPU are kept to their part of its memory."""
        return False

    def allowed_image_names(self) -> Any:
        """Return the images that may be chosen besides `images`: name -> reference; "*": any."""
        return {}

    def default_image(self) -> str:
        """Return the image of a choice that names none, without a catalogue; "": none."""
        return ""

    def request_limits(self) -> RequestLimits:
        """Return the limits of this server's request in the queue."""
        minutes, limits = self.longest_wait_minutes, self.limits()
        of_user = RequestLimits(
            self.user_gpu_limit,
            limits.group_gpus,
            None if minutes is None else minutes * 60,
        )
        return with_courses(of_user, limits.courses, limits.taught_courses)

    def groups_for(self, request: Request) -> frozenset[str]:
        """Return what a request counts in: the user's groups, and the course that it is for."""
        return counted_in(self.groups, request.course)

    @property
    def groups(self) -> frozenset[str]:
        """The names of the user's groups."""
        return frozenset(group.name for group in self.user.groups) if self.user else frozenset()


def bytes_of(size: Any) -> int | None:
    """Return an amount of memory in bytes: of a number, or of text such as "16G"; None: unknown."""
    if isinstance(size, int | float):
        return int(size) or None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)i?B?", str(size).strip(), re.IGNORECASE)
    if not found:
        return None
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def checked(check: Any, value: Any) -> Any:
    """Return `check(value)`; raise `TraitError` with its message if it raises `ValueError`."""
    try:
        return check(value)
    except ValueError as error:
        raise TraitError(f"c.GPUSpawner.{error}") from None
