"""MIG instances of a simulated GPU: which profiles it has room for, and where they go.

ref: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

from .instances import SimulatedInstance, parts
from .models import MODELS
from .state import SimulatedGPU, State

# Drivers from this branch on give each instance a UUID of its own.
OWN_UUIDS_SINCE = 470

_LAYOUT = re.compile(r"(\S+?)(?:\s*[x\N{MULTIPLICATION SIGN}]\s*(\d{1,2}))?\Z")


def layout(text: str) -> list[str]:
    """Return the profiles that `3g.20gb, 1g.5gb x4` means; [] for `none`.

    Raises:
        ValueError: it isn't such a list.
    """
    found: list[str] = []
    for part in text.split(","):
        named = _LAYOUT.match(part.strip())
        if named is None:
            raise ValueError(f"{part.strip()!r} isn't a MIG profile such as 1g.10gb, or 1g.10gb x7")
        if named[1] == "none":
            continue
        parts(named[1])
        found += [named[1]] * int(named[2] or 1)
    return found


def partition(state: State, key: str | int, profiles: Sequence[str]) -> State:
    """Return a host with a GPU in MIG mode, and with these instances in place of those it had.

    The same instances get the same UUIDs again, and others get others.

    Args:
        state: the host before.
        key: the GPU's UUID or index.
        profiles: of the instances, in the order of their indexes.

    Raises:
        ValueError: there is no such GPU, it hasn't such a profile, or no room for all of them.
    """
    gpu = state.gpu(key)
    placed: list[SimulatedInstance] = []
    room = _Room(gpu)
    for index, profile in enumerate(profiles):
        gi, ci, memory = room.place(profile)
        uuid = _uuid(gpu.uuid, gi, ci, profile, int(state.driver.partition(".")[0]))
        placed.append(SimulatedInstance(index, gi, ci, profile, uuid, memory))
    return state.with_gpu(gpu.uuid, mig=True, mig_pending=None, instances=tuple(placed))


def without_instance(state: State, key: str | int, index: int) -> State:
    """Return a host on which a GPU's instance is destroyed; the others keep their indexes.

    Raises:
        ValueError: there is no such GPU or instance.
    """
    gpu = state.gpu(key)
    left = tuple(each for each in gpu.instances if each.index != index)
    if len(left) == len(gpu.instances):
        there = ", ".join(f"{each.index}: {each.profile}" for each in gpu.instances)
        raise ValueError(f"GPU {key} has no MIG instance {index}; it has {there or 'none'}")
    return state.with_gpu(gpu.uuid, instances=left)


def with_process(state: State, key: str | int, index: int, pid: int, mib: int | None) -> State:
    """Return a host on which a process uses an instance's memory; for None MiB, no more.

    Raises:
        ValueError: there is no such GPU or instance, or no such process to end.
    """
    gpu = state.gpu(key)
    found = next((each for each in gpu.instances if each.index == index), None)
    if found is None:
        raise ValueError(f"GPU {key} has no MIG instance {index}")
    others = tuple(pair for pair in found.processes if pair[0] != pid)
    if mib is None and len(others) == len(found.processes):
        raise ValueError(f"no process {pid} uses MIG instance {index} of GPU {key}")
    changed = replace(found, processes=others if mib is None else (*others, (pid, mib)))
    instances = tuple(changed if each is found else each for each in gpu.instances)
    return state.with_gpu(gpu.uuid, instances=instances)


class _Room:
    """The slices of a GPU: those of compute, and as many memory slices, or one more."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        model = next((each for each in MODELS.values() if each.name == gpu.name), None)
        if model is None or not model.mig_profiles:
            raise ValueError(f"{gpu.name} has no MIG")
        self._gpu, self._model = gpu, model
        self._memory_slices = 8 if model.mig_slices == 7 else model.mig_slices
        self._free = set(range(self._memory_slices))
        # (profile, GPU instance's id, compute slices taken) of GPU instances that are shared.
        self._shared: list[tuple[str, int, int]] = []

    def place(self, profile: str) -> tuple[int, int, int]:
        """Return ids of GPU instance and compute instance, and the memory (MiB), of one more."""
        slices, gi_slices, _ = parts(profile)
        whole = profile.partition("c.")[2] or profile
        memory = self._model.mig_profiles.get(whole)
        if memory is None:
            known = ", ".join(self._model.mig_profiles)
            raise ValueError(f"{self._gpu.name} has no MIG profile {profile}; it has {known}")
        for number, (name, gi, taken) in enumerate(self._shared):
            if name == whole != profile and taken + slices <= gi_slices:
                self._shared[number] = (name, gi, taken + slices)
                return gi, taken, memory
        gi = self._gpu_instance(profile, gi_slices, memory)
        if whole != profile:
            self._shared.append((whole, gi, slices))
        return gi, 0, memory

    def _gpu_instance(self, profile: str, slices: int, memory: int) -> int:
        one = (self._gpu.memory_total_mib or 1) / self._memory_slices
        size = max(1, round(memory / one))
        most = self._model.mig_slices
        starts = [at for at in range(0, self._memory_slices, size) if at + slices <= most]
        # First where it leaves no compute slice unused: a 3g at the end, which has but three.
        for start in sorted(starts, key=lambda at: min(size, most - at)):
            place = set(range(start, start + size))
            if place <= self._free:
                self._free -= place
                # Ids are numbered as the nodes of a tree, whose root is the whole GPU.
                return self._memory_slices // size - 1 + start // size
        raise ValueError(f"{self._gpu.name} has no room for one more {profile}")


def _uuid(gpu: str, gi: int, ci: int, profile: str, branch: int) -> str:
    if branch < OWN_UUIDS_SINCE:
        return f"MIG-{gpu}/{gi}/{ci}"
    digits = hashlib.sha256(f"{gpu} {gi} {ci} {profile}".encode()).hexdigest()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:32])
    return "MIG-" + "-".join(parts)
