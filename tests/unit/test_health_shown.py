"""What users and administrators read of a GPU's health: dashboard, command line, doctor, leases."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gpuspawner import list_gpus
from gpuspawner.dashboard.facts import status
from gpuspawner.doctor import gpus as doctor_gpus
from gpuspawner.doctor.findings import Context
from gpuspawner.errors import Refused
from gpuspawner.gpus.allocation import apply_leases
from gpuspawner.gpus.health import HealthMark
from gpuspawner.gpus.health_facts import HealthReading
from gpuspawner.gpus.model import GPU, Holder, Lease, Node, Request
from gpuspawner.gpus.nvml import Inventory
from gpuspawner.gpus.out_of_service import OutOfServiceMark, apply_marks, with_health
from gpuspawner.gpus.state import GPUFacts
from gpuspawner.hub.nodes import NodeFacts, read_answer
from gpuspawner.i18n.languages import TRANSLATED
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.gpu_trouble import GPUTrouble
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.leases.ledger import Ledger
from gpuspawner.leases.notes import Notes
from gpuspawner.leases.server_lease import ServerLease
from gpuspawner.scheduling.plan import Planner, QueuedRequest

from ..support.boards import ADA, BOSS, gpu, lease, picture, render
from ..support.dashboards import check

FAILED = {"gpu": "GPU-1", "index": 1, "verdict": "quarantine", "cause": "xid-79"}
TO_RESET = {"gpu": "GPU-1", "index": 1, "verdict": "after-use", "cause": "remap-pending"}
ADAS = Holder("ada")


def marked(*causes: str, by: OutOfServiceMark | None = None) -> dict[str, OutOfServiceMark]:
    own = {"GPU-1": by} if by else {}
    return with_health(own, [HealthMark("GPU-1", each, "GPU-1", 5.0) for each in causes])


# The dashboard ------------------------------------------------------------------------------------


def test_the_card_says_why_to_all_and_what_to_do_to_administrators() -> None:
    seen = picture(
        gpu(0), gpu(1, state="excluded", reason="x"), marks=marked("remap-pending", "xid-119")
    )
    mine, bosses = (check("Status", status(seen, person)) for person in (ADA, BOSS))
    health = bosses["gpus"][1]["health"]
    assert (health["verdict"], health["causes"]) == ("quarantine", ["remap-pending", "xid-119"])
    assert bosses["gpus"][0]["health"] == {"verdict": "ok", "causes": [], "words": "", "todo": ""}
    assert (bosses["gpus"][1]["out_of_service"]["by"]) == "health"
    todo = "nvidia-smi --gpu-reset -i 1"
    assert "Its firmware doesn&#39;t answer the driver (Xid 119)." in render(mine)
    assert f"<code>{todo}</code>" in render(bosses)
    assert "out of order" in render(mine)
    assert "out of service" not in render(mine)
    assert todo not in render(mine)
    assert 'value="in-service"' in render(bosses)
    chinese = render(bosses, TRANSLATED[0])
    assert "它的固件对驱动没有响应（Xid 119）。" in chinese
    assert f"<code>{todo}</code> 重置" in chinese


def test_an_administrator_s_reason_stands_before_that_of_health() -> None:
    by = OutOfServiceMark("GPU-1", "boss", "a fan", 5.0)
    seen = picture(gpu(1, state="excluded", reason="x"), marks=marked("xid-79", by=by))
    (found,) = check("Status", status(seen, BOSS))["gpus"]
    assert (found["out_of_service"]["why"], found["out_of_service"]["by"]) == ("a fan", "boss")
    assert found["health"]["words"] == "It has fallen off the bus (Xid 79)."


def test_a_program_s_own_error_is_for_its_user_and_administrators() -> None:
    watched = {"uuid": "GPU-1", "verdict": "watch", "causes": ["xid-31"], "events": []}
    seen = picture(gpu(1, Holder("ben")), leases=[lease(Holder("ben"), "GPU-1")])
    seen = picture(
        gpu(1, Holder("ben")),
        leases=[lease(Holder("ben"), "GPU-1")],
        hub={**(seen.hub or {}), "health": [watched]},
    )
    assert status(seen, ADA)["gpus"][0]["health"]["verdict"] == "ok"
    found = check("Status", status(seen, BOSS))["gpus"][0]["health"]
    assert (found["verdict"], found["causes"]) == ("watch", ["xid-31"])
    assert "made an error of its own (Xid 31)" in render(status(seen, BOSS))


def test_who_holds_a_gpu_that_has_failed_or_lost_its_devices_reads_so() -> None:
    for trouble, says in (
        ({"gpus": [FAILED], "devices_gone_since": None}, "is out of order. Save your work"),
        ({"gpus": [TO_RESET], "devices_gone_since": None}, "is to be reset once the server"),
        ({"gpus": [FAILED], "devices_gone_since": 5.0}, "has lost its GPUs"),
        ({"gpus": [], "devices_gone_since": None}, ""),
    ):
        held = lease(ADAS, "GPU-1", trouble=trouble)
        mine = check("Status", status(picture(gpu(1, ADAS), leases=[held]), ADA))
        assert says in mine["servers"][0]["trouble"]["words"]
        assert says in render(mine)
        bosses = render(status(picture(gpu(1, ADAS), leases=[held]), BOSS))
        assert ("gpu_injection" in bosses) is bool(trouble["devices_gone_since"])


# By way of the hub --------------------------------------------------------------------------------


async def test_a_service_without_the_engine_is_told_of_health_as_well() -> None:
    async def nodes() -> list[Node]:
        reading = HealthReading(frozenset({"remap-pending"}))
        return [Node("", "580.1", "13.0", (GPU("GPU-1", 1, "A100", health=reading),))]

    async def servers() -> list[ServerRecord]:
        return [ServerRecord("one", labels(Holder("ada"), "torch", [], None))]

    async def notes() -> Notes:
        return Notes(marked("xid-94"))

    ledger = Ledger(servers, nodes, read_notes=notes)
    import json

    told = read_answer(json.loads(json.dumps(await NodeFacts(ledger, None).facts())))  # type: ignore[arg-type]
    (mark,) = told.marks.values()
    assert mark == marked("xid-94")["GPU-1"]
    assert told.nodes[0].gpus[0].state == "excluded"


# The command line and doctor ----------------------------------------------------------------------


def test_the_command_line_says_why_and_what_to_do() -> None:
    marks = marked("xid-95")
    units = apply_marks([gpu(0), gpu(1)], marks)
    node = Node("", "580.1", "13.0", units)
    one, two = list_gpus.as_json(node, units, {}, marks)["gpus"]
    assert one["health"] == {"verdict": "ok", "causes": [], "todo": ""}
    assert (two["state"], two["health"]["verdict"]) == ("excluded", "quarantine")
    line = list_gpus.as_text(node, units, {}, marks).splitlines()[-1]
    assert "An error of its memory spread to other programs (Xid 95). Reset it with" in line


def test_what_is_read_keeps_a_gpu_out_before_there_is_a_mark() -> None:
    reading = HealthReading(frozenset({"recovery-reset", "hot"}))
    (found,) = apply_marks([gpu(1, health=reading)], {})
    assert (found.state, found.reason) == (
        "excluded",
        "It is out of service: The driver says that it has to be reset.",
    )
    (lifted,) = apply_marks([gpu(1, health=reading)], {}, {("GPU-1", "recovery-reset")})
    assert lifted.state == "free"
    entry = list_gpus.as_json(Node(), [found], {})["gpus"][0]
    assert entry["health"]["causes"] == ["recovery-reset"]


def test_doctor_names_what_is_out_and_what_to_do() -> None:
    facts = GPUFacts("GPU-1", 1, "A100", health=HealthReading(frozenset({"recovery-reset", "hot"})))
    fine = GPUFacts("GPU-0", 0, "A100", health=HealthReading(frozenset({"ecc-errors"})))
    hot = GPUFacts("GPU-2", 2, "A100", health=HealthReading(frozenset({"hot"})))
    context: Any = Context(None, None)  # type: ignore[arg-type]
    context.inventory = Inventory("580.1", "13.0", (fine, facts, hot))
    context.engine = None
    all_of_them, out, watched = doctor_gpus.gpus(context)
    assert all_of_them.found.startswith("2 of 3 can be handed out")
    assert (out.state, out.found) == (
        "warning",
        "GPU 1 isn't handed out: the driver says that it has to be reset",
    )
    assert "nvidia-smi --gpu-reset -i 1" in out.advice
    assert watched.found == "GPU 2 is watched: it is too hot, and slower for that"


# Leases -------------------------------------------------------------------------------------------


class Server:
    """A server with a lease, and what its user was told."""

    longest_hours, extend_minutes, warning_minutes, idle_minutes = 12, None, 15, 0
    waiting_requests, pending = 0, None
    holder, image_title = ADAS, "Torch"

    def __init__(self) -> None:
        self.log = logging.getLogger("hub")
        self.told: list[tuple[str, str]] = []
        self.lease = ServerLease(self, Clock(lambda: 9.0, lambda: 9.0, lambda: ""))  # type: ignore[arg-type]
        self.lease.begin_term(3600)
        self.lease.hold(["GPU-1"])

    def on_lease_begin(self) -> None: ...

    def on_lease_end(self) -> None: ...

    def save_state(self) -> None: ...

    def on_extended(self, end: Any) -> None: ...

    def budgeted_end(self, until: float) -> tuple[float, str]:
        return until, ""

    def latest_end(self, until: float) -> tuple[float, str]:
        return until, ""

    def tell(self, occasion: str, words: str) -> None:
        self.told.append((occasion, str(words)))


def test_a_holder_is_told_once_that_a_gpu_has_failed(caplog) -> None:
    server = Server()
    caplog.set_level(logging.INFO)
    for trouble in ([], [TO_RESET], [FAILED], [FAILED], [], [FAILED]):
        server.lease.note_trouble(trouble)
    assert [occasion for occasion, _ in server.told] == ["trouble"] * 2
    assert "is out of order" in server.told[0][1]
    assert '"rule": "health", "why": "xid-79"' in caplog.text
    server.lease.end()
    assert server.lease.trouble == GPUTrouble()


def test_a_lease_is_extended_while_its_gpu_works_and_not_once_it_has_failed() -> None:
    server = Server()
    server.lease.note_trouble([TO_RESET])
    end = server.lease.extend(1)
    server.lease.note_trouble([FAILED])
    with pytest.raises(Refused, match="out of order"):
        server.lease.extend(1)
    assert server.lease.until == end
    assert server.lease.extend(1, by="user:boss", over_all=True) > end


def test_devices_that_are_gone_are_told_once_and_until_they_are_back(caplog) -> None:
    server = Server()
    caplog.set_level(logging.INFO)
    for gone in (False, True, True):
        server.lease.note_devices(gone)
    assert [occasion for occasion, _ in server.told] == ["trouble"]
    assert server.lease.facts()["trouble"]["devices_gone_since"] == 9.0
    assert caplog.text.count("has lost its GPUs' devices") == 1
    assert '"rule": "devices gone"' in caplog.text
    server.lease.note_devices(False)
    assert server.lease.trouble.words == ""


def test_nobody_is_promised_a_gpu_that_has_failed_for_when_its_holder_goes() -> None:
    held = [Lease(ADAS, frozenset({"GPU-1"}), 100.0)]
    waiting = [QueuedRequest(Holder("ben"), Request("image", 1), 1.0)]
    for marks, start in ((marked("remap-pending"), None), ({}, 100.0)):
        units = apply_leases(apply_marks([gpu(1)], marks), held)
        assert units[0].holder == ADAS
        (turn,) = Planner().plan(waiting, units, held, 10.0)
        assert turn.start == start
