"""`gpuspawner doctor --gpu-report`: what real GPUs answer, as a text to paste.

Each part of the code that a stand-in was all it ever ran on has its check here.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .. import __version__
from ..gpus import nvml, nvml_answers
from ..gpus.missing_driver import own_container_id, without_driver
from ..gpus.reader import WSL, read_node
from ..simulation.state import STATE_PATH_VARIABLE
from . import (
    containers,
    engine,
    gpus,
    images,
    injection,
    kernels,
    report_events,
    report_memory,
    toolkit,
)
from .findings import Check, Context, Finding

DRIVER, GPUS, ENGINE = "NVIDIA driver", "GPUs", "Docker Engine"
TOOLKIT, SETTING, INJECTION = "Container Toolkit", "Toolkit's setting", "GPUs into containers"
IMAGES = "Images"
DRIVERS_VERSION = Path("/proc/driver/nvidia/version")
# Its readings in a row, to see that they agree.
READINGS = 5
# Of parts of a hub that not every version has: title -> its check, and the module that it is of.
PARTS = (
    ("Health events", report_events.check, report_events.PROGRAM),
    ("Memory guard", report_memory.check, report_memory.PROCESSES),
)


def checks(python: Path) -> tuple[Check, ...]:
    """Return the report's checks, in their order.

    Args:
        python: the Python whose PyTorch is tried without a container.
    """
    inside = (ENGINE, DRIVER, TOOLKIT, SETTING, INJECTION)
    return (
        Check(DRIVER, gpus.driver, is_slow=True),
        Check("Inventory", inventory, needs=(DRIVER,)),
        Check("NVML's answers", answers, needs=(DRIVER,)),
        Check("NVML again", again, needs=(DRIVER,)),
        Check(ENGINE, engine_if_any, is_slow=True),
        Check("CUDA kernel", kernels.on_this_machine, needs=(DRIVER,), is_slow=True),
        Check("PyTorch", partial(kernels.torch_on, python), needs=(DRIVER,), is_slow=True),
        *(
            Check(title, partial(if_there, module, check), needs=(DRIVER,), is_slow=True)
            for title, check, module in PARTS
        ),
        Check(TOOLKIT, toolkit.toolkit, needs=(DRIVER, ENGINE)),
        Check(SETTING, toolkit.setting, needs=(DRIVER, ENGINE, TOOLKIT)),
        Check(GPUS, gpus.gpus, needs=(DRIVER,)),
        Check(INJECTION, injection.injection, needs=(DRIVER, ENGINE, TOOLKIT)),
        Check(IMAGES, image_if_any, needs=(ENGINE,)),
        Check("Container without", containers.without_gpu, needs=(ENGINE, IMAGES), is_slow=True),
        Check("Container with a GPU", containers.with_gpu, needs=(*inside, IMAGES), is_slow=True),
        Check("Kernel in it", kernels.in_container, needs=(*inside, IMAGES), is_slow=True),
    )


def engine_if_any(context: Context) -> Iterator[Finding]:
    """Look for a Docker Engine; without one the report has nothing of containers."""
    for finding in engine.engine(context):
        if finding.state == "failure":
            yield Finding("skipped", f"nothing is tried in containers: {finding.found}")
            return
        yield finding


def image_if_any(context: Context) -> Iterator[Finding]:
    """Look for an image to try containers with. Those that aren't here are nobody's fault."""
    list(images.images(context))
    if context.trial_image is None:
        what = "none of the image versions is on this machine"
        yield Finding("skipped", what, "gpuspawner image build minimal")
    else:
        yield Finding("ok", f"{context.trial_image[0]} is tried")


def if_there(
    module: str, check: Callable[[Context], Iterator[Finding]], context: Context
) -> Iterator[Finding]:
    """Run the check of a part of a hub; skip it where there is no such part."""
    if find_spec(module) is None:
        yield Finding("skipped", "this version of gpuspawner has none")
        return
    yield from check(context)


# ---- NVML ----------------------------------------------------------------------------------------


def inventory(context: Context) -> Iterator[Finding]:
    """List every GPU and MIG instance as it is read."""
    found = context.inventory
    if found is None or not found.gpus:
        yield Finding("failure", "the driver has no GPU", kernels.DMESG)
        return
    for unit in context.gpus:
        memory = f"{_known(unit.memory_used_mib)} of {_known(unit.memory_total_mib)} MiB"
        use = f"{_known(unit.utilization_percent)} %"
        reason = f": {unit.reason}" if unit.reason else ""
        capability = unit.compute_capability or "?"
        yield Finding(
            "warning" if unit.state in ("unhealthy", "unknown") else "ok",
            f"{kernels.unit_name(unit)}: {unit.model} ({capability}), {memory} and {use} used, "
            f"share {unit.share}, {unit.state}{reason}",
        )
    for gpu in found.gpus:
        if gpu.warning:
            yield Finding("warning", f"GPU {gpu.index}: {gpu.warning}")
    rows = [" ".join(str(close) for _, close in gpu.links) for gpu in found.gpus if gpu.links]
    if rows:
        yield Finding("note", f"how close the GPUs are to each other: {'; '.join(rows)}")


def answers(context: Context) -> Iterator[Finding]:
    """Say which queries the driver answers, and with what error it doesn't answer the others."""
    try:
        said = gpus.within_seconds(nvml_answers.ask)
    except nvml.InventoryError as error:
        yield Finding("failure", str(error), kernels.DMESG)
        return
    of_gpu: dict[int, dict[str, str]] = {}
    for each in said:
        of_gpu.setdefault(each.index, {})[each.query] = each.error
    alike: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, errors in of_gpu.items():
        alike.setdefault(tuple(errors.items()), []).append(index)
    for outcome, indexes in alike.items():
        refused: dict[str, list[str]] = {}
        for query, name in outcome:
            if name:
                refused.setdefault(name, []).append(query)
        words = "; ".join(f"{name}: {', '.join(queries)}" for name, queries in refused.items())
        number = sum(not name for _, name in outcome)
        yield Finding(
            "ok",
            f"GPU {', '.join(map(str, indexes))}: {number} of {len(outcome)} kinds"
            + (f"; {words}" if words else ""),
        )
    slowest = max(said, key=lambda each: each.milliseconds, default=None)
    if slowest:
        total = sum(each.milliseconds for each in said)
        yield Finding(
            "note",
            f"{len(said)} answers in {total:.0f} ms; the slowest is {slowest.query} of "
            f"GPU {slowest.index} with {slowest.milliseconds:.1f} ms",
        )


def again(context: Context) -> Iterator[Finding]:
    """Read the inventory several times, with NVML kept open and anew: it has to be the same."""
    known = [unit.uuid for unit in context.gpus]
    for words, lets_go in (("kept open", False), ("opened anew", True)):
        times = []
        for _ in range(READINGS):
            begun = time.monotonic()
            try:
                seen = gpus.within_seconds(partial(read_node, lets_go=lets_go))
            except nvml.InventoryError as error:
                yield Finding("failure", f"NVML {words}: {error}", kernels.DMESG)
                return
            times.append((time.monotonic() - begun) * 1000)
            if [unit.uuid for unit in seen.gpus] != known:
                what = f"NVML {words} shows other GPUs or MIG instances than before"
                yield Finding("failure", what)
                return
        shown = ", ".join(f"{each:.0f}" for each in times)
        yield Finding("ok", f"{READINGS} readings with NVML {words} are alike: {shown} ms")


def _known(value: int | None) -> str:
    return "?" if value is None else str(value)


# ---- The text ------------------------------------------------------------------------------------


def nothing_to_test() -> str:
    """Return why there is nothing to report, as a sentence; "" if there are GPUs or there may be.

    Whether the driver then works is the report's to say.
    """
    try:
        found = gpus.within_seconds(nvml.read)
    except nvml.InventoryError:
        return ""
    if found.driver is not None:
        return "" if found.gpus else "the NVIDIA driver has no GPU"
    why = without_driver()
    return "" if why.is_wrong else why.words.rstrip(".")


def header() -> Iterator[str]:
    """Yield the lines that say what this was run on."""
    yield f"gpuspawner {__version__}, nvidia-ml-py {_version('nvidia-ml-py')}"
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "?") if _has_release() else "?"
    yield (
        f"Python {platform.python_version()}, {platform.system()} {platform.release()} "
        f"{platform.machine()}, {system}"
    )
    if STATE_PATH_VARIABLE in os.environ:
        yield "simulated GPUs: this says nothing of real ones"
    if own_container_id():
        yield "in a container"
    if WSL.exists():
        yield "WSL 2"
    kind = _kernel_module()
    if kind:
        yield kind


def _has_release() -> bool:
    return any(Path(name).is_file() for name in ("/etc/os-release", "/usr/lib/os-release"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _kernel_module() -> str:
    """Return the driver's own line of its kernel module, which says whether it is the open one."""
    try:
        first = DRIVERS_VERSION.read_text(errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return ""
    # Who built it, when and where follows.
    found = re.match(r"NVRM version: (.{0,80}?\d+(?:\.\d+)+)", first)
    return " ".join(found[1].split()) if found else ""


def anonymous(context: Context) -> Callable[[str], str]:
    """Return a function that takes out of a text what is of this machine alone.

    Those are UUIDs, addresses, the names of the machine and of its user, and the words with which
    an administrator took a GPU out of service.
    """
    names: dict[str, str] = {}
    for unit in context.gpus:
        if unit.parent:
            names[str(unit.uuid).lower()] = f"MIG-{unit.index}:{unit.part}"
        elif unit.uuid:
            names[unit.uuid.lower()] = f"GPU-{unit.index}"
    private = {socket.gethostname(): "HOST", socket.gethostname().partition(".")[0]: "HOST"}
    for uid in {os.getuid(), int(os.environ.get("SUDO_UID") or os.getuid())} - {0}:
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            continue
        private[user.pw_dir] = "~"
        private[user.pw_name] = "USER"
    words = [re.escape(each) for each in sorted(private, key=len, reverse=True) if len(each) > 2]
    named = re.compile(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])") if words else None

    def clean(text: str) -> str:
        text = _UUIDS.sub(lambda found: names.get(found[0].lower(), f"{found[1]}?"), text)
        text = _ADDRESSES.sub("ADDRESS", text)
        text = _BARE_UUIDS.sub("?", text)
        text = _REASON.sub(r"\1", text)
        return named.sub(lambda found: private[found[0]], text) if named else text

    return clean


_HEX = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUIDS = re.compile(rf"((?:MIG-)?GPU-|MIG-){_HEX}(?:/\d+/\d+)?")
_BARE_UUIDS = re.compile(_HEX)
_ADDRESSES = re.compile(
    r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])|\b(?:tcp|ssh|https?)://[^\s,]+"
)
_REASON = re.compile(r"(is out of service): .*", re.DOTALL)
