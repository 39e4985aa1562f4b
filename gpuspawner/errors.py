"""What keeps a request from its GPUs, or a server from its start: one family.

`hub.http_errors` makes what JupyterHub shows of them, and counts them; nothing else does.
"""

from __future__ import annotations


class GPUSpawnerError(Exception):
    """Of all of these. `str()` is a sentence."""


class Refused(GPUSpawnerError):
    """A request that isn't granted. `str()` is for its user: what they asked for, and the limit.

    Args:
        sentence: that.
        reason: one word for the hub's metrics: "choice", what was asked for can't be; "limit", the
            user or a group holds as much as it may; "no_gpu", too few are free now.
        status: HTTP status, which says whose doing it is: 400 a malformed choice, 403 one over a
            limit, 409 not as things are, 503 not now.
    """

    def __init__(self, sentence: str, reason: str = "choice", status: int = 400) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.status = status


class Unknown(GPUSpawnerError):
    """The engine or NVML couldn't be read, and unknown is never free. `str()` is for the user."""


class StartAgain(GPUSpawnerError):
    """This try to start a server can't go on, and another one may. `str()` is for the log."""


class Contested(StartAgain):
    """Another hub's server has one of our GPUs, and ours is the one to give way."""
