"""Who holds what on a Swarm, read from its services and tasks, and what can be handed out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.backends.swarm import tasks as task_states
from gpuspawner.backends.swarm.cluster import (
    EngineTooOld,
    SwarmNode,
    check_managers,
    parse_nodes,
    with_swarm,
)
from gpuspawner.backends.swarm.listing import LABEL_END, beside_tasks, read, server_state
from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.gpus.unit_names import parse
from gpuspawner.i18n.languages import LOG
from gpuspawner.leases.labels import LABEL_HUB, labels, leases_of
from gpuspawner.leases.ledger import outsiders_of
from gpuspawner.nodes.oldest_engine import is_too_old
from gpuspawner.nodes.reports import NodeContainer
from gpuspawner.nodes.resources import as_words, kind_of, offers, reservations

HUB = "http://hub:8081/hub/api"
UUIDS = [f"GPU-{n}1b2c3d4-0000-0000-0000-000000000000" for n in range(4)]
NODES = (
    Node("one", gpus=tuple(GPU(each, n, "T4", node="one") for n, each in enumerate(UUIDS[:2]))),
    Node("two", gpus=tuple(GPU(each, n, "T4", node="two") for n, each in enumerate(UUIDS[2:]))),
)
OF_NODE = {
    "id-one": list(map(kind_of, UUIDS[:2])),
    "id-two": list(map(kind_of, UUIDS[2:])),
}
ALIVE = [
    *("", "new", "allocated", "pending", "assigned", "accepted", "preparing", "ready"),
    *("starting", "running", "paused-by-an-engine-of-the-future"),
]
OVER = sorted(task_states.TERMINAL)


def service(name: str, units: Any = None, *, replicas: int = 1, user: str = "ann") -> Any:
    """A service; without `units` it is somebody's, made by hand."""
    lease = {} if units is None else {**labels(Holder(user), "torch", units), LABEL_HUB: HUB}
    return {
        "ID": name,
        "CreatedAt": "2030-01-31T12:00:00.5Z",
        "Spec": {
            "Name": f"name-{name}",
            "Labels": lease,
            "Mode": {"Replicated": {"Replicas": replicas}},
        },
    }


def task(of: str, state: str, *kinds: str, **more: Any) -> Any:
    """A task of a service that reserves kinds; `labels`, `env` and `node` are its container's."""
    wanted = [{"DiscreteResourceSpec": {"Kind": each, "Value": 1}} for each in kinds]
    container = {"Labels": more.get("labels", {}), "Env": more.get("env", [])}
    return {
        "ID": f"{of}-task",
        "ServiceID": of,
        "NodeID": more.get("node", "id-one"),
        "CreatedAt": "2030-01-31T12:00:01Z",
        "Version": {"Index": more.get("index", 10)},
        "Status": {"State": state, "Err": more.get("error", "")},
        "Spec": {
            "ContainerSpec": container,
            "Resources": {"Reservations": {"GenericResources": wanted}},
        },
    }


def held(services: Any, tasks: Any) -> set[str]:
    """The GPUs that nobody else is given."""
    listed = read(services, tasks, OF_NODE)
    leased = {name for lease in leases_of(listed.servers, hub=HUB) for name in lease.gpus}
    foreign = {uuid for each in outsiders_of(listed.servers, NODES) for uuid in each.gpus}
    return {parse(name).uuid for name in leased} | foreign


# -- Services and tasks --------------------------------------------------------------------------

_services = st.lists(
    st.tuples(
        st.one_of(st.none(), st.lists(st.sampled_from(UUIDS), max_size=2, unique=True)),
        st.integers(0, 1),
    ),
    max_size=3,
)
# Of service 3 and 4 there is none any more.
_tasks = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([*ALIVE, *OVER]),
        st.lists(st.sampled_from(UUIDS), max_size=2, unique=True),
        st.booleans(),
    ),
    max_size=6,
)


@given(_services, _tasks)
def test_whatever_may_run_or_is_about_to_holds_what_it_names_and_reserves(services, tasks):
    made = [service(str(n), units, replicas=some) for n, (units, some) in enumerate(services)]
    ran = [
        task(
            str(of),
            state,
            *map(kind_of, uuids),
            labels=labels(Holder("ann"), "torch", uuids) if labelled else {},
        )
        for of, state, uuids, labelled in tasks
    ]
    reserved = {uuid for _, state, uuids, _ in tasks if state in ALIVE for uuid in uuids}
    named: set[str] = set()
    for number, (units, _) in enumerate(services):
        own = [state for of, state, _, _ in tasks if of == number]
        if units is not None and (not own or any(state in ALIVE for state in own)):
            named |= set(units)
    assert held(made, ran) == reserved | named


@given(_services, _tasks)
def test_no_two_servers_have_the_same_id(services, tasks):
    made = [service(str(n), units, replicas=some) for n, (units, some) in enumerate(services)]
    ran = [
        {**task(str(of), state, *map(kind_of, uuids)), "ID": f"task-{n}"}
        for n, (of, state, uuids, _) in enumerate(tasks)
    ]
    ids = [each.id for each in read(made, ran, OF_NODE).servers]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("replicas", "states", "expected"),
    [
        (0, [], "created"),
        (1, [], "running"),
        (1, ["pending"], "running"),
        (1, ["failed"], "ended"),
        (0, ["running"], "running"),
        (0, ["shutdown"], "ended"),
        (1, ["failed", "new"], "running"),
        (1, ["running", "failed"], "running"),
    ],
)
def test_the_state_of_a_server(replicas, states, expected):
    made = service("s", [UUIDS[0]], replicas=replicas)
    assert server_state(made, [task("s", each) for each in states]) == expected


def test_a_service_made_by_hand_is_an_outsider_by_what_it_reserves_and_by_its_variable():
    by_hand = [service("a"), service("b"), service("c")]
    ran = [
        task("a", "running", kind_of(UUIDS[0])),
        task("b", "running", env=[f"NVIDIA_VISIBLE_DEVICES={UUIDS[1]}"]),
        task("c", "running", env=["NVIDIA_VISIBLE_DEVICES=0"], node="id-two"),
        task("d", "running", env=["NVIDIA_VISIBLE_DEVICES=void"], node="id-two"),
    ]
    found = {
        each.name: each.gpus for each in outsiders_of(read(by_hand, ran, OF_NODE).servers, NODES)
    }
    assert found == {
        "name-a": frozenset({UUIDS[0]}),
        "name-b": frozenset({UUIDS[1]}),
        "name-c": frozenset(UUIDS[2:]),
    }


def test_a_container_that_still_stops_is_its_users_after_its_service_is_gone():
    lease = {**labels(Holder("ann"), "torch", [UUIDS[0]]), LABEL_HUB: HUB}
    listed = read([], [task("gone", "running", kind_of(UUIDS[0]), labels=lease)], OF_NODE)
    (found,) = leases_of(listed.servers, hub=HUB)
    assert (found.holder, found.gpus) == (Holder("ann"), frozenset({UUIDS[0]}))
    assert outsiders_of(listed.servers, NODES) == ()


def test_what_runs_on_a_machine_and_is_no_task_that_may_run_is_an_outsider():
    containers = [
        ("one", NodeContainer("by-hand", "", frozenset({UUIDS[0]}))),
        ("one", NodeContainer("left", "old", frozenset({UUIDS[1]}))),
        ("two", NodeContainer("ours", "new", frozenset({UUIDS[2]}))),
        ("two", NodeContainer("gone", "orphan", frozenset({UUIDS[3]}))),
        ("two", NodeContainer("without", "", frozenset())),
    ]
    ran = [
        {**task("s", "running"), "ID": "new"},
        {**task("s", "orphaned"), "ID": "orphan"},
    ]
    found = outsiders_of(beside_tasks(containers, ran), NODES)
    assert {(each.name, *each.gpus) for each in found} == {
        ("by-hand (one)", UUIDS[0]),
        ("left (one)", UUIDS[1]),
        ("gone (two)", UUIDS[3]),
    }


def test_a_service_that_reserves_more_than_its_lease_holds_that_too():
    made = service("s", [UUIDS[0]])
    ran = task("s", "running", kind_of(UUIDS[0]), kind_of(UUIDS[2]))
    assert held([made], [ran]) == {UUIDS[0], UUIDS[2]}


@given(st.text(max_size=30))
def test_an_end_that_somebody_wrote_by_hand_changes_nothing(text):
    made = service("s", [UUIDS[0]])
    made["Spec"]["Labels"][LABEL_END] = text
    assert len(read([made], [], OF_NODE).servers) == 1


def test_an_end_is_read_back():
    made = service("s", [UUIDS[0]])
    made["Spec"]["Labels"][LABEL_END] = json.dumps({"at": 1, "boot": "", "until": 2e9})
    assert abs(read([made], [], OF_NODE).ends["s"].until - 2e9) < 5


# -- Tasks ---------------------------------------------------------------------------------------


def test_what_a_task_waits_for():
    others = "scheduling constraints not satisfied on 2 nodes"
    contested = f"no suitable node (insufficient resources on 1 node; {others})"
    assert task_states.is_contested(task("s", "pending", error=contested))
    assert not task_states.is_refused(task("s", "pending", error=contested))
    drained = f"no suitable node (1 node not available for new tasks; {others})"
    assert task_states.is_refused(task("s", "pending", error=drained))
    assert not task_states.is_contested(task("s", "running", error=contested))
    assert "docker node ls" in task_states.explain_refusal(
        task("s", "pending", error=drained), "one"
    )
    missing = task("s", "rejected", error="No such image: nobody/nothing:1")
    said = task_states.explain_refusal(missing, "one")
    assert said.startswith("The image isn't on the machine: No such image")
    assert LOG.say(said).startswith("The image isn't on machine one: No such image")


def test_the_engine_s_own_words_name_no_machine_to_users():
    refused = task("s", "rejected", error="dial tcp: lookup nowhere on ATLAS-7: no such host")
    said = task_states.explain_refusal(refused, "atlas-7")
    assert "atlas" not in said.lower()
    assert "lookup nowhere on ATLAS-7" in LOG.say(said)


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("complete", 0, "shut down from within"),
        ("failed", 3, "exit 3"),
        ("failed", 137, "memory of 1 GB"),
        ("shutdown", 143, "stopped or removed"),
        ("orphaned", None, "its machine has been away"),
        ("rejected", None, "stopped or removed"),
    ],
)
def test_why_a_server_has_ended(state, code, words):
    ended = task("s", state)
    ended["Status"]["ContainerStatus"] = {"ExitCode": code}
    assert words in task_states.explain_end(ended, 0.0, "one", 2**30)


def test_the_first_task_is_the_server_whichever_has_changed_last():
    older, newer = task("s", "running", index=12), task("s", "running", index=9)
    newer["CreatedAt"] = "2030-01-31T12:00:01.05Z"
    older["CreatedAt"] = "2030-01-31T12:00:01.005Z"
    assert task_states.first([newer, older]) is older
    assert task_states.first([]) is None


def test_what_swarm_wants_to_end_and_has_not_ended_yet_still_runs():
    ran = {**task("s", "running"), "DesiredState": "shutdown"}
    assert task_states.is_given_up(ran)
    assert not task_states.is_terminal(ran)
    assert not task_states.is_given_up({**ran, "DesiredState": "running"})
    assert not task_states.is_given_up({**task("s", "shutdown"), "DesiredState": "shutdown"})


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (task_states.AWAY, "its machine was out of reach for too long"),
        (task_states.DRAINED, "an administrator has emptied its machine."),
        (task_states.RESTARTED, "restarted it in the Swarm by hand"),
        (task_states.REMOVED, "removed it from the Swarm by hand"),
    ],
)
def test_why_swarm_has_ended_a_server(cause, words):
    for state, code in (("shutdown", 0), ("shutdown", 143), ("failed", 137), ("failed", None)):
        ended = task("s", state)
        ended["Status"]["ContainerStatus"] = {"ExitCode": code}
        assert words in task_states.explain_end(ended, 0.0, "one", 2**30, cause)
    assert words in task_states.explain_end(None, 0.0, "one", 2**30, cause)
    own = task("s", "failed")
    own["Status"]["ContainerStatus"] = {"ExitCode": 3}
    assert "exit 3" in task_states.explain_end(own, 0.0, "one", 2**30, cause)


def test_the_address_is_the_one_in_the_servers_network():
    ran = task("s", "running")
    ran["NetworksAttachments"] = [
        {"Network": {"ID": "a", "Spec": {"Name": "ingress"}}, "Addresses": ["10.0.0.3/24"]},
        {"Network": {"ID": "b", "Spec": {"Name": "hub"}}, "Addresses": ["10.0.1.7/24"]},
    ]
    assert task_states.address_of(ran, "hub") == task_states.address_of(ran, "b") == "10.0.1.7"
    assert task_states.address_of(ran, "other") == ""


# -- Kinds ---------------------------------------------------------------------------------------

MIG = "MIG-9f1b2c3d-0000-0000-0000-000000000000"


def test_a_node_offers_each_of_its_units_as_a_kind_of_its_own():
    units = [
        GPU(UUIDS[0], 0, "T4"),
        GPU(UUIDS[1], 1, "A100", state="mig"),
        GPU(MIG, 1, "A100", kind="1g.5gb", part=0, parts=7, parent=UUIDS[1]),
        *(GPU(UUIDS[2], 2, "A100", kind="shared", part=n, parts=8) for n in range(8)),
        GPU(None, 3, "T4"),
    ]
    assert as_words(offers(units)) == [
        f"{kind_of(UUIDS[0])}=1",
        f"{kind_of(UUIDS[1])}=1",
        f"{kind_of(UUIDS[2])}=8",
        f"{kind_of(MIG)}=1",
    ]


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16))
def test_however_two_hubs_share_a_gpu_swarm_gives_no_more_than_the_whole(offered, one, other):
    kind = kind_of(UUIDS[0])
    whole = reservations([UUIDS[0]], {kind: offered})[kind]
    parts = [
        reservations([f"{UUIDS[0]}#0/{of}"] if of > 1 else [UUIDS[0]], {kind: offered})[kind]
        for of in (one, other)
    ]
    assert whole == offered
    # So many of each fit beside each other.
    for of, part in zip((one, other), parts, strict=True):
        assert offered // part <= of


def test_what_a_node_does_not_offer_is_not_reserved_there():
    with pytest.raises(ValueError, match=UUIDS[1]):
        reservations(UUIDS[:2], {kind_of(UUIDS[0]): 1})


# -- Nodes ---------------------------------------------------------------------------------------


def swarm_node(name: str, **changes: Any) -> Any:
    """A node as the engine lists it, with the GPUs of `NODES`."""
    node = next((each for each in NODES if each.name == name), Node())
    found = {
        "ID": f"id-{name}",
        "Spec": {"Role": "worker", "Availability": "active"},
        "Status": {"State": "ready"},
        "Description": {
            "Hostname": name,
            "Engine": {"EngineVersion": "26.1.5+dfsg1"},
            "Resources": {
                "GenericResources": [
                    {"DiscreteResourceSpec": {"Kind": kind, "Value": number}}
                    for kind, number in offers(node.gpus).items()
                ]
            },
        },
    }
    for path, value in changes.items():
        first, _, second = path.partition("_")
        found[first][second] = value
    return found


def states(*nodes: Any) -> dict[str, list[str]]:
    """Node -> the states of its GPUs."""
    return {
        each.name: [gpu.state for gpu in each.gpus]
        for each in with_swarm(NODES, parse_nodes(nodes))
    }


def test_only_what_inventory_and_swarm_agree_on_is_free():
    one, two = swarm_node("one"), swarm_node("two")
    assert states(one, two) == {"one": ["free", "free"], "two": ["free", "free"]}
    assert states(one) == {"one": ["free", "free"], "two": ["unknown", "unknown"]}
    down = swarm_node("two", Status_State="down")
    assert states(one, down)["two"] == ["unknown", "unknown"]
    drained = swarm_node("two", Spec_Availability="drain")
    assert states(one, drained)["two"] == ["excluded", "excluded"]
    old = swarm_node("two", Description_Engine={"EngineVersion": "24.0.7"})
    assert states(one, old)["two"] == ["excluded", "excluded"]
    silent = swarm_node("two", Description_Resources={})
    assert states(one, silent)["two"] == ["excluded", "excluded"]
    twice = [two, {**two, "ID": "id-other"}]
    assert states(one, *twice)["two"] == ["unknown", "unknown"]
    assert states(one, two, swarm_node("three"))["three"] == []


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("20.10.24+dfsg1", True),
        ("24.0.9", True),
        ("25.0.2", True),
        ("25.0.3", False),
        ("26.1.5+dfsg1", False),
        ("28.5", False),
        ("", True),
    ],
)
def test_an_engine_that_ends_servers_is_refused(version, old):
    assert is_too_old(version) is old
    manager = SwarmNode("m", "one", version=version, is_manager=True)
    if old:
        with pytest.raises(EngineTooOld, match=r"25\.0\.3"):
            check_managers([manager])
    else:
        check_managers([manager])
