"""Images pulled from a real registry by a real engine, for users of a real hub."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
import requests

from ..support import registry as registries
from ..support.hubs import IMAGES_OWN, Hub, until
from ..support.looks import container_of, containers
from ..support.registry import Registry
from ..support.requirements import cannot

pytestmark = pytest.mark.engine

# The least that a hub takes for a server: it answers every request, and ends when it is told to.
SERVER = r"""
#include <arpa/inet.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
static void leave(int signal) { (void)signal; _exit(0); }
int main(void) {
    const char *answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8888)};
    char request[8192];
    int yes = 1, listening = socket(AF_INET, SOCK_STREAM, 0);
    signal(SIGTERM, leave);
    signal(SIGPIPE, SIG_IGN);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 64))
        return 1;
    for (;;) {
        int connection = accept(listening, 0, 0);
        if (read(connection, request, sizeof request) > 0 &&
            write(connection, answer, strlen(answer)) < 0)
            continue;
        close(connection);
    }
}
"""
MB = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> bytes:
    """A program that needs nothing in its container but itself."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "server.c").write_text(SERVER)
    subprocess.run(["cc", "-static", "-Os", "-o", "server", "server.c"], cwd=folder, check=True)
    return (folder / "server").read_bytes()


@pytest.fixture(scope="module")
def _registry(host, tmp_path_factory) -> Iterator[Registry]:
    if not shutil.which(registries.PROGRAM):
        cannot("needs docker-registry (make test installs it)")
    pid = int((host.directory / "docker.pid").read_text())
    with registries.running(tmp_path_factory.mktemp("registry"), pid) as running:
        yield running


@pytest.fixture
def registry(_registry) -> Iterator[Registry]:
    """A registry without faults, whose gate is open."""
    _registry.reset()
    yield _registry
    _registry.reset()


@pytest.fixture(scope="module")
def _pushed(_registry, host, server) -> str:
    reference = f"{_registry.name}/lab/torch"
    files = [{"server": server}, {"data": os.urandom(20 * MB)}, {"more": os.urandom(10 * MB)}]
    with closing(docker.APIClient(host.docker_host, version="auto", timeout=60)) as client:
        registries.push(client, f"{reference}:1", files, 'CMD ["/server"]')
    return reference


@pytest.fixture
def image(registry, engine, _pushed) -> Iterator[str]:
    """A server's image of 30 MB in the registry, which the engine hasn't: its name without tag.

    What a test pulled is removed afterwards.
    """
    registry.paths.clear()
    yield _pushed
    registry.gate.set()
    for each in engine.images():
        names = [*(each["RepoTags"] or []), *(each["RepoDigests"] or [])]
        if any(name.startswith(registry.name) for name in names):
            for container in engine.containers(all=True, filters={"ancestor": each["Id"]}):
                engine.remove_container(container["Id"], force=True)
            engine.remove_image(each["Id"], force=True)


# Read at each spawn: what those have who are in the group.
OVERRIDES = """
import json, pathlib
file = pathlib.Path("overrides.json").absolute()
c.JupyterHub.load_groups = {"lab": {"users": []}}
c.Spawner.group_overrides = lambda spawner: json.loads(file.read_text())
"""


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image, host, tmp_path_factory) -> Iterator[Hub]:
    hub = hubs_of_run(
        IMAGES_OWN,
        "c.GPUSpawner.images = {}",
        "c.GPUSpawner.default_gpus = 0",
        'c.GPUSpawner.pull_policy = "ifnotpresent"',
        'c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}',
        OVERRIDES,
        environment={**host.environment, "DOCKER_CONFIG": str(tmp_path_factory.mktemp("config"))},
    )
    yield hub
    hub.stop()


@pytest.fixture
def offer(idle_host, _hub) -> Iterator[Callable[..., Hub]]:
    """Let users of a hub choose among images that have to be pulled."""

    def make(images: dict[str, str], **more: str) -> Hub:
        override = {"groups": ["lab"], "spawner_override": {"images": images, **more}}
        (_hub.folder / "overrides.json").write_text(json.dumps({"these images": override}))
        _hub.add_to_group("lab", "ada", "ben", "cleo")
        return _hub

    yield make
    _hub.begin_anew()


class Page:
    """A progress page that is open: its events so far."""

    def __init__(self, hub: Hub, user: str) -> None:
        self.hub, self.user = hub, user
        self.events: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        # A hub that stops ends what it hasn't told to the end.
        with suppress(requests.RequestException):
            for event in self.hub.follow(self.user):
                self.events.append(event)

    def messages(self) -> list[str]:
        return [event["message"] for event in self.events]

    def shows(self, words: str) -> None:
        until(lambda: any(words in each for each in self.messages()), words, log=self.hub.log)

    def last(self) -> dict[str, Any]:
        """Return the last event, when there are no more."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.events[-1]


def present(engine: docker.APIClient, reference: str) -> bool:
    with suppress(docker.errors.NotFound):
        engine.inspect_image(reference)
        return True
    return False


def manifests(registry: Registry) -> int:
    """Return how many pulls came to the registry: each gets one manifest."""
    return len([path for path in registry.paths if path.startswith("GET") and "manifests" in path])


def test_a_pull_is_seen_by_all_who_wait_for_it_and_holds_up_nobody_else(
    offer, registry, engine, image
):
    reference = f"{image}:1"
    hub = offer({"torch": reference, "minimal": "gpuspawner/minimal:py3.11"})
    registry.gate.clear()
    assert hub.spawn("ada", {"image": "torch"}).status_code == 202
    adas = Page(hub, "ada")
    adas.shows("Getting the image: ")
    # Somebody whose image is here starts and stops meanwhile.
    hub.start_server("ben", {"image": "minimal"})
    hub.stop_server("ben")
    # Somebody who wants the same waits for the same pull.
    assert hub.spawn("cleo", {"image": "torch"}).status_code == 202
    cleos = Page(hub, "cleo")
    cleos.shows(" MB")
    late = Page(hub, "ada")
    late.shows(" MB")
    assert not hub.ready("ada")
    registry.gate.set()
    for page in (adas, cleos, late):
        assert page.last()["ready"] is True
        assert "Got the image: 30." in "\n".join(page.messages())
        percents = [event["progress"] for event in page.events]
        assert percents == sorted(percents)
    assert f"Getting the image {reference}. This can take minutes." in adas.messages()
    assert manifests(registry) == 1
    # Who comes late isn't told everything that has been.
    assert len([each for each in late.messages() if each in adas.messages()]) < len(adas.events)
    assert "never retrieved" not in hub.log()


def test_who_gives_up_stops_the_pull_for_nobody(offer, registry, engine, image):
    reference = f"{image}:1"
    hub = offer({"torch": reference})
    registry.gate.clear()
    for user in ("ada", "ben"):
        assert hub.spawn(user).status_code == 202
    page = Page(hub, "ben")
    page.shows(" MB")
    hub.stop_server("ada")
    assert hub.server("ben")["pending"] == "spawn"
    registry.gate.set()
    assert page.last()["ready"] is True
    assert manifests(registry) == 1
    assert len(containers(engine)) == 1
    assert "never retrieved" not in hub.log()


@pytest.mark.thorough
def test_a_pull_that_nobody_waits_for_any_more_goes_on(offer, registry, engine, image):
    reference = f"{image}:1"
    hub = offer({"torch": reference})
    registry.gate.clear()
    assert hub.spawn("ada").status_code == 202
    Page(hub, "ada").shows(" MB")
    hub.stop_server("ada")
    registry.gate.set()
    until(lambda: present(engine, reference), "the image is here", log=hub.log)
    hub.start_server("ada")
    assert manifests(registry) == 1
    assert "never retrieved" not in hub.log()


def test_a_hub_that_ends_while_it_pulls_waits_for_nothing(offer, registry, engine, image, host):
    def ended() -> int:
        return (host.directory / "dockerd.log").read_text().count("context canceled")

    reference = f"{image}:1"
    hub = offer({"torch": reference})
    registry.gate.clear()
    assert hub.spawn("ada").status_code == 202
    Page(hub, "ada").shows(" MB")
    before = ended()
    hub.end()
    until(lambda: ended() > before, "the engine ends the pull with the hub")
    assert not present(engine, reference)
    hub.start()


@pytest.mark.parametrize("kind", ["digest", "no tag", "tag and digest"])
def test_references_with_a_port_or_a_digest_are_pulled_and_run(
    offer, registry, engine, image, kind
):
    digest = registries.digest(registry, "lab/torch", "1")
    if kind == "no tag":
        registries.tag(registry, "lab/torch", "1", "latest")
    reference = {
        "digest": f"{image}@{digest}",
        "tag and digest": f"{image}:1@{digest}",
        "no tag": image,
    }[kind]
    hub = offer({"torch": reference})
    hub.start_server("ada")
    assert engine.inspect_container(container_of(engine, "ada"))["Config"]["Image"] == reference
    hub.stop_server("ada")
    pulled = manifests(registry)
    hub.start_server("ada")  # it is here now
    assert manifests(registry) == pulled


# -- what fails ------------------------------------------------------------------------------------


def failure(hub: Hub, key: str) -> str:
    """Return why a start failed."""
    return hub.failed_start("ada", {"image": key})["message"].removeprefix("Spawn failed: ")


def test_a_failed_pull_says_why(offer, registry, engine, image, host):
    nobody = "127.0.0.1:1"
    plain = registry.open_door(engine_address(host))
    keys = {
        "torch": f"{image}:1",
        "no-tag": f"{image}:9",
        "no-name": f"{registry.name}/nothing:1",
        "nobody": f"{nobody}/torch:1",
        "plain": f"{plain}/lab/torch:1",
    }
    hub = offer(keys)
    known = f"the registry {registry.name}"
    broken = f"{known} is broken: what it sends isn't the image"
    denied = f"{known} has no such image, or an administrator must log in there (`docker login`)"
    log_in = f"{known} refused it; an administrator must log in there (`docker login`)"
    untrusted = (
        "the GPU machine doesn't trust the TLS certificate of the registry {}, or it has none"
    )

    def why(key: str) -> str:
        said = failure(hub, key)
        first = f"The image {keys[key]} can't be had: "
        assert said.startswith(first)
        return said.removeprefix(first).removesuffix(".")

    assert why("no-tag") == f"{known} has no such image"
    assert why("no-name") == f"{known} has no such image"
    assert why("nobody") == f"the registry {nobody} can't be reached from the GPU machine"
    assert why("plain") == untrusted.format(plain)
    for pattern, fault, meaning in (
        ("/v2/", registries.refused(401, "UNAUTHORIZED", "authentication required"), log_in),
        ("/manifests/", registries.refused(403, "DENIED", "denied"), denied),
        ("/manifests/", registries.refused(500, "UNKNOWN", "unknown error"), broken),
        ("/blobs/", registries.refused(404, "BLOB_UNKNOWN", "blob unknown"), broken),
        ("/blobs/", registries.garbled, broken),
    ):
        registry.faults = {pattern: fault}
        assert why("torch") == meaning
    registry.faults = {}
    hub.start_server("ada", {"image": "torch"})


def engine_address(host) -> str:
    """Return the engine's own address, which it doesn't take for a safe one."""
    return str(ipaddress.ip_address(host.hub_ip) + 1)


def test_whoever_logs_in_is_let_in_without_a_restart_of_the_hub(offer, registry, image):
    reference = f"{image}:1"
    secret = base64.b64encode(b"ada:secret").decode()
    registry.login = f"Basic {secret}"

    hub = offer({"torch": reference})
    config = Path(hub.environment["DOCKER_CONFIG"]) / "config.json"

    def log_in(name: str) -> None:
        config.write_text(json.dumps({"auths": {name: {"auth": secret}}}))

    log_in("127.0.0.1:1")
    assert failure(hub, "torch") == (
        f"The image {reference} can't be had: the registry {registry.name} refused it; an "
        "administrator must log in there (`docker login`)."
    )
    log_in(registry.name)
    hub.start_server("ada", {"image": "torch"})
    config.unlink()


def test_a_certificate_that_nobody_vouches_for(offer, registry, image, host, tmp_path):
    address = engine_address(host)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}"),
            *("-keyout", "key", "-out", "certificate"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    door = registry.open_door(address, context)
    hub = offer({"torch": f"{door}/lab/torch:1"})
    assert failure(hub, "torch") == (
        f"The image {door}/lab/torch:1 can't be had: the GPU machine doesn't trust "
        f"the TLS certificate of the registry {door}, or it has none."
    )


def test_no_space_for_the_image(offer, registry, engine, image, host):
    reference = f"{image}:1"
    hub = offer({"torch": reference})
    pid = (host.directory / "docker.pid").read_text()
    # The engine's own mounts only: nobody else sees a small disk there.
    inside = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--"]
    downloads = Path(engine.info()["DockerRootDir"]) / "tmp"
    subprocess.run(
        [*inside, "mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", downloads], check=True
    )
    try:
        assert failure(hub, "torch") == (
            f"The image {reference} can't be had: the GPU machine's disk is full."
        )
    finally:
        subprocess.run([*inside, "umount", downloads], check=True)
    assert "no space left on device" in hub.log()  # the administrator's to read
    hub.start_server("ada")


def test_an_image_that_is_never_pulled_and_is_not_here(offer, registry):
    reference = f"{registry.name}/lab/torch:1"
    hub = offer({"torch": reference}, pull_policy="never")
    assert failure(hub, "torch") == (
        f'The image {reference} isn\'t on the GPU machine, and pull_policy is "never": an '
        "administrator can put it there, with `docker pull` or `gpuspawner image build`."
    )
    assert registry.paths == []


def test_an_engine_that_goes_away_while_it_pulls(offer, registry, engine, image, host):
    reference = f"{image}:1"
    hub = offer({"torch": reference})
    registry.gate.clear()
    assert hub.spawn("ada").status_code == 202
    page = Page(hub, "ada")
    page.shows(" MB")
    host.kill_engine()
    try:
        message = page.last()["message"]
    finally:
        registry.gate.set()
        host.start_engine()
    assert message == (
        "Spawn failed: The Docker Engine of the GPU machine can't be reached. An administrator "
        "can mend it."
    )
    hub.start_server("ada")
