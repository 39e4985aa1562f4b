"""Containers that a hub doesn't know: its own of a lost database, DockerSpawner's, by hand."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from docker.types import DeviceRequest

from gpuspawner.backends.docker import extended_ends
from gpuspawner.leases.labels import LABEL_HUB, LABEL_UNTIL, LABEL_USER

from ..support.dashboards import Program, Visitor, lines
from ..support.hubs import until
from ..support.looks import container_of, containers, free_gpus, gpus
from ..support.queues import audit_lines, control

pytestmark = pytest.mark.engine

IMAGE = "gpuspawner/minimal:py3.11"
SECONDS = 1 / 3600
# Nothing in these containers listens to SIGTERM, for which an engine waits ten seconds.
ENDS = {"stop_signal": "SIGKILL"}
QUICK = f"""
c.GPUSpawner.cmd = ["python", "-S", "-m", "http.server", "8888"]
c.GPUSpawner.extra_create_kwargs = {ENDS!r}
"""


def run(engine: Any, name: str, **values: Any) -> str:
    """Start a container that does nothing, past every hub; return its id."""
    host = {key: values.pop(key) for key in ("device_requests", "devices") if key in values}
    made = engine.create_container(
        IMAGE,
        ["sleep", "1000"],
        name=name,
        host_config=engine.create_host_config(**host),
        **{**ENDS, **values},
    )
    engine.start(made["Id"])
    return str(made["Id"])


def names(engine: Any) -> set[str]:
    return {each["Names"][0][1:] for each in containers(engine)}


def seen_inside(engine: Any, container_id: str) -> set[str]:
    """Return the UUIDs of the GPUs that a container sees."""
    job = engine.exec_create(container_id, ["nvidia-smi", "-L"])
    return set(re.findall(r"GPU-[0-9a-f-]{36}", engine.exec_start(job["Id"]).decode()))


def test_after_a_loss_of_the_database_what_is_past_its_end_is_stopped_and_no_other(
    make_hub, engine
):
    hub = make_hub(lines(), QUICK, "c.GPUSpawner.unknown_server_minutes = 0.05")
    hub.start_server("ben", {"gpus": 1})
    hub.kill()
    (hub.folder / "jupyterhub.sqlite").unlink()
    of_ben = engine.inspect_container(container_of(engine, "ben"))
    name, bears = of_ben["Name"].lstrip("/"), of_ben["Config"]["Labels"]
    past = {**bears, LABEL_USER: "ada", LABEL_UNTIL: str(round(time.time()) - 3600)}
    run(engine, "jupyter-ada", labels=past)
    run(engine, "others", labels={**past, LABEL_HUB: "http://10.9.9.9:8081/hub/api"})
    run(engine, "by-hand", labels={key: past[key] for key in past if key != LABEL_HUB})
    hub.start()
    # Nobody logs in: a hub has no user and no spawner then.
    until(lambda: "jupyter-ada" not in names(engine), "what is past its end is gone", log=hub.log)
    assert names(engine) == {name, "others", "by-hand"}
    lines_of_ada = [line for line in audit_lines(hub) if line["user"] == "ada"]
    assert [line["event"] for line in lines_of_ada] == ["warn", "stop"]
    assert {line["rule"] for line in lines_of_ada} == {"unknown to the hub"}
    assert "jupyter-ada of 'ada'" in hub.log()
    assert "past its end" in hub.log()
    # What isn't past its end is shown, and ends by a press.
    boss = Visitor(hub, "boss")
    until(lambda: len(boss.status()["orphans"]) == 1, "only ben's is left", log=hub.log)
    (orphan,) = boss.status()["orphans"]
    assert (orphan["user"], orphan["name"], orphan["stops_at"]) == ("ben", name, None)
    assert "Servers that JupyterHub doesn" in boss.page()
    assert Program(hub, "eve").ask("DELETE", f"/orphans/{orphan['id']}").status_code == 403
    program = Program(hub, "boss")
    assert program.ask("DELETE", "/orphans/another").status_code == 404
    assert (
        boss.said(do="stop-orphan", id=orphan["id"])
        == "The server stops, once what runs in it has saved."
    )
    assert names(engine) == {"others", "by-hand"}
    assert program.ask("DELETE", f"/orphans/{orphan['id']}").status_code == 404
    assert audit_lines(hub)[-1]["by"] == "user:boss"
    # Who uses the hub is no orphan, though its database begins anew.
    hub.start_server("cyd", {"gpus": 1})
    time.sleep(5)
    assert hub.ready("cyd")


def kept_ends(engine: Any) -> list[dict[str, str]]:
    """Return the labels of the volumes that have the ends of extended leases."""
    found = engine.volumes(filters={"name": extended_ends.PREFIX})["Volumes"] or []
    return [volume["Labels"] for volume in found]


@pytest.mark.thorough
def test_an_extension_outlives_the_database_whoever_gave_it(make_hub, engine):
    hub = make_hub(
        QUICK,
        "c.GPUSpawner.hour_limit = 8",
        "c.GPUSpawner.extend_minutes = None",
        "c.GPUSpawner.warning_minutes = 0.01",
        "c.GPUSpawner.unknown_server_minutes = 0.02",
    )
    for user, hours in {"ada": 1, "ben": 1, "cyd": 10 * SECONDS}.items():
        hub.start_server(user, {"gpus": 1, "hours": hours})
    of_ada, of_ben, of_cyd = (container_of(engine, user) for user in ("ada", "ben", "cyd"))
    control(hub, do="extend", user="ada", hours=SECONDS)
    control(hub, do="extend", user="ada", hours=1)
    control(hub, do="extend", user="ben", hours=2, by="user:boss", over_all=True)

    def extended() -> list[str]:
        return sorted(each[extended_ends.LABEL] for each in kept_ends(engine))

    of_both = sorted([of_ada, of_ben])
    until(lambda: extended() == of_both, "each has one end, the last", log=hub.log)
    hub.kill()
    (hub.folder / "jupyterhub.sqlite").unlink()
    hub.start()
    orphans: dict[str, Any] = {}

    def without_cyd() -> bool:
        orphans.clear()
        orphans.update({each["user"]: each for each in control(hub, do="status")["orphans"]})
        there = {each["Id"] for each in containers(engine)}
        return of_cyd not in there and "cyd" not in orphans

    until(without_cyd, "cyd's, which wasn't extended, is stopped after its end", log=hub.log)
    assert {user: each["stops_at"] for user, each in orphans.items()} == {"ada": None, "ben": None}
    hours_left = {user: (each["until"] - time.time()) / 3600 for user, each in orphans.items()}
    assert hours_left == {"ada": pytest.approx(2, abs=0.1), "ben": pytest.approx(3, abs=0.1)}
    # What was kept of a container goes with it.
    control(hub, do="stop-orphan", id=of_ada, by="boss")
    until(lambda: extended() == [of_ben], "what was kept of ada's is gone", log=hub.log)


@pytest.mark.thorough
def test_what_was_started_by_hand_of_a_server_s_image_is_no_server(hub, engine):
    hub.start_server("ada", {"gpus": 1})
    of_ada = container_of(engine, "ada")
    committed = engine.commit(of_ada, "of-ada", "committed")
    hub.stop_server("ada")
    try:
        made = engine.create_container(
            "of-ada:committed",
            ["sleep", "1000"],
            name="by-hand",
            host_config=engine.create_host_config(
                device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])]
            ),
        )
        engine.start(made["Id"])
        assert engine.inspect_container("by-hand")["Config"]["Labels"][LABEL_USER] == "ada"
        assert [gpu["state"] for gpu in gpus()] == ["foreign"] * 4
        refused = hub.spawn("ada", {"gpus": 1})
        assert refused.status_code == 503, refused.text
        hub.start_server("ada", {"gpus": 0})
        assert "by-hand" in names(engine)
        hub.stop_server("ada")
        assert "by-hand" in names(engine)
    finally:
        engine.remove_container("by-hand", force=True)
        engine.remove_image(committed["Id"], force=True)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("how", "number"),
    [
        (lambda uuids: DeviceRequest(count=-1, capabilities=[["gpu"]]), 4),
        (lambda uuids: DeviceRequest(count=2, capabilities=[["gpu"]]), 2),
        (lambda uuids: DeviceRequest(device_ids=[uuids[1], "3"], capabilities=[["gpu"]]), 2),
    ],
    ids=["all", "a count", "ids"],
)
def test_what_dockerspawner_gave_a_container_is_held_while_it_runs(hub, engine, how, number):
    uuids = free_gpus()
    container = run(engine, "jupyter-zoe", device_requests=[how(uuids)])
    given = seen_inside(engine, container)
    assert len(given) == number
    seen = {gpu["uuid"]: gpu for gpu in gpus()}
    assert {uuid for uuid, gpu in seen.items() if gpu["state"] == "foreign"} == given
    assert {uuid for uuid, gpu in seen.items() if gpu["containers"] == ["jupyter-zoe"]} == given
    assert set(free_gpus()) == set(uuids) - given
    refused = hub.spawn("ada", {"gpus": 5 - number})
    assert refused.status_code == 503, refused.text
    assert f"{number} in use outside the hub" in refused.json()["message"]
    if number < 4:
        hub.start_server("ada", {"gpus": 4 - number})
        assert seen_inside(engine, container_of(engine, "ada")) == set(uuids) - given
    engine.remove_container(container, force=True)
    hub.start_server("ben", {"gpus": number})


@pytest.mark.thorough
def test_a_container_left_from_another_address_is_named_with_what_removes_it(hub, engine):
    hub.start_server("ada", {"gpus": 0})
    name = engine.inspect_container(container_of(engine, "ada"))["Name"].lstrip("/")
    hub.stop_server("ada")
    label = {LABEL_HUB: "http://10.9.9.9:8081/hub/api", LABEL_USER: "ada"}
    made = engine.create_container(IMAGE, ["true"], name=name, labels=label)
    refused = hub.spawn("ada", {"gpus": 1})
    assert refused.status_code == 500
    said = refused.json()["message"]
    for word in (name, "http://10.9.9.9:8081/hub/api", f"docker rm -f {name}"):
        assert word in said
    engine.remove_container(made["Id"])
    hub.start_server("ada", {"gpus": 1})
