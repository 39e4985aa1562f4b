"""GPUs that an administrator has taken out of service, without a change of the configuration.

The backend keeps these marks, as it keeps the leases: every hub and page reads the same ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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


class InServiceReader:
    """Reader of the nodes in which GPUs that are out of service are excluded.

    Args:
        read_nodes: reads each node from its NVML.
        list_marks: returns UUID -> mark of the GPUs that are out of service.
        on_marks: is called with whether there are any, after each read.
    If either fails, so does the read: a GPU that may be out of service isn't handed out.
    """

    def __init__(
        self,
        read_nodes: Callable[[], Awaitable[Sequence[Node]]],
        list_marks: Callable[[], Awaitable[Mapping[str, OutOfServiceMark]]],
        on_marks: Callable[[bool], None] = lambda any_marks: None,
    ) -> None:
        self._read_nodes = read_nodes
        self._list_marks = list_marks
        self._on_marks = on_marks
        # The marks as of the last read.
        self.marks: Mapping[str, OutOfServiceMark] = {}

    async def __call__(self) -> tuple[Node, ...]:
        """Read the nodes as they are now; raises what `read_nodes` and `list_marks` raise."""
        nodes = await self._read_nodes()
        if any(node.gpus for node in nodes):
            self.marks = await self._list_marks()
            self._on_marks(bool(self.marks))
        return tuple(replace(node, gpus=apply_marks(node.gpus, self.marks)) for node in nodes)
