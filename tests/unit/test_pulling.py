"""Getting an image: its progress out of what engines said, one pull for many, and why it failed."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker.errors
import pytest
import requests
import urllib3.exceptions
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.backends.docker.pull import (
    Progress,
    ProgressFilter,
    PullFailed,
    Pulls,
    explain_pull_failure,
    split,
)

RECORDED = Path(__file__).parent / "recorded"
Event = Mapping[str, Any]


def recorded(name: str) -> list[dict[str, Any]]:
    """Read what a Docker Engine said during a pull from a real registry.

    It was 20.10, and 26.1 where the name has "disk-full" or "containerd" in it; the latter with its
    images in containerd's store.
    """
    return [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text().splitlines()]


def told(events: list[Any], seconds: float = 0.1) -> list[tuple[float, str]]:
    """Return what is told of a pull whose events come so many seconds apart."""
    progress, teller, all_told = Progress(), ProgressFilter(), []
    for number, event in enumerate(events):
        progress = progress.after(event)
        if new := teller.next_report(progress, number * seconds):
            all_told.append(new)
    return all_told


def story(events: list[Any], seconds: float = 0.1) -> list[str]:
    """Return the same as lines: percent of the whole, and the words."""
    return [f"{100 * fraction:.0f}: {words}" for fraction, words in told(events, seconds)]


def test_a_pull_is_told_in_percent_and_size_and_then_its_unpacking() -> None:
    assert story(recorded("pull")) == [
        "1: Getting the image: 1 %, 0.6 of 53.0 MB",
        "2: Getting the image: 3 %, 2.1 of 53.0 MB",
        "3: Getting the image: 6 %, 3.6 of 53.0 MB",
        "13: Getting the image: 25 %, 13.4 of 53.0 MB",
        "27: Getting the image: 53 %, 28.1 of 53.0 MB",
        "36: Getting the image: 71 %, 38.1 of 53.0 MB",
        "50: Unpacking the image",
        "70: Unpacking the image: 40 %, 21.3 of 53.0 MB",
        "78: Unpacking the image: 56 %, 30.0 of 53.0 MB",
        "81: Unpacking the image: 62 %, 33.0 of 53.0 MB",
        "100: Unpacking the image: 100 %, 53.0 of 53.0 MB",
    ]


def test_an_engine_that_says_nothing_of_unpacking_is_not_at_0_percent() -> None:
    lines = story(recorded("pull-containerd"))
    # Three layers were under way before the size of the fourth was known.
    assert lines[:3] == [
        "2: Getting the image: 2.1 MB so far",
        "4: Getting the image: 3.1 MB so far",
        "6: Getting the image: 11 %, 6.3 of 53.0 MB",
    ]
    assert lines[-2:] == ["47: Getting the image: 94 %, 50.3 of 53.0 MB", "50: Unpacking the image"]


def test_an_unpacking_that_is_counted_in_seconds_has_no_percent() -> None:
    """So the newer of the engines with containerd's store do."""
    seconds = {"status": "Extracting", "id": "a", "progressDetail": {"current": 3, "units": "s"}}
    events = [layer("a", "Downloading", 9_000_000, 9_000_000), seconds]
    assert story(events, 100) == ["50: Unpacking the image"]
    assert story([*events, layer("a", "Pull complete")])[-1] == (
        "100: Unpacking the image: 100 %, 9.0 of 9.0 MB"
    )


def test_a_download_that_breaks_off_is_told_and_goes_on_where_it_was() -> None:
    lines = story(recorded("pull-broken-off"))
    assert "31: Getting the image: 62 %, 33.2 of 53.0 MB (the registry failed, trying again)" in (
        lines
    )
    assert lines[-1] == "100: Unpacking the image: 100 %, 53.0 of 53.0 MB"


ALL = ["pull", "pull-broken-off", "pull-containerd", "pull-garbled", "pull-disk-full"]


def numbers(words: str) -> tuple[bool, list[float]]:
    """Return whether it is about unpacking, and the percent and the size in MB."""
    unpacking, figures = words.startswith("Unpacking"), words.partition(":")[2]
    return unpacking, [float(each) for each in re.findall(r"[\d.]+", figures)]


def assert_never_back(lines: list[tuple[float, str]]) -> None:
    fractions = [fraction for fraction, _ in lines]
    assert fractions == sorted(fractions)
    assert not fractions or 0 <= fractions[0] <= fractions[-1] <= 1
    phases = [words.startswith("Unpacking") for _, words in lines]
    assert phases == sorted(phases)
    for phase in (False, True):
        figures = [numbers(words)[1] for _, words in lines if numbers(words)[0] == phase]
        percents = [each[0] for each in figures if len(each) == 3]
        assert percents == sorted(percents)
        assert all(percent <= 100 for percent in percents)


@pytest.mark.parametrize("name", ALL)
def test_no_number_ever_goes_back(name: str) -> None:
    assert_never_back(told(recorded(name), 100))
    assert len(told(recorded(name), 100)) >= 4


@st.composite
def wild_events(draw: st.DrawFn) -> list[Event]:
    statuses = st.sampled_from(
        [
            "Pulling fs layer",
            "Waiting",
            "Downloading",
            "Retrying in 5 seconds",
            "Verifying Checksum",
            "Download complete",
            "Extracting",
            "Pull complete",
            "Already exists",
            "Digest: sha256:0",
        ]
    )
    size = st.integers(0, 5 * 10**9)
    detail = st.one_of(
        st.none(),
        st.just({}),
        st.fixed_dictionaries({"current": size}),
        st.fixed_dictionaries({"current": size, "total": size}),
        st.fixed_dictionaries({"current": size, "units": st.just("s")}),
    )
    event = st.fixed_dictionaries(
        {"status": statuses, "id": st.sampled_from("abcd"), "progressDetail": detail}
    )
    return draw(st.lists(event, max_size=40))


@given(wild_events())
def test_whatever_an_engine_says_no_number_goes_back(events: list[Event]) -> None:
    assert_never_back(told(events, 100))


def layer(name: str, status: str, current: int = 0, total: int = 0) -> Event:
    detail = {"current": current, "total": total} if total else {}
    return {"id": name, "status": status, "progressDetail": detail}


def test_layers_that_are_here_already_do_not_count() -> None:
    events = [
        layer("a", "Pulling fs layer"),
        layer("b", "Already exists"),
        layer("c", "Pulling fs layer"),
        layer("c", "Already exists"),
        layer("a", "Downloading", 3_900_000_000, 6_300_000_000),
    ]
    assert story(events) == ["31: Getting the image: 61 %, 3.9 of 6.3 GB"]


def test_while_a_layers_size_is_not_known_there_is_no_percent() -> None:
    events = [
        layer("a", "Pulling fs layer"),
        layer("b", "Pulling fs layer"),
        layer("a", "Downloading", 400_000, 4_000_000),
        layer("a", "Downloading", 2_000_000, 4_000_000),
        layer("b", "Downloading", 1, 4_000_000),
    ]
    assert story(events) == [
        "12: Getting the image: 2.0 MB so far",
        "13: Getting the image: 25 %, 2.0 of 8.0 MB",
    ]


def test_an_image_that_is_here_is_not_told_of() -> None:
    events = [
        {"status": "Pulling from lab/torch", "id": "2.7"},
        layer("a", "Already exists"),
        {"status": "Digest: sha256:0"},
        {"status": "Status: Image is up to date for lab/torch:2.7"},
    ]
    assert story(events) == []


def test_what_changes_little_is_told_every_ten_seconds() -> None:
    """A page keeps every line that it is sent."""
    total = 60_000_000_000
    events = [layer("a", "Downloading", now * 100_000_000, total) for now in range(1, 600)]
    assert len(story(events, 0.25)) == 50  # 2 % of the download are 1 % of all
    assert len(story(events, 5)) == 301
    assert story(events, 0.25)[:2] == [
        "0: Getting the image: 0 %, 0.1 of 60.0 GB",
        "1: Getting the image: 2 %, 1.2 of 60.0 GB",
    ]


def test_a_layer_that_is_named_late_takes_back_no_percent() -> None:
    events = [
        layer("a", "Downloading", 5_000_000, 10_000_000),
        layer("b", "Downloading", 0, 90_000_000),
        layer("b", "Downloading", 50_000_000, 90_000_000),
    ]
    assert story(events) == [
        "25: Getting the image: 50 %, 5.0 of 10.0 MB",
        "28: Getting the image: 55 %, 55.0 of 100.0 MB",
    ]


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("debian", ("debian", "latest")),
        ("lab/torch:2.7", ("lab/torch", "2.7")),
        ("host:5000/name", ("host:5000/name", "latest")),
        ("host:5000/name:1", ("host:5000/name", "1")),
        ("name@sha256:0123", ("name", "sha256:0123")),
        ("host:5000/name@sha256:0123", ("host:5000/name", "sha256:0123")),
        ("host:5000/name:1@sha256:0123", ("host:5000/name:1", "sha256:0123")),
    ],
)
def test_a_reference_is_taken_apart_where_the_engine_does(
    reference: str, parts: tuple[str, str]
) -> None:
    assert split(reference) == parts


HERE, HUB = "the registry 10.0.0.9:5000", "the registry docker.io"
NO_SUCH, BROKEN = f"{HERE} has no such image", f"{HERE} is broken: what it sends isn't the image"
LOG_IN = f"{HERE} refused it; an administrator must log in there (`docker login`)"
UNREACHABLE = "{} can't be reached from the GPU machine"
NOT_TRUSTED = f"the GPU machine doesn't trust the TLS certificate of {HERE}, or it has none"
DISK_FULL = "the GPU machine's disk is full"
IMAGE = "10.0.0.9:5000/lab/torch:2.7"


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        # Engine 20.10
        (f"manifest for {IMAGE} not found: manifest unknown: manifest unknown", NO_SUCH),
        ("unauthorized", LOG_IN),
        ("unauthorized: authentication required", LOG_IN),
        ('Head "http://10.0.0.9:5000/v2/lab/torch/manifests/2.7": no basic auth creden', LOG_IN),
        ("denied", LOG_IN),
        (
            "toomanyrequests: slow down",
            f"{HERE} hands out no more for now; it can be tried again later",
        ),
        ("received unexpected HTTP status: 500 Internal Server Error", BROKEN),
        ("error unmarshalling content: invalid character '<' looking for beginning", BROKEN),
        (
            "error pulling image configuration: download failed after attempts=1: unknown blob",
            BROKEN,
        ),
        ("filesystem layer verification failed for digest sha256:6ff1", BROKEN),
        ('Get "https://10.0.0.9:5000/v2/": EOF', BROKEN),
        ('Get "http://10.0.0.9:5000/v2/": dial tcp: connection refused', UNREACHABLE.format(HERE)),
        (
            'Get "https://10.0.0.9:5000/v2/": net/http: request canceled while waiting for '
            "connection (Client.Timeout exceeded while awaiting headers)",
            UNREACHABLE.format(HERE),
        ),
        ("net/http: TLS handshake timeout", UNREACHABLE.format(HERE)),
        ('Get "https://10.0.0.9:5000/v2/": tls: first record does not look like a', NOT_TRUSTED),
        ("http: server gave HTTP response to HTTPS client", NOT_TRUSTED),
        ("x509: certificate signed by unknown authority", NOT_TRUSTED),
        ("write /var/lib/docker/tmp/GetImageBlob123: no space left on device", DISK_FULL),
        (
            "failed to register layer: Error processing tar file(exit status 1): write /a: no "
            "space left on device",
            DISK_FULL,
        ),
        (
            "no matching manifest for linux/amd64 in the manifest list entries",
            "there is none for this machine's processor",
        ),
        (
            "no matching manifest for linux/arm64/v8 in the manifest list entries: no match for "
            "platform in manifest: not found",
            "there is none for this machine's processor",
        ),
        (
            "error from registry: You have reached your unauthenticated pull rate limit.",
            f"{HERE} hands out no more for now; it can be tried again later",
        ),
        (
            "invalid reference format: repository name must be lowercase",
            "that isn't an image reference",
        ),
        # Engine 26.1 with containerd's store
        (f'failed to resolve reference "{IMAGE}": {IMAGE}: not found', NO_SUCH),
        (
            f'failed to resolve reference "{IMAGE}": failed to do request: Head '
            '"https://10.0.0.9:5000/v2/x": dial tcp 10.0.0.9:5000: connect: connection refused',
            UNREACHABLE.format(HERE),
        ),
        (
            f'failed to resolve reference "{IMAGE}": unexpected status from HEAD request to '
            "https://10.0.0.9:5000/v2/lab/torch/manifests/2.7: 500 Internal Server Error",
            BROKEN,
        ),
        ("something new.", "something new"),
    ],
)
def test_a_failed_pull_says_why(said: str, meaning: str) -> None:
    error = docker.errors.APIError(said)
    assert explain_pull_failure(IMAGE, error) == f"The image {IMAGE} can't be had: {meaning}."


def test_the_words_of_an_images_name_are_no_reasons() -> None:
    image = "10.0.0.9:5000/lab/certificate-denied:1"
    said = f'failed to resolve reference "{image}": failed to do request: connection refused'
    assert explain_pull_failure(image, docker.errors.APIError(said)).endswith(
        f"{UNREACHABLE.format(HERE)}."
    )


def test_docker_hub_does_not_say_whether_there_is_such_an_image() -> None:
    said = (
        "pull access denied for lab/torch, repository does not exist or may require "
        "'docker login': denied: requested access to the resource is denied"
    )
    assert explain_pull_failure("lab/torch", docker.errors.APIError(said)) == (
        f"The image lab/torch can't be had: {HUB} has no such image, or an administrator must log "
        "in there (`docker login`)."
    )


@pytest.mark.parametrize(
    "name", ["pull-garbled", "pull-disk-full", "pull-containerd-disk-full", "pull"]
)
async def test_what_an_engine_says_last_is_the_reason(name: str) -> None:
    sentences = []
    try:
        await Pulls().pull(IMAGE, lambda *_: recorded(name), lambda *_: None)
    except PullFailed as error:
        sentences = [str(error)]
    meanings = {"pull-garbled": [BROKEN], "pull": []}.get(name, [DISK_FULL])
    assert sentences == [f"The image {IMAGE} can't be had: {meaning}." for meaning in meanings]


# -- one pull for many -----------------------------------------------------------------------------


class Engine:
    """What an engine says while it pulls, word for word as a test lets it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self._said: list[Event] = []
        self._changed = threading.Condition()
        self._ended = False

    def say(self, *events: Event) -> None:
        with self._changed:
            self._said += events
            self._changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        with self._changed:
            self.error, self._ended = error, True
            self._changed.notify_all()

    def stream(self, repository: str, tag: str) -> Iterator[Event]:
        self.asked.append((repository, tag))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._said or self._ended, 20)
                if not self._said:
                    break
                event = self._said.pop(0)
            yield event
        if self.error:
            raise self.error


@pytest.fixture
async def complaints() -> Any:
    """What asyncio has to complain of; there must be none at the end."""
    found: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: found.append(str(about)))
    yield found
    gc.collect()
    await asyncio.sleep(0)
    assert found == []


@pytest.fixture
async def engine() -> Any:
    engine = Engine()
    yield engine
    engine.end()


class Waiter:
    """A spawn that wants an image, and what it is told."""

    def __init__(self, pulls: Pulls, engine: Engine, image: str = "lab/torch") -> None:
        self.lines: list[str] = []
        self.task = asyncio.ensure_future(
            pulls.pull(image, engine.stream, lambda _, words: self.lines.append(words))
        )

    async def has(self, words: str) -> None:
        async def wait() -> None:
            while words not in self.lines:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(wait(), 20)


HALF = layer("a", "Downloading", 5_000_000, 10_000_000)
BEGUN, HALFWAY = (
    "Getting the image lab/torch. This can take minutes.",
    ("Getting the image: 50 %, 5.0 of 10.0 MB"),
)


async def test_several_who_want_one_image_share_its_pull_and_see_it(
    engine: Engine, complaints: Any
) -> None:
    pulls = Pulls()
    first = Waiter(pulls, engine)
    engine.say(HALF)
    await first.has(HALFWAY)
    second = Waiter(pulls, engine, "lab/torch:latest")
    await second.has(HALFWAY)  # and not only what comes later
    assert second.lines[0] == "Getting the image lab/torch:latest. This can take minutes."
    engine.say(layer("a", "Pull complete"))
    engine.end()
    await asyncio.gather(first.task, second.task)
    assert engine.asked == [("lab/torch", "latest")]
    assert first.lines[0] == BEGUN
    assert first.lines[-1] == second.lines[-1] == "Got the image: 10.0 MB"


async def test_who_gives_up_stops_the_pull_for_nobody_else(engine: Engine, complaints: Any) -> None:
    pulls = Pulls()
    first, second = Waiter(pulls, engine), Waiter(pulls, engine)
    engine.say(HALF)
    await first.has(HALFWAY)
    first.task.cancel()
    await asyncio.wait([first.task])
    assert first.task.cancelled()
    engine.say(layer("a", "Pull complete"))
    engine.end()
    await second.task
    assert second.lines[-1] == "Got the image: 10.0 MB"
    assert first.lines[-1] == HALFWAY


async def test_a_pull_that_nobody_waits_for_goes_on_and_is_found_again(
    engine: Engine, complaints: Any
) -> None:
    pulls = Pulls()
    first = Waiter(pulls, engine)
    engine.say(HALF)
    await first.has(HALFWAY)
    first.task.cancel()
    await asyncio.wait([first.task])
    second = Waiter(pulls, engine)
    await second.has(HALFWAY)
    engine.end()
    await second.task
    assert len(engine.asked) == 1


async def test_a_pull_that_fails_when_nobody_waits_is_nobodys_error(
    engine: Engine, complaints: Any
) -> None:
    pulls = Pulls()
    first = Waiter(pulls, engine)
    engine.say(HALF)
    await first.has(HALFWAY)
    first.task.cancel()
    await asyncio.wait([first.task])
    engine.end(docker.errors.APIError("no space left on device"))

    # Who comes later begins anew.
    later = Engine()
    later.end()

    async def try_again() -> None:
        while not later.asked:
            with suppress(PullFailed):
                await Waiter(pulls, later).task

    await asyncio.wait_for(try_again(), 20)


async def test_all_who_wait_are_told_why_it_failed(engine: Engine, complaints: Any) -> None:
    pulls = Pulls()
    waiters = [Waiter(pulls, engine), Waiter(pulls, engine)]
    engine.say({"error": "long", "errorDetail": {"message": "no space left on device"}})
    failed = await asyncio.gather(*[each.task for each in waiters], return_exceptions=True)
    sentence = "The image lab/torch can't be had: the GPU machine's disk is full."
    assert [str(error) for error in failed] == [sentence, sentence]
    assert failed[0] is not failed[1]
    assert isinstance(failed[0], PullFailed)
    assert "no space left" in failed[0].said


@pytest.mark.parametrize(
    "error",
    [
        urllib3.exceptions.ProtocolError("Connection broken: InvalidChunkLength"),
        requests.exceptions.ConnectionError("refused"),
        ConnectionResetError(104, "reset"),
    ],
)
async def test_an_engine_that_goes_away_is_not_the_registrys_fault(
    engine: Engine, error: Exception
) -> None:
    engine.say(HALF)
    engine.end(error)
    with pytest.raises(PullFailed, match=r"^The Docker Engine of the GPU machine can't be reached"):
        await Pulls().pull("lab/torch", engine.stream, lambda *_: None)


# -- whether it is pulled at all -------------------------------------------------------------------


async def ensured(policy: str, *, present: bool) -> list[tuple[str, str]]:
    """Return what was pulled under a policy."""

    async def inspect(image: str) -> None:
        if not present:
            raise docker.errors.ImageNotFound(f"No such image: {image}")

    engine = Engine()
    engine.end()
    await Pulls().ensure("lab/torch:2.7", policy, inspect, engine.stream, lambda *_: None)
    return engine.asked


@pytest.mark.parametrize(
    ("policy", "present", "pulled"),
    [
        ("always", True, True),
        ("always", False, True),
        ("ifnotpresent", True, False),
        ("ifnotpresent", False, True),
        ("never", True, False),
        ("skip", True, False),
        ("skip", False, False),
    ],
)
async def test_the_policy_says_when_an_image_is_pulled(
    policy: str, present: bool, pulled: bool
) -> None:
    assert await ensured(policy, present=present) == [("lab/torch", "2.7")] * pulled


async def test_an_image_that_is_missing_and_never_pulled_is_the_administrators_to_bring() -> None:
    with pytest.raises(PullFailed) as failed:
        await ensured("never", present=False)
    assert str(failed.value) == (
        'The image lab/torch:2.7 isn\'t on the GPU machine, and pull_policy is "never": an '
        "administrator can put it there, with `docker pull` or `gpuspawner image build`."
    )
