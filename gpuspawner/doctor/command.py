"""`gpuspawner doctor`: its arguments, and the output of findings for people and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from . import gpu_report
from .checks import CHECKS
from .findings import Check, Context, Finding, examine

CONFIG_NAME = "jupyterhub_config.py"
# Files that a hub creates in its working folder.
HUB_FILES = ("jupyterhub.sqlite", "jupyterhub_cookie_secret")

SYMBOLS = {"ok": "✓", "note": "·", "warning": "!", "failure": "✗", "skipped": "-"}
PLAIN_SYMBOLS = {"ok": "+", "note": ".", "warning": "!", "failure": "x", "skipped": "-"}
# ref: ECMA-48, 8.3.117 SGR
COLOURS = {"ok": "32", "note": "36", "warning": "33", "failure": "31", "skipped": "2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this subcommand's arguments."""
    parser.description = (
        "Check this machine and a hub's configuration from the driver up to a container with a "
        "GPU, and say what to do about what is wrong."
    )
    parser.epilog = "Exit status: 0 all is well (notes and warnings count as well), 1 a failure, 2 "
    parser.epilog += "arguments that make no sense."
    parser.add_argument(
        "-f",
        "--config",
        type=Path,
        metavar="FILE",
        help=f"the hub's configuration (default: {CONFIG_NAME} in this folder, if it is there)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--gpu-report",
        action="store_true",
        help="try this machine's GPUs themselves, with kernels too, and print a report to paste, "
        "without what is of this machine alone; no configuration is read",
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="FILE",
        help="with --gpu-report: the Python whose PyTorch is tried (default: this one)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run all checks and print their findings; return 0, 1 for a failure, 2 for wrong arguments."""
    config = arguments.config
    wrong = _wrong_together(arguments)
    if wrong:
        print(f"gpuspawner doctor: {wrong}", file=sys.stderr)
        return 2
    if config is not None and not config.is_file():
        print(f"gpuspawner doctor: there is no file {config}", file=sys.stderr)
        return 2
    if config is None and Path(CONFIG_NAME).is_file() and not arguments.gpu_report:
        config = Path(CONFIG_NAME)
    config = config.absolute() if config else None
    context = Context(config, hub_folder(config))
    # However this process is ended, it has to remove its trial containers first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if (
            signal.getsignal(number) != signal.SIG_IGN
        ):  # a signal that is ignored, as under `nohup`, stays ignored
            signal.signal(number, _interrupt)
    try:
        if arguments.gpu_report:
            python = arguments.python or Path(sys.executable)
            return _run_gpu_report(context, python, as_json=arguments.json)
        return _run(CHECKS, context, as_json=arguments.json)
    except KeyboardInterrupt:
        print("gpuspawner doctor: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `gpuspawner doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        if context.engine:
            context.engine.close()


def hub_folder(config: Path | None) -> Path:
    """Return the hub's working folder: this one if a hub has run here, else the configuration's."""
    here = Path.cwd()
    if config is None or any((here / name).exists() for name in HUB_FILES):
        return here
    return config.parent


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt


def _wrong_together(arguments: argparse.Namespace) -> str:
    """Return which arguments make no sense together, as a sentence; "" if all do."""
    if arguments.gpu_report and arguments.config is not None:
        return "--gpu-report reads no configuration: leave --config out"
    if arguments.python is not None and not arguments.gpu_report:
        return "--python belongs to --gpu-report"
    return ""


def _run_gpu_report(context: Context, python: Path, as_json: bool) -> int:
    """Print the report of this machine's GPUs; 0 as well where there are none to report of."""
    if why := gpu_report.nothing_to_test():
        print("[]" if as_json else f"skipped: {why}")
        return 0
    if not as_json:
        print("gpuspawner's GPU report\n")
        clean = gpu_report.anonymous(context)
        for line in gpu_report.header():
            print(clean(line))
        print()
    return _run(gpu_report.checks(python), context, as_json, gpu_report.anonymous)


def _run(
    checks: Sequence[Check],
    context: Context,
    as_json: bool,
    cleaner: Callable[[Context], Callable[[str], str]] | None = None,
) -> int:
    progress = Progress(sys.stderr)
    report = Report(sys.stdout, checks)
    entries: list[dict[str, str]] = []
    with closing(progress) if not as_json else nullcontext():
        found = examine(checks, context, progress.show if not as_json else lambda check: None)
        for title, finding in found:
            if cleaner:
                # By what is known of the machine by then.
                clean = cleaner(context)
                words, advice = clean(finding.found), clean(finding.advice)
                finding = replace(finding, found=words, advice=advice)
            entries.append(entry(title, finding))
            if not as_json:
                progress.clear()
                report.show(title, finding)
    if as_json:
        print(json.dumps(entries, indent=2))
    else:
        print(summary(each["state"] for each in entries))
    return int(any(each["state"] == "failure" for each in entries))


def entry(title: str, finding: Finding) -> dict[str, str]:
    """Return the documented JSON value of a finding."""
    return {
        "check": title,
        "state": finding.state,
        "found": finding.found,
        "advice": finding.advice,
    }


def summary(states: Iterable[str]) -> str:
    """Return the last line of the output: how many findings of each state, and where to begin."""
    counts = Counter(states)
    parts = [
        f"{counts[state]} {state}{'' if counts[state] == 1 or state == 'skipped' else 's'}"
        for state in ("failure", "warning", "note", "skipped")
        if counts[state]
    ]
    if counts["failure"]:
        return f"\n{', '.join(parts)}. Begin with the first failure, then run this again."
    said = f" ({', '.join(parts)})" if parts else ""
    if counts["skipped"]:
        return f"\nNothing is in the way of what was looked at{said}."
    return f"\nReady: nothing is in the way{said}."


class Report:
    """The output for people: a line of state, check and finding, and the advice below it."""

    def __init__(self, out: TextIO, checks: Sequence[Check] = CHECKS) -> None:
        self._out = out
        self._colours = out.isatty() and "NO_COLOR" not in os.environ
        self._symbols = SYMBOLS if _can_write(out, "".join(SYMBOLS.values())) else PLAIN_SYMBOLS
        self._titles = max(len(check.title) for check in checks)
        # A file or a pipe has no width, so lines aren't broken.
        width = shutil.get_terminal_size().columns if out.isatty() else 10_000
        self._width = max(60, width)

    def show(self, title: str, finding: Finding) -> None:
        """Print one finding."""
        head = f"{self._symbols[finding.state]} {finding.state:7}"
        begin = f"{title:{self._titles}}  "
        indent = " " * (len(head) + 2 + len(begin))
        room = self._width - len(indent)
        first, *others = textwrap.wrap(finding.found, room, break_long_words=False) or [""]
        self._print(f"{self._coloured(head, finding.state)}  {begin}{first}")
        for line in others:
            self._print(indent + line)
        # Commands and configuration lines are copied from here, so they aren't broken.
        for line in finding.advice.splitlines():
            self._print(f"{indent}> {line}")

    def _coloured(self, text: str, state: str) -> str:
        return f"\x1b[{COLOURS[state]}m{text}\x1b[0m" if self._colours else text

    def _print(self, line: str) -> None:
        encoding = self._out.encoding or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=self._out, flush=True)


class Progress:
    """The name of the running check, in a line that is overwritten; nothing without a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out: TextIO | None = out if out.isatty() else None

    def show(self, check: Check) -> None:
        """Show the title of a check that is slow."""
        if self._out and check.is_slow:
            self._out.write(f"\r  looking at: {check.title} …\x1b[K")
            self._out.flush()

    def clear(self) -> None:
        """Clear the line, for a finding."""
        if self._out:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def close(self) -> None:
        """Clear the line, at the end."""
        self.clear()


def _can_write(out: Any, text: str) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
