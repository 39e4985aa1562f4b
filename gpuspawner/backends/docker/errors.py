"""Explanations of errors of the engine and of NVML, as sentences for users."""

from __future__ import annotations

import docker.errors
import requests.exceptions

from ...errors import GPUSpawnerError
from ...gpus.nvml import InventoryError
from ...i18n.lazy_text import join_sentences, lazy_gettext

# The errors of an engine that can't be reached, or refuses.
UNREACHABLE = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    ConnectionError,
)


class Misconfigured(GPUSpawnerError):
    """What the configuration says that a container is, docker-py refuses: no engine was asked.

    `str()` is a sentence for the user.

    Args:
        words: docker-py's own.
        setting: the spawner's trait that is at fault; "" where that can't be told.
    """

    def __init__(self, words: str, setting: str = "") -> None:
        where = f"c.GPUSpawner.{setting}: {words}" if setting else words
        super().__init__(_misconfigured(where))
        self.words = words
        self.setting = setting


def refuses_configuration(error: BaseException) -> bool:
    """Return whether docker-py raised an error by itself: no engine was asked, none is away.

    Its plain `DockerException` means either: that it can't reach the engine, for which it names a
    cause, or that it doesn't take a value.
    """
    if isinstance(error, docker.errors.APIError) or not isinstance(
        error, docker.errors.DockerException
    ):
        return False
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, (requests.exceptions.RequestException, OSError)):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def explain(error: BaseException) -> str:
    """Return what an error of the engine means and what to do, as a sentence or two."""
    if isinstance(error, docker.errors.ImageNotFound):
        return lazy_gettext(
            "The image isn't on this machine: %(words)s.", words=engine_message(error)
        )
    if isinstance(error, docker.errors.APIError):
        return _explain_api_error(error)
    if isinstance(error, requests.exceptions.Timeout):
        return lazy_gettext("The Docker Engine of the GPU machine didn't answer in time.")
    if refuses_configuration(error):
        return _misconfigured(on_one_line(error))
    if isinstance(error, UNREACHABLE):
        return lazy_gettext(
            "The Docker Engine of the GPU machine can't be reached. An administrator can mend it."
        )
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def explain_read_error(error: BaseException) -> str:
    """Return why the nodes or leases couldn't be read."""
    return str(error) if isinstance(error, InventoryError) else explain(error)


def explain_unknown(error: BaseException) -> str:
    """Return why the nodes or leases couldn't be read, and that nothing is handed out."""
    return join_sentences(
        explain_read_error(error), lazy_gettext("What can't be read isn't handed out.")
    )


def _explain_api_error(error: docker.errors.APIError) -> str:
    words = engine_message(error)
    if "could not select device driver" in words:
        return lazy_gettext(
            "The Docker Engine can't hand out GPUs: the NVIDIA Container Toolkit isn't installed, "
            "or the engine wasn't restarted since."
        )
    if error.status_code == 409 and "already in use by container" in words:
        return lazy_gettext(
            "Another hub or another server has this server's container name. An administrator can "
            "give each hub its own c.DockerSpawner.prefix."
        )
    if "no space left" in words:
        return lazy_gettext("The GPU machine's disk is full: %(words)s.", words=words)
    return lazy_gettext("The Docker Engine refused: %(words)s.", words=words)


def engine_message(error: docker.errors.APIError) -> str:
    """Return the engine's error message, on one line of at most 500 characters."""
    words = error.explanation or str(error)
    if isinstance(words, bytes):
        words = words.decode("utf-8", "replace")
    return on_one_line(words)


def on_one_line(words: object) -> str:
    """Return an error's words as a part of a sentence."""
    return " ".join(str(words).split()).rstrip(".")[:500]


def _misconfigured(words: str) -> str:
    return lazy_gettext(
        "The hub's configuration of servers is wrong: %(words)s. An administrator can mend it.",
        words=words,
    )
