"""Plain values: nodes, GPUs, their holders, leases and requests."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

GPUState = Literal["free", "leased", "foreign", "mig", "unhealthy", "excluded", "unknown"]


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
    """The GPUs (by UUID) that are held by a server, or reserved for one.

    `until` is when the lease ends, in seconds since the epoch; None if it has no known end.
    `groups` are the groups of the holder's user at the spawn.
    `overdue` is whether its end is long past, so that it may go at any time or never.
    """

    holder: Holder
    gpus: frozenset[str]
    until: float | None = None
    groups: frozenset[str] = frozenset()
    overdue: bool = False


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
    """One GPU, with its state and its holder, as pages and policies use it.

    `uuid` is None if an unhealthy GPU doesn't report it; such a GPU is never free. `reason` is a
    sentence for users if `state` isn't "free". `compute_capability` is "8.0" for an A100, None if
    NVML doesn't report it. `until` and `overdue` are those of its lease. `node` is its node's
    name, `index` its number on that node: only GPUs of one node can be neighbours. `links` are
    pairs of another GPU's UUID and how close it is (`links.closeness`); () if unknown.
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
    links: tuple[tuple[str, int], ...] = field(default=(), compare=False, repr=False)


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


@dataclass(frozen=True)
class Request:
    """A checked choice: an image version's key, a number of GPUs, and their model (None: any).

    All of the GPUs are to be on one node. `models` are the GPU models that the image runs on; None
    if it runs on all. If that depends on the node, as with different drivers, `places` are the
    pairs (node name, model) that it runs on; None if it doesn't. `seconds` is for how long the
    GPUs are requested; None: without an end.
    """

    image: str
    gpus: int
    model: str | None = None
    models: frozenset[str] | None = None
    seconds: float | None = None
    places: frozenset[tuple[str, str]] | None = None

    @property
    def kind(self) -> Hashable:
        """A key that is equal for requests that accept the same GPUs."""
        return self.model, self.models, self.places

    def takes(self, gpu: GPU) -> bool:
        """Return whether the request accepts a GPU, free or not."""
        return (
            self.model in (None, gpu.model)
            and (self.models is None or gpu.model in self.models)
            and (self.places is None or (gpu.node, gpu.model) in self.places)
        )
