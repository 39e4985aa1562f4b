"""The names of units, as labels have them: what is handed out, and what excludes what.

A unit is a whole GPU, a MIG instance, or a slot of a shared GPU. Its name says which physical GPU
it is on, so that whoever reads a label knows without any driver what else can't be handed out:

    GPU-<uuid>                          a whole GPU
    GPU-<uuid>#3/8                      slot 3 (of 0 to 7) of a GPU that eight share
    MIG-<uuid>#1g.10gb/7@GPU-<uuid>     a MIG instance of that GPU, its profile, and of how many
                                        compute slices it has one

The profile is there because an instance that is made again may get the same UUID with another size.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

# A part of a GPU, exact: eight slots are one GPU, and so are seven of seven slices.
Share = Fraction | int

# Compute slices of a GPU in MIG mode. An A30 has four, every other model seven.
# ref: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html
MIG_SLICES = 7
# What a kind of units is called, besides "gpu" and "shared": the profile of a MIG instance.
PROFILE = r"[0-9]{1,2}[cg][0-9a-z.+-]{1,30}"
# More than any GPU would serve.
MAX_SLOTS = 64

_PART = re.compile(rf"([0-9]{{1,2}}|{PROFILE})/([1-9][0-9]?)")


@dataclass(frozen=True)
class UnitName:
    """What the name of a unit says.

    Args:
        uuid: the UUID by which the driver knows it: the GPU's, or the MIG instance's.
        slot: the number of a slot, from 0; None: it isn't one.
        profile: the profile of a MIG instance, "1g.10gb"; "" if it isn't one.
        of: how many slots its GPU had when it was handed out, or how many compute slices.
        parent: the UUID of the GPU that a MIG instance is a part of; "" if it isn't known.
    """

    uuid: str
    slot: int | None = None
    profile: str = ""
    of: int = 1
    parent: str = ""

    @property
    def gpu(self) -> str:
        """The UUID of the physical GPU; a MIG instance's own if its GPU isn't known."""
        return self.parent or self.uuid

    @property
    def is_instance(self) -> bool:
        """Whether it is a MIG instance."""
        return self.uuid.upper().startswith("MIG-")

    @property
    def share(self) -> Share:
        """Its part of the GPU: 1/8 for one of eight slots, 2/7 for "2g" of seven slices."""
        if self.slot is not None:
            return Fraction(1, self.of)
        compute = re.match(r"[0-9]+", self.profile)
        return min(Fraction(int(compute[0]), self.of), Fraction(1)) if compute else 1

    def __str__(self) -> str:
        part = self.profile if self.slot is None else str(self.slot)
        text = f"{self.uuid}#{part}/{self.of}" if part else self.uuid
        return f"{text}@{self.parent}" if self.parent else text

    def excludes(self, other: UnitName) -> bool:
        """Return whether this unit and the other one can't be held by two servers."""
        if self.gpu != other.gpu or (self.is_instance and other.is_instance):
            return self.uuid == other.uuid
        if self.slot is not None and other.slot is not None:
            # Slot 1 of 2 is the second half: whoever has it leaves slots 0 and 1 of 4. So however
            # often the number of slots changes, never more than the whole is handed out.
            return (
                self.slot * other.of < (other.slot + 1) * self.of
                and other.slot * self.of < (self.slot + 1) * other.of
            )
        # A GPU is whole, shared or partitioned at a time.
        return True


@lru_cache(maxsize=10_000)
def parse(text: str) -> UnitName:
    """Return what a unit's name says; a name of an unknown form is taken for a UUID."""
    named, _, parent = text.partition("@")
    uuid, _, rest = named.partition("#")
    part = _PART.fullmatch(rest)
    of = int(part[2]) if part else 1
    if uuid.upper().startswith("MIG-"):
        profile = part[1] if part and not part[1].isdigit() else ""
        return UnitName(uuid, profile=profile, of=of, parent=parent)
    if part and part[1].isdigit() and int(part[1]) < of <= MAX_SLOTS:
        return UnitName(uuid, int(part[1]), of=of)
    # Whatever else is said of it: the GPU isn't anybody else's.
    return UnitName(uuid)


class UnitIndex:
    """Units by their names, to find those that exclude another without a look at all of them.

    Args:
        names: the units' names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # A MIG instance of which nobody wrote down the GPU is found by its own UUID.
        self._near: dict[str, dict[str, UnitName]] = {}
        for name in names:
            unit = parse(name)
            for place in {unit.gpu, unit.uuid}:
                self._near.setdefault(place, {})[name] = unit

    def excluded_by(self, unit: UnitName) -> list[str]:
        """Return the names of those that nobody can have beside who has a unit."""
        found = {
            name: None
            for place in (unit.gpu, unit.uuid)
            for name, other in self._near.get(place, {}).items()
            if unit.excludes(other)
        }
        return list(found)


def exclude_each_other(some: Collection[str], others: Collection[str]) -> bool:
    """Return whether two servers can't hold these units, by name, at the same time."""
    return any(one.excludes(other) for one in map(parse, some) for other in map(parse, others))


def uuids_of(names: Iterable[str]) -> list[str]:
    """Return the UUIDs by which the driver knows these units, each once, in their order."""
    return list(dict.fromkeys(parse(name).uuid for name in names))


def share_of(names: Iterable[str]) -> Share:
    """Return how much of a GPU these units are together, as far as their names tell."""
    return sum((parse(name).share for name in names), 0)
