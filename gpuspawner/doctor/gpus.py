"""Checks of the NVIDIA driver and the GPUs, by NVML and the marks of GPUs out of service."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

from ..backends.docker import notes
from ..gpus import nvml
from ..gpus.health import cause_of, keeps_out, todo, words_of, worst
from ..gpus.missing_driver import GIVE_GPUS, without_driver
from ..gpus.model import GPU
from ..gpus.reader import read_node
from ..leases.notes import Notes
from ..simulation.running_host import join_hint
from .findings import Context, Finding

T = TypeVar("T")

NVML_SECONDS = 15.0
NOUVEAU = Path("/sys/module/nouveau")

INSTALL_DRIVER = (
    "install NVIDIA's driver and restart the machine: on Ubuntu `sudo ubuntu-drivers install`, "
    "on Debian `sudo apt-get install nvidia-driver` (section non-free)"
)
BACK_INTO_SERVICE = "to hand it out again: a press on the dashboard"
SIMULATE = "to try it with GPUs: sudo gpuspawner simulate -- gpuspawner doctor"
HANGING = "see what `sudo dmesg | grep -i nvrm` says; where nvidia-smi hangs too, sudo reboot"


def driver(context: Context) -> Iterator[Finding]:
    """Check that the driver answers; keep the inventory for later checks."""
    try:
        found, context.gpus = _read()
    except nvml.InventoryError as error:
        # The first sentence of the error is its meaning, the others are the advice.
        found_out, _, advice = str(error).partition(". ")
        yield Finding("failure", found_out.rstrip("."), advice or HANGING)
        return
    context.inventory = found
    if found.driver is not None:
        yield Finding("ok", f"version {found.driver}, CUDA {found.cuda or 'not known'}")
    else:
        yield _without_driver()


def _without_driver() -> Finding:
    why = without_driver()
    if why.in_container:
        what = why.words.partition(": ")[0]
        if why.is_wrong:
            return Finding("failure", what, GIVE_GPUS)
        return Finding("warning", what, f"if this machine has GPUs, {GIVE_GPUS}")
    if why.is_wrong:
        nouveau = " (the nouveau driver has them, and can't compute)" if NOUVEAU.is_dir() else ""
        what = f"there are NVIDIA GPUs in this machine and no driver{nouveau}"
        return Finding("failure", what, INSTALL_DRIVER)
    what = "none, and no NVIDIA GPU either: servers start, without GPUs"
    hint = join_hint("doctor")
    return Finding(
        "note",
        what,
        hint or "to try it with GPUs: sudo gpuspawner simulate -- gpuspawner doctor",
    )


def _read() -> tuple[nvml.Inventory, tuple[GPU, ...]]:
    return within_seconds(lambda: (nvml.read(), read_node().gpus))


def within_seconds(question: Callable[[], T]) -> T:
    """Ask NVML with a timeout, in a daemon thread, which a hanging driver may block for ever.

    Raises:
        nvml.InventoryError: it doesn't answer in time. So may what the question raises.
    """
    answer: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def ask() -> None:
        try:
            answer.put((question(), None))
        except Exception as error:
            answer.put((None, error))

    threading.Thread(target=ask, name="nvml", daemon=True).start()
    try:
        found, error = answer.get(timeout=NVML_SECONDS)
    except queue.Empty:
        what = f"NVML didn't answer within {NVML_SECONDS:g} seconds."
        raise nvml.InventoryError(what) from None
    if error is not None:
        raise error
    return cast(T, found)


def gpus(context: Context) -> Iterator[Finding]:
    """Check which GPUs can be handed out, and why others can't."""
    found = context.inventory
    if found is None or found.driver is None:
        return
    if not found.gpus:
        yield Finding(
            "failure",
            "the driver has no GPU",
            "see lspci -d 10de: and sudo dmesg | grep -i nvrm",
        )
        return
    noted = notes.parse(notes.list_notes(context.engine.api)) if context.engine else Notes()
    marks = noted.marks
    given = context.configuration
    excluded = (
        {uuid.lower() for uuid in (given.spawner.get("excluded_gpus") or [])} if given else set()
    )
    by_settings = {gpu.uuid for gpu in found.gpus if gpu.uuid and gpu.uuid.lower() in excluded}
    kept_out = {gpu.uuid for gpu in found.gpus if gpu.uuid in marks or _reads_ill(gpu, noted)}
    kept_out |= by_settings
    usable = sum(gpu.state == "ok" and gpu.uuid not in kept_out for gpu in found.gpus)
    parts = sum(
        len(gpu.instances) for gpu in found.gpus if gpu.state == "mig" and gpu.uuid not in kept_out
    )
    kinds = ", ".join(sorted({gpu.name for gpu in found.gpus}))
    besides = f", and {parts} MIG instances" if parts else ""
    yield Finding(
        "ok" if usable or parts else "warning",
        f"{usable} of {len(found.gpus)} can be handed out{besides} ({kinds})",
    )
    for gpu in found.gpus:
        mark = marks.get(gpu.uuid or "")
        if mark is not None and mark.is_own:
            why = f": {mark.why}" if mark.why else ""
            yield Finding("note", f"GPU {gpu.index} is out of service{why}", BACK_INTO_SERVICE)
        elif gpu.uuid in by_settings:
            assert given is not None
            what = f"GPU {gpu.index} is kept out by {given.where('excluded_gpus')}"
            yield Finding("note", what)
        yield from _health(gpu, noted)
        yield from _warnings(gpu)


def _reads_ill(gpu: nvml.GPUFacts, noted: Notes) -> bool:
    return any(
        keeps_out(cause_of(key)) and (gpu.uuid, key) not in noted.lifted
        for key in gpu.health.causes
    )


def _health(gpu: nvml.GPUFacts, noted: Notes) -> Iterator[Finding]:
    """Say what a GPU's health keeps it out for, marked or just read, and what is watched."""
    mark = noted.marks.get(gpu.uuid or "")
    read = {
        key
        for key in gpu.health.causes
        if cause_of(key).words and (gpu.uuid, key) not in noted.lifted
    }
    causes = {*(mark.causes if mark else ()), *read}
    # What NVML says of it by itself is below.
    cause = worst(causes) if gpu.state in ("ok", "mig", "excluded") else None
    if cause is not None:
        verdict = "isn't handed out" if keeps_out(cause) else "is watched"
        reason = str(words_of(causes))
        what = f"GPU {gpu.index} {verdict}: {reason[:1].lower()}{reason[1:].rstrip('.')}"
        yield Finding("warning", what, str(todo(cause.remedy, gpu.index)))


def _warnings(gpu: nvml.GPUFacts) -> Iterator[Finding]:
    # A GPU that has fallen off the bus can't tell its name either.
    what = f"GPU {gpu.index}" + (f" ({gpu.name})" if gpu.name != nvml.GPUFacts.name else "")
    reason = gpu.reason[:1].lower() + gpu.reason[1:].rstrip(".")
    if gpu.state == "mig" and gpu.instances:
        yield Finding(
            "note", f"{what} is in MIG mode: its {len(gpu.instances)} instances are offered"
        )
    elif gpu.state == "mig":
        advice = f"to hand it out whole: sudo nvidia-smi -i {gpu.index} -mig 0"
        yield Finding("note", f"{what}: {reason}", advice)
    elif gpu.state == "excluded":
        advice = f"to hand it out: sudo nvidia-smi -i {gpu.index} -c DEFAULT"
        yield Finding("note", f"{what}: {reason}", advice)
    elif gpu.state != "ok":
        advice = f"sudo nvidia-smi --gpu-reset -i {gpu.index}\nor restart the machine (sudo reboot)"
        yield Finding("warning", f"{what} isn't handed out: {reason}", advice)
    elif gpu.in_use:
        yield Finding("note", f"{what} is in use now: {reason}", "see who: gpuspawner gpus")
    if gpu.warning and gpu.warning != nvml.REPAIR_PENDING:
        yield Finding("warning", f"{what}: {gpu.warning}", f"see nvidia-smi -q -i {gpu.index}")
