"""`gpuspawner doctor` on machines that lack something: driver, engine, toolkit, proxy, room.

Each failure that it knows is made once. Engines that can't be had here are stood in for at their
socket, programs that aren't ours by scripts that say what the real ones say.
"""

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
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.__main__ import main
from gpuspawner.backends.docker.network import (
    BETWEEN_CONTAINERS,
    HOST_NETWORK,
    NetworkError,
    ensure_network,
)
from gpuspawner.doctor import containers, gpus, homes, hub_machine, toolkit
from gpuspawner.doctor import engine as engines
from gpuspawner.doctor.findings import Configuration, Context, Finding
from gpuspawner.gpus import missing_driver
from gpuspawner.gpus.nvml import Inventory
from gpuspawner.simulation import changes
from gpuspawner.simulation.library import Binaries
from gpuspawner.simulation.state import State, describe

from ..support.nvml import Program, compile_variant
from ..support.volumes import VolumeEngine, refusal

HOST = describe([("A100-40GB", 2)])


def states(found: list[Finding]) -> list[str]:
    return [finding.state for finding in found]


def text(found: list[Finding]) -> str:
    return "\n".join(f"{each.found} > {each.advice}" for each in found)


def context(folder: Path, **more: Any) -> Context:
    return Context(None, folder, **more)


# ---- Driver and GPUs -----------------------------------------------------------------------------


LOOK = """
from pathlib import Path
from gpuspawner.doctor import gpus
from gpuspawner.doctor.findings import Context
context = Context(None, Path())
result = list(gpus.driver(context)), list(gpus.gpus(context))
"""


def look(program: Program, *words: str, state: State = HOST) -> tuple[list, list]:
    for each in words:
        state = changes.parse(each)(state)
    return program.run(LOOK, state)


def test_a_driver_and_its_gpus_are_named(program: Program) -> None:
    (driver,), (all_of_them,) = look(program)
    assert driver == Finding("ok", "version 570.133.20, CUDA 12.8")
    assert all_of_them == Finding("ok", "2 of 2 can be handed out (NVIDIA A100-SXM4-40GB)")


@pytest.mark.parametrize(
    ("change", "found", "advice"),
    [
        ("driver gone", "library is installed and its driver isn't loaded", "modprobe nvidia"),
        ("driver mismatch", "driver and its library are of different versions", "Reboot the host"),
        ("driver forbidden", "may not use the NVIDIA driver", "permissions of /dev/nvidia"),
        ("driver failing", "NVML fails", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_answer_has_failed(
    program: Program, change: str, found: str, advice: str
) -> None:
    (driver,), others = look(program, change)
    assert driver.state == "failure"
    assert found in driver.found
    assert advice in driver.advice
    assert others == []


def test_a_driver_that_hangs_is_given_up(binaries: Binaries, tmp_path: Path) -> None:
    with Program(binaries.directory, tmp_path / "state") as slow:
        slow.run("from gpuspawner.doctor import gpus; gpus.NVML_SECONDS = 0.2")
        (driver,), _ = look(slow, "slow 500")
    assert driver.state == "failure"
    assert "didn't answer within 0.2 seconds" in driver.found
    assert "nvidia-smi" in driver.advice


@pytest.mark.parametrize(
    ("change", "state", "found", "advice"),
    [
        ("gpu 1 lost", "warning", "fallen off the bus", "reboot"),
        ("gpu 1 sick", "warning", "needs a reset", "nvidia-smi --gpu-reset -i 1"),
        ("gpu 1 mig on", "note", "MIG mode", "nvidia-smi -i 1 -mig 0"),
        ("gpu 1 mode prohibited", "note", "prohibited", "nvidia-smi -i 1 -c DEFAULT"),
        ("gpu 1 process 4242 2000", "note", "a process computes on it", "gpuspawner gpus"),
        ("gpu 1 function nvmlDeviceGetRemappedRows 999", "warning", "health can't be", "-q -i 1"),
    ],
)
def test_a_gpu_that_is_not_handed_out_is_told_and_the_others_are(
    program: Program, change: str, state: str, found: str, advice: str
) -> None:
    _, (all_of_them, one) = look(program, change)
    assert all_of_them.state == "ok"
    assert one.state == state
    assert one.found.startswith("GPU 1")
    assert found in one.found
    assert advice in one.advice


def test_where_no_gpu_can_be_handed_out_it_says_so(program: Program) -> None:
    _, found = look(program, "gpu 0 lost", "gpu 1 sick")
    assert states(found) == ["warning"] * 3
    assert found[0].found.startswith("0 of 2 can be handed out")


def test_a_driver_without_any_gpu_has_failed(program: Program) -> None:
    _, (found,) = look(program, state=describe([("T4", 0)]))
    assert found.state == "failure"
    assert "no GPU" in found.found
    assert "lspci" in found.advice


@pytest.mark.parametrize(
    ("vendor", "kind", "boards"),
    [
        ("0x10de", "0x030200", 1),
        ("0x10de", "0x030000", 1),
        ("0x10de", "0x040300", 0),  # its sound
        ("0x8086", "0x030000", 0),
    ],
)
def test_boards_are_found_without_a_driver(
    tmp_path: Path, vendor: str, kind: str, boards: int
) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(vendor + "\n")
    assert missing_driver.nvidia_boards(tmp_path) == 0  # half a device
    (device / "class").write_text(kind + "\n")
    assert missing_driver.nvidia_boards(tmp_path) == boards
    assert missing_driver.nvidia_boards(tmp_path / "none") == 0


def test_gpus_without_a_driver_are_a_failure_and_no_gpus_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    monkeypatch.setattr(missing_driver, "PCI_DEVICES", tmp_path)
    (none,) = gpus.driver(context(tmp_path))
    assert (none.state, none.blocks_others) == ("note", False)
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de")
    (device / "class").write_text("0x030000")
    (board,) = gpus.driver(context(tmp_path))
    assert board.state == "failure"
    assert "nvidia-driver" in board.advice


def test_a_driver_s_library_that_does_not_load_has_failed(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    with Program(tmp_path, tmp_path / "state") as broken:
        (driver,), _ = look(broken)
    assert driver.state == "failure"
    assert "Reinstall" in driver.advice


def test_a_driver_that_says_nonsense_has_failed(tmp_path: Path) -> None:
    definition = (
        "int nvmlSystemGetDriverVersion(char *text, unsigned length)"
        "{ text[0] = '?'; text[1] = 0; (void)length; return 0; }"
    )
    compile_variant(tmp_path, "nvmlSystemGetDriverVersion", definition)
    with Program(tmp_path, tmp_path / "state") as odd:
        (driver,), _ = look(odd)
    assert driver.state == "failure"


# ---- Docker Engine -------------------------------------------------------------------------------

DOCKER = {"Version": "24.0.7", "ApiVersion": "1.43", "Components": [{"Name": "Engine"}]}
# As Podman 4.9 answers.
PODMAN = {
    "Version": "4.9.3",
    "ApiVersion": "1.41",
    "MinAPIVersion": "1.24",
    "Components": [
        {"Name": "Podman Engine", "Version": "4.9.3", "Details": {"APIVersion": "4.9.3"}},
        {"Name": "Conmon", "Version": "conmon version 2.1.10"},
    ],
}


@contextmanager
def answering(path: Path, answers: Mapping[str, Any]) -> Iterator[None]:
    """Answer GET requests on a Unix socket: path without the API's version -> JSON, or a status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(re.sub(r"^/v[\d.]+", "", self.path), 404)
            status, value = (
                (answer, {"message": "no"}) if isinstance(answer, int) else (200, answer)
            )
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "test"

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Look at an engine that answers so; returns what was found and the context."""

    def see(about: Any, info: Any = None) -> tuple[list[Finding], Context]:
        path = tmp_path / "docker.sock"
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        seen = context(tmp_path)
        with answering(path, {"/version": about, "/info": info or {}}):
            found = list(engines.engine(seen))
            if seen.engine:
                seen.engine.close()
        path.unlink()
        return found, seen

    return see


def test_an_engine_is_named_with_its_version_and_place(at) -> None:
    found, seen = at(DOCKER, {"DockerRootDir": "/nowhere"})
    assert states(found) == ["ok"]
    assert "24.0.7 at unix://" in found[0].found
    assert seen.engine is not None
    assert not seen.engine_is_here


def test_an_engine_whose_folder_is_there_is_on_this_machine(at, tmp_path: Path) -> None:
    _, seen = at(DOCKER, {"DockerRootDir": str(tmp_path)})
    assert seen.engine_is_here


def test_podman_is_refused(at) -> None:
    (found,), _ = at(PODMAN)
    assert found.state == "failure"
    assert "Podman 4.9.3" in found.found
    assert "apt-get install docker.io" in found.advice


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("19.03.15", "failure"),
        ("18.09.1", "failure"),
        ("20.10.0", "ok"),
        ("20.10.24+dfsg1", "ok"),
        ("28.5.1", "ok"),
        ("29.0.0-rc.1", "ok"),
        ("dev", "warning"),
        ("", "warning"),
    ],
)
def test_an_engine_s_version_is_judged(version: str, state: str) -> None:
    assert engines.check_version({**DOCKER, "Version": version}).state == state


def test_an_old_engine_is_told_to_be_updated(at) -> None:
    (found,), _ = at({**DOCKER, "Version": "19.03.15", "ApiVersion": "1.40"})
    assert found.state == "failure"
    assert "20.10" in found.found
    assert "update" in found.advice


@pytest.mark.parametrize(
    ("info", "state", "word"),
    [
        ({"MemoryLimit": False}, "warning", "mem_limit has no effect"),
        ({"Driver": "vfs"}, "note", "vfs"),
        ({"LiveRestoreEnabled": False}, "note", "it stops all servers"),
        ({"SecurityOptions": ["name=seccomp", "name=rootless"]}, "note", "without root"),
    ],
)
def test_what_servers_will_feel_of_an_engine(at, info: dict, state: str, word: str) -> None:
    found, _ = at(DOCKER, info)
    assert states(found) == ["ok", state]
    assert word in found[1].found
    assert found[1].advice


def test_an_engine_on_another_machine_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.7:2375")
    monkeypatch.delenv("DOCKER_TLS_VERIFY", raising=False)
    found = list(engines._warnings({"Name": "elsewhere"}))
    assert states(found) == ["warning", "warning"]
    assert "root" in found[0].found
    assert "another machine (elsewhere)" in found[1].found
    same = list(engines._warnings({"Name": socket.gethostname()}))
    assert len(same) == 1


def test_an_engine_s_error_is_a_failure(at) -> None:
    (found,), seen = at(500)
    assert found.state == "failure"
    assert seen.engine is None


def test_an_engine_that_is_not_there_is_started_or_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setattr(engines, "SEARCH_PATH", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    (missing,) = engines.engine(context(tmp_path))
    assert missing.state == "failure"
    assert "there is no socket" in missing.found
    assert "apt-get install docker.io" in missing.advice
    script(tmp_path, "dockerd", "")
    (stopped,) = engines.engine(context(tmp_path))
    assert "systemctl start docker" in stopped.advice


def test_a_socket_that_nobody_listens_on_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    (found,) = engines.engine(context(tmp_path))
    assert found.state == "failure"
    assert "nobody answers" in found.found
    assert "systemctl restart docker" in found.advice


def test_who_may_not_speak_with_the_engine_is_told_the_group(tmp_path: Path) -> None:
    """As another user: root may speak with everything."""
    if os.geteuid() != 0:
        pytest.skip("takes root, to be somebody else")
    code = """
import os, sys
from pathlib import Path
from gpuspawner.doctor import engine
from gpuspawner.doctor.findings import Context
os.setgid(65534); os.setuid(65534)
(found,) = engine.engine(Context(None, Path("/")))
print(found.state, found.found, found.advice)
"""
    path = tmp_path / "docker.sock"
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    with answering(path, {"/version": DOCKER}):
        path.chmod(0o660)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "DOCKER_HOST": f"unix://{path}"},
            capture_output=True,
            text=True,
            check=False,
        )
    if "Permission denied" in done.stderr:
        pytest.skip("nobody else may read this Python")
    assert "failure you (nobody) may not speak with it" in done.stdout, done.stderr
    assert "usermod -aG docker nobody" in done.stdout


def test_an_engine_that_does_not_answer_in_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    monkeypatch.setattr(engines, "ANSWER_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        (found,) = engines.engine(context(tmp_path))
    assert found.state == "failure"
    assert "doesn't answer" in found.found


# ---- NVIDIA Container Toolkit --------------------------------------------------------------------


def script(folder: Path, name: str, says: str, status: int = 0) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {status}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A GPU machine with an engine, and none of the toolkit's programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in ("cat", "sh"):
        (programs / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(engines, "SEARCH_PATH", "")
    monkeypatch.setattr(toolkit, "CONFIG_FILE", tmp_path / "config.toml")
    monkeypatch.delenv(toolkit.SIMULATION_VARIABLE, raising=False)
    inventory = Inventory("570.133.20", "12.8", ())
    return context(tmp_path, inventory=inventory, engine_is_here=True)


def has(machine: Context, program: str, says: str = "") -> None:
    script(machine.folder / "bin", program, says)


# As the programs say it.
CTK = "NVIDIA Container Toolkit CLI version {}\ncommit: 0123abcd"
CLI = "cli-version: {0}\nlib-version: {0}\nbuild date: 2025-07-15T00:00+00:00"
RUNTIME = {"Runtimes": {"runc": {}, "nvidia": {}}}


@pytest.mark.parametrize(
    ("program", "says", "version", "state"),
    [
        ("nvidia-ctk", CTK, "1.17.8", "ok"),
        ("nvidia-ctk", CTK, "1.18.0", "ok"),
        ("nvidia-ctk", CTK, "1.17.7", "failure"),
        ("nvidia-ctk", CTK, "1.9.0", "failure"),
        ("nvidia-container-cli", CLI, "1.17.8", "ok"),
        ("nvidia-container-cli", CLI, "1.16.2", "failure"),
        ("nvidia-ctk", CTK, "1.17.8-rc.2", "ok"),
    ],
)
def test_a_toolkit_with_known_ways_out_is_refused(
    machine: Context, program: str, says: str, version: str, state: str
) -> None:
    machine.engine_info = RUNTIME
    has(machine, program, says.format(version))
    (found,) = toolkit.toolkit(machine)
    assert found.state == state
    assert version.partition("-")[0] in found.found
    assert not found.blocks_others
    assert bool(found.advice) is (state == "failure")


def test_a_missing_toolkit_is_to_be_installed(machine: Context) -> None:
    (found,) = toolkit.toolkit(machine)
    assert found.state == "failure"
    assert "isn't installed" in found.found
    assert "nvidia-ctk runtime configure" in found.advice


def test_a_toolkit_that_docker_does_not_know_is_to_be_made_known(machine: Context) -> None:
    has(machine, "nvidia-ctk", CTK.format("1.17.8"))
    known, found = toolkit.toolkit(machine)
    assert (known.state, found.state) == ("ok", "failure")
    assert "systemctl restart docker" in found.advice
    has(machine, "nvidia-container-runtime-hook")
    assert states(list(toolkit.toolkit(machine))) == ["ok"]


@pytest.mark.parametrize(
    "info", [RUNTIME, {"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}]
)
def test_a_toolkit_that_only_docker_shows_is_a_note(machine: Context, info: dict) -> None:
    machine.engine_info = info
    (found,) = toolkit.toolkit(machine)
    assert found.state == "note"
    assert "nvidia-ctk --version" in found.advice


def test_where_the_engine_s_machine_cannot_be_seen_nothing_is_said_against_it(
    machine: Context,
) -> None:
    machine.engine_is_here = False
    (found,) = toolkit.toolkit(machine)
    assert found.state == "note"


def test_a_program_that_says_no_version_is_passed_over(machine: Context) -> None:
    has(machine, "nvidia-ctk", "what?")
    assert toolkit.installed_version() is None
    has(machine, "nvidia-container-cli", CLI.format("1.17.8"))
    assert toolkit.installed_version() == (1, 17, 8)


def test_without_a_driver_there_is_nothing_to_say_of_the_toolkit(machine: Context) -> None:
    machine.inventory = Inventory(None, None, ())
    assert [*toolkit.toolkit(machine), *toolkit.setting(machine)] == []


def test_systemd_s_control_groups_take_gpus_away(machine: Context) -> None:
    machine.engine_info = {**RUNTIME, "CgroupDriver": "systemd"}
    has(machine, "nvidia-ctk", CTK.format("1.17.8"))
    has(machine, "nvidia-container-runtime-hook")
    _, found = toolkit.toolkit(machine)
    assert found.state == "note"
    assert "native.cgroupdriver=cgroupfs" in found.advice


FALSE = f"{toolkit.SETTING} = false\n"


@pytest.mark.parametrize(
    ("toml", "accepts"),
    [
        ("", True),
        (FALSE, False),
        (f"  {FALSE}", False),
        (f"#{FALSE}", True),
        (f"{toolkit.SETTING}=true", True),
        (f"disable-require = false\n{FALSE}\n[nvidia-container-cli]\n", False),
        (f"[nvidia-container-cli]\n{FALSE}", True),
    ],
)
def test_the_setting_is_read_as_toml_has_it(toml: str, accepts: bool) -> None:
    assert toolkit.accepts_variable(toml) is accepts


CDI = {"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]}


@pytest.mark.parametrize(
    ("toml", "by_hook", "info", "state", "advice"),
    [
        ("", True, {}, "ok", ""),
        (FALSE, True, {}, "warning", "=true --in-place"),
        (FALSE, False, {}, "ok", ""),
        (FALSE, True, CDI, "note", "only if that one gets no GPU"),
        ("", True, {"DefaultRuntime": "nvidia"}, "warning", "default-runtime"),
    ],
)
def test_the_setting_is_what_the_engine_needs(
    machine: Context, toml: str, by_hook: bool, info: dict, state: str, advice: str
) -> None:
    toolkit.CONFIG_FILE.write_text(toml)
    machine.engine_info = info
    has(machine, "nvidia-ctk", CTK.format("1.17.8"))
    if by_hook:
        has(machine, "nvidia-container-runtime-hook")
    (found,) = toolkit.setting(machine)
    assert found.state == state
    assert advice in found.advice
    assert machine.variable_accepted is (toml != FALSE)


ROOTLESS = {"SecurityOptions": ["name=rootless"]}
OF_CLI = "[nvidia-container-cli]\nload-kmods = true\n"


@pytest.mark.parametrize(
    ("toml", "info", "state", "advice"),
    [
        (f"{OF_CLI}no-cgroups = true\n", {}, "failure", "no-cgroups=false --in-place"),
        (f"{OF_CLI}no-cgroups = true # as for rootless\n", {}, "failure", "no-cgroups=false"),
        (f"{OF_CLI}#no-cgroups = true\n", {}, "ok", ""),
        (f"{OF_CLI}no-cgroups = false\n", {}, "ok", ""),
        (f"{OF_CLI}[other]\nno-cgroups = true\n", {}, "ok", ""),
        (f"{OF_CLI}no-cgroups = true\n", ROOTLESS, "ok", ""),
        (OF_CLI, ROOTLESS, "warning", "no-cgroups=true --in-place"),
        (OF_CLI, {**ROOTLESS, **CDI}, "ok", ""),
    ],
)
def test_control_groups_are_left_alone_only_by_an_engine_without_root(
    machine: Context, toml: str, info: dict, state: str, advice: str
) -> None:
    toolkit.CONFIG_FILE.write_text(toml)
    machine.engine_info = info
    has(machine, "nvidia-ctk", CTK.format("1.17.8"))
    found = next(iter(toolkit.setting(machine)))
    assert (found.state, advice in found.advice) == (state, True), found


def test_what_an_older_toolkit_cannot_set_itself_is_a_line_of_its_file(machine: Context) -> None:
    toolkit.CONFIG_FILE.write_text(f"{FALSE}{OF_CLI}no-cgroups = true\n")
    has(machine, "nvidia-container-cli", "version: 1.3.0\nbuild date: 2020-09-16")
    has(machine, "nvidia-container-runtime-hook")
    cgroups, variable = toolkit.setting(machine)
    where = toolkit.CONFIG_FILE
    assert cgroups.advice == f"in [nvidia-container-cli] of {where} write: no-cgroups = false"
    assert variable.advice == f"in {where} write: {toolkit.SETTING} = true"


# ---- A hub in a container ------------------------------------------------------------------------

ID = "5a" * 32


@pytest.fixture
def in_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say to this process what an engine's mounts in a container say."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "612 599 0:53 / /proc rw - proc proc rw\n"
        f"618 604 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda1\n"
        f"619 604 8:1 /var/lib/docker/containers/{ID}/hosts /etc/hosts rw - ext4 /dev/sda1 rw\n"
    )
    monkeypatch.setattr(missing_driver, "MOUNTS", mounts)


def board(folder: Path) -> None:
    device = folder / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de")
    (device / "class").write_text("0x030200")


@pytest.mark.parametrize(
    ("boards", "state", "found"),
    [
        (1, "failure", f"1 NVIDIA GPU(s), and the hub's container {ID[:12]} was given none"),
        (0, "warning", f"The hub's container {ID[:12]} was given none"),
    ],
)
def test_a_container_without_the_machine_s_gpus_is_to_be_given_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_container: None, boards, state, found
) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    devices = tmp_path / "devices"
    devices.mkdir()
    if boards:
        board(devices)
    monkeypatch.setattr(missing_driver, "PCI_DEVICES", devices)
    (told,) = gpus.driver(context(tmp_path))
    assert told.state == state
    assert found in told.found
    assert "`--gpus all,capabilities=utility --label gpuspawner.gpus=`" in told.advice
    assert "install" not in told.advice


def test_the_command_for_gpus_fails_where_there_are_some_that_it_cannot_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    monkeypatch.setattr(missing_driver, "PCI_DEVICES", tmp_path)
    assert main(["gpus"]) == 0
    assert "No NVIDIA driver on this machine.\n" in capsys.readouterr().out
    board(tmp_path)
    for words in (["gpus"], ["gpus", "--json"]):
        assert main(words) == 1
        told = capsys.readouterr()
        assert "1 NVIDIA GPU(s) and no driver" in told.err
        assert "{" not in told.out


def test_in_a_container_the_engine_s_socket_is_to_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_container: None
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    (missing,) = engines.engine(context(tmp_path))
    assert missing.advice == (
        f"start the hub's container with -v {tmp_path}/none.sock:{tmp_path}/none.sock"
    )


CONTAINER = {
    "Name": "/hub",
    "HostConfig": {"NetworkMode": "bridge"},
    "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
}
NETWORK = {
    "Id": "b" * 64,
    "Name": "gpuspawner",
    "IPAM": {"Config": [{"Gateway": "172.30.0.1"}]},
    "Options": {BETWEEN_CONTAINERS: "false"},
}


def hub_address(path: Path, container: Any, network: Any = NETWORK) -> str:
    """Return what a hub in a container would listen at, by an engine that answers so."""
    listed = "/networks?filters=%7B%22name%22%3A+%5B%22%5Egpuspawner%24%22%5D%7D"
    answers = {
        "/version": DOCKER,
        listed: [network],
        f"/networks/{network['Id']}": network,
        f"/containers/{ID}/json": container,
    }
    with answering(path, answers):
        return ensure_network("gpuspawner")


def test_a_hub_in_a_container_is_told_how_servers_would_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_container: None
) -> None:
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    monkeypatch.delenv("GPUSPAWNER_HUB_IP", raising=False)
    with pytest.raises(NetworkError) as error:
        hub_address(path, CONTAINER)
    assert "the hub's container hub isn't in the host's network" in str(error.value)
    assert "`--network host`" in error.value.advice
    # Nobody's of this engine: as on the host. In the host's network: the same.
    for container in (404, {**CONTAINER, "HostConfig": {"NetworkMode": "host"}}):
        path.unlink()
        assert hub_address(path, container) == "172.30.0.1"
    # In the servers' network, if that lets its containers reach each other.
    there = {"Networks": {"gpuspawner": {"IPAddress": "172.30.0.7"}}}
    attached = {**CONTAINER, "NetworkSettings": there}
    path.unlink()
    assert hub_address(path, attached, {**NETWORK, "Options": {}}) == "172.30.0.7"
    path.unlink()
    with pytest.raises(NetworkError):
        hub_address(path, attached)


def test_the_doctor_in_a_container_names_it_and_what_its_network_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_container: None
) -> None:
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    seen = context(tmp_path)
    answers = {"/version": DOCKER, "/info": {}, f"/containers/{ID}/json": CONTAINER}
    with answering(path, answers):
        _, here = engines.engine(seen)
    assert seen.engine
    seen.engine.close()
    assert (here.state, "its container hub, in one of its own" in here.found) == ("note", True)
    seen.trial_image = ("m", "m")
    hub = {"listens": ["192.0.2.1", 8081], "connects": ["192.0.2.1", 8081]}
    seen.configuration = Configuration(tmp_path, "", True, {}, hub, {})
    (told,) = containers.hub_address(seen)
    assert told.found.endswith("in its container hub")
    assert told.advice == HOST_NETWORK


def test_in_a_container_its_options_are_the_advice_and_the_engine_s_folder_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = context(tmp_path)
    seen.own_container, seen.engine_info = CONTAINER, {"DockerRootDir": "/var/lib/docker"}
    about = [each for each in hub_machine.disk(seen) if "/var/lib/docker" in each.found]
    assert [(each.state, each.advice) for each in about] == [
        ("note", "on the machine itself: df -h /var/lib/docker")
    ]
    monkeypatch.setattr(hub_machine.resource, "getrlimit", lambda _: (512, 1024))
    (few,) = hub_machine.connections(seen)
    assert "--ulimit nofile=65536" in few.advice
    assert "systemd" not in few.advice
    seen.own_container = None
    assert not [each for each in hub_machine.disk(seen) if "/var/lib/docker" in each.found]
    assert "LimitNOFILE" in next(iter(hub_machine.connections(seen))).advice


def test_the_disk_that_is_looked_at_is_the_one_with_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_machine, "CONTAINERD", tmp_path / "containerd")
    (tmp_path / "containerd").mkdir()
    own = {"DockerRootDir": str(tmp_path), "DriverStatus": [["Backing Filesystem", "extfs"]]}
    assert hub_machine.engine_folders(own) == [tmp_path]
    store = ["driver-type", "io.containerd.snapshotter.v1"]
    shared = {"DockerRootDir": str(tmp_path), "DriverStatus": [store]}
    assert hub_machine.engine_folders(shared) == [tmp_path / "containerd", tmp_path]
    assert hub_machine.engine_folders({}) == []


# ---- The proxy -----------------------------------------------------------------------------------


def with_hub(folder: Path, **hub: Any) -> Context:
    given = Configuration(folder / "config.py", "", True, {}, hub, {})
    return context(folder, configuration=given)


def test_a_missing_proxy_is_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = hub_machine.proxy(context(tmp_path))
    assert found.state == "failure"
    assert "npm install -g configurable-http-proxy" in found.advice


def test_a_proxy_beside_the_hub_is_to_be_put_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("PATH", "/bin")
    folder = tmp_path / "node_modules" / ".bin"
    folder.mkdir(parents=True)
    script(folder, "configurable-http-proxy", "5.3.0")
    (found,) = hub_machine.proxy(context(tmp_path))
    assert found.state == "warning"
    assert f"export PATH={folder}:$PATH" in found.advice
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    (found,) = hub_machine.proxy(context(tmp_path))
    assert found == Finding("ok", f"{folder}/configurable-http-proxy, version 5.3.0")


def test_a_proxy_that_does_not_run_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    script(tmp_path, "configurable-http-proxy", "node: not found", status=127)
    (found,) = hub_machine.proxy(context(tmp_path))
    assert found.state == "failure"
    assert "node: not found" in found.found
    (tmp_path / "configurable-http-proxy").write_text("#!/nowhere/node\n")
    (found,) = hub_machine.proxy(context(tmp_path))
    assert found.state == "failure"


@pytest.mark.parametrize(
    ("hub", "state"),
    [
        ({"proxy": "traefik_file"}, "ok"),
        ({"proxy_is_started": False}, "ok"),
        ({"proxy_command": ["/nowhere/chp", "--x"]}, "failure"),
        ({"proxy": "jupyterhub.proxy.ConfigurableHTTPProxy", "proxy_command": ["nope"]}, "failure"),
    ],
)
def test_a_configuration_s_own_proxy_counts(tmp_path: Path, hub: dict, state: str) -> None:
    (found,) = hub_machine.proxy(with_hub(tmp_path, **hub))
    assert found.state == state


# ---- Room ----------------------------------------------------------------------------------------

ROOM = """
import json
from pathlib import Path
from gpuspawner.doctor import hub_machine
from gpuspawner.doctor.findings import Context
info = {"DockerRootDir": "FOLDER"}
context = Context(None, Path("FOLDER"), engine_info=info, engine_is_here=True)
context.missing_bytes = MISSING
print(json.dumps([(f.state, f.found, f.advice) for f in hub_machine.disk(context)]))
"""


@pytest.mark.parametrize(
    ("options", "missing", "expected"),
    [
        ("size=64m", 0, ["failure", "failure"]),
        ("size=512m", 0, ["failure", "warning"]),
        ("size=5g", 0, ["warning", "ok"]),
        ("size=14g", 0, ["ok", "ok"]),
        ("size=14g", 20 * 1000**3, ["warning", "ok"]),
        ("size=14g,nr_inodes=2", 0, ["warning", "warning"]),
    ],
)
def test_a_full_disk_is_told(
    tmp_path: Path, options: str, missing: int, expected: list[str]
) -> None:
    """On a disk in memory, mounted in a namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("takes root, to mount a disk")
    code = ROOM.replace("FOLDER", str(tmp_path)).replace("MISSING", str(missing))
    mount = f'mount -t tmpfs -o {options} doctor {tmp_path} && touch {tmp_path}/a; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "--", "sh", "-c", mount, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout or done.stderr)
    assert [state for state, _, _ in found] == expected
    assert all(advice for state, _, advice in found if state != "ok")


def test_a_folder_that_is_gone_is_a_note(tmp_path: Path) -> None:
    assert states(list(hub_machine.disk(context(tmp_path / "gone")))) == ["note"]


CONNECTIONS = """
import resource, sys
from pathlib import Path
from gpuspawner.doctor import hub_machine
from gpuspawner.doctor.findings import Context
resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[1])))
print([each.state for each in hub_machine.connections(Context(None, Path()))])
"""


@pytest.mark.parametrize(("most", "state"), [("1024", "warning"), ("8192", "ok")])
def test_where_one_server_could_take_all_connections_it_is_told(most: str, state: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONNECTIONS, most], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"[{state!r}]", done.stderr


def test_what_lets_a_server_fill_the_disk_is_told(tmp_path: Path) -> None:
    def told(extra: Any) -> str:
        given = Configuration(tmp_path / "c.py", "", True, {"extra_host_config": extra}, {}, {})
        return text(list(hub_machine.disk(context(tmp_path, configuration=given))))

    assert "nothing limits" in told({"cap_drop": ["ALL"]})
    assert "nothing limits" in told(None)
    assert "nothing limits" not in told({"storage_opt": {"size": "20G"}})


# ---- Who may read and write what -----------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter: pytest's are the tester's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def guarded(public: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A hub's folder as it should be, and an engine's socket."""
    for name in ("docker.sock", "jupyterhub_cookie_secret", "jupyterhub.sqlite", "config.py"):
        (public / name).touch(0o600)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{public}/docker.sock")
    return Context(public / "config.py", public)


def trouble(seen: Context) -> list[Finding]:
    found = list(hub_machine.permissions(seen))
    return [each for each in found if each.state in ("warning", "failure")]


def test_a_machine_whose_files_are_guarded_is_well(guarded: Context) -> None:
    assert trouble(guarded) == []
    assert list(hub_machine.permissions(guarded))[-1].state == "ok"


@pytest.mark.parametrize(
    ("name", "mode", "state", "advice"),
    [
        ("docker.sock", 0o666, "failure", "chmod o-rwx"),
        ("jupyterhub_cookie_secret", 0o604, "failure", "rm "),
        ("jupyterhub.sqlite", 0o644, "warning", "chmod 600"),
        ("jupyterhub.sqlite", 0o646, "failure", "chmod 600"),
        ("config.py", 0o646, "failure", "chmod o-w"),
        (".", 0o777, "failure", "chmod o-w"),
    ],
)
def test_a_file_that_others_may_have_is_told(
    guarded: Context, name: str, mode: int, state: str, advice: str
) -> None:
    (guarded.folder / name).chmod(mode)
    (found,) = trouble(guarded)
    assert found.state == state
    assert advice in found.advice
    assert str(guarded.folder / name) in found.found
    # Nobody is told that all is well beside it.
    assert "ok" not in states(list(hub_machine.permissions(guarded)))


def test_what_lies_in_a_folder_of_one_s_own_nobody_else_has(guarded: Context) -> None:
    for name in ("jupyterhub.sqlite", "config.py"):
        (guarded.folder / name).chmod(0o666)
    assert len(trouble(guarded)) == 2
    guarded.folder.chmod(0o700)
    assert trouble(guarded) == []


def test_secrets_are_looked_for_where_the_configuration_puts_them(
    guarded: Context, public: Path
) -> None:
    other = public / "other"
    other.mkdir()
    for name in ("secret", "hub.sqlite"):
        (other / name).touch()
        (other / name).chmod(0o644)
    hub = {"cookie_secret_file": str(other / "secret"), "db_url": f"sqlite:///{other}/hub.sqlite"}
    guarded.configuration = with_hub(public, **hub).configuration
    assert sorted(states(trouble(guarded))) == ["failure", "warning"]
    hub = {"cookie_secret_file": "other/secret", "db_url": "postgresql://db/hub"}
    guarded.configuration = with_hub(public, **hub).configuration
    assert states(trouble(guarded)) == ["failure"]


def test_members_of_the_socket_s_group_are_named(guarded: Context) -> None:
    import grp

    if os.geteuid() != 0:
        pytest.skip("takes root, to give a file away")
    group = next((each for each in grp.getgrall() if each.gr_mem and each.gr_gid), None)
    if group is None:
        pytest.skip("this machine has no group with members")
    path = guarded.folder / "docker.sock"
    os.chown(path, 0, group.gr_gid)
    path.chmod(0o660)
    assert f": {', '.join(sorted(group.gr_mem))}" in text(list(hub_machine.permissions(guarded)))


# ---- Homes ---------------------------------------------------------------------------------------


def homes_told(tmp_path: Path, engine: VolumeEngine, **values: Any) -> list[Finding]:
    named = {"home_volume": "home-{username}", **values}
    given = Configuration(tmp_path / "c.py", "", True, named, {}, {})
    (tmp_path / "volumes").mkdir(exist_ok=True)
    about: dict[str, Any] = {
        "engine_info": {"DockerRootDir": str(tmp_path)},
        "engine_is_here": True,
    }
    client: Any = SimpleNamespace(api=engine)
    return list(homes.homes(Context(None, tmp_path, engine=client, configuration=given, **about)))


def test_whether_the_size_of_homes_is_enforced_is_tried(tmp_path: Path) -> None:
    engine = VolumeEngine()
    (found,) = homes_told(tmp_path, engine, home_size=50 << 30)
    assert (found.state, found.found) == (
        "ok",
        "c.GPUSpawner.home_size = 50 GB is enforced for new volumes; those of before have no limit",
    )
    assert engine.there == {}
    engine.away = refusal(400, "quota size requested but no quota support")
    (found,) = homes_told(tmp_path, engine, home_size=50 << 30)
    assert found.state == "warning"
    assert "isn't enforced: quota size requested but no quota support" in found.found
    engine.away = refusal(500, "something else")
    (found,) = homes_told(tmp_path, engine, home_size=50 << 30)
    assert found.state == "note"
    # Without a limit, and without homes, nothing is tried.
    engine.asked.clear()
    assert homes_told(tmp_path, engine, home_size=None) == []
    assert homes_told(tmp_path, engine, home_volume="", home_size=50 << 30) == []
    assert engine.asked == []


def test_where_homes_cannot_be_measured_from_here_it_is_told(tmp_path: Path) -> None:
    engine = VolumeEngine()
    assert homes_told(tmp_path, engine) == []
    (tmp_path / "volumes").rmdir()
    given = Configuration(tmp_path / "c.py", "", True, {"home_volume": "h-{username}"}, {}, {})
    client: Any = SimpleNamespace(api=engine)
    (found,) = homes.homes(Context(None, tmp_path, engine=client, configuration=given))
    assert "is asked of the Docker Engine, once an hour" in found.found
