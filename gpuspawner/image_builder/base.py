"""The base image: pulled if a registry answers, else built from the distribution's packages."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import docker
import docker.errors
import requests

from ..backends.docker.pull import split
from .engine import image, remove_unnamed
from .recipe import BuildingError

SUITE = "bookworm"
PULLED = f"debian:{SUITE}-slim"
# A name that no registry serves, since BuildKit asks the name's registry before the engine.
MADE = f"localhost/gpuspawner/base:{SUITE}"

# How long a pull may be silent, in seconds. A registry answers at once or, if it is blocked, never.
# An image that the administrator has named may take long to unpack.
PULL_SECONDS = 20
NAMED_PULL_SECONDS = 300


def ensure_base_image(
    client: docker.DockerClient,
    report: Callable[[str], None],
    named: str = "",
    *,
    fresh: bool = False,
) -> str:
    """Return the reference of a base image on the engine; pull or build one if there is none.

    Args:
        client: a client of the engine.
        report: called with each step, as a sentence.
        named: the image that the administrator has named; "" for Debian's.
        fresh: get the newest one, for its security updates, even if the engine has one.

    Raises:
        BuildingError: there is none, and none can be pulled or built.
    """
    wanted = [named] if named else [PULLED, MADE]
    present = _newest_first(client, wanted)
    if present and not fresh:
        return present[0]
    reference = named or PULLED
    report(f"Base image: pulling {reference}")
    reason = _pull(reference, NAMED_PULL_SECONDS if named else PULL_SECONDS)
    if not reason:
        return reference
    if named:
        if present:
            report(f"{named} can't be pulled ({reason}): using the one that is here")
            return named
        raise BuildingError(f"the base image {named} can't be pulled: {reason}")
    report(f"No registry ({reason}): making the base image from Debian's packages")
    _make_base_image(client)
    return MADE


def _newest_first(client: docker.DockerClient, references: list[str]) -> list[str]:
    """Return the references that are on the engine, the newest image first."""
    found = [(image(client, reference), reference) for reference in references]
    here = [(str(each.attrs.get("Created", "")), reference) for each, reference in found if each]
    return [reference for _, reference in sorted(here, key=lambda each: each[0], reverse=True)]


def _pull(reference: str, seconds: int) -> str:
    """Pull an image; return "", or why that failed."""
    try:
        with_limit = docker.from_env(timeout=seconds)
        try:
            # docker-py's `images.pull` returns the image of before if a pull breaks off.
            for event in with_limit.api.pull(*split(reference), stream=True, decode=True):
                if "error" in event:
                    return " ".join(str(event["error"]).split())[:200]
        finally:
            with_limit.close()
    except requests.Timeout:
        return f"no answer within {seconds} seconds"
    except (docker.errors.DockerException, requests.RequestException) as error:
        said = getattr(error, "explanation", None) or str(error)
        return " ".join(str(said).split())[:200]
    return ""


def _make_base_image(client: docker.DockerClient) -> None:
    """Put a minimal Debian on the engine, tagged `MADE`.

    Raises:
        BuildingError: mmdebstrap is missing or failed.
    """
    program = shutil.which("mmdebstrap")
    if program is None:
        raise BuildingError(
            f"there is no registry to pull {PULLED} from, and mmdebstrap, which would make the "
            "base image here, isn't installed: run `apt-get install mmdebstrap`"
        )
    with tempfile.TemporaryDirectory(prefix="gpuspawner-base-") as folder:
        archive = Path(folder) / "base.tar"
        # mmdebstrap leaves this machine's name and name servers in the image.
        clean = 'rm -f "$1/etc/resolv.conf" "$1/etc/hostname"'
        command = [
            *(program, "--variant=minbase", "--include=ca-certificates"),
            *(f"--customize-hook={clean}", SUITE, str(archive)),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            said = made.stderr.strip() or "it said nothing"
            # Its last line says only that something failed; the first error says what.
            errors = [line for line in said.splitlines() if line.startswith("E: ")] or [said]
            raise BuildingError(f"mmdebstrap couldn't make the base image: {errors[0][:300]}")
        before = image(client, MADE)
        repository, _, tag = MADE.rpartition(":")
        said = client.api.import_image(str(archive), repository=repository, tag=tag)
        if '"error"' in said:
            raise BuildingError(f"the engine didn't take the base image: {said.strip()[-300:]}")
        if before is not None:
            remove_unnamed(client, str(before.id))
