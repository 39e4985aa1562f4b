"""Where users' files are on a Swarm: who reads so, and where their servers start."""

from __future__ import annotations

from typing import Any

import pytest
from traitlets.config import Config

from gpuspawner.backends.swarm import homes
from gpuspawner.backends.swarm.homes import homes_of
from gpuspawner.choices.form import page
from gpuspawner.gpus.allocation import choose, choose_node
from gpuspawner.gpus.model import GPU, Holder, Request
from gpuspawner.i18n.languages import ENGLISH, LOG, language_for
from gpuspawner.scheduling.plan import Planner, QueuedRequest
from gpuspawner.swarm_spawner import GPUSwarmSpawner

NFS = {"type": "nfs", "o": "addr=nas", "device": ":/homes/{volume}"}
HOME = {"home_volume": "home-{username}"}


def spawner(**traits: Any) -> GPUSwarmSpawner:
    return GPUSwarmSpawner(config=Config(GPUSwarmSpawner={"network_name": "net", **traits}))


@pytest.mark.parametrize(
    ("traits", "local"),
    [
        ({}, False),
        (HOME, True),
        ({"volumes": {"v-{username}": "/w"}}, True),
        ({"volumes": {"v-{username}": {"bind": "/w", "mode": "rw"}}}, True),
        # In which nobody writes.
        ({"volumes": {"course": {"bind": "/w", "mode": "ro"}}}, False),
        ({"volumes": {"/srv/homes/{username}": "/w"}}, False),
        ({"volumes": {"/srv/homes/{username}": "/w"}, "shared_homes": False}, True),
        ({"volumes": {"/srv/homes/{username}": "/w", "v-{username}": "/v"}}, True),
        ({**HOME, "volume_driver": "local"}, True),
        ({**HOME, "volume_driver": "local", "volume_driver_options": NFS}, False),
        (
            {**HOME, "volume_driver": "local", "volume_driver_options": {**NFS, "type": "cifs"}},
            False,
        ),
        (
            {
                **HOME,
                "volume_driver": "local",
                "volume_driver_options": {"type": "ext4", "device": "/dev/{volume}"},
            },
            True,
        ),
        (
            {
                **HOME,
                "volume_driver": "local",
                "volume_driver_options": {"type": "none", "o": "bind", "device": "/nfs/{volume}"},
            },
            False,
        ),
        ({**HOME, "volume_driver": "rexray"}, False),
        ({**HOME, "volume_driver": "rexray", "shared_homes": False}, True),
        ({**HOME, "shared_homes": True}, False),
        # Where nothing is kept, nothing is missed.
        ({"shared_homes": False}, False),
        ({"mounts": [{"type": "volume", "source": "v", "target": "/w"}]}, True),
    ],
)
def test_the_configuration_says_where_files_are(traits: dict[str, Any], local: bool) -> None:
    found = homes_of(spawner(**traits))
    assert found.local is local
    assert found.why


def test_options_without_a_driver_are_refused() -> None:
    (refused,) = spawner(volume_driver_options=NFS).refused_settings()
    assert "c.GPUSwarmSpawner.volume_driver_options" in refused
    assert "while c.GPUSwarmSpawner.volume_driver is empty" in refused
    assert spawner(volume_driver="local", volume_driver_options=NFS).refused_settings() == []


# -- Where servers start ---------------------------------------------------------------------------


def gpus(node: str, *states: str) -> list[GPU]:
    return [
        GPU(f"GPU-{node}{n}", n, "T4", node=node, state=state)  # type: ignore[arg-type]
        for n, state in enumerate(states)
    ]


@pytest.mark.parametrize("policy", ["pack", "spread"])
@pytest.mark.parametrize(
    ("home", "count", "node"),
    [("b", 1, "b"), ("b", 2, "b"), ("c", 1, "c"), ("c", 2, None), ("gone", 1, None), ("", 1, None)],
)
def test_the_node_with_the_files_comes_before_the_policy(
    policy: str, home: str, count: int, node: str | None
) -> None:
    free = {"a": gpus("a", *["free"] * 3), "b": gpus("b", "free", "free"), "c": gpus("c", "free")}
    usual = choose_node(free, count, policy)
    assert choose_node(free, count, policy, home) == (node or usual)
    every = [gpu for each in free.values() for gpu in each]
    chosen = choose(Request("x", count, home_node=home), every, policy)
    assert chosen
    assert {gpu.node for gpu in chosen} == {node or usual}


@pytest.mark.parametrize("policy", ["pack", "spread"])
def test_the_queue_gives_each_the_node_with_their_files_and_makes_nobody_wait_for_it(
    policy: str,
) -> None:
    every = [*gpus("a", "free", "free"), *gpus("b", "free", "free")]
    waiting = [
        QueuedRequest(Holder(user), Request("x", count, seconds=60.0, home_node=home), since)
        for since, (user, count, home) in enumerate(
            [("ada", 1, "b"), ("ben", 1, "a"), ("eve", 1, "b"), ("dan", 1, "b")]
        )
    ]
    turns = Planner().plan(waiting, every, [], 0.0, policy=policy)
    nodes = {turn.waiting.holder.user: [gpu.node for gpu in turn.gpus] for turn in turns}
    # The last one's files are where nothing is left: they start all the same.
    assert nodes == {"ada": ["b"], "ben": ["a"], "eve": ["b"], "dan": ["a"]}


@pytest.mark.parametrize(("policy", "sizes"), [("pack", (1, 3)), ("spread", (3, 1))])
def test_the_queue_goes_by_files_before_the_policy(policy: str, sizes: tuple[int, int]) -> None:
    every = [*gpus("a", *["free"] * sizes[0]), *gpus("b", *["free"] * sizes[1])]
    for home, node in (("b", "b"), ("", "a")):
        waiting = QueuedRequest(Holder("ada"), Request("x", 1, seconds=60.0, home_node=home), 0.0)
        (turn,) = Planner().plan([waiting], every, [], 0.0, policy=policy)
        assert [gpu.node for gpu in turn.gpus] == [node]


def test_where_files_are_makes_no_other_request_of_one() -> None:
    one, other = Request("x", 1, home_node="a"), Request("x", 1, home_node="b")
    assert one == other
    assert one.accepts == other.accepts


# -- What is said ----------------------------------------------------------------------------------


def test_the_form_says_what_follows_and_names_the_machine_to_administrators() -> None:
    said = homes.words("atlas-7")
    assert said.startswith("Your files are on one of the machines. A server without GPUs starts")
    assert "on another machine you don't see them" in said
    assert "atlas-7" in LOG.say(said)
    for language in (ENGLISH, language_for("zh-CN")):
        shown = page("<p>form</p>", None, language, said)
        assert "atlas" not in shown
        assert 'id="gpuspawner-home"' in shown
    assert "gpuspawner-home" not in page("<p>form</p>", None, ENGLISH, "")
    assert homes.words("").startswith("Your files stay on the machine on which your server starts.")
