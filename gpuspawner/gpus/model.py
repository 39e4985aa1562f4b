"""GPUs, who holds them, and what is asked for: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["free", "leased", "foreign", "mig", "unhealthy", "excluded", "unknown"]


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
    NVML doesn't tell. `until` is when its lease ends, in seconds since the epoch.
    """

    uuid: str | None
    index: int
    model: str
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilization_percent: int | None = None
    state: State = "free"
    holder: Holder | None = None
    reason: str = ""
    compute_capability: str | None = None
    until: float | None = None


@dataclass(frozen=True)
class Request:
    """A checked choice: an image version's key, how many GPUs, and of which model (None: any).

    `models` are those that the image runs on; None where that isn't restricted. `seconds` is how
    long they are wanted for; None is without an end.
    """

    image: str
    gpus: int
    model: str | None = None
    models: frozenset[str] | None = None
    seconds: float | None = None

    def takes(self, gpu: GPU) -> bool:
        """Return whether a GPU is one of those asked for, free or not."""
        return self.model in (None, gpu.model) and (self.models is None or gpu.model in self.models)
