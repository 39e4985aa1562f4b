"""The tasks of Swarm's services: which of them may run, and what their states mean.

ref: https://docs.docker.com/engine/swarm/how-swarm-mode-works/swarm-task-states/
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from ...i18n.lazy_text import MachineText, lazy_gettext
from ...i18n.phrases import clock_time, memory_words
from ...leases.server_run import ServerRun
from ..docker.runs import seconds

Task = Mapping[str, Any]

# In any other state, also in one that isn't known here, a task may run, now or in a moment.
TERMINAL = frozenset({"complete", "shutdown", "failed", "rejected", "orphaned", "remove"})
# Before these a task has no node, or waits for it.
WAITING = frozenset({"", "new", "allocated", "pending"})

# What Swarm's scheduler says of a node that lacks what a task reserves. ref: swarmkit, filter.go
INSUFFICIENT = "insufficient resources"
# What a program ends with on SIGKILL and SIGTERM, and what an engine notes if it wasn't there.
FROM_OUTSIDE = (137, 143, 255)
KILLED = 137

# Why Swarm ends a server by itself, or for somebody who has changed it by hand: the rules in the
# audit log.
AWAY: Final = "machine away"
DRAINED: Final = "machine drained"
RESTARTED: Final = "service restarted"
REMOVED: Final = "service removed"


def state_of(task: Task) -> str:
    """Return the state of a task, as Swarm knows it; "" if it has none yet."""
    return str((task.get("Status") or {}).get("State") or "").lower()


def is_terminal(task: Task) -> bool:
    """Return whether a task has ended, or never will run."""
    return state_of(task) in TERMINAL


def is_given_up(task: Task) -> bool:
    """Return whether Swarm wants a task to end that hasn't yet, as far as its machine has said."""
    return not is_terminal(task) and str(task.get("DesiredState") or "").lower() in TERMINAL


def first(tasks: Iterable[Task]) -> Task | None:
    """Return the task that was made first, which is the server; None of none.

    Swarm makes no second one. Who updates a service by force, or scales it, has it make more: what
    a user has in the first one isn't in those.
    """
    return min(tasks, key=made, default=None)


def end_of(tasks: Collection[Task], own: str = "") -> str | None:
    """Return how a server has ended, by all tasks of its service; None: it hasn't, or has none yet.

    JupyterHub shows it, so the engine's own words, which may name a machine, aren't in it.

    Args:
        tasks: those that Swarm remembers.
        own: Swarm's id of the server's own task; "": not known.
    """
    task = first(tasks)
    if task is None:
        return None
    if own not in ("", str(task.get("ID"))):
        return RESTARTED
    return state_of(task) if is_terminal(task) else None


def made(task: Task) -> tuple[float, str]:
    """Return what orders tasks by when they were made. Their index is that of the last change."""
    return seconds_of(task.get("CreatedAt")) or 0.0, str(task.get("ID"))


def run_of(task: Task) -> ServerRun:
    """Return when a task's container ran: Swarm keeps the time of a task's last change alone."""
    status, state = task.get("Status") or {}, state_of(task)
    at = seconds(status.get("Timestamp"))
    if state == "running":
        return ServerRun(started=at)
    if not is_terminal(task) or never_ran(task):
        return ServerRun()
    code = (status.get("ContainerStatus") or {}).get("ExitCode")
    return ServerRun(ended=at, exit_code=code if isinstance(code, int) else None)


def words_of(task: Task) -> str:
    """Return why a task waits or has ended, in Swarm's own words on one line; "" if unknown."""
    status = task.get("Status") or {}
    words = status.get("Err") or status.get("Message") or ""
    return " ".join(str(words).split()).rstrip(".")[:500]


def is_contested(task: Task) -> bool:
    """Return whether a task waits for something that another service has on its node."""
    return state_of(task) in WAITING and INSUFFICIENT in words_of(task)


def is_refused(task: Task) -> bool:
    """Return whether a task waits as no node takes it: it is down, drained, or another's."""
    words = words_of(task)
    return state_of(task) in WAITING and "no suitable node" in words and not is_contested(task)


def never_ran(task: Task) -> bool:
    """Return whether a task has ended before its program could begin."""
    state = state_of(task)
    return state == "rejected" or (
        state == "failed" and "starting container failed" in words_of(task)
    )


def lacks_network(task: Task) -> bool:
    """Return whether a task has never run as its node couldn't join the servers' network.

    An engine that was killed finds its old interfaces there, and removes them as it fails.
    """
    return never_ran(task) and "network sandbox join failed" in words_of(task)


def explain_refusal(task: Task, node: str) -> str:
    """Return why a task has never run, as a sentence for its user.

    Args:
        task: one that is rejected, has ended, or waits for its node.
        node: the name of its node.
    """
    words = words_of(task)
    said = MachineText(words, without(words, node))
    if is_refused(task) and "not available" in words:
        return MachineText(
            lazy_gettext(
                "Machine %(node)s takes no servers now. An administrator can see why with "
                "docker node ls.",
                node=node,
            ),
            lazy_gettext(
                "The machine takes no servers now. An administrator can see why with docker node "
                "ls."
            ),
        )
    if re.search("no such image|pull access denied|manifest unknown", words, re.IGNORECASE):
        return MachineText(
            lazy_gettext("The image isn't on machine %(node)s: %(words)s.", node=node, words=said),
            lazy_gettext("The image isn't on the machine: %(words)s.", words=said),
        )
    if "no space left" in words:
        return MachineText(
            lazy_gettext("The disk of machine %(node)s is full: %(words)s.", node=node, words=said),
            lazy_gettext("The disk of the machine is full: %(words)s.", words=said),
        )
    return MachineText(
        lazy_gettext("Machine %(node)s refused: %(words)s.", node=node, words=said),
        lazy_gettext("The machine refused: %(words)s.", words=said),
    )


def without(words: str, node: str) -> str:
    """Return an engine's words without the name of a machine."""
    return re.sub(re.escape(node), "…", words, flags=re.IGNORECASE) if node else words


def exit_code(task: Task) -> int | None:
    """Return the exit status of a task's program; None if it isn't known."""
    code = ((task.get("Status") or {}).get("ContainerStatus") or {}).get("ExitCode")
    return code if isinstance(code, int) else None


def explain_end(
    task: Task | None, now: float, node: str = "", memory: int = 0, cause: str = ""
) -> str:
    """Return why a server has ended that nobody on its hub stopped, as sentences for its user.

    Args:
        task: its task; None: its service is gone.
        now: the time, in seconds since the epoch.
        node: the name of its node.
        memory: its limit of memory, in bytes; 0: none.
        cause: why Swarm has ended it, one of the rules above; "" if it hasn't, or that isn't known.
    """
    state = state_of(task) if task else ""
    code = exit_code(task) if task else None
    time = clock_time((task and _ended(task)) or now)
    if state == "orphaned":
        return MachineText(
            lazy_gettext(
                "Your server is given up since %(time)s: its machine %(node)s has been away for "
                "too long, or was removed from the Swarm. Your files are kept.",
                time=time,
                node=node,
            ),
            lazy_gettext(
                "Your server is given up since %(time)s: its machine has been away for too long, "
                "or was removed from the Swarm. Your files are kept.",
                time=time,
            ),
        )
    if cause and (state != "failed" or code is None or code in FROM_OUTSIDE):
        return _explain_cause(cause, time, node)
    if state == "failed" and code == KILLED and memory:
        return lazy_gettext(
            "Your server ended at %(time)s: it was killed, as where its memory of %(size)s is "
            "full. Your files are kept.",
            time=time,
            size=memory_words(memory),
        )
    if state == "complete":
        return lazy_gettext(
            "Your server ended at %(time)s: it was shut down from within. Your files are kept.",
            time=time,
        )
    if state != "failed" or code is None or code in FROM_OUTSIDE:
        return lazy_gettext(
            "Your server ended at %(time)s: it was stopped or removed, as by a restart of its "
            "machine or its Docker Engine. Your files are kept.",
            time=time,
        )
    return lazy_gettext(
        "Your server ended at %(time)s: its program stopped (exit %(code)s). Your files are kept.",
        time=time,
        code=code,
    )


def _explain_cause(cause: str, time: Any, node: str) -> str:
    if cause == AWAY:
        return MachineText(
            lazy_gettext(
                "Your server ended at %(time)s: its machine %(node)s was out of reach for too "
                "long, and Docker Swarm ends what ran on such a machine. Your files are kept.",
                time=time,
                node=node,
            ),
            lazy_gettext(
                "Your server ended at %(time)s: its machine was out of reach for too long, and "
                "Docker Swarm ends what ran on such a machine. Your files are kept.",
                time=time,
            ),
        )
    if cause == DRAINED:
        return MachineText(
            lazy_gettext(
                "Your server ended at %(time)s: an administrator has emptied its machine %(node)s. "
                "Your files are kept.",
                time=time,
                node=node,
            ),
            lazy_gettext(
                "Your server ended at %(time)s: an administrator has emptied its machine. Your "
                "files are kept.",
                time=time,
            ),
        )
    if cause == RESTARTED:
        return lazy_gettext(
            "Your server ended at %(time)s: somebody restarted it in the Swarm by hand. Your files "
            "are kept.",
            time=time,
        )
    return lazy_gettext(
        "Your server ended at %(time)s: somebody removed it from the Swarm by hand. Your files are "
        "kept.",
        time=time,
    )


def away_words(node: str) -> str:
    """Return what becomes of a server whose machine is away, for its user."""
    return MachineText(
        lazy_gettext(
            "Machine %(node)s, on which your server runs, is out of reach. When it comes back, "
            "Docker Swarm ends the server. You can stop it now and start another one; your files "
            "are kept.",
            node=node,
        ),
        lazy_gettext(
            "The machine on which your server runs is out of reach. When it comes back, Docker "
            "Swarm ends the server. You can stop it now and start another one; your files are kept."
        ),
    )


def _ended(task: Task) -> float | None:
    return seconds_of((task.get("Status") or {}).get("Timestamp"))


def seconds_of(moment: Any) -> float | None:
    """Return a time of Swarm's, "2030-01-31T12:00:00.123456789Z", in seconds since the epoch."""
    text = str(moment or "")
    if text.startswith("0001"):
        return None
    whole, _, rest = text[:40].rstrip("Z").partition(".")
    try:
        return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")
    except ValueError:
        return None


def address_of(task: Task, network: str) -> str:
    """Return the address of a task in a network, by the network's name or id; "" if it has none."""
    for attachment in task.get("NetworksAttachments") or []:
        about = attachment.get("Network") or {}
        if network in (about.get("ID"), (about.get("Spec") or {}).get("Name")):
            for address in attachment.get("Addresses") or []:
                return str(address).partition("/")[0]
    return ""
