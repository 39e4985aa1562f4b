"""GPUs that fail beside servers that run, on a real hub: who is told, and who gets what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuspawner.simulation import changes

from ..support.dashboards import Visitor, lines
from ..support.hubs import until
from ..support.looks import container_of, free_gpus, gpus, inside, labelled
from ..support.queues import audit_lines

pytestmark = pytest.mark.engine


LINES = [
    lines(),
    # Nobody waits here for what a hub does by itself every ten seconds.
    "from gpuspawner.hub import health_watch",
    "health_watch.POLL_SECONDS = 1.0",
    "from gpuspawner import TEMPLATES",
    "c.JupyterHub.template_paths = [TEMPLATES]",
]


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with the dashboard and our pages."""
    return module_hub


def change(host, *texts):
    for text in texts:
        host.change(changes.parse(text))


def listens(hub) -> list[int]:
    """Return the processes that hear of NVML's events for a hub: they have NVML open."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if b"gpuspawner.gpus.nvml_events" in words and parent == hub.pid:
            found.append(int(folder.name))
    return found


def health(status, uuid):
    (gpu,) = [each for each in status["gpus"] if each["uuid"] == uuid]
    return gpu["health"]


def test_a_gpu_that_fails_beside_a_server_is_marked_until_it_was_reset(hub, host, engine):
    hub.start_server("ada", {"gpus": 1})
    (uuid,) = labelled(engine)["ada"]
    number = index_of(host, uuid)
    until(lambda: listens(hub), "the hub listens", log=hub.log)
    ada, boss = Visitor(hub, "ada"), Visitor(hub, "boss")
    while cli_causes(uuid) != {"xid-79", "recovery-reset"}:
        # A hub that reads between the two that the GPU is well ends the mark of the event, and one
        # that has read that a reset is due hears of no more events.
        change(host, f"gpu {number} reset")
        until(lambda: not cli_causes(uuid) and listens(hub), "it is well", log=hub.log)
        change(host, f"gpu {number} xid 79")
        until(lambda: "(Xid 79)" in boss.page(), "the event is heard", log=hub.log)
        change(host, f"gpu {number} recovery gpu_reset")
        # Nothing has NVML open now: `nvidia-smi --gpu-reset` would be let.
        until(lambda: not listens(hub), "the hub lets go", log=hub.log)
        until(
            lambda: "recovery-reset" in cli_causes(uuid), "it is seen that it is due", log=hub.log
        )
    assert health(boss.status(), uuid)["verdict"] == "quarantine"
    # Its holder is told, and goes on.
    until(lambda: ada.status()["servers"][0]["trouble"]["words"], "ada is told", log=hub.log)
    (trouble,) = ada.status()["servers"][0]["trouble"]["gpus"]
    assert (trouble["verdict"], trouble["index"]) == ("quarantine", number)
    assert hub.ready("ada")
    assert "A GPU of your server is out of order" in ada.page()
    assert "A GPU of your server is out of order" in ada.session.get(f"{hub.url}/hub/home").text
    # The administrator reads why, and what to do; others only why.
    said = "It has fallen off the bus (Xid 79)."
    until(lambda: said in boss.page(), "the dashboard knows both", log=hub.log)
    page = boss.page()
    assert "it comes back by itself" in page
    assert "it comes back by itself" not in ada.page()
    (entry,) = [each for each in gpus() if each["uuid"] == uuid]
    assert entry["health"]["todo"] == "Restart the machine; it comes back by itself."
    events = [line for line in audit_lines(hub) if line["event"] == "health"]
    assert {(each["user"], each["rule"]) for each in events} >= {("ada", "xid-79")}
    # It outlives the hub, and is handed out to nobody, nor promised.
    hub.kill()
    hub.start()
    until(lambda: hub.ready("ada"), "ada's server is found", log=hub.log)
    hub.stop_server("ada")
    assert uuid not in free_gpus()
    form, why = f"{hub.url}/hub/spawn", "It has fallen off the bus (Xid 79)."
    # Until the hub is through with the stop, it shows that in place of the form.
    until(lambda: why in hub.log_in("ada").get(form).text, "the form says so", log=hub.log)
    assert "this machine has 3" in hub.spawn("ben", {"gpus": 4}).json()["message"]
    # A reset ends it, and nothing else does.
    change(host, f"gpu {number} reset")
    until(lambda: uuid in free_gpus(), "it is back", log=hub.log)
    until(lambda: listens(hub), "the hub listens again", log=hub.log)


def cli_causes(uuid):
    return {cause for each in gpus() if each["uuid"] == uuid for cause in each["health"]["causes"]}


def index_of(host, uuid):
    return next(number for number, gpu in enumerate(host.read().gpus) if gpu.uuid == uuid)


def test_an_administrator_lifts_a_mark_and_theirs_is_nobody_else_s(hub, host, engine):
    boss = Visitor(hub, "boss")
    until(lambda: len(boss.status()["gpus"]) == 4, "the GPUs are seen", log=hub.log)
    uuid = host.read().gpus[2].uuid
    change(host, "gpu 2 remap pending")
    until(lambda: uuid not in free_gpus(), "it is out", log=hub.log)
    until(
        lambda: (
            health(boss.status(), uuid)["causes"] == ["recovery-drain-and-reset", "remap-pending"]
        ),
        "the dashboard says so",
        log=hub.log,
    )
    until(
        lambda: len([v for v in engine.volumes()["Volumes"] if uuid in v["Name"]]) == 2,
        "both are marked",
        log=hub.log,
    )
    boss.press(do="in-service", gpu=uuid)
    until(lambda: uuid in free_gpus(), "it is back all the same", log=hub.log)
    hub.start_server("ada", {"gpus": 4})
    hub.stop_server("ada")
    assert uuid in free_gpus(), "it isn't marked again"
    boss.press(do="out-of-service", gpu=uuid, why="a fan")
    change(host, "gpu 2 remap none")
    until(
        lambda: not [v for v in engine.volumes()["Volumes"] if "lifted" in v["Name"]],
        "what was lifted is forgotten",
        log=hub.log,
    )
    assert uuid not in free_gpus()
    boss.press(do="in-service", gpu=uuid)
    until(lambda: uuid in free_gpus(), "it is back", log=hub.log)


LOOK = (
    "/opt/jupyter/bin/python -c 'import asyncio, logging, os;"
    "from gpuspawner_server import devices;"
    "watch = devices.Watch(logging.getLogger(), os.environ, []);"
    "watch._told = True;"
    "gone = devices.are_gone(devices.devices());"
    "asyncio.run(watch.look(gone)); print(gone)'"
)


def devices_group(container):
    """Return a container's group of the devices' controller; None where there is no such one."""
    found = list(Path("/sys/fs/cgroup/devices").glob(f"**/{container}*"))
    return found[0] if found else None


def test_a_server_that_has_lost_its_devices_and_its_administrator_are_told(hub, engine):
    """As `systemctl daemon-reload` takes them, here by the same rule of the kernel's."""
    hub.start_server("ada", {"gpus": 1})
    container = container_of(engine, "ada")
    group = devices_group(container)
    if group is None:
        pytest.skip("this machine's control groups have no devices' controller of version 1")
    ada, boss = Visitor(hub, "ada"), Visitor(hub, "boss")
    assert inside(engine, "ada", LOOK).splitlines()[-1] == "False"
    # The simulated devices have /dev/null's number.
    number = Path("/dev/null").stat().st_rdev
    rule = f"c {os.major(number)}:{os.minor(number)} rwm"
    (group / "devices.deny").write_text(rule)
    try:
        said = inside(engine, "ada", f"exec 2>&1; {LOOK}")
        assert said.splitlines()[-1] == "True", said
    finally:
        (group / "devices.allow").write_text(rule)
    until(
        lambda: "has lost its GPUs" in ada.status()["servers"][0]["trouble"]["words"],
        "ada is told",
        log=hub.log,
    )
    assert "Your server has lost its GPUs" in ada.page()
    assert "Your server has lost its GPUs" in ada.session.get(f"{hub.url}/hub/home").text
    assert "gpu_injection" in boss.page()
    assert "The container of ada has lost its GPUs' devices" in hub.log()
    warned = [line for line in audit_lines(hub) if line["event"] == "warn"]
    assert warned[-1]["rule"] == "devices gone"
    assert inside(engine, "ada", LOOK).splitlines()[-1] == "False"
    until(lambda: not ada.status()["servers"][0]["trouble"]["words"], "all is well", log=hub.log)
