"""People who wait for GPUs, and what they are told."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from gpuspawner.hub import control_socket


def audit_lines(hub: Any) -> list[dict[str, Any]]:
    """Return the events of the hub's audit log, as JSON values."""
    return [json.loads(line) for line in re.findall(r"gpuspawner (\{.*\})$", hub.log(), re.M)]


def control(hub: Any, **question: Any) -> dict[str, Any]:
    """Ask a hub as its dashboard does; no refusal."""
    answer = asyncio.run(control_socket.ask(str(hub.folder / "gpuspawner.sock"), question))
    assert "error" not in answer, answer
    return answer


def ask(hub: Any, user: str, options: dict[str, Any], server: str = "") -> Any:
    """Ask for a server that may have to wait; the answer to that."""
    answer = hub.spawn(user, options, server)
    assert answer.status_code in (201, 202), answer.text
    return answer


def message(hub: Any, user: str, server: str = "") -> str:
    """Return what the progress page of a waiting server says now."""
    import requests

    where = f"servers/{server}" if server else "server"
    stream = hub._admin.get(f"{hub.url}/hub/api/users/{user}/{where}/progress", stream=True)
    last = ""
    try:
        for line in stream.iter_lines(decode_unicode=True):
            if line.startswith("data: "):
                last = json.loads(line[6:]).get("message", "")
                if "in line" in last:
                    return last
    except requests.exceptions.RequestException:
        pass
    finally:
        stream.close()
    return last
