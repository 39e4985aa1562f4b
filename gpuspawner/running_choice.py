"""The choice that a running server would be started anew with, with other GPUs, and its check."""

from __future__ import annotations

from typing import Any

from tornado import web

from .choices.check import CheckedChoice
from .errors import Refused, Unknown
from .gpus.model import Request
from .hub import compat
from .i18n.lazy_text import lazy_gettext
from .leases.labels import LABEL_IMAGE

NOT_RESTARTED = lazy_gettext("The server couldn't be restarted: the hub's log says why.")


class RunningChoice:
    """The choice of one server that runs.

    Args:
        spawner: the server's `BaseGPUSpawner`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner

    async def with_gpus(
        self, gpus: int, model: str | None, kind: str | None = None
    ) -> dict[str, Any]:
        """Return the choice that the server runs with, with other GPUs; None: any, or the usual."""
        spawner = self._spawner
        running = spawner.user_options or compat.saved_options(spawner) or {}
        choice = {key: running[key] for key in running if key not in ("gpus", "model", "kind")}
        choice["gpus"] = gpus
        if model:
            choice["model"] = model
        if kind:
            choice["kind"] = kind
        if spawner.limits().image_can_be_chosen and (image := await self._image()):
            choice["image"] = image  # the default may be another one by now
        return choice

    async def _image(self) -> str:
        """Return the key of the image version that the server runs; "" if that isn't known."""
        spawner = self._spawner
        if request := spawner.attempt.request:
            return str(request.image)
        try:
            servers = await spawner.ledger.servers()
        except Exception as error:
            raise Refused(spawner.explain_unknown(error), "no_gpu", 503) from error
        found = (each.labels.get(LABEL_IMAGE) for each in servers if each.id == spawner.server_id)
        return str(next(found, None) or "")

    async def request(self, choice: dict[str, Any]) -> Request:
        """Return the request of a choice that is made now; raises Refused if it can't be had."""
        try:
            return (await self.check(choice)).request
        except Unknown as error:
            raise as_refusal(error) from error

    async def check(self, choice: dict[str, Any]) -> CheckedChoice:
        """Check a choice as that of a start, by the rules that apply to the server's user now."""
        spawner = self._spawner
        await spawner.ensure_rules_applied()
        try:
            overrides = await spawner.overrides_of_groups()
            image = spawner.image
            with spawner.overrides.without_hooks():
                spawner.apply_overrides_of(overrides)
                applicant = spawner.applicant()
            spawner.overrides.choose("image", image)
        except web.HTTPError as error:  # an invalid override, which has been logged
            raise as_refusal(error) from error
        checked: CheckedChoice = await spawner.check_choice(choice, applicant)
        return checked


def as_refusal(error: Exception) -> Refused:
    """Return an error as the refusal of a request."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Unknown):
        return Refused(str(error), "no_gpu", 503)
    words = getattr(error, "jupyterhub_message", "") if isinstance(error, web.HTTPError) else ""
    return Refused(words or NOT_RESTARTED, "no_gpu", 503)
