"""The check of a choice, shared by form, link and REST API, and its forecast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Refused, Unknown
from ..gpus.allocation import most_on_one_node, request_phrase
from ..gpus.model import WHOLE, Holder, Request, counted_in
from ..leases.ledger import Ledger, View
from ..scheduling.plan import QueuedRequest
from ..scheduling.queue import Queue, RequestLimits, held_by_other_servers, over_user_limit
from . import later, options
from .course_choice import within_course
from .forecast import Forecast
from .limits import Limits

EMPTY_VIEW = View()


@dataclass(frozen=True)
class Applicant:
    """The server that a choice is for, and the rules that apply to its user now.

    Args:
        holder: the server and its user.
        groups: the names of its user's groups.
        limits: the limits of the choice.
        request_limits: the limits of its request in the queue.
        others_allowed: whether unknown keys are allowed, for the administrator's own hooks.
        promised: for how long it was promised its GPUs before, in seconds, if it waits.
        home_node: the name of the node with its user's files; "": they are on all, or on none.
    """

    holder: Holder
    groups: frozenset[str]
    limits: Limits
    request_limits: RequestLimits
    others_allowed: bool = False
    promised: float | None = None
    home_node: str = ""


@dataclass(frozen=True)
class CheckedChoice:
    """A choice that passed the check.

    Args:
        request: what the choice asks for.
        image: its image reference; None: the administrator's `image` is used.
        safe_mode: whether the server is to start without what its user has set up at home.
        title: what users call the image.
        not_before: when the server is to start at the earliest, in seconds since the epoch; 0: at
            once.
    """

    request: Request
    image: str | None = None
    safe_mode: bool = False
    title: str = ""
    not_before: float = 0.0


async def check_choice(
    raw: Any, applicant: Applicant, ledger: Ledger, queue: Queue
) -> CheckedChoice:
    """Check a choice against the user's limits and the nodes.

    Args:
        raw: the choice as it was sent: any JSON value.
        applicant: the server that it is for.
        ledger: who holds what.
        queue: who waits.

    Raises:
        Refused: it can't be granted, now or later.
        Unknown: it asks for GPUs, and the nodes couldn't be read, or what its user has had.
    """
    if applicant.others_allowed and not applicant.limits.courses and isinstance(raw, Mapping):
        # Where there is no course, the key is the administrator's hooks', as any unknown one.
        raw = {key: each for key, each in raw.items() if key != "course"}
    choice = options.parse(raw, others_allowed=applicant.others_allowed)
    limits = within_course(choice.course, applicant.limits)
    key = options.image_key(choice, limits)
    view = EMPTY_VIEW
    if options.gpu_count(choice, limits) > 0:
        view = await ledger.read(except_for=applicant.holder)
        await queue.ensure_read(applicant.groups)
    request = _request(choice, applicant, queue, view)
    starts = later.not_before(choice.not_before, limits.ahead) if request.gpus else 0.0
    safe_mode, known = bool(choice.safe_mode), limits.versions.get(key)
    title = known.title or key if known else key
    if choice.image is None and not limits.has_catalogue:
        return CheckedChoice(request, None, safe_mode, title, starts)
    return CheckedChoice(request, known.image if known else key, safe_mode, title, starts)


def forecast_choice(
    choice: options.Choice, applicant: Applicant, queue: Queue, view: View
) -> Forecast:
    """Return the forecast of a choice, which is checked as if it were sent now.

    Args:
        choice: the choice.
        applicant: the server that it is for.
        queue: who waits.
        view: the nodes and the leases.
    """
    count = choice.gpus or 0
    try:
        request = _request(choice, applicant, queue, view)
        if request.gpus == 0:
            return Forecast("now")
        starts = later.not_before(choice.not_before, applicant.limits.ahead)
    except (Refused, Unknown) as error:
        return Forecast("no", count, refusal=str(error))
    groups, since = counted_in(applicant.groups, request.course), queue.join_time(applicant.holder)
    joining = QueuedRequest(applicant.holder, request, since, groups, starts)
    turn = queue.forecast(joining, applicant.request_limits, view)
    part = "" if request.kind == WHOLE else request_phrase(request)
    if turn.gpus:
        return Forecast("now", request.gpus, part=part, until=turn.until)
    if refusal := queue.refusal(request, applicant.request_limits, turn, view):
        return Forecast("no", count, refusal=refusal)
    fitting = [gpu for gpu in view.gpus if request.takes(gpu)]
    free = [gpu for gpu in fitting if gpu.state == "free"]
    return Forecast(
        "wait",
        count,
        turn,
        free=len(free),
        taken=all(gpu.state == "leased" for gpu in fitting),
        model=request.model or "",
        part=part,
        until=turn.until,
        scattered=most_on_one_node(free) < request.gpus <= len(free),
    )


def _request(choice: options.Choice, applicant: Applicant, queue: Queue, view: View) -> Request:
    request = options.request(choice, applicant.limits, view.nodes)
    request = replace(request, home_node=applicant.home_node)
    limit = applicant.request_limits.most_of_user(request)
    if limit is not None and request.gpus:
        # The queue would refuse it later: too many GPUs with those of the user's other servers.
        held = held_by_other_servers(applicant.holder, queue.claims(view.leases))
        if held + request.share > limit:
            raise over_user_limit(request, held, limit)
    if not request.gpus:
        return request
    groups = counted_in(applicant.groups, request.course)
    waiting = QueuedRequest(applicant.holder, request, 0.0, groups)
    named = choice.hours is not None
    return queue.within_budgets(waiting, view.leases, named, applicant.promised)
