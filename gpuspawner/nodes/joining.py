"""How a machine joins the hub's machines, and leaves them: the engine, Swarm, and the proof.

The engine is restarted where nobody works, and only if its configuration changes. What fails half
way is put back.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors

from ..backends.docker.errors import explain
from ..errors import GPUSpawnerError
from ..gpus.model import GPU
from .engine_config import (
    Config,
    EngineFile,
    as_text,
    difference,
    read_file,
    restore,
    undo_file,
    with_gpus,
    write_file,
)
from .invitations import SwarmInvitation
from .oldest_engine import OLDEST_WORDS, is_too_old
from .resources import is_kind, offers

# How long an engine may take to come back.
RESTART_SECONDS = 120.0
JOIN_SECONDS = 60.0
PROOF_SECONDS = 120
# What the proof looks with: nvidia-smi, which the runtime puts into a container.
PROOF = ["nvidia-smi", "-L"]
_UUID = re.compile(r"GPU-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

Say = Callable[[str], None]


class JoinError(GPUSpawnerError):
    """A machine can't join or leave. `str()` is a sentence for administrators."""


@dataclass(frozen=True)
class Plan:
    """What joining changes in the engine's configuration.

    Args:
        before: the file as it is.
        after: what it will say.
        offered: kind -> how many of it the machine will offer.
        stale: whether the engine that runs doesn't follow the file, which doesn't change.
    """

    before: EngineFile
    after: Config
    offered: Mapping[str, int]
    stale: bool = False

    @property
    def diff(self) -> list[str]:
        """The lines of what changes, for people; [] if nothing does."""
        return difference(self.before, self.after)

    @property
    def restarts(self) -> bool:
        """Whether the engine has to be restarted."""
        return bool(self.diff) or self.stale


def make_plan(engine: docker.DockerClient, path: Path, gpus: Sequence[GPU]) -> Plan:
    """Return what joining would change.

    Args:
        engine: this machine's.
        path: its configuration file.
        gpus: this machine's units.

    Raises:
        JoinError: the engine can't be in such a Swarm.
        EngineConfigError: its configuration can't be used.
    """
    with _explained():
        check_version(str(engine.version().get("Version") or ""))
        info = engine.info()
    before, offered = read_file(path), offers(gpus)
    after = with_gpus(before.config, offered)
    return Plan(before, after, offered, stale=not _follows(info, offered))


def check_version(version: str) -> None:
    """Raise `JoinError` if an engine is too old for servers with GPUs on several machines."""
    if is_too_old(version):
        raise JoinError(
            f"Docker Engine {version or '?'} ends running servers with GPUs whenever a machine of "
            f"the Swarm changes: install {OLDEST_WORDS} or newer."
        )


def working(engine: docker.DockerClient) -> list[str]:
    """Return the names of the containers that run: a restart of the engine would end them."""
    with _explained():
        return sorted(each["Names"][0].lstrip("/") for each in engine.api.containers())


def apply_plan(
    engine: docker.DockerClient, plan: Plan, restart: Callable[[], None], say: Say
) -> None:
    """Write the engine's configuration and restart it, where nobody works.

    Raises:
        JoinError: somebody works, or the engine doesn't start with it; then it runs as before.
        OSError: the file can't be written.
    """
    if not plan.restarts:
        return
    nobody_works(engine)
    validate(plan.after)
    write_file(plan.before, plan.after)
    say("Restarting the Docker Engine")
    try:
        restart()
        await_engine(engine, plan.offered)
    except (GPUSpawnerError, OSError) as error:
        if plan.diff:
            restore(plan.before)
            with suppress(GPUSpawnerError, OSError):
                restart()
            raise JoinError(
                f"The Docker Engine doesn't run with the new configuration, so {plan.before.path} "
                f"is as it was: {error}"
            ) from None
        raise


def nobody_works(engine: docker.DockerClient) -> None:
    """Raise `JoinError` with what runs, if anything does."""
    names = working(engine)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise JoinError(
            f"A restart of the Docker Engine would end what runs here: {', '.join(names[:5])}"
            f"{more}. Stop it, or come back when nobody works."
        )


def validate(config: Config) -> None:
    """Have the engine's program look at a configuration, where it can; raises `JoinError`."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(as_text(config))
        file.flush()
        words = ["dockerd", "--validate", "--config-file", file.name]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return  # its program is elsewhere
    said = " ".join(done.stderr.split())
    # Engines before 23.0 don't have that option.
    if done.returncode and "unknown flag" not in said:
        raise JoinError(f"The Docker Engine refuses the configuration: {said[:500]}")


def await_engine(engine: docker.DockerClient, offered: Mapping[str, int] | None) -> None:
    """Wait until the engine answers, with what it is to offer.

    Args:
        engine: the engine.
        offered: kind -> how many; None: whatever it offers.

    Raises:
        JoinError: it doesn't answer, or doesn't follow its configuration.
    """
    until, said = time.monotonic() + RESTART_SECONDS, "it doesn't answer"
    while time.monotonic() < until:
        try:
            info = engine.info()
        except (docker.errors.DockerException, OSError) as error:
            said = explain(error)
        else:
            if offered is None or _follows(info, offered):
                return
            raise JoinError(
                "The Docker Engine runs and doesn't follow its configuration file: is another one "
                "named in its service, or was it not restarted?"
            )
        time.sleep(0.5)
    raise JoinError(f"The Docker Engine doesn't come back: {said}")


def offered_now(info: Mapping[str, Any]) -> dict[str, int]:
    """Return kind -> how many of it an engine offers, by its `GET /info`, of GPUs."""
    found = {}
    for each in info.get("GenericResources") or []:
        spec = each.get("DiscreteResourceSpec") or {}
        kind = str(spec.get("Kind") or "").lower()
        if is_kind(kind):
            found[kind] = int(spec.get("Value") or 0)
    return found


def _follows(info: Mapping[str, Any], offered: Mapping[str, int]) -> bool:
    return info.get("DefaultRuntime") == "nvidia" and offered_now(info) == dict(offered)


# -- Swarm -----------------------------------------------------------------------------------------


def swarm_invitation(engine: docker.DockerClient) -> SwarmInvitation:
    """Return what a machine joins this machine's Swarm with.

    Raises:
        JoinError: this machine decides for no Swarm, or the Swarm's engine is too old.
    """
    with _explained():
        info = engine.info()
        swarm = info.get("Swarm") or {}
        if swarm.get("LocalNodeState") != "active":
            raise JoinError(
                "This machine is in no Swarm: docker swarm init --advertise-addr ADDRESS "
                "--dispatcher-heartbeat 30s    (ADDRESS is this machine's, as the others reach it)"
            )
        if not swarm.get("ControlAvailable"):
            raise JoinError("This machine isn't a manager of its Swarm: invite on one that is.")
        check_version(str(info.get("ServerVersion") or ""))
        engine.swarm.reload()
        token = engine.swarm.attrs["JoinTokens"]["Worker"]
    managers = tuple(str(each["Addr"]) for each in swarm.get("RemoteManagers") or [])
    return SwarmInvitation(token, managers)


def join_swarm(engine: docker.DockerClient, invitation: SwarmInvitation, address: str) -> bool:
    """Join a Swarm; return whether this machine wasn't in it already.

    Args:
        engine: this machine's.
        invitation: the Swarm.
        address: this machine's, as the others reach it; "": the engine finds out.

    Raises:
        JoinError: it is in another Swarm, or can't join.
    """
    with _explained():
        swarm = engine.info().get("Swarm") or {}
        if swarm.get("LocalNodeState") not in (None, "", "inactive"):
            known = {str(each["Addr"]) for each in swarm.get("RemoteManagers") or []}
            if known & set(invitation.managers):
                return False
            raise JoinError("This machine is in another Swarm: docker swarm leave, then try again.")
        engine.swarm.join(
            list(invitation.managers), invitation.token, advertise_addr=address or None
        )
        until = time.monotonic() + JOIN_SECONDS
        while time.monotonic() < until:
            state = (engine.info().get("Swarm") or {}).get("LocalNodeState")
            if state == "active":
                return True
            time.sleep(0.5)
    raise JoinError(f"The Swarm doesn't take this machine in time: it is {state}.")


def leave(engine: docker.DockerClient, path: Path, restart: Callable[[], None], say: Say) -> None:
    """Leave the Swarm, and put the engine's configuration back.

    Raises:
        JoinError: somebody works, or this machine decides for the Swarm.
        EngineConfigError: the configuration can't be put back.
    """
    with _explained():
        swarm = engine.info().get("Swarm") or {}
    if swarm.get("ControlAvailable"):
        raise JoinError(
            "This machine decides for the Swarm: docker node demote it from another manager first, "
            "or, if it is the last one: docker swarm leave --force"
        )
    nobody_works(engine)
    if swarm.get("LocalNodeState") not in (None, "", "inactive"):
        say("Leaving the Swarm")
        with _explained():
            engine.swarm.leave()
    if undo_file(path):
        say("Restarting the Docker Engine with the configuration of before")
        restart()
        await_engine(engine, None)


# -- The proof -------------------------------------------------------------------------------------


def prove(engine: docker.DockerClient, gpus: Sequence[GPU], image: str) -> str:
    """Start a container as a server is started, with one GPU, and return the UUID that it sees.

    It asks for no runtime and names the GPU by the variable, as services do.

    Args:
        engine: this machine's.
        gpus: this machine's units, of which one that is free is taken.
        image: an image that is there.

    Raises:
        JoinError: the container sees another GPU, all of them, or none.
    """
    free = [gpu for gpu in gpus if gpu.state == "free" and gpu.uuid and not gpu.parent]
    if not free:
        raise JoinError("No whole GPU is free here now, so there is nothing to prove it with.")
    wanted = str(free[0].uuid)
    seen, said = _seen(engine, image, wanted)
    if seen != [wanted]:
        what = f"sees {', '.join(seen)}" if seen else f"sees none ({said[:300]})"
        raise JoinError(f"A container that was given {wanted} {what}.")
    seen, _ = _seen(engine, image, "void")
    if seen:
        raise JoinError(f"A container that was given no GPU sees {', '.join(seen)}.")
    return wanted


def _seen(engine: docker.DockerClient, image: str, visible: str) -> tuple[list[str], str]:
    container = None
    with _explained():
        try:
            container = engine.containers.create(
                image,
                PROOF,
                entrypoint="",
                environment={"NVIDIA_VISIBLE_DEVICES": visible},
                network_mode="none",
                labels={"gpuspawner.proof": ""},
            )
            container.start()
            container.wait(timeout=PROOF_SECONDS)
            said = container.logs().decode(errors="replace")
        except docker.errors.APIError as error:
            # Without the toolkit's files there is no such program in it.
            if visible == "void" and "executable file not found" in str(error):
                return [], ""
            raise
        finally:
            if container is not None:
                container.remove(force=True)
    return sorted(set(_UUID.findall(said))), " ".join(said.split())


def proof_image(engine: docker.DockerClient) -> str:
    """Return an image that is there, the smallest one; "" if there is none."""
    with _explained():
        found = [each for each in engine.api.images() if each.get("RepoTags")]
    return str(min(found, key=lambda each: each["Size"])["Id"]) if found else ""


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the engine says into a sentence."""
    try:
        yield
    except (docker.errors.DockerException, OSError) as error:
        raise JoinError(explain(error)) from None
