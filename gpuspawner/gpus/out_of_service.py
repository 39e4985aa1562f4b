"""GPUs that an administrator has taken out of service for a while, without a change of settings.

Kept where the leases are, by the backend, so that all who look see the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..i18n.lazy_text import lazy_gettext
from .model import GPU, Node

# In characters.
MAX_REASON_LENGTH = 200


@dataclass(frozen=True)
class OutOfServiceMark:
    """A GPU that is out of service: who took it out, why, and since when (since the epoch)."""

    uuid: str
    by: str = ""
    why: str = ""
    since: float | None = None

    @property
    def reason(self) -> str:
        """A sentence for everybody, so without a name."""
        if not self.why:
            return lazy_gettext("It is out of service.")
        return lazy_gettext("It is out of service: %(why)s", why=self.why)


def apply_marks(gpus: Iterable[GPU], marks: Mapping[str, OutOfServiceMark]) -> tuple[GPU, ...]:
    """Return the GPUs with those out of service kept out. What is sick keeps that state."""
    return tuple(_apply(gpu, marks.get(gpu.uuid or "")) for gpu in gpus)


def _apply(gpu: GPU, mark: OutOfServiceMark | None) -> GPU:
    if mark is None or gpu.state not in ("free", "foreign"):
        return gpu
    return replace(gpu, state="excluded", reason=mark.reason)


class InServiceReader:
    """Read the nodes, with what is out of service kept out.

    Args:
        read_nodes: reads each node from its NVML.
        list_marks: returns UUID -> mark of the GPUs that are out of service.
    Where either fails, so does this: what may be out of service isn't handed out.
    """

    def __init__(
        self,
        read_nodes: Callable[[], Awaitable[Sequence[Node]]],
        list_marks: Callable[[], Awaitable[Mapping[str, OutOfServiceMark]]],
    ) -> None:
        self._read_nodes = read_nodes
        self._list_marks = list_marks
        # What the last reading found.
        self.marks: Mapping[str, OutOfServiceMark] = {}

    async def __call__(self) -> tuple[Node, ...]:
        """Return the nodes as they are now; raises what either of the two raises."""
        nodes = await self._read_nodes()
        if any(node.gpus for node in nodes):
            self.marks = await self._list_marks()
        return tuple(replace(node, gpus=apply_marks(node.gpus, self.marks)) for node in nodes)
