"""The parts of a simulated host that need no engine: hook, networks, names, configuration."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from gpuspawner.simulation import cdi, changes, engine, hook, network, resolver, slots
from gpuspawner.simulation.host import SimulatedHost, cache_folder
from gpuspawner.simulation.mig import layout, partition, with_process, without_instance
from gpuspawner.simulation.programs import SimulationError, require
from gpuspawner.simulation.state import describe

from ..support.labs import STATE, UUIDS


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        ("all", [0, 1, 2, 3]),
        ("0", [0]),
        ("3,1", [3, 1]),
        (UUIDS[2], [2]),
        (f"{UUIDS[1]},{UUIDS[1]},1", [1]),
        (UUIDS[2].upper(), [2]),
        ("ALL", [0, 1, 2, 3]),
        (f",{UUIDS[0]},,", [0]),
        ("00000000:0A:00.0", [1]),
        ("0:0a:00.0,0000:7:0", [1, 0]),
    ],
)
def test_the_hook_takes_all_or_indices_or_uuids(tmp_path, value, indices):
    STATE.write(tmp_path / "state")
    text = (tmp_path / "state").read_text()
    assert hook.chosen(value, text) == [UUIDS[index] for index in indices]


@pytest.mark.parametrize(
    ("value", "state", "words"),
    [
        ("4", STATE, "4: unknown device"),
        ("GPU-nope", STATE, "GPU-nope: unknown device"),
        ("00000000:0B:00.0", STATE, "unknown device"),
        ("0,1", STATE.with_gpu(1, fault="lost"), "gpu is lost"),
        ("0", STATE.with_gpu(1, fault="lost"), "gpu is lost"),
        ("0", STATE.with_gpu(3, fault="unreachable"), "unknown error"),
        ("0", changes.parse("driver gone")(STATE), "driver not loaded"),
    ],
)
def test_the_hook_refuses_what_it_cannot_give(tmp_path, value, state, words):
    state.write(tmp_path / "state")
    with pytest.raises(hook.HookError, match=words):
        hook.chosen(value, (tmp_path / "state").read_text())


def test_only_cdi_gives_others_beside_a_lost_gpu(tmp_path):
    """ref: https://github.com/NVIDIA/k8s-device-plugin/issues/2038"""
    STATE.with_gpu(1, fault="lost").write(tmp_path / "state")
    text = (tmp_path / "state").read_text()
    assert hook.chosen("0", text, detects=False) == [UUIDS[0]]
    STATE.with_gpu(1, fault="reset_required").write(tmp_path / "state")
    assert hook.chosen("0", (tmp_path / "state").read_text()) == [UUIDS[0]]


DIVIDED = partition(STATE, 1, layout("3g.20gb, 2g.10gb, 1g.5gb x2"))
PARTS = [each.uuid for each in DIVIDED.gpu(1).instances]
OLD = partition(describe([("A100-40GB", 1)], "460.32.03"), 0, ["3g.20gb"])


@pytest.mark.parametrize(
    ("state", "value", "uuids"),
    [
        (DIVIDED, PARTS[1], [PARTS[1]]),
        (DIVIDED, PARTS[1].upper(), [PARTS[1]]),
        (DIVIDED, "1:0,1:3", [PARTS[0], PARTS[3]]),
        (DIVIDED, "all", [*UUIDS, *PARTS]),
        (DIVIDED, "1", [UUIDS[1]]),
        (without_instance(DIVIDED, 1, 2), "all", [*UUIDS, *PARTS[:2]]),
        (OLD, OLD.gpu(0).instances[0].uuid.lower(), [OLD.gpu(0).instances[0].uuid]),
    ],
)
def test_the_hook_takes_mig_instances(tmp_path, state, value, uuids):
    state.write(tmp_path / "state")
    assert hook.chosen(value, (tmp_path / "state").read_text()) == uuids


@pytest.mark.parametrize("value", ["1:4", "0:0", "MIG-no", PARTS[3], "1:3"])
def test_the_hook_does_not_find_instances_that_are_not_there_or_after_a_gap(tmp_path, value):
    without_instance(DIVIDED, 1, 2).write(tmp_path / "state")
    with pytest.raises(hook.HookError, match="unknown device"):
        hook.chosen(value, (tmp_path / "state").read_text())


def test_a_container_with_an_instance_has_its_files_and_sees_it_alone(tmp_path):
    busy = with_process(with_process(DIVIDED, 1, 1, 42, 100), 1, 0, 43, 100)
    busy.write(tmp_path / "state")
    (tmp_path / "views").mkdir()
    hook.show(tmp_path, "c1", [PARTS[1]])
    seen = type(STATE).read(tmp_path / "views/c1/state")
    assert seen == busy.only([PARTS[1]])
    assert [each.processes for each in seen.gpus[0].instances] == [((42, 100),)]
    files = hook.devices_of((tmp_path / "state").read_text(), [PARTS[1]])
    assert files == ["nvidia1", "nvidia-caps/nvidia-cap165", "nvidia-caps/nvidia-cap166"]


@pytest.mark.parametrize("name", ["NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES"])
def test_a_wish_to_see_all_instances_takes_a_privileged_container(tmp_path, name):
    process = {"env": [f"{name}=all"], "capabilities": {"bounding": ["CAP_CHOWN"]}}
    with pytest.raises(hook.HookError, match="in non privileged container"):
        hook.sees_all_instances({"process": process})
    process["capabilities"] = {"bounding": ["CAP_SYS_ADMIN"]}
    assert hook.sees_all_instances({"process": process})
    assert not hook.sees_all_instances({"process": {"env": ["A=b"]}})
    DIVIDED.write(tmp_path / "state")
    (tmp_path / "views").mkdir()
    hook.show(tmp_path, "c1", PARTS, privileged=True)
    assert type(STATE).read(tmp_path / "views/c1/state").privileged


def test_a_containers_state_is_the_hosts_with_its_gpus_only(tmp_path):
    busy = STATE.with_gpu(2, processes=((42, 100),))
    busy.write(tmp_path / "state")
    (tmp_path / "views").mkdir()
    hook.show(tmp_path, "c1", [UUIDS[2], UUIDS[0]])
    assert type(STATE).read(tmp_path / "views/c1/state") == busy.only([UUIDS[0], UUIDS[2]])


@pytest.mark.parametrize("path", [None, "", "/", "//", ".", "../../../../../../.."])
def test_the_hook_refuses_to_work_on_the_hosts_own_root(tmp_path, path):
    config = {} if path is None else {"root": {"path": path}}
    with pytest.raises(hook.HookError, match="root"):
        hook.root_of(config, str(tmp_path))


def test_the_hook_finds_a_root_beside_its_configuration(tmp_path):
    assert hook.root_of({"root": {"path": "rootfs"}}, str(tmp_path)) == tmp_path / "rootfs"


@pytest.mark.parametrize("value", ["", "none", "void"])
def test_the_hook_does_nothing_for_a_container_that_shall_see_no_gpu(tmp_path, value, monkeypatch):
    config = {"process": {"env": ["NVIDIA_VISIBLE_DEVICES=all", f"NVIDIA_VISIBLE_DEVICES={value}"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"bundle": str(tmp_path)})))
    before = sorted(tmp_path.rglob("*"))
    assert hook.main(tmp_path, "prestart") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_networks_of_all_slots_are_apart_and_their_link_is_outside_of_the_containers():
    chosen = [network.choose_addresses(slot, []) for slot in range(slots.SLOTS)]
    every = [part for each in chosen for part in (each.link, each.containers)]
    assert not [(a, b) for a in every for b in every if a is not b and a.overlaps(b)]
    assert len(set(every)) == 2 * slots.SLOTS
    for each in chosen:
        bridge = IPv4Network(each.bridge, strict=False)
        assert bridge.subnet_of(each.containers)
        assert bridge != each.containers


@pytest.mark.parametrize(
    ("taken", "first"),
    [
        ([], "10.231.0.0/30"),
        (["0.0.0.0/0"], "10.231.0.0/30"),
        (["0.0.0.0/1", "128.0.0.0/1"], "10.231.0.0/30"),
        (["10.232.7.0/24"], "172.29.254.0/30"),
        (["10.231.0.2/32"], "172.29.254.0/30"),
        (["10.0.0.0/8"], "172.29.254.0/30"),
        (["10.0.0.0/8", "172.16.0.0/12"], "192.168.231.0/30"),
        (["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], "10.231.0.0/30"),
        (["10.231.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], "172.29.254.0/30"),
    ],
)
def test_networks_avoid_what_the_machine_uses_and_wide_routes_if_they_can(taken, first):
    chosen = network.choose_addresses(0, map(IPv4Network, taken))
    assert str(chosen.link) == first


def test_no_network_is_chosen_when_all_are_in_use():
    taken = [part for pair in network.PLACES for places in pair for part in places.subnets(1)]
    with pytest.raises(SimulationError, match="routes for all of"):
        network.choose_addresses(0, taken)


@pytest.mark.parametrize(
    ("servers", "usable"),
    [
        (["10.0.0.53"], ["10.0.0.53"]),
        (["10.0.0.53", "9.9.9.9"], ["10.0.0.53", "9.9.9.9"]),
        (["10.0.0.53", "127.0.0.1", "fe80::1%eth0"], ["10.0.0.53"]),
        (["127.0.0.53"], []),
        (["127.0.0.1", "9.9.9.9"], []),
        (["fe80::1%eth0"], []),
        ([], []),
    ],
)
def test_only_name_servers_that_containers_reach_are_used(servers, usable):
    assert network.reachable_name_servers(servers) == usable


def test_resolv_conf_is_read_with_its_comments_and_quirks(tmp_path):
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 1.1.1.1\nsearch old\nnameserver 10.0.0.1 # one\nnameserver\n"
        "options edns0\nsearch a.example b.example .\n;nameserver 2.2.2.2\n"
    )
    assert network.name_servers(file) == ["10.0.0.1"]
    assert network.search_domains(file) == ["a.example", "b.example"]
    assert network.name_servers(tmp_path / "missing") == []


def test_every_firewall_rule_is_tagged_with_its_slot():
    for rule in network.rules("gpuspawner-3", network.choose_addresses(3, [])):
        assert rule[rule.index("--comment") :][:2] == ["--comment", "gpuspawner-3"]


@pytest.mark.parametrize(
    ("version", "by_cdi", "direct"),
    [
        ((20, 10), False, False),
        ((25, 0), True, False),
        ((28, 1), True, False),
        ((29, 0), True, True),
    ],
)
def test_an_engine_is_told_only_what_its_version_knows(version, by_cdi, direct):
    addresses = network.choose_addresses(0, [])
    got = engine.configuration(Path("/r"), Path("/d"), "gpuspawner-0", addresses, {}, version)
    assert ("cdi-spec-dirs" in got, "allow-direct-routing" in got) == (by_cdi, direct)
    assert got["data-root"] == "/d"
    assert got["hosts"] == ["unix:///r/docker.sock"]
    assert got["cgroup-parent"] == "/gpuspawner-0"


def text_of(tmp_path, state):
    state.write(tmp_path / "state")
    return (tmp_path / "state").read_text()


def test_cdi_names_each_gpu_and_mig_instance_by_uuid_and_index_and_all_of_them(tmp_path):
    host = describe([("A100-40GB", 2)]).with_gpu(0, minor_number=4).with_gpu(1, minor_number=5)
    host = partition(host, 1, layout("3g.20gb, 1g.5gb"))
    whole, parent = (gpu.uuid for gpu in host.gpus)
    large, small = (each.uuid for each in host.gpu(1).instances)
    devices = cdi.specification(tmp_path, text_of(tmp_path, host))["devices"]
    called = {
        device["name"]: [hook["args"][2] for hook in device["containerEdits"]["hooks"]]
        for device in devices
    }
    every = {"0": whole, "1": parent, "1:0": large, "1:1": small}
    expected = {uuid: [uuid] for uuid in every.values()}
    expected |= {index: [uuid] for index, uuid in every.items()}
    assert called == {**expected, "all": list(every.values())}
    files = {
        device["name"]: [node["path"] for node in device["containerEdits"]["deviceNodes"]]
        for device in devices
    }
    assert files[whole] == ["/dev/nvidia4"]
    assert files["1"] == ["/dev/nvidia5"]
    first, *capabilities = files[small]
    assert (first, len(capabilities)) == ("/dev/nvidia5", 2)
    assert all(path.startswith("/dev/nvidia-caps/nvidia-cap") for path in capabilities)
    assert files["1:1"] == files[small] != files[large]
    assert len(files["all"]) == len(set(files["all"])) == 6
    nothing = cdi.specification(tmp_path, text_of(tmp_path, replace(host, gpus=())))
    assert nothing["devices"] == []


def test_cdi_finds_an_instance_behind_a_gap_where_the_hook_does_not(tmp_path):
    host = partition(describe([("A100-40GB", 1)]), 0, layout("2g.10gb, 1g.5gb"))
    last = host.gpu(0).instances[1].uuid
    text = text_of(tmp_path, without_instance(host, 0, 0))
    assert hook.chosen(last, text, detects=False) == [last]
    with pytest.raises(hook.HookError, match="unknown device"):
        hook.chosen(last, text)


def test_both_hooks_are_where_an_engine_looks_for_them(tmp_path):
    engine.write_hook(tmp_path)
    found = sorted(path.name for path in (tmp_path / "hook").iterdir() if os.access(path, os.X_OK))
    assert found == ["nvidia-cdi-hook", "nvidia-container-runtime-hook"]
    (path,) = {
        hook["path"]
        for device in cdi.specification(tmp_path, text_of(tmp_path, STATE))["devices"]
        for hook in device["containerEdits"]["hooks"]
    }
    assert path == str(tmp_path / "hook" / "nvidia-cdi-hook")


def test_names_are_relayed_over_udp_and_tcp():
    async def both() -> tuple[bytes, bytes]:
        async def answer(reader, writer):
            writer.write(b"tcp:" + await reader.readexactly(8))
            await writer.drain()
            writer.close()

        class Upper(asyncio.DatagramProtocol):
            def connection_made(self, transport):
                self.transport = transport

            def datagram_received(self, data, addr):
                self.transport.sendto(b"udp:" + data, addr)

        upstream = await asyncio.start_server(answer, "127.0.0.1", 0)
        there = upstream.sockets[0].getsockname()
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(Upper, local_addr=there)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            here = free.getsockname()
        await resolver.relay(here, there)
        reader, writer = await asyncio.open_connection(*here)
        writer.write(b"question")
        over_tcp = await reader.read()
        writer.close()
        return await resolver._ask(b"question", here), over_tcp

    assert asyncio.run(both()) == (b"udp:question", b"tcp:question")


def test_a_missing_program_is_answered_with_its_package(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, path: None if name == "dockerd" else name)
    with pytest.raises(
        SimulationError, match=r"dockerd can't be found.*`apt-get install docker\.io`"
    ):
        require(["ip", "dockerd"])


def test_who_is_not_root_reads_what_to_do(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SimulationError, match="run it with sudo"):
        SimulatedHost(STATE).start()


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gpuspawner"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/gpuspawner"


def test_a_host_that_does_not_run_says_so():
    with pytest.raises(SimulationError, match="isn't running"):
        SimulatedHost(STATE).read()
