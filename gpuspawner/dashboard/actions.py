"""The actions of the dashboard: extend, keep alive, stop, leave the queue, out of service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import docker
import docker.errors
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httputil import url_concat

from ..backends.docker import errors as engine_errors
from ..backends.docker import out_of_service
from ..errors import Refused, Unknown
from ..gpus.out_of_service import MAX_REASON_LENGTH
from ..hub import control_socket
from ..i18n.lazy_text import lazy_gettext, restored
from ..leases import audit_log
from ..scheduling.queue import WAITS_NO_MORE
from ..untrusted import parse_json
from .facts import Person
from .monitor import ENGINE_SECONDS, Monitor

NO_ANSWER = lazy_gettext("JupyterHub doesn't answer. Please try again.")
# The hub doesn't reveal which servers other users have.
NO_SUCH_SERVER = lazy_gettext("There is no such server that runs or waits, or it isn't yours.")
# The hub answers a stop once the server is gone, or after 10 seconds of its own. The engine may be
# slow to do other things, too.
STOP_SECONDS = 60


@dataclass(frozen=True)
class Actions:
    """Performs actions for users, after a check of their rights.

    Args:
        monitor: the state of the nodes.
        socket: the path of the hub's control socket.
        hub_api: the URL of the hub's REST API.
        from_hub: whether the hub is asked for what is done in the engine, too.
    """

    monitor: Monitor
    socket: str
    hub_api: str
    from_hub: bool = False

    async def extend(
        self, person: Person, user: str, server: str, hours: float | None = None
    ) -> float:
        """Extend a server's lease; return its new end, in seconds since the epoch.

        Args:
            person: who asks.
            user, server: the names of the server's user and of the server.
            hours: the time to add; None: as much as it began with.

        Raises:
            Refused: it isn't theirs, or can't be extended.
        """
        # With their own server an administrator is a user as others are.
        answer = await self._ask(
            person,
            "extend",
            user,
            server,
            hours=hours,
            by=_who(person),
            over_all=not person.is_user(user),
        )
        return float(answer["until"])

    async def keep_alive(self, person: Person, user: str, server: str) -> None:
        """Keep a server's idle GPUs, as its user still needs them; arguments as for `extend`."""
        await self._ask(person, "here", user, server)

    async def note_devices(self, person: Person, user: str, server: str, gone: bool) -> None:
        """Note whether a server can open its GPUs' devices; person, user, server as for `extend`.

        Its user may say what they like of it: it is advice, and for themselves.
        """
        await self._ask(person, "devices", user, server, gone=gone)

    async def ask_for_gpus(
        self, person: Person, user: str, server: str, gpus: float | None, model: str, kind: str
    ) -> dict[str, Any]:
        """Ask for GPUs for a server that runs without; return what is known of the request then.

        Args:
            person, user, server: as for `extend`.
            gpus: how many; None: one.
            model: of which model; "": any.
            kind: of which kind; "": the usual.

        Raises:
            Refused: it isn't theirs, or can't be granted.
        """
        wanted = {"gpus": 1 if gpus is None else gpus, "model": model or None, "kind": kind or None}
        return await self._of_gpus(person, "ask", user, server, **wanted)

    async def withdraw(self, person: Person, user: str, server: str) -> None:
        """Withdraw what a running server has asked for, or let what is reserved for it go."""
        await self._of_gpus(person, "leave", user, server)

    async def switch(self, person: Person, user: str, server: str) -> None:
        """Begin to restart a server with the GPUs that are reserved for it."""
        await self._of_gpus(person, "switch", user, server)

    async def give_back(self, person: Person, user: str, server: str) -> None:
        """Begin to restart a server without its GPUs."""
        await self._of_gpus(person, "give-back", user, server)

    async def _of_gpus(
        self, person: Person, what: str, user: str, server: str, **more: Any
    ) -> dict[str, Any]:
        _require_right(person, user)
        check_names(user, server)
        question = {"do": what, "user": user, "server": server, "by": _who(person), **more}
        return await self.send(question, STOP_SECONDS)

    async def _ask(
        self, person: Person, what: str, user: str, server: str, **more: Any
    ) -> dict[str, Any]:
        _require_right(person, user)
        check_names(user, server)
        return await self.send({"do": what, "user": user, "server": server, **more})

    async def send(
        self, question: Mapping[str, Any], seconds: float = control_socket.TIMEOUT_SECONDS
    ) -> dict[str, Any]:
        """Have the hub do something, and return its answer.

        Args:
            question: as for `control_socket.ask`.
            seconds: how long to wait for the answer.

        Raises:
            Refused: the hub refuses it, or doesn't answer.
        """
        answer = await self.ask(question, seconds)
        await self.monitor.refresh()
        return answer

    async def ask(
        self, question: Mapping[str, Any], seconds: float = control_socket.TIMEOUT_SECONDS
    ) -> dict[str, Any]:
        """Ask the hub for something that changes nothing; as `send` otherwise."""
        try:
            answer = await control_socket.ask(self.socket, question, seconds)
        except (OSError, ValueError, asyncio.TimeoutError):
            raise Refused(NO_ANSWER, status=503) from None
        if "error" in answer:
            raise Refused(
                restored(answer.get("sentence")) or answer["error"],
                status=int(answer.get("status", 500)),
                key=str(answer.get("key", "")),
            )
        return answer

    async def stop(
        self,
        person: Person,
        token: str,
        user: str,
        server: str,
        why: str = "",
        minutes: float = 0,
    ) -> None:
        """Stop a server, or take it out of the queue.

        Args:
            person, token: who asks, and their token, whose rights the hub checks.
            user, server: the names of the server's user and of the server.
            why: the reason of an administrator, for the server's user.
            minutes: in how many minutes an administrator has it stopped; 0: now.

        Raises:
            Refused: the hub refuses or doesn't answer, or only an administrator may do so.
        """
        check_names(user, server)  # the hub would log all of them
        reasoned = bool(why or minutes)
        if reasoned:
            _require_administrator(person)
        if person.administrator and (reasoned or not person.is_user(user)):
            question = {"user": user, "server": server, "by": _who(person)}
            try:
                await self.send(
                    {"do": "stop", **question, "why": why, "minutes": minutes}, STOP_SECONDS
                )
                return
            except Refused as refused:
                # A server without GPUs, or one that waits, which the hub stops without a reason.
                if refused.status != 404 or reasoned:
                    raise
        await self._stop_through_hub(token, user, server)

    async def keep(self, person: Person, user: str, server: str) -> None:
        """Take back the stop of a server that an administrator has announced."""
        _require_administrator(person)
        await self.send({"do": "keep", "user": user, "server": server, "by": _who(person)})

    async def _stop_through_hub(self, token: str, user: str, server: str) -> None:
        check_names(user, server)  # the hub would log all of them
        path = f"/users/{quote(user, safe='')}" + (
            f"/servers/{quote(server, safe='')}" if server else "/server"
        )
        request = HTTPRequest(
            url_concat(self.hub_api.rstrip("/") + path, {}),
            method="DELETE",
            headers={"Authorization": f"token {token}"},
            request_timeout=STOP_SECONDS,
        )
        try:
            await AsyncHTTPClient().fetch(request)
        except HTTPClientError as error:
            raise _hub_refusal(error) from None
        except OSError:
            raise Refused(NO_ANSWER, status=503) from None
        await self.monitor.refresh()

    async def leave(self, person: Person, token: str, user: str, server: str) -> None:
        """Take a server out of the queue; one that has got its GPUs meanwhile isn't stopped.

        Args:
            person, token: who asks, and their token.
            user, server: the names of the server's user and of the server.

        Raises:
            Refused: it doesn't wait, or isn't theirs.
        """
        answer = await self._ask(person, "status", user, server)
        asking = [each for each in answer.get("requests", ()) if not each["restarting"]]
        if any((each["user"], each["server"]) == (user, server) for each in asking):
            # It runs, and goes on.
            await self.withdraw(person, user, server)
            return
        if not any((each["user"], each["server"]) == (user, server) for each in answer["queue"]):
            raise Refused(WAITS_NO_MORE, status=409)
        await self._stop_through_hub(token, user, server)

    async def stop_orphan(self, person: Person, server_id: str) -> None:
        """Stop a server that runs with the hub's label, and that the hub doesn't know.

        Args:
            server_id: as in the status.
        """
        _require_administrator(person)
        check_names(server_id)
        await self.send({"do": "stop-orphan", "id": server_id, "by": person.name}, STOP_SECONDS)

    async def take_out(self, person: Person, uuid: str, why: str) -> None:
        """Take a GPU out of service.

        Raises:
            Refused: there is no such GPU, the reason is too long, or it isn't an administrator.
        """
        await self._require_known(person, uuid)
        why, most = " ".join(why.split()), MAX_REASON_LENGTH
        if len(why) > most:
            words = lazy_gettext("The reason is too long: at most %(most)s characters.", most=most)
            raise Refused(words, key="why")
        if self.from_hub:
            question = {"do": "out-of-service", "uuid": uuid, "by": person.name, "why": why}
            await self.send(question, STOP_SECONDS)
            return
        await self._in_engine(
            lambda client: out_of_service.take_out(client, uuid, person.name, why)
        )

    async def put_back(self, person: Person, uuid: str) -> None:
        """Put a GPU back into service."""
        await self._require_known(person, uuid)
        if self.from_hub:
            await self.send({"do": "in-service", "uuid": uuid}, STOP_SECONDS)
            return
        await self._in_engine(lambda client: out_of_service.put_back(client, uuid))

    async def _require_known(self, person: Person, uuid: str) -> None:
        _require_administrator(person)
        snapshot = await self.monitor.snapshot()
        # A GPU that was taken out and then removed from the machine can still be put back.
        if uuid not in {gpu.uuid for gpu in snapshot.gpus} | set(snapshot.marks):
            raise Refused(
                lazy_gettext("No machine here has such a GPU.")
                if len(snapshot.nodes) > 1
                else lazy_gettext("This machine has no such GPU."),
                status=404,
            )

    async def _in_engine(self, do: Callable[[Any], None]) -> None:
        def run() -> None:
            client = docker.from_env(timeout=ENGINE_SECONDS, version="auto")
            try:
                do(client.api)
            finally:
                client.close()

        try:
            await asyncio.get_running_loop().run_in_executor(None, run)
        except Unknown as error:
            raise Refused(str(error), status=503) from None
        except engine_errors.UNREACHABLE as error:
            raise Refused(engine_errors.explain(error), status=503) from None
        await self.monitor.refresh()


def check_names(*names: str) -> None:
    """Refuse a name that is longer than any server's or user's."""
    if max(map(len, names)) > control_socket.MAX_NAME_LENGTH:
        raise Refused(NO_SUCH_SERVER, status=404)


def _who(person: Person) -> str:
    """Return who asks, for the audit log."""
    return audit_log.user(person.name) if person.name else audit_log.SERVICE


def _require_right(person: Person, user: str) -> None:
    if not (person.administrator or person.is_user(user)):
        raise Refused(lazy_gettext("This is somebody else's server."), status=403)


def _require_administrator(person: Person) -> None:
    if not person.administrator:
        raise Refused(lazy_gettext("Only an administrator can do that."), status=403)


def _hub_refusal(error: HTTPClientError) -> Refused:
    """Return the refusal for an error of the hub's API."""
    if error.code in (403, 404):
        return Refused(NO_SUCH_SERVER, status=404)
    try:
        words = str(parse_json(error.response.body)["message"]) if error.response else ""
    except (ValueError, KeyError, TypeError):
        words = ""
    if error.code == 599 or not words:
        return Refused(NO_ANSWER, status=503)
    return Refused(words, status=error.code)
