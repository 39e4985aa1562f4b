"""What DockerSpawner's traits say of a server's container, for every spawner that goes by them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from dockerspawner import DockerSpawner

from .backends.docker import errors as engine_errors
from .backends.docker.backend import connect
from .backends.docker.checked_client import REFUSALS, CheckedClient
from .backends.docker.container_config import pseudonym
from .backends.docker.engine_client import EngineClient
from .backends.docker.settings import DockerTraits
from .base_spawner import BaseGPUSpawner, has_loop
from .choices import options
from .errors import Refused
from .gpus.memory import parts_of
from .hub import compat
from .leases.labels import LABEL_HUB, LABEL_MEMORY_GUARD, LABEL_WAITED, labels
from .leases.ledger import Reservation

# Traits that are templates, and what DockerSpawner makes of them.
MOUNTED = (("volumes", "volume_binds"), ("mounts", "mount_binds"))
# Whether a call of "create_container" only says with what.
_planning: ContextVar[bool] = ContextVar("planning", default=False)


@contextmanager
def _plans() -> Iterator[None]:
    token = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(token)


def is_planning() -> bool:
    """Return whether a call of "create_container" only says with what."""
    return _planning.get()


def answer(value: Any) -> asyncio.Future[Any]:
    """Return an answer that the engine needn't give."""
    made = asyncio.get_running_loop().create_future()
    made.set_result(value)
    return made


class ConfiguredContainer(BaseGPUSpawner, DockerTraits, DockerSpawner, is_abstract=True):
    """A GPU spawner whose servers are what DockerSpawner's traits say of a container.

    A subclass for a backend says how such a server is created, started and removed there.
    """

    # -- DockerSpawner's engine, shared by all servers of a hub ----------------------------------

    @property
    def engine(self) -> EngineClient:
        """The engine, which is the backend or decides for it."""
        backend = self.hub_state.backend
        assert isinstance(backend, EngineClient)
        return backend

    @property
    def client(self) -> Any:
        """The client of the engine."""
        if self._hub_state is None and not (self._is_initialised and has_loop()):
            # Called by a trait that is a function, or without a hub.
            return connect(self.tls_config, self.client_kwargs)
        client = self.engine.client
        if _planning.get():
            return CheckedClient(client, self.extra_host_config, self.extra_create_kwargs)
        return client

    @property
    def executor(self) -> Any:
        """The thread pool for calls of the engine."""
        return self.engine.executor

    def lease_labels(self, granted: Reservation | None) -> dict[str, str]:
        """Return the labels of a server's lease; None: it has no GPUs."""
        attempt = self.attempt
        units = [gpu.id for gpu in granted.gpus if gpu.id] if granted else []
        request, until = attempt.request, granted.until if granted else None
        key, course = (request.image, request.course) if request else (self.image, "")
        found = labels(self.holder, key, units, until, self.groups, course)
        found[LABEL_HUB] = self.hub_address
        if units:
            found[LABEL_WAITED] = f"{attempt.waited:g}"
        if parts_of(units):
            found[LABEL_MEMORY_GUARD] = "on" if self.guards_memory() else "off"
        return found

    def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the engine in a thread; what is only planned isn't created."""
        if method == "create_container" and _planning.get():
            self.client.create_container(**kwargs)
            return answer(kwargs)
        return super().docker(method, *args, **kwargs)

    async def plan(self) -> dict[str, Any]:
        """Return what DockerSpawner would create the container with: docker-py's arguments.

        Raises:
            Misconfigured: docker-py doesn't take them.
        """
        for setting, name in MOUNTED:
            try:
                getattr(self, name)
            except REFUSALS as error:
                raise engine_errors.Misconfigured(
                    f"{type(error).__name__}: {error}", setting
                ) from error
        with _plans():
            plan: dict[str, Any] = await super().create_object()
        return plan

    @property
    def server_key(self) -> str:
        """The name of the container or service."""
        return self.object_name

    @property
    def server_id(self) -> str:
        """Its id; "" if there is none."""
        return self.object_id

    # -- Images that can be chosen ---------------------------------------------------------------

    def allowed_image_names(self) -> Any:
        """Return DockerSpawner's `allowed_images`."""
        return self._get_allowed_images() or {}

    def default_image(self) -> str:
        """Return DockerSpawner's `image`."""
        return self.image

    async def check_allowed(self, image: str) -> str:
        """Return the image reference that a catalogue key stands for."""
        limits = self.limits()
        try:
            key = options.image_key(options.parse({"image": image}), limits)
        except Refused as error:
            raise self.refusal(error) from None
        return limits.versions[key].image if key in limits.versions else key

    async def apply_image_option(self) -> None:
        """Use the image that `user_options["image"]` names, as DockerSpawner does.

        A hook may have changed the option, and a subclass may override `check_allowed`. An `image`
        that a hook has set takes precedence.
        """
        wanted = self.user_options.get("image")
        if wanted and "image" not in self.overrides.by_hooks():
            self.overrides.choose("image", await self.check_allowed(wanted))

    # -- Names -----------------------------------------------------------------------------------

    def template_namespace(self) -> dict[str, Any]:
        """Return the fields of templates; `pseudonym` tells neither user nor server."""
        secret = compat.process_wide(self).get("cookie_secret") or b""
        names: dict[str, Any] = super().template_namespace()
        return {**names, "pseudonym": pseudonym(self.holder, secret)}

    def clear_state(self) -> None:
        """Forget the last spawn; the next server is named by the templates of then."""
        super().clear_state()
        if self.user:
            self.object_name = self._object_name_default()

    def keeps_settings(self) -> bool:
        """Return whether users have a home that is kept."""
        return bool(self.home_volume)
