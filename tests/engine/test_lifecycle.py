"""A GPU comes back once, by every path, and the user reads what happened."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..support.flaky import flaky_engine
from ..support.hubs import IMAGES_OWN, WAITING, until, with_groups
from ..support.looks import container_of, containers, free_gpus, gpus, labelled
from ..support.queues import ask, audit_lines, message

pytestmark = pytest.mark.engine


def all_free() -> bool:
    return len(free_gpus()) == 4


def test_a_container_that_dies_by_itself_gives_its_gpus_back(hub, engine):
    hub.start_server("ada", {"gpus": 4})
    engine.kill(container_of(engine, "ada"))
    until(all_free, "the GPUs are free")
    until(lambda: not hub.server("ada"), "the hub has noticed", log=hub.log)
    assert containers(engine) == []
    hub.start_server("ben", {"gpus": 4})


def test_a_container_that_is_removed_by_force_gives_its_gpus_back(hub, engine):
    hub.start_server("ada", {"gpus": 4})
    engine.remove_container(container_of(engine, "ada"), force=True)
    assert all_free()
    until(lambda: not hub.server("ada"), "the hub has noticed", log=hub.log)
    hub.start_server("ada", {"gpus": 4})


# What those in a group have, on the module's hub, which makes nobody wait for its answer.
GROUPS = {
    "dying": {"cmd": ["bash", "-c", 'echo "no <module> named torch"; exit 3']},
    "without-program": {
        "cmd": ["/no/such/program"],
        "extra_create_kwargs": {"entrypoint": []},
    },
    "without-image": {"images": {"gone": "gpuspawner/no-such:image"}},
    "by-cdi": {"gpu_injection": "cdi"},
    "silent": {"cmd": ["sleep", "1000"], "http_timeout": 200},
    "silent-briefly": {"cmd": ["sleep", "1000"], "start_timeout": 3},
    "ending": {"cmd": ["bash", "-c", "echo no licence; exit 4"], "post_start_cmd": "sleep 1"},
}


LINES = ("c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}", with_groups(GROUPS))


def failure(hub, group, options):
    """Return the last event of a start that fails, of somebody in a group."""
    hub.add_to_group(group, "ada")
    return hub.failed_start("ada", options)


def test_early_death_is_told_with_the_last_words(module_hub, engine):
    failed = failure(module_hub, "dying", {"gpus": 2})
    assert "stopped while starting (exit 3)" in failed["message"]
    assert "no <module> named torch" in failed["message"]
    assert "no &lt;module&gt; named torch" in failed["html_message"]
    assert all_free()
    assert containers(engine) == []


def test_a_start_that_the_engine_refuses_leaves_nothing(module_hub, engine):
    message = failure(module_hub, "without-program", {"gpus": 2})["message"]
    assert "The Docker Engine refused" in message
    assert "/no/such/program" in message
    assert all_free()
    assert containers(engine) == []


def test_cdi_of_an_engine_that_has_none_is_told_and_leaves_nothing(module_hub, engine):
    if int(engine.version()["Version"].split(".")[0]) >= 25:
        pytest.skip("this engine has it: see test_engines.py")
    failed = failure(module_hub, "by-cdi", {"gpus": 2})
    assert "knows no CDI" in failed["message"]
    assert "c.GPUSpawner.gpu_injection" in failed["message"]
    assert all_free()
    assert containers(engine) == []


def test_a_missing_image_is_told_and_leaves_nothing(module_hub, engine):
    message = failure(module_hub, "without-image", {"gpus": 1, "image": "gone"})["message"]
    assert "isn't on the GPU machine, and pull_policy is" in message
    assert all_free()
    assert containers(engine) == []


def test_a_start_that_takes_too_long_is_told_and_leaves_nothing(module_hub, engine):
    message = failure(module_hub, "silent-briefly", {"gpus": 2})["message"]
    assert "The server did not start within 3 seconds" in message
    until(all_free, "the GPUs are free")
    assert containers(engine) == []


def test_cancelling_at_any_moment_gives_the_gpus_back(module_hub, host, engine):
    """The engine is halted at some moment of a start, the user gives up, the engine goes on."""
    hub = module_hub
    hub.add_user("ada")
    engine_pid = int((host.directory / "docker.pid").read_text())
    for milliseconds in (0, 30, 60, 120, 300):
        hub.spawn("ada", {"gpus": 4})
        time.sleep(milliseconds / 1000)
        os.kill(engine_pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(1) as other:
                cancel = other.submit(hub.api, "DELETE", "/users/ada/server")
                time.sleep(1.5)  # the hub gives a cancelled start one second
                os.kill(engine_pid, signal.SIGCONT)
                assert cancel.result().status_code in (202, 204), cancel.result().text
        finally:
            os.kill(engine_pid, signal.SIGCONT)
        until(lambda: not hub.server("ada"), "the hub has no server", log=hub.log)
        until(lambda: containers(engine) == [], "no container is left", log=hub.log)
        assert all_free(), f"after a cancel at {milliseconds} ms"
    hub.start_server("ada", {"gpus": 4})


def test_a_killed_hub_finds_its_servers_again(make_hub, engine):
    hub = make_hub(IMAGES_OWN, "c.GPUSpawner.poll_interval = 1")
    hub.start_server("ada", {"gpus": 2})
    hub.start_server("ben", {"gpus": 1})
    before = labelled(engine)
    hub.kill()
    hub.start()
    until(lambda: hub.ready("ada") and hub.ready("ben"), "both are adopted", log=hub.log)
    assert labelled(engine) == before
    answer = hub.api("GET", "/users/ada")
    assert answer.json()["servers"][""]["ready"]
    # What is theirs stays theirs, and what was free is free.
    assert hub.spawn("eve", {"gpus": 2}).status_code == 503
    hub.start_server("eve", {"gpus": 1})
    assert not set(labelled(engine)["eve"]) & {u for uuids in before.values() for u in uuids}
    hub.stop_server("ada")
    assert len(free_gpus()) == 2


def test_a_hub_killed_while_a_server_starts_adopts_it(make_hub, engine):
    """The container runs and the hub's database knows no address of it yet."""
    hub = make_hub(
        "c.GPUSpawner.cmd = ['bash', '-c', 'sleep 4; exec python -S -m http.server 8888']",
        "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
    )
    hub.spawn("ada", {"gpus": 2})
    until(lambda: labelled(engine), "the container runs", log=hub.log)
    hub.kill()
    hub.start()
    until(lambda: hub.ready("ada"), "it is adopted", log=hub.log)
    assert len(labelled(engine)["ada"]) == 2
    hub.stop_server("ada")
    assert all_free()


@pytest.mark.thorough
def test_an_engine_that_is_restarted_gives_all_gpus_back_once(make_hub, host, engine):
    hub = make_hub("c.GPUSpawner.poll_interval = 1")
    hub.start_server("ada", {"gpus": 3})
    host.stop_engine()
    try:
        refused = hub.spawn("ben", {"gpus": 1})
        assert refused.status_code == 503
        assert "Docker Engine of the GPU machine can't be reached" in refused.json()["message"]
    finally:
        host.start_engine()
    until(lambda: not hub.server("ada"), "the hub has noticed", log=hub.log)
    until(lambda: containers(engine) == [], "no container is left", log=hub.log)
    assert [gpu["state"] for gpu in gpus()] == ["free"] * 4
    hub.start_server("ben", {"gpus": 4})


def test_a_spawn_during_which_the_engine_is_killed_is_told(module_hub, host, engine):
    hub = module_hub
    hub.add_to_group("silent", "ada")
    hub.spawn("ada", {"gpus": 2})
    until(lambda: labelled(engine), "the container runs", log=hub.log)
    with ThreadPoolExecutor(1) as other:
        events = other.submit(hub.progress, "ada")
        host.stop_engine()
        try:
            last = events.result()[-1]
        finally:
            host.start_engine()
    assert last["failed"]
    assert "Engine" in last["message"] or "stopped while starting" in last["message"]
    until(all_free, "the GPUs are free")
    until(lambda: containers(engine) == [], "no container is left", log=hub.log)


def test_a_hub_s_first_servers_start_at_once_also_where_a_limit_is_refused(make_hub, engine):
    """Some engines may not set `ulimits`, which the first starts find out, all in one moment."""
    hub = make_hub()
    users = [f"student{number}" for number in range(4)]
    for user in users:
        hub.add_user(user)
    with ThreadPoolExecutor(len(users)) as together:
        answers = list(together.map(lambda user: hub.spawn(user, {"gpus": 1}), users))
    assert all(answer.status_code in (201, 202) for answer in answers), [a.text for a in answers]
    until(lambda: hub.ready_users() == {*users}, "all are ready", log=hub.log)
    assert len({uuid for uuids in labelled(engine).values() for uuid in uuids}) == 4
    # One of them finds out for all, in one more try for each limit.
    tries = len(re.findall(r"Starting \S+ again: ", hub.log()))
    assert hub.log().count("Created container") - len(users) == tries <= 2


@pytest.mark.thorough
def test_who_starts_again_without_a_limit_keeps_the_gpus_from_who_waits(make_hub, engine):
    hub = make_hub(
        WAITING,
        "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
        # More files than any kernel lets a process open.
        with_groups({"many-files": {"ulimits": {"nofile": 2**40}}}),
    )
    hub.start_server("eve", {"gpus": 4})
    hub.add_to_group("many-files", "ada")
    ask(hub, "ada", {"gpus": 4})
    ask(hub, "ben", {"gpus": 4})
    until(lambda: "2nd of 2 in line" in message(hub, "ben"), "both wait", log=hub.log)
    hub.stop_server("eve")
    until(lambda: hub.ready("ada"), "ada's server", log=hub.log)
    assert "this engine may not set c.GPUSpawner.ulimits['nofile']" in hub.log()
    assert list(labelled(engine)) == ["ada"]
    events = [(line["event"], line["user"]) for line in audit_lines(hub)]
    assert events.count(("grant", "ada")) == 1
    assert ("release", "ada") not in events
    assert ("grant", "ben") not in events


@pytest.mark.thorough
def test_a_stop_that_fails_leaves_no_server_that_nobody_owns(make_hub, engine):
    """The hub forgets a server whose stop raised, and asks nobody again."""
    hub = make_hub(
        "import requests",
        "from gpuspawner.spawner import GPUSpawner",
        "class Failing(GPUSpawner):",
        "    async def stop_object(self): raise requests.exceptions.ReadTimeout('too slow')",
        "c.JupyterHub.spawner_class = Failing",
    )
    hub.start_server("ada", {"gpus": 4})
    hub.stop_server("ada")
    until(all_free, "the GPUs are free", log=hub.log)
    assert containers(engine) == []


@pytest.mark.thorough
def test_a_hub_that_cannot_ask_the_engine_at_its_start_forgets_no_server(
    make_hub, idle_host, engine, tmp_path
):
    with flaky_engine(idle_host.socket, tmp_path / "flaky.sock") as flaky:
        environment = {**idle_host.environment, "DOCKER_HOST": flaky.url}
        hub = make_hub("c.GPUSpawner.poll_interval = 1", environment=environment)
        hub.start_server("ada", {"gpus": 3})
        hub.kill()
        flaky.refuse("/containers/")
        hub.start()
        until(lambda: hub.ready("ada"), "it is adopted", log=hub.log)
        flaky.refuse(None)
        assert len(labelled(engine)["ada"]) == 3
        hub.stop_server("ada")
        until(all_free, "the GPUs are free", log=hub.log)


@pytest.mark.thorough
def test_a_killed_hub_s_container_is_found_whatever_its_name(make_hub, engine):
    """A name with the image in it can't be made again from the configuration alone."""
    hub = make_hub(
        'c.GPUSpawner.images = {"minimal": "gpuspawner/minimal:py3.11",'
        ' "other": "gpuspawner/other:1"}',
        'c.GPUSpawner.name_template = "{prefix}-{username}-{imagename}"',
        'c.GPUSpawner.cmd = ["sleep", "1000"]',
        "c.GPUSpawner.http_timeout = 2",
        "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
    )
    engine.tag("gpuspawner/minimal:py3.11", "gpuspawner/other", "1")
    try:
        hub.spawn("ada", {"gpus": 4, "image": "other"})
        until(lambda: labelled(engine), "the container runs", log=hub.log)
        hub.kill()
        hub.start()
        until(all_free, "the GPUs are free", log=hub.log)
        assert containers(engine) == []
    finally:
        engine.remove_image("gpuspawner/other:1", force=True)


def test_a_container_that_ends_before_its_command_ran_is_told_as_ended(module_hub, engine):
    message = failure(module_hub, "ending", {"gpus": 1})["message"]
    assert "stopped while starting" in message
    assert "no licence" in message
    assert containers(engine) == []
