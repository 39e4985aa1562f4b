"""Containers that are started to look at the machine from inside of one, and always removed.

They take the same way as a server: GPUs are reserved in the ledger, written on the container as a
lease, and claimed before it starts, so that every hub on this engine counts them. A hub shows their
holder as `doctor`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import docker
import docker.errors

from ..backends.docker.container_config import refused_limit, with_lease
from ..backends.docker.errors import UNREACHABLE, explain, explain_unknown
from ..gpus.model import GPU, Holder, Request
from ..gpus.reader import Reader
from ..leases.labels import LABEL_GPUS, LABEL_HUB, labels
from ..leases.ledger import Contested, Ledger
from .findings import Configuration, Context
from .rules import host_config, texts

HOLDER = Holder("doctor")
# No hub's address, so that no hub takes the container for one of its servers'.
HUB = "gpuspawner doctor"
NVML_SECONDS = 15.0
# Should we be killed, it ends by itself, and its GPUs are free again.
LIFETIME_SECONDS = 180
REMOVAL_SECONDS = 30
# From when on a container that was never started is one of a doctor that was killed before.
STALE_SECONDS = 120
CLAIM_ROUNDS = 5
# What isn't taken over from the configuration: what would leave something behind.
LEFT_OUT = {
    "auto_remove",
    "binds",
    "mounts",
    "port_bindings",
    "publish_all_ports",
    "restart_policy",
}
LEFT_OUT |= {"links", "volumes_from"}

T = TypeVar("T")


class TrialError(Exception):
    """A container couldn't be created, started or looked into. `str()` says why."""


@dataclass(frozen=True)
class TrialContainer:
    """A running container: what can be asked of it, and the GPUs of its lease."""

    client: docker.DockerClient
    container_id: str
    gpus: tuple[GPU, ...]
    # The limits that the engine may not set.
    refused_limits: tuple[str, ...]

    def run(self, words: Sequence[str]) -> tuple[int, str]:
        """Run a program in it as its user; return exit status and output."""
        api = self.client.api
        made = api.exec_create(self.container_id, list(words))
        output = api.exec_start(made["Id"])
        status = api.exec_inspect(made["Id"])["ExitCode"]
        return int(status or 0), output.decode("utf-8", "replace").strip()


def inside(
    context: Context, gpus: int, look: Callable[[TrialContainer], T], network: str = ""
) -> T:
    """Start a container with some GPUs, return what `look` makes of it, and remove it.

    Args:
        gpus: how many.
        network: the engine's network to put it in; "": none.

    Raises:
        leases.NotEnough: too few GPUs are free.
        leases.Unknown: NVML or the engine can't be read.
        TrialError: the rest.
    """
    try:
        return asyncio.run(_inside(context, gpus, look, network))
    except UNREACHABLE as error:
        raise TrialError(explain(error)) from error
    except (TypeError, ValueError) as error:  # what docker-py and we say against extra_host_config
        raise TrialError(str(error)) from error


async def _inside(
    context: Context, gpus: int, look: Callable[[TrialContainer], T], network: str
) -> T:
    client = context.engine
    assert client is not None
    assert context.trial_image is not None
    ledger = _ledger(client, context.configuration)
    request = Request(context.trial_image[0], gpus)
    policy = _value(context.configuration, "gpu_policy") or "pack"
    refused: tuple[str, ...] = ()
    await asyncio.to_thread(_sweep, client)
    for _ in range(CLAIM_ROUNDS):
        reservation = await ledger.reserve(HOLDER, request, policy)
        wanted = _wanted(context, reservation.uuids, network, refused)
        # No task: what ends the loop cancels those, and what is being made would stay.
        loop = asyncio.get_running_loop()
        creating = loop.run_in_executor(None, _create, client, wanted)
        try:
            # Shielded: a cancelled call would go on in its thread, and what it made would stay.
            container_id = await asyncio.shield(creating)
            ledger.release(reservation)
            await ledger.claim(container_id, reservation.uuids)
            await asyncio.to_thread(client.api.start, container_id)
            here = TrialContainer(client, container_id, reservation.gpus, refused)
            return await asyncio.to_thread(look, here)
        except Contested:
            continue
        except docker.errors.APIError as error:
            limit = refused_limit(error, set(_ulimits(context.configuration)) - set(refused))
            if limit is None:
                raise
            refused = (*refused, limit)
        finally:
            await _gone(client, creating)
    raise TrialError("others were quicker each time: run this again")


def _ledger(client: docker.DockerClient, given: Configuration | None) -> Ledger:
    async def listed() -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = await asyncio.to_thread(
            client.api.containers, all=True, filters={"label": LABEL_GPUS}
        )
        return found

    surveyor = Reader(
        NVML_SECONDS,
        excluded=_value(given, "excluded_gpus") or (),
        memory_threshold_mib=(_value(given, "foreign_memory") or 0) >> 20 or None,
    )
    return Ledger(listed, surveyor, explain_unknown)


def _value(given: Configuration | None, name: str) -> Any:
    return given.spawner.get(name) if given else None


def _ulimits(given: Configuration | None) -> Mapping[str, int]:
    return _value(given, "ulimits") or {}


def _wanted(
    context: Context, uuids: Sequence[str] | frozenset[str], network: str, refused: Sequence[str]
) -> dict[str, Any]:
    """Return what the container is created with: as a server is, but for what it leaves behind."""
    client, given, image = context.engine, context.configuration, context.trial_image
    assert client is not None
    assert image is not None
    extra: dict[str, Any] = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
    if given:
        # A template stands for a user's name, and there is no user.
        extra = {
            name: value
            for name, value in host_config(given).items()
            if name not in LEFT_OUT and not any("{" in text for text in texts(value))
        }
        if isinstance(limit := _value(given, "mem_limit"), int):
            extra.setdefault("mem_limit", limit)
    extra |= {"network_mode": network or "none", "auto_remove": True}
    create = {
        "image": image[1],
        "entrypoint": ["sleep"],
        "command": [str(LIFETIME_SECONDS)],
        "name": f"gpuspawner-doctor-{secrets.token_hex(4)}",
        "host_config": client.api.create_host_config(**extra),
    }
    leased = sorted(uuids)
    return with_lease(
        create,
        labels={
            **labels(HOLDER, image[0], leased, time.time() + LIFETIME_SECONDS),
            LABEL_HUB: HUB,
        },
        uuids=leased,
        shm_size=_value(given, "shm_size"),
        ulimits={n: v for n, v in _ulimits(given).items() if n not in refused},
    )


def _create(client: docker.DockerClient, wanted: Mapping[str, Any]) -> str:
    return str(client.api.create_container(**wanted)["Id"])


async def _gone(client: docker.DockerClient, creating: asyncio.Future[str]) -> None:
    """Remove the container, also one that is still being created."""
    await asyncio.wait([creating])
    if creating.cancelled() or creating.exception():
        return

    await asyncio.shield(
        asyncio.ensure_future(asyncio.to_thread(_remove, client, creating.result()))
    )


def _sweep(client: docker.DockerClient) -> None:
    """Remove what was created and never started: it would keep its GPUs for ever."""
    for left in client.api.containers(all=True, filters={"label": f"{LABEL_HUB}={HUB}"}):
        if left["State"] == "created" and time.time() - left["Created"] > STALE_SECONDS:
            # Not by force: what was started after all stays.
            with suppress(docker.errors.APIError):
                client.api.remove_container(left["Id"], v=True)


def _remove(client: docker.DockerClient, container_id: str) -> None:
    # Once it is stopped the engine removes it by itself as well: who comes second is told 409.
    with suppress(docker.errors.APIError):
        client.api.remove_container(container_id, force=True, v=True)
    deadline = time.monotonic() + REMOVAL_SECONDS
    with suppress(docker.errors.NotFound):
        while time.monotonic() < deadline:
            client.api.inspect_container(container_id)
            time.sleep(0.02)
