"""How a hub on a Docker Swarm knows its machines' GPUs: by their daemons, and by Swarm."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from gpuspawner.backends.swarm import errors
from gpuspawner.backends.swarm.cluster import SwarmNode, disagreements
from gpuspawner.backends.swarm.reader import SwarmReader
from gpuspawner.gpus.allocation import explain_shortage
from gpuspawner.gpus.model import GPU, Node, Request
from gpuspawner.hub.state import _warn_of_gpus
from gpuspawner.i18n.languages import LOG
from gpuspawner.nodes.addresses import (
    FOLDER,
    FOLDER_VARIABLE,
    NodeAddress,
    add_address,
    remove_address,
)
from gpuspawner.nodes.exchange import NodeError
from gpuspawner.nodes.identity import load_or_make
from gpuspawner.nodes.invited import InvitedNodes
from gpuspawner.nodes.last_known import LAST_KNOWN_FILE
from gpuspawner.nodes.oldest_engine import OLDEST
from gpuspawner.nodes.resources import offers
from gpuspawner.simulation import cluster as simulated
from gpuspawner.simulation.state import describe
from gpuspawner.swarm_spawner import GPUSwarmSpawner

from ..support.nodes import NodeDaemon
from ..support.paths import ROOT

TWO = describe([("A100-40GB", 2)])
TWO_MODEL = "NVIDIA A100-SXM4-40GB"
UUIDS = [f"GPU-{n}1b2c3d4-0000-0000-0000-000000000000" for n in range(3)]
GPUS = tuple(GPU(uuid, number, "T4", node="one") for number, uuid in enumerate(UUIDS[:2]))
ONE = Node("one", "570.133.20", "12.8", GPUS)


@pytest.fixture
def daemon(binaries, tmp_path) -> Iterator[NodeDaemon]:
    """A machine's daemon, which the hub whose folder is `hub` may ask."""
    hub = load_or_make(tmp_path / "hub", "hub")
    with NodeDaemon(tmp_path / "atlas", binaries.directory, [hub], TWO) as daemon:
        yield daemon


def inventory_of(folder: Path, **rules: Any) -> InvitedNodes:
    config = Config(GPUSwarmSpawner={"nodes_folder": str(folder), "nvml_timeout": 20})
    # Without a logger of its own it has that of whichever application was made in this process.
    log = logging.getLogger("swarm")
    found = GPUSwarmSpawner(config=config, log=log).make_inventory(rules)
    assert isinstance(found, InvitedNodes)
    return found


def states(nodes: tuple[Node, ...]) -> dict[str, list[str]]:
    return {node.name: [gpu.state for gpu in node.gpus] for node in nodes}


# -- By their daemons ------------------------------------------------------------------------------


async def test_a_spawner_reads_each_machine_that_was_invited_whenever_that_was(daemon, tmp_path):
    read = inventory_of(tmp_path / "hub", excluded=[TWO.gpus[1].uuid])
    assert await read() == ()
    add_address(tmp_path / "hub", daemon.address)
    assert states(await read()) == {"atlas": ["free", "excluded"]}
    remove_address(tmp_path / "hub", "atlas")
    assert await read() == ()


async def test_a_machine_without_a_fresh_answer_is_unknown_and_never_free(daemon, tmp_path):
    add_address(tmp_path / "hub", daemon.address)
    read = inventory_of(tmp_path / "hub")
    assert states(await read()) == {"atlas": ["free", "free"]}
    daemon.kill()
    assert states(await read()) == {"atlas": ["unknown", "unknown"]}
    # A hub that was started since, and has never known them.
    (tmp_path / "hub" / LAST_KNOWN_FILE).unlink()
    assert states(await inventory_of(tmp_path / "hub")()) == {"atlas": []}
    daemon.start()
    assert states(await read()) == {"atlas": ["free", "free"]}


async def test_a_list_that_can_not_be_read_hands_nothing_out_and_the_log_says_so_once(
    daemon, tmp_path, caplog
):
    add_address(tmp_path / "hub", daemon.address)
    read = inventory_of(tmp_path / "hub")
    file = tmp_path / "hub" / "nodes.json"
    text = file.read_text()
    file.write_text("[")
    for _ in range(2):
        with pytest.raises(NodeError) as refused:
            await read()
    # What users read has no path of the hub's.
    assert errors.explain_unknown(refused.value) == (
        "The hub's list of machines can't be read. The hub's log says why, for an administrator. "
        "What can't be read isn't handed out."
    )
    (said,) = [each.getMessage() for each in caplog.records if "isn't a list" in each.getMessage()]
    assert str(file) in said
    file.write_text(text)
    assert states(await read()) == {"atlas": ["free", "free"]}


def test_a_hub_does_not_start_with_machines_that_it_can_not_ask(daemon, tmp_path):
    def refused() -> list[str]:
        traits = {"network_name": "net", "nodes_folder": str(tmp_path / "hub")}
        return list(GPUSwarmSpawner(config=Config(GPUSwarmSpawner=traits)).refused_settings())

    add_address(tmp_path / "hub", daemon.address)
    assert refused() == []
    (tmp_path / "hub" / "identity.pem").chmod(0o644)
    (said,) = refused()
    assert said.startswith("c.GPUSwarmSpawner.nodes_folder = ")
    assert "may be read by others" in said
    (tmp_path / "hub" / "nodes.json").write_text("[")
    (said,) = refused()
    assert "isn't a list of machines" in said


def test_the_folder_is_beside_the_hub_unless_the_environment_names_another(monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert GPUSwarmSpawner().nodes_folder == FOLDER
    monkeypatch.setenv(FOLDER_VARIABLE, "/srv/nodes")
    assert GPUSwarmSpawner().nodes_folder == "/srv/nodes"


# -- And by what Swarm says ------------------------------------------------------------------------


def swarm_node(name: str = "one", offered: Any = None, id: str = "") -> SwarmNode:
    kinds = offers(GPUS) if offered is None else offered
    return SwarmNode(id or name, name, version="26.1.5", offered=kinds)


def kind(number: int) -> str:
    return UUIDS[number].lower()


@pytest.mark.parametrize(
    ("inventory", "nodes", "words"),
    [
        ([ONE], [swarm_node()], []),
        ([ONE], [], ["one was invited and isn't in the Swarm"]),
        ([], [swarm_node()], ["one offers GPUs to the Swarm and wasn't invited"]),
        # Servers without GPUs run on a machine without any, and it needs no daemon for that.
        ([], [swarm_node(offered={})], []),
        ([ONE], [swarm_node(), swarm_node(id="x")], ["2 machines of the Swarm are called one"]),
        ([ONE], [swarm_node(offered={kind(0): 1})], [f"has {kind(1)} and doesn't offer it"]),
        (
            [ONE],
            [swarm_node(offered={**offers(GPUS), kind(2): 1})],
            [f"offers {kind(2)} to the Swarm and doesn't have it"],
        ),
        (
            [ONE],
            [swarm_node(offered={kind(0): 4, kind(1): 1})],
            [f"offers 4 of {kind(0)} to the Swarm, and the hub shares it in 1"],
        ),
        # One that has never answered says nothing of its GPUs: that it is silent is said elsewhere.
        ([Node("one")], [swarm_node()], []),
    ],
)
def test_what_daemons_and_swarm_say_differently_is_named(inventory, nodes, words):
    said = list(disagreements(inventory, nodes))
    assert len(said) == len(words), said
    for sentence, part in zip(said, words, strict=True):
        assert part in sentence


class Inventory:
    """What the nodes' daemons say."""

    lets_go = False

    def __init__(self, *nodes: Node, **containers: Any) -> None:
        self.nodes = nodes
        self.containers = containers

    async def __call__(self) -> tuple[Node, ...]:
        return self.nodes


async def test_the_log_says_once_what_differs_and_again_if_it_comes_back(caplog):
    swarm: list[SwarmNode] = []

    async def listed() -> list[SwarmNode]:
        return swarm

    read = SwarmReader(Inventory(ONE), listed, logging.getLogger("swarm"))
    for expected in (1, 1, None, 2):
        swarm[:] = [swarm_node()] if expected is None else []
        found = await read()
        assert {gpu.state for gpu in found[0].gpus} == ({"free"} if swarm else {"unknown"})
        if expected is not None:
            assert caplog.text.count("one was invited and isn't in the Swarm") == expected


async def test_the_log_says_which_machines_take_no_servers_and_why(caplog):
    swarm = [swarm_node()]

    async def listed() -> list[SwarmNode]:
        return swarm

    read = SwarmReader(Inventory(ONE), listed, logging.getLogger("swarm"))
    await read()
    assert caplog.text == ""
    for changes, words in (
        ({"state": "down"}, "Machine one is down for the Swarm"),
        ({"availability": "drain"}, "docker node update --availability active one"),
        ({"availability": "pause"}, "its availability is pause"),
    ):
        swarm[:] = [replace(swarm_node(), **changes)]
        for _ in range(2):
            await read()
        assert caplog.text.count(words) == 1
        swarm[:] = [swarm_node()]
        await read()
        caplog.clear()


async def test_a_machine_whose_engine_can_not_be_asked_what_runs_there_gives_no_gpu(caplog):
    async def listed() -> list[SwarmNode]:
        return [swarm_node()]

    inventory = Inventory(ONE, one=None)
    read = SwarmReader(inventory, listed, logging.getLogger("swarm"))
    (node,) = await read()
    assert {gpu.state for gpu in node.gpus} == {"unknown"}
    assert node.gpus[0].reason == "Which containers its machine has can't be read."
    assert list(read.containers()) == []
    inventory.containers = {"one": ()}
    assert {gpu.state for gpu in (await read())[0].gpus} == {"free"}


async def test_a_hub_without_machines_says_how_one_joins_and_not_that_it_has_no_driver(caplog):
    async def listed() -> list[SwarmNode]:
        return [swarm_node(offered={})]

    read = SwarmReader(Inventory(), listed, logging.getLogger("swarm"))
    log = logging.getLogger("hub")
    await _warn_of_gpus(read, None, {}, str, log)  # type: ignore[arg-type]
    assert "Servers get no GPUs: no machine with GPUs answers" in caplog.text


# -- Who names it ----------------------------------------------------------------------------------


def test_its_entry_point_names_it_and_a_simulated_one_has_an_engine_that_it_takes():
    text = (ROOT / "pyproject.toml").read_text()
    (named,) = re.findall(r'^gpu-swarm = "(.*)"$', text, re.MULTILINE)
    assert named == f"{GPUSwarmSpawner.__module__}:{GPUSwarmSpawner.__name__}"
    assert OLDEST[:2] == simulated.OLDEST_ENGINE


# -- What is known of a machine that hasn't answered yet -------------------------------------------


async def test_after_a_restart_of_the_hub_a_silent_machine_has_gpus_that_are_not_known(
    daemon, tmp_path
):
    folder = tmp_path / "hub"
    add_address(folder, daemon.address)
    assert states(await inventory_of(folder)()) == {"atlas": ["free", "free"]}
    daemon.kill()
    (node,) = await inventory_of(folder)()
    assert states((node,)) == {"atlas": ["unknown", "unknown"]}
    assert [gpu.uuid for gpu in node.gpus] == [gpu.uuid for gpu in TWO.gpus]
    assert {gpu.model for gpu in node.gpus} == {TWO_MODEL}
    assert node.driver == TWO.driver
    why = node.gpus[0].reason
    assert why.startswith("The machine doesn't answer. Its GPUs were last known")
    assert LOG.say(why).startswith("Machine atlas doesn't answer. Its GPUs were last known")
    # Who asks for one is told that, and not that there is none.
    said = explain_shortage(Request("plain", 1, TWO_MODEL), node.gpus)
    assert said.endswith("and 0 of 2 are free now (2 in an unknown state).")
    daemon.start()
    assert states(await inventory_of(folder)()) == {"atlas": ["free", "free"]}


async def test_another_machine_of_the_name_has_nothing_of_the_earlier_ones(daemon, tmp_path):
    folder = tmp_path / "hub"
    add_address(folder, daemon.address)
    await inventory_of(folder)()
    daemon.kill()
    add_address(folder, replace(daemon.address, fingerprint="0" * 64))
    assert states(await inventory_of(folder)()) == {"atlas": []}


@pytest.mark.parametrize("state", ["free", "foreign"])
async def test_what_is_written_down_is_never_free(daemon, tmp_path, state):
    folder = tmp_path / "hub"
    add_address(folder, daemon.address)
    await inventory_of(folder)()
    daemon.kill()
    file = folder / LAST_KNOWN_FILE
    assert '"free"' not in file.read_text()
    file.write_text(file.read_text().replace('"unknown"', f'"{state}"'))
    assert states(await inventory_of(folder)()) == {"atlas": []}


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, "[]", '{"nodes": 5}', '{"nodes": [5]}', '{"nodes": [{}]}']
)
async def test_a_broken_file_of_what_was_known_is_as_none(tmp_path, content):
    folder = tmp_path / "hub"
    load_or_make(folder, "hub")
    add_address(folder, NodeAddress("atlas", "127.0.0.1", 1, "0" * 64))
    (folder / LAST_KNOWN_FILE).write_text(content)
    assert states(await inventory_of(folder)()) == {"atlas": []}


async def test_where_it_can_not_be_written_gpus_are_read_all_the_same(daemon, tmp_path, caplog):
    folder = tmp_path / "hub"
    add_address(folder, daemon.address)
    (folder / LAST_KNOWN_FILE).mkdir()
    read = inventory_of(folder)
    assert states(await read()) == {"atlas": ["free", "free"]}
    assert states(await read()) == {"atlas": ["free", "free"]}
    assert caplog.text.count("isn't known after a restart") == 1
