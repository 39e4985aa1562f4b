"""Where the home page's forms lead that ask for GPUs for a server that runs, or give them back."""

from __future__ import annotations

from typing import Any

from jupyterhub.handlers import BaseHandler
from jupyterhub.scopes import needs_scope
from jupyterhub.utils import url_path_join
from tornado import web

from ..choices import options
from ..errors import Refused
from ..gpus.model import Holder
from ..i18n.lazy_text import lazy_gettext
from ..leases import audit_log

# Below the hub's own path.
PATH = r"gpu-switch/([^/]+)(?:/([^/]+))?"


class SwitchHandler(BaseHandler):  # type: ignore[misc]  # JupyterHub isn't typed
    """One server's form. What is refused stands on the home page, to which it leads back."""

    @web.authenticated
    async def post(self, user_name: str, server_name: str | None = None) -> None:
        """Do what the form says."""
        await self._post(user_name=user_name, server_name=server_name or "")

    @needs_scope("servers")
    async def _post(self, user_name: str, server_name: str) -> None:
        user = self.find_user(user_name)
        if user is None:
            raise web.HTTPError(404)
        state = user.spawners[""].hub_state
        try:
            switch = state.switches.find(Holder(user.name, server_name))
        except Refused:  # the home page shows that it doesn't run
            switch = None
        if switch:
            try:
                await self._do(switch, self.get_body_argument("do", ""))
            except Refused as refusal:
                switch.tell(str(refusal))
        self.redirect(url_path_join(self.hub.base_url, "home"))

    async def _do(self, switch: Any, what: str) -> None:
        by = audit_log.user(self.current_user.name)
        if what == "ask":
            fields = self.request.body_arguments
            sent = {name: [value.decode("utf-8", "replace") for value in fields[name]]
                    for name in ("gpus", "model") if name in fields}  # fmt: skip
            asked = options.parse(options.from_fields(sent))
            await switch.ask(1 if asked.gpus is None else asked.gpus, asked.model, by, asked.kind)
        elif what == "leave":
            await switch.leave(by)
        elif what == "switch":
            await switch.switch(by)
        elif what == "give-back":
            await switch.give_back(by)
        else:
            raise Refused(lazy_gettext("That can't be done here."))
