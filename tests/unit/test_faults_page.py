"""Each row of the handbook's table of faults has tests which bring that fault about."""

from __future__ import annotations

import itertools
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
    "A process of no server's uses a GPU that was chosen for a start": [
        "unit/test_leases.py::test_what_somebody_uses_since_it_was_reserved_is_not_claimed"
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


SWARM, SPAWN = "engine/test_swarm_faults.py", "unit/test_swarm_spawn.py"
MANAGERS = "engine/test_swarm_managers.py"
ON_A_SWARM = {
    "A machine is cut off for less than three heartbeats": [
        f"{SWARM}::test_a_machine_that_is_away_for_a_moment_loses_nothing"
    ],
    "A machine is cut off for longer": [
        f"{SWARM}::test_a_machine_that_is_away_for_long_ends_its_servers_and_everybody_is_told",
        f"{SWARM}::test_who_stops_a_server_that_is_out_of_reach_gives_its_gpus_back_with_the_machine",
        f"{SPAWN}::test_a_machine_that_goes_away_as_a_server_starts_there_is_left_at_once",
    ],
    "A machine is started anew, or its Docker Engine": [
        f"{SWARM}::test_a_machines_engine_that_is_started_anew_ends_its_servers"
    ],
    "docker node update --availability drain": [
        f"{SWARM}::test_a_machine_that_is_emptied_ends_its_servers_and_is_used_again",
        f"{SPAWN}::test_who_is_on_a_machine_that_is_emptied_reads_that",
    ],
    "docker node update --availability pause": [
        f"{SWARM}::test_a_machine_that_takes_no_more_servers_keeps_those_that_run"
    ],
    "docker node rm --force": [
        f"{SPAWN}::test_what_a_machine_that_was_away_has_not_ended_yet_keeps_its_gpus",
        f"{SPAWN}::test_whatever_ends_a_task_as_it_starts_ends_the_start",
    ],
    "docker service rm, docker service scale NAME=0": [
        f"{SWARM}::test_a_service_that_is_removed_by_hand_gives_its_gpus_back"
    ],
    "docker service update --force, or with another image": [
        f"{SWARM}::test_a_service_that_is_restarted_by_hand_is_ended"
    ],
    "docker service scale NAME=2": [
        f"{SWARM}::test_a_service_that_is_scaled_by_hand_keeps_its_first_container"
    ],
    "docker rm -f on its machine": [
        f"{SWARM}::test_a_container_that_is_removed_on_its_machine_gives_its_gpus_back"
    ],
    "A container or a service made by hand has a GPU": [
        f"{SWARM}::test_a_container_made_by_hand_on_a_machine_has_its_gpu_until_it_ends",
        "engine/test_swarm.py::test_what_a_service_by_hand_reserves_or_names_is_not_handed_out",
    ],
    "No manager leads, or the hub's doesn't answer": [
        f"{SWARM}::test_a_start_while_managers_refuse_is_made_or_undone",
        f"{SWARM}::test_a_stop_while_managers_refuse_happens_all_the_same",
        f"{SPAWN}::test_a_swarm_without_a_leader_for_long_fails_a_start_and_says_why",
    ],
    "Of three managers one is lost, also the one that leads": [
        f"{MANAGERS}::test_of_three_managers_one_is_lost_and_nobody_s_place"
    ],
    "Of two managers one is lost": [
        f"{MANAGERS}::test_of_two_managers_one_is_lost_and_all_go_on_once_it_is_back"
    ],
    "A manager is killed and starts again": [
        f"{SWARM}::test_a_manager_that_is_killed_takes_nobodys_place",
        f"{MANAGERS}::test_a_manager_that_is_killed_keeps_the_holes_of_what_is_given",
    ],
    "A machine's daemon is silent, slow, of another version, or says what can't be": [
        f"{SWARM}::test_a_daemon_that_says_nothing_ends_no_server_and_gives_no_gpu"
    ],
    "A process of no server's uses a GPU that was chosen for a start": [
        f"{MANAGERS}::test_a_gpu_that_somebody_uses_since_it_was_chosen_is_not_handed_out"
    ],
    "The hub is killed while a server stops": [
        f"{MANAGERS}::test_a_hub_that_is_killed_while_a_server_stops_has_its_gpus_back"
    ],
    "The hub is killed": [f"{SWARM}::test_a_hub_that_is_killed_while_a_machine_is_away_finds_out"],
}


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without that of its columns."""
    lines = page.partition(heading)[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line[:1] == "|")
    rows = itertools.takewhile(lambda line: line[:1] == "|", lines[first:])
    cells = [re.split(r" *\| *", line)[1:-1] for line in rows]
    assert {len(row) for row in cells} == {5}
    return cells[2:]


def test_each_row_has_a_test() -> None:
    rows = table((ROOT / "docs" / "explanation" / "faults.md").read_text(), "# When")
    assert [row[0].replace("`", "") for row in rows] == [*ROWS]
    assert all(all(row) for row in rows)


def test_each_row_of_a_swarm_has_a_test() -> None:
    rows = table((ROOT / "docs" / "how-to" / "swarm.md").read_text(), "## What happens when")
    assert [row[0].replace("`", "") for row in rows] == [*ON_A_SWARM]
    assert all(all(row[:4]) for row in rows)


def test_these_tests_are_there() -> None:
    for each in {name for names in (*ROWS.values(), *ON_A_SWARM.values()) for name in names}:
        path, _, name = each.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(), each
