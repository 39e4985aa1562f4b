"""The volumes of one server: which there are, which are made for it, and how full the home is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import docker.errors

from ...choices.home_use import HomeUse
from ...leases.audit_log import one_line
from .deleted_volumes import Deletion, Policy
from .errors import engine_message, explain
from .set_aside import FirstVolume, Listing, labels_of, list_volumes
from .volume_folders import QUOTA
from .volumes import Volume

About = Mapping[str, Any]

# What the engine says where its file system has no quotas. ref: volume/local in moby
QUOTA_REFUSED = "no quota support"


@dataclass(frozen=True)
class FoundVolumes:
    """What there was of a server's volumes when its container was about to be created.

    Args:
        listing: those that the engine had, and which of them are set aside.
        made: name -> what the engine says of those that were made since.
    """

    listing: Listing
    made: dict[str, About]


class UserVolumes:
    """The volumes of one server.

    Args:
        spawner: a `GPUSpawner`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        # Set once the hub has asked what to clean up of this server, which it is about to forget.
        self.deletion: Deletion | None = None

    def first_of(self, volume: Volume) -> FirstVolume:
        """Return a volume of the user's own as the first of its generations."""
        user = self._spawner.user
        return FirstVolume(volume.name, user.name if user else "", volume.strict)

    def mounted(self, found: FoundVolumes) -> list[Volume]:
        """Return the volumes that are mounted: of the earlier ones those that the user has.

        Of the user's own ones, those that aren't set aside.
        """
        volumes = [
            replace(each, name=found.listing.current(self.first_of(each))) if each.own else each
            for each in self._spawner.volumes_of_user()
        ]
        return [each for each in volumes if not each.earlier or each.name in found.listing.volumes]

    async def find(self) -> FoundVolumes:
        """Look which of the volumes there are, and which of them are set aside: one call."""
        spawner, backend = self._spawner, self._spawner.backend
        volumes = spawner.volumes_of_user()
        if spawner.user and any(each.own for each in volumes):
            for other in spawner.user.spawners.values():
                await other.user_volumes.undo_deletion()
            await backend.deleted_volumes.before_start(spawner.user.name)
        writable = [each.name for each in volumes if each.writable]
        listing = await backend.in_thread(lambda: list_volumes(backend.client, writable))
        return FoundVolumes(listing, {})

    async def make(self, found: FoundVolumes, driver: str | None) -> None:
        """Make the user's own volumes that there aren't yet: the engine makes them without labels.

        Args:
            found: of `find`; what is made is added.
            driver: the volume driver's name; None: the engine's own.
        """
        spawner = self._spawner
        for volume in spawner.volumes_of_user():
            first = self.first_of(volume)
            name = found.listing.current(first)
            there = name in found.listing.volumes or name in found.made
            if volume.own and not volume.earlier and not there:
                server = spawner.name if volume.per_server else None
                labels = labels_of(first, spawner.hub_address, server)
                found.made[name] = await self._make(name, driver, labels)

    async def _make(self, name: str, driver: str | None, labels: Mapping[str, str]) -> About:
        """Make a volume that takes no more than `home_size`, where the engine can see to it."""
        spawner, backend = self._spawner, self._spawner.backend
        made: About
        if spawner.home_size and driver is None and not backend.has_no_quotas:
            size = {QUOTA: str(spawner.home_size)}
            try:
                made = await spawner.docker("create_volume", name, driver_opts=size, labels=labels)
                return made
            except docker.errors.APIError as error:
                if QUOTA_REFUSED not in engine_message(error):
                    raise
                backend.has_no_quotas = True
                spawner.log.warning(
                    "c.GPUSpawner.home_size is told to users, and isn't enforced: %s "
                    "See docs/how-to/files.md, Limit the disk",
                    one_line(explain(error)),
                )
        made = await spawner.docker("create_volume", name, driver=driver, labels=labels)
        return made

    # -- How full the home is --------------------------------------------------------------------

    def home(self) -> Volume | None:
        """Return the home that is kept; None: none."""
        own = [each for each in self._spawner.volumes_of_user() if each.own and not each.earlier]
        return own[0] if own and self._spawner.user else None

    def home_use(self, allowed: int | None) -> HomeUse | None:
        """Return how much the user keeps at home, as far as that is known; ask the engine later."""
        home = self.home()
        if home is None:
            return None
        use: HomeUse | None = self._spawner.backend.home_sizes.of(self.first_of(home), allowed)
        return use

    def home_facts(self) -> dict[str, Any] | None:
        """Return the same as a JSON value."""
        spawner, home = self._spawner, self.home()
        use = self.home_use(spawner.home_size)
        if home is None or use is None:
            return None
        return {
            "user": spawner.user.name,
            "server": spawner.name if home.per_server else "",
            "used": use.used,
            "allowed": use.allowed,
            "enforced": use.enforced,
            "at": use.at,
        }

    # -- The end of the user, or of the server ---------------------------------------------------

    def going(self) -> list[FirstVolume]:
        """Return the first generations of the volumes that go when the hub forgets the server."""
        spawner = self._spawner
        own = [each for each in spawner.volumes_of_user() if each.own]
        return [self.first_of(each) for each in own if each.per_server or not spawner.name]

    async def delete(self, firsts: list[FirstVolume], policy: Policy, is_gone: Any) -> None:
        """Set them aside, or have them removed. Raises nothing.

        Args:
            firsts: of `going`.
            policy: what becomes of them.
            is_gone: returns whether the hub has forgotten the server.
        """
        spawner = self._spawner
        self.deletion = Deletion(
            spawner.user.name, spawner.name or None, spawner.hub_address, firsts, policy, is_gone
        )
        await spawner.backend.deleted_volumes.begin(self.deletion)

    async def undo_deletion(self) -> None:
        """Give the volumes back: the hub starts a server of who was to be deleted."""
        if self.deletion:
            await self._spawner.backend.deleted_volumes.undo(self.deletion)
            self.deletion = None
