"""Each row of the handbook's table of faults has tests which bring that fault about."""

from __future__ import annotations

import re

from ..support.paths import ROOT

ENGINE, HUB, KILLED, DISKS = (
    f"engine/test_{name}.py" for name in ("faults", "hub_faults", "killed_starts", "full_disks")
)
# What fails -> the tests of what the row says.
ROWS = {
    "Docker hangs": [f"{ENGINE}::test_an_engine_that_hangs_stops_nobody"],
    "Docker is restarted or killed, with live-restore": [
        f"{ENGINE}::test_an_engine_that_ends_with_live_restore_stops_no_server"
    ],
    "Docker is restarted or killed, without": [
        f"{ENGINE}::test_an_engine_that_ends_takes_the_servers_along"
    ],
    "Docker and all containers are killed at once": [
        f"{ENGINE}::test_a_machine_that_loses_engine_and_containers_at_once"
    ],
    "A server is killed from outside": [
        f"{ENGINE}::test_a_server_that_is_killed_from_outside_ends_with_a_word"
    ],
    "Docker's disk is full": [f"{DISKS}::test_an_engine_whose_disk_is_full"],
    "The servers' network is removed by force": [
        f"{HUB}::test_a_network_that_is_taken_away_is_made_anew_with_who_was_on_it",
        "unit/test_network.py::test_who_was_on_it_has_the_address_of_before",
    ],
    "A GPU fails": [
        "engine/test_gpu_health.py::"
        "test_a_gpu_that_fails_beside_a_server_is_marked_until_it_was_reset",
        "unit/test_health.py::test_from_an_event_on_its_gpu_is_leased_to_nobody",
        "unit/test_health_shown.py::"
        "test_nobody_is_promised_a_gpu_that_has_failed_for_when_its_holder_goes",
    ],
    "NVML hangs": [f"{HUB}::test_a_driver_that_hangs_stops_nobody"],
    "The hub is killed, at whichever step of a start": [
        f"{HUB}::test_a_hub_that_ends_stops_no_server",
        f"{HUB}::test_a_hub_that_is_killed_ends_a_start_that_never_answers",
        f"{KILLED}::test_a_hub_killed_at_each_call",
        f"{KILLED}::test_a_hub_killed_at_each_await",
    ],
    "The hub is ended and started again": [f"{HUB}::test_a_hub_that_ends_stops_no_server"],
    "The hub's disk is full": [f"{DISKS}::test_a_hub_whose_disk_is_full"],
    "The hub's database is lost": [
        f"{HUB}::test_a_hub_that_has_lost_its_database_leaves_servers_alone"
    ],
    "The proxy is killed": [f"{HUB}::test_a_proxy_that_is_killed_is_back_with_all_its_routes"],
    "The dashboard is killed": [
        f"{HUB}::test_a_dashboard_that_is_killed_is_back_and_disturbs_nobody"
    ],
    "The clock is set": [f"{HUB}::test_a_clock_that_is_set_ends_no_time_and_gives_none"],
}


def test_each_row_has_a_test() -> None:
    page = (ROOT / "docs" / "explanation" / "faults.md").read_text()
    cells = [re.split(r" *\| *", line)[1:-1] for line in page.splitlines() if line[:1] == "|"]
    assert {len(row) for row in cells} == {5}
    assert [row[0].replace("`", "") for row in cells[2:]] == [*ROWS]
    assert all(all(row) for row in cells)


def test_these_tests_are_there() -> None:
    for each in {name for names in ROWS.values() for name in names}:
        path, _, name = each.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(), each
