"""Explanations of errors of the engine and of NVML, as sentences for users."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import docker.errors
import requests.exceptions

from ...errors import GPUSpawnerError
from ...gpus.nvml import InventoryError
from ...i18n.lazy_text import join_sentences, lazy_gettext
from ...i18n.phrases import clock_time, memory_words
from .injection import GENERATE, knows_no_cdi

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
    if 'could not select device driver "cdi"' in words:
        return knows_no_cdi()
    if is_cdi_failure(error):
        return lazy_gettext(
            "The Docker Engine's CDI devices don't fit the GPU machine: %(words)s. An "
            "administrator can make them anew: %(command)s",
            words=words,
            command=GENERATE,
        )
    if "could not select device driver" in words:
        return lazy_gettext(
            "The Docker Engine can't hand out GPUs: the NVIDIA Container Toolkit isn't installed, "
            "or the engine wasn't restarted since."
        )
    if "nvidia-container-cli: detection error" in words:
        # ref: https://github.com/NVIDIA/k8s-device-plugin/issues/2038
        return lazy_gettext(
            "NVIDIA's hook gives no GPU to anybody while a GPU of this machine has fallen off the "
            "bus or doesn't answer: the GPU machine needs a reboot. Servers without a GPU start."
        )
    if error.status_code == 409 and "already in use by container" in words:
        return lazy_gettext(
            "Another hub or another server has this server's container name. An administrator can "
            "give each hub its own c.DockerSpawner.prefix."
        )
    if name := missing_network(error):
        return lazy_gettext(
            "The servers' network %(name)s isn't on the GPU machine any more. An administrator can "
            "make it anew.",
            name=name,
        )
    if "no space left" in words:
        return lazy_gettext("The GPU machine's disk is full: %(words)s.", words=words)
    return lazy_gettext("The Docker Engine refused: %(words)s.", words=words)


def gives_no_gpus(error: Exception) -> bool:
    """Return whether the engine can't give a container GPUs in the way that it was asked to."""
    return isinstance(error, docker.errors.APIError) and (
        "could not select device driver" in engine_message(error) or is_cdi_failure(error)
    )


def is_cdi_failure(error: docker.errors.APIError) -> bool:
    """Return whether the engine couldn't add a CDI device to a container."""
    return "CDI device" in engine_message(error)


# What a program ends with on SIGKILL and SIGTERM, and what the engine notes if it wasn't there.
FROM_OUTSIDE = (137, 143, 255)


def explain_end(state: Mapping[str, Any], now: float, memory: int = 0) -> str:
    """Return why a server has ended that nobody on its hub stopped, as sentences for its user.

    Args:
        state: `State` of the container's inspection; empty where it is gone.
        now: the time, in seconds since the epoch.
        memory: its limit of memory, in bytes; 0: none.
    """
    code, time = state.get("ExitCode"), clock_time(_finished(state) or now)
    if is_out_of_memory(state):
        if not memory:
            return lazy_gettext(
                "Your server ended at %(time)s: this machine's memory was full. Your files are "
                "kept.",
                time=time,
            )
        return lazy_gettext(
            "Your server ended at %(time)s: its memory of %(size)s was full. Your files are kept.",
            time=time,
            size=memory_words(memory),
        )
    if code == 0:
        return lazy_gettext(
            "Your server ended at %(time)s: it was shut down, from within or with the Docker "
            "Engine. Your files are kept.",
            time=time,
        )
    if not state or code in FROM_OUTSIDE:
        return lazy_gettext(
            "Your server ended at %(time)s: its container was stopped or removed, as by a restart "
            "of the GPU machine or its Docker Engine. Your files are kept.",
            time=time,
        )
    return lazy_gettext(
        "Your server ended at %(time)s: its program stopped (exit %(code)s). Your files are kept.",
        time=time,
        code=code,
    )


def is_out_of_memory(state: Mapping[str, Any]) -> bool:
    """Return whether a container ended for lack of memory, from `State` of its inspection."""
    return bool(state.get("OOMKilled")) and state.get("ExitCode") == 137


def _finished(state: Mapping[str, Any]) -> float | None:
    text = str(state.get("FinishedAt", ""))[:19]  # to the second, in UTC
    if not text or text.startswith("0001"):
        return None
    try:
        return datetime.fromisoformat(f"{text}+00:00").timestamp()
    except ValueError:
        return None


def missing_network(error: Exception) -> str:
    """Return the name of the network that the engine doesn't find; "" for other errors."""
    if not isinstance(error, docker.errors.APIError):
        return ""
    found = re.search(r"network (\S+) not found", engine_message(error))
    return found[1] if found else ""


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
