"""A choice is checked on every spawn, the same for REST, link and form; a bad one costs nobody."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup

from ..support.forms import submit
from ..support.hubs import until
from ..support.looks import container_of, containers, free_gpus, inside, labelled

pytestmark = pytest.mark.engine

BAD = [
    ({"gpus": True}, "gpus", "true"),
    ({"gpus": 1.5}, "gpus", "1.5"),
    ({"gpus": "2"}, "gpus", '"2"'),
    ({"gpus": -1}, "gpus", "-1"),
    ({"gpus": 99}, "gpus", "99"),
    ({"gpus": [2]}, "gpus", "[2]"),
    ({"gpu_ids": [0]}, "gpu_ids", "[0]"),
    ({"image": "ubuntu"}, "image", "ubuntu"),
    ({"image": {"$ne": ""}}, "image", "$ne"),
    ({"model": "H100"}, "model", "H100"),
    ({"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}}, "environment", "all"),
    ({"gpus": {"a": [{"b": [None, {"c": []}]}] * 30}}, "gpus", "a"),
    ({"gpus": 1, "volumes": {"/": "/host"}}, "volumes", "/host"),
    ({"image": "x" * 5000}, "image", "xxx"),
    ({"\u0000\ud800": 1}, "not an option", "1"),
]


@pytest.mark.parametrize(("options", "key", "value"), BAD, ids=range(len(BAD)))
def test_a_bad_choice_is_refused_with_key_and_value(hub, engine, options, key, value):
    refused = hub.spawn("ada", options)
    assert 400 <= refused.status_code < 500, refused.text
    message = refused.json()["message"]
    assert key in message
    assert value in message
    assert len(message) < 500
    assert containers(engine) == []
    assert len(free_gpus()) == 4


def test_over_the_user_s_limit_is_refused_with_the_limit(make_hub, engine):
    hub = make_hub(
        "c.GPUSpawner.gpu_limit = 2",
        "c.JupyterHub.load_groups = {'lab': {'users': ['ada']}}",
        "c.Spawner.group_overrides = {'lab': {'groups': ['lab'],"
        " 'spawner_override': {'gpu_limit': 3}}}",
    )
    refused = hub.spawn("ben", {"gpus": 3})
    assert refused.status_code == 403
    assert refused.json()["message"] == "gpus: You asked for 3 GPUs, and your limit is 2."
    hub.start_server("ada", {"gpus": 3})
    assert len(labelled(engine)["ada"]) == 3
    hub.stop_server("ada")
    # Who left the group has lost its rights at the next spawn.
    hub.api("DELETE", "/groups/lab/users", {"users": ["ada"]})
    assert hub.spawn("ada", {"gpus": 3}).status_code == 403


def test_a_saved_choice_that_can_no_longer_be_had_is_set_aside(make_hub, engine):
    """The hub repeats the last choice where none is sent."""
    own = make_hub('c.GPUSpawner.images = {"new": "gpuspawner/minimal:py3.11"}')
    own.start_server("ada", {"image": "new", "gpus": 1})
    own.stop_server("ada")
    config = own.folder / "jupyterhub_config.py"
    config.write_text(config.read_text().replace('{"new":', '{"newer":'))
    own.stop()
    own.start()
    own.start_server("ada")
    label = engine.inspect_container(container_of(engine, "ada"))["Config"]["Labels"]
    assert label["gpuspawner.image"] == "newer"
    assert len(labelled(engine)["ada"]) == 1
    why = 'image must be one of newer, got "new".'
    assert f"The saved choice of ada is set aside: {why}" in own.log()
    own.stop_server("ada")
    # Whoever sends it wants this one and no other.
    refused = own.spawn("ada", {"image": "new", "gpus": 1})
    assert (refused.status_code, refused.json()["message"]) == (400, why)
    assert containers(engine) == []


def test_an_empty_choice_is_the_administrator_s(hub, engine):
    hub.start_server("newcomer", {})
    assert len(labelled(engine)["newcomer"]) == 1
    container = engine.inspect_container(container_of(engine, "newcomer"))
    assert container["Config"]["Labels"]["gpuspawner.image"] == "minimal"


def test_a_refused_choice_is_not_the_one_remembered(hub, engine):
    hub.start_server("ben", {"gpus": 2})
    hub.stop_server("ben")
    assert hub.spawn("ben", {"gpus": "many"}).status_code == 400
    hub.start_server("ben", {})
    assert len(labelled(engine)["ben"]) == 2


def test_a_link_with_a_choice_starts_it(hub, engine):
    session = hub.log_in("ada")
    link, page = f"{hub.url}/hub/spawn?opt-gpus=2&opt-image=minimal", f"{hub.url}/hub/home"
    session.get(link, headers={"Referer": page})
    until(lambda: hub.ready("ada"), "the server is ready", log=hub.log)
    assert len(labelled(engine)["ada"]) == 2


def test_a_link_with_a_bad_choice_shows_the_form_with_the_reason(hub, engine):
    session = hub.log_in("ada")
    here = {"Referer": f"{hub.url}/hub/home"}
    page = session.get(f"{hub.url}/hub/spawn?opt-gpus=many", headers=here)
    assert page.status_code == 400
    error = BeautifulSoup(page.content, "html.parser").select_one(".spawn-error-msg")
    assert 'The number of GPUs must be a whole number, 0 or more, got "many".' in error.text
    assert containers(engine) == []


def test_a_link_on_another_site_fills_the_form_and_starts_nothing(hub, engine):
    session = hub.log_in("ada")
    elsewhere = {"Referer": "https://elsewhere.example.org/"}

    def opened(query: str) -> BeautifulSoup:
        answer = session.get(f"{hub.url}/hub/spawn?{query}", headers=elsewhere)
        assert answer.status_code == 200, answer.text
        return BeautifulSoup(answer.content, "html.parser")

    page = opened("opt-gpus=2&opt-image=minimal")
    assert page.select_one("input[name=gpus][checked]")["value"] == "2"
    notice = page.select_one("#gpuspawner .alert-info").text
    assert notice == "A link has filled in this form. Nothing starts until you press Start."
    assert "opt-gpus" not in page.select_one("#spawn_form")["action"]
    # What is no choice at all is said.
    assert (
        "The number of GPUs must be a whole"
        in opened("opt-gpus=many").select_one(".alert-info").text
    )
    assert opened("opt-gpus=%FF&opt-x=%00").select_one("#spawn_form")
    assert containers(engine) == []
    assert hub.server("ada").get("pending") is None
    # One press of Start is all that it takes.
    session.post(hub.url + page.select_one("#spawn_form")["action"], data={"gpus": "2"})
    until(lambda: hub.ready("ada"), "the server is ready", log=hub.log)


def test_nor_does_one_where_there_is_no_form(make_hub, engine):
    hub = make_hub("c.GPUSpawner.options_form = ''", "c.GPUSpawner.default_gpus = 0")
    session = hub.log_in("ada")
    page = BeautifulSoup(session.get(f"{hub.url}/hub/spawn?opt-gpus=2").content, "html.parser")
    assert "Nothing starts until you press Start." in page.text
    assert containers(engine) == []
    form = page.select_one("#spawn_form")
    sent = {each["name"]: each["value"] for each in form.select("input[type=hidden]")}
    assert sent["gpus"] == "2"
    session.post(hub.url + form["action"], data=sent)
    until(lambda: hub.ready("ada"), "the server is ready", log=hub.log)
    assert len(labelled(engine)["ada"]) == 2


def test_the_form_starts_what_was_picked_and_remembers_it(hub, engine):
    session = hub.log_in("ada")
    submit(hub, session, gpus="2")
    until(lambda: hub.ready("ada"), "the server is ready", log=hub.log)
    assert len(inside(engine, "ada", "nvidia-smi -L").splitlines()) == 2
    hub.stop_server("ada")
    page = BeautifulSoup(session.get(f"{hub.url}/hub/spawn").content, "html.parser")
    assert page.select_one("input[name=gpus][checked]")["value"] == "2"


def test_a_form_that_somebody_bent_is_refused_on_the_page(hub, engine):
    session = hub.log_in("ada")
    page = submit(hub, session, gpus="<script>", device="all")
    assert page.status_code == 400
    assert "<script>" not in page.text.split('id="spawn_form"')[0].split("spawn-error-msg")[1]
    assert "not an option here" in page.text
    assert containers(engine) == []


def test_a_user_whose_failed_spawn_had_gpus_gets_none_in_the_next(hub, engine):
    hub.start_server("ben", {"gpus": 3})
    assert hub.spawn("ada", {"gpus": 2}).status_code == 503
    hub.start_server("ada", {"gpus": 0})
    assert labelled(engine)["ada"] == []
    assert inside(engine, "ada", "ls /dev | grep -c nvidia") == "0"


AWKWARD = [
    "a.b",
    "a-b",
    "a--b",
    "{0}",
    "{username}",
    "%s",
    "münchen",
    "学生",
    "x y",
    "a'b",
    "ada:x",
]


@pytest.mark.thorough
def test_awkward_names_stay_apart_and_inside_their_labels_and_volumes(make_hub, engine):
    hub = make_hub(
        "from jupyterhub.authenticators.shared import SharedPasswordAuthenticator",
        "class Any(SharedPasswordAuthenticator):",
        "    def normalize_username(self, name): return name",
        "    def validate_username(self, name): return True",
        "c.JupyterHub.authenticator_class = Any",
        'c.GPUSpawner.home_volume = "home-{username}"',
    )
    names = [*AWKWARD, "../x", "A", "a"]
    for name in names:
        hub.start_server(name, {"gpus": 0})
    found = {c["Labels"]["gpuspawner.user"]: c for c in containers(engine)}
    assert sorted(found) == sorted(names)
    volumes = [m["Name"] for c in found.values() for m in c["Mounts"] if m["Type"] == "volume"]
    assert len(set(volumes)) == len(names)
    assert all(set(volume) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for volume in volumes)
    for name in names:
        hub.stop_server(name)


def test_an_engine_whose_listing_fails_hands_nothing_out(make_hub, idle_host, engine, tmp_path):
    from ..support.flaky import flaky_engine

    with flaky_engine(idle_host.socket, tmp_path / "flaky.sock") as flaky:
        hub = make_hub(environment={**idle_host.environment, "DOCKER_HOST": flaky.url})
        flaky.refuse("/containers/json")
        refused = hub.spawn("ada", {"gpus": 1})
        assert refused.status_code == 503
        assert "What can't be read isn't handed out" in refused.json()["message"]
        assert containers(engine) == []
        flaky.refuse(None)
        hub.start_server("ada", {"gpus": 1})


def test_a_refusal_is_in_the_language_of_who_asks_and_english_in_the_log(hub):
    hub.add_user("ada")
    where = f"{hub.url}/hub/api/users/ada/server"
    asking = {"Accept-Language": "zh-CN,zh;q=0.9"}
    answer = hub._admin.post(where, json={"gpus": 99}, headers=asking)
    assert answer.json()["message"] == "gpus：您申请了 99 个 GPU，而本机只有 4 个。"
    assert "gpus: You asked for 99 GPUs, and this machine has 4." in hub.log()
    assert hub.spawn("ada", {"gpus": 99}).json()["message"].startswith("gpus: You asked for 99")
