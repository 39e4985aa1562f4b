"""HTTP errors that JupyterHub shows users when a spawn is refused or fails.

Separate from `errors`, so that the command line doesn't import JupyterHub.
"""

from __future__ import annotations

import html
from typing import Any

from tornado import web

from ..errors import Refused, Unknown
from ..i18n.languages import ENGLISH, Language
from ..i18n.lazy_text import join_sentences, lazy_gettext
from ..leases.audit_log import one_line
from . import metrics

try:
    from jupyterhub.spawner import SpawnException
except ImportError:  # JupyterHub 5

    class SpawnException(web.HTTPError):  # type: ignore[no-redef]
        """JupyterHub 6's exception for a spawn that a rule prevents, not a fault."""

        def __init__(self, message: str, *, reason: str, status_code: int = 400) -> None:
            super().__init__(status_code, message)
            self.message = message


def refusal(
    error: Refused | Unknown, language: Language = ENGLISH, by_rest: bool = False
) -> web.HTTPError:
    """Return the HTTP error for a refused request, and count it in the metrics.

    Args:
        error: why it is refused.
        language: the user's language; the log is in English.
        by_rest: whether the request came by the REST API, so that the answer names its keys.
    """
    reason, status, keyed = "unknown", 503, str(error)
    if isinstance(error, Refused):
        reason, status, keyed = error.reason, error.status, error.keyed
    metrics.REFUSALS.labels(reason).inc()
    # The hub logs it, and a name may be in it.
    answer: Any = SpawnException(one_line(keyed), reason=reason, status_code=status)
    # Our own page says it in its reader's words and language, whoever has sent the request.
    answer.sentence = str(error)
    return _with_message(answer, language.say(keyed if by_rest else answer.sentence))


def sentence_of(error: BaseException) -> str:
    """Return what an error of a start says to the server's user; "" for one that says nothing."""
    own = getattr(error, "log_message", "") or "" if isinstance(error, web.HTTPError) else ""
    return str(getattr(error, "sentence", "") or getattr(error, "jupyterhub_message", "") or own)


def failure(sentence: str, status: int = 500) -> web.HTTPError:
    """Return the exception that shows a user a sentence where something broke."""
    return _with_message(web.HTTPError(status, "%s", one_line(sentence)), sentence)


class StartTimeout(TimeoutError):
    """The error for a start that took longer than `start_timeout`.

    Args:
        seconds: the timeout.
        last_lines: the end of the server's output.
    """

    def __init__(self, seconds: float, last_lines: list[str]) -> None:
        sentence = lazy_gettext(
            "The server did not start within %(seconds)s seconds.", seconds=f"{seconds:g}"
        )
        super().__init__(sentence)
        _with_last_lines(self, sentence, last_lines)


def container_died(
    code: int | None, last_lines: list[str], out_of_memory: bool = False
) -> web.HTTPError:
    """Return the HTTP error for a container that ended before its server answered.

    Args:
        code: its exit status; None if unknown.
        last_lines: the end of its output.
        out_of_memory: whether it was killed because it needed more memory than its limit.
    """
    if code is None:
        sentence = lazy_gettext("The server stopped while starting.")
    elif out_of_memory:
        sentence = lazy_gettext(
            "The server stopped while starting: it needed more memory than it may have."
        )
    else:
        sentence = lazy_gettext("The server stopped while starting (exit %(code)s).", code=code)
    return _with_last_lines(web.HTTPError(500, "%s", sentence), sentence, last_lines)


def _with_last_lines(error: Any, sentence: str, lines: list[str]) -> Any:
    if not lines:
        return _with_message(error, sentence)
    sentence = join_sentences(sentence, lazy_gettext("Its last words:"))
    error.jupyterhub_message = "\n".join([sentence, *lines])
    # JupyterHub's pages show the plain message in one paragraph, without line breaks.
    words = html.escape("\n".join(lines))
    error.jupyterhub_html_message = f"<p>{html.escape(sentence)}</p><pre>{words}</pre>"
    # For our own page, which translates the sentence.
    error.sentence, error.last_lines = sentence, lines
    return error


def _with_message(error: Any, sentence: str) -> Any:
    # ref: jupyterhub.utils.format_exception, which would show str(error) otherwise
    error.jupyterhub_message = sentence
    return error
