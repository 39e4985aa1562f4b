"""GPUs that an administrator, or their health, has taken out of service, without a configuration.

The backend keeps these marks, as it keeps the leases: every hub and page reads the same ones. An
administrator's ends by their own act alone, one of health when its cause reads clear.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from ..i18n.lazy_text import lazy_gettext
from .health import BY, HealthMark, cause_of, keeps_out, words_of, worst
from .model import GPU, Node

# The longest reason, in characters.
MAX_REASON_LENGTH = 200


# Of a unit and a cause of its health.
Lifted = Collection[tuple[str, str]]


@dataclass(frozen=True)
class OutOfServiceMark:
    """The mark of a GPU that is out of service.

    Args:
        uuid: the GPU's.
        by: the name of the administrator who took it out of service; "health" if nobody did.
        why: the reason that they gave, for everybody.
        since: when, in seconds since the epoch; None if unknown.
        health: the marks of its health, beside an administrator's or alone.
        is_own: whether there is one of an administrator's.
    """

    uuid: str
    by: str = ""
    why: str = ""
    since: float | None = None
    health: tuple[HealthMark, ...] = ()
    is_own: bool = True

    @property
    def causes(self) -> tuple[str, ...]:
        """The keys of what its health suffers from, the worst one first."""
        keys = {mark.cause for mark in self.health}
        found = []
        while keys and (cause := worst(keys)):
            found.append(cause.key)
            keys.remove(cause.key)
        return tuple(found)

    @property
    def said(self) -> str:
        """Why, as a sentence for everybody; "" if an administrator gave no reason."""
        return self.why if self.is_own else words_of(self.causes)

    @property
    def reason(self) -> str:
        """The sentence for all users, without the administrator's name."""
        if not self.said:
            return lazy_gettext("It is out of service.")
        return lazy_gettext("It is out of service: %(why)s", why=self.said)


def with_health(
    marks: Mapping[str, OutOfServiceMark], health: Iterable[HealthMark]
) -> dict[str, OutOfServiceMark]:
    """Return UUID -> mark, with further marks of health."""
    found = dict(marks)
    for mark in health:
        before = found.get(mark.uuid)
        if before is None:
            found[mark.uuid] = OutOfServiceMark(
                mark.uuid, BY, "", mark.since, (mark,), is_own=False
            )
        elif mark.key not in {each.key for each in before.health}:
            found[mark.uuid] = replace(before, health=(*before.health, mark))
    return found


def apply_marks(
    gpus: Iterable[GPU], marks: Mapping[str, OutOfServiceMark], lifted: Lifted = ()
) -> tuple[GPU, ...]:
    """Return the units with the marked ones "excluded"; an unhealthy one keeps its state.

    A mark of a GPU is one of all its parts. What is read of a GPU's health keeps it out by itself,
    before there is a mark of it.

    Args:
        gpus: the units.
        marks: UUID -> mark.
        lifted: (unit, cause) that an administrator has put back into service all the same.
    """
    return tuple(
        _apply(gpu, marks.get(gpu.uuid or "") or marks.get(gpu.parent), lifted) for gpu in gpus
    )


def _apply(gpu: GPU, mark: OutOfServiceMark | None, lifted: Lifted) -> GPU:
    if gpu.state not in ("free", "foreign"):
        return gpu
    if mark is None:
        if not gpu.health.causes:
            return gpu
        causes = causes_now(gpu, lifted)
        mark = OutOfServiceMark(gpu.uuid or "", why=words_of(causes)) if causes else None
    return gpu if mark is None else replace(gpu, state="excluded", reason=mark.reason)


def causes_now(gpu: GPU, lifted: Lifted = ()) -> tuple[str, ...]:
    """Return what is read of a unit's GPU now that keeps it from being handed out."""
    return tuple(
        key
        for key in sorted(gpu.health.causes)
        if keeps_out(cause_of(key)) and (gpu.gpu_uuid, key) not in lifted
    )


def with_marks(
    nodes: Iterable[Node], marks: Mapping[str, OutOfServiceMark], lifted: Lifted = ()
) -> tuple[Node, ...]:
    """Return nodes as `apply_marks` makes their GPUs."""
    return tuple(node.with_gpus(apply_marks(node.gpus, marks, lifted)) for node in nodes)
