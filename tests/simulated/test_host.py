"""What containers see of a simulated host, and how they reach each other."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
from docker.errors import APIError, NotFound
from docker.types import DeviceRequest

from gpuspawner.simulation import changes, slots
from gpuspawner.simulation.host import SimulatedHost
from gpuspawner.simulation.mig import layout, partition
from gpuspawner.simulation.state import describe

from ..support.labs import UUIDS, Lab, answers, left_by, until

pytestmark = pytest.mark.engine


def test_a_container_sees_exactly_its_gpus(lab):
    mine = [UUIDS[1], UUIDS[3]]
    listed = lab.run("nvidia-smi", "-L", gpus=mine)
    assert [line.split("UUID: ")[1].rstrip(")") for line in listed.splitlines()] == mine
    devices = lab.run("/probe", "devices", gpus=mine).split()
    assert sorted(devices) == ["nvidia-uvm", "nvidia-uvm-tools", "nvidia1", "nvidia3", "nvidiactl"]
    for device in devices:
        lab.run("/probe", "open", f"/dev/{device}", gpus=mine, user="1000:1000")
    variables = lab.run("/probe", "variables", gpus=mine).split()
    assert f"NVIDIA_VISIBLE_DEVICES={','.join(mine)}" in variables


def test_a_containers_library_is_the_hosts_stand_in(lab):
    folder = "/usr/lib/libnvidia-ml.so.1"
    library = lab.begin("/probe", "wait", gpus=[UUIDS[0]])
    _, output = library.exec_run(["/probe", "read", folder])
    assert output == (lab.host.directory / "nvml/libnvidia-ml.so.1").read_bytes()


@pytest.mark.parametrize(("count", "indices"), [(-1, [0, 1, 2, 3]), (1, [0]), (3, [0, 1, 2])])
def test_a_number_of_gpus_is_resolved_by_the_engine(lab, count, indices):
    request = DeviceRequest(count=count, capabilities=[["gpu"]])
    listed = lab.run("nvidia-smi", "-L", device_requests=[request])
    assert [UUIDS[index] in listed for index in range(4)] == [i in indices for i in range(4)]


def test_without_a_request_a_container_has_no_gpu_whatever_its_variables_say(lab):
    settings = {"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}}
    assert lab.run("/probe", "devices", **settings) == ""
    with pytest.raises(APIError, match="nvidia-smi"):
        lab.run("nvidia-smi", "-L", **settings)


def test_gpus_asked_for_by_cdi_are_exactly_those(lab):
    if int(lab.client.version()["Version"].split(".")[0]) < 25:
        pytest.skip("engines before 25 have no CDI")
    mine = [UUIDS[0], UUIDS[3]]
    names = [f"nvidia.com/gpu={uuid}" for uuid in mine]
    settings = {"device_requests": [DeviceRequest(driver="cdi", device_ids=names)]}
    listed = lab.run("nvidia-smi", "-L", **settings)
    assert [line.split("UUID: ")[1].rstrip(")") for line in listed.splitlines()] == mine
    devices = lab.run("/probe", "devices", **settings).split()
    assert [f"nvidia{n}" in devices for n in range(4)] == [True, False, False, True]


def test_an_images_wish_for_all_gpus_does_not_count_beside_a_request(lab):
    settings = {"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}}
    assert lab.run("nvidia-smi", "-L", gpus=[UUIDS[2]], **settings).count("UUID") == 1


def test_a_read_only_container_and_a_user_without_rights_have_their_gpus(lab):
    listed = lab.run("nvidia-smi", "-L", gpus=[UUIDS[2]], read_only=True, user="1000:100")
    assert listed.split("UUID: ")[1] == f"{UUIDS[2]})\n"


@pytest.mark.parametrize(
    ("gpus", "change", "said"),
    [
        (["GPU-nope"], "slow 0", "GPU-nope: unknown device"),
        ([UUIDS[0]], "gpu 0 lost", "gpu is lost"),
        ([UUIDS[0]], "gpu 1 lost", "gpu is lost"),
        ([UUIDS[0]], "driver gone", "driver not loaded"),
    ],
)
def test_a_gpu_that_cannot_be_had_fails_the_start_with_the_hooks_words(lab, gpus, change, said):
    lab.host.change(changes.parse(change))
    with pytest.raises(APIError, match=said):
        lab.run("/probe", "devices", gpus=gpus)


def test_a_container_with_a_mig_instance_sees_it_alone(lab):
    divided = partition(lab.host.read(), 1, layout("3g.20gb, 2g.10gb, 1g.5gb x2"))
    lab.host.write(divided)
    mine = divided.gpu(1).instances[1]
    listed = lab.run("nvidia-smi", "-L", gpus=[mine.uuid.upper()])
    assert listed.splitlines() == [
        f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {UUIDS[1]})",
        f"  MIG 2g.10gb     Device  0: (UUID: {mine.uuid})",
    ]
    devices = lab.run("/probe", "devices", gpus=[mine.uuid]).split()
    assert {"nvidia1", "nvidia-caps"} <= set(devices)
    assert "nvidia0" not in devices
    assert lab.run("nvidia-smi", "-L", gpus=["1:1", "0"]).count("UUID") == 3
    assert lab.run("nvidia-smi", "-L", gpus=[UUIDS[1]]).count("MIG") == 0
    settings = {"environment": {"NVIDIA_MIG_MONITOR_DEVICES": "all"}}
    with pytest.raises(APIError, match="in non privileged container"):
        lab.run("nvidia-smi", gpus=[mine.uuid], **settings)
    seen = lab.run("nvidia-smi", gpus=[mine.uuid])
    assert "|  0    3   0   0  |" in seen
    assert "40960MiB" not in seen, "the use of others' instances"


def test_a_change_reaches_the_host_and_the_container_that_has_the_gpu(lab):
    first = lab.begin("/probe", "wait", gpus=[UUIDS[0]])
    second = lab.begin("/probe", "wait", gpus=[UUIDS[1]])
    lab.host.change(changes.parse("gpu 1 process 4242 2000"))
    assert "2000MiB" in second.exec_run("nvidia-smi").output.decode()
    assert "2000MiB" not in first.exec_run("nvidia-smi").output.decode()
    on_the_host = subprocess.run(
        ["nvidia-smi"], env=lab.host.environment, capture_output=True, text=True, check=True
    )
    assert "4242" in on_the_host.stdout
    assert lab.host.read().gpu(1).processes == ((4242, 2000),)


def test_a_container_cannot_write_what_it_sees(lab):
    container = lab.begin("/probe", "wait", gpus=[UUIDS[0]])
    for path in ("/run/gpuspawner/state", "/run/gpuspawner/visible", "/usr/bin/nvidia-smi"):
        assert container.exec_run(["/probe", "write", path, "x"]).exit_code == 1
        assert container.exec_run(["/probe", "read", path]).exit_code == 0


def test_a_link_in_an_image_does_not_lead_the_hook_to_the_hosts_files(lab, image_files, tmp_path):
    lab.load(image_files, "linked:1", links={"run": str(tmp_path), "usr": str(tmp_path)})
    with pytest.raises(APIError, match="File exists"):
        lab.run("/probe", "devices", gpus=[UUIDS[0]], image="linked:1")
    assert list(tmp_path.iterdir()) == []


def test_containers_reach_a_hub_on_the_host_and_the_host_reaches_containers(lab):
    with socket.create_server((lab.host.hub_ip, 0)) as hub:
        hub.settimeout(60)
        port = str(hub.getsockname()[1])
        asking = lab.begin("/probe", "fetch", lab.host.hub_ip, port)
        peer, _ = hub.accept()
        peer.sendall(b"from the hub")
        peer.close()
        asking.wait()
        assert asking.logs() == b"from the hub"
    net = lab.client.networks.create("simulation-test")
    serving = lab.begin("/probe", "serve", "8888", network=net.name)
    serving.reload()
    address = serving.attrs["NetworkSettings"]["Networks"][net.name]["IPAddress"]
    until(lambda: _answers(address, 8888), "the container listens")
    assert _answers(address, 8888) == b"from inside"
    serving.remove(force=True)
    net.remove()


def _answers(address: str, port: int) -> bytes:
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(100)
    except ConnectionRefusedError:
        return b""


def test_a_stopped_engine_leaves_its_containers_stopped(lab):
    container = lab.begin("/probe", "wait", gpus=[UUIDS[0]])
    lab.host.stop_engine()
    assert not lab.host.socket.exists() or not answers(lab.host.socket)
    lab.host.start_engine()
    container.reload()
    assert container.status == "exited"
    container.start()
    assert UUIDS[0] in container.exec_run(["nvidia-smi", "-L"]).output.decode()


def test_a_killed_engine_leaves_its_containers_running_until_it_is_back(lab):
    container = lab.begin("/probe", "serve", "99", gpus=[UUIDS[0]])
    container.reload()
    pid = container.attrs["State"]["Pid"]
    lab.host.kill_engine()
    assert not answers(lab.host.socket)
    assert Path(f"/proc/{pid}/comm").read_text() == "probe\n"
    lab.host.start_engine()
    container.reload()
    assert container.status == "exited"


def test_all_of_a_container_is_in_its_hosts_control_groups_and_is_cleared_away(lab):
    container = lab.begin("/probe", "wait")
    container.reload()
    pid = container.attrs["State"]["Pid"]
    name = slots.slot_name(int(lab.host.directory.name))
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        hierarchy, controllers, path = line.split(":")
        if controllers in ("pids", "devices", "freezer") or hierarchy == "0":
            assert path.startswith(f"/{name}/")
    shim = _parent(pid)
    assert _parent(shim) == lab.host._keeper.pid
    container.remove(force=True)
    until(lambda: not Path(f"/proc/{shim}").exists(), "the shim is no zombie either")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_two_hosts_at_once_know_nothing_of_each_other(lab, engine_cache, image_files):
    with SimulatedHost(describe([("T4", 1)]), engine_cache) as host:
        other = Lab(host)
        other.load(image_files)
        assert (host.directory, host.hub_ip) != (lab.host.directory, lab.host.hub_ip)
        assert other.run("nvidia-smi", "-L", gpus=["0"]).startswith("GPU 0: Tesla T4")
        lab.begin("/probe", "wait", name="only-here")
        with pytest.raises(NotFound):
            other.client.containers.get("only-here")
        other.client.close()
        gone = host.directory
    assert left_by(gone) == []
    # The one that goes on has kept what they share.
    with socket.create_server((lab.host.hub_ip, 0)) as hub:
        hub.settimeout(60)
        lab.begin("/probe", "fetch", lab.host.hub_ip, str(hub.getsockname()[1]))
        hub.accept()[0].close()
