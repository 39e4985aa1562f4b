"""What ends a spawn, as the exceptions that JupyterHub shows its users, each counted once.

Apart from `errors`, so that the command line needn't load JupyterHub for its words.
"""

from __future__ import annotations

import html
from typing import Any

from tornado import web

from ..errors import Refused, Unknown
from ..i18n.languages import ENGLISH, Language
from ..i18n.lazy_text import lazy_gettext, together
from ..leases.audit_log import one_line
from . import metrics

try:
    from jupyterhub.spawner import SpawnException
except ImportError:  # JupyterHub 5

    class SpawnException(web.HTTPError):  # type: ignore[no-redef]
        """What JupyterHub 6 raises where a rule, not a fault, prevents a spawn."""

        def __init__(self, message: str, *, reason: str, status_code: int = 400) -> None:
            super().__init__(status_code, message)
            self.message = message


def refused(error: Refused | Unknown, language: Language = ENGLISH) -> web.HTTPError:
    """Return the exception that shows a user why their request isn't granted, and count it.

    Args:
        error: that.
        language: the user's, if it is known; the log has English.
    """
    reason, status = "unknown", 503
    if isinstance(error, Refused):
        reason, status = error.reason, error.status
    metrics.REFUSALS.labels(reason).inc()
    sentence = str(error)
    # The hub logs it, and a name may be in it.
    answer = SpawnException(one_line(sentence), reason=reason, status_code=status)
    return _shown(answer, language.say(sentence))


def failure(sentence: str, status: int = 500) -> web.HTTPError:
    """Return the exception that shows a user a sentence where something broke."""
    return _shown(web.HTTPError(status, "%s", one_line(sentence)), sentence)


class StartTimeout(TimeoutError):
    """A start that took longer than `start_timeout`, with the words that the user reads."""

    def __init__(self, seconds: float, last_lines: list[str]) -> None:
        sentence = lazy_gettext(
            "The server did not start within %(seconds)s seconds.", seconds=f"{seconds:g}"
        )
        super().__init__(sentence)
        _show_with_lines(self, sentence, last_lines)


def died(code: int | None, last_lines: list[str]) -> web.HTTPError:
    """Return the exception for a container that ended before its server answered.

    Args:
        code: its exit status; None where it isn't known.
        last_lines: the end of its output.
    """
    if code is None:
        sentence = lazy_gettext("The server stopped while starting.")
    elif code == 137:
        sentence = lazy_gettext("The server stopped while starting (exit 137, out of memory?).")
    else:
        sentence = lazy_gettext("The server stopped while starting (exit %(code)s).", code=code)
    return _show_with_lines(web.HTTPError(500, "%s", sentence), sentence, last_lines)


def _show_with_lines(error: Any, sentence: str, lines: list[str]) -> Any:
    if not lines:
        return _shown(error, sentence)
    sentence = together(sentence, lazy_gettext("Its last words:"))
    error.jupyterhub_message = "\n".join([sentence, *lines])
    # The pages show a message in one paragraph, which would run the lines together.
    words = html.escape("\n".join(lines))
    error.jupyterhub_html_message = f"<p>{html.escape(sentence)}</p><pre>{words}</pre>"
    # For our own page, which says it in its reader's language.
    error.sentence, error.last_lines = sentence, lines
    return error


def _shown(error: Any, sentence: str) -> Any:
    # ref: jupyterhub.utils.format_exception, which would show str(error) otherwise
    error.jupyterhub_message = sentence
    return error
