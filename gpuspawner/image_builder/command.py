"""`gpuspawner image`: list, build, verify, sbom, lock, hub, push and spread."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import docker
import docker.errors

from ..nodes.addresses import hub_folder
from . import base, bom, buildkit, checks, failures, hub_image, locks, spreading
from .engine import engine, image, remove_unnamed
from .recipe import (
    BuildingError,
    Recipe,
    fingerprint_of,
    network_files,
    proxy_arguments,
    recipe,
    recipes,
)

# Containers inherit it from the image; the labels of a lease have other names.
LABEL_VERSION = "gpuspawner.build.version"
LABEL_INPUTS = "gpuspawner.build.inputs"
LABEL_AS_OF = "gpuspawner.build.as-of"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of `gpuspawner image`."""
    parser.add_argument(
        "--folder", type=Path, help="a folder of your own made like image/, with its catalogue"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the image versions, and which are on the engine")
    listing.add_argument("--json", action="store_true", help="as JSON")

    building = actions.add_parser("build", help="build image versions; quick where nothing changed")
    building.add_argument("keys", nargs="+", metavar="KEY")
    _add_build_arguments(building)

    verifying = actions.add_parser("verify", help="start image versions and check what they are")
    verifying.add_argument("keys", nargs="+", metavar="KEY")

    billing = actions.add_parser(
        "sbom", help="write down which packages are in built versions (CycloneDX)"
    )
    billing.add_argument("keys", nargs="+", metavar="KEY")
    billing.add_argument(
        "--print", action="store_true", help=f"instead of writing {bom.FILE} beside the lock"
    )

    locking = actions.add_parser("lock", help="write the locks anew (needs uv)")
    locking.add_argument("keys", nargs="*", metavar="KEY", help="default: all")
    locking.add_argument("--upgrade", action="store_true", help="take the newest versions")

    hub = actions.add_parser(
        "hub", help="build the image of the hub itself, from a checkout: see image/hub/compose.yaml"
    )
    _add_build_arguments(hub)
    _add_other_machines(actions)


def _add_other_machines(actions: Any) -> None:
    pushing = actions.add_parser(
        "push", help="push images into a registry, for other machines, and print their digests"
    )
    pushing.add_argument("keys", nargs="+", metavar="NAME", help="a version's KEY, or an image")
    pushing.add_argument(
        "--registry", required=True, metavar="REGISTRY", help="as registry.example.org/lab"
    )
    spreading_out = actions.add_parser(
        "spread", help="on the hub's machine: send images to the other machines that lack them"
    )
    spreading_out.add_argument(
        "keys",
        nargs="*",
        metavar="NAME",
        help="a version's KEY, or an image (default: the versions that are built here)",
    )
    spreading_out.add_argument(
        "--node", action="append", default=[], metavar="NODE", help="only there; may be repeated"
    )
    spreading_out.add_argument(
        "--hub-folder",
        type=Path,
        default=hub_folder(),
        metavar="FOLDER",
        help="the hub's key and its list of machines (default: %(default)s in this folder, which "
        "should be the hub's)",
    )


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force",
        action="store_true",
        help="build every step anew on the newest base image, for the distribution's updates",
    )
    parser.add_argument(
        "--base", default="", metavar="IMAGE", help=f"build on this image instead of {base.PULLED}"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="all that the steps write")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return 0, or 1 after an error on stderr."""
    actions = {
        "list": _list,
        "build": _build,
        "verify": _verify,
        "sbom": _write_bills,
        "lock": _lock,
        "hub": _build_hub,
        "push": spreading.push,
        "spread": spreading.spread,
    }
    try:
        return actions[arguments.action](arguments)
    except BuildingError as error:
        print(f"gpuspawner image: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the engine ends the build when the connection is closed
        print("gpuspawner image: stopped", file=sys.stderr)
        return 130


def _list(arguments: argparse.Namespace) -> int:
    rows = [_row(each, _state(each)) for each in recipes(arguments.folder).values()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(row["key"]) for row in rows)
    for row in rows:
        print(f"{row['key']:{width}}  {row['image']}  {row['state']}")
        print(f"{'':{width}}  {row['title']}: {row['facts'] or row['description']}")
        if row["deprecated"]:
            print(f"{'':{width}}  deprecated: {row['deprecated']}")
    return 0


def _row(found: Recipe, state: tuple[str, int | None]) -> dict[str, Any]:
    version = found.version
    row: dict[str, Any] = {"key": found.key, **version.model_dump(), "facts": version.facts()}
    row["state"], row["size_mb"] = state
    # None if the engine can't be asked.
    row["present"] = None if state[0].startswith("unknown") else state[1] is not None
    return row


def _state(found: Recipe) -> tuple[str, int | None]:
    """Return a version's state on the engine, in words, and its size in MB (None: no image)."""
    try:
        with engine() as client:
            built = image(client, found.version.image)
    except BuildingError:
        return "unknown: no engine can be reached", None
    if built is None:
        return "not built", None
    inputs = built.labels.get(LABEL_INPUTS, "")
    base_image = inputs.partition("@")[2]
    state = "built" if inputs == _inputs(found, base_image) else "built from other files"
    return state, built.attrs["Size"] // 1_000_000


def _inputs(wanted: Recipe, base_image: str) -> str:
    """Return the label with a build's inputs: the fingerprint, and a named base image."""
    return f"{wanted.fingerprint()}@{base_image}"


def _build(arguments: argparse.Namespace) -> int:
    wanted = [recipe(key, arguments.folder) for key in dict.fromkeys(arguments.keys)]
    network = network_files()
    with engine() as client:
        bases: list[str] = []
        known = [each.version.image for each in recipes(arguments.folder).values()]
        as_of = _as_of(client, known, fresh=arguments.force)
        for each in wanted:
            inputs = _inputs(each, arguments.base)
            if _is_up_to_date(client, each.key, each.version.image, inputs, arguments):
                continue
            if not bases:
                fresh = arguments.force
                bases = [base.ensure_base_image(client, _print_step, arguments.base, fresh=fresh)]
            given = {
                "BASE": bases[0],
                "VERSION": each.base_version,
                "ADDITION": each.addition,
                "AS_OF": as_of,
                **proxy_arguments(),
            }
            build = _Build(
                each.key,
                each.version.image,
                each.build_context(network),
                given,
                {LABEL_VERSION: each.key, LABEL_INPUTS: inputs, LABEL_AS_OF: as_of},
                _check_announcement(each),
            )
            _run_build(
                client, build, partial(_differences, client, each), verbose=arguments.verbose
            )
    return 0


def _differences(client: docker.DockerClient, wanted: Recipe, image_id: str) -> list[str]:
    return checks.problems(checks.describe(client, image_id, wanted), wanted)


def _build_hub(arguments: argparse.Namespace) -> int:
    folder, reference = hub_image.checkout(), hub_image.REFERENCE
    inputs = f"{fingerprint_of('hub', hub_image.files(folder))}@{arguments.base}"
    with engine() as client:
        if _is_up_to_date(client, "hub", reference, inputs, arguments):
            return 0
        fresh = arguments.force
        as_of = _as_of(client, [reference], fresh=fresh)
        base_image = base.ensure_base_image(client, _print_step, arguments.base, fresh=fresh)
        build = _Build(
            "hub",
            reference,
            hub_image.build_context(folder, hub_image.network_files()),
            {"BASE": base_image, "AS_OF": as_of, **proxy_arguments()},
            {LABEL_INPUTS: inputs, LABEL_AS_OF: as_of},
            "Starting the image to check it",
            hub_image.DOCKERFILE,
        )
        _run_build(
            client,
            build,
            lambda built: hub_image.problems(client, built),
            verbose=arguments.verbose,
        )
    return 0


def _is_up_to_date(
    client: docker.DockerClient, key: str, reference: str, inputs: str, how: argparse.Namespace
) -> bool:
    """Return whether an image was built from these inputs, and isn't to be built by force."""
    built = image(client, reference)
    if how.force or not built or built.labels.get(LABEL_INPUTS) != inputs:
        return False
    print(f"{key}: {reference} is up to date", file=sys.stderr)
    return True


def _as_of(client: docker.DockerClient, references: Iterable[str], *, fresh: bool) -> str:
    """Return the time of the distribution's package lists, a key of the steps' cache.

    That is the time of the last update, since a build from older cached steps would bring the
    packages of before the update back.

    Args:
        client: a client of the engine.
        references: the images that are looked at.
        fresh: update now.
    """
    if fresh:
        return datetime.now(timezone.utc).isoformat(timespec="seconds")
    built = [image(client, reference) for reference in references]
    return max([each.labels.get(LABEL_AS_OF, "") for each in built if each], default="")


@dataclass(frozen=True)
class _Build:
    """What a build is made from, and the name that its image gets.

    Args:
        key: the image version's key, or `hub`.
        reference: the image's name and tag.
        context: the build context.
        arguments: the build arguments.
        labels: the image's labels.
        announcement: what is printed before the image is checked.
        dockerfile: its path in the context.
    """

    key: str
    reference: str
    context: bytes
    arguments: Mapping[str, str]
    labels: Mapping[str, str]
    announcement: str
    dockerfile: str = "Dockerfile"


def _run_build(
    client: docker.DockerClient,
    wanted: _Build,
    find_problems: Callable[[str], list[str]],
    *,
    verbose: bool,
) -> None:
    """Build an image, check it and tag it only then; the image that it replaces is removed.

    Args:
        client: a client of the engine.
        wanted: what to build.
        find_problems: returns what is wrong with the image of an id, as sentences.
        verbose: whether to print all that the steps write.

    Raises:
        BuildingError: it can't be built, or isn't what it should be.
    """
    began = time.monotonic()
    key, base_image = wanted.key, wanted.arguments["BASE"]
    print(f"{key}: building {wanted.reference} on {base_image}", file=sys.stderr)
    report = _reporter(verbose=verbose)
    try:
        image_id = buildkit.build(
            client, wanted.context, wanted.arguments, wanted.labels, report, wanted.dockerfile
        )
    except buildkit.BuildFailed as failure:
        raise BuildingError(f"{key} wasn't built: {failures.explain_failure(failure)}") from None
    _print_step(wanted.announcement)
    try:
        if wrong := find_problems(image_id):
            raise BuildingError(f"{key} isn't what it should be: {'; '.join(wrong)}")
    except BaseException:  # Ctrl-C as well, so that no untagged image of gigabytes is left
        client.images.remove(image_id)
        raise
    _tag(client, image_id, wanted.reference)
    size = client.images.get(image_id).attrs["Size"] / 1_000_000
    seconds = time.monotonic() - began
    print(f"{key}: built in {seconds:.0f} s, {size:.0f} MB", file=sys.stderr)


def _check_announcement(wanted: Recipe) -> str:
    said = "Starting the image to check it"
    return f"{said}, and compiling a CUDA extension" if checks.has_nvcc(wanted) else said


def _tag(client: docker.DockerClient, image_id: str, reference: str) -> None:
    before, built = image(client, reference), client.images.get(image_id)
    built.tag(reference)
    if before and before.id != built.id and not remove_unnamed(client, str(before.id)):
        _print_step("The image it replaces stays: a container or another tag still uses it")


def _verify(arguments: argparse.Namespace) -> int:
    wanted = [recipe(key, arguments.folder) for key in dict.fromkeys(arguments.keys)]
    failed = False
    with engine() as client:
        for each in wanted:
            _must_be_built(client, each)
            print(f"{each.key}: {each.version.image}", file=sys.stderr)
            _print_step(_check_announcement(each))
            description = checks.describe(client, each.version.image, each)
            wrong = checks.problems(description, each)
            failed = failed or bool(wrong)
            for sentence in wrong:
                print(f"{each.key}: {sentence}", file=sys.stderr)
            if not wrong:
                print(f"{each.key}: {_summary(description)}")
    return int(failed)


def _must_be_built(client: docker.DockerClient, wanted: Recipe) -> None:
    if image(client, wanted.version.image) is None:
        raise BuildingError(f"{wanted.key} isn't built: run `gpuspawner image build {wanted.key}`")


def _write_bills(arguments: argparse.Namespace) -> int:
    wanted = [recipe(key, arguments.folder) for key in dict.fromkeys(arguments.keys)]
    with engine() as client:
        for each in wanted:
            _must_be_built(client, each)
            bill = bom.bill(checks.contents(client, each.version.image, each), each)
            if arguments.print:
                print(bill, end="")
                continue
            path = each.lock.with_name(bom.FILE)
            try:
                path.write_text(bill)
            except OSError as error:
                raise BuildingError(f"{path} can't be written: {error.strerror}") from None
            print(f"wrote {path}")
    return 0


def _summary(description: dict[str, Any]) -> str:
    packages = description["packages"]
    torch = description["torch"]
    facts = [
        f"Python {description['python']}",
        *(f"{name} {packages[name]}" for name in ("jupyterhub", "jupyterlab", "notebook")),
        *(f"{name} {torch[name]}" for name in ("torch", "cuda", "cudnn", "nccl") if name in torch),
        *(["two processes meet"] if "processes" in description else []),
        *(["nvcc compiles an extension"] if "extension" in description else []),
        f"runs as {description['user']}",
        f"JupyterLab answered after {description['jupyter_seconds']} s",
    ]
    return ", ".join(facts)


def _lock(arguments: argparse.Namespace) -> int:
    known = recipes(arguments.folder)
    unknown = [key for key in arguments.keys if key not in known]
    if unknown:
        raise BuildingError(
            f"there is no image version {unknown[0]!r}; there are: {', '.join(known)}"
        )
    wanted = [known[key] for key in arguments.keys or known]
    for path in locks.write(wanted, upgrade=arguments.upgrade):
        print(f"wrote {path}")
    return 0


def _print_step(sentence: str) -> None:
    print(f"  {sentence}", file=sys.stderr, flush=True)


def _reporter(*, verbose: bool) -> Callable[[str], None]:
    """Return a function that prints steps' output: all lines, or only steps and large downloads."""

    def report(line: str) -> None:
        if line.startswith("==> "):
            _print_step(line.removeprefix("==> "))
        elif verbose or line.strip().startswith("Downloading "):
            _print_step(f"  {line.strip()}")

    return report
