"""What an image's server does when its container has lost its GPUs' devices."""

from __future__ import annotations

import asyncio
import errno
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from ..support.paths import ROOT

SITE = ROOT / "image/rootfs/opt/jupyter/lib/python3.11/site-packages"
SCRIPTS = ROOT / "image/rootfs/opt/jupyter/share/jupyter/labextensions/gpuspawner/static"
# JupyterLab cuts a notification off after so many characters.
LONGEST = 140


@pytest.fixture
def load(monkeypatch) -> Iterator[Any]:
    """Import a module of the image's, as its Python does."""
    monkeypatch.syspath_prepend(SITE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda name: importlib.import_module(f"gpuspawner_server{name}")
    for name in [name for name in sys.modules if name.startswith("gpuspawner_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("error", "gone"),
    [(errno.EPERM, True), (errno.EIO, False), (errno.ENODEV, False), (errno.EACCES, False)],
)
def test_only_a_right_that_was_taken_away_says_so(
    load, tmp_path: Path, monkeypatch, error: int, gone: bool
) -> None:
    devices = load(".devices")
    for name in ("nvidiactl", "nvidia0", "nvidia-uvm", "nvidia12"):
        (tmp_path / name).touch()
    found = devices.devices(tmp_path)
    assert [path.name for path in found] == ["nvidiactl", "nvidia0", "nvidia12"]
    assert not devices.are_gone(found)
    opened = os.open

    def refuse(path, *flags):
        if Path(path).name == "nvidia12":
            raise OSError(error, "no")
        return opened(path, *flags)

    monkeypatch.setattr(os, "open", refuse)
    assert devices.are_gone(found) is gone


def test_a_container_without_devices_has_lost_none(load, tmp_path: Path) -> None:
    devices = load(".devices")
    assert not devices.are_gone(devices.devices(tmp_path))


@pytest.fixture
def dashboard() -> Iterator[Any]:
    """What is told to a dashboard, and its address."""
    heard: list[tuple[str, str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append((self.path, self.headers["Authorization"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(heard=heard, url=f"http://127.0.0.1:{server.server_port}/gpus/api")
    server.shutdown()
    server.server_close()


def test_pages_and_the_dashboard_are_told_and_told_when_it_is_over(load, dashboard) -> None:
    told: list[Any] = []
    environment = {
        "GPUSPAWNER_API_URL": dashboard.url,
        "JUPYTERHUB_USER": "ada/x",
        "JUPYTERHUB_SERVER_NAME": "gpu lab",
        "JUPYTERHUB_API_TOKEN": "t0ken",
    }
    page = SimpleNamespace(tell=told.append)
    watch = load(".devices").Watch(logging.getLogger("server"), environment, [page])
    for gone in (False, True, True, False, False):
        asyncio.run(watch.look(gone))
    assert told == [{"gpus_gone": True}] * 2
    where = "/gpus/api/users/ada%2Fx/servers/gpu%20lab/devices"
    assert [(path, body["gone"]) for path, _, body in dashboard.heard] == [
        (where, True),
        (where, True),
        (where, False),
    ]
    assert {token for _, token, _ in dashboard.heard} == {"token t0ken"}


def test_without_a_dashboard_pages_are_told_all_the_same(load) -> None:
    told: list[Any] = []
    page = SimpleNamespace(tell=told.append)
    watch = load(".devices").Watch(logging.getLogger("server"), {}, [page])
    asyncio.run(watch.look(True))
    assert told == [{"gpus_gone": True}]


WARNINGS = """
import { Warnings } from "./static/warnings.js";
import { lease } from "./static/lease.js";
import { GPUS_GONE, Words } from "./static/words.js";
const said = [];
for (const language of ["en", "zh-CN"]) {
  const shown = [];
  const notification = {
    emit: (message) => (shown.push(message), shown.length),
    update: ({ message }) => (shown.push(message), true),
    dismiss: () => shown.push("gone"),
  };
  const words = new Words({ languageCode: language, load: () => undefined });
  const warnings = new Warnings(notification, words, {});
  const hub = { user: "ada", server: "" };
  const server = {
    user: "ada", server: "", gpus: ["GPU-1"], until: null, warned: false,
    idle_since: null, idle_until: null, stop: null,
  };
  const at = Date.now();
  const answer = (trouble) => ({
    at, now: new Date(at).toISOString(), fresh: true, gpus: [], queue: { waiting: [] },
    servers: [{ ...server, trouble }],
  });
  const failed = (index) => ({ gpus: [{ gpu: "GPU-1", index, verdict: "quarantine" }] });
  const after = { gpus: [{ gpu: "GPU-1", index: 1, verdict: "after-use" }] };
  for (const trouble of [undefined, after, failed(7), failed(null), { gpus: [] }]) {
    warnings.show(lease(hub, {}, answer(trouble)));
  }
  said.push(shown, words.say(GPUS_GONE));
}
console.log(JSON.stringify(said));
"""


def test_jupyterlab_warns_while_a_gpu_is_out_of_order(tmp_path: Path) -> None:
    if not (node := shutil.which("node", path=Path(sys.executable).parent)):
        pytest.skip("no Node.js in this environment")
    shutil.copytree(SCRIPTS, tmp_path / "static")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "code.js").write_text(WARNINGS)
    done = subprocess.run([node, "code.js"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    english, gone, chinese, gone_chinese = json.loads(done.stdout)
    assert [each.partition(" of this")[0] for each in english] == ["GPU 7", "A GPU", "gone"]
    assert "GPU 7 出现故障" in chinese[0]
    assert gone.startswith("This server has lost its GPUs")
    assert gone_chinese.startswith("此服务器已失去 GPU")
    assert max(map(len, [*english, gone, *chinese, gone_chinese])) <= LONGEST
