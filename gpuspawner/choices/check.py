"""The one check of a choice, for form, link and REST, and what would come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import Refused
from ..gpus.allocation import most_on_one_node
from ..gpus.model import Holder, Request
from ..leases.ledger import Ledger, View
from ..scheduling.plan import QueuedRequest
from ..scheduling.queue import Queue, RequestLimits, held_by_other_servers, over_user_limit
from . import options
from .forecast import Forecast
from .limits import Limits

EMPTY_VIEW = View()


@dataclass(frozen=True)
class Applicant:
    """Who chooses, and the rules that apply to them now.

    Args:
        holder: the server that is chosen for.
        groups: the groups of its user.
        limits: of what may be chosen.
        request_limits: of what may be waited for.
        others_allowed: whether the administrator's own hooks may read further keys of the choice.
    """

    holder: Holder
    groups: frozenset[str]
    limits: Limits
    request_limits: RequestLimits
    others_allowed: bool = False


@dataclass(frozen=True)
class CheckedChoice:
    """What a choice asks for.

    Args:
        request: that.
        image: the image reference that it means; None: the administrator's own stays.
    """

    request: Request
    image: str | None = None


async def check_choice(
    raw: Any, applicant: Applicant, ledger: Ledger, queue: Queue
) -> CheckedChoice:
    """Check a choice as it came.

    Args:
        raw: anything that JSON can hold.
        applicant: whose it is.
        ledger: who holds what.
        queue: who waits.

    Raises:
        Refused: it can't be granted.
        Unknown: the host couldn't be read, and the choice asks for GPUs.
    """
    limits = applicant.limits
    choice = options.parse(raw, others_allowed=applicant.others_allowed)
    key = options.image_key(choice, limits)
    view = EMPTY_VIEW
    if options.gpu_count(choice, limits) > 0:
        view = await ledger.read(except_for=applicant.holder)
    request = _request(choice, applicant, queue, view)
    if choice.image is None and not limits.has_catalogue:
        return CheckedChoice(request)
    known = limits.versions.get(key)
    return CheckedChoice(request, known.image if known else key)


def forecast_choice(
    choice: options.Choice, applicant: Applicant, queue: Queue, view: View
) -> Forecast:
    """Return what would come of a choice, checked as when it is sent."""
    count = choice.gpus or 0
    try:
        request = _request(choice, applicant, queue, view)
    except Refused as error:
        return Forecast("no", count, refusal=str(error))
    if request.gpus == 0:
        return Forecast("now")
    joining = QueuedRequest(applicant.holder, request, queue.join_time(), applicant.groups)
    turn = queue.forecast(joining, applicant.request_limits, view)
    if turn.gpus:
        return Forecast("now", count)
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
        scattered=most_on_one_node(free) < request.gpus <= len(free),
    )


def _request(choice: options.Choice, applicant: Applicant, queue: Queue, view: View) -> Request:
    request = options.request(choice, applicant.limits, view.nodes)
    limit = applicant.request_limits.user_limit
    if limit is not None and request.gpus:
        # What the queue would refuse, refused at once: too many GPUs with the user's other servers.
        held = held_by_other_servers(applicant.holder, queue.claims(view.leases))
        if held + request.gpus > limit:
            raise Refused(over_user_limit(request.gpus, held, limit), status=403)
    return request
