"""The end of a server: what runs in it is told, and has time to save, on a real hub and engine."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
import requests
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from ..support.hubs import IMAGES_OWN, TOKEN, until, with_groups
from ..support.kernels import AS_ALL, execute, new_kernel
from ..support.looks import containers, inside
from ..support.queues import audit_lines

pytestmark = pytest.mark.engine

TOKEN_OF_ALL = f"token {TOKEN}"
GPU = {"gpus": 1, "image": "minimal"}
# A training that saves when it is told to end, which takes it a moment.
TRAINING = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(2)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit()

signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).write_text("trains")
while True:
    time.sleep(1)
"""
# The same in a notebook.
CELL = """
import pathlib, time
try:
    pathlib.Path("/home/jovyan/cell").write_text("computes")
    while True:
        time.sleep(0.1)
except KeyboardInterrupt:
    time.sleep(3)
    pathlib.Path("/home/jovyan/cell").write_text("saved")
"""
# Slowly enough to be seen.
GREEDY = """
import time
held = []
while True:
    held.append(bytearray(10 * 2**20))
    time.sleep(0.1)
"""
# A server that takes all memory as soon as it is asked for anything but whether it is up.
GLUTTON = """
import os, socket, time
listening = socket.create_server(("", 8888), backlog=64)
while not os.path.exists("/tmp/eat"):
    connection = listening.accept()[0]
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\nplain")
    connection.close()
held = [bytearray(10 * 2**20) for _ in range(1000)]
time.sleep(10**6)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(10**6)"
# A kernel is killed, and Jupyter's server is elsewhere while the next one says its first words.
UNHEARD = """
kernel() { pgrep -fo 'ipykerne[l]|gpuspawner_packages.kerne[l]'; }
server=$(pgrep -fo 'jupyterhub-singleuse[r]') before=$(kernel)
# Read before a kernel listens, and so before it says anything.
settings=~/.ipython/profile_default/ipython_kernel_config.py
mkdir -p $(dirname $settings)
echo "import os, time
while os.path.exists('$HOME/hold'): time.sleep(0.1)" > $settings
touch ~/hold
kill -KILL $before
until now=$(kernel) && [ $now != $before ]; do sleep 0.1; done
kill -STOP $server
rm ~/hold
port=$(grep -ho '"iopub_port": [0-9]*' $JUPYTER_RUNTIME_DIR/kernel-*.json | grep -o '[0-9]*')
port=$(printf %04X $port)
until grep -q ":$port 00000000:0000 0A" /proc/net/tcp; do sleep 0.1; done
sleep 3
kill -CONT $server
"""
GROUPS = {
    "hasty": {"stop_grace": 2},
    "patient": {"stop_grace": 300},
    "small": {"mem_limit": "400M", "shm_size": "16M"},
    "glutton": {"mem_limit": "100M", "shm_size": "16M", "cmd": ["python", "-ISc", GLUTTON]},
}
SCRIPT = """#!/bin/bash
cat ~/training ~/cell > ~/at-the-script 2>/dev/null
sleep 1
echo ran > ~/script
"""


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image):
    lines = (
        "c.JupyterHub.tornado_settings['slow_stop_timeout'] = 0",
        "c.GPUSpawner.poll_interval = 1",
    )
    return hubs_of_run(IMAGES_OWN, *lines, with_groups(GROUPS), shipped=True)


@pytest.fixture
def hub(idle_host, _hub):
    """A hub with JupyterLab in its servers, and without any."""
    yield _hub
    _hub.stop_all_servers()


def write(engine, name, text):
    """Write a file into ada's home."""
    inside(engine, "ada", f"cat > ~/{name} <<'END'\n{text}\nEND\nchmod +x ~/{name}")


def read(engine, name):
    """Return what a file in ada's home says; "" where there is none."""
    return inside(engine, "ada", f"cat ~/{name} 2>/dev/null")


def computing_kernel(hub, code):
    """Start a kernel in ada's server, and let it execute something."""
    kernel = new_kernel(f"{hub.url}/user/ada", "one.ipynb")

    async def run():
        connection = await execute(f"{hub.url}/user/ada", kernel, code)
        # Its first word: the message has arrived.
        await connection.read_message()
        connection.close()

    asyncio.run(run())


def test_what_runs_is_told_in_order_and_finishes_what_it_saves(hub, engine):
    # Longer than a test waits: nobody who is done, or waits for input, is waited for.
    hub.add_to_group("patient", "ada")
    hub.start_server("ada", GPU)
    write(engine, "train.py", TRAINING)
    inside(engine, "ada", "mkdir -p ~/.jupyter")
    write(engine, ".jupyter/before-stop", SCRIPT)
    # In tmux: in place of a shell, and in one.
    inside(engine, "ada", "tmux new-session -d 'exec python3 ~/train.py ~/training'")
    inside(engine, "ada", "tmux new-session -d 'bash; true'; sleep 1")
    inside(engine, "ada", "tmux send-keys 'python3 ~/train.py ~/typed' Enter")
    inside(engine, "ada", "nohup setsid python3 ~/train.py ~/behind >/dev/null 2>&1 &")
    computing_kernel(hub, CELL)
    began = {"training": "trains", "typed": "trains", "behind": "trains", "cell": "computes"}
    for name, says in began.items():
        until(lambda name=name, says=says: read(engine, name) == says, f"{name} runs", log=hub.log)
    hub.stop_server("ada")
    assert containers(engine) == []
    hub.start_server("ada", GPU)
    # The script came first, while all the rest still ran.
    assert read(engine, "at-the-script") == "trainscomputes"
    assert {name: read(engine, name) for name in began} == dict.fromkeys(began, "saved")
    assert read(engine, "script") == "ran"


@pytest.mark.thorough
def test_who_was_killed_for_want_of_memory_is_told(hub, engine):
    hub.add_to_group("small", "ada")
    hub.start_server("ada", GPU)
    url = f"{hub.url.replace('http', 'ws', 1)}/user/ada/gpuspawner/page"
    kernel = new_kernel(f"{hub.url}/user/ada", "train.ipynb")

    async def told():
        page = await websocket_connect(HTTPRequest(url, headers={"Authorization": TOKEN_OF_ALL}))
        first = json.loads(await page.read_message())
        connection = await execute(f"{hub.url}/user/ada", kernel, GREEDY)
        while "killed" not in (message := json.loads(await page.read_message())):
            pass
        connection.close()
        # What isn't asked for is kept nowhere.
        await page.write_message(json.dumps({"do": "save", "document": {"path": "unasked"}}))
        await page.write_message("[" * 10_000)
        page.close()
        return first["memory"], message["killed"]

    first, killed = asyncio.run(asyncio.wait_for(told(), 120))
    limit = 400 * 1024**2
    assert first["limit"] == killed["limit"] == limit
    assert 0 < first["used"] < limit
    assert killed["notebook"] == "train.ipynb"
    assert killed["peak"] is None or killed["peak"] > limit * 0.9
    # The server itself lives on: it would be the last to go.
    assert hub.ready("ada")
    scores = "cat /proc/$(pgrep -fo {})/oom_score_adj"
    of_kernel = scores.format("'ipykerne[l]|gpuspawner_packages.kerne[l]'")
    until(lambda: inside(engine, "ada", of_kernel) == "500", "the kernel's next start", log=hub.log)
    server = inside(engine, "ada", scores.format("jupyterhub-singleuse[r]"))
    terminal = inside(engine, "ada", "bash -lc 'cat /proc/self/oom_score_adj'")
    assert (server, terminal) == ("0", "500")
    assert inside(engine, "ada", "ls ~/unasked 2>&1 | tail -c 10") != "unasked"


@pytest.mark.thorough
def test_a_server_that_was_killed_for_want_of_memory_says_so_to_its_user(hub, engine):
    hub.add_to_group("glutton", "dee")
    hub.start_server("dee", GPU)
    inside(engine, "dee", "touch /tmp/eat; exec 3<>/dev/tcp/127.0.0.1/8888; echo >&3")
    until(lambda: not hub._has("dee", ""), "the hub has seen its end", log=hub.log)
    password = (hub.folder / "user-password").read_text().strip()
    page = hub.log_in("dee", password).get(f"{hub.url}/hub/spawn/dee").text
    assert re.search(r"Your server ended at \d+:\d\d: its memory of 100 MB was full\.", page)
    released = [line for line in audit_lines(hub) if line["event"] == "release"]
    assert (released[-1]["user"], released[-1]["rule"]) == ("dee", "it ended by itself")


@pytest.mark.thorough
def test_a_server_in_which_nothing_runs_isn_t_waited_for(hub, engine):
    hub.add_to_group("patient", "ada")
    hub.start_server("ada", GPU)
    computing_kernel(hub, "1 + 1")  # and idles from then on
    inside(engine, "ada", "tmux new-session -d")  # a shell that waits
    hub.stop_server("ada")  # which gives up long before the 300 seconds
    assert containers(engine) == []


@pytest.mark.thorough
def test_nor_is_a_kernel_that_was_killed_and_started_again(hub, engine):
    hub.add_to_group("patient", "ada")
    hub.start_server("ada", GPU)
    computing_kernel(hub, "while True: pass")
    inside(engine, "ada", UNHEARD)
    kernels = f"{hub.url}/user/ada/api/kernels"
    (kernel,) = requests.get(kernels, headers=AS_ALL, timeout=60).json()
    assert kernel["execution_state"] == "busy"  # Jupyter doesn't know better
    hub.stop_server("ada")
    assert containers(engine) == []


@pytest.mark.thorough
def test_who_doesn_t_listen_is_ended_when_the_time_is_over(hub, engine):
    hub.add_to_group("hasty", "cyd")
    hub.start_server("cyd", GPU)
    inside(engine, "cyd", f"tmux new-session -d \"python3 -c '{DEAF}'\"")
    deaf = "pgrep -f signal.SIG_IG[N]"
    until(lambda: inside(engine, "cyd", deaf), "it runs", log=hub.log)
    hub.stop_server("cyd")
    assert containers(engine) == []
    released = [line for line in audit_lines(hub) if line["event"] == "release"]
    assert released[-1]["user"] == "cyd"
