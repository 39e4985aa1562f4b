"""What a container is created with: exactly the leased GPUs, whatever else is configured."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import docker
import docker.errors
import pytest
import requests
from docker.types import ContainerConfig, DeviceRequest, Ulimit
from traitlets.config import Config

from gpuspawner.backends.docker.container_config import (
    CONTROL_DEVICES,
    OTHER_DEVICES,
    can_resume,
    pseudonym,
    refused_ulimit,
    removed_by_hub,
    with_kept_folders,
    with_lease,
)
from gpuspawner.backends.docker.device_requests import (
    are_by_cdi,
    asks_for_gpus,
    granted_uuids,
    join_device_requests,
)
from gpuspawner.gpus.model import Holder
from gpuspawner.leases.labels import LABEL_GPUS, LABEL_SETTINGS
from gpuspawner.spawner import GPUSpawner

VERSION = "1.43"
TAKEN_OUT = {*CONTROL_DEVICES, *OTHER_DEVICES}
LABELS = {"gpuspawner.gpus": "GPU-1,GPU-2", "gpuspawner.user": "ann"}


@pytest.fixture(scope="module")
def client() -> docker.APIClient:
    """docker-py itself; with a version named, it asks no engine for one."""
    return docker.APIClient("tcp://127.0.0.1:9", version=VERSION)


def ours(*uuids: str, **changes: Any) -> dict[str, Any]:
    """The device request of a lease."""
    request = {
        "Driver": "nvidia",
        "Count": 0,
        "DeviceIDs": list(uuids),
        "Capabilities": [["gpu"]],
        "Options": {},
    }
    return {**request, **changes}


def leased(create_kwargs: Any, *uuids: str, **settings: Any) -> dict[str, Any]:
    return with_lease(create_kwargs, labels=LABELS, uuids=uuids, **settings)


def test_a_lease_adds_its_gpus_labels_and_limits_and_keeps_everything_else() -> None:
    given = {
        "image": "lab/torch",
        "name": "jupyter-ann",
        "environment": {"JUPYTERHUB_USER": "ann"},
        "labels": {"course": "ml"},
        "host_config": {"NetworkMode": "gpuspawner", "AutoRemove": True},
    }
    assert leased(
        given, "GPU-1", "GPU-2", shm_size=8 << 30, ulimits={"memlock": -1, "stack": 67108864}
    ) == {
        "image": "lab/torch",
        "name": "jupyter-ann",
        "environment": {
            **dict.fromkeys(TAKEN_OUT),
            "JUPYTERHUB_USER": "ann",
            "NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2",
        },
        "labels": {
            "course": "ml",
            "gpuspawner.gpus": "GPU-1,GPU-2",
            "gpuspawner.user": "ann",
        },
        "host_config": {
            "NetworkMode": "gpuspawner",
            "AutoRemove": True,
            "DeviceRequests": [ours("GPU-1", "GPU-2")],
            "ShmSize": 8 << 30,
            "Ulimits": [
                {"Name": "memlock", "Soft": -1, "Hard": -1},
                {"Name": "stack", "Soft": 67108864, "Hard": 67108864},
            ],
        },
    }


def test_a_lease_of_no_gpus_sees_none_whatever_the_image_says() -> None:
    assert leased({"image": "nvidia/cuda"}) == {
        "image": "nvidia/cuda",
        "environment": {**dict.fromkeys(TAKEN_OUT), "NVIDIA_VISIBLE_DEVICES": "void"},
        "labels": LABELS,
        "host_config": {"Ulimits": []},
    }


def test_the_engine_doesn_t_remove_what_the_hub_does() -> None:
    given = {"image": "x", "labels": ["course=ml"], "host_config": {"AutoRemove": True, "Init": 1}}
    assert removed_by_hub(given) == {
        "image": "x",
        "labels": {"course": "ml", "gpuspawner.remove": "1"},
        "host_config": {"AutoRemove": False, "Init": 1},
    }


def test_by_cdi_a_lease_names_its_gpus_and_nothing_else() -> None:
    every = {"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]], "Options": {"a": "b"}}
    joined = join_device_requests([CDI_NIC, every], ["GPU-1", "MIG-2"], ALLOWED, by_cdi=True)
    names = ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=MIG-2"]
    # The engine refuses a count or options beside CDI's names.
    assert joined == [
        CDI_NIC,
        {"Driver": "cdi", "Count": 0, "DeviceIDs": names, "Capabilities": [], "Options": {}},
    ]
    container = {"HostConfig": {"DeviceRequests": joined}}
    assert granted_uuids(container) == ["GPU-1", "MIG-2"]
    assert are_by_cdi(container)
    assert not are_by_cdi({"HostConfig": {"DeviceRequests": [CDI_NIC, ours("GPU-1")]}})
    assert join_device_requests([CDI_NIC, every], [], ALLOWED, by_cdi=True) == [CDI_NIC]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ""),
        ({"binds": {"jovyan-ada": {"bind": "/home/jovyan", "mode": "rw"}}}, "/home/jovyan"),
        ({"binds": {"jovyan-ada": {"bind": "/home/jovyan", "mode": "z"}}}, "/home/jovyan"),
        ({"binds": {"data": {"bind": "/data", "mode": "ro"}}}, ""),
        ({"binds": {"data": {"bind": "/data", "mode": "ro,z"}}}, ""),
        ({"binds": ["/srv/ada:/home/jovyan/work", "course:/course:rw"]},
         "/home/jovyan/work:/course"),
        ({"mounts": [docker.types.Mount("/data", "data", type="volume")]}, "/data"),
        ({"mounts": [docker.types.Mount("/data", "data", type="volume", read_only=True)]}, ""),
        ({"mounts": [docker.types.Mount("/scratch", None, type="tmpfs")]}, ""),
        # Nobody finds a volume without a name again.
        ({"mounts": [docker.types.Mount("/scratch", None, type="volume")]}, ""),
        ({"tmpfs": {"/scratch": "size=1G"}}, ""),
    ],
)  # fmt: skip
def test_a_server_is_told_which_of_its_folders_are_kept(
    client: docker.APIClient, settings: Any, told: str
) -> None:
    given = {"environment": {"A": "1"}, "host_config": client.create_host_config(**settings)}
    found = with_kept_folders(given)
    assert found["environment"] == {"A": "1", "GPUSPAWNER_KEPT": told}
    assert found["host_config"] == given["host_config"]
    own = {**given, "environment": ["GPUSPAWNER_KEPT=/nfs"]}
    assert with_kept_folders(own)["environment"] == {"GPUSPAWNER_KEPT": "/nfs"}


def test_what_was_given_is_not_changed(client: docker.APIClient) -> None:
    """It may be the administrator's own object, used for every container."""
    given = {
        "environment": {"A": "b"},
        "labels": {"c": "d"},
        "host_config": client.create_host_config(
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]], options={"e": "f"})],
            ulimits=[Ulimit(name="nofile", soft=1, hard=2)],
        ),
    }
    before = copy.deepcopy(given)
    leased(given, "GPU-1", shm_size=1, ulimits={"stack": 1})
    assert given == before


CDI_NIC = {
    "Driver": "cdi",
    "Count": 0,
    "DeviceIDs": ["example.com/nic=eth1"],
    "Capabilities": [],
    "Options": {},
}
INFINIBAND = {**CDI_NIC, "Driver": "", "Capabilities": [["rdma"]], "DeviceIDs": ["mlx5_0"]}
ALLOWED = ("example.com/nic=*", "mlx5_0")
ALL_GPUS = {"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]]}


@pytest.mark.parametrize(
    ("configured", "with_gpus"),
    [
        pytest.param([], [ours("GPU-1")], id="none configured"),
        pytest.param([CDI_NIC], [CDI_NIC, ours("GPU-1")], id="another device by CDI"),
        pytest.param([INFINIBAND], [INFINIBAND, ours("GPU-1")], id="another device by capability"),
        pytest.param([ALL_GPUS], [ours("GPU-1")], id="all GPUs give way to the leased ones"),
        pytest.param(
            [{"Driver": "nvidia", "Count": 2, "Capabilities": [["gpu"]]}],
            [ours("GPU-1")],
            id="a number of GPUs gives way",
        ),
        pytest.param(
            [{"Count": -1, "Capabilities": [["gpu", "utility"]], "Options": {"a": "b"}}],
            [ours("GPU-1", Capabilities=[["gpu", "utility"]], Options={"a": "b"})],
            id="capabilities and options are kept",
        ),
        pytest.param(
            [
                {"Count": -1, "Capabilities": [["compute"]], "Options": {"a": "1", "b": "1"}},
                CDI_NIC,
                {"Count": 1, "Capabilities": [["gpu", "video", "compute"]], "Options": {"b": "2"}},
            ],
            [
                CDI_NIC,
                ours(
                    "GPU-1",
                    Capabilities=[["gpu", "compute", "video"]],
                    Options={"a": "1", "b": "2"},
                ),
            ],
            id="several for GPUs become one",
        ),
        pytest.param(
            [{"Driver": "nvidia", "Capabilities": None, "Options": None, "DeviceIDs": []}],
            [ours("GPU-1")],
            id="fields that are null",
        ),
    ],
)
def test_device_requests_are_joined_with_the_lease(
    configured: list[dict[str, Any]], with_gpus: list[dict[str, Any]]
) -> None:
    before = copy.deepcopy(configured)
    assert join_device_requests(configured, ["GPU-1"], ALLOWED) == with_gpus
    without_gpus = [request for request in with_gpus if request["Driver"] != "nvidia"]
    assert join_device_requests(configured, [], ALLOWED) == without_gpus
    assert configured == before


@pytest.mark.parametrize(
    "request_of_gpus",
    [
        {"Driver": "nvidia", "DeviceIDs": ["0"], "Capabilities": [["gpu"]]},
        {"Driver": "", "DeviceIDs": ["GPU-1"], "Capabilities": [["gpu"]]},
        {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]},
        {"Driver": "", "DeviceIDs": ["nvidia.com/gpu=0"], "Capabilities": [["cdi"]]},
        {"Driver": "cdi", "DeviceIDs": ["nvidia.com/mig=0:1"]},
        {"Driver": "nvidia.cdi", "DeviceIDs": ["0"]},
        {"Driver": "nvidia.runtime-hook", "DeviceIDs": ["GPU-1"]},
        {"Driver": "cdi", "DeviceIDs": ["example.com/nic=eth1", "management.nvidia.com/gpu=all"]},
    ],
)
@pytest.mark.parametrize("uuids", [(), ("GPU-1",)])
def test_a_gpu_named_by_its_id_is_refused_with_the_trait_to_change(
    request_of_gpus: dict[str, Any], uuids: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="extra_host_config: device_requests names GPUs") as error:
        join_device_requests([CDI_NIC, request_of_gpus], uuids, ["*"])
    assert repr(request_of_gpus["DeviceIDs"]) in str(error.value)
    assert "c.GPUSpawner.excluded_gpus" in str(error.value)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (CDI_NIC, "example.com/nic=eth1"),
        ({**CDI_NIC, "DeviceIDs": ["mlx5_0", "nvidia.com/gds=all"]}, "nvidia.com/gds=all"),
        ({"Driver": "cdi", "DeviceIDs": ["amd.com/gpu=0"]}, "amd.com/gpu=0"),
        ({"Driver": "amd", "Count": -1, "Capabilities": [["gpu"]]}, "devices of amd without names"),
        ({"Driver": "cdi", "Count": 2, "DeviceIDs": ["mlx5_0"]}, "devices of cdi without names"),
        ({"Capabilities": [["rdma"]]}, "devices of rdma without names"),
        ({}, "devices of any driver without names"),
    ],
)
@pytest.mark.parametrize("uuids", [(), ("GPU-1",)])
def test_a_device_that_is_not_allowed_is_refused_with_the_trait_to_set(
    other: dict[str, Any], named: str, uuids: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="device_requests asks for ") as error:
        join_device_requests([other], uuids, ["mlx5_*", "example.com/disk=*"])
    assert f"asks for {named}. If every" in str(error.value)
    assert "c.GPUSpawner.allowed_devices" in str(error.value)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"devices": ["/dev/fuse", "/dev/nvidia0:/dev/nvidia7:rwm"]}, "devices has /dev/nvidia0,"),
        ({"devices": ["/dev/nvidia-caps/nvidia-cap1"]}, "devices has /dev/nvidia-caps/nvidia-cap1"),
        ({"devices": ["/dev"]}, "devices has /dev,"),
        ({"device_cgroup_rules": ["c 195:* rwm"]}, "device_cgroup_rules has 'c 195:"),
        ({"device_cgroup_rules": ["a *:* rwm"]}, "device_cgroup_rules has 'a "),
    ],
)
@pytest.mark.parametrize("uuids", [(), ("GPU-1",)])
def test_gpus_by_their_device_files_are_refused(
    client: docker.APIClient, setting: Any, named: str, uuids: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="extra_host_config: ") as error:
        leased({"host_config": client.create_host_config(**setting)}, *uuids)
    assert named in str(error.value)


def test_devices_by_an_annotation_of_nvidias_runtime_are_refused() -> None:
    given = {"Runtime": "nvidia", "Annotations": {"cdi.k8s.io/x": "nvidia.com/gpu=all"}}
    with pytest.raises(ValueError, match=r"extra_host_config: annotations has 'cdi\.k8s\.io/x'"):
        leased({"host_config": given}, "GPU-1")
    others = {"Annotations": {"org.example/cdi": "1"}}
    assert leased({"host_config": others})["host_config"]["Annotations"] == others["Annotations"]


def test_other_device_files_are_kept(client: docker.APIClient) -> None:
    given = client.create_host_config(
        devices=["/dev/fuse", "/dev/nvidiactl"], device_cgroup_rules=["c 10:229 rwm"]
    )
    created = leased({"host_config": given}, "GPU-1")["host_config"]
    assert [each["PathOnHost"] for each in created["Devices"]] == ["/dev/fuse", "/dev/nvidiactl"]
    assert created["DeviceCgroupRules"] == ["c 10:229 rwm"]


@pytest.mark.parametrize(
    ("request_of_something", "gpus"),
    [
        (ALL_GPUS, True),
        ({"Driver": "nvidia"}, True),
        # Without a driver the engine takes NVIDIA's for any capability of it.
        ({"Capabilities": [["nvidia"]]}, True),
        ({"Capabilities": [["compute", "utility"]]}, True),
        ({"Capabilities": [["rdma"], ["gpu"]]}, True),
        ({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}, True),
        ({"Driver": "cdi", "DeviceIDs": ["runtime.nvidia.com/gpu=all"]}, True),
        ({"Driver": "cdi", "DeviceIDs": ["example.com/nic=1", "nvidia.com/gpu=1"]}, True),
        ({"Driver": "cdi", "DeviceIDs": ["nvidia.com/mig=0:1"]}, True),
        ({"Driver": "nvidia.cdi"}, True),
        ({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gds=all"]}, False),
        ({"Driver": "cdi", "DeviceIDs": ["notnvidia.com/gpu=0"]}, False),
        ({"Driver": "", "Capabilities": [["cdi"]], "DeviceIDs": ["nvidia.com/gpu=0"]}, True),
        ({}, False),
        ({"Driver": "amd", "Capabilities": [["gpu"]]}, False),
        ({"Capabilities": [["rdma"]]}, False),
        ({"Capabilities": None, "DeviceIDs": None}, False),
        (CDI_NIC, False),
    ],
)
def test_a_request_for_nvidia_gpus_is_told_from_others(
    request_of_something: dict[str, Any], gpus: bool
) -> None:
    assert asks_for_gpus(request_of_something) == gpus


@pytest.mark.parametrize(
    "all_gpus",
    [
        DeviceRequest(count=-1, capabilities=[["gpu", "utility"]]),
        {"count": -1, "capabilities": [["gpu", "utility"]]},
        {"Count": -1, "Capabilities": [["gpu", "utility"]]},
    ],
    ids=["an object", "in Python's words", "in the API's words"],
)
def test_a_request_is_understood_however_docker_py_was_given_it(
    client: docker.APIClient, all_gpus: Any
) -> None:
    host_config = client.create_host_config(device_requests=[all_gpus, CDI_NIC])
    created = leased({"host_config": host_config}, "GPU-1", allowed_devices=ALLOWED)
    assert created["host_config"]["DeviceRequests"] == [
        CDI_NIC,
        ours("GPU-1", Capabilities=[["gpu", "utility"]]),
    ]
    without = leased({"host_config": host_config}, allowed_devices=ALLOWED)["host_config"]
    assert without["DeviceRequests"] == [CDI_NIC]


@pytest.mark.parametrize("uuids", [(), ("GPU-1",)])
@pytest.mark.parametrize(
    "environment",
    [
        {"A": "b=c", "NVIDIA_VISIBLE_DEVICES": "all", "GONE": None},
        ["A=b=c", "NVIDIA_VISIBLE_DEVICES=all", "GONE"],
        ("A=b=c", "GONE", "NVIDIA_VISIBLE_DEVICES"),
    ],
    ids=["mapping", "list", "tuple"],
)
def test_the_last_word_on_visible_gpus_is_the_leases(environment: Any, uuids: Any) -> None:
    created = leased({"image": "x", "environment": environment}, *uuids)
    sent = set(ContainerConfig(VERSION, command=None, **created)["Env"]) - TAKEN_OUT
    visible = f"NVIDIA_VISIBLE_DEVICES={','.join(uuids) or 'void'}"
    # "GONE" alone takes a variable of the image away.
    assert sorted(sent) == ["A=b=c", "GONE", visible]


def test_an_image_asks_for_no_devices_and_the_administrator_for_all_but_those_that_rule() -> None:
    created = leased({"image": "x", "environment": dict.fromkeys(TAKEN_OUT, "all")}, "GPU-1")
    sent = ContainerConfig(VERSION, command=None, **created)["Env"]
    assert {line for line in sent if "=" not in line} == set(CONTROL_DEVICES)
    assert "NVIDIA_GDS=all" in sent
    created = leased({"image": "x"}, "GPU-1")
    # A name alone takes a variable of the image away.
    assert set(ContainerConfig(VERSION, command=None, **created)["Env"]) >= TAKEN_OUT


@pytest.mark.parametrize(
    "configured",
    [
        {"course": "ml", "bare": "", "gpuspawner.gpus": "GPU-9", "gpuspawner.user": "eve"},
        ["course=ml", "bare", "gpuspawner.gpus=GPU-9", "gpuspawner.user=eve"],
    ],
    ids=["mapping", "list"],
)
def test_the_last_word_on_the_labels_is_the_leases(configured: Any) -> None:
    created = leased({"image": "x", "labels": configured}, "GPU-1")
    sent = ContainerConfig(VERSION, command=None, **created)["Labels"]
    assert sent == {"course": "ml", "bare": "", **LABELS}


@pytest.mark.parametrize(
    ("configured", "shm_size", "sent"),
    [
        (None, 8 << 30, 8 << 30),
        ("1g", 8 << 30, 1 << 30),
        ("1g", 0, 1 << 30),
        (None, 0, None),
        (None, None, None),
    ],
)
def test_shared_memory_is_the_setting_unless_the_host_config_names_one(
    client: docker.APIClient, configured: Any, shm_size: Any, sent: Any
) -> None:
    host_config = client.create_host_config(shm_size=configured)
    created = leased({"host_config": host_config}, shm_size=shm_size)
    assert created["host_config"].get("ShmSize") == sent


def test_a_limit_in_the_host_config_goes_before_the_setting(client: docker.APIClient) -> None:
    host_config = client.create_host_config(ulimits=[Ulimit(name="stack", soft=1, hard=2)])
    created = leased({"host_config": host_config}, ulimits={"memlock": -1, "stack": 3})
    assert created["host_config"]["Ulimits"] == [
        {"Name": "stack", "Soft": 1, "Hard": 2},
        {"Name": "memlock", "Soft": -1, "Hard": -1},
    ]


@pytest.mark.parametrize(
    ("device_requests", "granted"),
    [
        (None, []),
        ([], []),
        ([ours("GPU-1", "GPU-2")], ["GPU-1", "GPU-2"]),
        ([CDI_NIC, ours("GPU-1")], ["GPU-1"]),
        ([ours("GPU-1"), ours("GPU-2")], ["GPU-1", "GPU-2"]),
        ([ALL_GPUS], ["count=-1"]),
        ([{"Driver": "nvidia", "Count": 0, "DeviceIDs": None}], []),
        ([{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}], ["nvidia.com/gpu=all"]),
        # What isn't a UUID is never one of a lease.
        ([{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}], ["nvidia.com/gpu=0"]),
        ([{"Driver": "cdi", "DeviceIDs": ["nvidia.com/mig=0:1"]}], ["nvidia.com/mig=0:1"]),
        (
            [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=MIG-2"]}],
            ["GPU-1", "MIG-2"],
        ),
        ([{"Driver": "nvidia", "DeviceIDs": ["runtime.nvidia.com/gpu=GPU-1"]}], ["GPU-1"]),
        ([{"Driver": "cdi", "DeviceIDs": ["x.org/nic=GPU-1"]}], []),
    ],
)
def test_what_a_container_really_has_is_read_from_its_device_requests(
    device_requests: Any, granted: list[str]
) -> None:
    inspection = {
        "Config": {"Env": ["NVIDIA_VISIBLE_DEVICES=GPU-9"]},
        "HostConfig": {"DeviceRequests": device_requests},
    }
    assert granted_uuids(inspection) == granted


def test_a_container_that_the_engine_says_nothing_of_has_no_gpu() -> None:
    assert granted_uuids({"HostConfig": None}) == []


def api_error(explanation: str) -> docker.errors.APIError:
    response = requests.Response()
    response.status_code = 500
    return docker.errors.APIError("500 Server Error", response, explanation)


RUNC = "failed to create shim task: OCI runtime create failed: runc create failed: "


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (f"{RUNC}error setting rlimit type 8: operation not permitted", "memlock"),
        (f"{RUNC}error setting rlimits for ready process: setting rlimit type 3: no", "stack"),
        (f"{RUNC}error setting rlimit type 7: operation not permitted", None),  # not one of ours
        (f"{RUNC}error setting rlimit type 8x", "memlock"),
        (f"{RUNC}permission denied", None),
    ],
)
def test_the_limit_that_an_engine_may_not_set_is_found_by_its_number(
    said: str, name: str | None
) -> None:
    assert refused_ulimit(api_error(said), {"memlock": -1, "stack": 1, "nosuch": 1}) == name


def test_a_limit_whose_name_no_system_knows_is_never_the_refused_one() -> None:
    assert refused_ulimit(api_error("setting rlimit type 8: no"), ["nosuch"]) is None


@pytest.mark.parametrize(
    ("changed", "resumes"),
    [
        ({}, True),
        ({"State": {"Running": True}}, False),
        ({"Image": "sha256:older"}, False),
        ({"Config": {"Labels": {LABEL_GPUS: "", LABEL_SETTINGS: "others"}}}, False),
        ({"Config": {"Labels": {LABEL_GPUS: "GPU-1", LABEL_SETTINGS: "these"}}}, False),
        ({"Config": {"Labels": None}}, False),
        # Whatever its label says.
        ({"HostConfig": {"DeviceRequests": [{"Driver": "nvidia", "Count": -1}]}}, False),
        (
            {"HostConfig": {"DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": ["GPU-1"]}]}},
            False,
        ),
    ],
)
def test_only_what_would_be_created_now_and_has_no_gpus_is_started_again(
    changed: dict[str, Any], resumes: bool
) -> None:
    labels = {LABEL_GPUS: "", LABEL_SETTINGS: "these"}
    stopped = {
        "State": {"Running": False},
        "Image": "sha256:this",
        "Config": {"Labels": labels},
        "HostConfig": {"DeviceRequests": None},
    }
    assert can_resume(stopped | changed, {"labels": labels}, "sha256:this") == resumes


def test_a_container_s_name_names_nobody_and_is_the_same_each_time() -> None:
    names = {
        pseudonym(holder, secret)
        for holder in (Holder("ada"), Holder("ada", "b"), Holder("ada-b"), Holder("A"), Holder("a"))
        for secret in (b"", b"secret")
    }
    assert len(names) == 10
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in names)
    assert pseudonym(Holder("ada"), b"secret") == pseudonym(Holder("ada"), b"secret")


def spawner(**traits: Any) -> GPUSpawner:
    user = SimpleNamespace(name="ada", groups=[], settings={"cookie_secret": b"secret"})
    made = GPUSpawner(user=user, config=Config({"GPUSpawner": traits}))
    made.hub = None
    return made


def test_an_administrator_s_template_holds() -> None:
    assert re.fullmatch("jupyter-[0-9a-f]{16}", spawner().object_name)
    assert re.fullmatch("lab-[0-9a-f]{16}", spawner(prefix="lab").object_name)
    assert spawner(name_template="{prefix}-{username}").object_name == "jupyter-ada"


def test_a_server_that_runs_keeps_its_name_and_the_next_has_todays() -> None:
    one = spawner()
    one.load_state({"object_id": "1", "object_name": "jupyter-ada"})
    assert one.object_name == "jupyter-ada"
    assert one.get_state()["object_name"] == "jupyter-ada"
    one.clear_state()
    assert re.fullmatch("jupyter-[0-9a-f]{16}", one.object_name)
