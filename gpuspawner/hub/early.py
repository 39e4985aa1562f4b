"""The state of a hub that nobody has come to yet.

It is built with the hub's first spawner, which JupyterHub makes for the first user who comes or for
a server that runs. Until then services learn nothing of the queue, servers that the hub doesn't
know are looked for by nobody, and the log doesn't say why there are no GPUs.
"""

from __future__ import annotations

import asyncio
from typing import Any

from jupyterhub.app import JupyterHub

from ..leases.audit_log import one_line
from . import compat

# The event loop holds tasks only weakly.
_tasks: set[asyncio.Task[Any]] = set()


def begin_with_hub() -> None:
    """Have the hub that reads this configuration build its state as soon as it runs.

    Does nothing where no hub reads it, as in `gpuspawner doctor`.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if JupyterHub.initialized():
        application = JupyterHub.instance()
        task = loop.create_task(compat.first_spawner(application))
        _tasks.add(task)
        task.add_done_callback(lambda task: _ended(task, application.log))


def _ended(task: asyncio.Task[Any], log: Any) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()):
        log.warning("No server can be made: %s: %s", type(error).__name__, one_line(error))
