"""What users have had lately: what the store has, and what this hub process has seen since.

The hub's own leases alone. Where the store can't be read for a while nothing is missing: this
process has seen it all. Only one that has never read it knows nothing of the time before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ..errors import Unknown
from ..gpus.model import user_groups
from ..gpus.unit_names import share_of
from ..i18n.lazy_text import lazy_gettext
from ..leases.labels import lease_of
from ..scheduling.budgets import Use
from .sightings import Sighting, Sightings, running

NEVER_READ = lazy_gettext(
    "How many GPU hours you have used can't be read just now. An administrator finds the reason in "
    "the hub's log."
)


@dataclass(frozen=True)
class StoredUse:
    """A lease as the store has it.

    Args:
        use: its time, as far as it is written.
        server_id, started: by what it is known there.
        is_over: whether it is over.
    """

    use: Use
    server_id: str
    started: float
    is_over: bool


class PastUses:
    """What users of a hub have had lately.

    Args:
        hub: the hub's address.
        sightings: what this process has seen, and hasn't written.
        read: reads the store, and calls `take` with what is there. Raises Unknown.
    """

    def __init__(self, hub: str, sightings: Sightings, read: Callable[[], Awaitable[None]]) -> None:
        self._hub = hub
        self._sightings = sightings
        self._read = read
        self._stored: Sequence[StoredUse] | None = None
        self.version: object = None
        self._by_user: dict[str, list[Use]] = {}
        # Server id -> when its lease began that isn't over, as the store has it.
        self._begins: dict[str, Use] = {}
        self._known: frozenset[tuple[str, float]] = frozenset()

    async def ensure_read(self) -> None:
        """Read the store, if it never has been; raises Unknown if it can't be."""
        if self._stored is None:
            await self._read()

    def take(self, stored: Sequence[StoredUse]) -> None:
        """Take what the store has, in place of what it had."""
        self._stored, self.version = stored, object()
        self._by_user = defaultdict(list)
        for each in stored:
            if each.is_over:
                self._by_user[each.use.user].append(each.use)
        self._begins = {each.server_id: each.use for each in stored if not each.is_over}
        self._known = frozenset((each.server_id, each.started) for each in stored if each.is_over)

    def over(self, user: str | None, group: str | None) -> Sequence[Use]:
        """Return what is over and written, of a user, or of a group's members.

        Raises:
            Unknown: the store has never been read.
        """
        if self._stored is None:
            raise Unknown(NEVER_READ)
        if user is not None:
            return self._by_user.get(user, ())
        return [
            each.use
            for each in self._stored
            if each.is_over and (group is None or group in each.use.groups)
        ]

    def running(self, now: float) -> Sequence[Use]:
        """Return what is held now, and what isn't written yet, up to now.

        Args:
            now: the time, in seconds since the epoch.

        Raises:
            Unknown: the store has never been read.
        """
        if self._stored is None:
            raise Unknown(NEVER_READ)
        seen = {each.server.id for each in self._sightings.unwritten}
        # What an earlier process has seen to run, and this one hasn't looked for yet.
        gone = [use for name, use in self._begins.items() if name not in seen]
        found = (self._use(each, now) for each in self._sightings.unwritten)
        return [*gone, *(use for use in found if use)]

    def _use(self, seen: Sighting, now: float) -> Use | None:
        begun = self._begins.get(seen.server.id)
        lease = lease_of(running(seen.server), self._hub)
        end = now
        if seen.over_at is not None:
            ended = seen.run.ended if seen.run and seen.run.ended is not None else now
            end = min(now, seen.over_at.wall, ended)
        if (seen.server.id, seen.started) in self._known:
            return None  # it is written, and this process hasn't heard of it
        if lease is None or not lease.gpus:  # it was gone before this process came
            return begun
        known = seen.run.started if seen.run else None
        began = begun.begin if begun else seen.server.created if known is None else known
        groups, share = user_groups(lease.groups), float(share_of(lease.gpus))
        return Use(lease.holder.user, groups, share, began, max(began, end))
