"""Install what a command needs: `python3 -m scripts.setup test|lint|docs|…`."""

from __future__ import annotations

import sys

from . import packages
from .console import LOG, ROOT, Stop, finish, make_run_folder
from .environment import ensure_environment, ensure_node_modules

ENVIRONMENT = ROOT / ".venv"
OLDEST = ROOT / ".venv-oldest"


def begin() -> None:
    """Create an empty log of the installation."""
    make_run_folder()
    LOG.unlink(missing_ok=True)


def for_running(*, simulated: bool) -> None:
    """Install the hub's environment and proxy, and what a simulated host needs."""
    programs = packages.missing(packages.SIMULATION) if simulated else []
    packages.install(packages.missing_for_environment() + programs)
    ensure_environment(ENVIRONMENT, "run.txt")
    ensure_node_modules(ENVIRONMENT)


def for_linting() -> None:
    """Install the tests' environment, which includes the linters."""
    packages.install(packages.missing_for_environment())
    ensure_environment(ENVIRONMENT, "test.txt")


def for_testing() -> None:
    """Install all that the tests need, and the environment with the oldest packages."""
    packages.install(
        packages.missing_for_environment()
        + packages.missing(packages.SIMULATION)
        + packages.missing(packages.REGISTRY)
        + packages.missing_for_browser()
    )
    ensure_environment(ENVIRONMENT, "test.txt")
    ensure_node_modules(ENVIRONMENT)
    ensure_environment(OLDEST, "oldest.txt")


def for_documenting() -> None:
    """Install what builds the handbook."""
    packages.install(packages.missing_for_environment())
    ensure_environment(ENVIRONMENT, "docs.txt")


def for_screenshots() -> None:
    """Install what a simulated host needs, a browser, and a Chinese font."""
    packages.install(
        packages.missing_for_environment()
        + packages.missing(packages.SIMULATION)
        + packages.missing_for_browser()
        + packages.missing_for_chinese()
    )
    ensure_environment(ENVIRONMENT, "test.txt")
    ensure_node_modules(ENVIRONMENT)


def main() -> int:
    """Install what the command line names; return the exit status."""
    wanted = {
        "test": for_testing,
        "lint": for_linting,
        "docs": for_documenting,
        "screenshots": for_screenshots,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in wanted:
        raise Stop(f"say what for: {' or '.join(wanted)}")
    begin()
    wanted[sys.argv[1]]()
    return 0


if __name__ == "__main__":
    finish(main)
