"""Kernels of users' servers, spoken to as a page does."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timezone

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from .hubs import TOKEN, Hub

AS_ALL = {"Authorization": f"token {TOKEN}"}


async def execute(hub: Hub, user: str, kernel: str, code: str) -> WebSocketClientConnection:
    """Let a kernel of a user's server begin to execute something."""
    url = f"{hub.url.replace('http', 'ws', 1)}/user/{user}/api/kernels/{kernel}/channels"
    connection = await websocket_connect(HTTPRequest(url, headers=AS_ALL))
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": user,
        "session": uuid.uuid4().hex,
        "date": datetime.now(timezone.utc).isoformat(),
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    await connection.write_message(json.dumps({**message, "channel": "shell", "buffers": []}))
    return connection


def new_kernel(hub: Hub, user: str, notebook: str) -> str:
    """Start a kernel for a notebook in a user's server; return its id."""
    model = {"path": notebook, "type": "notebook", "name": "", "kernel": {"name": "python3"}}
    made = hub._admin.post(f"{hub.url}/user/{user}/api/sessions", json=model, timeout=60)
    assert made.status_code == 201, made.text
    return str(made.json()["kernel"]["id"])
