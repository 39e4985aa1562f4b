"""What a server of our images has for its user: ports, and why a GPU's memory ran out."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
import requests
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from ..support.hubs import IMAGES_OWN, until
from ..support.kernels import AS_ALL, execute, new_kernel
from ..support.looks import inside

pytestmark = pytest.mark.engine

LINES = [IMAGES_OWN, "c.GPUSpawner.poll_interval = 1"]
SERVES = "cd /usr/share/common-licenses; python3 -m http.server --bind {} {}"
GIB = 1024


def serve(engine, address, port):
    """Have a program listen in ada's server."""
    inside(engine, "ada", f"tmux new-session -d '{SERVES.format(address, port)}'")
    inside(engine, "ada", f"until curl -s http://{address}:{port}/ >/tmp/it; do sleep 0.1; done")


def token_of(session, hub, user):
    """Return headers with a token of a user's own."""
    made = session.post(
        f"{hub.url}/hub/api/users/{user}/tokens",
        json={"note": "test", "expires_in": 3600},
        headers={"X-XSRFToken": session.cookies.get("_xsrf", path="/hub/")},
    )
    return {"Authorization": f"token {made.json()['token']}"}


def test_a_port_is_reached_by_who_may_open_the_server_and_on_the_loopback_alone(module_hub, engine):
    hub = module_hub
    hub.start_server("ada", {"gpus": 0})
    mine, theirs = (token_of(hub.log_in(user), hub, user) for user in ("ada", "ben"))
    own = inside(engine, "ada", "hostname -i")
    serve(engine, "127.0.0.1", 7001)
    serve(engine, own, 7002)

    def ask(path, headers=None):
        url = f"{hub.url}/user/ada/proxy/{path}"
        return requests.get(url, headers=headers, timeout=60, allow_redirects=False)

    found = ask("7001/GPL-3", mine)
    assert (found.status_code, "GNU GENERAL PUBLIC LICENSE" in found.text) == (200, True)
    stranger = ask("7001/GPL-3")
    assert stranger.status_code == 302
    assert "/hub/api/oauth2/authorize" in stranger.headers["Location"]
    assert ask("7001/GPL-3", theirs).status_code == 403
    # Listening elsewhere, it isn't found by its port, nor by its address.
    assert ask("7002/GPL-3", mine).status_code in (500, 502, 503, 599)
    assert ask(f"{own}:7002/GPL-3", mine).status_code == 403
    assert ask("127.0.0.1:7001/GPL-3", mine).status_code == 200
    assert ask("example.org:80/", mine).status_code == 403


NOTEBOOKS = ("train", "other")
HOLDS = """
import os, pathlib
held = open("/dev/nvidia0")
pathlib.Path("/tmp/{}").write_text(f"{{os.getpid()}} ")
"""


@pytest.mark.thorough
def test_a_kernel_whose_gpu_is_full_is_told_who_else_is_on_it(module_hub, engine, host):
    hub = module_hub
    hub.start_server("ada", {"gpus": 1})

    async def begin(name):
        kernel = new_kernel(hub, "ada", f"{name}.ipynb")
        connection = await execute(hub, "ada", kernel, HOLDS.format(name))
        # Its first word: the message has arrived.
        await connection.read_message()
        return kernel

    async def ask():
        train, _ = [await begin(name) for name in NOTEBOOKS]
        there = f"cat {' '.join(f'/tmp/{name}' for name in NOTEBOOKS)} 2>/dev/null | wc -w"
        until(lambda: inside(engine, "ada", there) == "2", "both hold it", log=hub.log)
        first, second = (int(inside(engine, "ada", f"cat /tmp/{each}")) for each in NOTEBOOKS)
        use_memory(host, {first: 5 * GIB, second: 33 * GIB})
        url = f"{hub.url.replace('http', 'ws', 1)}/user/ada/gpuspawner/page"
        page = await websocket_connect(HTTPRequest(url, headers=AS_ALL))
        error = "OutOfMemoryError: CUDA out of memory. Tried to allocate 8.00 GiB."
        question = {"do": "explain", "kernel": train, "error": error}
        await page.write_message(json.dumps(question))
        while "gpu_full" not in (message := json.loads(await page.read_message())):
            pass
        # Nor does it break who asks what it isn't.
        await page.write_message(json.dumps({"do": "explain", "kernel": ["?"], "error": None}))
        await page.write_message(json.dumps(question))
        while "gpu_full" not in json.loads(await page.read_message()):
            pass
        page.close()
        return train, message["gpu_full"]

    train, told = asyncio.run(asyncio.wait_for(ask(), 120))
    assert told["kernel"] == train
    assert told["others"] == ["other.ipynb"]
    assert (told["own"], told["others_hold"]) == (5 * 2**30, 33 * 2**30)
    assert (told["total"], told["asked"]) == (40 * 2**30, 8 * 2**30)


def use_memory(host, held):
    """Have processes hold memory of all GPUs, in MiB."""
    host.change(
        lambda state: replace(
            state,
            gpus=tuple(replace(gpu, processes=tuple(held.items())) for gpu in state.gpus),
        )
    )
