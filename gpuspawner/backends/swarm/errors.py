"""Explanations of errors of a Swarm, as sentences for users."""

from __future__ import annotations

import docker.errors

from ...errors import GPUSpawnerError
from ...i18n.lazy_text import join_sentences, lazy_gettext
from ..docker import errors as engine_errors
from .cluster import EngineTooOld

UNREACHABLE = engine_errors.UNREACHABLE
# What a manager says of a change that too few managers could decide on: one that knows of no
# leader, one that has led until then, and one that leads still.
# ref: https://docs.docker.com/engine/swarm/admin_guide/
UNDECIDED = ("does not have a leader", "lost leader status", "context deadline exceeded")


def is_out_of_sequence(error: BaseException) -> bool:
    """Return whether a service has changed since it was read, so that the update did nothing."""
    return isinstance(error, docker.errors.APIError) and "out of sequence" in _words(error)


def is_taken(error: BaseException) -> bool:
    """Return whether another service has the name."""
    return isinstance(error, docker.errors.APIError) and "name conflicts" in _words(error)


def _words(error: docker.errors.APIError) -> str:
    return engine_errors.engine_message(error)


def explain(error: BaseException) -> str:
    """Return what an error of the Swarm means and what to do, as a sentence or two."""
    if isinstance(error, GPUSpawnerError):
        return str(error)
    if isinstance(error, docker.errors.APIError):
        words = _words(error)
        if any(each in words for each in UNDECIDED):
            return lazy_gettext(
                "The Swarm has no leader: too few of its managers answer. Servers that run go on. "
                "An administrator can see which are away with docker node ls."
            )
        if "not a swarm manager" in words:
            return lazy_gettext(
                "The hub's Docker Engine isn't a manager of a Swarm. An administrator can make it "
                "one with docker swarm init, or docker swarm join."
            )
        if is_taken(error):
            return lazy_gettext(
                "Another hub or another server has this server's service name. An administrator "
                "can give each hub its own c.DockerSpawner.prefix."
            )
    return engine_errors.explain(error)


def explain_unknown(error: BaseException) -> str:
    """Return why the nodes or leases couldn't be read, and that nothing is handed out."""
    if isinstance(error, EngineTooOld):
        return str(error)
    return join_sentences(explain(error), lazy_gettext("What can't be read isn't handed out."))
