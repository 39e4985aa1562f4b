"""gpuspawner: GPUs for JupyterHub users, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Imported only when asked for, so that `gpuspawner simulate` doesn't load JupyterHub.
SUBCOMMANDS = {
    "dashboard": (
        "gpuspawner.dashboard.command",
        "who has which GPU and who waits, as a service that the hub starts",
    ),
    "doctor": (
        "gpuspawner.doctor",
        "what keeps this machine from handing out GPUs, and what to do",
    ),
    "gpus": ("gpuspawner.list_gpus", "what GPUs this host has and who holds them"),
    "image": ("gpuspawner.image_builder", "list, build and check the image versions"),
    "usage": ("gpuspawner.usage.command", "who used which GPUs for how long, and how much"),
    "node": (
        "gpuspawner.nodes.command",
        "a machine with GPUs among several: its daemon; let it join, leave, and say how it is",
    ),
    "volumes": (
        "gpuspawner.volumes_command",
        "users' own volumes: list, archive, set aside, restore and remove them",
    ),
    "simulate": ("gpuspawner.simulation.command", "run a command on a simulated GPU host"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status.

    Each module in `SUBCOMMANDS` has `add_arguments(parser)` and `run(arguments) -> int`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="gpuspawner", description=__doc__)
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    chosen = words[0] if words else None
    for name, (module, help_text) in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text, description=help_text)
        if name == chosen:
            import_module(module).add_arguments(subparser)
    arguments = parser.parse_args(words)
    module = SUBCOMMANDS[arguments.subcommand][0]
    return int(import_module(module).run(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
