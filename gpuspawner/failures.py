"""What went wrong, in a sentence: no traceback reaches a page."""

from __future__ import annotations

import docker.errors
import requests.exceptions
from tornado import web

try:
    from jupyterhub.spawner import SpawnException
except ImportError:  # JupyterHub 5

    class SpawnException(web.HTTPError):  # type: ignore[no-redef]
        """What JupyterHub 6 raises where a rule, not a fault, prevents a spawn."""

        def __init__(self, message: str, *, reason: str, status_code: int = 400) -> None:
            super().__init__(status_code, message)
            self.message = message


def refusal(sentence: str, reason: str, status: int) -> web.HTTPError:
    """Return the exception that shows a user a sentence where a rule says no.

    Args:
        sentence: what the user reads, on the page and over REST.
        reason: one word for the hub's metrics.
        status: HTTP status: 400 malformed, 403 over a limit, 503 not now.
    """
    return _shown(SpawnException(sentence, reason=reason, status_code=status), sentence)


def failure(sentence: str, status: int = 500) -> web.HTTPError:
    """Return the exception that shows a user a sentence where something broke."""
    return _shown(web.HTTPError(status, "%s", sentence), sentence)


def _shown(error: web.HTTPError, sentence: str) -> web.HTTPError:
    # ref: jupyterhub.utils.format_exception, which would show str(error) otherwise
    error.jupyterhub_message = sentence  # type: ignore[attr-defined]
    return error


def explain(error: BaseException) -> str:
    """Say what an error of the engine means, and what to do, in a sentence or two."""
    if isinstance(error, docker.errors.ImageNotFound):
        return f"The image isn't on this machine: {_said(error)}."
    if isinstance(error, docker.errors.APIError):
        return _explain_api_error(error)
    unreachable = (docker.errors.DockerException, requests.exceptions.ConnectionError, OSError)
    if isinstance(error, requests.exceptions.Timeout | TimeoutError):
        return "The Docker Engine of the GPU machine didn't answer in time."
    if isinstance(error, unreachable):
        return (
            "The Docker Engine of the GPU machine can't be reached. An administrator can mend it."
        )
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _explain_api_error(error: docker.errors.APIError) -> str:
    said = _said(error)
    if "could not select device driver" in said:
        return (
            "The Docker Engine can't hand out GPUs: the NVIDIA Container Toolkit isn't installed, "
            "or the engine wasn't restarted since."
        )
    if "no space left" in said:
        return f"The GPU machine's disk is full: {said}."
    return f"The Docker Engine refused: {said}."


def _said(error: docker.errors.APIError) -> str:
    said = error.explanation or str(error)
    if isinstance(said, bytes):
        said = said.decode("utf-8", "replace")
    return " ".join(str(said).split()).rstrip(".")[:500]
