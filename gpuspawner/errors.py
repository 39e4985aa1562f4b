"""The exceptions of this package: refused requests and failed starts.

`hub.http_errors` converts them to the HTTP errors that JupyterHub shows, and counts them.
"""

from __future__ import annotations

from .i18n.lazy_text import lazy_gettext


class GPUSpawnerError(Exception):
    """The base class. `str()` is a sentence."""


class Refused(GPUSpawnerError):
    """A request was refused. `str()` is a sentence for its user.

    Args:
        sentence: what the user asked for, and why it is refused, in the words of the pages.
        reason: for the hub's metrics: "choice": the choice is invalid; "limit": the user or a
            group holds as many GPUs as they may; "no_gpu": too few GPUs are free now; "absent": its
            turn came, and nobody said that they were there.
        status: the HTTP status: 400 an invalid choice, 403 over a limit, 404 no such server or
            GPU, 409 not in this state, 503 not now.
        key: the key of the REST API whose value is refused; "" if it isn't that of one key.
        keyed: the sentence for who uses the REST API; "": the one for users, after the key.
    """

    def __init__(
        self,
        sentence: str,
        reason: str = "choice",
        status: int = 400,
        *,
        key: str = "",
        keyed: str = "",
    ) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.status = status
        self.key = key
        self._keyed = keyed

    @property
    def keyed(self) -> str:
        """The sentence for who uses the REST API, and for the log: with the keys that were sent."""
        if self._keyed or not self.key:
            return self._keyed or str(self)
        return lazy_gettext("%(key)s: %(sentence)s", key=self.key, sentence=str(self))


class Unknown(GPUSpawnerError):
    """The engine or NVML couldn't be read, so nothing is free. `str()` is a sentence for users."""


class StartAgain(GPUSpawnerError):
    """A try to start a server failed, and another one may succeed. `str()` is for the log."""

    # Whether the next try has the same GPUs; else it gets new ones, and may have to wait for them.
    keeps_gpus = True


class Contested(StartAgain):
    """Another hub's server has one of the GPUs, and ours has to give way."""

    keeps_gpus = False
