"""How a machine and a hub get to know each other: an invitation that is taken up once.

`gpuspawner node invite` listens for a while on the hub's machine. Its token carries the hub's
fingerprint, by which the new machine knows that it speaks with that hub, and a secret, by which the
hub knows that it speaks with whom it has invited. Each is given the other's certificate, and the
machine what it joins the Swarm with. The secret is nowhere but in the token and in this process:
it is worth nothing once it was used, or this process has ended.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from .. import __version__
from ..errors import GPUSpawnerError
from ..timeouts import within
from ..untrusted import parse_json
from .addresses import AddressError, NodeAddress, checked, is_host
from .exchange import NodeError, connected
from .identity import Identity, certificates_in, client_context, fingerprint_of
from .reports import PROTOCOL

JOIN_PATH = "/v1/join"
DEFAULT_INVITE_PORT = 8414
SECRET_BYTES = 18
# Who guesses ends the invitation. So does a token from yesterday: it has another secret.
MAX_WRONG = 5
MAX_BODY_BYTES = 16_384
TIMEOUT_SECONDS = 30.0


class InvitationError(GPUSpawnerError):
    """An invitation can't be made or taken up. `str()` is a sentence for administrators."""


@dataclass(frozen=True)
class SwarmInvitation:
    """What a machine joins a Swarm with.

    Args:
        token: the Swarm's own join token. Secret.
        managers: the addresses of its managers, "10.0.0.1:2377".
    """

    token: str = field(repr=False)
    managers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Welcome:
    """What a hub answers whom it has invited.

    Args:
        certificate: the hub's, in PEM form.
        swarm: what to join; None: there is no Swarm.
    """

    certificate: str
    swarm: SwarmInvitation | None


def make_token(fingerprint: str, secret: bytes) -> str:
    """Return the token of a hub's invitation."""
    return base64.urlsafe_b64encode(bytes.fromhex(fingerprint) + secret).decode().rstrip("=")


def read_token(token: str) -> tuple[str, bytes]:
    """Return the hub's fingerprint and the secret of a token; raises `InvitationError`."""
    try:
        found = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != 32 + SECRET_BYTES or make_token(found[:32].hex(), found[32:]) != token:
        raise InvitationError("That isn't an invitation: copy the whole line that invite printed.")
    return found[:32].hex(), found[32:]


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    protocol: int
    secret: Annotated[str, Field(max_length=100)]
    name: Annotated[str, Field(max_length=63)]
    host: Annotated[str, Field(max_length=253)]
    port: int
    certificate: Annotated[str, Field(max_length=8192)]


class Host:
    """An invitation that waits to be taken up, on the hub's machine.

    Args:
        identity: the hub's.
        swarm: what whoever takes it up joins; None: nothing.
        admit: called with the new node's address before it is answered; it keeps it. What it
            raises (`GPUSpawnerError`, `OSError`) is told the node, and the invitation stays.
    """

    def __init__(
        self,
        identity: Identity,
        swarm: SwarmInvitation | None,
        admit: Callable[[NodeAddress], None],
    ) -> None:
        self._identity = identity
        self._swarm = swarm
        self._admit = admit
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._wrong = 0
        self._taken: asyncio.Future[NodeAddress] = asyncio.get_running_loop().create_future()
        # Nobody has a certificate that could be known yet.
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        tls.load_cert_chain(identity.file, password="")
        self._server = HTTPServer(
            web.Application(
                [(JOIN_PATH, _Join, {"host": self})], log_function=lambda handler: None
            ),
            ssl_options=tls,
            max_header_size=MAX_BODY_BYTES,
            max_body_size=MAX_BODY_BYTES,
            max_buffer_size=2 * MAX_BODY_BYTES,
            idle_connection_timeout=TIMEOUT_SECONDS,
            body_timeout=TIMEOUT_SECONDS,
        )

    @property
    def token(self) -> str:
        """The token to hand to the new machine."""
        return make_token(self._identity.fingerprint, self._secret)

    def start(self, address: str, port: int) -> int:
        """Listen; return the port. Raises `OSError` if it can't be had."""
        sockets = bind_sockets(port, address)
        self._server.add_sockets(sockets)
        return int(sockets[0].getsockname()[1])

    async def taken_up(self) -> NodeAddress:
        """Return who has taken it up, as soon as somebody has.

        Raises:
            InvitationError: somebody guesses.
        """
        return await asyncio.shield(self._taken)

    async def stop(self) -> None:
        """End the invitation, after what is being answered."""
        self._server.stop()
        # The last answer is on its way.
        await asyncio.sleep(0.2)
        await self._server.close_all_connections()

    def take_up(self, request: _Request, remote: str) -> dict[str, Any]:
        """Return the answer to who asks.

        Raises:
            web.HTTPError: they aren't let in.
        """
        if self._taken.done():
            raise web.HTTPError(403, "this invitation was taken up, or has ended")
        try:
            secret = bytes.fromhex(request.secret)
        except ValueError:
            secret = b""
        if not hmac.compare_digest(secret, self._secret):
            self._wrong += 1
            if self._wrong >= MAX_WRONG:
                words = f"Somebody tries secrets (last from {remote}): the invitation has ended."
                self._taken.set_exception(InvitationError(words))
                self._taken.exception()  # whoever waits for it is told
            raise web.HTTPError(403, "that isn't the token of this invitation")
        if request.protocol != PROTOCOL:
            raise web.HTTPError(409, "gpuspawner %s runs here: install the same", __version__)
        certificates = certificates_in(request.certificate)
        if len(certificates) != 1:
            raise web.HTTPError(400, "that isn't a certificate")
        fingerprint = fingerprint_of(certificates[0])
        address = NodeAddress(request.name, request.host or remote, request.port, fingerprint)
        try:
            self._admit(checked(address))
        except AddressError as error:
            raise web.HTTPError(400, "%s", str(error)) from None
        except (GPUSpawnerError, OSError) as error:
            raise web.HTTPError(503, "%s", f"the hub can't keep this: {error}") from None
        self._taken.set_result(address)
        swarm = self._swarm
        return {
            "certificate": self._identity.certificate,
            "swarm": {"token": swarm.token, "managers": list(swarm.managers)} if swarm else None,
        }


class _Join(web.RequestHandler):
    def initialize(self, host: Host) -> None:
        self._host = host

    def post(self) -> None:
        try:
            request = _Request.model_validate(parse_json(self.request.body))
        except (ValidationError, ValueError):
            raise web.HTTPError(400, "that isn't a request to join") from None
        self.write(self._host.take_up(request, str(self.request.remote_ip)))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        said = ""
        if isinstance(error, web.HTTPError) and error.log_message:
            said = error.log_message % error.args if error.args else error.log_message
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"error": said or f"status {status_code}"}))


async def accept(
    identity: Identity, hub: tuple[str, int], token: str, name: str, host: str, port: int
) -> Welcome:
    """Take up an invitation, from the new machine.

    Args:
        identity: this machine's.
        hub: where the invitation waits: a name or an address, and a port.
        token: the token that was printed there.
        name: this machine's name.
        host: where the hub finds this machine; "": where it sees it.
        port: its daemon's port.

    Raises:
        InvitationError: it can't be taken up.
    """
    fingerprint, secret = read_token(token)
    if not is_host(hub[0]) or (host and not is_host(host)):
        raise InvitationError("That isn't the name or the address of a machine.")
    body = {
        "protocol": PROTOCOL,
        "secret": secret.hex(),
        "name": name,
        "host": host,
        "port": port,
        "certificate": identity.certificate,
    }
    address = NodeAddress("hub", hub[0], hub[1], fingerprint)
    try:
        answer = await within(TIMEOUT_SECONDS, _ask(address, identity, body))
    except NodeError as error:
        words = f"The hub at {hub[0]} port {hub[1]} doesn't let this machine join: "
        raise InvitationError(words + error.technical) from None
    except (ValueError, asyncio.TimeoutError):
        raise InvitationError("What answers isn't the hub's invitation.") from None
    return _welcome(answer, fingerprint)


async def _ask(address: NodeAddress, identity: Identity, body: Mapping[str, Any]) -> Any:
    async with connected(address, client_context(identity)) as connection:
        headers = await connection.ask(JOIN_PATH, body, "1.1")
        return parse_json(await connection.read_body(headers, MAX_BODY_BYTES))


def _welcome(answer: Any, fingerprint: str) -> Welcome:
    try:
        (certificate,) = certificates_in(answer["certificate"])
        found: Mapping[str, Any] | None = answer["swarm"]
        swarm = found and SwarmInvitation(
            str(found["token"]), tuple(str(each) for each in found["managers"])
        )
    except (KeyError, TypeError, ValueError):
        raise InvitationError("What answers isn't the hub's invitation.") from None
    if fingerprint_of(certificate) != fingerprint:
        raise InvitationError("The hub sends another certificate than it has.")
    return Welcome(certificate, swarm or None)
