"""A real JupyterHub with its real proxy, in processes of their own, and people who use it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from gpuspawner.doctor import configuration
from gpuspawner.doctor.findings import Context

from .hub_nursery import DOCTORS, HubNursery, HubProcess
from .paths import ROOT

PASSWORD = "a password for tests"
TOKEN = "a-token-of-an-administrator-for-tests"

USUAL = """
from gpuspawner.network import ensure_network

c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = {password!r}
c.Authenticator.allow_all = True
c.Authenticator.username_map = {{}}
c.JupyterHub.hub_ip = ensure_network("gpuspawner")
c.JupyterHub.spawner_class = "gpu"
c.JupyterHub.allow_named_servers = True
c.GPUSpawner.network_name = "gpuspawner"
c.GPUSpawner.images = {{"minimal": "gpuspawner/minimal:py3.11"}}
c.GPUSpawner.pull_policy = "never"
# What can't be had is refused at once, but in the tests of the queue.
c.GPUSpawner.longest_wait_minutes = 0
"""
# What doctor rightly says of the usual configuration: nobody's server is kept from anything, and
# all have one address.
OF_EVERY_HUB = (
    "a program in a server can gain rights",
    "no mem_limit",
    "an administrator who opens somebody's server lends its pages",
)
WAITING = "c.GPUSpawner.longest_wait_minutes = 60"

# The least that a hub takes for a server, and up in a moment. Most tests aren't about JupyterLab,
# whose start takes a processor a second.
PLAIN_SAYS = "a plain server listens"
PLAIN = f"""
import socket
listening = socket.create_server(("", 8888), backlog=64)
print({PLAIN_SAYS!r}, flush=True)
while True:
    connection = listening.accept()[0]
    try:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\nplain")
    except OSError:
        pass
    connection.close()
"""
# As a configuration for DockerSpawner has it: what a test sets for GPUSpawner goes before.
PLAIN_SERVER = f"c.DockerSpawner.cmd = {['python', '-I', '-S', '-c', PLAIN]!r}"
# What an image itself starts, in ours JupyterLab.
IMAGES_OWN = "c.DockerSpawner.cmd = None"


def with_groups(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Return lines of a configuration: groups without members, and what their servers have.

    Many tests need a hub whose servers are odd in one way or another. One hub has them all.
    """
    members = {name: {"users": []} for name in groups}
    overrides = {
        name: {"groups": [name], "spawner_override": dict(traits)}
        for name, traits in groups.items()
    }
    return f"c.JupyterHub.load_groups = {members!r}\nc.Spawner.group_overrides = {overrides!r}\n"


ALWAYS = """
c.JupyterHub.bind_url = "http://127.0.0.1:{public}{prefix}"
c.JupyterHub.hub_port = {hub}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api}"
c.ConfigurableHTTPProxy.should_start = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.services = [{{"name": "tests", "api_token": {token!r}}}]
# Else the hub hashes it 16384 times at each of the tests' questions: a third of all that it does.
c.JupyterHub.trust_user_provided_tokens = True
c.JupyterHub.load_roles = [
    {{"name": "tests", "services": ["tests"],
      "scopes": ["admin:users", "admin:servers", "admin:groups", "access:servers"]}}
]
"""


def _ports() -> Iterator[int]:
    """Yield ports that the kernel gives to no connection by itself, each worker's own."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % PORT_WORKERS
    mine = range(FIRST_PORT + worker, min(low, LAST_PORT), PORT_WORKERS)
    yield from (port for port in random.sample(mine, len(mine)) if port not in NOT_IN_BROWSERS)


# Ports above `FIRST_PORT` of which browsers open no page.
# ref: https://fetch.spec.whatwg.org/#port-blocking
NOT_IN_BROWSERS = {10080}
FIRST_PORT, LAST_PORT, PORT_WORKERS = 10_000, 32_000, 16
PORTS = _ports()


def free_port() -> int:
    """Return a port that nobody listens on, and that is nobody's until it is listened on."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
    raise AssertionError("no port is free")


def write_config(
    folder: Path, lines: Iterable[str], shipped: bool = False, prefix: str = ""
) -> None:
    """Write a hub's configuration: the usual one or the repository's own, then `lines`.

    Args:
        prefix: what its paths begin with, as "/jupyter".
    """
    ports = {"public": free_port(), "hub": free_port(), "api": free_port()}
    first = (
        f"load_subconfig({str(ROOT / 'jupyterhub_config.py')!r})\n"
        if shipped
        else USUAL.format(password=PASSWORD)
    )
    text = "\n".join(
        ["c = get_config()", first, ALWAYS.format(token=TOKEN, prefix=prefix, **ports), *lines, ""]
    )
    (folder / "jupyterhub_config.py").write_text(text)
    (folder / "ports").write_text("\n".join(map(str, ports.values())))
    (folder / "prefix").write_text(prefix)


HUB = (sys.executable, "-m", "jupyterhub", "-f", "jupyterhub_config.py")


class Hub:
    """A hub's processes; `url` is what a browser opens."""

    # What its command begins with, as where it is in another network namespace.
    words_before: Sequence[str] = ()

    def __init__(
        self, folder: Path, environment: Mapping[str, str], nursery: HubNursery | None = None
    ) -> None:
        self.folder = folder
        self._nursery = nursery
        self.port, self.hub_port, self.api_port = map(int, (folder / "ports").read_text().split())
        self.prefix = (folder / "prefix").read_text()
        self.url = f"http://127.0.0.1:{self.port}{self.prefix}"
        bins = [str(ROOT / "node_modules" / ".bin"), str(Path(sys.executable).parent)]
        path = os.pathsep.join([*bins, environment.get("PATH", "")])
        self.environment = {**environment, "PATH": path, "CONFIGPROXY_AUTH_TOKEN": "for-tests"}
        self._process: subprocess.Popen[bytes] | HubProcess | None = None
        self._log_from = 0
        self._admin = requests.Session()
        self._admin.trust_env = False
        self._admin.headers["Authorization"] = f"token {TOKEN}"

    # -- its process ---------------------------------------------------------------------------

    def start(self, doctor: Collection[str] = ()) -> None:
        """Start it, and return when it answers. `gpuspawner doctor` has to be right about it.

        Args:
            doctor: what it warns of in this configuration, a part of each finding's words, but for
                what it says of every hub here.
        """
        path = self.folder / "hub.log"
        if self._nursery is not None and self._nursery.can_start(self.environment):
            self._process = self._nursery.start(self.folder, self.environment, path)
        else:
            with path.open("ab") as log:
                self._process = subprocess.Popen(
                    [*self.words_before, *HUB],
                    cwd=self.folder,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        until(self._answers, "the hub answers", log=self.log)
        # Not beside its start: both would make the servers' network, and an engine lets them.
        examination = self._begin_examination()
        if examination is not None:
            assert examination.wait(60) == 0, self.log()
            self._examined(doctor)

    def _begin_examination(self) -> HubProcess | None:
        """Have a doctor read the configuration, the first time."""
        if (self.folder / DOCTORS).exists() or self._nursery is None:
            return None
        if not self._nursery.can_start(self.environment):
            return None
        log = self.folder / "doctor.log"
        return self._nursery.start(self.folder, self.environment, log, "doctor")

    def _examined(self, expected: Collection[str]) -> None:
        file = self.folder / "jupyterhub_config.py"
        loaded = json.loads((self.folder / DOCTORS).read_text())
        assert "error" not in loaded, loaded
        context = Context(file, self.folder)
        context.configuration = configuration.from_loaded(file, loaded)
        bad = ("failure", "warning")
        found = [each for each in configuration.settings(context) if each.state in bad]
        words = [*expected, *OF_EVERY_HUB]
        wrong = [each for each in found if not any(word in each.found for word in words)]
        assert wrong == [], f"doctor says this of a hub that works: {wrong}"
        unsaid = [word for word in expected if not any(word in each.found for each in found)]
        assert unsaid == [], found

    def kill(self) -> None:
        """SIGKILL the hub, not its proxy: what a crash leaves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self, seconds: float = 60) -> None:
        """Ask the hub to end, which it must do by itself."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(seconds)

    def stop(self) -> None:
        """End the hub and its proxy."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        # A killed hub leaves its proxy in the session that we made for both.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"the hub ended ({code}): {self.log()[-3000:]}"
        with suppress(requests.ConnectionError):
            return self._admin.get(f"{self.url}/hub/health", timeout=5).ok
        return False

    @property
    def pid(self) -> int:
        """The hub's process."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """Return what it logged so far, in the test that runs."""
        written = (self.folder / "hub.log").read_bytes()[self._log_from :]
        return written.decode(errors="replace")

    def begin_anew(self) -> None:
        """End its servers and forget its users, and what it logged of them: for another test."""
        self.stop_all_servers()
        for user in self.api("GET", "/users").json():
            quoted = requests.utils.quote(user["name"], safe="")
            assert self.api("DELETE", f"/users/{quoted}").status_code == 204
        self._log_from = (self.folder / "hub.log").stat().st_size

    # -- its REST API, as an administrator -----------------------------------------------------

    def api(self, method: str, path: str, json: Any = None, timeout: float = 120) -> Any:
        """Call the REST API as a service that may do everything."""
        return self._admin.request(method, f"{self.url}/hub/api{path}", json=json, timeout=timeout)

    def stream(self, url: str, seconds: float) -> Any:
        """Open an answer that has no end, which is given up when nothing comes for so long."""
        return self._admin.get(url, stream=True, timeout=seconds)

    def add_user(self, name: str) -> str:
        """Make a user, and return the name as it stands in a URL."""
        response = self.api("POST", "/users", {"usernames": [name]})
        assert response.status_code in (201, 409), response.text
        return requests.utils.quote(name, safe="")

    def add_to_group(self, group: str, *users: str) -> None:
        """Put users into a group that there is, whose overrides hold for their next spawn."""
        for user in users:
            self.add_user(user)
        answer = self.api("POST", f"/groups/{group}/users", {"users": [*users]})
        assert answer.status_code == 200, answer.text

    def spawn(self, user: str, options: Any = None, server: str = "") -> Any:
        """Ask for a server over REST, and return the answer."""
        quoted = self.add_user(user)
        where = f"servers/{server}" if server else "server"
        return self.api("POST", f"/users/{quoted}/{where}", options)

    def start_server(self, user: str, options: Any = None, server: str = "") -> None:
        """Start a server that must start."""
        response = self.spawn(user, options, server)
        assert response.status_code in (201, 202), response.text
        until(lambda: self.ready(user, server), f"{user}'s server is ready", log=self.log)

    def server(self, user: str, server: str = "") -> dict[str, Any]:
        """Return what the hub says of a server; {} where it has none."""
        quoted = requests.utils.quote(user, safe="")
        return self.api("GET", f"/users/{quoted}").json().get("servers", {}).get(server, {})

    def ready(self, user: str, server: str = "") -> bool:
        """Return whether a server can be used now."""
        return bool(self.server(user, server).get("ready"))

    def ready_users(self) -> set[str]:
        """Return whose servers can be used now."""
        return {user["name"] for user in self.api("GET", "/users?state=ready").json()}

    def failed_start(self, user: str, options: Any = None) -> dict[str, Any]:
        """Ask for a server whose start fails, on a hub that waits for no start; return how."""
        response = self.spawn(user, options)
        assert response.ok, response.text
        events: list[dict[str, Any]] = []

        def ended() -> bool:
            # In the moment in which the hub clears up, it has nothing to say.
            events[:] = self.progress(user)
            return bool(events)

        until(ended, f"{user}'s start ends", log=self.log)
        assert events[-1]["failed"]
        return events[-1]

    def stop_server(self, user: str, server: str = "") -> None:
        """Stop a server, and return when it is gone."""
        quoted = requests.utils.quote(user, safe="")
        where = f"servers/{server}" if server else "server"
        response = self.api("DELETE", f"/users/{quoted}/{where}")
        assert response.status_code in (202, 204), response.text
        until(lambda: not self._has(user, server), f"{user}'s server is gone", log=self.log)

    def stop_all_servers(self) -> None:
        """Stop every server, and return when the hub has none."""
        for user in self.api("GET", "/users?state=active").json():
            for name in user.get("servers", {}):
                self.stop_server(user["name"], name)

    def _has(self, user: str, server: str) -> bool:
        state = self.server(user, server)
        return bool(state and (state.get("ready") or state.get("pending")))

    def progress(self, user: str, server: str = "") -> list[dict[str, Any]]:
        """Return the events of a spawn's progress page, until it ends."""
        return list(self.follow(user, server))

    def follow(self, user: str, server: str = "") -> Iterator[dict[str, Any]]:
        """Yield the events of a spawn's progress page as they come."""
        quoted = requests.utils.quote(user, safe="")
        where = f"servers/{server}" if server else "server"
        answer = self._admin.get(
            f"{self.url}/hub/api/users/{quoted}/{where}/progress", stream=True, timeout=120
        )
        for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
            if line.startswith("data: "):
                yield json.loads(line[6:])

    # -- a person ------------------------------------------------------------------------------

    def log_in(self, user: str, password: str = PASSWORD) -> requests.Session:
        """Return a session in which a user is logged in, as a browser's would be."""
        session = requests.Session()
        session.trust_env = False
        session.get(f"{self.url}/hub/login")
        xsrf = session.cookies.get("_xsrf", path=f"{self.prefix}/hub/")
        form = {"username": user, "password": password, "_xsrf": xsrf}
        # Not followed: it may lead to a server that starts, or to one that is no JupyterLab.
        response = session.post(f"{self.url}/hub/login", data=form, allow_redirects=False)
        assert response.status_code == 302, response.text
        return session


def until(true: Any, what: str, seconds: float = 60, log: Any = None) -> None:
    """Wait until a condition holds; fail with what was waited for. No bound that tests speed."""
    began = time.monotonic()
    while not true():
        waited = time.monotonic() - began
        if waited > seconds:
            tail = f"\n{log()[-4000:]}" if log else ""
            raise AssertionError(f"waited {seconds:.0f} s for: {what}{tail}")
        # Most conditions ask a hub, which has other things to do: the longer it takes, the rarer.
        time.sleep(min(0.02 + waited / 10, 0.5))
