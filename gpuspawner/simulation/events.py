"""Events of a simulated GPU: what a program that waits on an NVML event set is woken by."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import check, check_number

# As many of a GPU's last events are kept in the state file.
MAX_EVENTS = 16
# NVML's numbers of the kinds are in `state.h`.
KINDS = ("xid", "single_bit_ecc", "double_bit_ecc", "mig_config", "recovery_action")


@dataclass(frozen=True)
class SimulatedEvent:
    """One event of a GPU.

    Args:
        number: of all its events; a later one has a larger number.
        kind: one of `KINDS`.
        data: an Xid's number; 0 for other kinds.
        gi: the GPU instance that it is of; None: the whole GPU, or unknown.
        ci: the compute instance that it is of; None: as `gi`.

    Raises:
        ValueError: NVML can't report such an event.
    """

    number: int
    kind: str
    data: int = 0
    gi: int | None = None
    ci: int | None = None

    def __post_init__(self) -> None:
        check_number("an event's number", self.number, low=1)
        check(self.kind in KINDS, "an event's kind", self.kind, "one of " + ", ".join(KINDS))
        check_number("an event's data", self.data, high=9999)
        for key in ("gi", "ci"):
            if getattr(self, key) is not None:
                check_number(f"an event's {key}", getattr(self, key), high=99)


def with_event(
    events: tuple[SimulatedEvent, ...],
    kind: str,
    data: int = 0,
    gi: int | None = None,
    ci: int | None = None,
) -> tuple[SimulatedEvent, ...]:
    """Return a GPU's events with one more, and without the oldest where they are too many."""
    number = max((each.number for each in events), default=0) + 1
    return (*events, SimulatedEvent(number, kind, data, gi, ci))[-MAX_EVENTS:]


def written(event: SimulatedEvent) -> str:
    """Return the line of the state file for an event."""
    place = " ".join("-" if part is None else str(part) for part in (event.gi, event.ci))
    return f"event {event.number} {event.kind} {event.data} {place}"


def read(value: str) -> SimulatedEvent:
    """Return the event that a line of the state file is of; ValueError if it is of none."""
    number, kind, data, gi, ci = value.split(" ")
    places = (None if part == "-" else int(part) for part in (gi, ci))
    return SimulatedEvent(int(number), kind, int(data), *places)
