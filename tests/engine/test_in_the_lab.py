"""What a server of our images has for its user: ports, TensorBoard, why a GPU's memory ran out."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from dataclasses import replace

import pytest
import requests
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from ..support.hubs import IMAGES_OWN, until
from ..support.kernels import AS_ALL, execute, new_kernel
from ..support.looks import container_of, inside

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


# Says back what it is told, each in its kind.
ECHO = """
import asyncio
from tornado.web import Application
from tornado.websocket import WebSocketHandler
class Echo(WebSocketHandler):
    def check_origin(self, origin): return True
    def select_subprotocol(self, offered): return "second" if "second" in offered else None
    def on_message(self, said): self.write_message(said, binary=isinstance(said, bytes))
async def serve():
    Application([("/echo/(.*)", Echo)]).listen(7003, "127.0.0.1")
    await asyncio.Event().wait()
asyncio.run(serve())
"""


def test_websockets_of_a_port_are_for_who_may_open_the_server_and_for_no_other_site(
    module_hub, engine
):
    hub = module_hub
    hub.start_server("ada", {"gpus": 0})
    browser = hub.log_in("ada")
    mine, theirs = (token_of(hub.log_in(user), hub, user) for user in ("ada", "ben"))
    # Her browser has been at the server, so that it has a cookie of that.
    assert browser.get(f"{hub.url}/user/ada/lab").status_code == 200
    cookies = {"Cookie": "; ".join(f"{c.name}={c.value}" for c in browser.cookies)}
    container = container_of(engine, "ada")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("echo.py")
        entry.size = len(ECHO)
        tar.addfile(entry, io.BytesIO(ECHO.encode()))
    engine.put_archive(container, "/tmp", packed.getvalue())
    inside(engine, "ada", "tmux new-session -d 'python /tmp/echo.py'")
    inside(engine, "ada", "until curl -s http://127.0.0.1:7003/ >/tmp/it; do sleep 0.1; done")

    async def say(headers, *said, **more):
        url = f"{hub.url.replace('http', 'ws', 1)}/user/ada/proxy/7003/echo/room?a=1"
        page = await websocket_connect(HTTPRequest(url, headers=headers), **more)
        heard, protocol = [], page.selected_subprotocol
        for each in said:
            await page.write_message(each, binary=isinstance(each, bytes))
            heard.append(await page.read_message())
        page.close()
        return [*heard, protocol]

    async def refused(headers):
        try:
            return await say(headers, "hello")
        except HTTPClientError as error:
            return error.code

    async def ask():
        said = ("hello", "你好", bytes(range(256)), "x" * 2**20)
        assert await say(mine, *said) == [*said, None]
        chosen = await say(mine, "hello", subprotocols=["second"])
        assert chosen == ["hello", "second"]
        own_site = {**cookies, "Origin": hub.url}
        assert await say(own_site, "hello") == ["hello", None]
        assert await refused({**cookies, "Origin": "http://elsewhere.example"}) == 403
        assert await refused(theirs) == 403
        assert await refused({}) in (302, 403)
        assert await refused({"Authorization": "token none"}) in (302, 403)

    asyncio.run(asyncio.wait_for(ask(), 120))


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
        kernel = new_kernel(f"{hub.url}/user/ada", f"{name}.ipynb")
        connection = await execute(f"{hub.url}/user/ada", kernel, HOLDS.format(name))
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


SHOWS = """
%load_ext tensorboard
%tensorboard --logdir work/more/runs
"""
# Without a hub.
MINE = {"Authorization": "token lab"}
LAB = ["jupyter", "lab", "--ip=0.0.0.0", "--IdentityProvider.token=lab", "--no-browser"]
WRITES = """
from torch.utils.tensorboard import SummaryWriter
with SummaryWriter() as writer:
    writer.add_scalar("loss", 0.5, 1)
"""


def test_tensorboard_is_one_for_each_folder_and_shows_in_a_notebook(pytorch_image):
    client, reference = pytorch_image
    command = [*LAB, "--ServerApp.base_url=/user/ada"]
    container = client.containers.run(reference, command, detach=True)

    def run(script):
        code, said = container.exec_run(["bash", "-lc", script])
        assert code == 0, said
        return said.decode()

    def answers():
        container.reload()
        address = container.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        server = f"http://{address}:8888/user/ada"
        try:
            return server if requests.get(f"{server}/api", timeout=5).ok else ""
        except requests.RequestException:
            return ""

    async def display(server):
        kernel = new_kernel(server, "one.ipynb", MINE)
        connection = await execute(server, kernel, SHOWS, MINE)
        said = ""
        while "<iframe" not in said:
            said = await connection.read_message()
        return json.loads(said)["content"]["data"]["text/html"]

    def begin(server, path, headers=MINE):
        url = f"{server}/gpuspawner/tensorboard"
        return requests.post(url, json={"path": path}, headers=headers, timeout=120)

    try:
        until(answers, "Jupyter answers")
        server = answers()
        run(f"mkdir -p ~/work/more/runs ~/work/bare; cd ~/work; python -c '{WRITES}'")
        first, again, more, bare, topmost = (
            begin(server, path).json() for path in ("work", "work", "work/more", "work/bare", "")
        )
        home = "/home/jovyan"
        found = [each["logs"] for each in (first, again, more, bare, topmost)]
        folders = ["work/runs", "work/runs", "work/more/runs", "work/bare", "runs"]
        assert found == [f"{home}/{folder}" for folder in folders]
        assert first["port"] == again["port"]
        assert len({each["port"] for each in (first, more, bare, topmost)}) == 4
        tags = f"{server}/proxy/{first['port']}/data/plugin/scalars/tags"
        until(lambda: "loss" in requests.get(tags, headers=MINE, timeout=60).text, "it has read it")
        assert requests.get(tags, timeout=60, allow_redirects=False).status_code == 302
        # On the loopback alone, and the first to go where the memory is full.
        listening = run("cat /proc/net/tcp | grep ' 0A ' | awk '{print $2}'").split()
        ports = {line.partition(":")[2] for line in listening if line.startswith("0100007F")}
        assert {f"{each['port']:04X}" for each in (first, more, bare, topmost)} <= ports
        assert run("cat /proc/$(pgrep -fo tensorboard)/oom_score_adj").strip() == "500"
        # What isn't a folder of one's own.
        refused = [begin(server, path).status_code for path in ("nowhere", "../../etc", 3)]
        assert refused == [404, 404, 400]
        assert begin(server, "work", {}).status_code == 403
        assert "/user/ada/proxy/" in asyncio.run(asyncio.wait_for(display(server), 120))
    finally:
        container.remove(force=True, v=True)
