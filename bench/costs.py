"""What each page costs the hub: milliseconds of the processor, by part.

All GPUs are held and some people wait. The pages are opened one after the other, each by another
user, as when a class comes at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from gpuspawner.choices.form_stream import HEADER
from tests.support import dashboards
from tests.support.hubs import PLAIN_SERVER, Hub, until
from tests.support.measured import dashboard_of

from . import parts
from .one_hub import OUR_PAGES, one_hub
from .processor import seconds_of

GPUS, WAITING, PAGES = 4, 20, 40
FORM, NEXT, ANOTHER = "the form", "an open form's next", "the same, for another choice"
HOME, PENDING, DASHBOARD = "the home page", "the queue's page", "the dashboard"


def main(arguments: list[str] | None = None) -> int:
    """Open the pages and print their costs; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench costs", description=__doc__)
    parser.add_argument("--pages", type=int, default=PAGES, help="of each kind")
    parser.add_argument("--waiting", type=int, default=WAITING)
    options = parser.parse_args(arguments)
    with one_hub(GPUS, [PLAIN_SERVER, OUR_PAGES, dashboards.lines(), parts.lines()]) as (_, hub):
        show(*measure(hub, options.pages, options.waiting))
    return 0


def measure(
    hub: Hub, pages: int, waiting: int
) -> tuple[dict[str, list[Mapping[str, float]]], dict[str, float]]:
    """Return page -> part -> milliseconds of each, and the milliseconds of a dashboard's page."""
    for number in range(GPUS):
        hub.start_server(f"holder{number}", {"gpus": 1, "hours": 2})
    for number in range(waiting):
        assert hub.add_user(f"waits{number}")
        assert hub.spawn(f"waits{number}", {"gpus": 1, "hours": 1}).status_code == 202
    ours = [hub.log_in(f"user{number}") for number in range(pages)]
    of_queue = [hub.log_in(f"waits{number % waiting}") for number in range(pages)]

    def choice(hours: float) -> dict[str, str]:
        return {HEADER: quote(json.dumps({"gpus": 1, "hours": hours}))}

    def open_all(
        what: str, sessions: Iterable[Any], path: Callable[[int], str], **sent: Any
    ) -> None:
        headers = sent.get("headers", lambda number: {})
        for number, session in enumerate(sessions):
            asked = {parts.HEADER: what, **headers(number)}
            assert session.get(hub.url + path(number), headers=asked).ok

    open_all("", ours, lambda number: "/hub/spawn")
    open_all(FORM, ours, lambda number: "/hub/spawn")
    open_all(NEXT, ours, lambda number: "/hub/spawn", headers=lambda number: choice(1))
    open_all(
        ANOTHER, ours, lambda number: "/hub/spawn", headers=lambda number: choice(1 + number / 100)
    )
    open_all(HOME, ours, lambda number: "/hub/home")
    open_all(PENDING, of_queue, lambda number: f"/hub/spawn-pending/waits{number % waiting}")
    until(lambda: len(parts.read(hub.folder)) == 5 * pages, "each is written", log=hub.log)
    found: dict[str, list[Mapping[str, float]]] = {}
    for each in parts.read(hub.folder):
        found.setdefault(each["what"], []).append(each["parts"])
    processes = {"the hub": hub.pid, "its own process": dashboard_of(hub)}
    before = {name: seconds_of(pid) for name, pid in processes.items()}
    open_all("", ours, lambda number: "/services/gpus/")
    per_page = {
        name: 1000 * (seconds_of(pid) - before[name]) / pages for name, pid in processes.items()
    }
    return found, per_page


def show(found: Mapping[str, list[Mapping[str, float]]], of_dashboard: Mapping[str, float]) -> None:
    """Print the tables."""
    for page, taken in found.items():
        print(f"{page + ', milliseconds of the processor':58} {'median':>8} {'95 %':>8}")
        for part in ("all", *parts.PARTS):
            each = [one[part] for one in taken if part in one]
            if len(each) > 1:
                most = statistics.quantiles(each, n=100)[94]
                print(f"  {part:56} {statistics.median(each):8.2f} {most:8.2f}")
    said = ", ".join(f"{name} {value:.1f}" for name, value in of_dashboard.items())
    print(f"{DASHBOARD} of who comes for the first time, mean milliseconds: {said}")
