"""A class that comes at once: people with the form, the queue's page and the dashboard open."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

import requests
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

from gpuspawner.choices.form_stream import HEADER

from .hubs import Hub

# As the dashboard's script does.
DASHBOARD_SECONDS = 4.0
# The longest wait for one's turn.
PATIENCE_SECONDS = 900.0
FORM, FORMS_STREAM, SEND = "the form", "the form's stream begins", "sending the form"
PENDING, EVENTS = "the queue's page", "its stream begins"
DASHBOARD, LIVE = "the dashboard", "the dashboard's next"
STOP = "stopping"


@dataclass(frozen=True)
class Visitor:
    """Somebody who has logged in; the cookies are what a browser sends below either path."""

    name: str
    hub_cookies: str
    hub_xsrf: str
    service_cookies: str


@dataclass
class Record:
    """What a crowd went through.

    Args:
        taken: request -> milliseconds until its first answer.
        errors: what was answered and shouldn't be.
        served: the users that had a server, in the order of that.
        places: user -> the places in the queue that the user was told since all have asked. Before,
            whoever asked earlier may come to the queue a moment later, and takes the place.
    """

    taken: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    places: dict[str, list[int]] = field(default_factory=dict)


def log_in(hub: Hub, names: Collection[str]) -> list[Visitor]:
    """Log users in, by name."""
    found = []
    for name in names:
        session = hub.log_in(name)
        assert session.get(f"{hub.url}/hub/home").ok
        assert session.get(f"{hub.url}/services/gpus/").ok
        of_hub, of_service = (
            _cookies(session, hub.prefix + below) for below in ("/hub/", "/services/gpus/")
        )
        xsrf = dict(each.partition("=")[::2] for each in of_hub)["_xsrf"]
        found.append(Visitor(name, "; ".join(of_hub), xsrf, "; ".join(of_service)))
    return found


def _cookies(session: requests.Session, path: str) -> list[str]:
    return [f"{each.name}={each.value}" for each in session.cookies if path.startswith(each.path)]


class Crowd:
    """People who ask one after the other, wait together, and leave when they were served.

    Args:
        url: the hub's.
        visitors: they have logged in.
        seconds: the time in which all of them ask for a GPU.
        stay: for how long each keeps a server, in seconds, once all have asked.
        look: how long before they ask they open their pages, in seconds; None: all open them in the
            same moment, at the beginning.
    """

    def __init__(
        self,
        url: str,
        visitors: list[Visitor],
        seconds: float,
        stay: float,
        look: float | None = None,
    ) -> None:
        self._url = url
        self._visitors = visitors
        self._seconds = seconds
        self._stay = stay
        self._look = look
        self.record = Record()
        self._asked = 0
        self._all_have_asked = asyncio.Event()
        self._client = AsyncHTTPClient(force_instance=True, max_clients=10_000)

    async def run(self) -> Record:
        """Be all of them, from the first page to the last server's end."""
        pause = self._seconds / len(self._visitors)
        try:
            await asyncio.gather(
                *(self._visit(each, number * pause) for number, each in enumerate(self._visitors))
            )
        finally:
            self._client.close()
        return self.record

    async def _visit(self, who: Visitor, wait: float) -> None:
        """Be one of them: open all pages, ask for a GPU, wait, use it for a moment, and leave."""
        if self._look is not None:
            await asyncio.sleep(wait)
            wait = self._look
        pages = [asyncio.ensure_future(each(who)) for each in (self._form, self._dashboard)]
        try:
            await asyncio.sleep(wait)
            await self._ask(who)
            self._asked += 1
            if self._asked == len(self._visitors):
                self._all_have_asked.set()
                for places in self.record.places.values():
                    del places[:-1]
            await self._follow(who)
            await self._all_have_asked.wait()
            await asyncio.sleep(self._stay)
            await self._get(
                who, STOP, f"/hub/api/users/{who.name}/server", (202, 204), method="DELETE"
            )
        finally:
            for page in pages:
                page.cancel()
            for page in pages:
                with suppress(asyncio.CancelledError):
                    await page

    # -- The pages -----------------------------------------------------------------------------

    async def _form(self, who: Visitor) -> None:
        """Have the form open, which goes on for as long as no server starts."""
        await self._get(who, FORM, "/hub/spawn", (200,))
        headers = {"Accept": "text/event-stream", HEADER: quote(json.dumps({"gpus": 1}))}
        while True:
            # Once the server is there, the page leads to it.
            answer = await self._get(
                who, FORMS_STREAM, "/hub/spawn", (200, 302), headers=headers, hear=lambda _: None
            )
            if answer is None or answer.code != 200:
                return
            await asyncio.sleep(0.5)

    async def _dashboard(self, who: Visitor) -> None:
        await self._get(who, DASHBOARD, "/services/gpus/", (200,))
        while True:
            await asyncio.sleep(DASHBOARD_SECONDS)
            await self._get(who, LIVE, "/services/gpus/live", (200,))

    async def _ask(self, who: Visitor) -> None:
        body = urlencode({"gpus": "1", "hours": "1"})
        path = f"/hub/spawn?_xsrf={quote(who.hub_xsrf)}"
        await self._get(who, SEND, path, (302,), method="POST", body=body)
        await self._get(who, PENDING, f"/hub/spawn-pending/{who.name}", (200, 302))

    async def _follow(self, who: Visitor) -> None:
        """Follow the page of the queue until the server is ready."""
        text = ""
        places = self.record.places.setdefault(who.name, [])

        def hear(chunk: bytes) -> None:
            nonlocal text
            text += chunk.decode()
            *lines, text = text.split("\n")
            for line in lines:
                if not line.startswith("data: "):
                    continue
                event = json.loads(line[6:])
                if event.get("failed"):
                    self.record.errors.append(f"{who.name}: {event['message']}")
                if place := event.get("gpuspawner", {}).get("place"):
                    places.append(place)
                if event.get("ready"):
                    self.record.served.append(who.name)

        path = f"/hub/api/users/{who.name}/server/progress"
        await self._get(who, EVENTS, path, (200,), hear=hear)
        if who.name not in self.record.served:
            self.record.errors.append(f"{who.name}: the page of the queue ended without a server")

    # -- One request ---------------------------------------------------------------------------

    async def _get(
        self,
        who: Visitor,
        what: str,
        path: str,
        right: Collection[int],
        *,
        method: str = "GET",
        body: str | None = None,
        headers: dict[str, str] | None = None,
        hear: Callable[[bytes], None] | None = None,
    ) -> HTTPResponse | None:
        """Send a request, and record how long the beginning of its answer took.

        Args:
            who: whose request it is.
            what: what it is called in the record.
            path: where to.
            right: the statuses that it may have.
            method, body, headers: of the request.
            hear: called with each part of the body as it comes.
        """
        began = time.perf_counter()
        first: list[float] = []

        def note(_: str) -> None:
            if not first:
                first.append(1000 * (time.perf_counter() - began))

        ours = path.startswith("/services/")
        sent = {
            "Cookie": who.service_cookies if ours else who.hub_cookies,
            "X-XSRFToken": "" if ours else who.hub_xsrf,
            **(headers or {}),
        }
        request = HTTPRequest(
            self._url + path,
            method=method,
            body=body,
            headers={name: value for name, value in sent.items() if value},
            follow_redirects=False,
            header_callback=note,
            streaming_callback=hear,
            request_timeout=PATIENCE_SECONDS,
        )
        try:
            answer = await self._client.fetch(request, raise_error=False)
        except OSError as error:
            self.record.errors.append(f"{who.name}, {what}: {error}")
            return None
        self.record.taken.setdefault(what, []).extend(first)
        if answer.code not in right:
            text = re.sub(r"\s+", " ", (answer.body or b"").decode(errors="replace"))[:300]
            self.record.errors.append(f"{who.name}, {what}: {answer.code} {text}")
        return answer
