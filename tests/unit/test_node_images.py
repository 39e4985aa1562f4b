"""What nodes say of their images and pulls, over real TLS: daemons that are honest, and others."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.backends.swarm import images
from gpuspawner.backends.swarm.images import ImageError, ensure
from gpuspawner.i18n.languages import LOG
from gpuspawner.image_builder.spreading import Spread, words_of
from gpuspawner.nodes import node_images
from gpuspawner.nodes.client import NodesReader
from gpuspawner.nodes.exchange import NodeError
from gpuspawner.nodes.identity import Identity, load_or_make
from gpuspawner.nodes.node_images import LocalImage, PullRefused
from gpuspawner.simulation.state import describe

from ..support.nodes import NodeDaemon, lying_daemon

# Longer than an answer takes on a machine that is busy.
SECONDS = 20.0
ID, OTHER, DIGEST = (f"sha256:{number * 64}" for number in "123")
NAMED = f"lab@{DIGEST}"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson; json\r\n\r\n"
HALF = {"fraction": 0.5, "sentence": "Getting the image: 50 %, 5.0 of 10.0 MB"}
DONE = {"done": {"id": ID, "digests": []}}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Identity:
    return load_or_make(tmp_path_factory.mktemp("hub"), "hub")


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Identity:
    return load_or_make(tmp_path_factory.mktemp("node"), "node")


Told = list[tuple[float, str]]


async def pulled(hub: Identity, node: Identity, talk: Any) -> tuple[LocalImage | Exception, Told]:
    """What a pull at a daemon returns or raises, and what its user is told meanwhile."""
    told: Told = []
    async with lying_daemon(hub, node, talk) as address:
        reader = NodesReader([address], hub, SECONDS)
        try:
            return await reader.pull("atlas", "lab:1", lambda *each: told.append(each)), told
        except NodeError as error:
            return error, told


def says(*events: Any, ends: bool = True) -> Callable[[bytes, asyncio.StreamWriter], Any]:
    async def talk(_head: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in events]
        writer.write(HEAD + b"".join(line + b"\n" for line in lines))
        await writer.drain()
        if not ends:
            await asyncio.Event().wait()

    return talk


async def test_a_pull_says_how_far_it_is_and_what_it_has_got(hub, node):
    image, told = await pulled(hub, node, says({}, HALF, HALF, {}, DONE))
    assert image == LocalImage(ID)
    assert told == [(HALF["fraction"], HALF["sentence"])]


async def test_progress_never_goes_back(hub, node):
    back = {"fraction": 0.1, "sentence": "Unpacking the image"}
    _, told = await pulled(hub, node, says(HALF, back, DONE))
    assert told == [(0.5, HALF["sentence"]), (0.5, "Unpacking the image")]


LIES: Mapping[str, list[Any]] = {
    "no JSON": [b"{"],
    "deep JSON": [b"[" * 60_000],
    "a line without an end": [b"a" * 10**6],
    "a list": [[1]],
    "done, and no image": [{"done": True}],
    "done, and there is none": [{"done": None}],
    "a name in place of an id": [{"done": {"id": "evil/image:1", "digests": []}}],
    "an id with more": [{"done": {"id": f"{ID}\n", "digests": []}}],
    "digests that are none": [{"done": {"id": ID, "digests": ["lab:1"]}}],
    "digests of any number": [{"done": {"id": ID, "digests": [NAMED] * 1001}}],
    "digests as a text": [{"done": {"id": ID, "digests": NAMED}}],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_about_a_pull_is_said_and_believed_by_nobody(hub, node, lie):
    error, _ = await pulled(hub, node, says(HALF, *LIES[lie]))
    assert LOG.say(str(error)).startswith("What machine atlas says can't be trusted"), error


@pytest.mark.parametrize(
    "event",
    [
        {"fraction": 7, "sentence": "More than all"},
        {"fraction": -1, "sentence": "Less than nothing"},
        {"fraction": "0.5", "sentence": "A text"},
        {"fraction": float("nan"), "sentence": "No number"},
        {"fraction": 0.5, "sentence": {"one": "%(x)999999999s", "values": {}}},
        {"fraction": 0.5, "sentence": 5},
    ],
)
async def test_progress_that_makes_no_sense_is_passed_over(hub, node, event):
    image, told = await pulled(hub, node, says(event, DONE))
    assert (image, told) == (LocalImage(ID), [])


async def test_a_sentence_has_a_size(hub, node):
    _, told = await pulled(hub, node, says({"fraction": 0.5, "sentence": "a" * 5000}, DONE))
    assert [len(words) for _, words in told] == [500]


async def test_a_pull_that_fails_says_why(hub, node):
    error, _ = await pulled(hub, node, says({"error": "It isn't there.", "said": "not\x1b found"}))
    assert isinstance(error, PullRefused)
    assert str(error) == "It isn't there."
    assert error.technical == "not\N{REPLACEMENT CHARACTER} found"
    error, _ = await pulled(hub, node, says({"error": 5}))
    assert LOG.say(str(error)) == "Machine atlas can't get the image."


async def test_a_daemon_that_dies_in_the_middle_of_a_pull_is_said(hub, node):
    error, told = await pulled(hub, node, says(HALF))
    assert LOG.say(str(error)) == "Machine atlas doesn't answer."
    assert told == [(HALF["fraction"], HALF["sentence"])]


@pytest.mark.parametrize("constant", ["SILENCE_SECONDS", "STANDSTILL_SECONDS", "LONGEST_SECONDS"])
async def test_a_daemon_that_hangs_is_not_waited_for(hub, node, monkeypatch, constant):
    monkeypatch.setattr(node_images, constant, 0.2)
    error, _ = await pulled(hub, node, says(HALF, ends=False))
    assert LOG.say(str(error)) == "Machine atlas doesn't answer."


async def repeats(event: Callable[[int], Any], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    number = 0
    while not writer.is_closing():
        number += 1
        writer.write(json.dumps(event(number)).encode() + b"\n")
        await writer.drain()
        await asyncio.sleep(0)


async def test_a_daemon_that_says_the_same_for_ever_is_not_waited_for(hub, node, monkeypatch):
    monkeypatch.setattr(node_images, "STANDSTILL_SECONDS", 0.2)
    monkeypatch.setattr(node_images, "MAX_LINES", 10**9)
    error, _ = await pulled(hub, node, lambda _, writer: repeats(lambda _: HALF, writer))
    assert "its pull doesn't go on" in error.technical


async def test_progress_without_an_end_has_one(hub, node, monkeypatch):
    def creeps(number: int) -> Any:
        return {"fraction": 1 - 1 / (number + 1), "sentence": f"{number} of {number + 1} bytes"}

    monkeypatch.setattr(node_images, "LONGEST_SECONDS", 0.3)
    error, told = await pulled(hub, node, lambda _, writer: repeats(creeps, writer))
    assert LOG.say(str(error)) == "Machine atlas doesn't answer."
    assert told
    monkeypatch.setattr(node_images, "LONGEST_SECONDS", 3600.0)
    monkeypatch.setattr(node_images, "MAX_LINES", 50)
    error, told = await pulled(hub, node, lambda _, writer: repeats(creeps, writer))
    assert len(told) == 50
    assert "has no end" in error.technical


async def test_who_can_not_be_connected_to_is_not_waited_for(hub):
    """As a machine that is cut off: what it is sent, nobody answers."""

    async def silent_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    server = await asyncio.start_server(silent_one, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        address = node_images.NodeAddress("atlas", "127.0.0.1", port, "0" * 64)
        reader = NodesReader([address], hub, 0.2)
        with pytest.raises(NodeError, match=r"^The machine doesn't answer\.$"):
            await reader.pull("atlas", "lab:1", print)


async def told(hub: Identity, node: Identity, found: Any, ask: Callable[[NodesReader], Any]) -> Any:
    """Return what a hub makes of a node's answer."""

    async def talk(_head: bytes, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(found).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()

    async with lying_daemon(hub, node, talk) as address:
        return await ask(NodesReader([address], hub, SECONDS))


async def test_what_a_node_says_of_its_images_is_checked(hub, node):
    def ask(reader: NodesReader) -> Any:
        return reader.images("atlas", ["lab:1"])

    good = {"images": {"lab:1": {"id": ID, "digests": [NAMED]}, "more": 5}}
    assert await told(hub, node, good, ask) == {"lab:1": LocalImage(ID, (NAMED,))}
    for bad in (None, {}, {"images": {}}, {"images": {"lab:1": {"id": "lab", "digests": []}}}):
        with pytest.raises(NodeError, match="can't be trusted"):
            await told(hub, node, bad, ask)


async def test_what_a_node_says_is_left_of_a_doctor_is_checked(hub, node):
    def ask(reader: NodesReader) -> Any:
        return reader.remove_leftovers("atlas")

    assert await told(hub, node, {"left": ["a\x1b", "b"]}, ask) == [
        "a\N{REPLACEMENT CHARACTER}",
        "b",
    ]
    assert len(await told(hub, node, {"left": ["a"] * 1000}, ask)) == 100
    for bad in (None, {}, {"left": None}, {"left": 5}, {"left": [5]}, {"left": {"a": 1}}):
        with pytest.raises(NodeError, match="can't be trusted"):
            await told(hub, node, bad, ask)


# -- The daemon itself: hostile questions ----------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(binaries, hub, tmp_path_factory) -> Iterator[NodeDaemon]:
    """A real one, whose other part doesn't run."""
    folder = tmp_path_factory.mktemp("atlas")
    with NodeDaemon(folder, binaries.directory, [hub], describe([])) as running:
        yield running


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "-x",
        "--help",
        "a b",
        "lab:1\n",
        "../lab",
        "-x/lab",
        "/lab",
        "LAB:1",
        "lab@sha256:1",
        "a" * 513,
        "é",
    ],
)
async def test_a_daemon_gets_nothing_by_what_is_no_reference(daemon, hub, reference):
    with pytest.raises(NodeError) as refused:
        await NodesReader([daemon.address], hub, SECONDS).pull("atlas", reference, print)
    assert "it answers 400" in refused.value.technical


async def test_a_daemon_whose_other_part_is_gone_says_so(daemon, hub):
    reader = NodesReader([daemon.address], hub, SECONDS)
    with pytest.raises(PullRefused, match="that asks Docker doesn't run"):
        await reader.pull("atlas", "lab:1", print)


# -- What a node has to have -----------------------------------------------------------------------


class Node:
    """A node's daemon: what its engine has, and what it gets when it is asked for a name."""

    def __init__(self, has: Mapping[str, LocalImage], gets: Mapping[str, LocalImage]) -> None:
        self.has = has
        self.gets = gets
        self.asked: list[str] = []

    def knows(self, name: str) -> bool:
        return name == "atlas"

    async def images(self, name: str, references: Any) -> Mapping[str, LocalImage | None]:
        return {each: self.has.get(each) for each in references}

    async def pull(self, name: str, image: str, report: Any) -> LocalImage:
        self.asked.append(image)
        if image not in self.gets:
            raise PullRefused("The registry has no such image.", "manifest unknown")
        return self.gets[image]


def finds(image: LocalImage | None, registry: str = "") -> images.ImageNames:
    """What names mean: what the hub's own engine has, and what a registry says."""

    async def find(name: str) -> LocalImage | None:
        return image

    async def resolve(name: str, anew: bool) -> str:
        return registry

    return images.ImageNames(find, resolve)


BUILT, KNOWN = LocalImage(ID), LocalImage(ID, (NAMED, f"else/lab@{OTHER}"))


@pytest.mark.parametrize(
    ("image", "policy", "here", "has", "gets", "asked", "reference"),
    [
        # The hub has it from a registry: that one, by its digest.
        ("lab:1", "ifnotpresent", KNOWN, {NAMED: KNOWN}, {}, [], NAMED),
        ("lab:1", "ifnotpresent", KNOWN, {ID: BUILT}, {}, [], ID),
        (
            "lab:1",
            "ifnotpresent",
            KNOWN,
            {"lab:1": LocalImage(OTHER)},
            {NAMED: KNOWN},
            [NAMED],
            NAMED,
        ),
        # It was built there: by its id, and no other one of that name.
        ("lab:1", "ifnotpresent", BUILT, {ID: BUILT, "lab:1": LocalImage(OTHER)}, {}, [], ID),
        # The hub hasn't got it: each node has its own.
        ("lab:1", "ifnotpresent", None, {"lab:1": LocalImage(OTHER)}, {}, [], OTHER),
        ("lab:1", "ifnotpresent", None, {}, {"lab:1": LocalImage(OTHER)}, ["lab:1"], OTHER),
        ("lab:1", "never", None, {"lab:1": LocalImage(OTHER)}, {}, [], OTHER),
        # The newest, whatever the hub has.
        ("lab:1", "always", KNOWN, {NAMED: KNOWN}, {"lab:1": LocalImage(OTHER)}, ["lab:1"], OTHER),
        # By digest or id.
        (NAMED, "ifnotpresent", None, {NAMED: KNOWN}, {}, [], NAMED),
        (NAMED, "ifnotpresent", BUILT, {ID: BUILT}, {}, [], ID),
        (NAMED, "always", None, {}, {NAMED: KNOWN}, [NAMED], NAMED),
        (ID, "always", None, {ID: BUILT}, {}, [], ID),
    ],
)
async def test_what_a_node_has_or_gets(image, policy, here, has, gets, asked, reference):
    one = Node(has, gets)
    assert await ensure(one, "atlas", image, policy, finds(here), print) == reference
    assert one.asked == asked


@pytest.mark.parametrize(
    ("policy", "has", "gets", "asked", "reference"),
    [
        # Not what the machine calls so.
        ("ifnotpresent", {"lab:1": LocalImage(OTHER)}, {NAMED: KNOWN}, [NAMED], NAMED),
        ("always", {"lab:1": LocalImage(OTHER)}, {NAMED: KNOWN}, [NAMED], NAMED),
        ("skip", {"lab:1": LocalImage(OTHER)}, {}, [], NAMED),
        # What it has it needn't get, also where it is to be the newest.
        ("ifnotpresent", {NAMED: KNOWN}, {}, [], NAMED),
        ("always", {NAMED: KNOWN}, {}, [], NAMED),
        # Then no registry is asked.
        ("never", {"lab:1": LocalImage(OTHER)}, {}, [], OTHER),
    ],
)
async def test_what_the_hub_s_engine_lacks_is_what_the_registry_says(
    policy, has, gets, asked, reference
):
    one = Node(has, gets)
    assert await ensure(one, "atlas", "lab:1", policy, finds(None, NAMED), print) == reference
    assert one.asked == asked


async def test_who_has_got_another_image_than_the_registry_says_is_found_out():
    liar = Node({}, {NAMED: LocalImage(OTHER)})
    with pytest.raises(ImageError, match="has got another image than lab:1"):
        await ensure(liar, "atlas", "lab:1", "ifnotpresent", finds(None, NAMED), print)


class Registry:
    """What a registry says to the hub's engine, and how often it is asked."""

    def __init__(self, *says: str | Exception) -> None:
        self.says = list(says)
        self.asked = 0

    async def __call__(self, image: str) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        said = self.says[min(self.asked, len(self.says)) - 1]
        if isinstance(said, Exception):
            raise said
        return said


AWAY = RuntimeError("503: away\nnode-1 forged")
LOG_OF_DIGESTS = logging.getLogger("digests")


async def test_a_registry_is_asked_once_for_all_and_is_right_from_then_on():
    registry = Registry(DIGEST, OTHER)
    digests = images.RegistryDigests(registry, LOG_OF_DIGESTS)
    found = await asyncio.gather(*(digests.of("reg:5000/lab:1", anew) for anew in (True, False)))
    assert found == [f"reg:5000/lab@{DIGEST}"] * 2
    assert registry.asked == 1
    assert await digests.of("reg:5000/lab:1", False) == f"reg:5000/lab@{DIGEST}"
    assert registry.asked == 1


async def test_where_the_newest_is_wanted_a_registry_is_asked_anew(monkeypatch):
    monkeypatch.setattr(images, "FRESH_SECONDS", 0.0)
    digests = images.RegistryDigests(Registry(DIGEST, OTHER), LOG_OF_DIGESTS)
    assert await digests.of("lab:1", True) == NAMED
    assert await digests.of("lab:1", True) == f"lab@{OTHER}"
    # All go by that then.
    assert await digests.of("lab:1", False) == f"lab@{OTHER}"


@pytest.mark.parametrize("said", [AWAY, "sha256:short", "lab@evil"])
async def test_a_registry_that_says_nothing_is_told_of_once_and_left_alone(said, caplog):
    registry = Registry(said)
    digests = images.RegistryDigests(registry, LOG_OF_DIGESTS)
    assert [await digests.of("lab:1", True) for _ in range(3)] == ["", "", ""]
    assert registry.asked == 1
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("No registry says to the hub's Docker Engine which image lab:1 is: ")
    assert "Each machine runs what it has by that name" in line
    assert "\n" not in line


async def test_what_a_registry_said_last_holds_while_it_says_nothing(monkeypatch, caplog):
    monkeypatch.setattr(images, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(images, "AGAIN_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    digests = images.RegistryDigests(Registry(DIGEST, AWAY, AWAY, OTHER), LOG_OF_DIGESTS)
    found = [await digests.of("lab:1", True) for _ in range(4)]
    assert found == [NAMED, NAMED, NAMED, f"lab@{OTHER}"]
    warned, again = [each.getMessage() for each in caplog.records]
    assert warned.endswith(f"Machines run what it was before, {NAMED}")
    assert again == "The registry says again which image lab:1 is"


async def test_what_a_registry_said_is_kept_of_no_more_names_than_somebody_may_have_use_for(
    monkeypatch,
):
    monkeypatch.setattr(images, "MAX_NAMES", 2)
    registry = Registry(DIGEST, DIGEST, DIGEST, OTHER)
    digests = images.RegistryDigests(registry, LOG_OF_DIGESTS)
    for name in ("lab:1", "lab:2", "lab:1", "lab:3", "lab:1"):
        assert await digests.of(name, False) == f"lab@{DIGEST}"
    assert registry.asked == 3
    assert await digests.of("lab:2", False) == f"lab@{OTHER}"


async def test_a_registry_that_takes_too_long_says_nothing(monkeypatch):
    monkeypatch.setattr(images, "REGISTRY_SECONDS", 0.05)

    async def hangs(image: str) -> str:
        await asyncio.Event().wait()
        return DIGEST

    assert await images.RegistryDigests(hangs, LOG_OF_DIGESTS).of("lab:1", False) == ""


@pytest.mark.parametrize(
    ("policy", "reference"), [("never", ID), ("ifnotpresent", NAMED), ("skip", NAMED)]
)
async def test_a_machine_without_a_daemon_gets_it_by_its_engine(policy, reference):
    one = Node({}, {})
    assert await ensure(one, "borea", "lab:1", policy, finds(KNOWN), print) == reference
    assert one.asked == []


@pytest.mark.parametrize(
    ("image", "policy", "here", "has", "words"),
    [
        ("lab:1", "never", KNOWN, {"lab:1": LocalImage(OTHER)}, 'pull_policy is "never"'),
        ("lab:1", "ifnotpresent", BUILT, {"lab:1": LocalImage(OTHER)}, "gpuspawner image spread"),
        (ID, "ifnotpresent", None, {}, "no registry has it"),
        ("lab:1", "ifnotpresent", None, {}, "no such image. That is machine atlas."),
    ],
)
async def test_what_a_node_can_not_have_is_said_with_the_machine(image, policy, here, has, words):
    with pytest.raises(ImageError) as failed:
        await ensure(Node(has, {}), "atlas", image, policy, finds(here), print)
    assert words in LOG.say(str(failed.value))
    assert "atlas" not in str(failed.value)
    assert "atlas" in LOG.say(str(failed.value))


async def test_a_node_that_has_got_another_image_is_found_out():
    liar = Node({}, {NAMED: LocalImage(OTHER, (f"lab@{OTHER}",))})
    with pytest.raises(ImageError, match="has got another image than lab:1") as failed:
        await ensure(liar, "atlas", "lab:1", "ifnotpresent", finds(KNOWN), print)
    assert OTHER in failed.value.said


async def test_a_name_with_a_port_has_its_own_digest_taken():
    found = LocalImage(ID, (f"a/lab@{OTHER}", f"reg:5000/lab@{DIGEST}"))
    for name in ("reg:5000/lab:1", "reg:5000/lab"):
        about = await images.wanted(name, "ifnotpresent", finds(found))
        assert about.source == f"reg:5000/lab@{DIGEST}"


# -- Where it is already ---------------------------------------------------------------------------


class Nodes(Node):
    """Several nodes, of which some have the image, and one says nothing."""

    def knows(self, name: str) -> bool:
        return name != "guest"

    async def images(self, name: str, references: Any) -> Mapping[str, LocalImage | None]:
        self.asked.append(name)
        if name == "silent":
            await asyncio.Event().wait()
        if name == "broken":
            raise NodeError("It is broken.", "broken")
        return dict.fromkeys(references, BUILT if name == "has" else None)


async def test_the_nodes_that_have_an_image_are_known_and_nobody_waits_for_the_others(monkeypatch):
    monkeypatch.setattr(images, "WAIT_SECONDS", 0.2)
    nodes, places = Nodes({}, {}), images.ImagePlaces(finds(BUILT))
    names = ["has", "hasn't", "broken", "silent", "guest"]
    for _ in range(2):
        assert await places.nodes_with(nodes, names, "lab:1", "ifnotpresent") == {"has"}
    # What was asked a moment ago isn't asked again.
    assert sorted(nodes.asked) == sorted(names[:-1])
    monkeypatch.setattr(images, "PLACES_SECONDS", 0.0)
    assert await places.nodes_with(nodes, ["has", "hasn't"], "lab:1", "ifnotpresent") == {"has"}
    assert len(nodes.asked) == 6


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("has", "1 of 1 images that are built here"),
        ("hasn't", "0 of 1 images that are built here, without lab:1: gpuspawner image spread"),
        ("broken", "its images aren't known: broken"),
    ],
)
async def test_status_says_which_images_a_node_has(node, words):
    reader: Any = Nodes({}, {})
    assert await words_of(reader, node, [Spread("lab:1", ID, 1)]) == words
    assert await words_of(reader, node, []) == ""


async def test_who_looks_on_reads_which_images_each_node_has_and_hardly_waits(monkeypatch):
    monkeypatch.setattr(images, "WAIT_SECONDS", 0.2)
    nodes, there = Nodes({}, {}), images.CatalogueOnNodes(finds(BUILT))
    names = ["has", "hasn't", "broken", "silent", "guest"]
    known = await there.known(nodes, names, ["lab:1", "lab:2"], "ifnotpresent")
    assert known == {
        "has": {"lab:1", "lab:2"},
        "hasn't": frozenset(),
        "broken": None,
        "silent": None,
        "guest": None,
    }
    # One question for a node whatever there is in the catalogue, and none while one is under way.
    assert sorted(nodes.asked) == sorted(names[:-1])
    assert await there.known(nodes, names, ["lab:1", "lab:2"], "ifnotpresent") == known
    assert sorted(nodes.asked) == sorted(names[:-1])


async def test_what_a_node_has_is_asked_again_once_it_is_old(monkeypatch):
    node, there = Node({ID: BUILT}, {}), images.CatalogueOnNodes(finds(BUILT))
    assert await there.known(node, ["atlas"], ["lab:1"], "never") == {"atlas": {"lab:1"}}
    node.has = {}
    assert await there.known(node, ["atlas"], ["lab:1"], "never") == {"atlas": {"lab:1"}}
    monkeypatch.setattr(images, "PLACES_SECONDS", 0.0)
    await there.known(node, ["atlas"], ["lab:1"], "never")
    await asyncio.sleep(0.05)
    assert await there.known(node, ["atlas"], ["lab:1"], "never") == {"atlas": frozenset()}
    # One that has left isn't told of.
    assert await there.known(node, [], ["lab:1"], "never") == {}


async def test_where_the_hub_s_own_engine_is_silent_no_node_s_images_are_known():
    async def silent(image: str) -> None:
        raise OSError("no engine")

    there = images.CatalogueOnNodes(images.ImageNames(silent, finds(None).resolve))
    assert await there.known(Nodes({}, {}), ["has"], ["lab:1"], "never") == {"has": None}


async def test_where_there_is_one_machine_nobody_asks_it():
    nodes = Nodes({}, {})
    assert await images.ImagePlaces(finds(BUILT)).nodes_with(nodes, ["has"], "lab:1", "x") == set()
    assert nodes.asked == []


# -- An image that is sent -------------------------------------------------------------------------


class Engine:
    """The other part of a daemon, which takes what it is sent as a test says.

    Args:
        socket: where it answers.
        says: what it says at first, and at the end.
        most: how many bytes it takes before it says `says[-1]` and no more.
    """

    def __init__(self, socket: Path, says: Sequence[Any], most: float = float("inf")) -> None:
        self.socket = socket
        self.says = says
        self.most = most
        self.asked: list[Any] = []
        self.came = b""
        self.broken = 0

    async def __aenter__(self) -> Engine:
        self._server = await asyncio.start_unix_server(self._take, str(self.socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.socket.unlink(missing_ok=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        if request["do"] != "load":
            writer.close()
            return
        self.asked.append(request)
        writer.write(json.dumps(self.says[0]).encode() + b"\n")
        try:
            while "go" in self.says[0] and len(self.came) < self.most:
                length = int.from_bytes(await reader.readexactly(4), "big")
                if not length:
                    break
                self.came += await reader.readexactly(length)
            writer.write(json.dumps(self.says[-1]).encode() + b"\n")
            writer.write_eof()
            while await reader.read(65536):  # as the part itself does: the answer isn't lost
                pass
        except (asyncio.IncompleteReadError, OSError):
            self.broken += 1
        writer.close()


async def in_parts(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        await asyncio.sleep(0)


@pytest.fixture
def socket(daemon) -> Path:
    return daemon.folder / "none.sock"


GO = {"go": True}
PARTS = [bytes([number]) * 300_000 for number in range(20)]


async def test_an_image_that_is_sent_comes_to_the_engine_byte_by_byte(daemon, hub, socket):
    reader = NodesReader([daemon.address], hub, SECONDS)
    async with Engine(socket, [GO, DONE]) as engine:
        assert await reader.load("atlas", ID, 5_000_000, in_parts(*PARTS)) == LocalImage(ID)
    assert engine.asked == [{"do": "load", "id": ID, "size": 5_000_000}]
    assert engine.came == b"".join(PARTS)


async def test_an_image_that_is_there_is_not_sent(daemon, hub, socket):
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        for part in PARTS * 100:
            sent += len(part)
            yield part

    async with Engine(socket, [DONE]) as engine:
        reader = NodesReader([daemon.address], hub, SECONDS)
        assert await reader.load("atlas", ID, 600_000_000, parts()) == LocalImage(ID)
    assert engine.came == b""
    assert sent < 600_000_000


@pytest.mark.parametrize(
    "says", [[{"error": "the disk is full"}], [GO, {"error": "the disk is full"}]]
)
@pytest.mark.parametrize("most", [0, 1_000_000])
async def test_why_an_image_is_not_taken_is_said_before_all_of_it_is_sent(
    daemon, hub, socket, says, most
):
    async with Engine(socket, says, most):
        reader = NodesReader([daemon.address], hub, SECONDS)
        with pytest.raises(NodeError) as refused:
            await reader.load("atlas", ID, 60_000_000, in_parts(*PARTS * 10))
    assert "the disk is full" in refused.value.technical


async def test_an_image_that_is_larger_than_was_said_is_broken_off(daemon, hub, socket):
    async with Engine(socket, [GO, DONE]) as engine:
        reader = NodesReader([daemon.address], hub, SECONDS)
        with pytest.raises(NodeError):
            await reader.load("atlas", ID, 1, in_parts(*PARTS * 4))
    assert len(engine.came) <= node_images.largest_archive(1)


async def test_another_image_than_was_sent_is_not_believed(daemon, hub, socket):
    async with Engine(socket, [GO, {"done": {"id": OTHER, "digests": []}}]):
        reader = NodesReader([daemon.address], hub, SECONDS)
        with pytest.raises(NodeError, match="can't be trusted"):
            await reader.load("atlas", ID, 5_000_000, in_parts(b"x"))


async def test_a_hub_that_leaves_in_the_middle_leaves_nothing_open(daemon, hub, socket):
    reader = NodesReader([daemon.address], hub, SECONDS)
    async with Engine(socket, [GO, DONE]) as engine:

        async def leaves() -> AsyncIterator[bytes]:
            yield b"x"
            while not engine.came:
                await asyncio.sleep(0.01)
            raise RuntimeError("the hub was stopped")

        with pytest.raises(RuntimeError):
            await reader.load("atlas", ID, 5_000_000, leaves())
        while not engine.broken:
            await asyncio.sleep(0.01)
        # What came isn't taken for the whole: the other part hears of no end, and the next one can.
        assert await reader.load("atlas", ID, 5_000_000, in_parts(b"y")) == LocalImage(ID)


@pytest.mark.parametrize("image_id", ["", "lab:1", "sha256:1", f"{ID}\n", "../x"])
@pytest.mark.parametrize("size", [5, 0, -1, 10**14])
async def test_what_is_no_image_is_not_taken(daemon, hub, image_id, size):
    if image_id == "" and size == 5:
        image_id = f"{ID}&size=7&id=lab"
    reader = NodesReader([daemon.address], hub, SECONDS)
    with pytest.raises(NodeError) as refused:
        await reader.load("atlas", image_id, size, in_parts(b"x"))
    assert "it answers 400" in refused.value.technical
