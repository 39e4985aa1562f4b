"""`gpuspawner usage`: who used what, from the store that a hub writes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..doctor.command import CONFIG_NAME, hub_folder
from ..errors import GPUSpawnerError, Refused
from ..untrusted import parse_json, printable
from . import database, report
from .report import DIMENSIONS, Period, Scope, Sums
from .store import Store

HEADS = (
    "LEASES",
    "GPU HOURS",
    "UNUSED",
    "MEASURED",
    "USE %",
    "MEMORY GiB",
    "MOST",
    "WAIT min",
    "LONGEST",
)
# The longest name in a table, in characters.
MAX_SHOWN = 60
# How long a configuration may take to load, in seconds.
LOAD_SECONDS = 60


class NotDone(GPUSpawnerError):
    """What was asked for isn't done. `str()` says why, and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this subcommand's arguments."""
    parser.epilog = (
        "Dates are of local time: from the first on, and not the second any more. Both may have a "
        "time of day, 2026-11-01T08:00."
    )
    parser.add_argument(
        "--from", dest="begin", default="", metavar="DATE", help="default: the first of this month"
    )
    parser.add_argument("--to", dest="end", default="", metavar="DATE", help="default: tomorrow")
    parser.add_argument("--by", choices=DIMENSIONS, default="user", help="default: user")
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="default: table"
    )
    parser.add_argument("--hub", metavar="URL", help="of one hub of several that share the store")
    parser.add_argument(
        "-f",
        "--config",
        type=Path,
        metavar="FILE",
        help=f"the hub's configuration (default: {CONFIG_NAME} in this folder, if it is there)",
    )
    parser.add_argument("--db", metavar="URL", help="the store, in place of the configuration's")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--give-out", metavar="USER", help="print all that is kept of a user, as JSON")
    one.add_argument("--forget", metavar="USER", help="remove what is kept of a user")
    parser.add_argument("--yes", action="store_true", help="don't ask before that")


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; return 0, 1 if it isn't done, 2 for wrong arguments."""
    try:
        period = report.parse_period(arguments.begin, arguments.end, time.time())
    except Refused as error:
        print(f"gpuspawner usage: {printable(str(error), 1000)}", file=sys.stderr)
        return 2
    try:
        with opened(_address(arguments), writes=bool(arguments.forget)) as store:
            if arguments.forget:
                _forget(store, arguments)
            elif arguments.give_out:
                of = arguments.give_out, arguments.hub
                rows = [*store.rows_of(*of), *store.hours_of(*of)]
                print(json.dumps(rows, indent=2))
            else:
                print(_report(store, period, arguments), end="")
    except GPUSpawnerError as error:
        print(f"gpuspawner usage: {printable(str(error), 1000)}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def opened(url: str, *, writes: bool) -> Iterator[Store]:
    """Open a store for the time of a command; raises what isn't as it should be as a sentence."""
    try:
        address = database.check(url)
    except ValueError as error:
        raise NotDone(f"the store's address: {error}") from None
    path = database.file_of(address)
    if path and not path.exists():
        raise NotDone(
            f"there is no {path}: a hub that has run makes it. Call this in the hub's folder, or "
            "name the store by --db"
        )
    store = Store(url, writes=writes)
    try:
        store.check_revision()
        yield store
    finally:
        store.close()


def _address(arguments: argparse.Namespace) -> str:
    """Return the address of the store: as given, or else the configuration's."""
    if arguments.db:
        return str(arguments.db)
    config = arguments.config or (Path(CONFIG_NAME) if Path(CONFIG_NAME).is_file() else None)
    if config is None:
        url = "sqlite:///gpuspawner-usage.sqlite"
    elif not config.is_file():
        raise NotDone(f"there is no file {config}")
    else:
        url = _configured(config.absolute())
    if not url:
        raise NotDone("c.GPUSpawner.usage_db is empty: nothing is kept")
    folder = hub_folder(config.absolute() if config else None)
    return database.relative_to(url, folder)


def _configured(config: Path) -> str:
    """Return `usage_db` of a configuration, which is code: it is loaded in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        command = [sys.executable, "-m", "gpuspawner.usage.configured", str(config), str(result)]
        try:
            done = subprocess.run(
                command, cwd=hub_folder(config), timeout=LOAD_SECONDS, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NotDone(f"{config} isn't through after {LOAD_SECONDS} s") from None
        if not result.is_file():
            last = (done.stderr.strip().splitlines() or ["it ended"])[-1]
            raise NotDone(f"{config} can't be loaded: {last}. gpuspawner doctor says more")
        answer = parse_json(result.read_text())
    return str(answer)


def _report(store: Store, period: Period, arguments: argparse.Namespace) -> str:
    rows, total = store.report(period, arguments.by, Scope(hub=arguments.hub))
    if arguments.format == "csv":
        return report.as_csv(rows)
    if arguments.format == "json":
        return json.dumps(report.as_json(rows), indent=2) + "\n"
    return _table(rows, total, arguments.by)


def _table(rows: list[Sums], total: Sums, by: str) -> str:
    if not rows:
        return "Nobody held a GPU in that time.\n"
    lines: list[tuple[str, ...]] = [(by.upper(), *HEADS)]
    for row in rows:
        lines.append((printable(row.name or "(none)", MAX_SHOWN), *report.cells(row)))
    lines.append(("all", *report.cells(total)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + "\n"
        for line in lines
    )


def _forget(store: Store, arguments: argparse.Namespace) -> None:
    user = arguments.forget
    kept = store.rows_of(user, arguments.hub)
    named = printable(user, MAX_SHOWN)
    if not kept and not store.hours_of(user, arguments.hub):
        raise NotDone(f"nothing is kept of {named}")
    if not arguments.yes and not _agreed(f"Remove {len(kept)} leases of {named} from the usage?"):
        print("they stay")
        return
    removed, left = store.forget(user, arguments.hub)
    print(f"removed {removed} leases of {named}")
    if left:
        print(f"{left} stay, as their servers run: do it again when they are stopped")


def _agreed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
