"""HTTP as no client would send it: a request's bytes are as a test has them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 where the connection was closed without a word."""

    status: int
    head: str
    body: bytes

    @property
    def kind(self) -> str:
        """Its content type, without parameters; "" where the body isn't as it is."""
        fields = dict(line.lower().partition(": ")[::2] for line in self.head.split("\r\n")[1:])
        if {"content-encoding", "transfer-encoding"} & fields.keys():
            return ""
        return fields.get("content-type", "").partition(";")[0]


def send(
    address: tuple[str, int],
    method: str,
    path: bytes,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """Send a request, and return what came back."""
    lines = {"Host": "127.0.0.1", "Connection": "close", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **(headers or {})}.items())
    request = method.upper().encode() + b" " + path + b" HTTP/1.1\r\n" + head.encode("latin-1")
    said = b""
    with socket.create_connection(address, timeout=60) as connection:
        # Whoever has had enough of a request closes the connection.
        with suppress(OSError):
            connection.sendall(request + b"\r\n" + body)
        with suppress(OSError):
            while more := connection.recv(65536):
                said += more
    first, _, content = said.partition(b"\r\n\r\n")
    return Answer(int(first.split()[1]) if first else 0, first.decode("latin-1"), content)
