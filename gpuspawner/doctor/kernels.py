"""Kernels on this machine's GPUs and in a trial container, by the driver alone and by PyTorch."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.errors

from ..errors import GPUSpawnerError, Refused
from ..gpus.model import GPU, Node
from ..gpus.names import part_name
from ..gpus.reader import read_node
from ..list_gpus import with_ledger
from ..simulation.state import STATE_PATH_VARIABLE
from ..untrusted import parse_json
from . import cuda_kernel
from .containers import NO_IMAGE, kinds_to_try, not_started
from .findings import Context, Finding
from .trial import TrialContainer, run_trial

SECONDS = 60.0
# PyTorch's own start takes most of it.
TORCH_SECONDS = 150.0
# How long the driver may take to let go of a program that has ended.
RELEASE_SECONDS = 10.0
# A GPU with less room than this is left alone.
ROOM_MIB = 1024
SIMULATED = "a simulated GPU runs no kernel"
SOURCE = Path(cuda_kernel.__file__)
NO_CUDA = (
    f"the driver's library {cuda_kernel.LIBRARY} isn't here",
    "install the driver's libraries for computing (Debian: libcuda1; in a container the capability "
    "`compute`)",
)
# Whole numbers that every format of a matrix unit has exactly; and one convolution, for cuDNN.
TORCH = """
import json, sys
try:
    import torch
except ImportError:
    sys.exit(3)
found = {"torch": torch.__version__, "cuda": torch.version.cuda}
found["devices"] = torch.cuda.device_count()
if found["devices"]:
    found["uuid"] = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    a = (torch.arange(512 * 512) % 7).reshape(512, 512).float()
    b = torch.nn.functional.conv2d(a[None, None], a[None, None, :3, :3])
    g = a.cuda()
    c = torch.nn.functional.conv2d(g[None, None], g[None, None, :3, :3])
    found["right"] = bool(torch.equal(a @ a, (g @ g).cpu()) and torch.equal(b, c.cpu()))
print(json.dumps(found))
"""


def is_simulated() -> bool:
    """Return whether the GPUs are those of a simulated host."""
    return STATE_PATH_VARIABLE in os.environ


@dataclass(frozen=True)
class Tried:
    """A GPU or MIG instance on which a kernel is run, or `why_not`, as part of a sentence."""

    name: str
    gpu: GPU
    why_not: str = ""


def to_try(context: Context) -> list[Tried]:
    """Return every GPU and MIG instance once, with why nothing is run on it.

    Nothing is run on what somebody has: by a lease, by a container, or with a program.
    """
    found = read_node()
    outside: Mapping[str | None, Sequence[str]] = {}
    units: Sequence[GPU] = found.gpus
    if context.engine is not None:
        with suppress(docker.errors.DockerException, OSError):  # it is gone since
            units, outside, _ = with_ledger(found)
    programs: dict[str | None, int | None] = {}
    for each in context.inventory.gpus if context.inventory else ():
        programs[each.uuid] = each.processes
        programs |= {part.uuid: part.processes for part in each.instances}
    by_uuid: dict[str | None, list[GPU]] = {}
    for unit in units:
        # A GPU without a UUID is one of its own.
        by_uuid.setdefault(unit.uuid or f"?{unit.index}", []).append(unit)
    return [
        Tried(unit_name(slots[0]), slots[0], _why_not(slots, programs.get(uuid), outside.get(uuid)))
        for uuid, slots in by_uuid.items()
    ]


def unit_name(gpu: GPU) -> str:
    """Return "GPU 1", or "GPU 1 (3: 1g.10gb)" for the third of its MIG instances."""
    if not gpu.parent:
        return f"GPU {gpu.index}"
    return f"GPU {gpu.index} ({gpu.part}: {part_name(gpu)})"


def _why_not(slots: Sequence[GPU], programs: int | None, outside: Any) -> str:
    states = {slot.state for slot in slots}
    gpu = slots[0]
    if "mig" in states:
        return "it is in MIG mode"
    if gpu.uuid is None:
        return "it doesn't tell its UUID"
    if "leased" in states or outside:
        return "a container has it"
    if programs:
        return "a program uses it"
    if states & {"unhealthy", "excluded"}:
        return "it isn't handed out"
    if gpu.memory_total_mib is not None and gpu.memory_used_mib is not None:
        room = gpu.memory_total_mib - gpu.memory_used_mib
        if room < ROOM_MIB:
            return f"{room} MiB of its memory are free"
    return ""


# ---- On this machine -----------------------------------------------------------------------------


def on_this_machine(context: Context) -> Iterator[Finding]:
    """Run a kernel on each GPU and MIG instance that nobody has, and see it by NVML meanwhile."""
    if is_simulated():
        yield Finding("skipped", SIMULATED)
        return
    tried = to_try(context)
    for each in tried:
        if each.why_not:
            yield Finding("note", f"{each.name}: not tried, {each.why_not}")
            continue
        yield from run_on(each)


@dataclass
class Held:
    """A program that holds a GPU's memory, or `problem`: why there is none."""

    pid: int
    said: dict[str, Any]
    problem: Finding | None = None


@contextmanager
def holding(tried: Tried) -> Iterator[Held]:
    """Run a kernel on a GPU or MIG instance in a process of its own, which then holds memory.

    At the end of the context the process is gone, unless the driver hangs.
    """
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": str(tried.gpu.uuid),
        # Without it, CUDA's own cache would hide that the driver compiles.
        "CUDA_CACHE_DISABLE": "1",
    }
    program = subprocess.Popen(
        # Isolated, so that no module beside the program hides one of Python's own.
        [sys.executable, "-I", str(SOURCE), "hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        if not select.select([program.stdout], [], [], SECONDS)[0]:
            what = f"{tried.name}: no answer within {SECONDS:g} seconds"
            yield Held(program.pid, {}, Finding("failure", what, DMESG))
            return
        said = _parsed(program.stdout.readline())
        problem = None
        if said.get("error") or not said:
            status = None
            with suppress(subprocess.TimeoutExpired):
                status = program.wait(SECONDS)
            problem = _failed(tried.name, said, status)
        yield Held(program.pid, said, problem)
    finally:
        program.stdin.close()
        try:
            program.wait(RELEASE_SECONDS)
        except subprocess.TimeoutExpired:  # a hanging driver keeps even a killed one
            program.kill()
        program.stdout.close()


def run_on(tried: Tried) -> Iterator[Finding]:
    """Run a kernel on a GPU or MIG instance, and see by NVML that a program is there meanwhile."""
    with holding(tried) as held:
        if held.problem:
            yield held.problem
            return
        yield _compared(tried.name, str(tried.gpu.uuid), held.said)
        yield from _seen_in_use(tried)
    yield from _seen_free_again(tried)


DMESG = "see sudo dmesg | grep -i nvrm"


def _failed(name: str, said: Mapping[str, Any], status: int | None) -> Finding:
    if status == cuda_kernel.NO_LIBRARY:
        return Finding("failure", f"{name}: {NO_CUDA[0]}", NO_CUDA[1])
    reason = said.get("error") or f"the program ended with status {status} and said nothing"
    return Finding("failure", f"{name}: {reason}", DMESG)


def _compared(name: str, uuid: str, said: Mapping[str, Any]) -> Finding:
    """Return whether the kernel ran on the GPU that was meant."""
    if not _is_same(uuid, str(said["uuid"])):
        what = f"{name}: CUDA ran the kernel on {said['uuid']} in place of {uuid}"
        return Finding("failure", what)
    times = ", ".join(f"{step} {value:g} ms" for step, value in said["milliseconds"].items())
    capability = "{}.{}".format(*said["capability"])
    return Finding(
        "ok", f"{name}: right, on {said['name']} ({capability}) by CUDA {said['cuda']}; {times}"
    )


def _is_same(uuid: str, of_cuda: str) -> bool:
    """Return whether NVML's UUID and CUDA's are the same GPU's or instance's."""
    # Before driver 470 an instance was called MIG-GPU-…/gi/ci, and CUDA named its GPU.
    return of_cuda.lower() in uuid.lower()


def _seen_in_use(tried: Tried) -> Iterator[Finding]:
    now = _state(tried)
    if now == "foreign":
        yield Finding("ok", f"{tried.name}: NVML shows that a program uses it")
    elif tried.gpu.state != "free":
        yield Finding("note", f"{tried.name}: it was {tried.gpu.state} before, and is {now}")
    else:
        what = (
            f"{tried.name}: it reads {now} while a program of {cuda_kernel.HELD_MIB} MiB is on it"
        )
        yield Finding("failure", what, "please report this: such a GPU would be handed out")


def _seen_free_again(tried: Tried) -> Iterator[Finding]:
    if tried.gpu.state != "free":
        return
    begun = time.monotonic()
    while (now := _state(tried)) != "free":
        if time.monotonic() - begun > RELEASE_SECONDS:
            what = f"{tried.name}: it still reads {now} {RELEASE_SECONDS:g} s after the program"
            yield Finding("warning", what)
            return
        time.sleep(0.2)


def _state(tried: Tried) -> str:
    node: Node = read_node(lets_go=True)
    return next((unit.state for unit in node.gpus if unit.uuid == tried.gpu.uuid), "gone")


def _parsed(text: str | bytes) -> dict[str, Any]:
    with suppress(ValueError):
        value = parse_json(text)
        if isinstance(value, dict):
            return value
    return {}


# ---- PyTorch -------------------------------------------------------------------------------------


def torch_on(python: Path, context: Context) -> Iterator[Finding]:
    """Run PyTorch's kernels on one GPU that nobody has, with the packages of some Python."""
    if is_simulated():
        yield Finding("skipped", SIMULATED)
        return
    free = next((each for each in to_try(context) if not each.why_not), None)
    if free is None:
        yield Finding("note", "not tried, as somebody has every GPU", "run this again later")
        return
    try:
        done = subprocess.run(
            [str(python), "-c", TORCH],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": str(free.gpu.uuid)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding("failure", f"{free.name}: no answer within {TORCH_SECONDS:g} seconds", DMESG)
        return
    except OSError as error:
        yield Finding("failure", f"that Python can't be run: {error.strerror or error}")
        return
    if done.returncode == cuda_kernel.NO_LIBRARY:
        advice = f"with {WHEELS}: gpuspawner doctor --gpu-report --python FILE"
        yield Finding("skipped", "this Python has no PyTorch", advice)
        return
    yield judge_torch(free.name, str(free.gpu.uuid), done.returncode, done.stdout)


WHEELS = "an environment of image/versions/pytorch-2.7/requirements.lock"


def judge_torch(name: str, uuid: str, status: int, output: str) -> Finding:
    """Return the finding for what `TORCH` has printed."""
    last = output.strip().rpartition("\n")[2]
    said = _parsed(last)
    if status or not said:
        return Finding("failure", f"{name}: PyTorch fails: {last[:300] or f'status {status}'}")
    words = f"PyTorch {said.get('torch')} with CUDA {said.get('cuda')}"
    if said.get("devices") != 1:
        return Finding("failure", f"{name}: {words} sees {said.get('devices')} GPUs in place of 1")
    if said.get("uuid") and not _is_same(uuid, str(said["uuid"]).removeprefix("GPU-")):
        return Finding("failure", f"{name}: {words} sees {said['uuid']} in place of {uuid}")
    if said.get("right") is not True:
        return Finding("failure", f"{name}: {words} computes other numbers than the processor")
    return Finding("ok", f"{name}: {words}: right")


# ---- In a container ------------------------------------------------------------------------------


def in_container(context: Context) -> Iterator[Finding]:
    """Run the kernels in a container that was granted one GPU, started as a server is."""
    if is_simulated():
        yield Finding("skipped", SIMULATED)
        return
    if context.trial_image is None:
        yield NO_IMAGE
        return
    for kind in kinds_to_try(context):
        try:
            yield from run_trial(context, 1, _run_inside, kind=kind)
        except Refused as error:
            yield Finding("note", f"{kind}: not tried, as none is free: {error}", "try it later")
        except GPUSpawnerError as error:
            yield not_started(context, error)
            return


def _run_inside(here: TrialContainer) -> list[Finding]:
    (gpu,) = here.gpus
    name, uuid = unit_name(gpu), str(gpu.uuid)
    status, output = here.run(["python3", "-c", SOURCE.read_text()])
    said = _parsed(output.rpartition("\n")[2])
    if not said and status in (126, 127):
        return [Finding("note", "the image has no Python to run it with")]
    if status or not said:
        return [_failed(name, said or {"error": output[-300:]}, status)]
    if said.get("devices") != 1:
        what = f"{name}: CUDA sees {said.get('devices')} GPUs in it in place of 1"
        return [Finding("failure", what)]
    found = [_compared(name, uuid, said)]
    status, output = here.run(["python3", "-c", TORCH])
    if status != cuda_kernel.NO_LIBRARY:
        found.append(judge_torch(name, uuid, status, output))
    return found
