"""Why leases end: the words of the store, and for people."""

from __future__ import annotations

from typing import Final

from ..i18n.lazy_text import lazy_gettext
from ..leases.server_run import ServerRun

USER: Final = "user"
ADMINISTRATOR: Final = "administrator"
INSTRUCTOR: Final = "instructor"
SERVICE: Final = "service"
HUB: Final = "hub"
TIME: Final = "time limit"
IDLE: Final = "idle GPUs"
SWITCHED: Final = "switched"
GIVEN_BACK: Final = "given back"
FAILED: Final = "start failed"
ORPHAN: Final = "unknown to the hub"
MEMORY: Final = "out of memory"
KILLED: Final = "killed"
EXITED: Final = "exited"
VANISHED: Final = "vanished"

# Word -> what people read.
WHYS = {
    USER: lazy_gettext("stopped by its user"),
    ADMINISTRATOR: lazy_gettext("stopped by an administrator"),
    INSTRUCTOR: lazy_gettext("stopped by an instructor"),
    SERVICE: lazy_gettext("stopped by a service, such as one that culls idle servers"),
    HUB: lazy_gettext("stopped by JupyterHub"),
    TIME: lazy_gettext("its time was over"),
    IDLE: lazy_gettext("its GPUs did nothing"),
    SWITCHED: lazy_gettext("restarted with other GPUs"),
    GIVEN_BACK: lazy_gettext("GPUs given back"),
    FAILED: lazy_gettext("its start failed"),
    ORPHAN: lazy_gettext("stopped, as JupyterHub didn't know it"),
    MEMORY: lazy_gettext("ended, as its memory was full"),
    KILLED: lazy_gettext("ended from outside"),
    EXITED: lazy_gettext("ended by itself"),
    VANISHED: lazy_gettext("gone, and nothing says why"),
}

# What a program ends with on SIGKILL and SIGTERM, and what an engine notes if it wasn't there.
FROM_OUTSIDE = (137, 143, 255)

# Rule of a stop in the audit log -> why the lease ended.
OF_RULE = {
    "time limit": TIME,
    "idle GPUs": IDLE,
    "an administrator": ADMINISTRATOR,
    "an instructor": INSTRUCTOR,
    "switched": SWITCHED,
    "given back": GIVEN_BACK,
}


def why_of(noted: str, run: ServerRun | None) -> str:
    """Return why a lease ended.

    Args:
        noted: why the hub has ended it; "" where it hasn't.
        run: when its server ran, as its backend knows it.
    """
    if noted in WHYS:
        return noted
    if run is None or (run.ended is None and run.exit_code is None):
        return VANISHED
    if run.out_of_memory:
        return MEMORY
    return KILLED if run.exit_code in FROM_OUTSIDE else EXITED
