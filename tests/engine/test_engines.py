"""Servers on Docker Engines of three releases, given GPUs by NVIDIA's hook, by CDI, or by either.

Engines 20.10, 26.1 and 28.5: without CDI, with a CDI that doesn't list its devices, and with one
that does. Each with what NVIDIA's toolkit may have set up on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import DeviceRequest

from gpuspawner.simulation import cdi
from gpuspawner.simulation.engine import HOOK
from gpuspawner.simulation.host import SimulatedHost, SimulationError
from gpuspawner.simulation.mig import layout, partition
from gpuspawner.simulation.state import describe

from ..support import plain_image
from ..support.engine_roots import cache_of, engine_root
from ..support.hubs import Hub, until, with_groups, write_config
from ..support.looks import container_of, labelled
from ..support.requirements import cannot

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(1200)]

WAYS = ("auto", "cdi", "hook")
# What the toolkit has set up -> what there is of it: NVIDIA's hook, a specification.
TOOLKITS = {"hook": (True, False), "cdi": (False, True), "both": (True, True)}
# Release, toolkit -> which way servers are given GPUs, for each value of the trait; "": they can't.
GIVEN = {
    ("bookworm", "hook"): {"auto": "hook", "cdi": "", "hook": "hook"},
    ("bookworm", "cdi"): {"auto": "", "cdi": "", "hook": ""},
    ("bookworm", "both"): {"auto": "hook", "cdi": "", "hook": "hook"},
    ("trixie", "hook"): {"auto": "hook", "cdi": "", "hook": "hook"},
    ("trixie", "cdi"): {"auto": "", "cdi": "cdi", "hook": ""},
    ("trixie", "both"): {"auto": "hook", "cdi": "cdi", "hook": "hook"},
    ("sid", "hook"): {"auto": "hook", "cdi": "", "hook": "hook"},
    ("sid", "cdi"): {"auto": "cdi", "cdi": "cdi", "hook": ""},
    ("sid", "both"): {"auto": "cdi", "cdi": "cdi", "hook": "hook"},
}
# What a user reads who can't have any.
REASONS = {
    "hook": "The Docker Engine can't hand out GPUs: the NVIDIA Container Toolkit",
    "cdi": "sudo nvidia-ctk cdi generate",
    "no cdi": "knows no CDI",
}


@dataclass
class Machine:
    """A simulated host with an engine of a release, and a hub on it."""

    release: str
    host: SimulatedHost
    hub: Hub
    engine: docker.APIClient

    def set_up(self, toolkit: str) -> None:
        """Have the engine restarted with what a toolkit sets up."""
        by_hook, by_cdi = TOOLKITS[toolkit]
        self.host.stop_engine()
        for path, is_there in (
            (self.host.directory / "hook" / HOOK, by_hook),
            (self.host.directory / "cdi" / "nvidia.json", by_cdi),
        ):
            away = path.with_name(f"{path.name}.away")
            if is_there and away.exists():
                away.rename(path)
            elif not is_there and path.exists():
                path.rename(away)
        self.host.start_engine()
        if by_cdi and self.release == "sid":
            until(lambda: self.engine.info().get("DiscoveredDevices"), "it has read the devices")

    def free(self) -> int:
        """Return how many GPUs are free, as `gpuspawner gpus` has it."""
        return sum(each["state"] == "free" for each in self._command("gpus", "--json")["gpus"])

    def doctor(self) -> list[dict[str, str]]:
        """Return what doctor says of the way to GPUs, without the hub's configuration."""
        said = self._command("doctor", "--json")
        return [each for each in said if each["check"] == "GPUs into containers"]

    def _command(self, *words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "gpuspawner", *words],
            env=self.host.environment,
            cwd=self.host.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def inside(self, user: str, *words: str) -> str:
        """Return what a program prints in a user's container."""
        job = self.engine.exec_create(container_of(self.engine, user), list(words))
        return str(self.engine.exec_start(job["Id"]).decode())


@pytest.fixture(scope="module", params=("bookworm", "trixie", "sid"))
def machine(request, tmp_path_factory) -> Iterator[Machine]:
    release = request.param
    root, folder = engine_root(release), tmp_path_factory.mktemp(release)
    state = describe([("A100-40GB", 4)])
    try:
        with SimulatedHost(state, cache=cache_of(release), engine_root=root) as host:
            client = docker.APIClient(base_url=host.docker_host, version="auto", timeout=60)
            plain_image.load(client, folder)
            write_config(folder, [
                f"c.GPUSpawner.images = {{'plain': {plain_image.IMAGE!r}}}",
                f"c.DockerSpawner.cmd = {plain_image.COMMAND!r}",
                with_groups({way: {"gpu_injection": way} for way in WAYS}),
            ])  # fmt: skip
            hub = Hub(folder, host.environment)
            try:
                hub.start()
                for way in WAYS:
                    hub.add_to_group(way, f"of-{way}")
                yield Machine(release, host, hub, client)
            finally:
                hub.stop()
                client.close()
    except SimulationError as error:
        cannot(str(error))


@pytest.fixture(params=TOOLKITS)
def toolkit(request, machine: Machine) -> Iterator[str]:
    """What the toolkit has set up. The hub goes on: it has to notice."""
    machine.set_up(request.param)
    yield request.param
    machine.hub.stop_all_servers()


@pytest.mark.parametrize("wanted", WAYS)
def test_a_server_has_exactly_its_gpus_or_its_user_reads_why(
    machine: Machine, toolkit: str, wanted: str
) -> None:
    way, user = GIVEN[machine.release, toolkit][wanted], f"of-{wanted}"
    if not way:
        refused = machine.hub.spawn(user, {"gpus": 2})
        assert refused.status_code == 500, refused.text
        reason = wanted if wanted == "cdi" else "hook"
        if wanted == "cdi" and machine.release == "bookworm":
            reason = "no cdi"
        assert REASONS[reason] in refused.json()["message"]
        assert machine.engine.containers(all=True) == []
        assert machine.free() == 4
        return
    machine.hub.start_server(user, {"gpus": 2})
    granted = labelled(machine.engine)[user]
    container = machine.engine.inspect_container(container_of(machine.engine, user))
    (request,) = container["HostConfig"]["DeviceRequests"]
    names = granted if way == "hook" else [f"nvidia.com/gpu={uuid}" for uuid in granted]
    driver = {"hook": "nvidia", "cdi": "cdi"}[way]
    assert (request["Driver"], request["DeviceIDs"]) == (driver, names)
    listed = machine.inside(user, "nvidia-smi", "-L").splitlines()
    assert sorted(line.split("UUID: ")[1].rstrip(")") for line in listed) == sorted(granted)
    assert f"GPUSPAWNER_GPUS={','.join(granted)}" in container["Config"]["Env"]
    assert machine.free() == 2


def test_a_hub_that_comes_back_knows_what_its_servers_have(machine: Machine, toolkit: str) -> None:
    ways = GIVEN[machine.release, toolkit]
    users = [f"of-{wanted}" for wanted in WAYS if ways[wanted]]
    for user in users:
        machine.hub.start_server(user, {"gpus": 1})
    held = labelled(machine.engine)
    assert sorted(held) == sorted(users)
    machine.hub.kill()
    machine.hub.stop()
    machine.hub.start()
    for user in users:
        until(lambda user=user: machine.hub.ready(user), "it is known", log=machine.hub.log)
    assert labelled(machine.engine) == held
    for user in users:
        machine.hub.stop_server(user)
    assert machine.free() == 4


def test_what_was_started_by_hand_holds_what_it_names(machine: Machine, toolkit: str) -> None:
    if toolkit == "hook" or machine.release == "bookworm":
        pytest.skip("nothing can be started by CDI here")
    uuids = [gpu.uuid for gpu in machine.host.read().gpus]
    for name, free in ((f"nvidia.com/gpu={uuids[2]}", 3), ("nvidia.com/gpu=1", 3)):
        assert _free_beside(machine, name) == free
    assert _free_beside(machine, "nvidia.com/gpu=all") == 0


def _free_beside(machine: Machine, name: str) -> int:
    host = machine.engine.create_host_config(
        device_requests=[DeviceRequest(driver="cdi", device_ids=[name])]
    )
    made = machine.engine.create_container(
        plain_image.IMAGE, plain_image.COMMAND, name="by-hand", host_config=host
    )
    try:
        machine.engine.start(made)
        return machine.free()
    finally:
        machine.engine.remove_container(made, force=True)


def test_a_device_that_is_out_of_date_is_told_and_holds_nothing(
    machine: Machine, toolkit: str
) -> None:
    way = GIVEN[machine.release, toolkit]
    if way["cdi"] != "cdi":
        pytest.skip("nothing can be started by CDI here")
    path = machine.host.directory / "cdi" / "nvidia.json"
    text = path.read_text()
    stale = json.loads(text)
    # Without numbers the engine has to look for the file, as with most of what nvidia-ctk writes.
    stale["containerEdits"]["deviceNodes"][0] = {"path": "/dev/nvidia-gone"}
    _replace(path, json.dumps(stale))
    try:
        refused = machine.hub.spawn("of-cdi", {"gpus": 1})
        assert refused.status_code == 500, refused.text
        assert "/dev/nvidia-gone" in refused.json()["message"]
        assert "sudo nvidia-ctk cdi generate" in refused.json()["message"]
        assert machine.free() == 4
        if machine.release == "sid":
            (found,) = [each for each in machine.doctor() if each["state"] == "failure"]
            assert "/dev/nvidia-gone isn't there" in found["found"]
    finally:
        _replace(path, text)
    machine.hub.start_server("of-cdi", {"gpus": 1})


def test_a_specification_that_is_gone_leaves_the_hook(machine: Machine, toolkit: str) -> None:
    if (machine.release, toolkit) != ("sid", "both"):
        pytest.skip("here only one way is taken")
    machine.hub.start_server("of-auto", {"gpus": 1})  # from now on the hub knows of CDI
    machine.hub.stop_server("of-auto")
    path = machine.host.directory / "cdi" / "nvidia.json"
    text = path.read_text()
    path.unlink()
    try:
        machine.hub.start_server("of-auto", {"gpus": 1})
        container = machine.engine.inspect_container(container_of(machine.engine, "of-auto"))
        assert [each["Driver"] for each in container["HostConfig"]["DeviceRequests"]] == ["nvidia"]
        assert "the engine gives GPUs by hook by now, not by cdi" in machine.hub.log()
    finally:
        _replace(path, text)


def test_a_mig_instance_is_given_by_cdi_and_alone(machine: Machine, toolkit: str) -> None:
    if GIVEN[machine.release, toolkit]["cdi"] != "cdi":
        pytest.skip("nothing can be started by CDI here")
    before = machine.host.read()
    divided = partition(before, 3, layout("2g.10gb, 1g.5gb"))
    mine, directory = divided.gpu(3).instances[1], machine.host.directory
    path = directory / "cdi" / "nvidia.json"
    text = path.read_text()
    machine.host.write(divided)
    cdi.write(directory, (directory / "state").read_text())
    try:
        machine.hub.start_server("of-cdi", {"gpus": 1, "kind": mine.profile})
        container = machine.engine.inspect_container(container_of(machine.engine, "of-cdi"))
        (request,) = container["HostConfig"]["DeviceRequests"]
        assert request["DeviceIDs"] == [f"nvidia.com/gpu={mine.uuid}"]
        listed = machine.inside("of-cdi", "nvidia-smi", "-L").splitlines()
        assert len(listed) == 2
        assert divided.gpu(3).uuid in listed[0]
        assert mine.uuid in listed[1]
        machine.hub.stop_server("of-cdi")
    finally:
        machine.host.write(before)
        _replace(path, text)


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_doctor_says_which_way_is_used(machine: Machine, toolkit: str) -> None:
    way = GIVEN[machine.release, toolkit]["auto"]
    first, *others = machine.doctor()
    if way == "cdi":
        assert first["found"] == "by CDI: Docker lists all 4"
        assert [each["state"] for each in others] == ["ok"]
    else:
        assert first["found"].startswith("by NVIDIA's hook: ")
        assert others == []
