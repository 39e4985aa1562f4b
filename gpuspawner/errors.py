"""What keeps a request from its GPUs, or a server from its start: one family.

`hub.http_errors` makes what JupyterHub shows of them, and counts them; nothing else does.
"""

from __future__ import annotations


class GPUSpawnerError(Exception):
    """Of all of these. `str()` is a sentence."""


class Unknown(GPUSpawnerError):
    """The engine or NVML couldn't be read, and unknown is never free. `str()` is for the user."""


class StartAgain(GPUSpawnerError):
    """This try to start a server can't go on, and another one may. `str()` is for the log."""


class Contested(StartAgain):
    """Another hub's server has one of our GPUs, and ours is the one to give way."""
