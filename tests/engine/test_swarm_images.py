"""Images on the machines of a Swarm: real engines, daemons and a registry."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator

import docker
import docker.errors
import pytest

from gpuspawner.nodes.image_loading import REPOSITORY
from gpuspawner.simulation.state import describe

from ..support import plain_image
from ..support import registry as registries
from ..support.hubs import Hub, until
from ..support.paths import ROOT
from ..support.registry import Registry
from ..support.requirements import cannot
from ..support.swarms import Swarm, open_swarm

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(600)]

A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"
STATES = (describe([("A100-40GB", 1)], "570.133.20"), describe([("T4", 1)], "570.133.20"))
MB = 1_000_000


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    with open_swarm(STATES, tmp_path_factory.mktemp("swarm")) as made:
        yield made


@pytest.fixture(scope="module")
def registry(swarm, tmp_path_factory) -> Iterator[Registry]:
    """A registry at the second machine's own loopback: the first one can't ask it."""
    if not shutil.which(registries.PROGRAM):
        cannot("needs docker-registry (make test installs it)")
    with registries.running(tmp_path_factory.mktemp("registry"), pid_of(swarm, 2)) as running:
        yield running


def plain_with(client: docker.APIClient, name: str, megabytes: int = 0) -> str:
    """Make the plain image anew with so much more in it; return the id."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for file, content in (
            ("Dockerfile", f"FROM {plain_image.IMAGE}\nCOPY more /more\n".encode()),
            ("more", os.urandom(megabytes * MB + 8)),
        ):
            about = tarfile.TarInfo(file)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    context.seek(0)
    built = list(client.build(fileobj=context, custom_context=True, tag=name, decode=True, rm=True))
    assert not [each for each in built if "error" in each], built
    return str(client.inspect_image(name)["Id"])


def has(client: docker.APIClient, name: str) -> bool:
    try:
        client.inspect_image(name)
    except docker.errors.NotFound:
        return False
    return True


def pid_of(swarm: Swarm, node: int) -> int:
    """Return the process of a node's engine, by its number from 1."""
    return int((swarm.cluster.hosts[node - 1].directory / "docker.pid").read_text())


@pytest.fixture
def hub(swarm, registry, tmp_path) -> Iterator[Hub]:
    registry.reset()
    images = {
        "plain": plain_image.IMAGE,
        "pulled": f"{registry.name}/lab/pulled:1",
        "none": f"{registry.name}/lab/none:1",
        "built": "lab/built:1",
    }
    hub = swarm.hub(
        tmp_path / "hub",
        f"c.GPUSwarmSpawner.images = {images!r}",
        'c.DockerSpawner.pull_policy = "ifnotpresent"',
        'c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}',
    )
    try:
        hub.start()
        yield hub
    finally:
        registry.gate.set()
        hub.stop()
        swarm.clear()
        until(lambda: not swarm.running(), "nothing runs any more")


def told(hub: Hub, user: str, until_words: str) -> list[str]:
    """What the progress page has said by the time it says this."""
    said = []
    for event in hub.follow(user):
        said.append(event["message"])
        if until_words in said[-1]:
            return said
    raise AssertionError(said)


def test_a_machine_pulls_an_image_while_the_users_of_it_read_how_far_it_is(swarm, hub, registry):
    name, node = f"{registry.name}/lab/pulled:1", swarm.clients[1]
    plain_with(node, name, 20)
    for event in node.push(name, stream=True, decode=True):
        assert "error" not in event, event
    registries.remove(node, name)
    registry.gate.clear()
    assert hub.spawn("ada", {"image": "pulled", "model": T4}).status_code == 202
    assert told(hub, "ada", "Getting the image: ")[-1].endswith(" MB")
    assert "ada" not in swarm.leased()
    # Who gives up holds nothing, and the pull goes on.
    hub.stop_server("ada")
    assert hub.spawn("ben", {"image": "pulled", "model": T4}).status_code == 202
    told(hub, "ben", "Getting the image: ")
    registry.gate.set()
    until(lambda: hub.ready("ben"), "ben's server is ready", log=hub.log)
    manifests = [each for each in registry.paths if each.startswith("GET") and "manifests" in each]
    assert len(manifests) == 1, manifests
    assert swarm.node_of("ben") == 2
    assert not has(swarm.manager, name)
    hub.stop_server("ben")
    # Now it is there, and nobody asks the registry.
    registry.paths.clear()
    hub.start_server("ben", {"image": "pulled", "model": T4})
    assert registry.paths == []
    hub.stop_server("ben")
    # What can't be had says why, and holds nothing.
    hub.spawn("ada", {"image": "none", "model": T4})
    said = told(hub, "ada", "can't be had")[-1]
    assert "has no such image." in said
    assert "node-2" not in said
    until(lambda: not hub.ready("ada") and swarm.leased() == {}, "nothing is held")
    hub.start_server("ben", {"image": "pulled", "model": T4})


def spread(swarm: Swarm, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `gpuspawner image spread` on the hub's machine."""
    command = [sys.executable, "-m", "gpuspawner", "image", "spread", *words]
    command += ["--hub-folder", str(swarm.cluster.hub_folder)]
    return subprocess.run(
        swarm.cluster.enter(command),
        env={**os.environ, **swarm.cluster.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_image_that_was_built_on_the_hubs_machine_comes_to_the_others(swarm, hub):
    image_id, node = plain_with(swarm.manager, "lab/built:1", 20), swarm.clients[1]
    assert not has(node, image_id)
    hub.spawn("ada", {"image": "built", "model": T4})
    assert "gpuspawner image spread" in told(hub, "ada", "no registry has it")[-1]
    tags = {tag for each in node.images() for tag in each["RepoTags"] or ()}
    sent = spread(swarm, "lab/built:1")
    assert sent.returncode == 0, sent.stderr
    assert "node-1: lab/built:1 is there" in sent.stdout
    assert "node-2: lab/built:1 was sent" in sent.stdout
    assert node.inspect_image(image_id)["Id"] == image_id
    now = {tag for each in node.images() for tag in each["RepoTags"] or ()}
    assert now - tags == {f"{REPOSITORY}:{image_id.partition(':')[2]}"}
    # Not a leftover, and nothing more to do.
    node.prune_images(filters={"dangling": True})
    assert has(node, image_id)
    assert "node-2: lab/built:1 is there" in spread(swarm, "lab/built:1").stdout
    hub.start_server("ada", {"image": "built", "model": T4})
    assert swarm.node_of("ada") == 2


def test_what_can_not_be_spread_is_said(swarm):
    assert "the hub knows no machine 'x'" in spread(swarm, "lab/x:1", "--node", "x").stderr
    missing = spread(swarm, "lab/none:1")
    assert missing.returncode == 1
    assert "lab/none:1 isn't on this machine's Docker Engine" in missing.stderr
    shared = swarm.manager
    image_id = plain_with(shared, "lab/more:1", 5)
    part = swarm.cluster.hosts[1].directory / "engine-part.sock"
    part.rename(part.with_suffix(".away"))
    try:
        failed = spread(swarm, "lab/more:1")
        assert failed.returncode == 1
        assert "! node-2: " in failed.stderr
        assert "node-1: lab/more:1 is there" in failed.stdout
    finally:
        part.with_suffix(".away").rename(part)
    # It goes on where it was.
    assert spread(swarm, "lab/more:1", "--node", "node-2").returncode == 0
    assert has(swarm.clients[1], image_id)


def test_an_image_is_pushed_and_named_by_its_digest(swarm, registry):
    registry.reset()
    node = swarm.clients[1]
    plain_with(node, "lab/pushed:1")
    command = [sys.executable, "-m", "gpuspawner", "image", "push", "lab/pushed:1"]
    command += ["--registry", f"{registry.name}/class"]
    environment = {**os.environ, "DOCKER_HOST": swarm.cluster.hosts[1].docker_host}
    done = subprocess.run(
        command,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digest = registries.digest(registry, "class/lab/pushed", "1")
    assert done.stdout == f"{registry.name}/class/lab/pushed@{digest}\n"
    assert has(node, done.stdout.strip())


@pytest.fixture
def registry_of_both(swarm, tmp_path) -> Iterator[Registry]:
    """A registry that the hub's engine reaches as well."""
    if not shutil.which(registries.PROGRAM):
        cannot("needs docker-registry (make test installs it)")
    (tmp_path / "registry").mkdir()
    with registries.running(tmp_path / "registry", pid_of(swarm, 2)) as running:
        running.open_for(pid_of(swarm, 1))
        yield running


def test_every_machine_runs_what_the_registry_says_and_not_what_it_calls_so(
    swarm, registry_of_both, tmp_path
):
    registry, node = registry_of_both, swarm.clients[1]
    name = f"{registry.name}/lab/both:1"
    right = plain_with(node, name)
    for event in node.push(name, stream=True, decode=True):
        assert "error" not in event, event
    exact = f"{registry.name}/lab/both@{registries.digest(registry, 'lab/both', '1')}"
    registries.remove(node, name)
    # By that name it has another one now.
    wrong = plain_with(node, name)
    assert wrong != right
    hub = swarm.hub(
        tmp_path / "hub",
        f'c.GPUSwarmSpawner.images = {{"both": {name!r}}}',
        'c.DockerSpawner.pull_policy = "ifnotpresent"',
    )

    def started(user: str, model: str, number: int) -> tuple[str, str]:
        """Return by what a new server's service names its image, and which one that is."""
        hub.start_server(user, {"image": "both", "model": model})
        (service,) = swarm.services().values()
        (container,) = swarm.containers(number)
        hub.stop_server(user)
        until(lambda: not swarm.services() and not swarm.running(), "nothing runs")
        return service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], container["ImageID"]

    with swarm.started(hub):
        assert started("ada", T4, 2) == (exact, right)
        assert started("ben", A100, 1) == (exact, right)
        # What it has said holds while it is away.
        registry.faults["manifests"] = registries.refused(503, "UNAVAILABLE", "away")
        assert started("ada", T4, 2) == (exact, right)
    swarm.manager.remove_image(exact, force=True)
    # Whom it has told nothing yet goes by each machine's word, and the log says so.
    with swarm.started(hub):
        assert started("ada", T4, 2) == (wrong, wrong)
        said = f"No registry says to the hub's Docker Engine which image {name} is: "
        assert hub.log().count(said) == 1
