"""What the spawners of one hub share: built once, from the configuration, and closed again."""

from __future__ import annotations

import asyncio
import logging
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dockerspawner import DockerSpawner
from prometheus_client import REGISTRY
from tornado import web
from traitlets.config import Config

from gpuspawner.gpus import missing_driver
from gpuspawner.gpus.model import GPU, Node
from gpuspawner.hub.connections import ENOUGH
from gpuspawner.hub.state import HubState, TroubleLog, build_at_start, build_early, hub_state_of
from gpuspawner.leases.ledger import View
from gpuspawner.spawner import GPUSpawner
from gpuspawner.swarm_spawner import GPUSwarmSpawner


def spawner(settings: dict[str, Any], **traits: Any) -> GPUSpawner:
    """Return the spawner of a user of a hub with these settings."""
    user = SimpleNamespace(name="ada", groups=[], settings=settings)
    return GPUSpawner(user=user, config=Config({"GPUSpawner": {"control_socket": "", **traits}}))


@pytest.fixture
def settings():
    """The settings of a hub's web application, whose state is closed afterwards."""
    found: dict[str, Any] = {}
    yield found
    for state in found.values():
        state.close()


async def test_all_spawners_of_a_hub_have_one_state(settings):
    one, two = spawner(settings), spawner(settings)
    assert isinstance(one.hub_state, HubState)
    assert one.hub_state is two.hub_state is hub_state_of(one)
    assert one.ledger is two.ledger
    assert one.client_kwargs["max_pool_size"] > 1
    assert one.executor is two.executor


async def test_another_hub_of_the_same_process_has_its_own(settings):
    other: dict[str, Any] = {}
    mine, theirs = spawner(settings).hub_state, None
    mine.close()
    try:
        theirs = spawner(other).hub_state
        assert theirs is not mine
    finally:
        if theirs:
            theirs.close()


async def test_a_hub_that_hands_out_no_gpus_says_so_in_its_log(
    settings, tmp_path, monkeypatch, caplog
):
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    (tmp_path / "mountinfo").write_text(
        f"1 2 8:1 /containers/{'5a' * 32}/hosts /etc/hosts rw - x\n"
    )
    monkeypatch.setattr(missing_driver, "MOUNTS", tmp_path / "mountinfo")
    one = spawner(settings)
    one.log = logging.getLogger("a hub of tests")
    assert one.hub_state
    while not (found := [each for each in caplog.messages if "Servers get no GPUs: " in each]):
        await asyncio.sleep(0.01)
    (said,) = found
    assert "container 5a5a5a5a5a5a was given none: start the hub's container with `--gpus" in said


async def test_a_hub_may_have_more_connections_than_one_server_can_open(settings):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        assert spawner(settings).hub_state
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, ENOUGH), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_it_is_closed_by_the_same(settings):
    def gauges() -> list[str]:
        return [each.name for each in REGISTRY.collect() if each.name == "gpuspawner_gpus"]

    assert gauges() == []
    state = spawner(settings).hub_state
    assert gauges() == ["gpuspawner_gpus"]
    state.close()
    assert gauges() == []


async def test_queue_and_services_call_courses_by_their_titles(settings, tmp_path):
    courses = {"ml": {"title": "Machine learning", "group": "g"}, "cv": {"group": "g"}}
    state = spawner(
        settings, courses=courses, usage_db="", control_socket=str(tmp_path / "sock")
    ).hub_state
    assert [state.queue._course_title(key) for key in ("ml", "cv", "gone")] == [
        "Machine learning",
        "cv",
        "gone",
    ]
    where = await state.control.usage()
    assert where["courses"] == {"ml": "Machine learning", "cv": "cv"}


async def test_what_one_user_s_groups_override_is_not_everybody_s(settings):
    one = spawner(settings, queue_length=7, gpu_policy="spread")
    one.group_overrides = {
        "all": {"groups": ["lab"], "spawner_override": {"queue_length": 0, "gpu_policy": "pack"}}
    }
    one.user.groups = [SimpleNamespace(name="lab")]
    one.hub = SimpleNamespace(api_url="http://hub")
    build_early(one)
    await one.apply_group_overrides()
    assert one.queue_length == 0
    assert (settings["gpuspawner"].queue.settings.length, one.hub_state.queue.settings.policy) == (
        7,
        "spread",
    )


def hub(settings: dict[str, Any], cls: type, **traits: Any) -> SimpleNamespace:
    """Return the application of a hub that starts, which has no users."""
    config = Config({"GPUSpawner": {"control_socket": "", **traits}})
    settings.update(spawner_class=cls, config=config)
    return SimpleNamespace(
        tornado_settings=settings,
        tornado_application=web.Application(),
        hub_prefix="/hub/",
        hub=SimpleNamespace(api_url="http://hub"),
        log=logging.getLogger("a hub that starts"),
    )


async def test_a_hub_has_its_state_from_its_start_on_though_nobody_is_there():
    settings: dict[str, Any] = {}
    build_at_start(hub(settings, GPUSpawner, queue_length=7))
    state = settings["gpuspawner"]
    try:
        assert (state.queue.settings.length, state.ledger.hub) == (7, "http://hub")
        assert list(state.spawners) == []
        one = spawner(settings)
        assert one.hub_state is state
        build_at_start(hub(settings, GPUSpawner))
        assert settings["gpuspawner"] is state
    finally:
        state.close()


@pytest.mark.parametrize(("cls", "promised"), [(GPUSpawner, [15]), (GPUSwarmSpawner, [])])
async def test_hours_of_the_courses_file_are_slots_where_the_backend_divides_gpus(
    settings, tmp_path, caplog, cls: type, promised: list[int]
):
    file = tmp_path / "courses.yaml"
    file.write_text(
        "ml:\n"
        "  group: students\n"
        '  reserved: [{begin: "2090-10-02T10:00", end: "12:00", gpus: 4, slots: 15}]\n'
    )
    traits = {"control_socket": "", "hour_limit": 12}
    config = Config({cls.__name__: {**traits, "courses_file": str(file)}})
    user = SimpleNamespace(name="ada", groups=[], settings=settings)
    # Traitlets' own logger is whatever application another test has made in this process.
    log = logging.getLogger("hub-state")
    state = cls(user=user, config=config, log=log).hub_state
    gpus = tuple(GPU(f"GPU-{n}", n, "A100") for n in range(4))
    state.ledger.last_view = View((Node("", "570", "12.8", gpus),))
    assert [each.slots for each in state.reserved()] == promised
    said = "Nothing is reserved by courses['ml'] reserved.0: whole GPUs aren't divided into slots"
    assert (said in caplog.text) is not bool(promised)
    assert state.hours._divides_gpus is bool(promised)


async def test_a_hub_with_another_spawner_has_none_of_it():
    settings: dict[str, Any] = {}
    build_at_start(hub(settings, DockerSpawner))
    assert "gpuspawner" not in settings


async def test_a_spawner_that_needs_its_user_is_waited_for_and_the_log_says_so(caplog):
    class Ours(GPUSpawner):
        def __init__(self, **values: Any) -> None:
            super().__init__(**values)
            self.whose = self.user.name

    settings: dict[str, Any] = {}
    build_at_start(hub(settings, Ours))
    assert "gpuspawner" not in settings
    (said,) = caplog.messages
    assert said.startswith("No Ours can be made without a user: ")


def test_without_an_event_loop_nothing_is_built(settings):
    """As on the hub's own command line."""
    one = spawner(settings)
    one.hub = SimpleNamespace(api_url="http://hub")
    build_early(one)
    assert settings == {}
    one.load_state({"gpuspawner": {"gpus": ["GPU-1"], "term": None}})
    assert one.lease.units == {"GPU-1"}
    assert one.get_state()["gpuspawner"]["gpus"] == ["GPU-1"]


def test_what_can_t_be_read_is_logged_once_and_so_is_its_end(caplog) -> None:
    log = TroubleLog(str, logging.getLogger(__name__))
    log.on_read()
    for words in ("away", "away", "slow"):
        assert log.explain(OSError(words)) == words
    log.on_read()
    log.on_read()
    assert [record.getMessage() for record in caplog.records] == [
        "No GPUs are handed out: away",
        "No GPUs are handed out: slow",
        "GPUs are handed out again",
    ]
