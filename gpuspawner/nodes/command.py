"""`gpuspawner node`: the daemon of a machine with GPUs, and how it joins a hub's machines."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import GPUSpawnerError
from ..hub.connections import allow_many_connections
from .addresses import DEFAULT_PORT
from .daemon import HUBS_FILE, Daemon, read_hubs
from .engine_link import EngineLink
from .identity import IDENTITY_FILE, load

# Where a machine keeps its key and who may ask it.
NODE_FOLDER = Path("/etc/gpuspawner")
ENGINE_SOCKET = Path("/run/gpuspawner-node/engine.sock")
# Where systemd puts what `LoadCredential=` names. ref: systemd.exec(5)
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this subcommand's arguments."""
    parser.description = (
        "A machine with GPUs among several that one hub uses. On the hub's machine `invite` prints "
        "the command that lets another one join; there it is run as root."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    serve = actions.add_parser(
        "serve", help="run the daemon that tells hubs of this machine (the systemd unit does)"
    )
    serve.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help=f"with {IDENTITY_FILE} and {HUBS_FILE} (default: systemd's credentials, else "
        f"{NODE_FOLDER})",
    )
    serve.add_argument(
        "--listen", default="", metavar="ADDRESS", help="one address (default: all of them)"
    )
    serve.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="the port (default: %(default)s)"
    )
    serve.add_argument(
        "--engine-socket",
        type=Path,
        default=ENGINE_SOCKET,
        metavar="SOCKET",
        help="where `node engine` answers (default: %(default)s)",
    )
    engine = actions.add_parser(
        "engine", help="run the part of the daemon that may ask Docker (the systemd unit does)"
    )
    engine.add_argument(
        "--socket",
        type=Path,
        metavar="SOCKET",
        help="where to answer (default: the one that systemd passes)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked; return 0, or 1 if it can't be done."""
    try:
        return int(_ACTIONS[arguments.action](arguments) or 0)
    except (GPUSpawnerError, OSError) as error:
        print(f"gpuspawner node {arguments.action}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


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


_ACTIONS = {"serve": _serve, "engine": _engine}
