"""SSH into a server through the hub: a real client, keys on the volume, the shipped limits."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from ..support.hubs import IMAGES_OWN, until
from ..support.looks import clear
from ..support.paths import ROOT

pytestmark = pytest.mark.engine

# What users copy from the handbook, with their own in place of its words, for a hub without TLS.
HANDBOOK = (ROOT / "docs" / "how-to" / "ssh.md").read_text()
LINES = re.findall(r"```text\n(Host .*?)```", HANDBOOK, re.DOTALL)[0]
OWN = {"Host gpus": "Host lab", "TOKEN": "{token}", "wss://hub.example.org": "{url}", "NAME": "ada"}
for theirs, own in OWN.items():
    assert theirs in LINES
    LINES = LINES.replace(theirs, own)
CONFIG = f"""{LINES}
Host *
    BatchMode yes
    IdentityFile {{folder}}/key
    IdentitiesOnly yes
    UserKnownHostsFile {{folder}}/known_hosts
    StrictHostKeyChecking accept-new
"""
GPUS = {"gpus": 2, "image": "minimal"}


class Laptop:
    """A user's machine, with the lines in ~/.ssh/config."""

    def __init__(self, folder: Path, hub) -> None:
        self.folder, self.hub = folder, hub
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"]
        subprocess.run(command, check=True)
        person = hub.log_in("ada", (hub.folder / "user-password").read_text().strip())
        asked = person.post(
            f"{hub.url}/hub/api/users/ada/tokens",
            json={"note": "laptop", "expires_in": 3600},
            headers={"X-XSRFToken": person.cookies.get("_xsrf", path="/hub/")},
        )
        self.token = asked.json()["token"]
        url = hub.url.replace("http://", "ws://")
        config = CONFIG.format(token=self.token, url=url, folder=folder)
        (folder / "config").write_text(config)
        bins = str(Path(sys.executable).parent)
        self.environment = {**os.environ, "PATH": os.pathsep.join([bins, os.environ["PATH"]])}

    def _command(self, program: str, *rest: str) -> list[str]:
        return [program, "-F", str(self.folder / "config"), *rest]

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a client with this machine's settings; the first word is its name."""
        return subprocess.run(
            self._command(*words),
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Have a client run, to talk with."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        client = subprocess.Popen(self._command(*words), env=self.environment, text=True, **pipes)
        watchdog = threading.Timer(120, client.kill)
        watchdog.start()
        try:
            yield client
        finally:
            watchdog.cancel()
            client.kill()
            client.communicate()

    def ssh(self, script: str, *options: str) -> str:
        """Run a script over SSH, and return what it wrote."""
        result = self.run("ssh", *options, "lab", script)
        assert result.returncode == 0, result.stderr
        return result.stdout


def running(engine) -> str:
    """Return the id of the one container there is."""
    (container,) = engine.containers()
    return str(container["Id"])


def in_terminal(engine, script: str) -> str:
    """Run a script in the server as its user does in a terminal."""
    started = engine.exec_create(running(engine), ["bash", "-lc", script])
    said = engine.exec_start(started["Id"]).decode()
    assert engine.exec_inspect(started["Id"])["ExitCode"] == 0, said
    return str(said)


@pytest.fixture(scope="module")
def shipped(hubs_of_run, minimal_image):
    """The shipped configuration, and two variables of an administrator's."""
    hub = hubs_of_run(
        IMAGES_OWN,
        "c.GPUSpawner.environment = {'NCCL_DEBUG': 'INFO', 'ODD': 'a \"b\" \\\\ #c $d'}",
        shipped=True,
    )
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def laptop(shipped, engine, tmp_path_factory) -> Iterator[Laptop]:
    """A laptop whose key is in the server that runs."""
    laptop = Laptop(tmp_path_factory.mktemp("laptop"), shipped)
    shipped.start_server("ada", GPUS)
    key = (laptop.folder / "key.pub").read_text().strip()
    in_terminal(engine, f"echo {shlex.quote(key)} >> ~/.ssh/authorized_keys")
    yield laptop
    clear(engine)


def test_a_session_has_what_a_terminal_has(laptop, engine) -> None:
    script = "id -un; echo $NCCL_DEBUG; echo $ODD; command -v python; nvidia-smi -L"
    said = laptop.ssh(script).splitlines()
    python = "/home/jovyan/.local/share/gpuspawner/packages/minimal/bin/python"
    assert said[:4] == ["jovyan", "INFO", 'a "b" \\ #c $d', python]
    assert said[4:] == in_terminal(engine, "nvidia-smi -L").splitlines()
    assert len(said[4:]) == 2


def test_a_terminal_over_ssh_is_one(laptop) -> None:
    said = laptop.ssh("tty; echo $TERM", "-tt")
    assert said.startswith("/dev/pts/")


def test_the_first_session_says_what_is_kept_and_no_later_one(laptop) -> None:
    kept = "Kept when this server stops: your home (~). Gone then: everything else"
    assert kept not in laptop.ssh("true")
    said = [laptop.run("ssh", "-tt", "lab", text="exit\n").stdout for _ in range(2)]
    assert [each.count(kept) for each in said] == [1, 0]


def test_sftp_copies_a_file_there_and_back(laptop, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(os.urandom(3_000_000))
    batch = f"put {tmp_path}/there work/data\nget work/data {tmp_path}/back\n"
    result = laptop.run("sftp", "-b", "-", "lab", text=batch)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "back").read_bytes() == (tmp_path / "there").read_bytes()


def test_a_port_of_the_server_is_forwarded_as_an_editor_does_it(laptop) -> None:
    with laptop.started("ssh", "-W", "127.0.0.1:8888", "lab") as client:
        # A server may take its client's end of file for a wish to hear nothing more.
        client.stdin.write("GET /user/ada/api HTTP/1.0\r\n\r\n")
        client.stdin.flush()
        assert client.stdout.readline() == "HTTP/1.1 200 OK\n"


def test_no_port_listens_but_jupyters_and_no_sshd_outlives_its_connection(laptop, engine) -> None:
    laptop.ssh("true")
    lines = in_terminal(engine, "cat /proc/net/tcp /proc/net/tcp6").splitlines()
    sockets = [line.split() for line in lines if not line.strip().startswith("sl")]
    listening = {where for _, where, _, state, *_ in sockets if state == "0A"}
    # The engine's own name server is at 127.0.0.11.
    ports = {int(where[-4:], 16) for where in listening if not where.startswith("0B00007F")}
    assert ports == {8888}
    until(lambda: "sshd" not in in_terminal(engine, "ps -eo comm"), "sshd ends")


def test_nobody_gets_in_without_the_hub_or_without_a_key(laptop, engine, tmp_path: Path) -> None:
    config = (laptop.folder / "config").read_text()
    (tmp_path / "config").write_text(config.replace(laptop.token, "a-wrong-token"))
    result = laptop.run("ssh", "-F", str(tmp_path / "config"), "lab", "true")
    assert result.returncode == 255
    assert "403" in result.stderr or "302" in result.stderr
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", tmp_path / "key"], check=True)
    (tmp_path / "config").write_text(config.replace(f"{laptop.folder}/key", f"{tmp_path}/key"))
    result = laptop.run("ssh", "-F", str(tmp_path / "config"), "lab", "true")
    assert result.returncode == 255
    assert "Permission denied (publickey)" in result.stderr


def test_jupyterlabs_gpu_dashboard_shows_the_granted_gpus(laptop, shipped) -> None:
    asked = requests.get(
        f"{shipped.url}/user/ada/nvdashboard/accelerators/check",
        headers={"Authorization": f"token {laptop.token}"},
        timeout=60,
    )
    assert asked.json()["ngpus"] == 2


def test_key_and_host_key_are_there_in_the_next_server(laptop, shipped, engine) -> None:
    laptop.ssh("true")
    before = running(engine)
    shipped.stop_server("ada")
    shipped.start_server("ada", GPUS)
    assert running(engine) != before
    assert laptop.ssh("echo again", "-o", "StrictHostKeyChecking=yes") == "again\n"
    mode = in_terminal(engine, "stat -c '%U %a' ~/work/.ssh ~/work/.ssh/*_key")
    assert mode.splitlines() == ["jovyan 700", "jovyan 600"]
