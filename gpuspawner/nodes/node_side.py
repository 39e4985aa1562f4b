"""`gpuspawner node` on a machine with GPUs: joining, leaving, the proof, and how it is."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from getpass import getpass
from pathlib import Path

import docker
import docker.errors

from ..backends.docker.errors import explain
from ..errors import GPUSpawnerError
from ..gpus.model import GPU
from ..gpus.reader import Reader
from . import joining, services
from .addresses import replace_file
from .daemon import HUBS_FILE, read_hubs
from .engine_config import backup_of, offered_by, read_file
from .identity import IDENTITY_FILE, fingerprint_of, load, load_or_make
from .invitations import accept, read_token
from .resources import offers

NVML_SECONDS = 15.0
ADVICE = """
What Swarm needs of the network between the machines:
  ports 2377/tcp, 7946/tcp+udp and 4789/udp, and the daemon's {port}/tcp from the hub's machine
  networks of one MTU: an overlay takes 50 bytes of it (docker network create --opt
    com.docker.network.driver.mtu=… where yours is below 1500)
  docker swarm update --dispatcher-heartbeat 30s, once on a manager: a machine that is cut off for
    longer has its servers stopped when it comes back"""


def join(arguments: argparse.Namespace) -> int:
    """Let this machine join a hub's machines."""
    _needs_root()
    hub = _host_and_port(arguments.hub)
    asks = arguments.token == "-"  # noqa: S105  # what stands for one
    token = getpass("TOKEN: ") if asks else arguments.token
    read_token(token)  # a line that was copied in part is said before anything is done
    gpus = read_gpus(dict(arguments.shared))
    if _has_service(arguments):
        services.check_program()
    with nullcontext() if arguments.no_swarm else _engine() as engine:
        plan = None if engine is None else _plan(engine, arguments.engine_config, gpus)
        if not arguments.yes and not _agreed():
            print("Nothing was changed.")
            return 1
        name = arguments.name or socket.gethostname()
        identity = load_or_make(arguments.folder, name)
        welcome = asyncio.run(accept(identity, hub, token, name, arguments.address, arguments.port))
        add_hub(arguments.folder, welcome.certificate)
        print("The hub knows this machine.")
        if engine is None or plan is None:
            _start_daemon(arguments)
            return 0
        if welcome.swarm is None:
            raise GPUSpawnerError("The hub invites into no Swarm: join with --no-swarm.")
        joining.apply_plan(engine, plan, _restart(arguments.restart), print)
        if joining.join_swarm(engine, welcome.swarm, arguments.address):
            print("This machine is in the Swarm.")
        print(ADVICE.format(port=arguments.port))
        return _prove_and_serve(arguments, engine, gpus)


def _plan(engine: docker.DockerClient, path: Path, gpus: Sequence[GPU]) -> joining.Plan:
    plan = joining.make_plan(engine, path, gpus)
    if plan.restarts:
        joining.nobody_works(engine)
    if plan.diff:
        print("\n".join(plan.diff))
        print("\nThe Docker Engine is restarted for this; nobody works here now.")
    elif plan.stale:
        print("The Docker Engine is restarted, as it doesn't follow its configuration yet.")
    else:
        print("The Docker Engine's configuration is as it should be.")
    return plan


def prove(arguments: argparse.Namespace) -> int:
    """Prove that a container sees one GPU, and start the daemon."""
    _needs_root()
    with _engine() as engine:
        return _prove_and_serve(arguments, engine, read_gpus(dict(arguments.shared)))


def _prove_and_serve(
    arguments: argparse.Namespace, engine: docker.DockerClient, gpus: Sequence[GPU]
) -> int:
    image = arguments.proof_image or joining.proof_image(engine)
    if not image:
        print(
            "Not proved yet, as there is no image here to look with, so the daemon isn't started: "
            "docker pull one, then: sudo gpuspawner node prove"
        )
        return 1
    try:
        seen = joining.prove(engine, gpus, image)
    except GPUSpawnerError as error:
        raise GPUSpawnerError(
            f"{error} So the daemon isn't started, and the hub hands nothing out here. When that "
            "is mended: sudo gpuspawner node prove"
        ) from None
    print(f"Proved: a container that was given {seen} sees that GPU and no other.")
    _start_daemon(arguments)
    return 0


def _start_daemon(arguments: argparse.Namespace) -> None:
    if _has_service(arguments):
        services.install(arguments.port)
        print("The daemon runs: systemctl status gpuspawner-node")
        return
    words = f"--folder {arguments.folder} --port {arguments.port}"
    print(f"Start the daemon yourself: gpuspawner node serve {words}")
    print("and, as root, what asks Docker for it: gpuspawner node engine --socket SOCKET")


def leave(arguments: argparse.Namespace) -> int:
    """Undo what joining did."""
    _needs_root()
    if not arguments.yes and not _agreed():
        print("Nothing was changed.")
        return 1
    if not arguments.no_swarm:
        with _engine() as engine:
            joining.leave(engine, arguments.engine_config, _restart(arguments.restart), print)
    if services.has_systemd():
        services.remove()
    for name in (HUBS_FILE, IDENTITY_FILE):
        (arguments.folder / name).unlink(missing_ok=True)
    print(
        "This machine has left. On the hub's machine: gpuspawner node forget "
        f"{shlex.quote(socket.gethostname())}"
    )
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print how this machine is; return 1 if anything is wrong."""
    wrong = 0
    for is_wrong, line in _status_lines(arguments):
        wrong += is_wrong
        print(f"{'!' if is_wrong else ' '} {line}")
    return int(wrong > 0)


def _status_lines(arguments: argparse.Namespace) -> Iterator[tuple[bool, str]]:
    try:
        identity = load(arguments.folder / IDENTITY_FILE)
        yield False, f"certificate {identity.fingerprint}"
    except GPUSpawnerError as error:
        yield True, f"this machine hasn't joined: {error}"
        return
    hubs = read_hubs(arguments.folder / HUBS_FILE)
    for hub in hubs:
        yield False, f"a hub may ask it: {fingerprint_of(hub)}"
    if not hubs:
        yield True, "no hub may ask it: run the line that `gpuspawner node invite` prints"
    if services.has_systemd():
        runs = services.is_active()
        words = "the daemon runs" if runs else "the daemon doesn't run"
        yield not runs, words + ("" if runs else ": systemctl status gpuspawner-node")
    yield from _engine_lines(arguments)


def _engine_lines(arguments: argparse.Namespace) -> Iterator[tuple[bool, str]]:
    if not backup_of(arguments.engine_config).exists():
        yield False, "joining has changed nothing of the Docker Engine's configuration"
    with _engine() as engine:
        info = engine.info()
    swarm = (info.get("Swarm") or {}).get("LocalNodeState") or "inactive"
    yield swarm != "active", f"Swarm: {swarm}"
    gpus = offers(read_gpus(dict(arguments.shared)))
    file = offered_by(read_file(arguments.engine_config).config)
    now = joining.offered_now(info)
    if now != file:
        yield True, "the Docker Engine runs with another configuration than its file: restart it"
    for kind in sorted(gpus.keys() - now.keys()):
        yield True, f"{kind} is here and not offered: let this machine join again"
    for kind in sorted(now.keys() - gpus.keys()):
        yield True, f"{kind} is offered and not here: let this machine join again"
    yield False, f"{len(now)} GPUs or MIG instances are offered to the Swarm"


# -- Pieces ----------------------------------------------------------------------------------------


def read_gpus(shared: Mapping[str, int]) -> Sequence[GPU]:
    """Return this machine's units; raises `GPUSpawnerError` if there are none."""
    (node,) = asyncio.run(Reader(NVML_SECONDS, shared=shared)())
    if not node.gpus:
        raise GPUSpawnerError("This machine has no GPUs to share: see gpuspawner doctor")
    return node.gpus


def add_hub(folder: Path, certificate: str) -> None:
    """Have the daemon let a hub in, beside those that it knows."""
    known = read_hubs(folder / HUBS_FILE)
    if certificate not in known:
        replace_file(folder / HUBS_FILE, "".join([*known, certificate]).encode(), 0o644)


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise GPUSpawnerError("nobody can be asked here: --yes")
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")


def _needs_root() -> None:
    if os.geteuid() != 0:
        raise GPUSpawnerError("this takes root: run it with sudo")


def _has_service(arguments: argparse.Namespace) -> bool:
    return services.has_systemd() and not arguments.no_service


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise GPUSpawnerError(f"{text!r} isn't HOST:PORT, as `invite` prints it")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _restart(command: str) -> Callable[[], None]:
    return lambda: services.systemctl(*shlex.split(command))


@contextmanager
def _engine() -> Iterator[docker.DockerClient]:
    try:
        engine = docker.from_env(timeout=60)
    except (docker.errors.DockerException, OSError) as error:
        raise GPUSpawnerError(explain(error)) from None
    try:
        yield engine
    except (docker.errors.DockerException, OSError) as error:
        raise GPUSpawnerError(explain(error)) from None
    finally:
        engine.close()
