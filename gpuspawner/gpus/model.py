"""Nodes and their GPUs, who holds them, and what is asked for: plain values."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

GPUState = Literal["free", "leased", "foreign", "mig", "unhealthy", "excluded", "unknown"]


@dataclass(frozen=True, order=True)
class Holder:
    """The server that holds GPUs: its user's name and its own ("" is the default server).

    `hub` is the address of its hub where that is another one, whose users are other people.
    """

    user: str
    server: str = ""
    hub: str = ""

    @property
    def person(self) -> tuple[str, str]:
        """Whose server it is."""
        return self.hub, self.user

    def __str__(self) -> str:
        return f"{self.user}/{self.server}" if self.server else self.user


@dataclass(frozen=True)
class Lease:
    """GPUs (UUIDs) that a holder's container, or a reservation for one, has now.

    `until` is when its time ends, in seconds since the epoch; None where that isn't known. `groups`
    are its holder's at the spawn.
    """

    holder: Holder
    gpus: frozenset[str]
    until: float | None = None
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GPU:
    """One GPU as people and policies see it.

    `uuid` is None where a sick GPU can't tell; such a GPU is never free. `reason` is a sentence
    for people wherever `state` isn't "free". `compute_capability` is "8.0" for an A100, None where
    NVML doesn't tell. `until` is when its lease ends, in seconds since the epoch. `node` is the
    name of the node that it is on. `index` counts the GPUs of one node, so that only on one node
    are two of them neighbours.
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


@dataclass(frozen=True)
class Node:
    """One machine with GPUs: the GPUs of a request are always on one.

    Args:
        name: what it is known by; "" for a hub's own machine, where that is the only one.
        driver: the version of NVIDIA's driver, "570.133.20"; None where there is none.
        cuda: the newest CUDA that the driver can run, "12.8"; None where that isn't known.
        gpus: its GPUs; the `node` of each is `name`.
    """

    name: str = ""
    driver: str | None = None
    cuda: str | None = None
    gpus: tuple[GPU, ...] = ()


@dataclass(frozen=True)
class Request:
    """A checked choice: an image version's key, how many GPUs, and of which model (None: any).

    All of the GPUs are to be on one node. `models` are those that the image runs on; None where
    that isn't restricted. Where it depends on the node, as with another driver, `places` are the
    pairs of a node's name and a model that it runs on; None where it doesn't. `seconds` is how
    long they are wanted for; None is without an end.
    """

    image: str
    gpus: int
    model: str | None = None
    models: frozenset[str] | None = None
    seconds: float | None = None
    places: frozenset[tuple[str, str]] | None = None

    @property
    def kind(self) -> Hashable:
        """What of it decides which GPUs it takes: the same for all that take the same ones."""
        return self.model, self.models, self.places

    def takes(self, gpu: GPU) -> bool:
        """Return whether a GPU is one of those asked for, free or not."""
        return (
            self.model in (None, gpu.model)
            and (self.models is None or gpu.model in self.models)
            and (self.places is None or (gpu.node, gpu.model) in self.places)
        )
