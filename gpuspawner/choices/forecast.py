"""What a choice would mean, were it sent now: it starts, it waits, or it can't be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..scheduling.plan import Turn
from .options import Choice


@dataclass(frozen=True)
class Forecast:
    """What would come of a choice.

    Args:
        kind: "now", it would start; "wait", it would join the queue; "no", it would be refused;
            "unknown", the host can't be read.
        gpus: how many GPUs it asks for.
        turn: its turn, where it would wait.
        free: how many of the GPUs that would do are free, where it would wait.
        taken: whether servers have all of those, and nothing else keeps them.
        model: the GPU model it names; "" for any.
        refusal: the sentence with which it would be refused.
        scattered: whether enough GPUs are free, but on no one of several nodes.
    """

    kind: Literal["now", "wait", "no", "unknown"]
    gpus: int = 0
    turn: Turn | None = None
    free: int = 0
    taken: bool = False
    model: str = ""
    refusal: str = ""
    scattered: bool = False

    @property
    def group(self) -> str:
        """The group that holds as many GPUs as it may, where that is what it waits for."""
        because = self.turn.because if self.turn else ""
        return because.removeprefix("group:") if because.startswith("group:") else ""


UNKNOWN = Forecast("unknown")

# Tells of any choice, checked or not.
ForecastOf = Callable[[Choice], Forecast]
