"""`gpuspawner doctor` on a simulated GPU host: its engine, networks, images, and what it starts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
from docker.types import DeviceRequest

from gpuspawner.backends.docker.network import ensure_network
from gpuspawner.doctor import containers, gpus, images, networks, outsiders, trial
from gpuspawner.doctor import engine as engines
from gpuspawner.doctor.findings import Configuration, Context, Finding
from gpuspawner.gpus.model import GPU, Holder
from gpuspawner.gpus.nvml import GPUFacts, Inventory
from gpuspawner.images.catalogue import ImageVersion
from gpuspawner.leases.labels import LABEL_HUB, labels
from gpuspawner.simulation.changes import parse
from gpuspawner.simulation.mig import layout, partition

from ..support.hubs import free_port, until
from ..support.looks import container_of
from ..support.paths import ROOT
from ..support.plans import planned

pytestmark = pytest.mark.engine

MINIMAL = ImageVersion(image="gpuspawner/minimal:py3.11", title="minimal")
CONFIG = """
from gpuspawner.network import ensure_network
c.JupyterHub.hub_ip = ensure_network("gpuspawner")
c.JupyterHub.hub_port = {port}
c.JupyterHub.spawner_class = "gpu"
c.GPUSpawner.network_name = "gpuspawner"
c.GPUSpawner.images = {{"minimal": "gpuspawner/minimal:py3.11"}}
c.GPUSpawner.pull_policy = "never"
c.GPUSpawner.mem_limit = "8G"
c.GPUSpawner.shm_size = "1G"
c.GPUSpawner.extra_host_config = {{
    "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "pids_limit": 512
}}
"""


def doctor_words(*words: str) -> list[str]:
    return [sys.executable, "-m", "gpuspawner", "doctor", *words]


@pytest.fixture
def environment(idle_host) -> dict[str, str]:
    """What a hub's administrator on the simulated host has: the proxy on PATH too."""
    path = f"{ROOT / 'node_modules' / '.bin'}{os.pathsep}{idle_host.environment['PATH']}"
    return {**idle_host.environment, "PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "jupyterhub_config.py").write_text(CONFIG.format(port=free_port()))
    return tmp_path


def run(folder: Path, environment: dict[str, str]) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Run the whole of it; return exit status and, by check, what was found."""
    done = subprocess.run(
        doctor_words("--json"),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "Traceback" not in done.stderr
    by_check: dict[str, list[dict[str, str]]] = {}
    for each in json.loads(done.stdout):
        by_check.setdefault(each["check"], []).append(each)
    return done.returncode, by_check


# ---- All of it -----------------------------------------------------------------------------------


def test_a_machine_that_is_well_passes_every_check(folder, environment, engine) -> None:
    status, found = run(folder, environment)
    bad = [e for each in found.values() for e in each if e["state"] in ("failure", "skipped")]
    assert bad == []
    assert status == 0
    assert "4 of 4" in found["GPUs"][0]["found"]
    assert "sees exactly that" in found["Container with a GPU"][0]["found"]
    assert "is reached from the network gpuspawner" in found["Hub's address"][0]["found"]
    assert engine.containers(all=True) == []
    assert sorted(path.name for path in folder.iterdir()) == ["jupyterhub_config.py"]


def test_a_report_of_the_gpus_has_a_container_that_sees_one(
    tmp_path, environment, engine, idle_host
) -> None:
    done = subprocess.run(
        doctor_words("--gpu-report"),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(re.search(r"ok Container with a GPU .*sees exactly that", line) for line in lines)
    assert any("ok Container without" in line for line in lines)
    assert any("skipped Kernel in it a simulated GPU runs no kernel" in line for line in lines)
    assert not any(gpu.uuid in done.stdout for gpu in idle_host.read().gpus)
    assert engine.containers(all=True) == []


def test_a_report_leaves_gpus_alone_that_containers_have(seen, environment, idle_host) -> None:
    held, given = (idle_host.read().gpus[number].uuid for number in (0, 2))
    for uuid, bears in ((held, labels(Holder("ada"), "minimal", [held])), (given, {})):
        seen.engine.containers.run(
            MINIMAL.image,
            ["sleep", "60"],
            detach=True,
            labels=bears,
            device_requests=[DeviceRequest(device_ids=[uuid], capabilities=[["gpu"]])],
        )
    code = (
        "from pathlib import Path\n"
        "from gpuspawner.doctor import engine, kernels\n"
        "from gpuspawner.doctor.findings import Context\n"
        "context = Context(None, Path())\n"
        "list(engine.engine(context))\n"
        "print([each.why_not for each in kernels.to_try(context)])"
    )
    words = [sys.executable, "-c", code]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    taken = "a container has it"
    assert said.stdout.strip() == str([taken, "", taken, ""])


# Configurations of other kinds that work: each is all well.
FUNCTIONS = """
from gpuspawner import ensure_network

def of_group(spawner):
    return "8G" if not spawner.user.groups else "16G"

c.JupyterHub.spawner_class = "gpuspawner.GPUSpawner"
c.JupyterHub.bind_url = "http://127.0.0.1:8000/jupyter/"
c.JupyterHub.hub_ip = ensure_network("gpuspawner")
c.JupyterHub.hub_port = {port}
c.DockerSpawner.network_name = "gpuspawner"
c.DockerSpawner.allowed_images = lambda spawner: {{spawner.user.name: "gpuspawner/minimal:py3.11"}}
c.DockerSpawner.image = "gpuspawner/minimal:py3.11"
c.DockerSpawner.pull_policy = "never"
c.DockerSpawner.prefix = "lab"
c.DockerSpawner.mem_limit = of_group
c.DockerSpawner.cpu_limit = lambda spawner: 1.0
c.DockerSpawner.volumes = {{"home-{{username}}": "/home/jovyan/work"}}
c.DockerSpawner.extra_host_config = lambda spawner: {{
    "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "pids_limit": 512
}}
c.DockerSpawner.extra_create_kwargs = lambda spawner: {{"hostname": spawner.user.name}}
c.Spawner.environment = {{"WHO": lambda spawner: spawner.user.name}}
c.GPUSpawner.shm_size = "1G"
"""


@pytest.mark.thorough
def test_functions_a_prefix_and_docker_spawner_s_own_section_pass_every_check(
    folder, environment, engine
) -> None:
    config = folder / "jupyterhub_config.py"
    config.write_text(FUNCTIONS.format(port=free_port()))
    status, found = run(folder, environment)
    bad = [e for each in found.values() for e in each if e["state"] not in ("ok", "note")]
    assert bad == []
    assert status == 0
    assert volumes(engine) == []
    notes = [e["found"] for e in found["Settings"] if e["state"] == "note"]
    assert len(notes) == 2
    assert all("is a function: looked at is what it returns" in each for each in notes), notes


@pytest.mark.thorough
def test_a_machine_without_gpus_is_told_so_and_passes(folder, environment, tmp_path) -> None:
    nothing = {**environment, "LD_LIBRARY_PATH": ""}
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver of its own")
    status, found = run(folder, nothing)
    assert status == 0
    assert found["NVIDIA driver"][0]["state"] == "note"
    assert found["Container with a GPU"][0]["state"] == "note"
    assert found["Container without"][0]["state"] == "ok"


@pytest.mark.thorough
def test_a_driver_that_is_gone_is_told_once(folder, environment, idle_host) -> None:
    idle_host.change(parse("driver gone"))
    status, found = run(folder, environment)
    assert status == 1
    failures = [e["check"] for each in found.values() for e in each if e["state"] == "failure"]
    assert failures == ["NVIDIA driver"]
    assert found["Container with a GPU"][0]["found"] == "see NVIDIA driver"
    assert found["Container without"][0]["state"] == "ok"


@pytest.mark.thorough
def test_an_engine_that_is_away_is_told_once(folder, environment) -> None:
    away = {**environment, "DOCKER_HOST": f"unix://{folder}/away.sock"}
    status, found = run(folder, away)
    assert status == 1
    failures = [e["check"] for each in found.values() for e in each if e["state"] == "failure"]
    assert failures == ["Docker Engine"]
    # What needs no engine is looked at, though the configuration asks for a network.
    assert found["Configuration"][0]["state"] == "ok"
    assert found["Settings"][0] == {
        "check": "Settings",
        "state": "ok",
        "found": "nothing to change",
        "advice": "",
    }


@pytest.mark.thorough
def test_beside_a_hub_that_runs_it_passes_and_the_hub_counts_its_gpu(
    hub, environment, idle_host, engine
) -> None:
    hub.start_server("ada", {"gpus": 1})
    _, found = run(hub.folder, environment)
    assert "a hub runs there" in found["Hub's address"][0]["found"]
    assert found["Container with a GPU"][0]["state"] == "ok"
    assert [c["Id"] for c in engine.containers(all=True)] == [container_of(engine, "ada")]
    assert hub.ready("ada")


# ---- Containers are removed, however it ends -----------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_was_started_is_gone_when_it_is_interrupted(
    folder, environment, engine, number
) -> None:
    process = subprocess.Popen(
        doctor_words("--json"),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background has some of them ignored.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    with process:
        until(lambda: ours(engine) or process.poll() is not None, "it starts a container")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "gpuspawner doctor: stopped\n"
    assert ours(engine) == []


@pytest.mark.thorough
def test_a_container_that_nobody_removes_ends_and_goes_by_itself(
    folder, environment, engine
) -> None:
    left = left_by_a_killed_doctor(folder, environment, engine)
    about = engine.inspect_container(left)
    assert about["HostConfig"]["AutoRemove"]
    assert about["Config"]["Entrypoint"] == ["sleep"]
    assert 0 < int(about["Config"]["Cmd"][0]) <= 300
    with suppress(docker.errors.APIError):  # it may have been about to end when doctor was killed
        engine.kill(left)
    until(lambda: not ours(engine), "the engine removes it")


def left_by_a_killed_doctor(folder: Path, environment: dict[str, str], engine: Any) -> str:
    """The id of a container that doctor, killed, can't remove any more."""
    for _ in range(20):
        with subprocess.Popen(
            doctor_words("--json"), cwd=folder, env=environment, stdout=subprocess.DEVNULL
        ) as process:
            until(lambda: running(engine) or process.poll() is not None, "it starts a container")
            process.kill()
        if left := running(engine):
            return left[0]["Id"]
        # It was already removing that one when it was killed.
        until(lambda: not ours(engine), "what it was removing has gone")
    raise AssertionError("doctor removed its container before each kill")


def test_what_a_killed_one_never_started_is_removed_by_the_next(seen, engine, monkeypatch) -> None:
    lease = {**labels(trial.HOLDER, "minimal", ["GPU-1"]), LABEL_HUB: trial.HUB}
    others = {**lease, LABEL_HUB: "http://10.0.0.1:8081/hub/api"}
    for label in (lease, others):
        seen.engine.containers.create(MINIMAL.image, ["sleep", "60"], labels=label)
    assert [each.state for each in containers.without_gpu(seen)] == ["ok"]
    assert len(engine.containers(all=True)) == 2  # somebody may be about to start them
    monkeypatch.setattr(trial, "STALE_SECONDS", -10)
    assert [each.state for each in containers.without_gpu(seen)] == ["ok"]
    (left,) = engine.containers(all=True)
    assert left["Labels"][LABEL_HUB] == others[LABEL_HUB]


def running(engine: Any) -> list[dict[str, Any]]:
    return [container for container in ours(engine) if container["State"] == "running"]


def ours(engine: Any) -> list[dict[str, Any]]:
    return [c for c in engine.containers(all=True) if "doctor" in c["Names"][0]]


# ---- What others have, and what is kept out ------------------------------------------------------


@pytest.mark.thorough
def test_containers_in_the_way_are_named_with_what_removes_them(seen, idle_host, engine) -> None:
    seen.gpus = tuple(GPU(g.uuid, n, "A100") for n, g in enumerate(idle_host.read().gpus))
    seen.configuration = replace(
        given(seen.folder, prefix="jupyter"), hub={"connects": ["10.0.0.1", 8081]}
    )
    here, there = "http://10.0.0.1:8081/hub/api", "http://10.9.9.9:8081/hub/api"
    bears = labels(Holder("ada"), "minimal", [])
    for name, hub in (("jupyter-ada", here), ("jupyter-ben", there), ("other-cyd", there)):
        label = {**bears, LABEL_HUB: hub}
        seen.engine.containers.create(MINIMAL.image, ["true"], name=name, labels=label)
    (name,) = outsiders.outsiders(seen)
    assert (name.state, name.found.split()[0]) == ("warning", "jupyter-ben")
    assert there in name.found
    assert "docker rm -f jupyter-ben" in name.advice
    every = DeviceRequest(count=2, capabilities=[["gpu"]])
    seen.engine.containers.run(
        MINIMAL.image, ["sleep", "60"], name="zoe", detach=True, device_requests=[every]
    )
    holds, _ = outsiders.outsiders(seen)
    assert holds.state == "warning"
    assert holds.found.startswith("zoe was given GPU 0, 1 without a lease")
    assert "docker stop zoe" in holds.advice
    seen.configuration = None
    engine.remove_container("zoe", force=True)
    assert [each.state for each in outsiders.outsiders(seen)] == ["ok"]


@pytest.mark.thorough
def test_dockerspawner_s_containers_are_named_with_how_to_have_what_is_in_them(seen, engine):
    seen.configuration = None
    make = seen.engine.containers.create
    for number in range(6):
        make(MINIMAL.image, name=f"jupyter-{number}", environment={"JUPYTERHUB_USER": str(number)})
    (found,) = outsiders.outsiders(seen)
    assert found.state == "note"
    assert "jupyter-0, jupyter-1, jupyter-2, jupyter-3, jupyter-4, … (6 in all)" in found.found
    assert "docker cp jupyter-0:/home/jovyan/. " in found.advice
    assert "docker rm jupyter-0" in found.advice
    for number in range(6):
        engine.remove_container(f"jupyter-{number}")
    # None of these is a server that has ended and stays.
    make(MINIMAL.image, name="zoe")
    server = {"environment": {"JUPYTERHUB_USER": "ada"}}
    make(MINIMAL.image, auto_remove=True, **server)
    make(MINIMAL.image, labels=labels(Holder("ada"), "minimal", []), **server)
    assert [each.state for each in outsiders.outsiders(seen)] == ["ok"]


@pytest.mark.thorough
def test_what_is_kept_out_is_not_counted_as_to_be_handed_out(seen, idle_host, engine) -> None:
    uuids = [gpu.uuid for gpu in idle_host.read().gpus]
    facts = tuple(GPUFacts(uuid, n, "A100", 1, 0, 0, 0) for n, uuid in enumerate(uuids))
    seen.inventory = Inventory("570.133.20", "12.8", facts)
    seen.configuration = given(seen.folder, excluded_gpus=[uuids[3].upper()])
    engine.create_volume(f"gpuspawner-out-of-service-{uuids[1]}")
    all_of_them, *kept_out = gpus.gpus(seen)
    assert all_of_them.found.startswith("2 of 4 can be handed out")
    assert [each.state for each in kept_out] == ["note", "note"]
    assert kept_out[0].found == "GPU 1 is out of service"
    assert "excluded_gpus" in kept_out[1].found


# ---- A container with a GPU ----------------------------------------------------------------------


@pytest.fixture
def seen(idle_host, folder: Path) -> Iterator[Context]:
    """What earlier checks of a machine that is well have found out."""
    found = Context(folder / "jupyterhub_config.py", folder)
    assert not {each.state for each in engines.engine(found)} & {"failure", "warning"}
    found.inventory = Inventory("570.133.20", "12.8", ())
    found.configuration = given(folder)
    found.trial_image = ("minimal", MINIMAL.image)
    ensure_network("gpuspawner")
    yield found
    found.engine.close()


def given(folder: Path, versions: Any = None, **spawner: Any) -> Configuration:
    values = {"network_name": "gpuspawner", "pull_policy": "never", "gpu_policy": "pack"}
    return Configuration(
        folder / "jupyterhub_config.py",
        "gpuspawner.spawner.GPUSpawner",
        True,
        {**values, **spawner},
        {},
        versions or {"minimal": MINIMAL},
        plan=planned({**values, **spawner}),
    )


# The library of this process is chosen before the simulated host is there.
WITH_GPU = """
import json, sys
from pathlib import Path
from gpuspawner.doctor import containers, engine
from gpuspawner.doctor.findings import Configuration, Context
from tests.support.plans import planned
context = Context(None, Path())
list(engine.engine(context))
context.inventory = object()
context.trial_image = ("minimal", "gpuspawner/minimal:py3.11")
context.variable_accepted = {accepted}
plan = planned({spawner!r})
context.configuration = Configuration(Path(), "", True, {spawner!r}, {{}}, {{}}, plan=plan)
CHANGES
print(json.dumps([[f.state, f.found, f.advice] for f in containers.with_gpu(context)]))
"""


def all_with_gpu(
    host: Any, changes: str = "", accepted: bool = True, **spawner: Any
) -> list[Finding]:
    code = WITH_GPU.format(spawner=spawner, accepted=accepted).replace("CHANGES", changes)
    environment = {**host.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Finding(*each) for each in json.loads(done.stdout)]


def with_gpu(host: Any, changes: str = "", accepted: bool = True, **spawner: Any) -> Finding:
    (found,) = all_with_gpu(host, changes, accepted, **spawner)
    return found


@pytest.mark.thorough
def test_one_of_each_kind_of_parts_is_tried_as_well(idle_host, engine) -> None:
    divided = partition(idle_host.read(), 3, layout("1g.5gb, 2g.10gb"))
    idle_host.write(divided)
    small, large = divided.gpu(3).instances
    shared = divided.gpus[2].uuid
    read = "from gpuspawner.gpus.reader import read_node\ncontext.gpus = read_node().gpus"
    found = all_with_gpu(idle_host, read, shared_gpus={shared: 4})
    assert [each.state for each in found] == ["ok"] * 4, found
    said = [each.found for each in found]
    assert said[0].startswith(f"one that was granted GPU 0 ({divided.gpus[0].uuid})")
    for words in (
        f"GPU 2 (1/4, {shared}) sees exactly that",
        f"GPU 3 (1g.5gb, {small.uuid}) sees exactly that",
        f"GPU 3 (2g.10gb, {large.uuid}) sees exactly that",
    ):
        assert any(words in each for each in said), words
    assert engine.containers(all=True) == []


def test_the_gpu_of_the_lease_is_the_one_that_is_seen(idle_host, engine) -> None:
    first = idle_host.read().gpus
    idle_host.change(parse("gpu 0 process 4242 2000"))
    found = with_gpu(idle_host)
    assert found.state == "ok"
    assert first[1].uuid in found.found
    excluded = with_gpu(idle_host, excluded_gpus=[first[1].uuid])
    assert first[2].uuid in excluded.found
    assert engine.containers(all=True) == []


@pytest.mark.thorough
def test_where_no_gpu_is_free_that_is_no_failure(idle_host, engine, minimal_image) -> None:
    uuids = [gpu.uuid for gpu in idle_host.read().gpus]
    client, image = minimal_image
    client.containers.run(
        image, ["sleep", "60"], detach=True, labels=labels(Holder("ada"), "minimal", uuids)
    )
    found = with_gpu(idle_host)
    assert found.state == "note"
    assert "none is free" in found.found
    assert "0 of 4 are free" in found.found
    assert len(engine.containers(all=True)) == 1


@pytest.mark.thorough
def test_without_nvml_nothing_is_started(idle_host, engine) -> None:
    idle_host.change(parse("driver gone"))
    found = with_gpu(idle_host)
    assert found.state == "failure"
    assert "isn't loaded" in found.found


@pytest.mark.thorough
def test_a_gpu_that_the_container_does_not_get_is_told(idle_host, engine) -> None:
    """As with a runtime that passes over the request: here the container gets none."""
    change = (
        "from gpuspawner.doctor import trial\n"
        "trial.leased = lambda c, labels, **_: {**c, 'labels': labels}"
    )
    found = with_gpu(idle_host, change)
    assert found.state == "failure"
    assert "sees none" in found.found
    assert "nvidia-ctk runtime configure" in found.advice
    found = with_gpu(idle_host, change, accepted=False)
    assert found.state == "failure"
    assert "accept-nvidia-visible-devices-envvar-when-unprivileged" in found.advice
    assert engine.containers(all=True) == []


@pytest.mark.thorough
def test_more_gpus_than_were_granted_are_told(idle_host, engine) -> None:
    change = """
from gpuspawner.doctor import trial
lease = trial.leased
def more(create, uuids, **words):
    return lease(create, uuids=[*uuids, *(u for u in UUIDS if u not in uuids)], **words)
trial.leased = more
""".replace("UUIDS", repr([gpu.uuid for gpu in idle_host.read().gpus]))
    found = with_gpu(idle_host, change)
    assert found.state == "failure"
    assert found.found.count("GPU-") == 5
    assert "extra_host_config" in found.advice
    assert engine.containers(all=True) == []


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("settings", "word", "advice"),
    [
        (
            {"extra_host_config": {"device_requests": [{"Driver": "nvidia", "DeviceIDs": ["0"]}]}},
            "device_requests",
            "extra_host_config",
        ),
        ({"extra_host_config": {"runtime": "nowhere"}}, "nowhere", "extra_host_config"),
        ({"extra_host_config": {"binds": ["/tmp:relative"]}}, "relative", "binds"),
        ({"extra_host_config": {"binds": ["/tmp:/x:odd"]}}, "odd", "binds"),
        ({"volumes": {"home-{username}": "/"}}, "'/'", "volumes"),
        ({"extra_create_kwargs": {"user": "nobody-here"}}, "nobody-here", "user"),
    ],
)
def test_what_the_engine_would_refuse_of_every_server_is_told(
    idle_host, engine, settings, word, advice
) -> None:
    found = with_gpu(idle_host, **settings)
    assert found.state == "failure", found
    assert word in found.found
    assert advice in found.advice
    assert engine.containers(all=True) == []
    assert volumes(engine) == []


@pytest.mark.thorough
def test_what_docker_py_refuses_is_told_once(idle_host) -> None:
    found = with_gpu(idle_host, extra_host_config={"mem_reservation": "12Q"})
    assert (found.state, found.found) == ("skipped", "no server can be created: see Settings")


def volumes(engine: Any) -> list[str]:
    return [each["Name"] for each in engine.volumes()["Volumes"] or []]


@pytest.mark.thorough
def test_users_volumes_are_not_touched_and_folders_of_the_host_not_made(
    idle_host, engine, tmp_path
) -> None:
    """What is mounted in servers is in the container too, as volumes of its own."""
    missing = tmp_path / "missing"
    settings = {
        "home_volume": "home-{username}",
        "volumes": {str(tmp_path): "/there", str(missing): "/made", "shared": "/shared"},
        "mounts": [{"source": "mounted", "target": "/mounted"}],
    }
    engine.create_volume("shared")
    try:
        found = with_gpu(idle_host, **settings)
        assert found.state == "ok", found
        assert volumes(engine) == ["shared"]
        assert not missing.exists()
    finally:
        engine.remove_volume("shared")


@pytest.mark.thorough
def test_a_gpu_that_is_lost_on_the_way_is_told_in_the_engine_s_words(idle_host, engine) -> None:
    """The engine's hook refuses it at start."""
    change = """
from gpuspawner.doctor import trial
lease = trial.leased
trial.leased = lambda c, uuids, **words: lease(c, uuids=["GPU-nope"], **words)
"""
    found = with_gpu(idle_host, change)
    assert found.state == "failure"
    assert "unknown device" in found.found
    assert engine.containers(all=True) == []


@pytest.mark.thorough
def test_an_engine_without_the_toolkit_is_told_to_have_it(seen, monkeypatch) -> None:
    """Docker's own words, since the simulated engine has it."""
    error = docker.errors.APIError(
        "500", explanation='could not select device driver "nvidia" with capabilities: [[gpu]]'
    )
    from gpuspawner.backends.docker.errors import explain

    told = containers.not_started(seen, trial.TrialError(explain(error)))
    assert told.state == "failure"
    assert "install-guide" in told.advice


@pytest.mark.thorough
def test_without_an_image_it_is_skipped(seen) -> None:
    seen.trial_image = None
    for check in (containers.with_gpu, containers.without_gpu):
        assert [each.state for each in check(seen)] == ["skipped"]


# ---- A container without -------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_container_without_gpus_sees_none(seen, engine) -> None:
    (found,) = containers.without_gpu(seen)
    assert found.state == "ok"
    assert engine.containers(all=True) == []


@pytest.mark.thorough
def test_gpus_that_were_not_granted_are_told(seen, engine) -> None:
    """A device request past the ledger can't be made, and a device file can."""
    seen.configuration = given(
        seen.folder, extra_host_config={"devices": ["/dev/null:/dev/nvidia0:rwm"]}
    )
    (found,) = containers.without_gpu(seen)
    assert found.state == "failure"
    assert "/dev/nvidia0" in found.found
    assert engine.containers(all=True) == []


@pytest.mark.thorough
def test_limits_that_the_engine_may_not_set_are_left_out(seen, engine) -> None:
    seen.configuration = given(seen.folder, ulimits={"nofile": 2**40})
    (found,) = containers.without_gpu(seen)
    assert found.state == "ok"
    assert "may not set its limits nofile" in found.found
    assert engine.containers(all=True) == []


# ---- The network and the hub's address -----------------------------------------------------------


@pytest.fixture
def made(seen) -> Iterator[Any]:
    """Make networks that are gone afterwards."""
    names = []

    def make(name: str, **how: Any) -> str:
        seen.engine.networks.create(name, **how)
        names.append(name)
        return name

    yield make
    for name in names:
        seen.engine.networks.get(name).remove()


def look(seen: Context, name: str) -> Finding:
    seen.configuration = given(seen.folder, network_name=name)
    (found,) = networks.network(seen)
    return found


@pytest.mark.thorough
def test_networks_are_judged_by_whether_they_keep_servers_apart(seen, made) -> None:
    apart = {networks.BETWEEN_CONTAINERS: "false"}
    assert look(seen, "gpuspawner").state == "ok"
    default = look(seen, "bridge")
    assert default.state == "warning"
    assert 'ensure_network("gpuspawner")' in default.advice
    together = look(seen, made("together"))
    assert together.state == "warning"
    assert "docker network create -o com.docker.network.bridge.enable_icc=false" in together.advice
    inside = look(seen, made("inside", options=apart, internal=True))
    assert (inside.state, "packages" in inside.found) == ("note", True)
    missing = look(seen, "missing")
    assert missing.state == "failure"
    assert "docker network create" in missing.advice
    for name in ("host", "none"):
        assert look(seen, name).state == "failure"


@pytest.mark.thorough
def test_a_network_that_the_configuration_could_not_have_is_told(seen) -> None:
    error = "network 'x': it has no gateway"
    seen.configuration = Configuration(seen.folder, "", True, {}, {}, {}, network_error=error)
    (found,) = networks.network(seen)
    assert (found.state, found.found) == ("failure", "it has no gateway")


def hub_at(seen: Context, listens: Any, connects: Any = None, **spawner: Any) -> Finding:
    base = given(seen.folder, **spawner)
    hub = {"listens": listens, "connects": connects or listens}
    seen.configuration = Configuration(base.file, "", True, base.spawner, hub, base.versions)
    (found,) = containers.hub_address(seen)
    return found


@pytest.mark.thorough
def test_the_hub_s_address_is_tried_from_a_container(seen, idle_host, engine) -> None:
    place = [idle_host.hub_ip, free_port()]
    tried = hub_at(seen, place)
    assert tried.state == "ok"
    assert "tried without a hub" in tried.found
    with closing(socket.create_server((idle_host.hub_ip, place[1]))):
        assert "a hub runs there" in hub_at(seen, place).found
    assert engine.containers(all=True) == []


@pytest.mark.thorough
def test_a_hub_that_containers_cannot_reach_is_told(seen, made, idle_host, engine) -> None:
    port = free_port()
    alone = made("alone", internal=True)
    found = hub_at(seen, [idle_host.hub_ip, port], network_name=alone)
    assert found.state == "failure"
    assert f"{idle_host.hub_ip}:{port} isn't reached from the network alone" in found.found
    bridge = "br-" + seen.engine.networks.get(alone).id[:12]
    assert f"ufw allow in on {bridge} to any port {port}" in found.advice
    assert engine.containers(all=True) == []


@pytest.mark.thorough
@pytest.mark.parametrize("place", [["127.0.0.1", 8081], ["localhost", 8081]])
def test_a_hub_that_listens_to_itself_only_is_told(seen, place) -> None:
    found = hub_at(seen, place)
    assert found.state == "failure"
    assert "hub_ip" in found.advice


@pytest.mark.thorough
def test_an_address_that_this_machine_has_not_is_told(seen) -> None:
    found = hub_at(seen, ["192.0.2.1", 8081])
    assert found.state == "failure"
    assert "can't listen at 192.0.2.1:8081" in found.found


@pytest.mark.thorough
def test_a_url_of_the_configuration_s_own_is_not_tried(seen) -> None:
    found = hub_at(seen, ["127.0.0.1", 1], hub_connect_url="http://hub.example.org")
    assert found.state == "note"


# ---- Images --------------------------------------------------------------------------------------


def judged(seen: Context, versions: dict[str, ImageVersion], **spawner: Any) -> list[Finding]:
    seen.trial_image = None
    seen.configuration = given(seen.folder, versions, **spawner)
    return list(images.images(seen))


@pytest.mark.thorough
def test_an_image_that_is_there_is_named_and_tried_with(seen) -> None:
    assert judged(seen, {"m": MINIMAL}) == [Finding("ok", f"m: {MINIMAL.image}")]
    assert seen.trial_image == ("m", MINIMAL.image)


@pytest.mark.thorough
def test_a_missing_image_is_a_failure_where_it_is_the_default(seen) -> None:
    torch = ImageVersion(image="gpuspawner/pytorch:none", size="7.1 GB")
    (found, _) = judged(seen, {"torch": torch, "m": MINIMAL})
    assert found.state == "failure"
    assert "docker pull gpuspawner/pytorch:none" in found.advice
    assert not found.blocks_others
    assert seen.missing_bytes == 7_100_000_000
    (_, found) = judged(seen, {"m": MINIMAL, "torch": torch})
    assert found.state == "warning"
    (found,) = judged(seen, {"torch": torch}, pull_policy="ifnotpresent")
    assert found.state == "note"
    assert "the first start fetches it" in found.found


@pytest.mark.thorough
def test_one_of_ours_that_is_missing_is_to_be_built(seen) -> None:
    # No test builds this one.
    ours = ImageVersion(image="gpuspawner/pytorch:2.15")
    (found,) = judged(seen, {"mine": ours}, pull_policy="ifnotpresent")
    assert found.state == "failure"
    assert found.advice == "gpuspawner image build pytorch-2.15"


@pytest.mark.thorough
def test_a_reference_that_the_engine_refuses_is_told_and_the_others_are_looked_at(seen) -> None:
    refused, found = judged(seen, {"odd": ImageVersion(image="Team/torch:1"), "m": MINIMAL})
    assert (refused.state, "odd: the engine doesn't take 'Team/torch:1'" in refused.found) == (
        "failure",
        True,
    )
    assert found == Finding("ok", f"m: {MINIMAL.image}")
    assert seen.trial_image == ("m", MINIMAL.image)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fields", "driver", "gpu", "state", "word"),
    [
        ({"min_driver": "999.1"}, "570.133.20", "8.0", "warning", "needs driver 999.1"),
        ({"cuda": "12.6"}, "470.1", "8.0", "warning", "needs driver 525.60.13"),
        ({"cuda": "12.6"}, "535.1", "8.0", "note", "new CUDA features are missing"),
        ({"cuda": "12.6"}, "570.1", "8.0", "ok", "minimal"),
        ({"compute_capabilities": ("9.0",)}, "570.1", "8.0", "warning", "isn't built for"),
        ({"deprecated": "too old"}, "570.1", "8.0", "note", "too old"),
        ({"cuda": "12.6"}, None, "8.0", "ok", "minimal"),
    ],
)
def test_an_image_is_judged_by_this_machine_s_driver_and_gpus(
    seen, fields, driver, gpu, state, word
) -> None:
    seen.inventory = Inventory(driver, None, ())
    seen.gpus = (GPU("GPU-1", 0, "Tesla", compute_capability=gpu),)
    (found,) = judged(seen, {"m": ImageVersion(image=MINIMAL.image, **fields)})
    assert found.state == state
    assert word in found.found


@pytest.mark.thorough
def test_an_image_for_another_machine_is_told(seen) -> None:
    seen.engine_info = {**seen.engine_info, "Architecture": "aarch64"}
    (found,) = judged(seen, {"m": MINIMAL})
    assert found.state == "failure"
    assert "for amd64, and this machine is arm64" in found.found
    assert "--platform linux/arm64" in found.advice


@pytest.mark.thorough
def test_without_a_configuration_the_shipped_versions_are_looked_at(seen) -> None:
    seen.configuration = seen.trial_image = None
    found = list(images.images(seen))
    assert any(each.found.startswith("minimal: ") and each.state == "ok" for each in found)
    assert seen.trial_image == ("minimal", MINIMAL.image) or seen.trial_image[0] != "minimal"
