"""`gpuspawner node` on the hub's machine: inviting machines, forgetting them, and how they are."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import GPUSpawnerError
from .addresses import NodeAddress, add_address, is_host, read_addresses, remove_address
from .client import CLOCK_SECONDS, NodesReader
from .identity import IDENTITY_FILE, load, load_or_make
from .invitations import Host, SwarmInvitation
from .reports import NodeReport


def invite(arguments: argparse.Namespace) -> int:
    """Print the command for another machine, and wait until it was run there."""
    here = arguments.host or socket.gethostname()
    if not is_host(here):
        raise GPUSpawnerError(f"{here!r} isn't the name or the address of a machine.")
    if not arguments.minutes > 0:
        raise GPUSpawnerError("--minutes has to be more than 0")
    swarm = None if arguments.no_swarm else _swarm()
    identity = load_or_make(arguments.hub_folder, socket.gethostname())
    known = {each.name for each in read_addresses(arguments.hub_folder)}

    async def wait() -> NodeAddress:
        host = Host(identity, swarm, lambda node: add_address(arguments.hub_folder, node))
        port = host.start("", arguments.port)
        words = ["sudo", "gpuspawner", "node", "join"]
        words += ["--no-swarm"] if swarm is None else []
        where = f"[{here}]" if ":" in here else here
        words += [f"{where}:{port}", host.token]
        print(
            "Run this on the other machine. It holds once, and for "
            f"{arguments.minutes:g} minutes while this waits:\n\n  {shlex.join(words)}\n",
            flush=True,
        )
        try:
            done, _ = await asyncio.wait(
                [asyncio.ensure_future(host.taken_up())], timeout=60 * arguments.minutes
            )
            if not done:
                raise GPUSpawnerError("Nobody has come: the invitation has ended.")
            return done.pop().result()
        finally:
            await host.stop()

    node = asyncio.run(wait())
    again = "Known anew" if node.name in known else "Invited"
    print(f"{again}: {node.name} at {node.host} port {node.port}, certificate {node.fingerprint}.")
    print(f"How it is: gpuspawner node status --hub-folder {arguments.hub_folder}")
    return 0


def _swarm() -> SwarmInvitation:
    # The hub's own machine is asked, which takes the right to use Docker.
    import docker

    from .joining import swarm_invitation

    engine = docker.from_env(timeout=20)
    try:
        return swarm_invitation(engine)
    finally:
        engine.close()


def forget(arguments: argparse.Namespace) -> int:
    """Take a machine out of the hub's list."""
    if not remove_address(arguments.hub_folder, arguments.name):
        print(f"The hub knows no machine {arguments.name}.", file=sys.stderr)
        return 1
    print(f"Forgotten: {arguments.name}. Servers that run there aren't stopped.")
    return 0


def status(folder: Path) -> int:
    """Print how a hub's machines are; return 1 if anything is wrong with one."""
    addresses = read_addresses(folder)
    if not addresses:
        print("No machine was invited yet: gpuspawner node invite")
        return 0
    from ..image_builder.spreading import built_here, words_of

    reader = NodesReader(addresses, load(folder / IDENTITY_FILE), log=_Quiet())
    images = built_here()

    async def read() -> dict[str, str]:
        await reader()
        known = [each.name for each in addresses if each.name not in reader.problems]
        words = await asyncio.gather(*(words_of(reader, name, images) for name in known))
        return dict(zip(known, words, strict=True))

    of_images = asyncio.run(read())
    for address in addresses:
        for line in describe(address, reader):
            print(line)
        if words := of_images.get(address.name):
            print(f"  {words}")
    for uuid, names in reader.contested.items():
        print(f"! {uuid} is on {' and '.join(names)}, as they say: it isn't handed out on any")
    return int(bool(reader.problems or reader.contested))


def describe(address: NodeAddress, reader: NodesReader) -> Iterable[str]:
    """Yield lines that say how a machine is."""
    report = reader.reports.get(address.name)
    problem = reader.problems.get(address.name)
    yield f"{address.name}  ({address.host} port {address.port})"
    if problem or report is None:
        yield f"  ! unknown, so nothing is handed out there: {problem}"
        return
    yield f"  {_gpu_words(report)}"
    versions = {
        "driver": report.node.driver,
        "Docker Engine": report.engine,
        "NVIDIA Container Toolkit": report.toolkit,
        "gpuspawner": report.version,
    }
    yield "  " + ", ".join(f"{name} {text or 'unknown'}" for name, text in versions.items())
    offset = reader.clock_offset(address.name) or 0.0
    if abs(offset) > CLOCK_SECONDS:
        yield (
            f"  ! its clock is {abs(offset):.0f} seconds "
            f"{'ahead of' if offset > 0 else 'behind'} this one's: timedatectl set-ntp true"
        )


def _gpu_words(report: NodeReport) -> str:
    gpus = report.node.gpus
    if not gpus:
        return "no GPUs"
    states = [gpu.state for gpu in gpus]
    # Who holds which, only the hub knows: what a server uses is "foreign" to NVML.
    parts = {
        "not in use": states.count("free"),
        "in use": states.count("foreign"),
        "in MIG mode": states.count("mig"),
        "not handed out": sum(each in ("unhealthy", "excluded", "unknown") for each in states),
    }
    said = ", ".join(f"{number} {words}" for words, number in parts.items() if number)
    models = ", ".join(sorted({gpu.model for gpu in gpus}))
    return f"{len(gpus)} GPUs or parts of one ({models}): {said}"


class _Quiet:
    """A log for a command that prints what is wrong itself."""

    def warning(self, *words: object) -> None:
        """Say nothing."""

    info = exception = warning
