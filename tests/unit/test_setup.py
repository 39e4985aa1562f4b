"""The locks, and the scripts behind `make`: what they install, and how they give up."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import socketserver
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuspawner.simulation.state import STATE_PATH_VARIABLE, describe
from scripts import console, environment, gpu_report, host, packages, ports, root, run, setup
from scripts.console import ROOT, Stop

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


# ---- locks ---------------------------------------------------------------------------------------


def pins(lock: str) -> set[tuple[str, str, str]]:
    """The (name, version, marker) of each package in a lock."""
    text = (ROOT / "requirements" / lock).read_text()
    return set(re.findall(r"^([a-z0-9.-]+)==(\S+)(?: ; (.*?))? \\$", text, re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_each_package_by_hash_and_names_no_host_or_folder(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "find-links" not in text
    assert str(Path.home()) not in text
    entries = [line for line in text.splitlines() if re.match(r"[a-z0-9]", line)]
    assert entries
    assert all(re.match(r"[a-z0-9.-]+==\S+ (; .* )?\\$", line) for line in entries)
    assert len(re.findall(r"\\\n    --hash=sha256:", text)) >= len(entries)


def test_the_node_lock_names_no_registry() -> None:
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    del packages[""]
    assert packages
    assert all("resolved" not in entry and "integrity" in entry for entry in packages.values())


def test_what_runs_is_what_is_tested() -> None:
    # Without the markers: the tests want some of them elsewhere too.
    running, testing = ({pin[:2] for pin in pins(lock)} for lock in ("run.txt", "test.txt"))
    assert running <= testing


def versions(lock: str) -> dict[str, dict[str, str]]:
    """The versions of each package in a lock; where it has several, with their markers."""
    found: dict[str, dict[str, str]] = {}
    for name, version, marker in pins(lock):
        found.setdefault(name, {})[version] = marker
    return {
        name: pinned if len(pinned) > 1 else dict.fromkeys(pinned, "")
        for name, pinned in found.items()
    }


def test_the_handbook_is_built_beside_what_is_tested() -> None:
    documenting, testing = versions("docs.txt"), versions("test.txt")
    # `make docs` installs into the tests' environment, and must not take another version there.
    both = set(documenting) & set(testing)
    assert {"jupyterhub", "traitlets"} <= both
    assert {name: documenting[name] for name in both} == {name: testing[name] for name in both}


def test_every_dependency_is_locked() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert found
    names = {name.lower() for name in re.findall(r'"([A-Za-z0-9_.-]+)', found[1])}
    assert names <= {name for name, _, _ in pins("run.txt")}


def test_the_oldest_packages_are_our_lower_bounds() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    versions = {(name, version) for name, version, _ in pins("oldest.txt")}
    for name in ("jupyterhub", "dockerspawner", "nvidia-ml-py", "pydantic", "tornado"):
        bound = re.search(rf'"{name}>=([\d.]+)"', text)
        assert bound
        assert any(
            pinned == name and (version + ".").startswith(bound[1] + ".")
            for pinned, version in versions
        ), name


# ---- environments --------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What would be run to make an environment; a link to this Python is all that is made."""
    done: list[str] = []
    folder = tmp_path / ".venv"

    def call(words, failure, env=None) -> None:
        done.append(" ".join(str(word) for word in words[1:]))
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        if not (folder / "bin" / "python").exists():
            (folder / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(environment, "call", call)
    monkeypatch.setattr(environment, "LOCKS", tmp_path)
    for name in ("build.txt", "run.txt", "test.txt"):
        (tmp_path / name).write_text(name)
    return done


def installed(calls: list[str]) -> list[str]:
    """The locks that were installed, in order; then forget it all."""
    found = [word for call in calls for word in re.findall(r"(\w+)\.txt", call)]
    calls.clear()
    return found


def test_an_environment_is_made_once(calls: list[str], tmp_path: Path) -> None:
    environment.ensure_environment(tmp_path / ".venv", "run.txt")
    assert "-m venv" in calls[0]
    assert "--editable" in calls[-1]
    assert installed(calls) == ["build", "run"]
    environment.ensure_environment(tmp_path / ".venv", "run.txt")
    assert calls == []


@pytest.mark.parametrize(("gpus", "boards", "tried"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_gpus_are_reported_of_where_there_are_some_and_nothing_is_installed_elsewhere(
    calls: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    boards: int,
    tried: bool,
) -> None:
    programs: list[list[str]] = []
    monkeypatch.setattr(setup, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(gpu_report, "count_gpus", lambda: gpus)
    monkeypatch.setattr(gpu_report, "nvidia_boards", lambda: boards)
    monkeypatch.setattr(os, "execv", lambda path, words: programs.append(words))
    monkeypatch.setattr(sys, "argv", ["gpu_report", "--json"])
    assert gpu_report.main() == 0
    assert installed(calls) == (["build", "run"] if tried else [])
    python = str(tmp_path / ".venv" / "bin" / "python")
    report = [python, "-m", "gpuspawner", "doctor", "--gpu-report", "--json"]
    assert programs == ([report] if tried else [])


def test_the_tests_environment_also_runs_the_hub(calls: list[str], tmp_path: Path) -> None:
    environment.ensure_environment(tmp_path / ".venv", "run.txt")
    calls.clear()
    environment.ensure_environment(tmp_path / ".venv", "test.txt")
    assert not any("-m venv" in call for call in calls)
    assert installed(calls) == ["build", "test"]
    environment.ensure_environment(tmp_path / ".venv", "run.txt")
    assert calls == []


def test_a_changed_lock_makes_the_environment_anew(calls: list[str], tmp_path: Path) -> None:
    environment.ensure_environment(tmp_path / ".venv", "run.txt")
    calls.clear()
    (tmp_path / "run.txt").write_text("changed")
    environment.ensure_environment(tmp_path / ".venv", "run.txt")
    assert "-m venv" in calls[0]


def fail(*_: object) -> None:
    """What a program does without a network."""
    raise Stop("no network")


def test_an_interrupted_installation_is_done_again(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.ensure_environment(tmp_path / ".venv", "run.txt")
    (tmp_path / "run.txt").write_text("changed")
    with monkeypatch.context() as patch:
        patch.setattr(environment, "call", fail)
        with pytest.raises(Stop):
            environment.ensure_environment(tmp_path / ".venv", "run.txt")
    (tmp_path / "run.txt").write_text("run.txt")
    calls.clear()
    environment.ensure_environment(tmp_path / ".venv", "run.txt")
    assert installed(calls) == ["build", "run"]


# ---- packages and root ---------------------------------------------------------------------------


def test_only_what_is_missing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find", lambda program: None if program == "cc" else "/bin/it")
    assert packages.missing(packages.SIMULATION) == ["gcc", "libc6-dev"]


@pytest.mark.parametrize(("listed", "wanted"), [("", ["fonts-wqy-microhei"]), ("a font", [])])
def test_chinese_pages_are_shown_in_a_font_that_has_their_letters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: str, wanted: list[str]
) -> None:
    program = tmp_path / "fc-list"
    program.write_text(f"#!/bin/sh\nprintf '{listed}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert packages.missing_for_chinese() == wanted
    program.unlink()
    assert packages.missing_for_chinese() == ["fonts-wqy-microhei"]


def test_without_apt_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda *_, **__: None)
    with pytest.raises(Stop, match="no apt-get to install iptables"):
        packages.install(["iptables"])
    packages.install([])


def test_without_root_and_sudo_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "is_root", lambda: False)
    monkeypatch.setattr(root.shutil, "which", lambda *_, **__: None)
    with pytest.raises(Stop, match=r"installing gcc takes root.*run the same command as root"):
        root.as_root(["true"], "installing gcc")


def test_sudo_keeps_how_the_network_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "is_root", lambda: False)
    monkeypatch.setattr(root.shutil, "which", lambda *_, **__: "/usr/bin/sudo")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    command = root.as_root(["id", "-u"], "this")
    assert command[:2] == ["sudo", "env"]
    assert "https_proxy=http://proxy.example:3128" in command
    assert command[-2:] == ["id", "-u"]


def test_sudo_keeps_a_password_without_telling_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "is_root", lambda: False)
    monkeypatch.setattr(root.shutil, "which", lambda *_, **__: "/usr/bin/sudo")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:hush@index.example/simple")
    command = root.as_root(["id", "-u"], "this")
    assert "hush" not in " ".join(command)
    assert "--preserve-env=PIP_INDEX_URL" in command


# ---- ports ---------------------------------------------------------------------------------------


def test_nodes_are_a_number_of_machines_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, number in {"": 0, " ": 0, "1": 1, "3": 3, "8": 8}.items():
        monkeypatch.setenv("NODES", text)
        assert run.wanted_nodes() == number
    for text in ("0", "9", "-1", "two", "1.5", "³"):
        monkeypatch.setenv("NODES", text)
        with pytest.raises(Stop, match=r"NODES is .* from 1 to 8"):
            run.wanted_nodes()


def test_a_taken_port_is_told_with_the_setting_that_moves_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Stop, match=rf"port {port} of 127\.0\.0\.1 .*`c\.JupyterHub\.bind_url`"):
            ports.check_port("127.0.0.1", port, "c.JupyterHub.bind_url")
    ports.check_port("127.0.0.1", port, "c.JupyterHub.bind_url")


def test_the_ports_are_those_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ports.public_url() == "http://127.0.0.1:8000"
    assert ports.hub_port() == 8081
    assert ports.dashboard_port() == 8710
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(
        'c.JupyterHub.bind_url = "http://127.0.0.1:9000/"\n'
        "c.JupyterHub.hub_port = 9081\n"
        "# c.JupyterHub.hub_port = 1\n"
    )
    monkeypatch.setattr(ports, "CONFIG", config)
    assert ports.public_url() == "http://127.0.0.1:9000"
    assert ports.hub_port() == 9081


# ---- real GPUs or simulated ones -----------------------------------------------------------------


@pytest.fixture
def engine_that_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """A socket that answers any request with the JSON that is in here."""
    about: dict = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(about).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "local"

    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield about
        server.shutdown()


@pytest.fixture
def look(binaries, tmp_path: Path) -> Callable[[int], host.Host]:
    """Return what `host.inspect_machine` says in a process that loads the simulated NVML."""
    state = tmp_path / "state"
    code = (
        "from scripts import host; h = host.inspect_machine(); print(h.lacks); print(h.needs_root)"
    )

    def inspect(gpus: int) -> host.Host:
        describe([("A100-40GB", gpus)]).write(state)
        variables = {
            **os.environ,
            "LD_LIBRARY_PATH": str(binaries.directory),
            STATE_PATH_VARIABLE: str(state),
        }
        said = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
        lacks, needs_root = said.stdout.splitlines()
        return host.Host(lacks, needs_root == "True")

    return inspect


def test_a_driver_an_engine_and_the_toolkit_are_used(look, engine_that_says: dict) -> None:
    engine_that_says["Runtimes"] = {"runc": {}, "nvidia": {}}
    assert look(2) == host.Host()


def test_devices_that_the_engine_discovered_are_used(look, engine_that_says: dict) -> None:
    engine_that_says["DiscoveredDevices"] = [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]
    assert look(2) == host.Host()


def test_without_the_toolkit_gpus_are_simulated(look, engine_that_says: dict) -> None:
    engine_that_says["Runtimes"] = {"runc": {}}
    assert "2 NVIDIA GPUs here, but Docker has no NVIDIA Container" in look(2).lacks


def test_without_a_gpu_gpus_are_simulated(look, engine_that_says: dict) -> None:
    engine_that_says["Runtimes"] = {"nvidia": {}}
    assert look(0).lacks == "there is no working NVIDIA driver here"


def test_without_an_engine_gpus_are_simulated(
    look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'nobody.sock'}")
    assert look(2).lacks.endswith("but no Docker Engine answers")


# ---- what is kept private ------------------------------------------------------------------------


def test_nobody_else_looks_into_the_folder_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "RUN", tmp_path / "run")
    (tmp_path / "run").mkdir(mode=0o755)  # of a run before
    console.make_run_folder()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


HUB = """
import os, sys
from pathlib import Path
from scripts import console, serve
console.RUN = serve.RUN = Path(sys.argv[1])
# In place of JupyterHub: what writes a file as SQLite does.
serve.JupyterHub.launch_instance = lambda argv: Path("jupyterhub.sqlite").touch()
serve._be_the_hub(on_cluster=False)
"""


def test_nor_into_what_the_hub_writes_there(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", HUB, str(tmp_path / "run")], cwd=ROOT, check=True, umask=0o022
    )
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run" / "jupyterhub.sqlite").stat().st_mode) == 0o600


# ---- giving up -----------------------------------------------------------------------------------


def test_a_failing_program_is_told_by_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(console, "RUN", tmp_path)
    monkeypatch.setattr(console, "LOG", tmp_path / "setup.log")
    words = ["sh", "-c", "echo fetching; echo E: no such package; echo bye; exit 3"]
    with pytest.raises(Stop, match=r"it can't be had \(E: no such package\); all .*setup\.log"):
        console.call(words, "it can't be had")
    assert "fetching\n" in (tmp_path / "setup.log").read_text()


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("Err:1 http://deb.debian.org Temporary failure resolving 'deb.debian.org'", "go online"),
        ("NewConnectionError: Failed to establish a new connection: [Errno 111]", "https_proxy"),
        ("npm error code EAI_AGAIN", "go online"),
        ("SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "PIP_CERT"),
        ("OSError: [Errno 28] No space left on device", "make room"),
    ],
)
def test_a_failing_program_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str, advice: str
) -> None:
    monkeypatch.setattr(console, "RUN", tmp_path)
    monkeypatch.setattr(console, "LOG", tmp_path / "setup.log")
    words = ["sh", "-c", 'echo "$1"; echo E: it failed; exit 100', "sh", written]
    with pytest.raises(Stop, match=rf"no \(.*\): .*{advice}.*; all of its output"):
        console.call(words, "no")


@pytest.mark.parametrize("problem", [Stop("why"), PermissionError(13, "why")])
def test_giving_up_is_one_sentence_and_a_status(
    problem: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise problem

    with pytest.raises(SystemExit) as ended:
        console.finish(main)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "gpuspawner: why\n"
