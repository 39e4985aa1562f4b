"""A GPU that several servers share, on a real hub and engine."""

from __future__ import annotations

import re

import pytest

from gpuspawner.simulation.mig import partition

from ..support.hubs import WAITING, until
from ..support.looks import inside, labelled
from ..support.queues import ask, message

pytestmark = pytest.mark.engine

# The simulated host has four of this model.
MODEL = "NVIDIA A100-SXM4-40GB"
LINES = (
    WAITING,
    "c.GPUSpawner.poll_interval = 1",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
    "from gpuspawner.gpus import nvml",
    # The first is shared by two, the others aren't.
    "c.GPUSpawner.shared_gpus = {gpu.uuid: 2 for gpu in nvml.read().gpus if gpu.index == 0}",
)


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


def test_two_share_a_gpu_a_third_waits_and_who_wants_a_whole_one_gets_another(hub, engine):
    for user in ("ada", "ben"):
        hub.start_server(user, {"kind": "shared"})
    held = labelled(engine)
    (one,), (other,) = held["ada"], held["ben"]
    uuid = one.partition("#")[0]
    assert {one, other} == {f"{uuid}#0/2", f"{uuid}#1/2"}
    for user in ("ada", "ben"):
        listed = inside(engine, user, "nvidia-smi -L")
        assert re.findall(r"GPU-[0-9a-f-]+", listed) == [uuid]
    hub.start_server("eve", {"gpus": 3})
    assert uuid not in labelled(engine)["eve"]
    ask(hub, "cyd", {"kind": "shared"})
    until(
        lambda: "next in line for 1 shared GPU" in message(hub, "cyd"), "cyd's place", log=hub.log
    )
    hub.stop_server("ada")
    until(lambda: hub.ready("cyd"), "cyd's server", log=hub.log)
    assert labelled(engine)["cyd"] == [one]


def test_what_cannot_be_had_is_refused_and_nothing_is_reserved(hub, engine):
    for options, says in (
        ({"kind": "1g.5gb"}, "and here there are: shared, gpu"),
        ({"kind": "shared", "gpus": 2}, "and not several"),
        ({"gpus": 4}, "this machine has 3"),
    ):
        assert says in hub.failed_start("ada", options)["message"]
    assert labelled(engine) == {}


def test_a_hub_that_is_restarted_without_sharing_gives_the_whole_gpu_only_when_all_are_gone(
    hub, engine
):
    hub.start_server("ada", {"kind": "shared"})
    hub.kill()
    config = hub.folder / "jupyterhub_config.py"
    before = config.read_text()
    config.write_text(before + "\nc.GPUSpawner.shared_gpus = {}\n")
    try:
        hub.start()
        ask(hub, "ben", {"gpus": 4})
        until(lambda: "next in line for 4 GPUs" in message(hub, "ben"), "ben's place", log=hub.log)
        assert hub.ready("ada")
        hub.stop_server("ada")
        until(lambda: hub.ready("ben"), "ben's server", log=hub.log)
        assert len(labelled(engine)["ben"]) == 4
    finally:
        hub.kill()
        config.write_text(before)
        hub.start()


def test_a_mig_instance_is_all_that_its_server_sees_and_a_changed_set_is_noticed(hub, engine, host):
    uuid = host.read().gpus[3].uuid
    host.change(lambda state: partition(state, uuid, ("3g.20gb", "1g.5gb")))
    hub.start_server("ada", {"kind": "1g.5gb"})
    (held,) = labelled(engine)["ada"]
    assert re.fullmatch(rf"MIG-[0-9a-f-]+#1g\.5gb/7@{uuid}", held)
    listed = inside(engine, "ada", "nvidia-smi -L")
    assert re.findall(r"UUID: (MIG-[0-9a-f-]+)", listed) == [held.partition("#")[0]]
    assert "1g.5gb" in listed
    # Its GPU is nobody's as a whole, and another part of it somebody else's.
    assert "this machine has 2" in hub.failed_start("ben", {"gpus": 4})["message"]
    hub.start_server("ben", {"kind": "3g.20gb"})
    hub.stop_server("ada")
    hub.stop_server("ben")
    host.change(lambda state: partition(state, uuid, ("2g.10gb",)))
    hub.start_server("cyd", {"kind": "2g.10gb"})
    assert "#2g.10gb/7@" in labelled(engine)["cyd"][0]
