"""What runs with GPUs and without a lease, however it was given them: none of them is free."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.backends.docker import listing as listing_of_engine
from gpuspawner.backends.docker.listing import Listing, gpu_names, server_record
from gpuspawner.gpus import missing_driver
from gpuspawner.gpus.allocation import with_leases
from gpuspawner.gpus.device_ids import gpus_named
from gpuspawner.gpus.model import GPU, Holder, Lease, Node, Outsider
from gpuspawner.leases.labels import (
    LABEL_GPUS,
    LABEL_GROUPS,
    LABEL_HUB,
    LABEL_SERVER,
    LABEL_UNTIL,
    LABEL_USER,
    ServerRecord,
    labels,
    lease_of,
)
from gpuspawner.leases.ledger import outsiders_of

UUIDS = [f"GPU-{n}0000000-0000-0000-0000-000000000000" for n in range(4)]
GPUS = tuple(GPU(uuid, n, "A100") for n, uuid in enumerate(UUIDS))
ALL = ["all"]


def asked(**fields: Any) -> dict[str, Any]:
    return {"HostConfig": {"DeviceRequests": [{"Capabilities": [["gpu"]], **fields}]}}


def variable(value: str, runtime: str = "nvidia", **host: Any) -> dict[str, Any]:
    return {
        "Config": {"Env": ["PATH=/bin", f"NVIDIA_VISIBLE_DEVICES={value}"]},
        "HostConfig": {"Runtime": runtime, **host},
    }


def device(path: str) -> dict[str, Any]:
    return {"HostConfig": {"Devices": [{"PathOnHost": path, "PathInContainer": path}]}}


@pytest.mark.parametrize(
    ("container", "names"),
    [
        # docker run --gpus all, 2, device=…
        (asked(Driver="", Count=-1, DeviceIDs=None), ALL),
        (asked(Driver="nvidia", Count=2), ["0", "1"]),
        (asked(Driver="nvidia.cdi", Count=1), ["0"]),
        (asked(DeviceIDs=["1", UUIDS[3]], Count=0), ["1", UUIDS[3]]),
        (asked(DeviceIDs=["0:1"]), ["0:1"]),
        (asked(Count=10**9), ALL),
        (asked(Count=0, DeviceIDs=[]), []),
        # docker run --device nvidia.com/gpu=…
        (asked(Driver="cdi", Capabilities=None, DeviceIDs=["nvidia.com/gpu=all"]), ALL),
        (asked(Driver="cdi", DeviceIDs=["nvidia.com/gpu=gpu2"]), ["gpu2"]),
        (asked(Driver="cdi", DeviceIDs=["nvidia.com/gpu=0:1"]), ["0:1"]),
        (asked(Driver="cdi", DeviceIDs=["runtime.nvidia.com/gpu=1", "x.org/nic=0"]), ["1"]),
        (asked(Driver="cdi", DeviceIDs=["x.org/nic=all"]), []),
        (asked(Driver="cdi", DeviceIDs=[f"nvidia.com/gpu={UUIDS[1]}"]), [UUIDS[1]]),
        (asked(Driver="cdi", DeviceIDs=["nvidia.com/gpu=MIG-5c"]), ["MIG-5c"]),
        (asked(Driver="cdi", DeviceIDs=["nvidia.com/gpu=mig2:1"]), ["mig2:1"]),
        (asked(Driver="amd", Count=-1), []),
        (asked(Driver="", Capabilities=[["rdma"]], Count=-1), []),
        # docker run --runtime nvidia, or where that is the default one
        (variable("all"), ALL),
        (variable("0, 2"), ["0", "2"]),
        (variable("nvidia.com/gpu=1", "nvidia-cdi"), ["1"]),
        (variable("void", Annotations={"cdi.k8s.io/a": "nvidia.com/gpu=1,x.org/nic=0"}), ["1"]),
        (variable("void", "runc", Annotations={"cdi.k8s.io/a": "nvidia.com/gpu=1"}), []),
        (variable(UUIDS[2], "of a name of its own"), [UUIDS[2]]),
        (variable("void"), []),
        (variable("none"), []),
        (variable(""), []),
        # CUDA's images have it, and the runtime passes over it.
        (variable("all", "runc"), []),
        (variable("all", "io.containerd.runc.v2"), []),
        # The request goes before the image's variable.
        (variable("all", **asked(DeviceIDs=["1"])["HostConfig"]), ["1"]),
        # docker run --privileged, --device
        (variable("all", "runc", Privileged=True), ALL),
        ({"HostConfig": {"Privileged": True, "Runtime": "runc"}}, []),
        (device("/dev/nvidia0"), ALL),
        (device("/dev"), ALL),
        (device("/dev/nvidiactl"), []),
        (device("/dev/nvidia-uvm"), []),
        (device("/dev/sda"), []),
        ({"HostConfig": {"DeviceCgroupRules": ["c 195:* rmw"]}}, ALL),
        ({"HostConfig": {"DeviceCgroupRules": ["a *:* rwm"]}}, ALL),
        ({"HostConfig": {"DeviceCgroupRules": ["c 10:200 rwm"]}}, []),
        # What says nothing.
        ({}, []),
        ({"Config": None, "HostConfig": None}, []),
        ({"Config": {"Env": None}, "HostConfig": {"DeviceRequests": None, "Devices": None}}, []),
        ({"Config": {"Env": ["NVIDIA_VISIBLE_DEVICES", "="]}, "HostConfig": {"Runtime": "x"}}, []),
        # What no engine says.
        ({"HostConfig": {"DeviceRequests": 1}}, ALL),
        ({"HostConfig": {"DeviceRequests": ["all"]}}, ALL),
        (asked(Count="two"), ALL),
        (asked(DeviceIDs=[7]), ALL),
        ({"Config": {"Env": [None]}, "HostConfig": {}}, ALL),
    ],
)  # fmt: skip
def test_what_a_container_was_given_is_read_however_that_was_done(
    container: dict[str, Any], names: list[str]
) -> None:
    before = copy.deepcopy(container)
    assert gpu_names(container) == set(names)
    assert container == before


@pytest.mark.parametrize(
    ("names", "indexes"),
    [
        (["all"], [0, 1, 2, 3]),
        (["ALL"], [0, 1, 2, 3]),
        (["0"], [0]),
        (["0", "1"], [0, 1]),
        (["gpu2"], [2]),
        (["mig2:1"], [2]),
        ([UUIDS[1]], [1]),
        ([UUIDS[1].lower().replace("gpu", "Gpu")], [1]),
        # One of another machine, or that is gone.
        (["GPU-99999999-0000-0000-0000-000000000000"], []),
        (["1:0"], [1]),
        (["MIG-11111111-0000-0000-0000-000000000000"], []),
        # What isn't understood may be any.
        (["9"], [0, 1, 2, 3]),
        (["9" * 5000], [0, 1, 2, 3]),
        (["0000:3b:00.0"], [0, 1, 2, 3]),
        (["/var/run/nvidia-container-devices"], [0, 1, 2, 3]),
        (["١"], [0, 1, 2, 3]),
        ([], []),
    ],
)
def test_a_name_means_a_gpu_or_may_be_any(names: list[str], indexes: list[int]) -> None:
    assert gpus_named(names, GPUS) == {UUIDS[n] for n in indexes}


def test_an_index_may_be_any_where_a_gpu_does_not_tell_its_uuid() -> None:
    """It may have fallen off the bus since, and others have its index."""
    gpus = (GPU(None, 0, "A100", state="unhealthy"), *GPUS[1:])
    assert gpus_named(["1"], gpus) == set(UUIDS[1:])
    assert gpus_named([UUIDS[1]], gpus) == {UUIDS[1]}


def test_a_mig_instance_is_of_one_that_is_in_mig_mode() -> None:
    gpus = (GPU(UUIDS[0], 0, "A100", state="mig"), *GPUS[1:])
    assert gpus_named(["MIG-1"], gpus) == {UUIDS[0]}


def test_what_an_outsider_has_is_not_free_and_a_lease_goes_before() -> None:
    (node,) = with_leases(
        [Node(gpus=(*GPUS[:3], GPU(UUIDS[3], 3, "A100", state="unhealthy", reason="It is lost.")))],
        [Lease(Holder("ann"), frozenset(UUIDS[:1]))],
        [Outsider("x", "jupyter-ada", frozenset([*UUIDS[:2], UUIDS[3]]))],
    )
    assert [gpu.state for gpu in node.gpus] == ["leased", "foreign", "free", "unhealthy"]
    assert node.gpus[1].reason == "A container outside the hub was given it."
    assert "ada" not in node.gpus[1].reason
    assert node.gpus[3].reason == "It is lost."


# The engine's list --------------------------------------------------------------------------------


class Engine:
    """An engine's containers: entries of its list, and inspections."""

    def __init__(self, *containers: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self.entries = [{"Id": f"id-{n}", **entry} for n, (entry, _) in enumerate(containers)]
        self.inspections = {f"id-{n}": each for n, (_, each) in enumerate(containers)}
        self.inspected: list[str] = []
        # Image -> its labels.
        self.images: dict[str, Any] = {"image": None}

    def containers(self, all: bool) -> list[dict[str, Any]]:
        assert all
        return copy.deepcopy(self.entries)

    def inspect_image(self, id: str) -> dict[str, Any]:
        self.inspected.append(id)
        if id not in self.images:
            raise docker.errors.ImageNotFound(id)
        return {"Config": {"Labels": self.images[id]}}

    def inspect_container(self, id: str) -> dict[str, Any]:
        self.inspected.append(id)
        found = self.inspections[id]
        if isinstance(found, Exception):
            raise found
        return found


def entry(name: str = "by-hand", state: str = "running", **values: Any) -> dict[str, Any]:
    return {"Names": [f"/{name}"], "State": state, "Labels": {}, **values}


EVERY = asked(Count=-1)


def test_only_what_runs_without_a_lease_is_inspected_and_once() -> None:
    leased = labels(Holder("ann"), "torch", ["GPU-1"])
    engine = Engine(
        (entry("jupyter-ann", Labels=leased), EVERY),
        (entry("jupyter-ben", "exited", Labels=leased), EVERY),
        (entry("jupyter-cyd"), EVERY),
        (entry("database"), {}),
        (entry("stopped", "exited"), EVERY),
        (entry("never-started", "created"), EVERY),
        (entry("paused", "paused", Names=["/other/alias", "/paused"]), EVERY),
        (entry("odd", "what", Labels=None, Names=None), EVERY),
    )
    listing = Listing()
    for _ in range(3):
        seen = {each.name: set(each.gpu_names) for each in listing(engine)}
        assert seen == {
            "jupyter-ann": set(),
            "jupyter-ben": set(),
            "jupyter-cyd": {"all"},
            "paused": {"all"},
            "id-7": {"all"},
        }
    assert engine.inspected == ["id-2", "id-3", "id-6", "id-7"]


def test_a_label_says_what_a_container_by_hand_holds() -> None:
    """As for a program that only watches: NVIDIA's own exporter is given all GPUs."""
    engine = Engine((entry("watcher", Labels={LABEL_GPUS: ""}), EVERY))
    servers = Listing()(engine)
    assert outsiders_of(servers, [Node(gpus=GPUS)]) == ()
    assert [lease_of(each) for each in servers] == [Lease(Holder("?"), frozenset())]


def test_what_was_started_of_a_server_s_image_by_hand_is_no_server() -> None:
    """`docker commit` gives an image the labels of its container."""
    bears = {**labels(Holder("ann"), "torch", ["GPU-1"], 5.0), LABEL_HUB: "http://hub"}
    by_hand = {**bears, "of-the-administrator": "yes"}
    again = {**bears, LABEL_UNTIL: "77"}
    engine = Engine(
        (entry("server", Labels=bears, ImageID="image"), EVERY),
        (entry("by-hand", Labels=by_hand, ImageID="committed"), EVERY),
        (entry("stopped", "exited", Labels=bears, ImageID="committed"), EVERY),
        (entry("a server of that image", Labels=again, ImageID="committed"), EVERY),
        (entry("of an image that is gone", Labels=bears, ImageID="gone"), EVERY),
    )
    engine.images["committed"] = bears
    listing = Listing()
    for _ in range(2):
        servers = listing(engine)
        assert {each.name: (bool(lease_of(each)), set(each.gpu_names)) for each in servers} == {
            "server": (True, set()),
            "by-hand": (False, {"all"}),
            "a server of that image": (True, set()),
            "of an image that is gone": (True, set()),
        }
    assert sorted(engine.inspected) == ["committed", "gone", "id-1", "image"]
    # An image never changes, so that who comes again isn't asked for. One may come back.
    entries, engine.entries = engine.entries, []
    assert listing(engine) == []
    engine.entries = entries
    listing(engine)
    assert sorted(engine.inspected)[-3:] == ["id-1", "id-1", "image"]
    assert engine.inspected.count("gone") == 2


def test_of_more_images_than_a_machine_has_only_those_in_use_are_remembered(monkeypatch) -> None:
    monkeypatch.setattr(listing_of_engine, "MAX_IMAGES", 1)
    bears = {**labels(Holder("ann"), "torch", ["GPU-1"], 5.0), LABEL_HUB: "http://hub"}
    images = ("one", "two", "one")
    engine = Engine(*((entry(Labels=bears, ImageID=image), EVERY) for image in images))
    engine.images |= dict.fromkeys(images)
    entries, listing = engine.entries, Listing()
    for some in (entries[:1], entries[1:2], [], entries[2:]):
        engine.entries = some
        listing(engine)
    assert engine.inspected == ["one", "two", "one"]


def test_a_hub_in_a_container_does_not_hold_the_gpus_that_it_watches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leased = labels(Holder("ann"), "torch", ["GPU-1"])
    own = "5a" * 32
    (tmp_path / "mountinfo").write_text(f"1 2 8:1 /containers/{own}/hosts /etc/hosts rw - x\n")
    monkeypatch.setattr(missing_driver, "MOUNTS", tmp_path / "mountinfo")
    engine = Engine((entry("hub"), EVERY), (entry("other"), EVERY))
    engine.entries[0]["Id"] = own
    assert [each.name for each in Listing()(engine)] == ["other"]
    # A lease is a lease, whoever reads it.
    engine.entries[0]["Labels"] = leased
    assert [each.name for each in Listing()(engine)] == ["hub", "other"]


def test_one_that_is_gone_is_passed_over_and_another_error_is_told() -> None:
    engine = Engine((entry("gone"), docker.errors.NotFound("gone")), (entry("there"), EVERY))
    assert [each.name for each in Listing()(engine)] == ["there"]
    engine.inspections["id-0"] = docker.errors.APIError("broken")
    with pytest.raises(docker.errors.APIError, match="broken"):
        Listing()(engine)


def test_an_outsider_holds_what_its_names_mean() -> None:
    servers = [
        ServerRecord("a", {}, name="one", gpu_names=frozenset({"0", "1"})),
        ServerRecord("b", {}, name="elsewhere", gpu_names=frozenset({"GPU-x"})),
        ServerRecord("c", labels(Holder("ann"), "torch", [UUIDS[2]])),
    ]
    assert outsiders_of(servers, [Node(gpus=GPUS)]) == (Outsider("a", "one", frozenset(UUIDS[:2])),)


# Whatever is written on a container ---------------------------------------------------------------


fields = st.sampled_from(
    ["Config", "HostConfig", "Env", "Runtime", "Privileged", "DeviceRequests", "Devices",
     "DeviceCgroupRules", "Driver", "Count", "DeviceIDs", "Capabilities", "PathOnHost"]
)  # fmt: skip
texts = ["", "nvidia", "all", "NVIDIA_VISIBLE_DEVICES=0", "/dev/nvidia0", "c 195:* rwm", "gpu"]
inspections = st.recursive(
    st.sampled_from([None, True, 0, -1, 7, 1.5, *texts]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(fields, inspections, max_size=3))
def test_no_inspection_breaks_the_look_at_the_host(container: dict[str, Any]) -> None:
    assert gpus_named(gpu_names(container), GPUS) <= set(UUIDS)


NESTED = "[" * 1000
LABELS = [LABEL_USER, LABEL_SERVER, LABEL_HUB, LABEL_UNTIL, LABEL_GROUPS]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("value", [NESTED, "9" * 5000, "\x00\x1b[2J", "-1", "1e999", "null", "{}"])
def test_a_bad_label_costs_its_own_field(label: str, value: str) -> None:
    good = {**labels(Holder("ann", "two"), "torch", ["GPU-1"], 5.0, ["lab"]), LABEL_HUB: "http://h"}
    read, whole = (
        lease_of(server_record({"Id": "x", "State": "running", "Labels": each}))
        for each in ({**good, label: value}, good)
    )
    assert read is not None
    assert whole is not None
    assert read.gpus == {"GPU-1"}
    changed = {
        LABEL_USER: read.holder.user != whole.holder.user,
        LABEL_SERVER: read.holder.server != whole.holder.server,
        LABEL_UNTIL: read.until is None and whole.until == 5.0,
        LABEL_GROUPS: read.groups == frozenset() and whole.groups == {"lab"},
        LABEL_HUB: False,
    }
    assert [name for name, differs in changed.items() if differs] == [label] * (label != LABEL_HUB)


@given(st.dictionaries(st.sampled_from([*LABELS, LABEL_GPUS]), st.text()))
def test_no_label_breaks_the_look_at_the_host(written: dict[str, str]) -> None:
    lease = lease_of(server_record({"Id": "x", "State": "running", "Labels": written}), "http://h")
    assert (lease is None) == (LABEL_GPUS not in written)
