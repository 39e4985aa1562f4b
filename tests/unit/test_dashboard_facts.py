"""What is read, what one person may know of it, and how it is drawn: values, and no hub."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace

import pytest
import yaml

from gpuspawner.backends.docker.out_of_service import (
    LABEL,
    LABEL_BY,
    LABEL_SINCE,
    LABEL_WHY,
    list_marks,
    parse_marks,
    put_back,
    take_out,
)
from gpuspawner.dashboard import monitor, pages
from gpuspawner.dashboard.facts import Person, status
from gpuspawner.dashboard.history import POINTS, SECONDS_PER_POINT, History
from gpuspawner.dashboard.monitor import Monitor, Snapshot
from gpuspawner.errors import Unknown
from gpuspawner.gpus.model import Holder, Node, Outsider
from gpuspawner.gpus.out_of_service import apply_marks
from gpuspawner.i18n.lazy_text import kept, lazy_gettext

from ..support.boards import ADA, BOSS, HOSTILE, UNTIL, gpu, lease, picture, render, waits
from ..support.dashboards import OPENAPI, check


@pytest.mark.parametrize("server", ["", HOSTILE])
def test_nobody_but_an_administrator_reads_a_name_anywhere(server):
    ben = Holder("zacharias", server)
    seen = picture(
        gpu(0, ben),
        gpu(1, ben, state="excluded"),
        queue=[waits(ben)],
        leases=[lease(ben, "GPU-0")],
        marks=parse_marks([{"Labels": {LABEL: "GPU-1", LABEL_BY: "zacharias"}}]),
    )
    mine = check("Status", status(seen, ADA))
    assert "zacharias" not in json.dumps(mine) + render(mine)
    assert mine["servers"] == []
    everybody = check("Status", status(seen, BOSS))
    assert everybody["gpus"][0]["holder"] == {"user": "zacharias", "server": server}
    assert "zacharias" in render(everybody)


@pytest.mark.parametrize(
    ("values", "said", "can_press"),
    [
        ({}, "", True),
        ({"extend_from": UNTIL}, "You can extend it from ", False),
        ({"waited_for": 2}, "You can't extend it while 2 others wait", False),
        ({"until": None, "extend_from": None}, "", False),
    ],
)
def test_who_can_extend_reads_from_when_and_an_administrator_can_always(values, said, can_press):
    seen = picture(gpu(0, Holder("ada")), leases=[lease(Holder("ada"), "GPU-0", **values)])
    mine = render(check("Status", status(seen, ADA)))
    assert ('value="extend"' in mine) is can_press
    sentences = ("You can extend it from ", "You can't extend it while 2 others wait")
    assert [each for each in sentences if each in mine] == ([said] if said else [])
    bosses = render(check("Status", status(seen, BOSS)))
    assert ('value="extend"' in bosses) is ("until" not in values)


def test_a_server_s_image_and_since_when_it_runs_are_for_who_may_read_its_name():
    seen = picture(gpu(0, Holder("ben")), leases=[lease(Holder("ben"), "GPU-0", image="Torch <2>")])
    found = check("Status", status(seen, BOSS))
    assert found["servers"][0]["since"] == "1970-01-01T00:00:01+00:00"
    assert "Torch &lt;2&gt;" in render(found)
    assert "since <time" in render(found)
    assert "Torch" not in render(status(seen, ADA))


STOP = {"at": UNTIL, "why": "maintenance <1>", "rule": "an administrator"}


@pytest.mark.parametrize("mine", [True, False])
def test_a_stop_that_is_announced_is_on_the_page_with_the_reason(mine):
    holder = Holder("ada" if mine else "ben")
    seen = picture(gpu(0, holder), leases=[lease(holder, "GPU-0", stop=STOP)])
    found = check("Status", status(seen, ADA if mine else BOSS))
    assert found["servers"][0]["stop"]["why"] == "maintenance <1>"
    page = render(found)
    assert "An administrator stops it at <time" in page
    assert "maintenance &lt;1&gt;" in page
    assert ("Don't stop it" in page) is not mine
    assert "Extend" not in page


def test_an_administrator_can_say_why_and_when():
    seen = picture(gpu(0, Holder("ben")), leases=[lease(Holder("ben"), "GPU-0")])
    page = render(status(seen, BOSS))
    assert 'name="why"' in page
    assert 'name="when" value="10"' in page
    # One's own server is just stopped.
    mine = picture(gpu(0, Holder("boss")), leases=[lease(Holder("boss"), "GPU-0")])
    assert 'name="when"' not in render(status(mine, BOSS))


def test_why_a_server_is_or_was_stopped_is_for_its_user_and_for_administrators():
    seen = picture(gpu(0, Holder("ben")), leases=[lease(Holder("ben"), "GPU-0", stop=STOP)])
    ended = {"user": "ben", "server": "x", "rule": "an administrator", **STOP}
    seen = replace(seen, hub={**seen.hub, "stopped": [ended]})
    everybody = Person("ada", sees_names=True)
    for person, why in ((BOSS, STOP["why"]), (everybody, ""), (Person("ben"), STOP["why"])):
        found = check("Status", status(seen, person))
        assert found["servers"][0]["stop"]["why"] == found["stopped"][0]["why"] == why
    assert check("Status", status(seen, ADA))["stopped"] == []


def test_hostile_names_are_text_on_the_page():
    holder = Holder(HOSTILE, HOSTILE)
    mark = parse_marks([{"Labels": {LABEL: "GPU-1", LABEL_WHY: HOSTILE, LABEL_BY: HOSTILE}}])
    seen = picture(
        gpu(0, holder, model=HOSTILE),
        gpu(1, state="excluded", reason=HOSTILE),
        gpu(2, state="unhealthy", reason=HOSTILE),
        queue=[waits(holder, model=HOSTILE)],
        leases=[lease(holder, "GPU-0")],
        marks=mark,
        driver=HOSTILE,
    )
    for person in (ADA, BOSS, Person(HOSTILE)):
        html = render(check("Status", status(seen, person)))
        assert "<script" not in html
        assert "{{" in html
        assert "&lt;script&gt;alert(" in html


def test_a_service_called_as_a_user_is_not_that_user():
    seen = picture(gpu(0, Holder("ada")), leases=[lease(Holder("ada"), "GPU-0")])
    assert status(seen, ADA)["gpus"][0]["yours"]
    assert not status(seen, Person(""))["gpus"][0]["yours"]
    assert status(seen, Person(""))["servers"] == []


def asks(user, **values):
    """What the hub says of a server that runs and asks for a GPU."""
    nothing = {"place": None, "of": None, "start": None, "offer": None, "model": None}
    news = {"since": 5.0, "gpus": 1, "kind": "gpu", "restarting": False, "notice": ""}
    return {"user": user, "server": "", **nothing, **news, **values}


def test_what_is_reserved_for_a_server_that_runs_is_free_to_nobody_and_its_user_switches():
    offer = {"gpus": ["GPU-0"], "until": UNTIL}
    seen = picture(gpu(0), gpu(1))
    requests = [asks("ada", offer=offer), asks("ben", place=1, of=1, start=UNTIL)]
    seen = replace(seen, hub={**seen.hub, "requests": requests})
    mine = check("Status", status(seen, ADA))
    first, second = mine["gpus"]
    assert (first["state"], first["yours"], first["until"]) == (
        "leased",
        True,
        "2096-10-02T07:06:40+00:00",
    )
    assert second["state"] == "free"
    assert [each["user"] for each in mine["requests"]] == ["ada"]
    assert 'value="switch"' in render(mine)
    bens = check("Status", status(seen, Person("ben")))
    assert (bens["gpus"][0]["state"], bens["gpus"][0]["holder"]) == ("leased", None)
    assert bens["requests"][0]["place"] == 1
    assert 'value="switch"' not in render(bens)
    assert len(check("Status", status(seen, BOSS))["requests"]) == 2


def test_what_part_of_a_gpu_is_reserved_is_told():
    offer = {"gpus": ["GPU-0#0/8"], "until": UNTIL}
    seen = picture(gpu(0, kind="shared", part=0, parts=8))
    hub = {**seen.hub, "requests": [asks("ada", offer=offer, kind="shared")]}
    mine = check("Status", status(replace(seen, hub=hub), ADA))
    assert mine["requests"][0]["kind"] == "shared"
    assert "1 shared GPU is reserved for it until" in render(mine)


def test_what_became_of_a_request_is_told_until_it_is_read():
    notice = lazy_gettext("Ask for at least one GPU.")
    seen = picture(gpu(0))
    told = [asks("ada", gpus=0, since=None, notice=kept(notice))]
    html = render(check("Status", status(replace(seen, hub={**seen.hub, "requests": told}), ADA)))
    assert "Ask for at least one GPU." in html
    assert 'value="let-go"' in html


def test_another_hub_s_user_of_my_name_is_somebody_else():
    seen = picture(gpu(0, Holder("ada")), ours=frozenset())
    mine = status(seen, ADA)["gpus"][0]
    assert (mine["yours"], mine["holder"], mine["other_hub"]) == (False, None, True)
    assert status(seen, BOSS)["gpus"][0]["holder"] == {"user": "ada", "server": ""}


def test_all_who_have_slots_of_a_gpu_that_is_whole_again_are_told():
    ada, ben = Holder("ada"), Holder("ben", "two")
    slots = [f"GPU-0#{number}/4" for number in (0, 3)]
    # The ledger knows one holder of a unit: of whom it is the last to be free.
    seen = picture(
        gpu(0, ben),
        leases=[lease(ada, slots[0]), lease(ben, slots[1])],
        ours=frozenset(slots),
    )
    mine = check("Status", status(seen, ADA))
    assert mine["gpus"][0]["yours"]
    assert (mine["gpus"][0]["holder"], mine["gpus"][0]["holders"]) == (
        None,
        [{"user": "ada", "server": ""}],
    )
    assert "ben" not in render(mine)
    everybody = check("Status", status(seen, BOSS))
    assert [each["user"] for each in everybody["gpus"][0]["holders"]] == ["ben", "ada"]
    html = render(everybody)
    assert "ben/two" in html
    assert "<p>ada</p>" in html


def test_another_hub_s_user_of_my_name_beside_my_slot_is_somebody_else():
    other = Holder("ada", hub="http://10.0.0.9:8081/hub/api")
    mine, theirs = "GPU-0#0/4", "GPU-0#1/4"
    seen = picture(gpu(0, other), leases=[lease(Holder("ben"), mine)], ours=frozenset({mine}))
    facts = check("Status", status(seen, ADA))["gpus"][0]
    assert (facts["yours"], facts["holders"], facts["other_hub"]) == (False, [], True)
    seen = picture(gpu(0, other, uuid=theirs), ours=frozenset({theirs}))
    assert not status(seen, ADA)["gpus"][0]["yours"]


@pytest.mark.parametrize("values", [{"trouble": "NVML fails."}, {"at": 1.0}, {"at": None}])
def test_what_is_not_known_now_is_never_free(values):
    seen = check("Status", status(picture(gpu(0), gpu(1, state="mig"), **values), BOSS))
    assert not seen["known"]
    assert {each["state"] for each in seen["gpus"]} == {"unknown"}
    assert ">free<" not in render(seen)


def test_while_the_hub_says_nothing_the_engine_tells_whose_servers_there_are():
    holder = Holder("ada", "two")
    seen = picture(gpu(0, holder, until=UNTIL), gpu(1, holder, until=UNTIL), gpu(2), hub=None)
    mine = check("Status", status(seen, ADA))
    assert [(each["server"], each["gpus"]) for each in mine["servers"]] == [
        ("two", ["GPU-0", "GPU-1"])
    ]
    assert mine["queue"] == {"known": False, "order": None, "waiting": []}
    html = render(mine)
    assert "Who waits isn&#39;t known" in html or "Who waits isn't known" in html


def test_the_hub_s_end_goes_before_that_of_the_label():
    seen = picture(gpu(0, Holder("ben"), until=1.0), leases=[lease(Holder("ben"), "GPU-0")])
    assert status(seen, ADA)["gpus"][0]["until"] == "2096-10-02T07:06:40+00:00"


@pytest.mark.parametrize(
    ("card", "word", "shape"),
    [
        (gpu(0), "free", "gs-free"),
        (gpu(0, Holder("ada"), until=UNTIL), "yours until", "gs-yours"),
        (gpu(0, Holder("ben"), until=UNTIL), "in use until about", "gs-in-use"),
        (gpu(0, Holder("ben")), "in use", "gs-in-use"),
        (gpu(0, state="foreign"), "in use outside the hub", "gs-foreign"),
        (gpu(0, state="unhealthy"), "out of order", "gs-unhealthy"),
        (gpu(0, state="excluded"), "kept out", "gs-excluded"),
        (gpu(0, state="mig"), "in MIG mode", "gs-mig"),
        (gpu(0, state="unknown", uuid=None), "state unknown", "gs-unknown"),
    ],
)
def test_every_state_has_a_word_and_a_shape(card, word, shape):
    html = render(status(picture(card), ADA))
    assert f"<span>{word}" in html
    assert f'class="gs-shape {shape}"' in html


@pytest.mark.parametrize("values", [{"state": "excluded"}, {"state": "unhealthy"}])
def test_what_is_mine_stays_mine_whatever_its_state(values):
    seen = picture(gpu(0, Holder("ada"), **values), gpu(1, Holder("ben"), **values))
    for known in (seen, replace(seen, trouble="NVML fails.")):
        assert render(status(known, ADA)).count("gs-yours") == 1


def test_a_machine_without_a_driver_is_no_trouble():
    html = render(check("Status", status(picture(driver=None, cuda=None), ADA)))
    assert "no NVIDIA driver" in html
    assert "alert-warning" not in html


# What the hub doesn't know, and containers outside it ------------------------------------------


def orphan(**values):
    named = {"id": "7f3a", "name": "jupyter-zacharias", "user": "zacharias", "server": ""}
    return {**named, "gpus": ["GPU-0"], "until": UNTIL, "stops_at": None, **values}


def test_orphans_and_outsiders_are_for_administrators_and_text_on_the_page():
    seen = picture(
        gpu(0, Holder("zacharias")),
        gpu(1, state="foreign", reason="A container outside the hub was given it."),
        outsiders=(Outsider("x", f"zacharias{HOSTILE}", frozenset({"GPU-1", "GPU-gone"})),),
    )
    seen.hub["orphans"] = [
        orphan(),
        orphan(id=HOSTILE, name=HOSTILE, user=HOSTILE, gpus=[], until=None, stops_at=UNTIL),
    ]
    for person in (ADA, replace(ADA, sees_names=True)):
        mine = check("Status", status(seen, person))
        assert (mine["orphans"], mine["outsiders"]) == ([], [])
        html = render(mine)
        assert "stop-orphan" not in html
        assert "Containers outside the hub" not in html
    assert "zacharias" not in json.dumps(status(seen, ADA)) + render(status(seen, ADA))
    everything = check("Status", status(seen, BOSS))
    html = render(everything)
    assert "<script" not in html
    assert html.count('value="stop-orphan"') == 2
    assert "Its time is over: it is stopped at" in html
    assert "jupyter-zacharias" in html
    assert "Containers outside the hub that have GPUs" in html
    assert everything["outsiders"][0]["gpus"] == ["GPU-1", "GPU-gone"]


def test_an_older_hub_that_tells_of_no_orphans_is_understood():
    assert status(picture(gpu(0)), BOSS)["orphans"] == []
    assert status(picture(gpu(0), hub=None), BOSS)["orphans"] == []


# Users' homes ---


def home(user, used, **values):
    return {
        "user": user,
        "server": "",
        "used": used,
        "allowed": None,
        "enforced": False,
        "at": 100.0,
        **values,
    }


def test_how_much_is_kept_at_home_everybody_reads_of_theirs_and_administrators_of_all():
    seen = picture(gpu(0))
    seen.hub["homes"] = [
        home("ada", 46 << 30, allowed=50 << 30, enforced=True),
        home("zacharias", 90 << 30, allowed=50 << 30),
        home(HOSTILE, 1 << 20),
    ]
    mine = check("Status", status(seen, ADA))
    assert [each["user"] for each in mine["homes"]] == ["ada"]
    assert mine["homes"][0]["nearly_full"]
    html = render(mine)
    assert "Your files take 46 GB of 50 GB. When no room is left" in html
    assert "zacharias" not in html
    everything = check("Status", status(seen, BOSS))
    assert [each["user"] for each in everything["homes"]] == ["zacharias", "ada", HOSTILE]
    html = render(everything)
    assert "50 GB, not enforced" in html
    assert html.count("nearly full") == 2
    assert "<script" not in html
    assert "Your files" not in html  # the administrator's own aren't known


def test_an_older_hub_that_tells_of_no_homes_is_understood():
    assert status(picture(gpu(0)), BOSS)["homes"] == []
    assert status(picture(gpu(0), hub=None), BOSS)["homes"] == []


# Out of service -----------------------------------------------------------------------------------


def pressed(html: str) -> set[tuple[str, str]]:
    """What a page's forms of administrators do, and with which GPU."""
    found = re.findall(
        r'name="do" value="((?:in|out-of)-service)".*?name="gpu" value="([^"]+)"', html, re.S
    )
    return set(found)


def test_a_mig_instance_is_taken_out_of_service_alone_or_with_its_gpu():
    whole = gpu(0, state="mig")
    first, second = (
        gpu(0, uuid=f"MIG-{n}", kind="1g.5gb", part=n, parts=7, parent="GPU-0") for n in range(2)
    )
    html = render(status(picture(whole, first, second), BOSS))
    assert pressed(html) == {("out-of-service", each) for each in ("GPU-0", "MIG-0", "MIG-1")}
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert pressed(render(status(picture(whole, first, second), ADA))) == set()
    marked = parse_marks([{"Labels": {LABEL: "MIG-1", LABEL_WHY: "odd"}}])
    one = render(check("Status", status(picture(whole, first, second, marks=marked), BOSS)))
    assert pressed(one) == {
        ("out-of-service", "GPU-0"),
        ("out-of-service", "MIG-0"),
        ("in-service", "MIG-1"),
    }
    marked = parse_marks([{"Labels": {LABEL: "GPU-0"}}])
    assert pressed(render(status(picture(whole, first, second, marks=marked), BOSS))) == {
        ("in-service", "GPU-0")
    }


def test_marks_are_read_from_labels_and_rubbish_is_none():
    volumes = [
        {"Labels": {LABEL: "GPU-0", LABEL_WHY: "fan", LABEL_BY: "boss", LABEL_SINCE: "100"}},
        {"Labels": {LABEL: "GPU-1", LABEL_SINCE: "soon"}},
        {"Labels": None},
        {"Labels": {LABEL: ""}},
        {},
    ]
    marks = parse_marks(volumes)
    assert list(marks) == ["GPU-0", "GPU-1"]
    assert (marks["GPU-0"].since, marks["GPU-1"].since) == (100.0, None)
    assert parse_marks(None) == {}


def test_a_volume_made_by_hand_is_a_mark_by_its_name():
    name = "gpuspawner-out-of-service-"
    volumes = [
        {"Name": f"{name}GPU-0", "Labels": None},
        {"Name": f"{name}GPU-1", "Labels": {"by": "hand"}},
        {"Name": f"{name}GPU-2", "Labels": {LABEL: "GPU-2", LABEL_WHY: "fan"}},
        {"Name": f"{name}GPU-3", "Labels": {LABEL: "GPU-4"}},
        {"Name": f"my-{name}GPU-5"},
        {"Name": name},
    ]
    marks = parse_marks(volumes)
    assert sorted(marks) == ["GPU-0", "GPU-1", "GPU-2", "GPU-3", "GPU-4"]
    assert (marks["GPU-0"].why, marks["GPU-2"].why) == ("", "fan")


class Engine:
    """An engine's volumes; `stuck` has those that it neither makes nor removes."""

    def __init__(self, *volumes):
        self.kept = {each["Name"]: each for each in volumes}
        self.stuck = set()

    def volumes(self, filters):
        assert filters == {"name": "gpuspawner-out-of-service-"}
        return {"Volumes": list(self.kept.values()) or None}

    def create_volume(self, name, labels):
        if name not in self.stuck:
            self.kept.setdefault(name, {"Name": name, "Labels": labels})

    def remove_volume(self, name):
        if name not in self.stuck:
            del self.kept[name]


def test_what_is_done_to_a_mark_is_read_back():
    by_hand = {"Name": "gpuspawner-out-of-service-GPU-0", "Labels": None}
    engine = Engine(by_hand)
    take_out(engine, "GPU-0", "boss", "fan")
    assert list(list_marks(engine)) == ["GPU-0"]
    put_back(engine, "GPU-0")
    assert engine.kept == {}
    put_back(engine, "GPU-0")
    engine.stuck.add("gpuspawner-out-of-service-GPU-1")
    with pytest.raises(Unknown, match="doesn't keep that the GPU is out of service"):
        take_out(engine, "GPU-1", "boss", "fan")
    # One that says another GPU than its name is both's.
    engine.kept["gpuspawner-out-of-service-GPU-2"] = {
        "Name": "gpuspawner-out-of-service-GPU-2",
        "Labels": {LABEL: "GPU-3"},
    }
    put_back(engine, "GPU-3")
    assert engine.kept == {}
    engine.stuck.add("gpuspawner-out-of-service-GPU-0")
    engine.kept[by_hand["Name"]] = by_hand
    with pytest.raises(Unknown, match="keeps the GPU out of service"):
        put_back(engine, "GPU-0")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("free", "excluded"),
        ("foreign", "excluded"),
        ("unhealthy", "unhealthy"),
        ("mig", "mig"),
        ("unknown", "unknown"),
    ],
)
def test_a_mark_keeps_a_gpu_out_and_hides_no_sickness(before, after):
    marks = parse_marks([{"Labels": {LABEL: "GPU-0", LABEL_WHY: "fan", LABEL_BY: "boss"}}])
    marked = apply_marks([gpu(0, state=before), gpu(1)], marks)
    assert [each.state for each in marked] == [after, "free"]
    assert "boss" not in marked[0].reason


# Reading ------------------------------------------------------------------------------------------


async def nothing(history: History) -> None:
    """What no test of pages that are open samples."""


async def test_many_pages_cost_one_reading(monkeypatch):
    readings = 0

    async def look(last: Snapshot) -> Snapshot:
        nonlocal readings
        readings += 1
        await asyncio.sleep(0)
        return replace(last, at=time.time(), tried_at=time.monotonic())

    watched = Monitor(look, nothing)
    pictures = await asyncio.gather(*(watched.snapshot() for _ in range(60)))
    assert readings == 1
    assert len({id(each) for each in pictures}) == 1


async def test_when_nobody_looks_pages_are_read_for_nobody_and_who_comes_then_sees_now(monkeypatch):
    monkeypatch.setattr(monitor, "PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(monitor, "IDLE_SECONDS", 0.05)
    readings = 0

    async def look(last: Snapshot) -> Snapshot:
        nonlocal readings
        readings += 1
        return replace(
            last, at=time.time(), tried_at=time.monotonic(), nodes=(Node(str(readings)),)
        )

    watched = Monitor(look, nothing)
    await watched.snapshot()
    assert watched._task is not None
    await watched._task  # it ends by itself
    rested = readings
    await asyncio.sleep(0.1)
    assert readings == rested
    assert (await watched.snapshot()).nodes == (Node(str(rested + 1)),)


async def test_a_reading_that_fails_is_trouble_on_the_page_and_not_its_end(monkeypatch):
    monkeypatch.setattr(monitor, "PERIOD_SECONDS", 0.01)
    answers = iter([RuntimeError("odd"), None])

    async def look(last: Snapshot) -> Snapshot:
        if error := next(answers, None):
            raise error
        return replace(last, at=time.time(), tried_at=time.monotonic(), trouble="")

    watched = Monitor(look, nothing)
    assert (await watched.snapshot()).trouble == "RuntimeError: odd"
    while (await watched.snapshot()).trouble:
        await asyncio.sleep(0.01)


async def test_a_wall_clock_that_is_set_back_keeps_no_reading_from_the_page(monkeypatch):
    now = [2_000_000.0]
    monkeypatch.setattr(monitor.time, "time", lambda: now[0])

    async def look(last: Snapshot) -> Snapshot:
        return replace(last, at=now[0], tried_at=time.monotonic(), nodes=(Node(str(now[0])),))

    watched = Monitor(look, nothing)
    assert (await watched.refresh()).nodes == (Node("2000000.0"),)
    now[0] -= 3600
    assert not watched._snapshot.is_known(now[0])
    assert (await watched.refresh()).nodes == (Node("1996400.0"),)
    assert watched._snapshot.is_known(now[0])


# History ------------------------------------------------------------------------------------------


def test_history_has_means_of_spans_and_gaps_where_nothing_was_read():
    history = History()
    begin = 1000 * SECONDS_PER_POINT
    for seconds, percent in ((0, 10), (1, 20), (5 * SECONDS_PER_POINT, 90)):
        history.add(begin + seconds, [gpu(0, utilization_percent=percent, memory_used_mib=100)])
    use, memory = history.points(gpu(0), begin + 5 * SECONDS_PER_POINT)
    assert len(use) == POINTS
    assert use[-6:] == [15, None, None, None, None, 90]
    assert set(use[:-6]) == {None}
    assert memory[-1] == 100
    assert history.points(gpu(7), begin)[0] == [None] * POINTS


def test_history_of_a_gpu_that_is_gone_is_forgotten():
    history = History()
    history.add(0, [gpu(0), gpu(1)])
    history.add(1, [gpu(1)])
    assert list(history._spans) == ["GPU-1"]


@pytest.mark.parametrize(
    ("values", "top", "drawn"),
    [
        ([None, None], 100, []),
        ([0, 100], 100, ["0,23.0 120,1.0"]),
        ([None, 200], 100, ["120,1.0 120,1.0"]),
        ([0, None, 0], 100, ["0,23.0 0,23.0", "120,23.0 120,23.0"]),
        ([5, 5], 0, ["0,23.0 120,23.0"]),
    ],
)
def test_a_line_ends_where_nothing_is_known(values, top, drawn):
    assert pages.line_points(values, top) == drawn


# Its description ----------------------------------------------------------------------------------


def test_each_path_of_the_api_is_described_and_the_other_way_round():
    from gpuspawner.dashboard.handlers import routes

    patterns = [route[0] for route in routes("/p/", "/", {}) if "api/" in route[0]]
    import re

    # What a path names by a number is called so.
    paths = [
        re.sub(r"{(\w+)}", lambda m: "1" if m[1] == "id" else m[1], path)
        for path in OPENAPI["paths"]
    ]

    for pattern in patterns:
        assert any(re.fullmatch(pattern, f"/p{path}") for path in paths) or "openapi" in pattern
    for path in paths:
        assert any(re.fullmatch(pattern, f"/p{path}") for pattern in patterns), path
    assert yaml.safe_dump(OPENAPI)


@pytest.mark.parametrize(
    ("origin", "hub", "below"),
    [
        ("https://ada.hub.example", "https://hub.example", True),
        ("https://ada.hub.example", "https://Hub.Example:443", True),
        ("http://ada.hub.test:8000", "http://hub.test:8000", True),
        ("http://ada.hub.test:8001", "http://hub.test:8000", False),
        ("http://ada.hub.example", "https://hub.example", False),
        ("https://adahub.example", "https://hub.example", False),
        ("https://hub.example.evil.example", "https://hub.example", False),
        ("https://hub.example", "https://hub.example", False),
        ("https://ada.hub.example", "", False),
        ("", "https://hub.example", False),
        ("null", "https://hub.example", False),
        ("https://[::1", "https://hub.example", False),
        ("https://ada.hub.example:x", "https://hub.example", False),
        ("https://.", "https://", False),
    ],
)
def test_a_page_below_the_hub_s_domain_is_told_from_others(
    origin: str, hub: str, below: bool
) -> None:
    from gpuspawner.dashboard.handlers import is_below

    assert is_below(origin, hub) is below
