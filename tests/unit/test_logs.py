"""Which end a log gets in the engine's log driver."""

from __future__ import annotations

import docker
import pytest
from docker.types import LogConfig
from traitlets import TraitError

from gpuspawner.backends.docker.container_config import with_log
from gpuspawner.spawner import GPUSpawner

CLIENT = docker.APIClient("tcp://127.0.0.1:9", version="1.41")
THIRTY_MB = {"max-size": "10m", "max-file": "3"}


def logged(driver: str, options: dict[str, str], **host_config: object) -> object:
    """Return the log configuration that a container gets."""
    given = {"image": "x", "host_config": CLIENT.create_host_config(**host_config)}
    before = {"image": "x", "host_config": dict(given["host_config"])}
    made = with_log(given, driver, options)
    assert given == before
    assert {**made["host_config"], "LogConfig": None} == {**given["host_config"], "LogConfig": None}
    return made["host_config"].get("LogConfig")


@pytest.mark.parametrize(
    ("driver", "options", "config"),
    [
        ("json-file", {}, THIRTY_MB),
        ("json-file", {"max-size": "1g"}, {"max-size": "1g", "max-file": "3"}),
        ("json-file", {"tag": "x"}, {**THIRTY_MB, "tag": "x"}),
        ("local", {}, {}),  # ends by itself
        ("local", {"max-size": "1m"}, {"max-size": "1m"}),
        ("journald", {"tag": "{{.Name}}"}, {"tag": "{{.Name}}"}),
        ("none", {}, {}),
    ],
)
def test_a_log_has_an_end_whatever_the_driver(
    driver: str, options: dict[str, str], config: dict[str, str]
) -> None:
    assert logged(driver, options) == {"Type": driver, "Config": config}


def test_where_the_engines_driver_is_not_known_nothing_is_said_of_it() -> None:
    assert logged("", {"tag": "x"}) is None


@pytest.mark.parametrize("given", [LogConfig(type="syslog", config={"tag": "y"}), {"type": "none"}])
def test_what_the_administrators_host_config_says_goes_before(given: object) -> None:
    expected = CLIENT.create_host_config(log_config=given)["LogConfig"]
    assert logged("journald", {"tag": "x"}, log_config=given) == expected


def test_options_are_text_as_the_engine_wants_them() -> None:
    with pytest.raises(TraitError, match="log_options"):
        GPUSpawner(log_options={"max-file": 3})
