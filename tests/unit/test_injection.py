"""How a server's container is given its GPUs: by CDI or by NVIDIA's hook, as the engine can."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import docker.errors
import pytest
import requests
from traitlets import TraitError

from gpuspawner.backends.docker import errors
from gpuspawner.backends.docker.backend import LOOK_AGAIN_SECONDS, DockerBackend
from gpuspawner.backends.docker.injection import EngineCDI, NoCDI, cdi_of, choose
from gpuspawner.spawner import GPUSpawner

ONE, TWO = (f"GPU-{n}0000000-0000-0000-0000-000000000000" for n in (1, 2))
PART = "MIG-30000000-0000-0000-0000-000000000000"


def listed(*names: str, source: str = "cdi") -> list[dict[str, str]]:
    return [{"Source": source, "ID": f"nvidia.com/gpu={name}"} for name in names]


# What engines say; see `cdi_of`.
BEFORE_25 = {"ServerVersion": "20.10.24+dfsg1", "LoggingDriver": "json-file"}
OFF = {"ServerVersion": "26.1.5", "CDISpecDirs": None}
ON = {"ServerVersion": "26.1.5", "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"]}
NEWER = {**ON, "ServerVersion": "28.5.2"}
LISTS = {**NEWER, "DiscoveredDevices": listed("0", ONE, TWO, PART, "all")}


@pytest.mark.parametrize(
    ("info", "api", "is_on", "devices"),
    [
        (BEFORE_25, "1.41", False, None),
        (OFF, "1.45", False, None),
        (ON, "1.45", True, None),
        # A client that asks in the words of an older version learns neither.
        ({"ServerVersion": "28.5.2"}, "1.41", None, None),
        ({"ServerVersion": "of its own"}, "1.41", None, None),
        ({}, "", None, None),
        (NEWER, "1.51", True, []),
        ({**NEWER, "CDISpecDirs": []}, "1.51", False, []),
        (LISTS, "1.51", True, ["0", ONE, TWO, PART, "all"]),
        ({**NEWER, "DiscoveredDevices": listed("0", source="other")}, "1.51", True, []),
        ({**NEWER, "DiscoveredDevices": None}, "1.51", True, []),
    ],
)
def test_what_an_engine_says_of_cdi(
    info: dict[str, Any], api: str, is_on: bool | None, devices: list[str] | None
) -> None:
    names = None if devices is None else frozenset(f"nvidia.com/gpu={each}" for each in devices)
    assert cdi_of(info, api) == EngineCDI(is_on, names)


def engine(*devices: str, is_on: bool | None = True) -> EngineCDI:
    return EngineCDI(is_on, frozenset(f"nvidia.com/gpu={each}" for each in devices))


@pytest.mark.parametrize(
    ("wanted", "says", "uuids", "way"),
    [
        ("auto", engine(ONE, TWO), [ONE, TWO], "cdi"),
        ("auto", engine(PART), [PART], "cdi"),
        # Of all or by the hook: not one GPU by each.
        ("auto", engine(ONE), [ONE, TWO], "hook"),
        ("auto", engine("0", "all"), [ONE], "hook"),
        ("auto", engine(), [ONE], "hook"),
        ("auto", EngineCDI(True, None), [ONE], "hook"),
        ("auto", EngineCDI(False, None), [ONE], "hook"),
        ("auto", EngineCDI(), [ONE], "hook"),
        ("hook", engine(ONE), [ONE], "hook"),
        ("cdi", engine(ONE), [ONE], "cdi"),
        # It may have them, and says so at the start.
        ("cdi", EngineCDI(True, None), [ONE], "cdi"),
        ("cdi", EngineCDI(), [ONE], "cdi"),
        # Who gets none is kept from nothing.
        ("cdi", EngineCDI(False, None), [], "hook"),
        ("auto", engine(ONE), [], "hook"),
    ],
)
def test_the_way_is_the_engines_or_the_configured_one(
    wanted: str, says: EngineCDI, uuids: list[str], way: str
) -> None:
    assert choose(wanted, says, uuids) == way


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (EngineCDI(False, None), ["knows no CDI", "from Docker 25 on"]),
        (engine(ONE, is_on=False), ["knows no CDI"]),
        (engine(ONE), [f"no device nvidia.com/gpu={TWO}", "sudo nvidia-ctk cdi generate"]),
        (engine("0", "1"), [f"no device nvidia.com/gpu={ONE}"]),
    ],
)
def test_where_only_cdi_is_wanted_and_is_not_there_the_sentence_says_what_to_do(
    says: EngineCDI, words: list[str]
) -> None:
    with pytest.raises(NoCDI) as error:
        choose("cdi", says, [ONE, TWO])
    assert "c.GPUSpawner.gpu_injection" in str(error.value)
    for each in words:
        assert each in str(error.value)


def test_the_trait_takes_three_words() -> None:
    assert GPUSpawner.gpu_injection.default_value == "auto"
    spawner = GPUSpawner(_mock=True, gpu_injection="hook")
    with pytest.raises(TraitError, match="gpu_injection"):
        spawner.gpu_injection = "runtime"


class Asked:
    """An engine's client that counts how often it is asked what the engine is."""

    def __init__(self, said: dict[str, Any], api_version: str = "1.51") -> None:
        self.said: dict[str, Any] | Exception = said
        self.api_version = api_version
        self.times = 0

    def info(self) -> dict[str, Any]:
        self.times += 1
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    def events(self, **_: Any) -> Iterator[Any]:
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


def backend(client: Asked) -> DockerBackend:
    return DockerBackend(lambda: client, logging.getLogger("test"))


@pytest.mark.parametrize("said", [BEFORE_25, OFF, ON, NEWER, LISTS])
async def test_starts_ask_the_engine_once(said: dict[str, Any]) -> None:
    client = Asked(said)
    here = backend(client)
    ways = [here.way_to_gpus("auto", [ONE]) for _ in range(20)]
    assert set(await asyncio.gather(*ways)) == {"cdi" if said is LISTS else "hook"}
    together = client.times
    assert together <= 2  # of many at the same moment, whoever comes during the first
    for _ in range(20):
        await here.way_to_gpus("auto", [ONE])
        await here.default_log_driver()
    assert client.times == together


async def test_the_engine_is_not_asked_where_nothing_depends_on_it() -> None:
    client = Asked(LISTS)
    assert await backend(client).way_to_gpus("hook", [ONE]) == "hook"
    assert await backend(client).way_to_gpus("cdi", []) == "hook"
    assert client.times == 0


async def test_a_specification_that_comes_later_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    client = Asked(NEWER)
    here = backend(client)
    assert await here.way_to_gpus("auto", [ONE]) == "hook"
    client.said = LISTS
    now += LOOK_AGAIN_SECONDS + 1
    assert await here.way_to_gpus("auto", [ONE]) == "cdi"


async def test_nobody_is_refused_for_what_the_engine_has_said_before() -> None:
    """As in the moments after its restart, in which it hasn't read the specification yet."""
    client = Asked(NEWER)
    here = backend(client)
    with pytest.raises(NoCDI):
        await here.way_to_gpus("cdi", [ONE])
    client.said = LISTS
    assert await here.way_to_gpus("cdi", [ONE]) == "cdi"


async def test_an_engine_that_was_restarted_is_asked_anew() -> None:
    client = Asked(OFF, "1.45")
    here = backend(client)
    assert await here.way_to_gpus("auto", [ONE]) == "hook"
    assert await here.default_log_driver() == ""
    client.said, client.api_version = {**LISTS, "LoggingDriver": "local"}, "1.51"
    watcher = here.watch(lambda: None)
    opened = asyncio.Event()
    watcher._notice = opened.set
    watcher.begin()
    await asyncio.wait_for(opened.wait(), 30)
    watcher.end()
    assert await here.way_to_gpus("auto", [ONE]) == "cdi"
    assert await here.default_log_driver() == "local"


async def test_an_answer_of_before_a_restart_is_not_kept() -> None:
    client = Asked(OFF)
    here = backend(client)

    def restarted() -> dict[str, Any]:
        here._info.forget()
        return OFF

    client.info = restarted  # type: ignore[method-assign]
    assert await here.way_to_gpus("auto", [ONE]) == "hook"
    del client.info
    client.said = LISTS
    assert await here.way_to_gpus("auto", [ONE]) == "cdi"


@pytest.mark.parametrize(("wanted", "way"), [("auto", "hook"), ("cdi", "cdi")])
async def test_where_the_engine_does_not_say_the_start_will(wanted: str, way: str) -> None:
    client = Asked(LISTS)
    client.said = requests.exceptions.ReadTimeout()
    here = backend(client)
    assert await here.way_to_gpus(wanted, [ONE]) == way
    client.said = LISTS
    assert await here.way_to_gpus(wanted, [ONE]) == "cdi"


def api_error(words: str) -> docker.errors.APIError:
    response = requests.Response()
    response.status_code = 500
    return docker.errors.APIError("500 Server Error", response, words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ('could not select device driver "cdi" with capabilities: []', "gpu_injection"),
        (
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1",
            "sudo nvidia-ctk cdi generate",
        ),
        (
            "CDI device injection failed: failed to inject devices: failed to stat CDI host device "
            '"/dev/nvidia0": no such file or directory',
            "sudo nvidia-ctk cdi generate",
        ),
        ('could not select device driver "nvidia" with capabilities: [[gpu]]', "Container Toolkit"),
    ],
)
def test_an_engine_that_gives_no_gpus_is_known_by_its_words(words: str, said: str) -> None:
    error = api_error(words)
    assert errors.gives_no_gpus(error)
    assert said in errors.explain(error)


def test_other_failures_are_none_of_that_kind() -> None:
    assert not errors.gives_no_gpus(api_error("network x not found"))
    assert not errors.gives_no_gpus(ConnectionError("could not select device driver"))
