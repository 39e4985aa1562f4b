"""A search for units for reserved hours, where giving each the best at hand finds none for some.

With models that are named, what takes any unit may take the one that somebody else needs. Then all
ways are tried, of which many are the same: units of one model that are free at the same times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..gpus.model import GPU
from .node_calendar import NodeCalendar

# After so many looks at a unit a search gives up, a hub waits for it. What is reserved in a week on
# ten GPUs takes a few hundred.
MAX_LOOKS = 20_000


@dataclass(frozen=True)
class Want:
    """So many units that are to be free at a time, in seconds.

    Args:
        begin, end: from when until when.
        number: how many units.
        among: those that would do.
        model: their model; "": any.
    """

    begin: float
    end: float
    number: int
    among: Sequence[GPU]
    model: str = ""


def could_be(wants: Sequence[Want], nodes: Mapping[str, NodeCalendar]) -> bool:
    """Return whether there are enough units at each moment, without which no way can be found."""
    for moment in {want.begin for want in wants}:
        there = [want for want in wants if want.begin <= moment < want.end]
        units = {gpu.id: gpu for want in there for gpu in want.among}
        free = Counter(
            gpu.model for gpu in units.values() if nodes[gpu.node].is_free(gpu, moment, 0.0)
        )
        named = Counter[str]()
        for want in there:
            named[want.model] += want.number
        if any(model and number > free[model] for model, number in named.items()):
            return False
        if named.total() > free.total():
            return False
    return True


class Search:
    """A search for units for each of some wants.

    Args:
        wants: in the order in which they are looked at.
        nodes: the calendars, in which what is found is booked. Of what isn't, nothing is.
    """

    def __init__(self, wants: Sequence[Want], nodes: Mapping[str, NodeCalendar]) -> None:
        self._wants = wants
        self._nodes = nodes
        self._looks = 0

    def find(self) -> list[list[GPU]] | None:
        """Return the units of each want; None if there is no way, or there are too many."""
        found: list[list[GPU]] = []
        # For each want so far, the ways that haven't been tried.
        ways = [self._ways(self._wants[0])] if self._wants else []
        while len(found) < len(self._wants):
            self._looks += 1
            units = next(ways[-1], None) if self._looks <= MAX_LOOKS else None
            if units is None:
                ways.pop()
                if not found:
                    return None
                self._release(self._wants[len(found) - 1], found.pop())
                continue
            want = self._wants[len(found)]
            for gpu in units:
                self._nodes[gpu.node].take([gpu], want.begin, want.end)
            found.append(units)
            if len(found) < len(self._wants):
                ways.append(self._ways(self._wants[len(found)]))
        return found

    def _release(self, want: Want, units: Sequence[GPU]) -> None:
        for gpu in units:
            self._nodes[gpu.node].release(gpu, want.begin, want.end)

    def _ways(self, want: Want) -> Iterator[list[GPU]]:
        """Yield the units that a want could have, once for each way that makes a difference."""
        alike: dict[tuple[str, tuple[tuple[float, float], ...]], list[GPU]] = {}
        self._looks += len(want.among)
        for gpu in want.among:
            node = self._nodes[gpu.node]
            if node.is_free(gpu, want.begin, want.end - want.begin):
                alike.setdefault((gpu.model, tuple(node.gaps[gpu.id or ""])), []).append(gpu)
        yield from _choose(list(alike.values()), want.number)


def _choose(groups: Sequence[Sequence[GPU]], number: int) -> Iterator[list[GPU]]:
    """Yield each way to have so many units, by how many are of each group."""
    if number > sum(map(len, groups)):
        return  # or it would try each way to have too few
    if not number:
        yield []
    elif groups:
        first, others = groups[0], groups[1:]
        for some in range(min(number, len(first)), -1, -1):
            for rest in _choose(others, number - some):
                yield [*first[:some], *rest]
