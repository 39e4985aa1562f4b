"""What a server's service is made of, and what of a container's arguments it can't carry."""

from __future__ import annotations

import copy
from typing import Any

import docker
import pytest

from gpuspawner.backends.swarm.service_spec import (
    NotForServices,
    labelled,
    service_spec,
    started,
)
from gpuspawner.nodes.resources import kind_of

UUID = "GPU-01b2c3d4-0000-0000-0000-000000000000"
LABELS = {"gpuspawner.gpus": UUID, "gpuspawner.user": "ann"}


@pytest.fixture(scope="module")
def client() -> docker.APIClient:
    """docker-py itself; with a version named, it asks no engine for one."""
    return docker.APIClient("tcp://127.0.0.1:9", version="1.44")


def spec(create: Any, **changes: Any) -> dict[str, Any]:
    """The service of a lease of one GPU."""
    settings: dict[str, Any] = {
        "name": "jupyter-ann",
        "labels": LABELS,
        "uuids": [UUID],
        "kinds": {kind_of(UUID): 1},
        "node_id": "n1",
        "network": "hub",
    }
    return service_spec(create, **{**settings, **changes})


def test_all_of_it(client):
    host = client.create_host_config(
        auto_remove=True,
        binds={
            "home-ann": {"bind": "/home/jovyan", "mode": "rw"},
            "/srv/data": {"bind": "/data", "mode": "ro"},
        },
        cap_drop=["ALL"],
        cpu_period=100_000,
        cpu_quota=150_000,
        extra_hosts={"nas": "10.0.0.9"},
        log_config={"Type": "local", "Config": {"max-size": "10m"}},
        mem_limit=2**30,
        network_mode="hub",
        pids_limit=500,
        security_opt=["no-new-privileges"],
    )
    create = {
        "image": "sha256:abc",
        "command": ["jupyterhub-singleuser"],
        "environment": {"WHO": "ann", "NVIDIA_VISIBLE_DEVICES": "all"},
        "host_config": host,
        "name": "jupyter-ann",
        "ports": {"8888/tcp": None},
        "user": "1000",
        "volumes": ["/home/jovyan"],
    }
    before = copy.deepcopy(create)
    made = spec(create, shm_size=2**33, ulimits={"memlock": -1}, stop_seconds=60)
    environment = made["TaskTemplate"]["ContainerSpec"].pop("Env")
    assert f"NVIDIA_VISIBLE_DEVICES={UUID}" in environment
    assert "WHO=ann" in environment
    assert "NVIDIA_MIG_CONFIG_DEVICES" in environment
    assert create == before
    assert made == {
        "Name": "jupyter-ann",
        "Labels": LABELS,
        "TaskTemplate": {
            "ContainerSpec": {
                "HealthCheck": {"Test": ["NONE"]},
                "Image": "sha256:abc",
                "Args": ["jupyterhub-singleuser"],
                "User": "1000",
                "Labels": LABELS,
                "Hosts": ["10.0.0.9 nas"],
                "CapabilityDrop": ["ALL"],
                "Privileges": {"NoNewPrivileges": True},
                "StopGracePeriod": 62 * 10**9,
                "Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}],
                "Mounts": [
                    {
                        "Type": "volume",
                        "Source": "home-ann",
                        "Target": "/home/jovyan",
                        "ReadOnly": False,
                    },
                    {"Type": "bind", "Source": "/srv/data", "Target": "/data", "ReadOnly": True},
                    {
                        "Type": "tmpfs",
                        "Target": "/dev/shm",
                        "TmpfsOptions": {"SizeBytes": 2**33, "Mode": 0o1777},
                    },
                ],
            },
            "Resources": {
                "Limits": {"NanoCPUs": 1_500_000_000, "MemoryBytes": 2**30, "Pids": 500},
                "Reservations": {
                    "GenericResources": [
                        {"DiscreteResourceSpec": {"Kind": kind_of(UUID), "Value": 1}}
                    ]
                },
            },
            "RestartPolicy": {"Condition": "none", "MaxAttempts": 0},
            "Placement": {"Constraints": ["node.id==n1"]},
            "Networks": [{"Target": "hub"}],
            "LogDriver": {"Name": "local", "Options": {"max-size": "10m"}},
        },
        "Mode": {"Replicated": {"Replicas": 0}},
        "EndpointSpec": {"Mode": "dnsrr"},
    }


def test_without_gpus_it_sees_none_and_is_on_its_node_all_the_same():
    made = spec({"image": "i"}, uuids=[], kinds={})
    assert "NVIDIA_VISIBLE_DEVICES=void" in made["TaskTemplate"]["ContainerSpec"]["Env"]
    assert made["TaskTemplate"]["Resources"]["Reservations"] == {}
    assert made["TaskTemplate"]["Placement"] == {"Constraints": ["node.id==n1"]}


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"privileged": True}, "can't have Privileged: Swarm runs nothing with all rights"),
        ({"ipc_mode": "host"}, "IpcMode"),
        ({"pid_mode": "host"}, "PidMode"),
        ({"devices": ["/dev/fuse"]}, "Devices: Swarm has no devices"),
        ({"runtime": "nvidia"}, "Runtime: each node has its default runtime"),
        ({"device_requests": [{"Driver": "cdi", "DeviceIDs": ["a.b/c=d"]}]}, "DeviceRequests"),
        ({"security_opt": ["seccomp=unconfined"]}, "seccomp=unconfined"),
        ({"security_opt": ["no-new-privileges:false"]}, "no-new-privileges:false"),
        ({"storage_opt": {"size": "10G"}}, "StorageOpt"),
        ({"cgroup_parent": "/x"}, "CgroupParent"),
    ],
)
def test_what_a_service_can_not_carry_is_refused_by_name(client, host, words):
    with pytest.raises(NotForServices) as refused:
        spec({"image": "i", "host_config": client.create_host_config(**host)})
    assert words in str(refused.value)
    assert refused.value.setting == "extra_host_config"


def test_other_traits_that_a_service_can_not_carry_are_named(client):
    links = client.create_host_config(links={"db": "db"})
    with pytest.raises(NotForServices) as refused:
        spec({"image": "i", "host_config": links})
    assert refused.value.setting == "links"
    with pytest.raises(NotForServices) as refused:
        spec({"image": "i", "host_config": client.create_host_config(port_bindings={8888: None})})
    assert refused.value.setting == "use_internal_ip"
    with pytest.raises(NotForServices) as refused:
        spec({"image": "i", "mac_address": "02:42:ac:11:00:02"})
    assert refused.value.setting == "extra_create_kwargs"


def test_no_server_is_judged_by_its_image_s_health_check():
    """Else Swarm has it wait for the check, and ends it where the check fails."""
    container = spec({"image": "lab"})["TaskTemplate"]["ContainerSpec"]
    assert container["HealthCheck"] == {"Test": ["NONE"]}


def test_a_start_and_a_label_change_nothing_else():
    found = {"Spec": spec({"image": "i"})}
    before = copy.deepcopy(found)
    assert started(found) == {**found["Spec"], "Mode": {"Replicated": {"Replicas": 1}}}
    with_label = labelled(found, "a", "b")
    assert with_label == {**found["Spec"], "Labels": {**LABELS, "a": "b"}}
    assert found == before


def test_volumes_of_a_driver_are_made_by_it_and_folders_are_not(client):
    host = client.create_host_config(
        binds={"v": {"bind": "/a", "mode": "rw"}, "/f": {"bind": "/b", "mode": "rw"}}
    )
    made = spec(
        {"image": "i", "host_config": host},
        volume_driver="local",
        volume_options={"type": "nfs", "device": ":/homes/{volume}"},
    )
    volume, folder = made["TaskTemplate"]["ContainerSpec"]["Mounts"]
    assert volume["VolumeOptions"] == {
        "DriverConfig": {"Name": "local", "Options": {"type": "nfs", "device": ":/homes/v"}}
    }
    assert "VolumeOptions" not in folder
