"""One HTTP request to a node's daemon, whose certificate is compared before anything is sent.

tornado's client knows no pinned certificates, and none of the limits that another machine's answer
needs: of its size, its form and its time.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPInputError, parse_response_start_line

from ..errors import GPUSpawnerError
from ..i18n.lazy_text import MachineText, lazy_gettext
from ..timeouts import within
from ..untrusted import parse_json
from .addresses import NodeAddress
from .identity import peer_fingerprint

MAX_HEAD_BYTES = 16_384
# One line of an answer that comes in parts.
MAX_LINE_BYTES = 65_536

# What TLS says if the daemon doesn't know our certificate. ref: RFC 8446, 6.2
_NOT_KNOWN = ("UNKNOWN_CA", "CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN")


class NodeError(GPUSpawnerError):
    """A node's daemon can't be asked, or its answer can't be used.

    `str()` is a sentence for users, `technical` says more for administrators.
    """

    def __init__(self, sentence: str, technical: str) -> None:
        super().__init__(sentence)
        self.technical = technical


def silent(address: NodeAddress, technical: str) -> NodeError:
    """Return the error of a node that doesn't answer."""
    sentence = MachineText(
        lazy_gettext("Machine %(node)s doesn't answer.", node=address.name),
        lazy_gettext("The machine doesn't answer."),
    )
    return NodeError(sentence, technical)


def strange(address: NodeAddress, technical: str) -> NodeError:
    """Return the error of a node whose answer can't be used."""
    sentence = MachineText(
        lazy_gettext(
            "What machine %(node)s says can't be trusted: an administrator has to look at it.",
            node=address.name,
        ),
        lazy_gettext(
            "What the machine says of its GPUs can't be trusted: an administrator has to look at "
            "it."
        ),
    )
    return NodeError(sentence, technical)


class Connection:
    """A connection to a node's daemon that has proved who it is.

    Args:
        address: the node.
        reader, writer: the connection.
    """

    def __init__(
        self, address: NodeAddress, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._address = address
        self._reader = reader
        self._writer = writer

    async def ask(self, path: str, body: Mapping[str, Any] | None, version: str) -> HTTPHeaders:
        """Send a request and return the headers of its answer, which succeeded.

        Args:
            path: what is asked for.
            body: sent as JSON; None: it is a GET.
            version: of HTTP: "1.0" for an answer that comes in parts.

        Raises:
            NodeError: it is refused, or what answers is no daemon.
            OSError, asyncio.IncompleteReadError: the connection broke.
        """
        sent = b"" if body is None else json.dumps(body).encode()
        head = [
            f"{'GET' if body is None else 'POST'} {path} HTTP/{version}",
            "Host: node",
            f"Content-Length: {len(sent)}",
            "Content-Type: application/json",
            "Connection: close",
        ]
        self._writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + sent)
        await self._writer.drain()
        return await self._read_head()

    async def send(
        self, path: str, parts: AsyncIterator[bytes], part_seconds: float, answer_seconds: float
    ) -> HTTPHeaders:
        """Send a request with a body of any length; return the headers of its answer.

        Args:
            path: what is asked for.
            parts: the body.
            part_seconds: how long the node may take for a part of it.
            answer_seconds: how long it may take afterwards.

        Raises:
            NodeError: it is refused, or what answers is no daemon.
            OSError, asyncio.IncompleteReadError: the connection broke.
            asyncio.TimeoutError: it takes too long.
        """
        head = [f"POST {path} HTTP/1.1", "Host: node", "Transfer-Encoding: chunked"]
        self._writer.write("\r\n".join([*head, "Connection: close"]).encode() + b"\r\n\r\n")
        answer = asyncio.ensure_future(self._read_head())
        try:
            # Who refuses it doesn't wait for its end.
            with suppress(ConnectionResetError, BrokenPipeError):
                async for part in parts:
                    self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                    await within(part_seconds, self._writer.drain())
                    if answer.done():
                        break
                else:
                    self._writer.write(b"0\r\n\r\n")
                    await within(part_seconds, self._writer.drain())
            await asyncio.wait([answer], timeout=answer_seconds)
            if not answer.done():
                raise asyncio.TimeoutError
            return answer.result()
        finally:
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # retrieved, as nobody else may do so

    async def _read_head(self) -> HTTPHeaders:
        try:
            raw = await self._reader.readuntil(b"\r\n\r\n")
            text = raw.decode("latin-1")
            first, _, rest = text.partition("\r\n")
            answer, headers = parse_response_start_line(first), HTTPHeaders.parse(rest)
        except (asyncio.LimitOverrunError, HTTPInputError, ValueError):
            raise strange(self._address, "what answers isn't HTTP") from None
        if "json" not in headers.get("Content-Type", ""):
            kind = headers.get("Content-Type", "nothing")[:100]
            raise strange(self._address, f"it answers {answer.code} with {kind!a}, not with JSON")
        if answer.code != 200:
            raise await self._refused(answer.code, headers)
        return headers

    async def _refused(self, code: int, headers: HTTPHeaders) -> NodeError:
        said = ""
        with suppress(ValueError, AttributeError):
            found = parse_json(await self.read_body(headers, MAX_LINE_BYTES))
            said = str(found.get("error", ""))[:300]
        return silent(self._address, f"it answers {code}: {said!a}")

    async def read_body(self, headers: HTTPHeaders, most: int) -> bytes:
        """Return the body of an answer; raises `NodeError` if it is larger than `most` bytes."""
        length = headers.get("Content-Length", "")
        # `isdecimal` is true of other scripts' digits as well, which `int` reads, too.
        if not length.isdecimal() or len(length) > 12 or int(length) > most:
            raise strange(self._address, f"its answer has a length of {length[:20]!a} bytes")
        return await self._reader.readexactly(int(length))

    async def lines(self) -> AsyncIterator[Any]:
        """Yield the JSON values of an answer that comes line by line.

        Raises:
            NodeError: a line isn't JSON, or too long.
            OSError: the connection broke.
        """
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                raise strange(self._address, "it sends a line without an end") from None
            try:
                yield parse_json(line)
            except ValueError as error:
                raise strange(self._address, f"it sends no JSON: {error}") from None

    def close(self) -> None:
        """Close the connection, without waiting for the other end."""
        with suppress(OSError, RuntimeError):
            self._writer.transport.abort()


@asynccontextmanager
async def connected(address: NodeAddress, tls: ssl.SSLContext) -> AsyncIterator[Connection]:
    """Connect to a node's daemon, and make sure that it is that one.

    Every error of the connection, also of what is done with it, becomes a `NodeError`. Has no
    timeout: the caller sets it.
    """
    connection = None
    try:
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=tls, limit=max(MAX_HEAD_BYTES, MAX_LINE_BYTES)
        )
        connection = Connection(address, reader, writer)
        found = peer_fingerprint(writer.get_extra_info("ssl_object"))
        if found != address.fingerprint:
            raise strange(
                address,
                f"its certificate is {found}, and {address.fingerprint} is known: if it was joined "
                "anew, invite it again; else somebody else answers at its address",
            )
        yield connection
    except (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError):
        # Who isn't known may find the connection closed before it hears why.
        raise silent(
            address, "it broke off without a whole answer: it may not know this hub's certificate"
        ) from None
    except ssl.SSLError as error:
        if any(word in (error.reason or "") for word in _NOT_KNOWN):
            raise silent(
                address, "it doesn't know this hub's certificate: invite it again"
            ) from None
        raise silent(address, f"what answers there isn't a node's daemon ({error})") from None
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise silent(address, f"{address.host} port {address.port}: {why}") from None
    finally:
        if connection is not None:
            connection.close()
