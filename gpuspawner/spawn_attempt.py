"""The state of one spawn."""

from __future__ import annotations

from dataclasses import dataclass

from .check_in import CheckIn
from .gpus.model import Request
from .leases.clock import Deadline
from .leases.ledger import Reservation


@dataclass(eq=False)
class SpawnAttempt:
    """The state of one spawn; `clear_state` replaces it as a whole.

    Args:
        since: when the choice was made, in seconds since the epoch: the time at which its request
            joins the queue, for the order.
        joined: the same by the steady clock, for how long it has waited.
        began: the moment of the ledger at which its choice was checked, until the containers of
            earlier starts are looked for.
        request: the request of the choice.
        waiting_since: `since`, once the request waits in the queue.
        not_before: when it is to start at the earliest, in seconds since the epoch; 0: at once.
        has_waited: whether it has waited in the queue, so that its user may be elsewhere.
        check_in: the turn that has come, until its user says that they are there.
        is_present: whether they have said so.
        waited: for how long it has waited, in seconds, once GPUs are granted.
        reservation: the granted reservation, until `launch` takes it over.
        granted: the granted reservation, for as long as the spawn lasts.
        is_up: whether the server has started, by this hub process or an earlier one.
        granted_at: when the last reservation was granted, by the monotonic clock.
        reserved_at: when the GPUs of this try were reserved, by the monotonic clock.
        pulled: the image that has been pulled or found on the engine.
        safe_mode: whether the server starts without what its user has set up at home.
        image_title: what users call the request's image; it is known after a restart, too.
        course: the key of the course that the server is for, "" for none; also after a restart.
        changing_until: until when, by the monotonic clock, a request that leaves the queue keeps
            its place, as its user has said that they change their choice.
        is_refused: whether its choice was refused, so that nothing was begun.
    """

    since: float | None = None
    joined: Deadline | None = None
    began: int | None = None
    request: Request | None = None
    waiting_since: float | None = None
    not_before: float = 0.0
    has_waited: bool = False
    check_in: CheckIn | None = None
    is_present: bool = False
    waited: float = 0.0
    reservation: Reservation | None = None
    granted: Reservation | None = None
    is_up: bool = False
    granted_at: float = 0.0
    reserved_at: float = 0.0
    pulled: str | None = None
    safe_mode: bool = False
    image_title: str = ""
    course: str = ""
    changing_until: float = 0.0
    is_refused: bool = False
