"""GPUs that an administrator has taken out of service, without a change of the configuration.

The backend keeps these marks, as it keeps the leases: every hub and page reads the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..i18n.lazy_text import lazy_gettext
from .model import GPU, Node

# The longest reason, in characters.
MAX_REASON_LENGTH = 200


@dataclass(frozen=True)
class OutOfServiceMark:
    """The mark of a GPU that is out of service.

    Args:
        uuid: the GPU's.
        by: the name of the administrator who took it out of service.
        why: the reason that they gave, for everybody.
        since: when, in seconds since the epoch; None if unknown.
    """

    uuid: str
    by: str = ""
    why: str = ""
    since: float | None = None

    @property
    def reason(self) -> str:
        """The sentence for all users, without the administrator's name."""
        if not self.why:
            return lazy_gettext("It is out of service.")
        return lazy_gettext("It is out of service: %(why)s", why=self.why)


def apply_marks(gpus: Iterable[GPU], marks: Mapping[str, OutOfServiceMark]) -> tuple[GPU, ...]:
    """Return the units with the marked ones "excluded"; an unhealthy one keeps its state.

    A mark of a GPU is one of all its parts.
    """
    return tuple(_apply(gpu, marks.get(gpu.uuid or "") or marks.get(gpu.parent)) for gpu in gpus)


def _apply(gpu: GPU, mark: OutOfServiceMark | None) -> GPU:
    if mark is None or gpu.state not in ("free", "foreign"):
        return gpu
    return replace(gpu, state="excluded", reason=mark.reason)


def with_marks(nodes: Iterable[Node], marks: Mapping[str, OutOfServiceMark]) -> tuple[Node, ...]:
    """Return nodes as `apply_marks` makes their GPUs."""
    return tuple(replace(node, gpus=apply_marks(node.gpus, marks)) for node in nodes)
