"""The arguments of `gpuspawner node`: nothing here loads Docker, which its daemon does without."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..gpus.unit_names import MAX_SLOTS
from .addresses import DEFAULT_PORT, hub_folder
from .daemon import HUBS_FILE
from .engine_config import DAEMON_JSON
from .identity import IDENTITY_FILE
from .invitations import DEFAULT_INVITE_PORT

# Where a machine keeps its key and who may ask it.
NODE_FOLDER = Path("/etc/gpuspawner")
ENGINE_SOCKET = Path("/run/gpuspawner-node/engine.sock")
INVITATION_MINUTES = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `gpuspawner node`."""
    parser.description = (
        "A machine with GPUs among several that one hub uses. On the hub's machine `invite` prints "
        "the command that lets another one join; there it is run as root."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, words: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=words, description=words)

    _invite(action("invite", "on the hub's machine: print the command that lets another one join"))
    forget = action("forget", "on the hub's machine: take a machine out of the hub's list")
    forget.add_argument("name", metavar="NAME")
    _hub_folder(forget)
    _join(action("join", "let this machine join, by the line that `invite` has printed"))
    prove = action("prove", "prove that a container here sees one GPU, and start the daemon")
    prove.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="the daemon's port (default: %(default)s)"
    )
    _node_folder(prove)
    _proof_arguments(prove)
    leave = action("leave", "undo what joining did on this machine")
    leave.add_argument("--yes", action="store_true", help="don't ask")
    leave.add_argument(
        "--no-swarm", action="store_true", help="leave the Docker Engine and Swarm alone"
    )
    _engine_arguments(leave)
    status = action("status", "how a hub's machines are, or this one where there is no hub")
    _hub_folder(status)
    _engine_arguments(status)
    _proof_arguments(status)
    _serve(action("serve", "the daemon that tells hubs of this machine (a systemd unit runs it)"))
    engine = action("engine", "what asks Docker for the daemon (a systemd unit runs it)")
    engine.add_argument(
        "--socket",
        type=Path,
        metavar="SOCKET",
        help="where to answer (default: the one that systemd passes)",
    )


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help=f"with {IDENTITY_FILE} and {HUBS_FILE} (default: systemd's credentials, else "
        f"{NODE_FOLDER})",
    )
    parser.add_argument(
        "--listen", default="", metavar="ADDRESS", help="one address (default: all of them)"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="the port (default: %(default)s)"
    )
    parser.add_argument(
        "--engine-socket",
        type=Path,
        default=ENGINE_SOCKET,
        metavar="SOCKET",
        help="where `node engine` answers (default: %(default)s)",
    )


def _invite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default="",
        help="this machine's name or address, as the others reach it (default: its name)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_INVITE_PORT,
        help="where to wait for the other machine (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=INVITATION_MINUTES,
        help="how long to wait (default: %(default)g)",
    )
    parser.add_argument(
        "--no-swarm", action="store_true", help="make the machines known, without Docker Swarm"
    )
    _hub_folder(parser)


def _hub_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hub-folder",
        type=Path,
        default=hub_folder(),
        metavar="FOLDER",
        help="the hub's key and its list of machines (default: %(default)s in this folder, which "
        "should be the hub's)",
    )


def _join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hub", metavar="HOST:PORT", help="as `invite` has printed it")
    parser.add_argument(
        "token", metavar="TOKEN", help="as `invite` has printed it; '-': ask for it, unseen"
    )
    parser.add_argument(
        "--name", default="", help="this machine's name (default: its hostname, as Swarm has it)"
    )
    parser.add_argument(
        "--address", default="", help="this machine's address, as the hub reaches it"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="the daemon's port (default: %(default)s)"
    )
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.add_argument(
        "--no-swarm", action="store_true", help="leave the Docker Engine and Swarm alone"
    )
    _engine_arguments(parser)
    _proof_arguments(parser)


def _engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine-config",
        type=Path,
        default=DAEMON_JSON,
        metavar="FILE",
        help="the Docker Engine's configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--restart",
        default="systemctl restart docker",
        metavar="COMMAND",
        help="restarts the Docker Engine (default: %(default)s)",
    )
    _node_folder(parser)


def _node_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/etc/gpuspawner"),
        metavar="FOLDER",
        help="this machine's key and the hubs that may ask it (default: %(default)s)",
    )


def _proof_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--proof-image",
        default="",
        metavar="IMAGE",
        help="a local image for the container that proves that it sees one GPU (default: the "
        "smallest one)",
    )
    parser.add_argument(
        "--shared",
        type=_shared,
        action="append",
        default=[],
        metavar="NAME=SLOTS",
        help="as `shared_gpus` of the hub: a GPU's UUID or model, and in how many slots it is "
        "shared; may be repeated",
    )
    parser.add_argument(
        "--no-service", action="store_true", help="don't install the daemon as a systemd service"
    )


def _shared(text: str) -> tuple[str, int]:
    name, _, slots = text.rpartition("=")
    if not name or not slots.isdecimal() or not 1 <= int(slots) <= MAX_SLOTS:
        raise argparse.ArgumentTypeError(f"{text!r} isn't NAME=SLOTS, with 1 to {MAX_SLOTS} slots")
    return name, int(slots)
