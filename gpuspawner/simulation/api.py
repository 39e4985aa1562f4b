"""The API of an engine, over its socket: docker-py may not be installed where this runs."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    path: Path, method: str, place: str, content: Any = None, seconds: float = 30
) -> tuple[int, Any]:
    """Send a request to an engine; return the status and the JSON answer (None if it is empty).

    Args:
        path: the engine's socket.
        method: the HTTP method.
        place: the path of the request with its query.
        content: what is sent: bytes of a tar archive, or a JSON value; None: nothing.
        seconds: the timeout.

    Raises:
        OSError: it can't be reached.
    """
    body, kind = None, "application/json"
    if isinstance(content, bytes):
        body, kind = content, "application/x-tar"
    elif content is not None:
        body = json.dumps(content).encode()
    connection = Connection(path, seconds)
    try:
        connection.request(method, place, body, {"Content-Type": kind} if body else {})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, None
