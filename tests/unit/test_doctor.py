"""`gpuspawner doctor` itself: its checks' order, one cause told once, how it shows and ends."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpuspawner.doctor.checks import CHECKS
from gpuspawner.doctor.command import Progress, Report, entry, hub_folder, summary
from gpuspawner.doctor.findings import Check, Context, Finding, examine

from ..support.imports import all_that_loads, top
from ..support.paths import ROOT


def found(checks: list[Check]) -> list[tuple[str, str, str]]:
    return [
        (title, finding.state, finding.found)
        for title, finding in examine(checks, Context(None, Path()), lambda check: None)
    ]


def check(title: str, *findings: Finding, needs: tuple[str, ...] = ()) -> Check:
    return Check(title, lambda context: findings, needs)


def broken(context: Context) -> list[Finding]:
    raise KeyError("Version")


# ---- One cause is told once ----------------------------------------------------------------------


def test_what_builds_on_a_failure_is_skipped_and_names_the_first_cause() -> None:
    checks = [
        check("engine", Finding("failure", "away")),
        check("images", Finding("ok", "there"), needs=("engine",)),
        check("container", Finding("ok", "started"), needs=("images",)),
        check("disk", Finding("ok", "room")),
    ]
    assert found(checks) == [
        ("engine", "failure", "away"),
        ("images", "skipped", "see engine"),
        ("container", "skipped", "see engine"),
        ("disk", "ok", "room"),
    ]


@pytest.mark.parametrize(
    ("finding", "goes_on"),
    [
        (Finding("ok", ""), True),
        (Finding("note", ""), True),
        (Finding("warning", ""), True),
        (Finding("failure", ""), False),
        (Finding("skipped", ""), False),
        (Finding("note", "", blocks=True), False),
        (Finding("failure", "", blocks=False), True),
    ],
)
def test_only_what_is_in_the_way_keeps_others_from_being_looked_at(
    finding: Finding, goes_on: bool
) -> None:
    last = found([check("a", finding), check("b", Finding("ok", "looked"), needs=("a",))])[-1]
    assert (last[1] == "ok") is goes_on


def test_a_check_that_breaks_off_has_failed_and_shows_no_traceback() -> None:
    (title, state, said), after = found(
        [Check("odd", broken), check("next", Finding("ok", "looked"))]
    )
    assert (title, state) == ("odd", "failure")
    assert said == "this check itself broke off (KeyError: 'Version')"
    assert after == ("next", "ok", "looked")


def test_what_was_found_before_a_check_broke_off_is_told() -> None:
    def half(context: Context):
        yield Finding("ok", "first")
        raise OSError("then")

    assert [state for _, state, _ in found([Check("odd", half)])] == ["ok", "failure"]


def test_each_check_needs_only_such_as_were_made_before() -> None:
    titles = [check.title for check in CHECKS]
    assert len(set(titles)) == len(titles)
    for position, each in enumerate(CHECKS):
        assert set(each.needs) <= set(titles[:position]), each.title


def test_the_doctor_waits_for_no_jupyterhub_before_its_first_line() -> None:
    parts = [
        "command",
        "checks",
        "configuration_rules",
        "trial",
        "containers",
        "images",
        "hub_machine",
    ]
    for part in parts:
        loaded = top(all_that_loads(f"doctor.{part}"))
        assert not loaded & {"jupyterhub", "dockerspawner", "tornado"}, part


# ---- How it shows --------------------------------------------------------------------------------


class Pipe(io.StringIO):
    encoding = "utf-8"


class Terminal(Pipe):
    def isatty(self) -> bool:
        return True


class Old(io.StringIO):
    encoding = "ascii"


def shown(out: io.StringIO, *findings: Finding) -> str:
    report = Report(out)
    for finding in findings:
        report.show("Disk space", finding)
    return out.getvalue()


EVERY = [Finding(state, "it is so", "do this\nthen that") for state in ("ok", "note", "warning")]
EVERY += [Finding("failure", "it is so", "do this\nthen that"), Finding("skipped", "see Driver")]


def test_each_line_says_state_check_and_finding_in_words_and_below_it_what_to_do() -> None:
    lines = shown(Pipe(), *EVERY).splitlines()
    assert lines[0].split(maxsplit=4) == ["✓", "ok", "Disk", "space", "it is so"]
    assert [line.strip() for line in lines[1:3]] == ["> do this", "> then that"]
    states = [line.split()[1] for line in lines if not line.strip().startswith(">")]
    assert states == ["ok", "note", "warning", "failure", "skipped"]
    assert len({line.index("it is so") for line in lines if "it is so" in line}) == 1


def test_colours_are_for_terminals_whose_user_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m✗ failure\x1b[0m" in shown(Terminal(), *EVERY)
    assert "\x1b" not in shown(Pipe(), *EVERY)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(Terminal(), *EVERY)


def test_a_terminal_s_lines_are_as_long_as_it_is_wide_and_commands_stay_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    command = "sudo " + "x" * 100
    lines = shown(Terminal(), Finding("note", "word " * 60, command)).splitlines()
    assert f"> {command}" in lines[-1]
    assert all(len(line) <= 80 for line in lines[:-1])
    assert len(lines) > 3


def test_where_symbols_cannot_be_written_there_are_others() -> None:
    lines = shown(Old(), Finding("failure", "größer ✗"))
    assert lines.isascii()
    assert lines.startswith("x failure")


def test_progress_is_told_on_a_terminal_only_and_leaves_nothing() -> None:
    slow = Check("Docker Engine", broken, is_slow=True)
    terminal, pipe = Terminal(), Pipe()
    for out in (terminal, pipe):
        progress = Progress(out)
        progress.show(slow)
        progress.show(Check("quick", broken))
        progress.close()
    assert "looking at: Docker Engine" in terminal.getvalue()
    assert "quick" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert pipe.getvalue() == ""


@pytest.mark.parametrize(
    ("states", "line"),
    [
        ([], "Ready: nothing is in the way."),
        (["ok", "note"], "Ready: nothing is in the way (1 note)."),
        (["ok", "warning", "warning"], "Ready: nothing is in the way (2 warnings)."),
        (["note", "skipped"], "Nothing is in the way of what was looked at (1 note, 1 skipped)."),
        (
            ["failure", "skipped", "skipped"],
            "1 failure, 2 skipped. Begin with the first failure, then run this again.",
        ),
    ],
)
def test_the_last_line_sums_up(states: list[str], line: str) -> None:
    assert summary(states).strip() == line


def test_the_json_of_a_finding() -> None:
    value = entry("Disk space", Finding("warning", "little", "make room"))
    assert value == {
        "check": "Disk space",
        "state": "warning",
        "found": "little",
        "advice": "make room",
    }


# ---- The command ---------------------------------------------------------------------------------


def test_the_hub_works_where_one_worked_else_beside_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "etc" / "config.py"
    monkeypatch.chdir(tmp_path)
    assert hub_folder(None) == tmp_path
    assert hub_folder(config) == tmp_path / "etc"
    (tmp_path / "jupyterhub.sqlite").touch()
    assert hub_folder(config) == tmp_path


def doctor(*words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpuspawner", "doctor", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("words", [["-f", "nowhere.py"], ["--jsn"], ["-f", "."], ["more"]])
def test_arguments_that_make_no_sense_end_with_2(tmp_path: Path, words: list[str]) -> None:
    done = doctor(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_bare_machine_is_told_what_to_do_and_ends_with_1(tmp_path: Path) -> None:
    bare = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "PATH": str(tmp_path)}
    told = doctor(cwd=tmp_path, **bare)
    entries = json.loads(doctor("--json", cwd=tmp_path, **bare).stdout)
    assert told.returncode == 1
    assert told.stderr == ""
    assert [set(each) for each in entries] == [{"check", "state", "found", "advice"}] * len(entries)
    # Without a driver there is nothing to say of GPUs, nor of other machines where there are none.
    silent = {check.title for check in CHECKS} - {each["check"] for each in entries}
    assert silent <= {"GPUs", "Other machines"}
    failed = [each for each in entries if each["state"] == "failure"]
    assert {"Docker Engine", "Proxy"} <= {each["check"] for each in failed}
    assert all(each["advice"] for each in failed)
    for each in entries:
        assert re.search(rf"{each['state']} +{re.escape(each['check'])}  ", told.stdout)


def test_a_reader_that_stops_reading_sees_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gpuspawner doctor | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
