"""The simulated host or cluster that runs on this machine: its folder, and how to join it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import slots
from .programs import SimulationError
from .state import STATE_PATH_VARIABLE

# In a simulated host's folder: the variables that make a program see it.
ENVIRONMENT = "environment.json"
# In the folder of each host of a simulated cluster: what a program needs to find the others.
CLUSTER = "cluster.json"


@dataclass(frozen=True)
class ClusterFacts:
    """A simulated cluster.

    Args:
        switch: the file of the network namespace that connects its hosts.
        hub: the id of a process in the network of hub and servers.
        nodes: the name of each host -> its folder, the manager's first.
    """

    switch: str
    hub: int
    nodes: Mapping[str, str]

    @property
    def manager(self) -> Path:
        """The manager's folder."""
        return Path(next(iter(self.nodes.values())))


def cluster_of(directory: Path) -> ClusterFacts | None:
    """Return the cluster that a simulated host is of; None: it is of none, or that isn't up yet."""
    try:
        return ClusterFacts(**json.loads((directory / CLUSTER).read_text()))
    except OSError:
        return None


def entered(pid: int, words: Sequence[str]) -> list[str]:
    """Return the command that runs another one in the network of a process."""
    return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *words]


def find_running() -> Path:
    """Return the folder of the running simulated host: the one we are on, else the only one.

    Of a cluster that is its manager's.

    Raises:
        SimulationError: there is none, or more than one.
    """
    named = os.environ.get(STATE_PATH_VARIABLE)
    if named:
        return Path(named).parent
    found = [directory for directory in slots.running() if (directory / "state").exists()]
    if not found:
        raise SimulationError(
            "no simulated host runs: start one with gpuspawner simulate -- COMMAND"
        )
    of_cluster = cluster_of(found[0])
    if of_cluster and {str(each) for each in found} <= set(of_cluster.nodes.values()):
        return of_cluster.manager
    if len(found) > 1:
        choice = " or ".join(str(directory / "state") for directory in found)
        raise SimulationError(f"several run: set {STATE_PATH_VARIABLE} to {choice}")
    return found[0]


def environment_of(directory: Path) -> dict[str, str]:
    """Return this process's environment with the variables of a simulated host.

    Raises:
        SimulationError: it isn't up yet.
    """
    try:
        additions: Mapping[str, str] = json.loads((directory / ENVIRONMENT).read_text())
    except (OSError, ValueError) as error:
        raise SimulationError(f"the simulated host in {directory} isn't up") from error
    return {**os.environ, **additions}


def join_hint(subcommand: str) -> str:
    """Return how to run a subcommand on the running simulated host; "" if none runs."""
    if STATE_PATH_VARIABLE in os.environ:
        return ""
    with suppress(OSError):
        if slots.running():
            line = f"sudo gpuspawner simulate --join -- gpuspawner {subcommand}"
            return f"a simulated GPU host runs here; to see it: {line}"
    return ""
