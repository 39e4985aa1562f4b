"""`gpuspawner node`: the daemon of a machine with GPUs, and how it joins a hub's machines."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from ..errors import GPUSpawnerError
from ..hub.connections import allow_many_connections
from .arguments import NODE_FOLDER, add_arguments
from .daemon import HUBS_FILE, Daemon, read_hubs
from .engine_link import EngineLink
from .identity import IDENTITY_FILE, load

__all__ = ["add_arguments", "run"]

# Where systemd puts what `LoadCredential=` names. ref: systemd.exec(5)
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
# Those that need Docker's library, which the daemon does without.
_ON_NODE = ("join", "prove", "leave")


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked; return 0, or 1 if it can't be done."""
    try:
        return _run(arguments)
    except (GPUSpawnerError, OSError) as error:
        print(f"gpuspawner node {arguments.action}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    action = arguments.action
    if action == "serve":
        _serve(arguments)
        return 0
    if action == "engine":
        _engine(arguments)
        return 0
    if action == "status" and (arguments.hub_folder / IDENTITY_FILE).exists():
        return int(import_module(f"{__package__}.hub_side").status(arguments.hub_folder))
    side = "node_side" if action in (*_ON_NODE, "status") else "hub_side"
    return int(getattr(import_module(f"{__package__}.{side}"), action)(arguments))


def _serve(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    allow_many_connections()
    folder = arguments.folder or Path(os.environ.get(CREDENTIALS_VARIABLE) or NODE_FOLDER)
    identity, hubs = load(folder / IDENTITY_FILE), read_hubs(folder / HUBS_FILE)
    daemon = Daemon(identity, hubs, EngineLink(arguments.engine_socket))
    asyncio.run(_until_ended(daemon, arguments.listen, arguments.port, identity.fingerprint))


async def _until_ended(daemon: Daemon, address: str, port: int, fingerprint: str) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    port = daemon.start(address, port)
    # For people, and for who has started it with port 0.
    print(f"listening on port {port}, certificate {fingerprint}", flush=True)
    await ended.wait()
    await daemon.stop()


def _engine(arguments: argparse.Namespace) -> None:
    # Only this part has docker-py in its memory.
    from .engine_part import EnginePart, listening_socket

    try:
        listening = listening_socket(arguments.socket)
    except ValueError:
        raise GPUSpawnerError("systemd passes no socket: name one with --socket") from None
    with suppress(KeyboardInterrupt):
        asyncio.run(EnginePart().serve(listening))
