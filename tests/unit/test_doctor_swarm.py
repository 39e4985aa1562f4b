"""What `gpuspawner doctor` says of a Swarm: by what engines answer, one fault at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.backends.swarm.cluster import parse_nodes
from gpuspawner.doctor import swarm, swarm_node, toolkit
from gpuspawner.doctor.checks import CHECKS, SWARM, SWARM_NODE
from gpuspawner.doctor.configuration import from_loaded, load
from gpuspawner.doctor.findings import Context, Finding
from gpuspawner.doctor.node_checks import NODE_CHECKS
from gpuspawner.gpus.model import GPU, Node
from gpuspawner.gpus.nvml import Inventory
from gpuspawner.nodes.resources import kind_of

UUID = "GPU-1b2c3d4e-0000-0000-0000-000000000000"
OTHER = "GPU-9b2c3d4e-0000-0000-0000-000000000000"


def said(found: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """Return the findings; whoever reads one learns what to do as well."""
    every = list(found)
    assert all(each.advice for each in every if each.state != "ok"), every
    return [(each.state, each.found, each.advice) for each in every]


def one(found: Iterable[Finding], state: str, *words: str) -> None:
    """Check that there is one finding, with these words in it or in its advice."""
    (only,) = said(found)
    assert only[0] == state, only
    for each in words:
        assert each in only[1] or each in only[2], (each, only)


def node(
    name: str,
    role: str = "worker",
    state: str = "ready",
    availability: str = "active",
    version: str = "28.5.2",
    kinds: Iterable[str] = (),
    reachability: str = "reachable",
) -> dict[str, Any]:
    """Return a machine as `GET /nodes` has it. ref: docs.docker.com/reference/api/engine"""
    resources = [{"DiscreteResourceSpec": {"Kind": each, "Value": 1}} for each in kinds]
    found: dict[str, Any] = {
        "ID": f"id-{name}",
        "Version": {"Index": 9},
        "Spec": {"Labels": {}, "Role": role, "Availability": availability},
        "Description": {
            "Hostname": name,
            "Platform": {"Architecture": "x86_64", "OS": "linux"},
            "Resources": {"NanoCPUs": 2 * 10**9, "GenericResources": resources},
            "Engine": {"EngineVersion": version},
        },
        "Status": {"State": state, "Addr": "10.0.0.2"},
    }
    if role == "manager":
        address = "10.0.0.2:2377"
        found["ManagerStatus"] = {"Reachability": reachability, "Addr": address}
    return found


# -- Of the hub's engine ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({}, ("is in no Swarm (inactive)", "docker swarm init")),
        ({"LocalNodeState": "locked"}, ("is in no Swarm (locked)",)),
        ({"LocalNodeState": "active", "ControlAvailable": False}, ("isn't a manager", "promote")),
    ],
)
def test_a_hub_s_engine_has_to_decide_for_a_swarm(about: Any, words: tuple[str, ...]) -> None:
    one(swarm.of_membership({"Swarm": about}), "failure", *words)


def test_a_manager_will_do() -> None:
    about = {"LocalNodeState": "active", "ControlAvailable": True}
    assert said(swarm.of_membership({"Swarm": about})) == []


@pytest.mark.parametrize(
    ("nanoseconds", "state", "words"),
    [
        (5 * 10**9, "warning", ("5 seconds", "more than 15", "killed", "--dispatcher-heartbeat")),
        (29 * 10**9, "warning", ("29 seconds", "more than 87")),
        (30 * 10**9, "ok", ("cut off for 90 seconds",)),
        (None, "note", ("can't be told",)),
    ],
)
def test_a_short_heartbeat_kills_servers(nanoseconds: Any, state: str, words: Any) -> None:
    about = {"Spec": {"Dispatcher": {"HeartbeatPeriod": nanoseconds}, "Raft": {}}}
    one(swarm.of_heartbeat(about), state, *words)


@pytest.mark.parametrize(
    ("number", "state", "words"),
    [
        (1, "note", ("one manager alone", "nothing starts", "so is the Swarm")),
        (2, "warning", ("2 managers, an even number", "(0) than of 1", "docker node promote")),
        (3, "ok", ("3 managers, of which 1 may be away",)),
        (4, "warning", ("4 managers, an even number", "(1) than of 3")),
        (5, "ok", ("5 managers, of which 2 may be away",)),
    ],
)
def test_managers_are_counted(number: int, state: str, words: tuple[str, ...]) -> None:
    listed = [node(f"m{n}", "manager") for n in range(number)]
    one(swarm.of_managers([*listed, node("w")]), state, *words)


def test_a_manager_that_is_away_is_named_with_what_is_left() -> None:
    listed = [node("a", "manager"), node("b", "manager", reachability="unreachable")]
    away, _ = said(swarm.of_managers([*listed, node("c", "manager")]))
    assert away[0] == "warning"
    assert away[1].startswith("manager b is unreachable: of 3 only 1 may be away")


@pytest.mark.parametrize(
    ("of_node", "state", "words"),
    [
        ({"state": "down"}, "warning", ("atlas is down", "2377/tcp")),
        ({"availability": "drain"}, "note", ("set to drain", "--availability active atlas")),
        ({"availability": "pause"}, "note", ("set to pause",)),
        ({"version": "24.0.9"}, "failure", ("24.0.9 ends running servers", "GPUs aren't handed")),
        ({"version": "25.0.2", "role": "manager"}, "failure", ("nothing is handed out anywhere",)),
        ({"version": ""}, "failure", ("Docker Engine ?",)),
    ],
)
def test_a_machine_that_takes_no_servers_is_named(
    of_node: dict[str, str], state: str, words: tuple[str, ...]
) -> None:
    one(swarm.of_nodes(parse_nodes([node("atlas", **of_node), node("zeus")])), state, *words)


@pytest.mark.parametrize(
    ("told", "nodes", "words"),
    [
        ([UUID], [], ("atlas was invited and isn't in the Swarm",)),
        ([UUID], [node("atlas")], ("has gpu-1b2c3d4e", "doesn't offer it", "join again")),
        ([], [node("atlas", kinds=[kind_of(OTHER)])], ("offers gpu-9b2c3d4e", "doesn't have it")),
        (
            [UUID],
            [node("atlas", kinds=[kind_of(UUID)]), node("zeus", kinds=[kind_of(OTHER)])],
            ("zeus offers GPUs to the Swarm and wasn't invited", "gpuspawner node invite"),
        ),
        (
            [UUID],
            [node("atlas", kinds=[kind_of(UUID)])] * 2,
            ("2 machines of the Swarm are called atlas", "hostname"),
        ),
    ],
)
def test_kinds_that_do_not_match_the_hardware_are_named(
    told: list[str], nodes: list[Any], words: tuple[str, ...]
) -> None:
    gpus = tuple(GPU(uuid, n, "T4", node="atlas") for n, uuid in enumerate(told))
    of_daemon = [Node("atlas", "570.133.20", "12.8", gpus)]
    one(swarm.of_kinds(of_daemon, parse_nodes(nodes)), "warning", *words, "handed out")


@pytest.mark.parametrize(
    ("local", "state", "words"),
    [
        (True, "note", ("on one machine each (why)", "doesn't see them")),
        (False, "ok", ("the same on all machines by the configuration (why)",)),
    ],
)
def test_where_files_are_is_said_with_what_follows(
    local: bool, state: str, words: tuple[str, ...]
) -> None:
    one(swarm.of_homes({"local": local, "why": "why"}), state, *words)


# -- The network -----------------------------------------------------------------------------------

OVERLAY = {
    "Name": "gpuspawner",
    "Driver": "overlay",
    "Scope": "swarm",
    "Attachable": True,
    "Options": {"com.docker.network.driver.overlay.vxlanid_list": "4097"},
}


@pytest.mark.parametrize(
    ("found", "state", "words"),
    [
        ([OVERLAY], "ok", ("an overlay network",)),
        ([], "failure", ("has no such network", "--driver overlay --attachable gpuspawner")),
        ([{**OVERLAY, "Driver": "bridge"}], "failure", ("of the kind bridge",)),
        ([{**OVERLAY, "Attachable": False}], "failure", ("isn't attachable", "network rm")),
        (
            [{**OVERLAY, "Options": {**OVERLAY["Options"], "encrypted": ""}}],  # type: ignore[dict-item]
            "warning",
            ("is encrypted", "never reached"),
        ),
    ],
)
def test_servers_have_to_be_on_an_overlay_that_the_hub_can_be_on(
    found: list[Any], state: str, words: tuple[str, ...]
) -> None:
    one(swarm.of_network("c.X.network_name = 'gpuspawner'", "gpuspawner", found), state, *words)


# As `ip -json address` prints it.
INTERFACES = [
    {"ifname": "lo", "mtu": 65536, "addr_info": [{"family": "inet", "local": "127.0.0.1"}]},
    {"ifname": "eth0", "mtu": 1450, "addr_info": [{"family": "inet", "local": "10.0.0.1"}]},
    {"ifname": "ib0", "mtu": 9000, "addr_info": [{"family": "inet", "local": "10.1.0.1"}]},
]


@pytest.mark.parametrize(
    ("address", "option", "words"),
    [
        ("10.0.0.1", None, ("up to 1450", "eth0 carries 1450", "mtu=1400")),
        ("10.0.0.1", "1400", ()),
        ("10.1.0.1", None, ()),
        ("10.1.0.1", "8951", ("up to 8951", "ib0 carries 9000")),
        ("10.1.0.1", "8950", ()),
        ("10.9.9.9", None, ()),
        ("", None, ()),
    ],
)
def test_packets_of_the_overlay_have_to_fit(
    address: str, option: str | None, words: tuple[str, ...]
) -> None:
    about = {**OVERLAY, "Options": {swarm.MTU_OPTION: option} if option else None}
    found = list(swarm.of_mtu(about, *swarm.interface_of(INTERFACES, address)))
    if words:
        one(found, "warning", *words)
    else:
        assert found == []


# -- Of one machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version", "state", "words"),
    [
        ('swarm-resource = "DOCKER_RESOURCE_GPU"', (1, 18, 0), "failure", ("1.18.0", "all GPUs")),
        ("  swarm-resource = 'X' # ours", (1, 18, 2), "failure", ("would see those of others",)),
        ('swarm-resource = "X"', (1, 17, 8), "warning", ("doesn't use", "toolkit 1.18")),
        ('swarm-resource = "X"', None, "warning", ("doesn't use",)),
        ('#swarm-resource = "X"', (1, 18, 0), None, ()),
        ('swarm-resource = ""', (1, 18, 0), None, ()),
        ("", (1, 18, 0), None, ()),
    ],
)
def test_the_toolkit_s_setting_for_a_swarm_is_a_trap(
    text: str, version: Any, state: str | None, words: tuple[str, ...]
) -> None:
    found = list(swarm_node.of_resource(text, version))
    if state:
        one(found, state, *words)
    else:
        assert found == []


@pytest.mark.parametrize(
    ("text", "is_wrong"),
    [
        ('{"live-restore": true}', True),
        ('{"live-restore": false}', False),
        ("{}", False),
        ("", False),
        ("no JSON", False),
        ("[true]", False),
    ],
)
def test_an_engine_with_live_restore_does_not_start_again(text: str, is_wrong: bool) -> None:
    found = list(swarm_node.of_live_restore(text))
    if is_wrong:
        one(found, "failure", "Swarm refuses", "doesn't start the next time", "daemon.json")
    else:
        assert found == []


def test_services_get_gpus_by_the_default_runtime_alone() -> None:
    one(swarm_node.of_runtime({"DefaultRuntime": "nvidia"}), "ok", "default runtime")
    one(swarm_node.of_runtime({"DefaultRuntime": "runc"}), "failure", "runc", "see no GPU", "join")


@pytest.mark.parametrize("in_swarm", [True, False])
def test_the_default_runtime_that_a_swarm_needs_is_no_fault_in_one(
    in_swarm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit, "CONFIG_FILE", tmp_path / "none")
    monkeypatch.setattr(toolkit, "installed_version", lambda: (1, 17, 8))
    info = {
        "DefaultRuntime": "nvidia",
        "Swarm": {"LocalNodeState": "active" if in_swarm else "inactive"},
    }
    inventory = Inventory("570.133.20", "12.8", ())
    about = Context(None, tmp_path, inventory=inventory, engine_info=info)
    states = [each.state for each in toolkit.setting(about)]
    assert states == (["ok"] if in_swarm else ["warning"])
    runs = list(swarm_node.swarm_node(about))
    assert [each.state for each in runs] == (["ok"] if in_swarm else [])


# -- Which run where -------------------------------------------------------------------------------


def test_each_machine_looks_at_itself_and_the_hub_at_the_swarm() -> None:
    ours, theirs = ({each.title for each in checks} for checks in (CHECKS, NODE_CHECKS))
    assert {SWARM, SWARM_NODE} <= ours
    assert SWARM_NODE in theirs
    assert SWARM not in theirs


@pytest.mark.parametrize(("spawner", "is_of_swarm"), [("gpu-swarm", True), ("gpu", False)])
def test_a_configuration_says_whether_there_is_a_swarm(
    tmp_path: Path, spawner: str, is_of_swarm: bool
) -> None:
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(f'c.JupyterHub.spawner_class = "{spawner}"\n')
    given = from_loaded(file, load(file, tmp_path))
    assert swarm.is_of_swarm(given) is is_of_swarm
    line = 'c.GPUSwarmSpawner.volume_driver_options = {"device": ":/{volume}"}\n'
    if is_of_swarm:
        file.write_text(file.read_text() + line)
        refused = [each.found for each in from_loaded(file, load(file, tmp_path)).problems]
        assert any("(line 2) = " in each and "would be ignored" in each for each in refused)
    # Without a Swarm there is nothing to say.
    api = SimpleNamespace()
    about = Context(file, tmp_path, configuration=given, engine=SimpleNamespace(api=api))  # type: ignore[arg-type]
    found = [each.state for each in swarm.swarm(about)]
    assert found == (["failure"] if is_of_swarm else [])
