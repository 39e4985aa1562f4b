"""The forecast of a choice: if it were sent now, it would start, wait or be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..scheduling.phrases import slot_words
from ..scheduling.plan import Turn
from .options import Choice


@dataclass(frozen=True)
class Forecast:
    """What would happen if a choice were sent now.

    Args:
        kind: "now": it would start; "wait": it would join the queue; "no": it would be refused;
            "unknown": the nodes can't be read.
        gpus: how many GPUs it asks for.
        turn: its turn, if it would wait.
        free: how many of the GPUs that it accepts are free, if it would wait.
        taken: whether all the GPUs that it accepts are leased, and none is e.g. unhealthy.
        model: the GPU model that it names; "" for any.
        part: what it asks for if that is a part of a GPU: "1 shared GPU"; "" for whole ones.
        refusal: the sentence with which it would be refused.
        scattered: whether enough GPUs are free, but not on one node.
        until: when its server would end, in seconds since the epoch, if that is earlier than asked
            for; else None.
    """

    kind: Literal["now", "wait", "no", "unknown"]
    gpus: int = 0
    turn: Turn | None = None
    free: int = 0
    taken: bool = False
    model: str = ""
    part: str = ""
    refusal: str = ""
    scattered: bool = False
    until: float | None = None

    @property
    def group(self) -> str:
        """The group whose limit the choice would wait for; "" if it waits for something else."""
        kind, _colon, name = (self.turn.because if self.turn else "").partition(":")
        return name if kind == "group" else ""

    @property
    def slot_words(self) -> str:
        """Why it would wait for a slot in its course's reserved hours; "" if it asks for none."""
        asks = self.turn and self.turn.waiting.request.slots
        waits = self.turn and self.turn.because in ("hours", "gpus", "never")
        return slot_words(self.turn) if self.turn and asks and waits else ""


UNKNOWN = Forecast("unknown")

# Returns the forecast of any choice, checked or not.
ForecastOf = Callable[[Choice], Forecast]
