"""Kernels of servers, spoken to as a page does."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timezone

import requests
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from .hubs import TOKEN

# Of a service that may open every server of a test's hub.
AS_ALL = {"Authorization": f"token {TOKEN}"}


async def execute(
    server: str, kernel: str, code: str, headers: dict[str, str] = AS_ALL
) -> WebSocketClientConnection:
    """Let a kernel begin to execute something.

    Args:
        server: the address of its server, as "http://127.0.0.1:8000/user/ada".
    """
    url = f"{server.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels"
    connection = await websocket_connect(HTTPRequest(url, headers=headers))
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "somebody",
        "session": uuid.uuid4().hex,
        "date": datetime.now(timezone.utc).isoformat(),
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    await connection.write_message(json.dumps({**message, "channel": "shell", "buffers": []}))
    return connection


def new_kernel(server: str, notebook: str, headers: dict[str, str] = AS_ALL) -> str:
    """Start a kernel for a notebook in a server; return its id."""
    model = {"path": notebook, "type": "notebook", "name": "", "kernel": {"name": "python3"}}
    made = requests.post(f"{server}/api/sessions", json=model, headers=headers, timeout=60)
    assert made.status_code == 201, made.text
    return str(made.json()["kernel"]["id"])
