"""A server that an administrator stops, now or later: what its user is told, and what the log."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.errors import Refused
from gpuspawner.gpus.model import Holder
from gpuspawner.i18n.languages import language_for
from gpuspawner.leases import audit_log
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.server_lease import ServerLease

HOUR = 3600.0
CHINESE = language_for("zh-CN")


class Server:
    """A server of ada's, of which a test lets some time pass, and that ends when it is stopped."""

    longest_hours: float | None = 12
    warning_minutes, extend_minutes = 15.0, None
    idle_minutes, waiting_requests = 0.0, 0
    holder, groups, pending = Holder("ada"), frozenset[str](), None
    broken, image_title = False, "Plain"

    def __init__(self, hours: float | None = 4) -> None:
        self.now = 1_800_000_000.0
        self.log: Any = SimpleNamespace(error=lambda *args, **more: None)
        self.ends: list[float] = []
        self.saved, self.stops = 0, 0
        self.told: list[tuple[str, str]] = []
        self.clock = Clock(lambda: self.now, lambda: self.now, lambda: "boot")
        self.lease = ServerLease(self, self.clock)  # type: ignore[arg-type]
        self.lease.begin_term(hours and hours * HOUR)
        self.lease.hold(["GPU-0"])

    def on_lease_begin(self) -> None:
        pass

    def on_lease_end(self) -> None:
        pass

    def on_end_changed(self, until: float) -> None:
        self.ends.append(until)

    def save_state(self) -> None:
        self.saved += 1

    def tell(self, occasion: str, words: str) -> None:
        self.told.append((occasion, words))

    async def ensure_rules_applied(self) -> None:
        pass

    async def read_extended_end(self) -> None:
        """Have no longer end than the hub knows."""

    async def stop_through_hub(self) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("no engine")
        self.stops += 1
        self.lease.end()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    found: list[tuple[str, str, dict[str, Any]]] = []
    monkeypatch.setattr(
        audit_log,
        "record",
        lambda log, event, holder, by, **facts: found.append((event, by, facts)),
    )
    return found


async def test_at_once_with_a_reason_that_its_user_and_the_log_have(events) -> None:
    ada = Server()
    await ada.lease.stop_for("user:boss", " The room\nis too hot. ")
    assert ada.stops == 1
    said = str(ada.lease.notice)
    assert said.startswith("An administrator stopped your server at ")
    assert said.endswith(": The room is too hot. Your files are kept.")
    assert CHINESE.say(ada.lease.notice).endswith(
        "停止您的服务器：The room is too hot。您的文件都已保留。"
    )
    why = "The room is too hot."
    assert [(event, by, facts["rule"], facts.get("why")) for event, by, facts in events] == [
        ("stop", "user:boss", "an administrator", why),
        ("release", "user:boss", "an administrator", None),
    ]
    assert ada.lease.ending
    assert ada.lease.ending.facts() == {"at": ada.now, "rule": "an administrator", "why": why}


async def test_without_a_reason_nothing_is_made_up(events) -> None:
    ada = Server()
    await ada.lease.stop_for("user:boss")
    assert ". Your files are kept." in str(ada.lease.notice)
    assert str(ada.lease.notice).count(":") == 1  # the time's
    assert "why" not in events[0][2]


async def test_later_it_is_announced_first_and_its_end_is_known(events) -> None:
    ada = Server()
    await ada.lease.stop_for("user:boss", "maintenance", 10)
    at = ada.now + 600
    assert (ada.stops, ada.lease.until, ada.saved) == (0, at, 1)
    rule = "an administrator"
    assert ada.lease.facts()["stop"] == {"at": at, "why": "maintenance", "rule": rule}
    assert ada.lease.facts()["until"] == ada.ends[-1] == at
    event, by, facts = events[0]
    assert (event, by, facts["rule"], facts["why"]) == (
        "warn", "user:boss", "an administrator", "maintenance",
    )  # fmt: skip
    await ada.lease.enforce()
    assert ada.stops == 0
    ada.now += 601
    await ada.lease.enforce()
    await asyncio.sleep(0.01)
    assert ada.stops == 1
    assert "maintenance" in str(ada.lease.notice)
    assert ada.lease.announced is None


async def test_a_server_whose_time_does_not_end_has_an_end_then(events) -> None:
    ada = Server(hours=None)
    assert ada.lease.until is None
    await ada.lease.stop_for("user:boss", minutes=10)
    assert ada.lease.until == ada.now + 600
    await ada.lease.enforce()
    assert ada.ends[-1] == ada.now + 600


async def test_its_own_end_is_no_later_for_an_announced_stop(events) -> None:
    ada = Server(hours=1)
    await ada.lease.stop_for("user:boss", minutes=120)
    assert ada.lease.until == ada.now + HOUR


async def test_nobody_extends_it_meanwhile(events) -> None:
    ada = Server()
    await ada.lease.stop_for("user:boss", minutes=10)
    for over_all in (False, True):
        with pytest.raises(Refused, match="An administrator stops this server at") as refused:
            ada.lease.extend(1, over_all=over_all)
        assert refused.value.status == 409


async def test_the_announcement_is_taken_back(events) -> None:
    ada = Server()
    with pytest.raises(Refused, match="No stop of this server is announced"):
        ada.lease.take_back_stop("user:boss")
    await ada.lease.stop_for("user:boss", "maintenance", 10)
    ada.lease.take_back_stop("user:boss")
    assert ada.lease.until == ada.now + 4 * HOUR
    assert (ada.lease.facts()["stop"], events[-1][:2]) == (None, ("keep", "user:boss"))
    ada.now += 700
    await ada.lease.enforce()
    assert ada.stops == 0


async def test_it_outlives_a_restart_of_the_hub(events) -> None:
    before = Server()
    await before.lease.stop_for("user:boss", "maintenance", 10)
    after = Server()
    after.lease.restore(json.loads(json.dumps(before.lease.saved())))
    assert after.lease.facts()["stop"] == before.lease.facts()["stop"]
    after.now += 601
    await after.lease.enforce()
    assert [event for event, *_ in events] == ["warn", "stop"]
    assert events[-1][1] == "user:boss"


async def test_a_stop_that_fails_is_refused_and_one_that_goes_on_not_begun_again(events) -> None:
    ada = Server()
    ada.broken = True
    with pytest.raises(Refused, match="couldn't be stopped"):
        await ada.lease.stop_for("user:boss")
    ada.broken = False
    first = asyncio.ensure_future(ada.lease.stop_for("user:boss"))
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="It is too late"):
        await ada.lease.stop_for("user:boss")
    await first
    assert ada.stops == 1


async def test_a_rule_s_stop_is_an_ending_too(events) -> None:
    ada = Server(hours=1 / 3600)
    for _ in range(2):  # it is warned first
        ada.now += 400
        await ada.lease.enforce()
    await asyncio.sleep(0.01)
    assert ada.lease.ending
    assert (ada.lease.ending.rule, ada.lease.ending.why) == ("time limit", "")
