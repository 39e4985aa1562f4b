"""The health of GPUs: what follows from what NVML reads and reports, until when, and what to do.

A GPU is *watched* where it shows an application's own error, gets no new server *after use* where
it works until its reset, and is in *quarantine* where it doesn't. The last two are marks that a
backend keeps, one for each cause. A mark of what can be read, as a repair that waits, ends when
that reads clear. An Xid can't be read back: its mark ends when the driver was loaded anew since, or
something that only a reset or a load of the driver clears was read since the event and isn't any
more. Time alone ends nothing.

Which Xid is what: 13, 31, 43, 45, 68 and 109 are an application's own, and one that isn't listed is
watched as well: where a reset is due, newer drivers say so themselves (the recovery action).

ref: https://docs.nvidia.com/deploy/xid-errors/
ref: https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..i18n.lazy_text import join_sentences, lazy_gettext
from . import health_facts as facts
from .health_facts import HealthReading

Verdict = Literal["ok", "watch", "after-use", "quarantine"]
# From the mildest to the worst.
VERDICTS: tuple[Verdict, ...] = ("ok", "watch", "after-use", "quarantine")
Remedy = Literal["none", "reset", "restart", "replace", "fabric", "cool", "power", "version"]

# Who a mark is by.
BY = "health"
ECC = "ecc"
# An application's own errors: nothing of the GPU's.
OWN_XIDS = frozenset({13, 31, 43, 45, 68, 109})
# Clear only by a reset or a load of the driver, so that their end says that there was one.
_GONE_BY_RESET = frozenset(
    {
        facts.LOST,
        facts.RESET_REQUIRED,
        facts.REMAP_PENDING,
        facts.PAGES_PENDING,
        facts.RECOVERY_RESET,
        facts.RECOVERY_REBOOT,
        facts.RECOVERY_DRAIN_RESET,
    }
)


@dataclass(frozen=True)
class Cause:
    """What a GPU's health suffers from.

    Args:
        key: its name, in labels and in JSON.
        verdict: what follows.
        words: a sentence for everybody; "" where the key says all.
        remedy: what an administrator does.
        is_event: whether it is reported once and can't be read back.
        is_kept: whether a mark is kept of it; else it holds for as long as it is read.
        by_counter: whether the count of memory errors that is back at 0 says that it is over.
    """

    key: str
    verdict: Verdict
    words: str = ""
    remedy: Remedy = "none"
    is_event: bool = False
    is_kept: bool = True
    by_counter: bool = False


_RESET_DUE = lazy_gettext("The driver says that it has to be reset.")
_REPAIR = lazy_gettext("A repair of its memory waits for its next reset.")
CAUSES: dict[str, Cause] = {
    cause.key: cause
    for cause in (
        Cause(
            "xid-79",
            "quarantine",
            lazy_gettext("It has fallen off the bus (Xid 79)."),
            "restart",
            is_event=True,
        ),
        Cause(
            "xid-119",
            "quarantine",
            lazy_gettext("Its firmware doesn't answer the driver (Xid 119)."),
            "reset",
            is_event=True,
        ),
        Cause(
            "xid-95",
            "quarantine",
            lazy_gettext("An error of its memory spread to other programs (Xid 95)."),
            "reset",
            is_event=True,
        ),
        Cause(
            "xid-48",
            "quarantine",
            lazy_gettext("An error of its memory couldn't be corrected (Xid 48)."),
            "reset",
            is_event=True,
            by_counter=True,
        ),
        Cause(
            facts.LOST,
            "quarantine",
            lazy_gettext("It has fallen off the bus: the host needs a reboot."),
            "restart",
        ),
        Cause(
            facts.REMAP_FAILED,
            "quarantine",
            lazy_gettext("Its memory has faults that can't be repaired: replace it."),
            "replace",
        ),
        Cause(facts.RECOVERY_REBOOT, "quarantine", _RESET_DUE, "restart"),
        Cause(facts.RESET_REQUIRED, "quarantine", _RESET_DUE, "reset"),
        Cause(facts.RECOVERY_RESET, "quarantine", _RESET_DUE, "reset"),
        Cause(
            facts.FABRIC_FAILED,
            "quarantine",
            lazy_gettext("It isn't connected to the NVSwitch fabric, so CUDA can't begin on it."),
            "fabric",
        ),
        Cause(
            facts.FABRIC_SETTING_UP,
            "after-use",
            lazy_gettext("The NVSwitch fabric is being set up, and CUDA can't begin before."),
            "fabric",
            is_kept=False,
        ),
        Cause(
            "xid-94",
            "after-use",
            lazy_gettext("An error of its memory ended the program that it hit (Xid 94)."),
            "reset",
            is_event=True,
            by_counter=True,
        ),
        Cause(
            "xid-63",
            "after-use",
            lazy_gettext("A fault of its memory was recorded, to be repaired (Xid 63)."),
            "reset",
            is_event=True,
            by_counter=True,
        ),
        Cause(
            ECC,
            "after-use",
            lazy_gettext("An error of its memory couldn't be corrected."),
            "reset",
            is_event=True,
            by_counter=True,
        ),
        Cause(facts.REMAP_PENDING, "after-use", _REPAIR, "reset"),
        Cause(facts.PAGES_PENDING, "after-use", _REPAIR, "reset"),
        Cause(facts.RECOVERY_DRAIN_RESET, "after-use", _RESET_DUE, "reset"),
        Cause(facts.RECOVERY_DRAIN_P2P, "after-use", _RESET_DUE, "reset"),
        Cause(facts.RECOVERY_OTHER, "after-use", _RESET_DUE, "reset"),
        Cause(
            facts.HOT,
            "watch",
            lazy_gettext("It is too hot, and slower for that."),
            "cool",
            is_kept=False,
        ),
        Cause(
            facts.POWER_BRAKE,
            "watch",
            lazy_gettext("The machine's power supply slows it down."),
            "power",
            is_kept=False,
        ),
        # Nobody's fault by themselves: only their end says something.
        Cause(facts.ECC_ERRORS, "ok", is_kept=False),
        Cause(facts.UNREACHABLE, "ok", is_kept=False),
    )
}
_ORDER = {key: number for number, key in enumerate(CAUSES)}


def cause_of(key: str) -> Cause:
    """Return a cause by its key. One that only a newer version knows keeps its GPU out."""
    if key in CAUSES:
        return CAUSES[key]
    if number := re.fullmatch(r"xid-([0-9]{1,4})", key):
        words = lazy_gettext("The driver reported Xid %(number)s.", number=number[1])
        if int(number[1]) in OWN_XIDS:
            words = lazy_gettext(
                "A program on it made an error of its own (Xid %(number)s).", number=number[1]
            )
        return Cause(key, "watch", words, is_event=True, is_kept=False)
    words = lazy_gettext("It was taken out of service for a reason that this version doesn't know.")
    return Cause(key, "quarantine", words, "version", is_event=True)


def todo(remedy: Remedy, index: int | None = None) -> str:
    """Return what an administrator does, as a sentence; "" for nothing.

    Args:
        remedy: of a `Cause`.
        index: the GPU's number, as `nvidia-smi` has it; None: not known.
    """
    number = "N" if index is None else str(index)
    sentences: dict[Remedy, str] = {
        "none": "",
        "reset": lazy_gettext(
            "Reset it with `nvidia-smi --gpu-reset -i %(index)s`, or restart the machine; it comes "
            "back by itself.",
            index=number,
        ),
        "restart": lazy_gettext("Restart the machine; it comes back by itself."),
        "replace": lazy_gettext("Replace it."),
        "fabric": lazy_gettext(
            "See `systemctl status nvidia-fabricmanager`; it comes back by itself."
        ),
        "cool": lazy_gettext("See its fans and the air around it."),
        "power": lazy_gettext("See the machine's power supplies."),
        "version": lazy_gettext("Bring all hubs to one version, or put it back into service."),
    }
    return sentences[remedy]


def worst(causes: Iterable[str]) -> Cause | None:
    """Return the cause that counts first; None without any."""
    found = [cause_of(key) for key in causes]
    last = len(_ORDER)
    return min(
        found,
        key=lambda each: (-VERDICTS.index(each.verdict), _ORDER.get(each.key, last), each.key),
        default=None,
    )


def keeps_out(cause: Cause) -> bool:
    """Return whether a GPU with it isn't handed out."""
    return cause.verdict in ("after-use", "quarantine")


# Marks --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HealthMark:
    """The mark of one cause, as a backend keeps it.

    Args:
        uuid: the unit's: a GPU's, or that of the MIG instance which alone is concerned.
        cause: the key of its `Cause`.
        gpu: the UUID of the physical GPU.
        since: when, in seconds since the epoch; None if unknown.
        seen: what was read of the GPU at that moment, of an event.
        driver: which load of the driver that was, as `driver_load` returns it.
    """

    uuid: str
    cause: str
    gpu: str
    since: float | None = None
    seen: tuple[str, ...] = ()
    driver: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What there is one mark of: unit and cause."""
        return self.uuid, self.cause


def words_of(causes: Iterable[str], index: int | None = None, with_todo: bool = False) -> str:
    """Return what is wrong with a GPU, and maybe what to do, as sentences."""
    cause = worst(causes)
    if cause is None:
        return ""
    return join_sentences(cause.words, todo(cause.remedy, index)) if with_todo else cause.words


# Events -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HealthEvent:
    """An event that NVML has reported.

    Args:
        gpu: the physical GPU's UUID.
        kind: "xid", "ecc" (an error that couldn't be corrected), "recovery" (the recovery action
            changed) or "mig" (there are other instances).
        xid: the Xid's number; 0 for other kinds.
        instances: the UUIDs of the MIG instances that it is of; (): the whole GPU.
    """

    gpu: str
    kind: Literal["xid", "ecc", "recovery", "mig"]
    xid: int = 0
    instances: tuple[str, ...] = ()

    @property
    def cause(self) -> Cause | None:
        """What the GPU suffers from by it; None: that is to be read."""
        if self.kind == "xid":
            return cause_of(f"xid-{self.xid}")
        return CAUSES[ECC] if self.kind == "ecc" else None

    @property
    def units(self) -> tuple[str, ...]:
        """The UUIDs of what it concerns: the GPU with all its parts, or some instances alone.

        What takes a GPU out of use at once does so with all its parts.
        """
        cause = self.cause
        whole = not self.instances or cause is None or cause.verdict == "quarantine"
        return (self.gpu,) if whole else self.instances


def marks_of_event(
    event: HealthEvent, reading: HealthReading | None, now: float, driver: str
) -> list[HealthMark]:
    """Return the marks that an event asks for.

    Args:
        event: the event.
        reading: what was read of the GPU just after it; None: nothing.
        now: seconds since the epoch.
        driver: which load of the driver this is.
    """
    cause = event.cause
    if cause is None or not cause.is_kept or not keeps_out(cause):
        return []
    seen = tuple(sorted(reading.causes)) if reading else ()
    return [HealthMark(unit, cause.key, event.gpu, now, seen, driver) for unit in event.units]


# What follows from a reading ----------------------------------------------------------------------


@dataclass(frozen=True)
class Changes:
    """What is to be done with a backend's marks.

    Args:
        put: marks to keep.
        end: marks that are over.
        forget: (unit, cause) that an administrator has lifted, and that read clear now.
    """

    put: tuple[HealthMark, ...] = ()
    end: tuple[HealthMark, ...] = ()
    forget: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Now:
    """What is known of this machine at one moment.

    Args:
        readings: UUID of a physical GPU -> what was read of it. One that isn't there is unknown.
        at: seconds since the epoch.
        driver: which load of the driver this is.
        unloaded_at: when the driver was last seen not to be loaded; None: never.
        later: (unit, cause) of a mark -> what was read of its GPU since the mark was put.
    """

    readings: Mapping[str, HealthReading]
    at: float
    driver: str = ""
    unloaded_at: float | None = None
    later: Mapping[tuple[str, str], Collection[str]] = field(default_factory=dict)


def changes(
    marks: Collection[HealthMark], lifted: Collection[tuple[str, str]], now: Now
) -> Changes:
    """Return what follows for the marks of health; administrators' own aren't among them.

    Args:
        marks: those that are kept.
        lifted: (unit, cause) that an administrator has put back into service all the same.
        now: what is known now.
    """
    kept = {mark.key for mark in marks} | set(lifted)
    put = [
        HealthMark(uuid, key, uuid, now.at, (), now.driver)
        for uuid, reading in sorted(now.readings.items())
        for key in sorted(reading.causes)
        if (uuid, key) not in kept and _is_marked(cause_of(key))
    ]
    end = [mark for mark in marks if is_over(mark, marks, now)]
    forget = [
        (uuid, key)
        for uuid, key in sorted(lifted)
        if (reading := now.readings.get(uuid)) and _reads_clear(key, reading, False)
    ]
    return Changes(tuple(put), tuple(end), tuple(forget))


def _is_marked(cause: Cause) -> bool:
    return cause.is_kept and keeps_out(cause)


def _reads_clear(key: str, reading: HealthReading, loaded: bool) -> bool:
    """Return whether what can be read isn't the case any more, by its own word.

    `loaded` is whether the driver was loaded anew: then what it doesn't know isn't the case either.
    """
    return reading.answers and key not in reading.causes and (loaded or key not in reading.unread)


def is_over(mark: HealthMark, marks: Collection[HealthMark], now: Now) -> bool:
    """Return whether the cause of a mark reads clear.

    Args:
        mark: the mark.
        marks: all of them: what was read after an event may be among them.
        now: what is known now.
    """
    reading = now.readings.get(mark.gpu)
    if reading is None or not reading.answers:
        return False
    cause = cause_of(mark.cause)
    if cause.key not in CAUSES and cause.remedy == "version":
        return False
    loaded = _was_loaded(mark, now)
    if not cause.is_event:
        return _reads_clear(mark.cause, reading, loaded)
    if any(keeps_out(cause_of(key)) for key in reading.causes):
        return False
    if loaded:
        return True
    since = mark.since or 0.0
    seen = {*mark.seen, *now.later.get(mark.key, ())}
    seen |= {each.cause for each in marks if each.gpu == mark.gpu and (each.since or 0.0) >= since}
    says = _GONE_BY_RESET | (facts.OF_ECC if cause.by_counter else frozenset())
    return any(_reads_clear(key, reading, False) for key in seen & says)


def _was_loaded(mark: HealthMark, now: Now) -> bool:
    """Return whether the driver was loaded anew since a mark was put."""
    pairs = [*zip(mark.driver.split(":"), now.driver.split(":"), strict=False)]
    # What one of the two doesn't know says nothing.
    if any(one and two and one != two for one, two in pairs):
        return True
    if len(pairs) > 1 and all(pairs[1]):  # the module is the same one
        return False
    return now.unloaded_at is not None and now.unloaded_at >= (mark.since or 0.0)


# What isn't worth a word in one reading -----------------------------------------------------------

# From when on something that comes and goes, as heat, counts, and when it is over.
BEGINS_SECONDS = 60.0
ENDS_SECONDS = 120.0


@dataclass
class Hysteresis:
    """Whether something that comes and goes is the case: after a while, until it was away longer.

    Args:
        is_on: whether it is.
    """

    is_on: bool = False
    _since: float | None = None

    def add(self, there: bool, at: float) -> bool:
        """Add what was read at a moment, in seconds of a monotonic clock; return whether it is."""
        if there == self.is_on:
            self._since = None
            return self.is_on
        if self._since is None:
            self._since = at
        if at - self._since >= (ENDS_SECONDS if self.is_on else BEGINS_SECONDS):
            self.is_on, self._since = there, None
        return self.is_on
