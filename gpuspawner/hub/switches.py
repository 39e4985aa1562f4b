"""The running servers of a hub that ask for GPUs, have an offer, or are restarted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import Refused
from ..gpus.model import Holder
from ..i18n.lazy_text import lazy_gettext
from . import compat


class Switches:
    """Finds the `GPUSwitch` of a server.

    One whose server is restarted belongs to a spawner that the hub has dropped; this is where the
    next one finds it.

    Args:
        spawners: lists the spawners of all servers.
    """

    def __init__(self, spawners: Callable[[], Iterable[Any]]) -> None:
        self._spawners = spawners
        self._with_news: dict[Holder, Any] = {}

    def add(self, switch: Any) -> None:
        """Keep one that has something to tell."""
        known = self._with_news.get(switch.holder)
        if not (known and known.is_restarting):
            self._with_news[switch.holder] = switch

    def remove(self, switch: Any) -> None:
        """Drop it."""
        holder = switch.holder
        if self._with_news.get(holder) is switch:
            del self._with_news[holder]

    def get(self, holder: Holder) -> Any:
        """Return the one that has something to tell of a server; None: there is none."""
        return self._with_news.get(holder)

    def stay_off(self, holder: Holder) -> None:
        """Have a server's restart, if there is one, leave it off: somebody has it stopped."""
        if found := self._with_news.get(holder):
            found.stay_off()

    def find(self, holder: Holder) -> Any:
        """Return the one of a server that runs.

        Raises:
            Refused: it doesn't run.
        """
        if found := self._with_news.get(holder):
            return found
        for spawner in self._spawners():
            if spawner.holder == holder and compat.is_current(spawner) and spawner.active:
                return spawner.gpu_switch
        words = lazy_gettext("%(holder)s has no server that runs now.", holder=str(holder))
        raise Refused(words, status=404)

    def facts(self) -> list[dict[str, Any]]:
        """Return what there is to tell of each, as JSON values."""
        found = {
            spawner.holder: spawner.gpu_switch
            for spawner in self._spawners()
            # An earlier hub process may have left it something to tell.
            if spawner.gpu_switch.has_news and compat.is_current(spawner) and spawner.active
        }
        return [each.facts() for each in {**found, **self._with_news}.values() if each.has_news]
