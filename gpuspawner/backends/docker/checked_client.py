"""A Docker client that checks a container's arguments, and finds the trait of a refused one.

docker-py checks the arguments of a container before it calls the engine. Its error names the
refused argument, but not the trait that it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import docker

from .container_config import with_lease
from .errors import Misconfigured, on_one_line, refuses_configuration

# Argument of `create_host_config` -> the trait from which DockerSpawner makes it.
HOST_CONFIG = {
    "auto_remove": "remove",
    "binds": "volumes",
    "cpu_period": "cpu_limit",
    "cpu_quota": "cpu_limit",
    "links": "links",
    "mem_limit": "mem_limit",
    "mounts": "mounts",
    "network_mode": "network_name",
    "port_bindings": "use_internal_ip",
}
# The same for `create_container`.
CONTAINER = {
    "command": "cmd",
    "environment": "environment",
    "image": "image",
    "name": "name_template",
    "ports": "port",
    "volumes": "volumes",
}


# The errors of docker-py for values of an unexpected form, raised on purpose or not.
REFUSALS = (TypeError, ValueError, AttributeError, LookupError)


class CheckedClient:
    """A `docker.APIClient` that creates no container, and whose errors name the trait at fault.

    Args:
        client: the client, which isn't used for calls of the engine.
        extra_host_config, extra_create_kwargs: the traits' values; the arguments that a function
            returns are unknown.
    """

    def __init__(self, client: Any, extra_host_config: Any, extra_create_kwargs: Any) -> None:
        self._client = client
        self._host_config = HOST_CONFIG | _all_of("extra_host_config", extra_host_config)
        self._container = CONTAINER | _all_of("extra_create_kwargs", extra_create_kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create_host_config(self, **wanted: Any) -> Any:
        """Return the host config that docker-py makes of these arguments.

        Raises:
            Misconfigured: docker-py refuses them.
        """
        make = self._client.create_host_config
        return _checked(make, wanted, self._host_config, "extra_host_config")

    def create_container(self, **wanted: Any) -> None:
        """Check the arguments of a container; docker-py makes a request and doesn't send it.

        Raises:
            Misconfigured: docker-py refuses them.
        """

        create: Any = docker.APIClient.create_container

        def make(**some: Any) -> Any:
            return create(self, **{"image": "", **some})

        _checked(make, wanted, self._container, "extra_create_kwargs")

    def create_container_from_config(self, config: Any, *_: Any) -> str:
        """Return the JSON that docker-py would send."""
        return json.dumps(config)


def leased(create_kwargs: Mapping[str, Any], **lease: Any) -> dict[str, Any]:
    """Return the arguments of a container with a lease; as `with_lease`, but for the error.

    Raises:
        Misconfigured: the administrator's device requests name GPUs themselves.
    """
    try:
        return with_lease(create_kwargs, **lease)
    except ValueError as error:
        setting = "extra_host_config"
        raise Misconfigured(on_one_line(error).removeprefix(f"{setting}: "), setting) from error


def _all_of(trait: str, value: Any) -> dict[str, str]:
    return dict.fromkeys(value, trait) if isinstance(value, Mapping) else {}


def _checked(
    make: Callable[..., Any], wanted: Mapping[str, Any], traits: Mapping[str, str], extra: str
) -> Any:
    try:
        return make(**wanted)
    except Exception as error:
        if not (refuses_configuration(error) or isinstance(error, REFUSALS)):
            raise
        words = on_one_line(error)
        alone = [name for name in wanted if _is_refused(make, name, wanted[name])]
        if alone:
            raise Misconfigured(f"{alone[0]}: {words}", traits.get(alone[0], extra)) from error
        # Only together they are refused: "network_mode is incompatible with port_bindings".
        named = sorted((name for name in wanted if name in words), key=words.index)
        setting = traits.get(named[0], extra) if named else extra
        raise Misconfigured(words, setting) from error


def _is_refused(make: Callable[..., Any], name: str, value: Any) -> bool:
    try:
        make(**{name: value})
    except Exception:
        return True
    return False
