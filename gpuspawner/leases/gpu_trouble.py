"""What is wrong with a server's GPUs, for its user: in the lab, on pages, in a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..i18n.lazy_text import lazy_gettext

QUARANTINE = "quarantine"
# The container has lost its GPUs' devices.
DEVICES_GONE = lazy_gettext(
    "Your server has lost its GPUs: programs that start now don't find them. Save your work, stop "
    "the server and start it again."
)


@dataclass
class GPUTrouble:
    """What is wrong with the GPUs of one server.

    Args:
        gpus: for each GPU with a verdict its name (`gpu`), number (`index`), `verdict` and `cause`.
        devices_gone_since: since when the container can't open its GPUs' devices, in seconds since
            the epoch; None: it can, or nobody has said.
        away: what becomes of it, as its machine is away; "": it isn't.
    """

    gpus: tuple[Mapping[str, Any], ...] = ()
    devices_gone_since: float | None = None
    away: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether one of the GPUs is out of order."""
        return any(each["verdict"] == QUARANTINE for each in self.gpus)

    def replace(self, gpus: Sequence[Mapping[str, Any]]) -> str:
        """Note what is wrong with the GPUs now; return what its user is to be told of, or ""."""
        had_failed, self.gpus = self.has_failed, tuple(gpus)
        return self.words if self.has_failed and not had_failed else ""

    def note_devices(self, gone: bool, at: float) -> bool:
        """Note whether the container has lost its devices; return whether that is new."""
        before = self.devices_gone_since
        self.devices_gone_since = (before or at) if gone else None
        return gone and before is None

    @property
    def words(self) -> str:
        """A sentence for the server's user; "" if nothing is wrong that they should know."""
        if self.away:
            return self.away
        if self.devices_gone_since is not None:
            return DEVICES_GONE
        if self.has_failed:
            return lazy_gettext(
                "A GPU of your server is out of order. Save your work, stop the server and start "
                "it again: it gets another one."
            )
        if self.gpus:
            return lazy_gettext(
                "A GPU of your server is to be reset once the server has ended. You can go on."
            )
        return ""

    def facts(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {"gpus": [*self.gpus], "devices_gone_since": self.devices_gone_since}
