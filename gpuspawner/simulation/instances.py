"""MIG instances of a simulated GPU, as NVML reports them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .checks import check, check_number, check_processes, matches

# No GPU has more.
MAX_INSTANCES = 8
MAX_SLICES = 7

# Before driver 470 an instance's UUID was made of the GPU's and of two numbers.
# ref: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
_UUID = re.compile(r"MIG-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_OLD_UUID = re.compile(r"MIG-(GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/(\d+)/(\d+)\Z")
_PROFILE = re.compile(r"(?:([1-7])c\.)?([1-7])g\.(\d{1,3})gb(?:\+[a-z.]+)*\Z")


@dataclass(frozen=True)
class SimulatedInstance:
    """One MIG instance: a compute instance of a GPU instance.

    Args:
        index: its number among its GPU's instances, 0 to 7; there may be gaps.
        gi: its GPU instance's id.
        ci: its compute instance's id within it.
        profile: "1g.10gb", or "1c.3g.40gb" where it is one of several in a GPU instance.
        uuid: "MIG-…", or with drivers before 470 "MIG-GPU-…/gi/ci".
        memory_total_mib: its memory.
        memory_used_mib: how much of it is in use; never less than what its processes hold.
        processes: pairs of process id and MiB.

    Raises:
        ValueError: NVML can't report such an instance.
    """

    index: int
    gi: int
    ci: int
    profile: str
    uuid: str
    memory_total_mib: int
    memory_used_mib: int = 0
    processes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        check_number("an instance's index", self.index, high=MAX_INSTANCES - 1)
        check_number("an instance's gi", self.gi, high=99)
        check_number("an instance's ci", self.ci, high=99)
        check(matches(_PROFILE, self.profile), "profile", self.profile, "like 1g.10gb")
        check(
            matches(_UUID, self.uuid) or matches(_OLD_UUID, self.uuid),
            "an instance's uuid",
            self.uuid,
            "MIG- and a UUID in lower case, or MIG-GPU-…/gi/ci",
        )
        check(self._uuid_names_it(), "an instance's uuid", self.uuid, "of its own gi and ci")
        check_number("an instance's memory_total_mib", self.memory_total_mib, 1, 2_000_000)
        most = self.memory_total_mib
        check_number("an instance's memory_used_mib", self.memory_used_mib, high=most)
        check_processes("an instance's processes", self.processes)
        together = sum(mib for _, mib in self.processes)
        check_number("the MiB of an instance's processes", together, high=most)

    def _uuid_names_it(self) -> bool:
        old = _OLD_UUID.match(self.uuid)
        return old is None or (int(old[2]), int(old[3])) == (self.gi, self.ci)

    @property
    def parent(self) -> str | None:
        """The UUID of its GPU, if its own names that."""
        old = _OLD_UUID.match(self.uuid)
        return old[1] if old else None

    @property
    def gi_slices(self) -> int:
        """The number of compute slices that its GPU instance has."""
        return parts(self.profile)[1]

    @property
    def slices(self) -> int:
        """The number of compute slices that it has."""
        return parts(self.profile)[0]

    @property
    def used_mib(self) -> int:
        """The memory in use, with what its processes hold."""
        return max(self.memory_used_mib, sum(mib for _, mib in self.processes))


def parts(profile: str) -> tuple[int, int, int]:
    """Return a profile's compute slices, its GPU instance's, and its memory in GB.

    Raises:
        ValueError: it isn't a profile.
    """
    found = _PROFILE.match(profile)
    if found is None:
        raise ValueError(f"{profile!r} isn't a MIG profile such as 1g.10gb")
    return int(found[1] or found[2]), int(found[2]), int(found[3])


def written(instance: SimulatedInstance) -> list[str]:
    """Return the lines of the state file for an instance."""
    place = f"{instance.index} {instance.gi} {instance.ci}"
    memory = f"{instance.memory_total_mib} {instance.memory_used_mib}"
    lines = [f"instance {place} {memory} {instance.uuid} {instance.profile}"]
    lines += [f"instance_process {instance.index} {pid} {mib}" for pid, mib in instance.processes]
    return lines


def read(value: str) -> SimulatedInstance:
    """Return the instance that a line of the state file is of; ValueError if it is of none."""
    index, gi, ci, total, used, uuid, profile = value.split(" ")
    return SimulatedInstance(int(index), int(gi), int(ci), profile, uuid, int(total), int(used))
