"""The dashboard on a real hub, as a person with a browser, and as a program with a token."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace

import pytest

from gpuspawner.simulation.state import describe

from ..support.dashboards import Program, Visitor, check, lines, server, states
from ..support.hubs import IMAGES_OWN, until
from ..support.looks import containers, free_gpus, gpus, inside, labelled
from ..support.queues import audit_lines

pytestmark = pytest.mark.engine


@pytest.fixture
def hub(dashboard_hub):
    """In these tests the hub is the one with the dashboard."""
    return dashboard_hub


def test_the_hub_s_log_in_leads_to_it_and_nobody_else_gets_in(hub):
    ada = Visitor(hub, "ada")
    until(lambda: "4 free" in ada.page(), "all are free", log=hub.log)
    assert '"/services/gpus/"' in ada.session.get(f"{hub.url}/hub/home").text
    ada.session.cookies.clear()
    assert ada.session.get(ada.url).url.startswith(f"{hub.url}/hub/login")
    assert ada.session.get(f"{ada.url}live").status_code == 403
    nobody = ada.session.get(f"{ada.url}api/status")
    assert nobody.status_code == 403
    check("Refusal", nobody.json())


def test_the_service_itself_may_do_nothing_on_the_hub(hub):
    database = sqlite3.connect(hub.folder / "jupyterhub.sqlite")
    found = "SELECT count(*) FROM services s {} WHERE s.name = 'gpus'"
    assert database.execute(found.format("")).fetchone() == (1,)
    roles = found.format("JOIN service_role_map m ON m.service_id = s.id")
    assert database.execute(roles).fetchone() == (0,)


def test_what_is_mine_is_mine_and_who_has_the_rest_is_for_administrators(hub):
    hub.start_server("ada", {"gpus": 2, "hours": 1})
    hub.start_server("ben", {"gpus": 1}, "secret-plan")
    ada, boss = Visitor(hub, "ada"), Visitor(hub, "boss")
    until(lambda: states(boss.status()).count("leased") == 3, "both are seen", log=hub.log)
    mine = ada.status()
    assert [gpu["yours"] for gpu in mine["gpus"]].count(True) == 2
    assert states(mine).count("leased") == 3
    assert [each["server"] for each in mine["servers"]] == [""]
    for text in (json.dumps(mine), ada.page(), ada.session.get(f"{ada.url}live").text):
        assert "ben" not in text
        assert "secret-plan" not in text
    assert "yours until" in ada.page()
    assert "in use until about" in ada.page()
    everybody = boss.status()
    assert everybody["you"]["administrator"]
    holders = [gpu["holder"] for gpu in everybody["gpus"] if gpu["holder"]]
    assert {"user": "ben", "server": "secret-plan"} in holders
    assert "ben/secret-plan" in boss.page()


def test_a_user_stops_their_own_servers_and_not_others(hub, engine):
    hub.start_server("ada", {"gpus": 1})
    hub.start_server("ada", {"gpus": 1}, "two")
    hub.start_server("ben", {"gpus": 1})
    ada = Visitor(hub, "ada")
    said = ada.said(do="stop", user="ben", server="")
    assert said == "There is no such server that runs or waits, or it isn't yours."
    assert Program(hub, "ada").ask("DELETE", "/users/ben/server").status_code == 404
    assert hub.ready("ben")
    assert (
        ada.said(do="stop", user="ada", server="two")
        == "The server stops, once what runs in it has saved."
    )
    assert Program(hub, "ada").ask("DELETE", "/users/ada/server").status_code == 204
    until(lambda: list(labelled(engine)) == ["ben"], "ada's servers are gone", log=hub.log)
    said = Visitor(hub, "boss").said(do="stop", user="ben", server="")
    assert said == "The server stops, once what runs in it has saved.", hub.log()[-4000:]
    until(lambda: not containers(engine), "ben's server is gone", log=hub.log)
    gone = Program(hub, "ada").ask("DELETE", "/users/ada/servers/never-was")
    assert gone.status_code == 404


def test_an_administrator_stops_a_server_for_a_reason_that_its_user_reads(hub, engine):
    hub.start_server("ada", {"gpus": 1, "hours": 2})
    hub.start_server("eve", {"gpus": 0})
    boss, ada, program = Visitor(hub, "boss"), Visitor(hub, "ada"), Program(hub, "boss")
    server(program)
    said = boss.said(do="stop", user="ada", server="", why="The <room> is hot", when="10")
    assert said == "The server is stopped in 10 minutes."
    assert hub.ready("ada")
    page = ada.page()
    assert "An administrator stops it at <time" in page
    assert "The &lt;room&gt; is hot" in page
    found = Program(hub, "ada").status()["servers"][0]
    rule = "an administrator"
    assert found["stop"] == {"at": found["until"], "why": "The <room> is hot", "rule": rule}
    assert "An administrator stops this server at" in ada.said(do="extend", user="ada", server="")
    assert boss.said(do="keep", user="ada", server="") == "The server goes on."
    assert Program(hub, "ada").status()["servers"][0]["stop"] is None
    # Nobody else gives a reason, and none is given to a server that the rules know nothing of.
    refused = Program(hub, "ada").ask("DELETE", "/users/ada/server", {"why": "x"})
    assert refused.status_code == 403
    assert program.ask("DELETE", "/users/eve/server", {"why": "x"}).status_code == 404
    assert program.ask("DELETE", "/users/ada/server", {"why": 1}).json()["key"] == "why"
    assert program.ask("DELETE", "/users/ada/server", {"minutes": -1}).status_code == 400
    assert program.ask("DELETE", "/users/ada/server", {"why": "The <room> is hot"}).ok
    until(lambda: "ada" not in labelled(engine), "ada's server is gone", log=hub.log)
    until(lambda: hub.server("ada") == {}, "the hub has seen it", log=hub.log)
    shown = hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    assert "An administrator stopped your server at " in shown
    assert "The &lt;room&gt; is hot. Your files are kept." in shown
    (stopped,) = Program(hub, "ada").status()["stopped"]
    everybody = program.status()["stopped"]
    assert [each["why"] for each in everybody if each["user"] == "ada"] == ["The <room> is hot"]
    assert (stopped["rule"], stopped["why"]) == ("an administrator", "The <room> is hot")
    events = [each for each in audit_lines(hub) if each.get("why") == "The <room> is hot"]
    assert [(each["event"], each["by"]) for each in events[-2:]] == [
        ("warn", "user:boss"),
        ("stop", "user:boss"),
    ]
    # Who starts it again isn't told any more.
    hub.start_server("ada", {"gpus": 1})
    ada = Program(hub, "ada")
    until(lambda: ada.status()["stopped"] == [], "who has started again isn't told", log=hub.log)
    assert program.ask("DELETE", "/users/eve/server").status_code == 204


def test_time_is_extended_unless_somebody_waits_and_the_queue_shows_places(hub):
    hub.start_server("ada", {"gpus": 4, "hours": 1})
    ada, program = Visitor(hub, "ada"), Program(hub, "ada")
    before = server(program)["until"]
    assert ada.said(do="extend", user="ada", server="").startswith("Your server now ends at ")
    after = server(program)["until"]
    assert after > before
    answer = program.ask("POST", "/users/ada/server/extend", {"hours": 2})
    assert check("Extended", answer.json())["until"] > after
    at_limit = program.ask("POST", "/users/ada/server/extend", {"hours": 100})
    assert at_limit.status_code == 200
    over = program.ask("POST", "/users/ada/server/extend", {"hours": 100})
    assert over.status_code == 200 or (over.status_code, over.json()["key"]) == (403, "hours")
    not_a_number = program.ask("POST", "/users/ada/server/extend", {"hours": "x"})
    assert (not_a_number.status_code, not_a_number.json()["key"]) == (400, "hours")
    assert Program(hub, "ben").ask("POST", "/users/ada/server/extend").status_code == 403
    assert program.ask("POST", "/users/ada/servers/none/extend").status_code == 404
    hub.spawn("ben", {"gpus": 2})
    until(lambda: program.status()["queue"]["waiting"], "ben waits", log=hub.log)
    said = ada.said(do="extend", user="ada", server="")
    assert said.startswith("You can't extend while 1 other waits who could use your GPUs.")
    assert server(program)["waited_for"] == 1
    assert "You can't extend it while 1 other waits" in ada.page()
    refused = program.ask("POST", "/users/ada/server/extend")
    assert (refused.status_code, refused.json()["message"]) == (409, said)
    over_all = Visitor(hub, "boss").said(do="extend", user="ada", server="")
    assert over_all.startswith(("The server of ada now ends at ", "The server of ada has "))
    entry = program.status()["queue"]["waiting"][0]
    assert (entry["place"], entry["gpus"], entry["yours"], entry["holder"]) == (1, 2, False, None)
    assert "somebody" in ada.page()
    ben = Visitor(hub, "ben")
    assert "<strong>you</strong>" in ben.page()
    assert ben.said(do="leave", user="ben", server="") == "You have left the queue."
    until(lambda: not program.status()["queue"]["waiting"], "nobody waits", log=hub.log)
    # A page may be older than the turn: what has started by then isn't stopped.
    late = "It doesn't wait any more: it has got its GPUs, or was given up."
    assert ada.said(do="leave", user="ada", server="") == late
    assert hub.ready("ada")
    assert ben.said(do="leave", user="ada", server="") == "This is somebody else's server."
    hub.spawn("ben", {"gpus": 2})
    until(lambda: program.status()["queue"]["waiting"], "ben waits again", log=hub.log)
    boss = Visitor(hub, "boss")
    assert boss.said(do="leave", user="ben", server="") == "ben doesn't wait any more."


def test_a_post_without_the_page_s_secret_is_refused(hub):
    hub.start_server("ada", {"gpus": 1})
    ada = Visitor(hub, "ada")
    ada.page()
    form = {"do": "stop", "user": "ada", "server": ""}
    assert ada.session.post(ada.url, data=form).status_code == 403
    assert ada.session.post(ada.url, data={**form, "_xsrf": "guessed"}).status_code == 403
    assert ada.session.delete(f"{ada.url}api/users/ada/server").status_code == 403
    assert hub.ready("ada")


def test_pages_may_load_nothing_from_elsewhere_and_be_framed_by_nobody(hub):
    answer = (ada := Visitor(hub, "ada")).session.get(ada.url)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert " style=" not in answer.text
    assert "onclick" not in answer.text


def test_a_gpu_out_of_service_is_handed_out_by_nobody_until_it_is_back(hub, make_hub, engine):
    boss, ada = Program(hub, "boss"), Program(hub, "ada")
    uuid = free_gpus()[0]
    path = f"/gpus/{uuid}/out-of-service"
    assert ada.ask("PUT", path, {"why": "mine"}).status_code == 403
    assert boss.ask("PUT", "/gpus/GPU-none/out-of-service", {}).status_code == 404
    assert boss.ask("PUT", path, {"why": "its fan\nis <b>loud</b>"}).status_code == 204
    assert uuid not in free_gpus()
    said = gpus()[0]
    assert (said["state"], said["reason"]) == (
        "excluded",
        "It is out of service: its fan is <b>loud</b>",
    )
    seen = ada.status()["gpus"][0]
    assert seen["out_of_service"]["by"] is None
    assert boss.status()["gpus"][0]["out_of_service"]["by"] == "boss"
    page = Visitor(hub, "ada").page()
    assert "its fan is &lt;b&gt;loud&lt;/b&gt;" in page
    assert "boss" not in page
    # This hub, another one on the engine, and the queue keep off it.
    other = make_hub("c.DockerSpawner.prefix = 'other'")
    other.start_server("eve", {"gpus": 1})
    hub.start_server("ada", {"gpus": 2})
    hub.spawn("ben", {"gpus": 1})
    until(lambda: ada.status()["queue"]["waiting"], "ben waits", log=hub.log)
    assert not any(uuid in held for held in labelled(engine).values())
    assert boss.ask("DELETE", path).status_code == 204
    until(lambda: hub.ready("ben"), "ben's server", log=hub.log)
    assert labelled(engine)["ben"] == [uuid]
    # What runs goes on; the GPU is still nobody else's.
    assert boss.ask("PUT", path, {}).status_code == 204
    assert hub.ready("ben")
    held = boss.status()["gpus"][0]
    assert (held["state"], held["in_use"], held["holder"]["user"]) == ("excluded", True, "ben")
    other.stop_all_servers()


def test_a_gpu_that_was_taken_out_by_hand_is_out_and_put_back_by_a_press(hub, engine):
    uuid, boss = free_gpus()[0], Program(hub, "boss")
    engine.create_volume(f"gpuspawner-out-of-service-{uuid}")
    assert uuid not in free_gpus()
    assert boss.ask("PUT", f"/gpus/{uuid}/out-of-service", {"why": "fan"}).status_code == 204
    hub.start_server("ada", {"gpus": 3})
    assert uuid not in labelled(engine)["ada"]
    assert boss.ask("DELETE", f"/gpus/{uuid}/out-of-service").status_code == 204
    assert free_gpus() == [uuid]


@pytest.mark.thorough
def test_out_of_service_outlives_the_hub_and_pages_press_for_it(make_hub):
    hub = make_hub(lines())
    uuid = free_gpus()[3]
    boss = Visitor(hub, "boss")
    said = boss.said(do="out-of-service", gpu=uuid, why="new paste")
    assert said == "The GPU is out of service. Nothing new is placed on it."
    hub.end()
    hub.start()
    refused = hub.spawn("ada", {"gpus": 4})
    assert refused.status_code in (202, 400, 403, 503)
    assert not hub.ready("ada")
    boss = Visitor(hub, "boss")
    assert "new paste" in boss.page()
    assert boss.said(do="in-service", gpu=uuid) == "The GPU is in service again."
    assert uuid in free_gpus()


# What a program in a server asks the dashboard.
CALL = (
    "import os, sys, urllib.request as u;"
    "r = u.Request(os.environ['GPUSPAWNER_API_URL'] + sys.argv[2], method=sys.argv[1],"
    " headers={'Authorization': 'token ' + os.environ['JUPYTERHUB_API_TOKEN']});"
    "print(u.urlopen(r).read().decode())"
)


def test_a_program_in_a_server_reads_and_extends_and_is_no_administrator(hub, engine):
    hub.start_server("boss", {"gpus": 1})
    hub.start_server("ada", {"gpus": 1})

    def ask(method: str, path: str) -> str:
        # Under `docker exec` the variables are the server's.
        return inside(engine, "boss", f'python -c "{CALL}" {method} {path} 2>&1 | tail -1')

    until(lambda: json.loads(ask("GET", "/status"))["servers"], "it is seen", log=hub.log)
    seen = check("Status", json.loads(ask("GET", "/status")))
    assert seen["you"] == {"user": "boss", "administrator": False, "sees_names": False}
    assert "ada" not in json.dumps(seen)
    more = json.loads(ask("POST", "/users/boss/server/extend"))
    assert check("Extended", more)["until"] > seen["servers"][0]["until"]
    assert "403" in ask("POST", "/users/ada/server/extend")
    assert "404" in ask("DELETE", "/users/ada/server")
    assert "403" in ask("PUT", f"/gpus/{seen['gpus'][0]['uuid']}/out-of-service")
    assert hub.ready("ada")


@pytest.mark.thorough
def test_under_a_prefix_pages_programs_and_the_lab_find_the_same_dashboard(make_hub, engine):
    hub = make_hub(lines(), IMAGES_OWN, prefix="/jupyter")
    ada = Visitor(hub, "ada")
    hub.start_server("ada", {"gpus": 1})
    assert '"/jupyter/services/gpus/"' in ada.session.get(f"{hub.url}/hub/home").text
    until(lambda: server_of(ada), "it is seen", log=hub.log)
    assert ada.said(do="extend", user="ada", server="")
    asked = inside(engine, "ada", f'python -c "{CALL}" GET /status 2>&1 | tail -1')
    assert check("Status", json.loads(asked))["servers"] == server_of(ada)
    # The lab's status bar asks where its page's own hub is, as who looks at it.
    page = ada.session.get(f"{hub.url}/user/ada/lab").text
    assert '"hubPrefix": "/jupyter/hub/"' in page


def server_of(visitor):
    return visitor.status()["servers"]


@pytest.mark.thorough
def test_idle_gpus_are_warned_of_and_their_user_says_that_they_are_there(make_hub):
    hub = make_hub(
        lines(), "c.GPUSpawner.idle_minutes = 0.02", "c.GPUSpawner.idle_warning_minutes = 30"
    )
    hub.start_server("ada", {"gpus": 1})
    ada, program = Visitor(hub, "ada"), Program(hub, "ada")

    def warned() -> str | None:
        return server(program)["idle_until"]

    until(warned, "the idle server is warned", log=hub.log)
    page = ada.page()
    assert "I&#39;m still here" in page or "I'm still here" in page
    first = warned()
    assert ada.said(do="here", user="ada", server="") == "The server's GPUs stay yours."
    until(lambda: warned() not in (None, first), "it is warned anew", log=hub.log)
    assert program.ask("POST", "/users/ada/server/here").status_code == 204


@pytest.mark.thorough
def test_where_nvml_fails_no_gpu_is_shown_as_free_and_it_comes_back(hub, idle_host):
    ada = Visitor(hub, "ada")
    until(lambda: states(ada.status()) == ["free"] * 4, "all are free", log=hub.log)
    well = idle_host.read()
    idle_host.write(replace(well, fault="driver_not_loaded"))
    until(lambda: not ada.status()["known"], "the dashboard notices", log=hub.log)
    seen = ada.status()
    assert states(seen) == ["unknown"] * 4
    assert seen["trouble"].startswith("NVIDIA's library is installed and its driver isn't loaded.")
    page = ada.page()
    assert "The GPUs&#39; state isn&#39;t known now." in page or "state isn't known now" in page
    assert " free<" not in page
    idle_host.write(well)
    until(lambda: states(ada.status()) == ["free"] * 4, "they are back", log=hub.log)


def test_sick_gpus_are_out_of_order_with_the_reason(hub, idle_host):
    well = idle_host.read()
    lost, *others = well.gpus
    idle_host.write(replace(well, gpus=(replace(lost, fault="lost"), *others)))
    ada = Visitor(hub, "ada")
    until(lambda: states(ada.status())[0] == "unhealthy", "it is seen", log=hub.log)
    page = ada.page()
    assert "out of order" in page
    assert "It has fallen off the bus" in page


@pytest.mark.thorough
def test_a_machine_with_64_gpus(hub, idle_host):
    boss = Visitor(hub, "boss")
    idle_host.write(describe([("T4", 64)]))
    until(lambda: len(boss.status()["gpus"]) == 64, "64 GPUs are seen", log=hub.log)
    assert boss.page().count('class="gs-gpu ') == 64
    assert "64 free" in boss.page()
    hub.start_server("ada", {"gpus": 1})
    until(lambda: states(boss.status()).count("leased") == 1, "one is taken", log=hub.log)


def test_without_the_hub_s_socket_it_says_that_the_queue_isn_t_known(hub):
    hub.start_server("ada", {"gpus": 1})
    ada, program = Visitor(hub, "ada"), Program(hub, "ada")
    socket = hub.folder / "gpuspawner.sock"
    hidden = hub.folder / "hidden.sock"
    assert program.status()["queue"]["known"]
    socket.rename(hidden)
    try:
        until(lambda: not program.status()["queue"]["known"], "it notices", log=hub.log)
        assert "Who waits isn" in ada.page()
        assert server(program)["user"] == "ada"
        refused = program.ask("POST", "/users/ada/server/extend")
        assert refused.status_code == 503
        assert states(program.status()).count("leased") == 1
    finally:
        hidden.rename(socket)
    until(lambda: program.status()["queue"]["known"], "it is back", log=hub.log)


@pytest.mark.thorough
def test_it_is_there_again_after_the_hub_was_killed(make_hub):
    hub = make_hub(lines())
    hub.start_server("ada", {"gpus": 1})
    ada = Visitor(hub, "ada")
    assert ada.status()["queue"]["known"]
    hub.kill()
    hub.start()

    def back() -> bool:
        answer = ada.session.get(ada.url)
        return answer.status_code == 200 and "yours until" in answer.text

    # The log-in is the hub's, which kept it: nobody is asked again.
    until(back, "the same browser sees the page again", seconds=120, log=hub.log)
    assert ada.status()["queue"]["known"]


@pytest.mark.thorough
def test_before_anybody_asked_for_a_server_the_queue_is_known_and_names_can_be_shown(make_hub):
    hub = make_hub(lines(), "c.JupyterHub.services[0]['command'] += ['--names', 'everybody']")
    ada = Visitor(hub, "ada")
    assert "Nobody waits." in ada.page()
    hub.start_server("ben", {"gpus": 1})
    until(lambda: "<p>ben</p>" in ada.page(), "whose it is can be read", log=hub.log)
    you = ada.status()["you"]
    assert (you["administrator"], you["sees_names"]) == (False, True)
    assert "Take out of service" not in ada.page()
