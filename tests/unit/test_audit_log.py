"""The log is a record: who did what, why and for how long, in words that no name can forge."""

from __future__ import annotations

import ast
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.app import JupyterHub
from jupyterhub.auth import DummyAuthenticator
from traitlets.config import Config

from gpuspawner.errors import Refused
from gpuspawner.gpus.model import Holder, Lease
from gpuspawner.hub import http_errors
from gpuspawner.leases import audit_log
from gpuspawner.leases.audit_log import one_line
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.server_lease import ServerLease

from ..support.imports import MODULES
from ..support.paths import ROOT
from ..support.spawns import Hub, begin, waiting

FORGED = 'ada\n[I 2026-11-29 02:00:00.000 JupyterHub.gpuspawner x:1] gpuspawner {"event": "x"}'


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Return what the log has, as a program reads it."""
    caplog.set_level(logging.INFO)

    def read() -> list[dict[str, Any]]:
        ours = [each for each in caplog.records if each.name.endswith(".gpuspawner")]
        assert all(each.getMessage().startswith("gpuspawner {") for each in ours)
        return [json.loads(each.getMessage().removeprefix("gpuspawner ")) for each in ours]

    return read


def test_a_name_stays_in_its_place(lines, caplog) -> None:
    audit_log.record(logging.getLogger("hub"), "grant", Holder(FORGED, FORGED), "gpuspawner")
    (line,) = lines()
    assert (line["user"], line["server"], line["by"]) == (FORGED, FORGED, "gpuspawner")
    assert "\n" not in caplog.records[0].getMessage()
    assert audit_log.user("gpuspawner") != audit_log.RULES


@pytest.mark.parametrize("each", ["\n", "\r", "\x1b[31m", "\x85", "\u2028", "\u2029", "\x00", "\v"])
def test_no_control_character_comes_into_a_line(each: str) -> None:
    said = one_line(f"ada{each}gpuspawner")
    assert said.isprintable()
    assert said.splitlines() == [said]
    assert said != "adagpuspawner"
    assert one_line("张三 (ada@example.org)") == "张三 (ada@example.org)"


def test_a_refusal_that_the_hub_logs_is_one_line() -> None:
    for error in (http_errors.refusal(Refused(FORGED)), http_errors.failure(FORGED)):
        assert "\n" not in str(error)
        assert error.jupyterhub_message == FORGED


LOG_CALL = re.compile(r"(\b|_)log\.(debug|info|warning|error|exception|critical)$")


def log_calls() -> list[tuple[str, ast.Call]]:
    """Return every call of a logger in what runs in the hub, and where it is."""
    found = []
    for name in MODULES:
        path = ROOT / "gpuspawner" / f"{name.replace('.', '/')}.py"
        if name.startswith(("simulation", "doctor", "image_builder", "dashboard")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and LOG_CALL.search(ast.unparse(node.func)):
                found.append((name, node))
    return found


def test_what_others_can_choose_comes_into_no_line_as_it_is() -> None:
    calls = log_calls()
    assert len(calls) > 8
    for name, call in calls:
        template, *values = call.args
        assert isinstance(template, ast.Constant), f"{name}: {ast.unparse(call)}"
        conversions = re.findall(r"%[.\d]*(\w)", str(template.value))
        assert len(conversions) == len(values)
        for conversion, value in zip(conversions, values, strict=True):
            said = ast.unparse(value)
            # `said` is what one_line has made of something, where a line is too short for it.
            harmless = said == "said" or said.startswith(("one_line(", "self.log_name"))
            assert conversion in "dfgr" or harmless, f"{name}: {said}"


class Server:
    """A server with a lease, whose time a test lets pass."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.holder = Holder("ada")
        self.groups: frozenset[str] = frozenset()
        self.log = logging.getLogger("hub")
        self.pending = None
        self.longest_hours, self.extend_minutes, self.warning_minutes = 8, None, 15
        self.idle_minutes, self.idle_warning_minutes, self.idle_utilization = 0, 10, 5
        self.idle_exempt_groups: list[str] = []
        self.idle_only_while_waiting, self.waiting_requests = False, 0
        self.lease = self.new_lease()

    def new_lease(self) -> ServerLease:
        clock = Clock(lambda: self.now, lambda: self.now, lambda: "boot")
        return ServerLease(self, clock)  # type: ignore[arg-type]

    async def ensure_rules_applied(self) -> None:
        pass

    def on_lease_begin(self) -> None:
        pass

    def on_lease_end(self) -> None:
        pass

    def budgeted_end(self, until: float) -> tuple[float, str]:
        return until, ""

    def latest_end(self, until: float) -> tuple[float, str]:
        return until, ""

    def on_extended(self, end: Any) -> None:
        pass

    def on_end_changed(self, until: float) -> None:
        pass

    def save_state(self) -> None:
        pass

    def tell(self, occasion: str, words: str) -> None:
        pass

    async def stop_through_hub(self) -> None:
        self.lease.will_stop(audit_log.HUB, "stopped")
        self.lease.end()


async def test_a_time_that_is_over_is_told_from_its_grant_to_its_release(lines) -> None:
    ada = Server()
    ada.lease.begin_term(3600)
    ada.lease.hold(["GPU-0"])
    ada.now += 3000
    await ada.lease.enforce()
    ada.now += 600
    await ada.lease.enforce()
    await ada.lease._ending
    kinds = [(each["event"], each["by"], each.get("rule"), each["held"]) for each in lines()]
    assert kinds == [
        ("warn", "gpuspawner", "time limit", 3000),
        ("stop", "gpuspawner", "time limit", 3600),
        ("release", "gpuspawner", "time limit", 3600),
    ]


@pytest.mark.parametrize(
    ("stops", "by", "rule"),
    [
        (lambda lease: lease.will_stop(audit_log.HUB, "stopped"), "jupyterhub", "stopped"),
        (lambda lease: None, "server", "it ended by itself"),
    ],
)
def test_a_release_says_who_and_why_also_after_a_restart_of_the_hub(lines, stops, by, rule) -> None:
    ada = Server()
    ada.lease.hold(["GPU-0"])
    ada.now += 100
    kept = json.loads(json.dumps(ada.lease.saved()))
    ada.lease = ada.new_lease()
    ada.lease.restore(kept)
    ada.now += 50
    stops(ada.lease)
    ada.lease.end()
    (line,) = lines()
    assert (line["by"], line["rule"], line["held"]) == (by, rule, 150)
    # What the next server ends with is its own.
    ada.lease.hold(["GPU-1"])
    ada.lease.end()
    assert (lines()[1]["by"], lines()[1]["held"]) == ("server", 0)


def test_how_long_is_not_known_where_a_crash_has_lost_it(lines) -> None:
    ada = Server()
    ada.lease.adopt(Lease(ada.holder, frozenset({"GPU-0"}), ada.now + 60))
    ada.lease.end()
    assert lines()[0]["held"] is None


async def test_each_grant_has_its_release_whatever_becomes_of_it(lines) -> None:
    hub = Hub()
    one = hub.spawner()
    await begin(one, gpus=1)
    await one.run_pre_spawn_hook()
    one.clear_state()  # given up between its turn and its start
    await begin(one, gpus=1)
    hub.occupy()
    task = await waiting(one, hub)
    task.cancel()
    with pytest.raises(BaseException):  # noqa: B017, PT011
        await task
    seen = [(each["event"], each["by"], each.get("rule")) for each in lines()]
    assert seen == [
        ("grant", "gpuspawner", "fifo"),
        ("release", "gpuspawner", "given up before the start"),
        ("wait", "gpuspawner", "gpus"),
        ("leave", "jupyterhub", "given up"),
    ]
    assert lines()[0]["gpus"] == lines()[1]["gpus"]
    assert lines()[1]["held"] >= 0


def test_the_handbook_s_lines_give_the_record_a_file_of_its_own(tmp_path, monkeypatch) -> None:
    page = (ROOT / "docs" / "how-to" / "logs.md").read_text()
    (block,) = [
        each for each in re.findall(r"```python\n(.*?)```", page, re.S) if "logging" in each
    ]
    monkeypatch.chdir(tmp_path)
    c = Config()
    exec(block, {"c": c})
    hub = JupyterHub(config=c)
    hub.log.warning("User %s is here", FORGED)
    audit_log.record(hub.log, "grant", Holder(FORGED), "gpuspawner")
    (line,) = Path("gpuspawner.log").read_text().splitlines()
    assert json.loads(line.removeprefix("gpuspawner "))["user"] == FORGED
    for name in ("JupyterHub", "JupyterHub.gpuspawner"):
        for handler in [*logging.getLogger(name).handlers]:
            logging.getLogger(name).removeHandler(handler)
            handler.close()


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [("ada", True), ("ada.lovelace+1@example.org", True), ("张三", True), ("a b", False)]
    + [
        (f"ada{each}", False)
        for each in ("\n", "\r", "\x1b", "\u2028", "\x85", "\n[I ] gpuspawner")
    ],
)
def test_the_shipped_configuration_takes_no_name_that_could_forge_a_line(name, is_taken) -> None:
    shipped = (ROOT / "jupyterhub_config.py").read_text()
    (line,) = re.findall(r"^c\.Authenticator\.username_pattern = .*$", shipped, re.M)
    c = SimpleNamespace(Authenticator=SimpleNamespace())
    exec(line, {"c": c})
    pattern = c.Authenticator.username_pattern
    assert DummyAuthenticator(username_pattern=pattern).validate_username(name) is is_taken
