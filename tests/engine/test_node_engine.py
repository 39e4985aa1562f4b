"""A machine joins and leaves a Swarm, with real engines; and a hub has its daemon get images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import docker
import docker.errors
import pytest

from gpuspawner.doctor.own_volumes import OWN
from gpuspawner.gpus.model import GPU
from gpuspawner.nodes import engine_config, joining
from gpuspawner.nodes.client import NodesReader
from gpuspawner.nodes.identity import load_or_make
from gpuspawner.nodes.joining import JoinError
from gpuspawner.nodes.node_images import LocalImage, PullRefused
from gpuspawner.nodes.resources import kind_of, offers
from gpuspawner.nodes.services import ServiceError
from gpuspawner.simulation.engine import write_runtime
from gpuspawner.simulation.host import SimulatedHost
from gpuspawner.simulation.programs import SimulationError
from gpuspawner.simulation.state import describe

from ..support import plain_image
from ..support.engine_roots import cache_of, engine_root
from ..support.nodes import NodeDaemon
from ..support.paths import ROOT
from ..support.requirements import cannot

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

STATE = describe([("A100-40GB", 2)])
GPUS = tuple(GPU(each.uuid, index, "A100") for index, each in enumerate(STATE.gpus))
OFFERED = {kind_of(gpu.uuid): 1 for gpu in STATE.gpus}


@dataclass
class Machine:
    """A simulated host with its engine."""

    host: SimulatedHost
    engine: docker.DockerClient

    @property
    def config(self) -> Path:
        return self.host.directory / "daemon.json"

    def restart(self) -> None:
        """As `systemctl restart docker` does."""
        self.host.stop_engine()
        try:
            self.host.start_engine()
        except SimulationError as error:
            raise ServiceError(str(error)) from None

    def address(self) -> str:
        """The engine's, as other machines reach it."""
        info = self.engine.info()
        return str(info["Swarm"]["NodeAddr"])


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    try:
        root, cache = engine_root("trixie"), cache_of("trixie")
        with SimulatedHost(STATE, cache=cache, engine_root=root) as host:
            # The toolkit is there, and nothing in the engine's configuration names it yet.
            write_runtime(host.directory, root)
            engine = docker.DockerClient(base_url=host.docker_host, version="auto", timeout=60)
            with closing(engine):
                plain_image.load(engine.api, tmp_path_factory.mktemp("image"))
                yield Machine(host, engine)
    except SimulationError as error:
        cannot(str(error))


@pytest.fixture
def fresh(machine) -> Iterator[Machine]:
    """The machine, which has joined nothing, and so again afterwards."""
    before = machine.config.read_bytes()
    yield machine
    for container in machine.engine.containers.list(all=True):
        container.remove(force=True)
    with suppress(docker.errors.APIError):  # it is in none
        machine.engine.swarm.leave(force=True)
    engine_config.backup_of(machine.config).unlink(missing_ok=True)
    if machine.config.read_bytes() != before:
        machine.config.write_bytes(before)
        machine.restart()


def image_of(machine: Machine) -> str:
    return str(machine.engine.images.get(plain_image.IMAGE).id)


def test_a_machine_joins_proves_itself_and_leaves(fresh):
    before = fresh.config.read_bytes()
    said: list[str] = []
    # A machine that decides for its own Swarm is all that one machine has of another one.
    fresh.engine.swarm.init(advertise_addr="eth0")
    invitation = joining.swarm_invitation(fresh.engine)
    assert invitation.token.startswith("SWMTKN-")
    assert invitation.managers == (f"{fresh.address()}:2377",)

    plan = joining.make_plan(fresh.engine, fresh.config, GPUS)
    assert plan.restarts
    assert all(f'"{kind}=1"' in "".join(plan.diff) for kind in OFFERED)
    joining.apply_plan(fresh.engine, plan, fresh.restart, said.append)
    info = fresh.engine.info()
    assert joining.offered_now(info) == OFFERED
    assert info["DefaultRuntime"] == "nvidia"
    (node,) = fresh.engine.nodes.list()
    described = node.attrs["Description"]["Resources"]["GenericResources"]
    assert {each["DiscreteResourceSpec"]["Kind"] for each in described} == set(OFFERED)
    # It is in that Swarm already, and so isn't joined again.
    assert not joining.join_swarm(fresh.engine, invitation, "")

    assert joining.prove(fresh.engine, GPUS, image_of(fresh)) == GPUS[0].uuid
    assert fresh.engine.containers.list(all=True) == []
    # Who joins again changes nothing, and so restarts nothing.
    again = joining.make_plan(fresh.engine, fresh.config, GPUS)
    assert not again.restarts
    joining.apply_plan(fresh.engine, again, lambda: pytest.fail("restarted"), said.append)

    with pytest.raises(JoinError, match="decides for the Swarm"):
        joining.leave(fresh.engine, fresh.config, fresh.restart, said.append)
    fresh.engine.swarm.leave(force=True)
    joining.leave(fresh.engine, fresh.config, fresh.restart, said.append)
    assert fresh.config.read_bytes() == before
    assert joining.offered_now(fresh.engine.info()) == {}


def test_where_somebody_works_nothing_is_restarted(fresh):
    before = fresh.config.read_bytes()
    fresh.engine.containers.run(
        plain_image.IMAGE, plain_image.COMMAND, name="jupyter-ann", detach=True
    )
    plan = joining.make_plan(fresh.engine, fresh.config, GPUS)
    with pytest.raises(JoinError, match="would end what runs here: jupyter-ann"):
        joining.apply_plan(fresh.engine, plan, lambda: pytest.fail("restarted"), print)
    assert fresh.config.read_bytes() == before
    with pytest.raises(JoinError, match="jupyter-ann"):
        joining.leave(fresh.engine, fresh.config, lambda: pytest.fail("restarted"), print)


def test_an_engine_that_does_not_start_has_its_configuration_back(fresh):
    before = fresh.config.read_bytes()
    plan = joining.make_plan(fresh.engine, fresh.config, GPUS)
    # As where a flag of its service says something else.
    broken = replace(plan, after={**plan.after, "storage-driver": "no-such"})
    with pytest.raises(JoinError, match="is as it was"):
        joining.apply_plan(fresh.engine, broken, fresh.restart, print)
    assert fresh.config.read_bytes() == before
    assert fresh.engine.ping()
    assert fresh.engine.info()["DefaultRuntime"] == "runc"


@pytest.mark.parametrize("sees", ["all", "none"])
def test_a_machine_whose_containers_see_anything_else_is_not_taken(fresh, sees):
    if sees == "all":
        # As a toolkit does that follows another variable.
        program = fresh.host.directory / "hook" / "runtime.py"
        text = program.read_text()
        broken = text.replace(
            "    hooks = dict(",
            '    config["process"]["env"].append("NVIDIA_VISIBLE_DEVICES=all")\n    hooks = dict(',
        )
        assert broken != text
        program.write_text(broken)
        plan = joining.make_plan(fresh.engine, fresh.config, GPUS)
        joining.apply_plan(fresh.engine, plan, fresh.restart, print)
        try:
            with pytest.raises(JoinError, match=f"was given {GPUS[0].uuid} sees GPU-.*, GPU-"):
                joining.prove(fresh.engine, GPUS, image_of(fresh))
        finally:
            program.write_text(text)
    else:
        # The runtime isn't the default, so nothing gives the container its GPU.
        with pytest.raises(JoinError, match="nvidia-smi"):
            joining.prove(fresh.engine, GPUS, image_of(fresh))
    assert fresh.engine.containers.list(all=True) == []


def test_what_is_offered_is_what_the_hub_reads(fresh):
    assert offers(GPUS) == OFFERED


# -- The part that asks the engine, through the daemon ---------------------------------------------


@pytest.fixture(scope="module")
def asked(machine, tmp_path_factory) -> Iterator[Callable[[], NodesReader]]:
    """Returns a hub's reader of a daemon, whose other part asks the machine's engine."""
    folder = tmp_path_factory.mktemp("node")
    socket = folder / "engine.sock"
    part = subprocess.Popen(
        [sys.executable, "-m", "gpuspawner", "node", "engine", "--socket", str(socket)],
        env={**machine.host.environment, "PYTHONPATH": str(ROOT)},
    )
    hub = load_or_make(folder / "hub", "hub")
    library = machine.host.directory / "nvml"
    try:
        while not socket.exists():
            assert part.poll() is None
        with NodeDaemon(folder / "atlas", library, [hub], STATE, engine_socket=socket) as daemon:
            yield lambda: NodesReader([daemon.address], hub, 60)
    finally:
        part.kill()
        part.wait()


async def test_a_hub_knows_a_nodes_images_by_id(machine, asked):
    reader = asked()
    found = await reader.images("atlas", [plain_image.IMAGE, "gpuspawner-test/none:1", "-x"])
    assert found == {
        plain_image.IMAGE: LocalImage(image_of(machine)),
        "gpuspawner-test/none:1": None,
        "-x": None,
    }


async def test_a_hub_knows_a_nodes_engine(machine, asked):
    reader = asked()
    await reader()
    while reader.reports["atlas"].engine is None:
        await reader()
    assert reader.reports["atlas"].engine == machine.engine.version()["Version"]


async def test_an_image_that_is_there_is_not_pulled_and_one_that_cannot_be_had_says_why(asked):
    reader = asked()
    said: list[tuple[float, str]] = []
    await reader.pull("atlas", plain_image.IMAGE, lambda *told: said.append(told), "ifnotpresent")
    assert said == []
    with pytest.raises(PullRefused, match="can't be reached from the GPU machine") as refused:
        await reader.pull("atlas", "127.0.0.1:1/none:1", lambda *told: said.append(told))
    assert "127.0.0.1:1" in refused.value.technical
    assert said[0][1].startswith("Getting the image 127.0.0.1:1/none:1")


async def test_a_hub_reads_what_the_nodes_doctor_finds(asked):
    found = await asked().doctor("atlas")
    said = {(each["check"], each["state"]) for each in found}
    assert {("Docker Engine", "ok"), ("NVIDIA driver", "ok"), ("GPUs", "ok")} <= said
    # Whoever asks has no container started.
    assert "Container with a GPU" not in {check for check, _ in said}


async def test_a_hub_has_a_node_remove_what_a_doctor_has_left_and_nothing_else(machine, asked):
    own = [f"{OWN}0123456789abcdef", f"{OWN}01234567-1"]
    # What users may be called.
    names = [*own, "home-ada", f"of-{OWN}01234567", f"{OWN}ada", f"{OWN}01234567-ada"]
    for name in names:
        machine.engine.volumes.create(name)
    mounted = {names[1]: {"bind": "/x"}}
    machine.engine.containers.create(plain_image.IMAGE, "/server", name="has-it", volumes=mounted)
    try:
        assert await asked().remove_leftovers("atlas") == [names[1]]
        left = {each.name for each in machine.engine.volumes.list()}
        assert left & {*names} == {*names[1:]}
    finally:
        machine.engine.containers.get("has-it").remove()
        for name in names[1:]:
            machine.engine.volumes.get(name).remove()
