"""Changes of a running simulated cluster, as written on the command line: `node 2 cut 40`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from . import api, changes
from .host import change
from .programs import SimulationError
from .running_host import ClusterFacts
from .switch import plug

SECONDS = 60

# A form of a change with the words in capitals for values, its meaning, and what it does to a host
# by its number.
NodeChange = Callable[[ClusterFacts, int], None]


def _down(cluster: ClusterFacts, number: int) -> None:
    plug(cluster.switch, number, False)


def _up(cluster: ClusterFacts, number: int) -> None:
    plug(cluster.switch, number, True)


def _cut(cluster: ClusterFacts, number: int, word: str) -> None:
    seconds = changes.whole_number(word, "SECONDS")
    # The cable is plugged in again whoever ends this.
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        _down(cluster, number)
        time.sleep(seconds)
    finally:
        _up(cluster, number)
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _availability(word: str) -> NodeChange:
    def set_it(cluster: ClusterFacts, number: int) -> None:
        socket, name = cluster.manager / "docker.sock", list(cluster.nodes)[number - 1]
        nodes = _asked(socket, "GET", "/nodes")
        node = next(each for each in nodes if each["Description"]["Hostname"] == name)
        place = f"/nodes/{node['ID']}/update?version={node['Version']['Index']}"
        _asked(socket, "POST", place, {**node["Spec"], "Availability": word})

    return set_it


def _asked(socket: Path, method: str, place: str, content: object = None) -> list[dict]:
    try:
        status, answer = api.ask(socket, method, place, content, seconds=SECONDS)
    except OSError as error:
        raise SimulationError(f"the manager's engine can't be asked: {error}") from error
    if status >= 400:
        said = answer.get("message") if isinstance(answer, dict) else answer
        raise SimulationError(f"the Swarm refuses: {said}")
    return list(answer or [])


CHANGES: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("node NODE down", "nobody reaches it any more; what runs there goes on", _down),
    ("node NODE up", "it is reached again", _up),
    ("node NODE cut SECONDS", "the same for so long, for which the command waits", _cut),
    ("node NODE drain", "Swarm ends its servers and starts none there", _availability("drain")),
    ("node NODE pause", "Swarm starts none there", _availability("pause")),
    ("node NODE active", "it takes servers again", _availability("active")),
)
GPU_FORM = "node NODE CHANGE"


def explanation() -> str:
    """Return a table of the changes and their meanings, one per line."""
    rows = [(form, meaning) for form, meaning, _ in CHANGES]
    rows.append((GPU_FORM, "any of the changes above, on this host of the cluster"))
    width = max(len(form) for form, _ in rows)
    return "\n".join(f"  {form:{width}}  {meaning}" for form, meaning in rows)


def parse(text: str) -> Callable[[ClusterFacts], None]:
    """Return the change that a text such as `node 2 gpu 1 lost` stands for.

    Returns:
        A function that changes a running cluster. It raises ValueError for what it can't change
        so, as a host that isn't there, and SimulationError where that fails.

    Raises:
        ValueError: there is no such change.
    """
    words = text.split()
    if words[:1] != ["node"] or len(words) < 3 or not words[1].isdecimal():
        raise ValueError(f"{text!r} isn't a change of a cluster; these are:\n{explanation()}")
    number = int(words[1])
    for form, _, function in CHANGES:
        values = changes.matched(form.split(), words)
        if values is not None:
            return lambda cluster: function(cluster, _checked(cluster, number), *values[1:])
    try:
        of_host = changes.parse(" ".join(words[2:]))
    except ValueError as error:
        raise ValueError(f"{error}\nor of a cluster:\n{explanation()}") from None
    return lambda cluster: _change_host(cluster, _checked(cluster, number), of_host)


def _change_host(cluster: ClusterFacts, number: int, of_host: changes.Change) -> None:
    change(Path(list(cluster.nodes.values())[number - 1]) / "state", of_host)


def _checked(cluster: ClusterFacts, number: int) -> int:
    if not 1 <= number <= len(cluster.nodes):
        raise ValueError(f"there is no node {number}: they are 1 to {len(cluster.nodes)}")
    return number
