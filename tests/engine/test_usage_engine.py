"""What the store says of servers' time, beside what the engine says of their containers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gpuspawner.backends.docker import runs

from ..support.hubs import until
from ..support.looks import container_of
from ..support.usage import rows

pytestmark = pytest.mark.engine

# The machine's clock is slewed by a little while they run.
CLOSE = 0.05


def url(hub: Any) -> str:
    return f"sqlite:///{hub.folder / 'gpuspawner-usage.sqlite'}"


def events_of(engine: Any) -> dict[str, dict[str, float]]:
    """Return container -> event -> when it was first, by the engine's own word."""
    found: dict[str, dict[str, float]] = {}
    for event in engine.events(since=1, until=f"{time.time():.9f}", decode=True):
        if event.get("Type") == "container" and event["Action"] in ("start", "kill", "die"):
            of_container = found.setdefault(event["Actor"]["ID"], {})
            of_container.setdefault(event["Action"], event["timeNano"] / 1e9)
    return found


def over(hub: Any) -> dict[str, Any]:
    """Return user -> the row of the lease, once all that were begun are over."""
    found = rows(url(hub))
    return {row.user: row for row in found} if all(row.is_over for row in found) else {}


def test_the_time_is_the_container_s_whoever_ends_it_and_whoever_is_killed(make_hub, engine):
    hub = make_hub()
    for user in ("ada", "ben", "cyd", "dan"):
        hub.start_server(user, {"gpus": 1})
    ids = {user: container_of(engine, user) for user in ("ada", "ben", "cyd", "dan")}
    until(lambda: len(rows(url(hub))) == 4, "each has a row as it runs", log=hub.log)
    hub.stop_server("ada")
    # Only the hub knows why; of one that is killed before it has written that, it isn't known.
    ended = lambda: [row.user for row in rows(url(hub)) if row.is_over]  # noqa: E731
    until(lambda: ended() == ["ada"], "why ada's has ended is written", log=hub.log)
    engine.remove_container(ids["ben"], force=True)
    hub.kill()
    # While no hub is there to see it.
    engine.remove_container(ids["cyd"], force=True)
    hub.start()
    until(lambda: not hub.ready("ben") and not hub.ready("cyd"), "the hub knows", log=hub.log)
    hub.stop_server("dan")
    until(lambda: len(over(hub)) == 4, "all are over", seconds=60, log=hub.log)
    found, events = over(hub), events_of(engine)
    assert {row.server_id for row in found.values()} == set(ids.values())
    for user, row in found.items():
        of_container = events[ids[user]]
        assert row.began == pytest.approx(of_container["start"], abs=CLOSE)
        # The engine says that one has died only once it has read all of its output.
        end = row.began + row.seconds
        assert of_container["kill"] - CLOSE <= end <= of_container["die"] + CLOSE
        assert (row.share_part, row.share_of, row.image) == (1, 1, "minimal")
        assert row.waited is not None
    whys = {user: row.why for user, row in found.items()}
    assert whys["ben"] == whys["cyd"] == "killed"
    assert whys["ada"] == whys["dan"] == "service"  # the tests are one


@pytest.mark.thorough
def test_one_that_is_kept_is_of_its_own_inspection(make_hub, engine):
    hub = make_hub("c.GPUSpawner.remove = False")
    hub.start_server("ada", {"gpus": 1})
    of_ada = container_of(engine, "ada")
    hub.kill()
    engine.stop(of_ada)
    run = runs.run_of(engine.inspect_container(of_ada)["State"])
    assert run.started is not None
    assert run.ended is not None
    hub.start()
    until(lambda: over(hub), "it is over", seconds=60, log=hub.log)
    row = over(hub)["ada"]
    assert row.began == pytest.approx(run.started, abs=CLOSE)
    assert row.seconds == pytest.approx(run.ended - run.started, abs=CLOSE)
    # It is still there, and isn't another one.
    hub.kill()
    hub.start()
    hub.start_server("ben", {"gpus": 1})
    until(lambda: len(rows(url(hub))) == 2, "ben's is there as well", seconds=60, log=hub.log)
    assert [row.user for row in rows(url(hub))] == ["ada", "ben"]


def test_a_store_that_cannot_be_written_stops_no_server(make_hub, engine, tmp_path):
    folder = tmp_path / "missing"
    hub = make_hub(f"c.GPUSpawner.usage_db = 'sqlite:///{folder / 'usage.sqlite'}'")
    hub.start_server("ada", {"gpus": 1})
    of_ada = container_of(engine, "ada")
    until(lambda: "usage_db can't be written" in hub.log(), "the log says so", log=hub.log)
    hub.stop_server("ada")
    hub.start_server("ben", {"gpus": 1})
    assert hub.log().count("usage_db can't be written") == 1
    folder.mkdir()
    address = f"sqlite:///{folder / 'usage.sqlite'}"
    until(lambda: "is written again" in hub.log(), "it is caught up", seconds=60, log=hub.log)
    until(lambda: rows(address)[0].is_over, "ada's is over", seconds=60, log=hub.log)
    found = rows(address)
    assert [(row.user, row.is_over) for row in found] == [("ada", True), ("ben", False)]
    of_container = events_of(engine)[of_ada]
    assert found[0].seconds == pytest.approx(of_container["die"] - of_container["start"], abs=CLOSE)
