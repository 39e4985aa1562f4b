"""What JupyterHub's pages say of one server: for the templates."""

from __future__ import annotations

import re
import time
from typing import Any, Literal
from urllib.parse import urlencode, urljoin

from jupyterhub.utils import url_path_join
from markupsafe import Markup

from ..check_in import CheckIn
from ..choices.course_choice import within_course
from ..choices.slot_hours import within_hours
from ..gpus.allocation import (
    gpu_count_phrase,
    kind_shares,
    model_counts,
    most_on_one_node,
    names_phrase,
    offered_nodes,
)
from ..gpus.machine_names import MachineNames
from ..gpus.model import WHOLE
from ..gpus.names import gpu_names
from ..i18n.languages import Language
from ..i18n.phrases import moment
from ..leases.endings import AnnouncedStop
from ..leases.memory_share import over_words
from ..scheduling.phrases import asked_words, while_away_words
from . import compat

# The server in which a user can work without GPUs while another one waits for them.
MEANWHILE = "without-gpu"
# The service that the dashboard is, in the shipped configuration.
DASHBOARD = "gpus"
# With this header the progress page says that its user is about to give the start up for another
# choice; no other site can send it. How long that may take.
CHANGE_HEADER = "X-GPUSpawner-Change"
CHANGE_SECONDS = 30.0
# The argument of the progress page by which its user says that they are there: a turn's token.
PRESENT = "present"
State = Literal["running", "starting", "waiting", "stopping", "stopped"]
# As in docs/how-to/ssh.md.
SSH_LINES = """\
Host {alias}
    User jovyan
    ProxyCommand websocat --binary -H="Authorization: token TOKEN" asyncstdio: {url}"""


class ServerPage:
    """The facts of one server for the templates in `hub/templates`.

    Args:
        spawner: the server's `BaseGPUSpawner`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner

    @property
    def name(self) -> str:
        """Its name; "" for the default server."""
        return str(self._spawner.name)

    @property
    def title(self) -> str:
        """What its user calls it; "" for the default server."""
        # JupyterHub 5 has no such names.
        return str(getattr(self._spawner, "display_name", "") or self.name) if self.name else ""

    @property
    def notice(self) -> str:
        """Why it was stopped, as a sentence; "" if its user stopped it, or it runs."""
        return "" if self._spawner.active else str(self._spawner.notice)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The progress events of its start so far."""
        steps: list[dict[str, Any]] = self._spawner.progress_steps.so_far()
        return steps

    @property
    def place(self) -> dict[str, Any] | None:
        """The facts of its place in the queue, as in its progress events; None: it doesn't wait."""
        facts: dict[str, Any] = self.steps[-1]["gpuspawner"] if self.steps else {}
        waits = self._spawner.attempt.waiting_since is not None
        return facts if waits and facts.get("place") else None

    @property
    def state(self) -> State:
        """What it does now."""
        spawner = self._spawner
        if spawner.pending == "stop":
            return "stopping"
        if spawner.pending == "spawn":
            return "waiting" if self.place else "starting"
        return "running" if spawner.server is not None else "stopped"

    @property
    def image(self) -> str:
        """What users call its image, or that of its start; "" if that isn't known."""
        return str(self._spawner.image_title)

    async def gpus(self) -> str:
        """Return its GPUs by the names that the dashboard has for them; "" if it holds none."""
        held = self._spawner.lease.units
        view, _ = await self._spawner.hub_state.open_forms.recent_view()
        known = [gpu for gpu in view.gpus if gpu.id in held] if view else []
        if len(known) < len(held):
            return names_phrase(held)
        return gpu_names(known, view.machines if view else MachineNames(()))

    @property
    def until(self) -> float | None:
        """When its time ends, in seconds since the epoch; None: never, or it is off."""
        until: float | None = self._spawner.lease.until if self._spawner.lease.units else None
        return until

    @property
    def announced(self) -> AnnouncedStop | None:
        """The stop that an administrator has announced; None: none."""
        stop: AnnouncedStop | None = self._spawner.lease.announced
        return stop

    @property
    def trouble(self) -> str:
        """What is wrong with its GPUs or machine, as a sentence; "" if nothing is, or it is off."""
        words: str = self._spawner.lease.trouble.words
        return words if self._spawner.active else ""

    @property
    def memory_words(self) -> str:
        """That it holds too much of a shared GPU's memory, as sentences; "" if it doesn't."""
        lease = self._spawner.lease
        return over_words(lease.memory, lease.guard_seconds)

    @staticmethod
    def moment(seconds: float, language: Language) -> Markup:
        """Return a time, in seconds since the epoch, as HTML."""
        return moment(seconds, language)

    def ssh_lines(self, static_url: Any) -> str:
        """Return the lines for `~/.ssh/config` that lead into it; "" if it offers no SSH.

        Args:
            static_url: the template's.
        """
        handler, spawner = compat.handler_of_page(static_url), self._spawner
        if not spawner.ssh_path or handler is None:
            return ""
        path = url_path_join(spawner.user.server_url(spawner.name), spawner.ssh_path)
        # SSH takes a per cent sign for one of its own placeholders.
        url = _websocket_url(handler, path).replace("%", "%%")
        return SSH_LINES.format(alias=_ssh_alias(spawner.name), url=url)

    @property
    def asked(self) -> str:
        """What its start was asked for, as a sentence; "" if that isn't known."""
        request = self._spawner.attempt.request
        return asked_words(request, self.image) if request else ""

    @property
    def while_away(self) -> str:
        """What happens to its request while its user is away, as a sentence."""
        request, spawner = self._spawner.attempt.request, self._spawner
        return while_away_words(request, 60 * spawner.check_in_minutes) if request else ""

    @property
    def check_in(self) -> CheckIn | None:
        """The turn that has come, if its user has to say that they are there; None: not now."""
        turn: CheckIn | None = self._spawner.attempt.check_in
        return turn

    def hear_of_presence(self, static_url: Any) -> str:
        """Note that its user is there, where their page says so. Return "", for the template.

        Args:
            static_url: the template's.
        """
        handler, turn = compat.handler_of_page(static_url), self.check_in
        if turn and handler is not None and handler.current_user is self._spawner.user:
            turn.confirm_by(handler.get_argument(PRESENT, ""))
        return ""

    def hear_of_change(self, static_url: Any) -> str:
        """Keep the place of who says by a header that they leave the queue to change their choice.

        A spawner isn't told who ends its start, and why. Return "", for the template.

        Args:
            static_url: the template's.
        """
        handler = compat.handler_of_page(static_url)
        if (
            handler is not None
            and CHANGE_HEADER in handler.request.headers
            and handler.current_user is self._spawner.user
        ):
            self._spawner.attempt.changing_until = time.monotonic() + CHANGE_SECONDS
        return ""

    def link_without_gpus(self) -> str:
        """Return the arguments of a link that starts a server like this one, without GPUs."""
        request, limits = self._spawner.attempt.request, self._spawner.limits()
        chosen = request and limits.image_can_be_chosen and request.image in limits.versions
        return urlencode({"opt-gpus": 0, **({"opt-image": request.image} if chosen else {})})

    async def meanwhile(self, static_url: Any) -> str:
        """Return the name of the server in which its user can work meanwhile; "": none.

        Args:
            static_url: the template's.
        """
        handler, spawner = compat.handler_of_page(static_url), self._spawner
        may = await compat.may_have_server(handler, spawner.user, MEANWHILE)
        return MEANWHILE if may and spawner.name != MEANWHILE else ""

    @property
    def switch(self) -> Any:
        """Its `GPUSwitch`: what it asks for while it runs, and its restart."""
        spawner = self._spawner
        return spawner.hub_state.switches.get(spawner.holder) or spawner.gpu_switch

    @property
    def can_give_back(self) -> bool:
        """Whether it has GPUs that its user can give back now."""
        return bool(self._spawner.lease.units) and not self.switch.is_restarting

    async def gpus_to_ask_for(self) -> tuple[int, list[tuple[str, str]], list[str]]:
        """Return what it can ask for while it runs.

        How many whole GPUs; which parts of one, each with its words; which models, if of several.
        """
        spawner = self._spawner
        view, _ = await spawner.hub_state.open_forms.recent_view()
        # Of the course that a choice means which names none, as its request does.
        of_course = within_course(None, spawner.limits())
        limits, nodes = within_hours(of_course, view.nodes if view else ())
        gpus = [
            gpu for node in offered_nodes(nodes, limits.models, limits.kinds) for gpu in node.gpus
        ]
        if not spawner.claim_minutes or spawner.lease.units:
            return 0, [], []
        whole = most_on_one_node(gpu for gpu in gpus if gpu.kind == WHOLE)
        allowed = limits.most_gpus()
        most = whole if allowed is None else min(whole, allowed)
        parts = [kind for kind in kind_shares(gpus) if kind != WHOLE]
        kinds = [(kind, gpu_count_phrase(1, kind=kind)) for kind in parts]
        models = list(model_counts(gpus))
        may_ask = allowed is None or allowed >= 1
        return most, kinds if may_ask else [], models if len(models) > 1 else []

    @property
    def dashboard(self) -> str:
        """Where browsers find the dashboard; "" if there is none."""
        return compat.url_of_service(self._spawner, DASHBOARD)


def _ssh_alias(name: str) -> str:
    """Return the name of a server for `ssh`: "gpus", or with the server's name after it."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")
    return f"gpus-{kept}" if kept else "gpus"


def _websocket_url(handler: Any, path: str) -> str:
    """Return the URL of a websocket on the host under which a page was opened.

    Args:
        handler: of the page.
        path: the path, or with `subdomain_host` a whole URL.
    """
    whole = urljoin(f"{handler.request.protocol}://{handler.request.host}", path)
    return whole.replace("http", "ws", 1)
