"""Servers on the real engine: exactly the GPUs they were granted, and who gets none reads why."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ..support.hubs import until
from ..support.looks import container_of, containers, free_gpus, gpus, inside, labelled

pytestmark = pytest.mark.engine


def test_a_server_sees_exactly_the_gpus_of_its_label(hub, engine):
    hub.start_server("ada", {"gpus": 2})
    granted = labelled(engine)["ada"]
    assert len(granted) == 2
    listed = inside(engine, "ada", "nvidia-smi -L").splitlines()
    assert [line.split("UUID: ")[1].rstrip(")") for line in listed] == granted
    assert inside(engine, "ada", "ls /dev | grep -cE '^nvidia[0-9]+$'") == "2"
    code = (
        "import pynvml as n; n.nvmlInit();"
        "print([n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByIndex(i))"
        " for i in range(n.nvmlDeviceGetCount())])"
    )
    assert inside(engine, "ada", f'python -c "{code}"') == str(granted)
    container = engine.inspect_container(container_of(engine, "ada"))
    requests = container["HostConfig"]["DeviceRequests"]
    assert [request["DeviceIDs"] for request in requests] == [granted]
    labels = container["Config"]["Labels"]
    assert labels["gpuspawner.user"] == "ada"
    assert labels["gpuspawner.server"] == ""
    assert labels["gpuspawner.image"] == "minimal"


def test_named_servers_of_one_user_are_holders_of_their_own(hub, engine):
    hub.start_server("ada", {"gpus": 1}, server="one")
    hub.start_server("ada", {"gpus": 1}, server="two")
    holders = {(g["holder"]["user"], g["holder"]["server"]) for g in gpus() if g["holder"]}
    assert holders == {("ada", "one"), ("ada", "two")}
    assert len(free_gpus()) == 2


def test_twelve_at_once_for_four_gpus_are_four_servers_and_eight_reasons(hub, engine):
    users = [f"student{number}" for number in range(12)]
    for user in users:
        hub.add_user(user)
    with ThreadPoolExecutor(len(users)) as together:
        answers = list(together.map(lambda user: hub.spawn(user, {"gpus": 1}), users))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 8, [answer.text for answer in answers]
    for answer in refused:
        assert "You asked for 1 GPU, and 0 of 4 are free now" in answer.json()["message"]
    lucky = [user for user, answer in zip(users, answers, strict=True) if answer not in refused]
    for user in lucky:
        until(lambda user=user: hub.ready(user), f"{user} is ready", log=hub.log)
    held = labelled(engine)
    assert sorted(held) == sorted(lucky)
    assert len({uuid for uuids in held.values() for uuid in uuids}) == 4
    assert len(containers(engine)) == 4  # nothing is left of the other eight

    hub.stop_server(lucky[0])
    unlucky = next(user for user in users if user not in lucky)
    hub.start_server(unlucky, {"gpus": 1})
    assert labelled(engine)[unlucky] == held[lucky[0]]


def test_no_gpus_means_none_even_in_an_image_that_says_all(hub, engine, minimal_image):
    client, reference = minimal_image
    made = client.containers.create(reference)
    made.commit("gpuspawner/says-all", "latest", changes="ENV NVIDIA_VISIBLE_DEVICES=all")
    made.remove()
    # The usual hub knows no such image: take its place under the name that it knows.
    client.images.get(reference).tag("gpuspawner/kept", "latest")
    client.images.get("gpuspawner/says-all").tag(*reference.split(":"))
    try:
        hub.start_server("ada", {"gpus": 0})
        # Under `docker exec`, and in the server itself.
        for variables in ("env", "tr '\\0' '\\n' < /proc/1/environ"):
            lines = inside(engine, "ada", variables).splitlines()
            assert [line for line in lines if "VISIBLE" in line] == ["NVIDIA_VISIBLE_DEVICES=void"]
        assert inside(engine, "ada", "ls /dev | grep -c nvidia; command -v nvidia-smi") == "0"
        assert not engine.inspect_container(container_of(engine, "ada"))["HostConfig"][
            "DeviceRequests"
        ]
        assert len(free_gpus()) == 4
    finally:
        client.images.get("gpuspawner/kept").tag(*reference.split(":"))
        for name in ("gpuspawner/kept", "gpuspawner/says-all"):
            client.images.remove(name, force=True)


def test_another_count_is_another_container_with_the_same_volume(make_hub, engine):
    hub = make_hub(
        'c.GPUSpawner.home_volume = "home-{username}"',
        'c.GPUSpawner.images = {"minimal": "gpuspawner/minimal:py3.11",'
        ' "other": "gpuspawner/minimal:py3.11"}',
    )
    hub.start_server("ada", {"gpus": 1})
    first = engine.inspect_container(container_of(engine, "ada"))["Id"]
    assert inside(engine, "ada", "echo kept > ~/work/file && stat -c %U ~/work") == "jovyan"
    hub.stop_server("ada")
    assert containers(engine) == []
    hub.start_server("ada", {"gpus": 2, "image": "other"})
    second = engine.inspect_container(container_of(engine, "ada"))
    assert second["Id"] != first
    assert second["Config"]["Labels"]["gpuspawner.image"] == "other"
    assert len(inside(engine, "ada", "nvidia-smi -L").splitlines()) == 2
    assert inside(engine, "ada", "cat ~/work/file") == "kept"


def test_a_gpu_that_another_program_uses_is_not_handed_out(hub, idle_host, engine):
    busy = idle_host.read().gpus[1]
    idle_host.change(lambda state: state.with_gpu(1, processes=((4242, 9000),)))
    entry = next(gpu for gpu in gpus() if gpu["uuid"] == busy.uuid)
    assert entry["state"] == "foreign"
    refused = hub.spawn("ada", {"gpus": 4})
    assert refused.status_code == 503
    assert "1 in use outside the hub" in refused.json()["message"]
    hub.start_server("ada", {"gpus": 3})
    assert busy.uuid not in labelled(engine)["ada"]


def test_a_sick_gpu_is_one_sick_gpu(hub, idle_host, engine):
    idle_host.change(lambda state: state.with_gpu(0, fault="reset_required"))
    assert [gpu["state"] for gpu in gpus()] == ["unhealthy", "free", "free", "free"]
    hub.start_server("ada", {"gpus": 3})
    assert len(labelled(engine)["ada"]) == 3


def test_a_gpu_off_the_bus_keeps_the_hook_from_giving_the_others(hub, idle_host):
    """NVIDIA's hook looks at all GPUs first. ref: NVIDIA/k8s-device-plugin#2038"""
    idle_host.change(lambda state: state.with_gpu(0, fault="lost"))
    assert [gpu["state"] for gpu in gpus()] == ["unhealthy", "free", "free", "free"]
    refused = hub.spawn("ada", {"gpus": 1})
    assert refused.status_code == 500
    assert "a GPU of this machine has fallen off the bus" in refused.json()["message"]
    hub.start_server("ada", {"gpus": 0})
    idle_host.change(lambda state: state.with_gpu(0, fault=None))
    hub.start_server("eve", {"gpus": 1})


def test_nothing_is_handed_out_while_nvml_fails(hub, idle_host, engine):
    idle_host.change(lambda state: replace(state, fault="driver_not_loaded"))
    refused = hub.spawn("ada", {"gpus": 1})
    assert refused.status_code == 503
    assert "driver" in refused.json()["message"]
    assert containers(engine) == []
    hub.start_server("ada", {"gpus": 0})  # who needs none isn't held up
    hub.stop_server("ada")
    idle_host.change(lambda state: replace(state, fault=None))
    hub.start_server("ada", {"gpus": 1})
