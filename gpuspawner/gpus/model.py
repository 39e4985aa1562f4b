"""Plain values: nodes, GPUs, their holders, leases and requests."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import is_
from typing import Literal

from .health_facts import NOTHING, HealthReading
from .unit_names import Share, UnitName, share_of

# What kinds of units are called: whole GPUs, slots of shared ones, and MIG instances by profile.
WHOLE = "gpu"
SHARED = "shared"
# One of which NVML doesn't tell the profile.
NAMELESS = "mig"

# What stands before a course's key among the groups that leases and requests count in. No name of a
# group can be taken for it: JupyterHub's pages and API make none with a control character.
_COURSE = "course\x1f"

GPUState = Literal["free", "leased", "foreign", "mig", "unhealthy", "excluded", "unknown"]


def course_group(key: str) -> str:
    """Return what a course is called among the groups that a request or lease counts in."""
    return _COURSE + key


def counted_in(groups: frozenset[str], course: str) -> frozenset[str]:
    """Return what a request counts in: its user's groups, and the course that it is for, if any."""
    return groups | {course_group(course)} if course else groups


def user_groups(groups: Iterable[str]) -> frozenset[str]:
    """Return the groups of a user among what a request or lease counts in."""
    return frozenset(each for each in groups if not each.startswith(_COURSE))


def course_of_groups(groups: Iterable[str]) -> str:
    """Return the key of the course among such groups; "": there is none."""
    found = (each.removeprefix(_COURSE) for each in groups if each.startswith(_COURSE))
    return next(found, "")


@dataclass(frozen=True, order=True)
class Holder:
    """The server that holds GPUs, by the names of its user and of itself ("": the default server).

    `hub` is "" for this hub's servers, and the hub's address for those of another hub, whose users
    are other people even if they have the same names.
    """

    user: str
    server: str = ""
    hub: str = ""

    @property
    def person(self) -> tuple[str, str]:
        """(hub, user): the same for all servers of one user."""
        return self.hub, self.user

    def __str__(self) -> str:
        return f"{self.user}/{self.server}" if self.server else self.user


@dataclass(frozen=True)
class Lease:
    """The units (by name) that are held by a server, or reserved for one.

    `until` is when the lease ends, in seconds since the epoch; None if it has no known end.
    `groups` are the groups of the holder's user at the spawn, and `course_group` of its course.
    `overdue` is whether its end is long past, so that it may go at any time or never.
    `count` is how much limits count it; None: by the units' shares of their GPUs.
    """

    holder: Holder
    gpus: frozenset[str]
    until: float | None = None
    groups: frozenset[str] = frozenset()
    overdue: bool = False
    count: Share | None = None

    @property
    def share(self) -> Share:
        """How much limits count them: 2 GPUs are 2, a slot of eight is 1/8."""
        return share_of(self.gpus) if self.count is None else self.count

    @cached_property
    def course(self) -> str:
        """The key of the course that it is for; "": none."""
        return course_of_groups(self.groups)


@dataclass(frozen=True)
class Outsider:
    """What runs with GPUs and without a lease: a container that somebody started by hand.

    Args:
        id: its backend's name for it.
        name: people's name for it, for administrators only: a user's may be in it.
        gpus: the UUIDs of the GPUs that it has, or may have.
    """

    id: str
    name: str
    gpus: frozenset[str]


@dataclass(frozen=True)
class GPU:
    """One unit that is handed out, with its state and its holder, as pages and policies use it.

    A unit is a whole GPU, a MIG instance or a slot of a shared GPU; `kind` is "gpu", the instance's
    profile ("1g.10gb") or "shared". `uuid` is what the driver calls it: the instance's own, and for
    all slots of a GPU the GPU's. `parent` is the UUID of the GPU that an instance is a part of,
    `part` the number of an instance or slot on its GPU, `parts` how many slots or compute slices
    the GPU has. `share` is how much of a GPU limits count it.

    `uuid` is None if an unhealthy GPU doesn't report it; such a GPU is never free. `reason` is a
    sentence for users if `state` isn't "free". `compute_capability` is "8.0" for an A100, None if
    NVML doesn't report it. `until` and `overdue` are those of its lease. `node` is its node's
    name, `index` its number on that node: only GPUs of one node can be neighbours. `links` are
    pairs of another GPU's UUID and how close it is (`links.closeness`); () if unknown. `health` is
    what was read of the physical GPU's health, `needs_reset` whether a reset of it is due. `ends`
    is when the unit ends itself, in seconds since the epoch: a slot for reserved hours does with
    them; None: it doesn't.
    """

    uuid: str | None
    index: int
    model: str
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilization_percent: int | None = None
    state: GPUState = "free"
    holder: Holder | None = None
    reason: str = ""
    compute_capability: str | None = None
    until: float | None = None
    node: str = ""
    overdue: bool = False
    kind: str = WHOLE
    part: int | None = None
    parts: int = 1
    parent: str = ""
    share: Share = 1
    links: tuple[tuple[str, int], ...] = field(default=(), compare=False, repr=False)
    health: HealthReading = field(default=NOTHING, compare=False, repr=False)
    needs_reset: bool = field(default=False, compare=False, repr=False)
    ends: float | None = field(default=None, compare=False, repr=False)

    @cached_property
    def name(self) -> UnitName | None:
        """What its name says; None if the GPU doesn't report its UUID."""
        if self.uuid is None:
            return None
        if self.kind == SHARED:
            return UnitName(self.uuid, self.part, of=self.parts)
        profile = "" if self.kind == WHOLE else self.kind
        return UnitName(self.uuid, profile=profile, of=self.parts, parent=self.parent)

    @cached_property
    def id(self) -> str | None:
        """Its name, by which a lease has it; None if the GPU doesn't report its UUID."""
        # Nearly all of them are whole GPUs, and a plan asks for thousands.
        if self.kind == WHOLE or self.uuid is None:
            return self.uuid
        return str(self.name)

    @property
    def gpu_uuid(self) -> str | None:
        """The UUID of the physical GPU."""
        return self.parent or self.uuid


@dataclass(frozen=True)
class Node:
    """One machine with GPUs. All GPUs of one request are on the same node.

    Args:
        name: its name; "" for the hub's own machine if that is the only one.
        driver: the version of NVIDIA's driver, "570.133.20"; None if it has no driver.
        cuda: the newest CUDA version that the driver can run, "12.8"; None if unknown.
        gpus: its GPUs; the `node` of each is `name`.
    """

    name: str = ""
    driver: str | None = None
    cuda: str | None = None
    gpus: tuple[GPU, ...] = ()

    def with_gpus(self, gpus: Iterable[GPU]) -> Node:
        """Return the node with these GPUs in place of its own; where they are its own, itself.

        So whoever keeps what they have made of a node sees that nothing in it has changed.
        """
        others = tuple(gpus)
        is_same = len(others) == len(self.gpus) and all(map(is_, others, self.gpus))
        return self if is_same else replace(self, gpus=others)


@dataclass(frozen=True)
class Request:
    """A checked choice: an image version's key, a number of units, their kind and their model.

    All of them are to be on one node. `kind` is `GPU.kind`, `model` a GPU model (None: any).
    `models` are the GPU models that the image runs on; None if it runs on all. If that depends on
    the node, as with different drivers, `places` are the pairs (node name, model) that it runs on;
    None if it doesn't. `seconds` is for how long they are requested; None: without an end.
    `unit_share` is how much of a GPU limits count each of them. `course` is the key of the course
    that it is for; "": none. `slots` is into how many slots a GPU is divided of which it asks for
    one in its course's reserved hours; 0: it asks for what there is at any time. `home_node` is the
    name of the node with its user's files, which is preferred; "": none is. `preferred` are sets of
    nodes' names, the most important first: nodes in them come next. Requests that differ in these
    two alone are the same.
    """

    image: str
    gpus: int
    model: str | None = None
    models: frozenset[str] | None = None
    seconds: float | None = None
    places: frozenset[tuple[str, str]] | None = None
    kind: str = WHOLE
    unit_share: Share = 1
    course: str = ""
    slots: int = 0
    home_node: str = field(default="", compare=False)
    preferred: tuple[frozenset[str], ...] = field(default=(), compare=False)

    def rank(self, node: str) -> tuple[bool, ...]:
        """Return a key of a node's name that is the less the more the node is preferred."""
        return tuple(node not in names for names in self.preferred)

    @property
    def accepts(self) -> Hashable:
        """A key that is equal for requests that accept the same units."""
        return self.kind, self.model, self.models, self.places, self.slots and self.course

    @property
    def share(self) -> Share:
        """How much of a GPU limits count it: 2 GPUs are 2, a slot of eight is 1/8."""
        return self.gpus * self.unit_share

    def takes(self, gpu: GPU) -> bool:
        """Return whether the request accepts a unit, free or not."""
        return (
            self.kind == gpu.kind
            and self.model in (None, gpu.model)
            and (self.models is None or gpu.model in self.models)
            and (self.places is None or (gpu.node, gpu.model) in self.places)
            and self.slots == (0 if gpu.ends is None else gpu.parts)
        )
