"""Checks and their findings, and the run of all checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import docker

from ..gpus.model import GPU
from ..gpus.nvml import Inventory
from ..images.catalogue import ImageVersion

# A user that no hub has, for whom servers are described.
NAME = "doctor"
NO_SUCH_USER = "well if it knows your users: there is none of this name"

State = Literal["ok", "note", "warning", "failure", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What a check found, and advice: a command to run, or a line to change.

    `blocks` is whether checks that need this one are skipped. None: failures and skipped checks
    block, other findings don't.
    """

    state: State
    found: str
    advice: str = ""
    blocks: bool | None = None

    @property
    def blocks_others(self) -> bool:
        """Whether checks that need this one's are skipped."""
        return self.state in ("failure", "skipped") if self.blocks is None else self.blocks


@dataclass(frozen=True)
class Configuration:
    """A hub's configuration as it was read: values that JSON has, everything else left out.

    `spawner` and `hub` map the names of traits to their values; a function is `{"function": …}`.
    `lines` has the line of each `c.SECTION.NAME` in the file itself. `plan` is what a server
    would be created with, as `example_user.plan` returns it.
    """

    file: Path
    spawner_class: str
    is_ours: bool
    spawner: Mapping[str, Any]
    hub: Mapping[str, Any]
    versions: Mapping[str, ImageVersion]
    problems: Sequence[Finding] = ()
    network_error: str = ""
    network_advice: str = ""
    sections: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)

    def sets(self, name: str) -> bool:
        """Return whether the configuration has a line for a spawner's setting."""
        return any(name in names for names in self.sections.values())

    def where(self, name: str) -> str:
        """Return how a spawner's setting is written, and in which line: "c.GPUSpawner.x (line 3)".

        Where several sections set it, the one that counts.
        """
        for section in reversed(list(self.sections)):
            if name in self.sections[section]:
                line = self.lines.get((section, name))
                return f"c.{section}.{name}" + (f" (line {line})" if line else "")
        return f"c.GPUSpawner.{name}"


@dataclass
class Context:
    """The arguments of doctor, and the results of earlier checks for later ones.

    `folder` is the hub's working folder, with its database and secrets.
    """

    config_file: Path | None
    folder: Path
    inventory: Inventory | None = None
    gpus: tuple[GPU, ...] = ()
    engine: docker.DockerClient | None = None
    engine_info: Mapping[str, Any] = field(default_factory=dict)
    # Whether the engine runs on this machine, so that its files can be looked at.
    engine_is_here: bool = False
    # An inspection of the engine's container that this runs in; None: it runs in none.
    own_container: Mapping[str, Any] | None = None
    # What the toolkit's configuration says of devices by variable; None: not known.
    variable_accepted: bool | None = None
    configuration: Configuration | None = None
    # Key and image reference of the version that containers are tried with.
    trial_image: tuple[str, str] | None = None
    # What images take that are still to be built or fetched, as the catalogue says.
    missing_bytes: int = 0


@dataclass(frozen=True)
class Check:
    """A check: its title, its function, and the titles of the checks that it needs."""

    title: str
    run: Callable[[Context], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    # Whether it takes so long that its title is shown meanwhile.
    is_slow: bool = False


def examine(
    checks: Sequence[Check], context: Context, progress: Callable[[Check], None]
) -> Iterator[tuple[str, Finding]]:
    """Run the checks in their order; yield each finding with its check's title.

    Checks that need a failed one are skipped, and name it. A check that raises has failed.
    """
    causes: dict[str, str] = {}
    for check in checks:
        cause = next((causes[title] for title in check.needs if title in causes), None)
        if cause is not None:
            causes[check.title] = cause
            yield check.title, Finding("skipped", f"see {cause}")
            continue
        progress(check)
        for finding in _run_check(check, context):
            if finding.blocks_others:
                causes[check.title] = check.title
            yield check.title, finding


def _run_check(check: Check, context: Context) -> Iterator[Finding]:
    try:
        yield from check.run(context)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        yield Finding(
            "failure",
            f"this check itself broke off ({' '.join(reason.split())[:300]})",
            "this is a mistake in gpuspawner: please report it with this line",
        )
