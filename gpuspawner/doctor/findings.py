"""The classes of checks and findings, and the function that runs all checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import docker

from ..gpus.model import GPU, Node
from ..gpus.nvml import Inventory
from ..images.catalogue import ImageVersion

# The name of the user for whom a server is planned; no hub has such a user.
NAME = "doctor"
NO_SUCH_USER = "well if it knows your users: there is none of this name"

State = Literal["ok", "note", "warning", "failure", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Args:
        state: "ok", "note", "warning", "failure" or "skipped".
        found: what the check found, as a sentence.
        advice: what to do: a command to run, or a line to change; "" for nothing.
        blocks: whether the checks that need this one are skipped; None: if `state` is "failure" or
            "skipped".
    """

    state: State
    found: str
    advice: str = ""
    blocks: bool | None = None

    @property
    def blocks_others(self) -> bool:
        """Whether the checks that need this one are skipped."""
        return self.state in ("failure", "skipped") if self.blocks is None else self.blocks


@dataclass(frozen=True)
class Configuration:
    """A hub's configuration, as JSON values.

    `spawner` and `hub` map the names of traits to their values; a function is `{"function": …}`.
    `lines` maps (section, trait) to the line of the file that sets it. `plan` is the result of
    `example_user.plan`. `called` names the traits that are functions, and whose values are what
    they return for the example user.
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
    called: Sequence[str] = ()

    def sets(self, name: str) -> bool:
        """Return whether the configuration sets a trait of the spawner."""
        return any(name in names for names in self.sections.values())

    def where(self, name: str) -> str:
        """Return how a trait of the spawner is set, and in which line: "c.GPUSpawner.x (line 3)".

        If several sections set it, that is the one that counts.
        """
        for section in reversed(list(self.sections)):
            if name in self.sections[section]:
                line = self.lines.get((section, name))
                return f"c.{section}.{name}" + (f" (line {line})" if line else "")
        return f"c.GPUSpawner.{name}"


@dataclass
class Context:
    """The arguments of doctor, and the results of earlier checks for later ones.

    `config_file` is the hub's configuration, `folder` its working folder, with its database and
    secrets.
    """

    config_file: Path | None
    folder: Path
    inventory: Inventory | None = None
    gpus: tuple[GPU, ...] = ()
    engine: docker.DockerClient | None = None
    engine_info: Mapping[str, Any] = field(default_factory=dict)
    # Whether the engine runs on this machine, so that its files can be read.
    engine_is_here: bool = False
    # The inspection of the container that doctor runs in; None: it runs in none.
    own_container: Mapping[str, Any] | None = None
    # What the machines' daemons say of their GPUs; None: there are none, or they weren't asked.
    nodes: Sequence[Node] | None = None
    # Whether the toolkit accepts GPUs by the variable NVIDIA_VISIBLE_DEVICES; None: unknown.
    variable_accepted: bool | None = None
    configuration: Configuration | None = None
    # (key, image reference) of the version that trial containers use.
    trial_image: tuple[str, str] | None = None
    # The size of the images that are still to be built or pulled, by the catalogue.
    missing_bytes: int = 0


@dataclass(frozen=True)
class Check:
    """A check: its title, its function, and the titles of the checks that it needs."""

    title: str
    run: Callable[[Context], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    # Whether it takes long, so that its title is shown while it runs.
    is_slow: bool = False


def examine(
    checks: Sequence[Check], context: Context, progress: Callable[[Check], None]
) -> Iterator[tuple[str, Finding]]:
    """Run checks in their order; yield (title, finding) for each finding.

    A check that needs a failed one is skipped, with a finding that names the latter. A check that
    raises has failed.

    Args:
        checks: the checks.
        context: passed to each check.
        progress: called with each check before it runs.
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
