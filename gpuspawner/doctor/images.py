"""Checks that each image version is on the engine and runs on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import docker
import docker.errors

from ..backends.docker.errors import engine_message
from ..image_builder.recipe import BuildingError, recipes
from ..images.catalogue import ImageVersion, default_key
from ..images.compatibility import fit
from .findings import Context, Finding

# `uname -m` -> the engine's name of the architecture.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def images(context: Context) -> Iterator[Finding]:
    """Check each version; keep one for the trial containers."""
    shipped = _shipped()
    given = context.configuration
    if given is not None and not given.is_ours:
        yield Finding("skipped", "another spawner has its own: see Settings")
        return
    versions = given.versions if given and given.versions else shipped
    if not versions or context.engine is None:
        yield Finding("failure", "there are no image versions", "c.GPUSpawner.images = …")
        return
    built = {version.image: key for key, version in shipped.items()}
    policy = str(given.spawner.get("pull_policy") or "").lower() if given else "never"
    images = {}
    for key, each in versions.items():
        try:
            images[key] = _inspect(context.engine, each.image)
        except docker.errors.APIError as error:
            said = engine_message(error)
            what = f"{key}: the engine doesn't take {each.image!r} for an image: {said}"
            yield Finding("failure", what, "mend the reference in the configuration", blocks=False)
    versions = {key: each for key, each in versions.items() if key in images}
    if not versions:
        return
    default = default_key(versions, "")
    is_any_there = any(images.values())
    # The default first, as the most used one.
    for key in sorted(versions, key=lambda key: key != default):
        version, image = versions[key], images[key]
        if image is None:
            context.missing_bytes += _bytes(version.size)
            yield _missing(key, version, policy, built, key == default or not is_any_there)
            continue
        context.trial_image = context.trial_image or (key, version.image)
        yield from _check_fit(context, key, version, image)


def _bytes(size: str) -> int:
    """Return the number of bytes of a catalogue's "7.1 GB"; 0 for text of another form."""
    found = re.fullmatch(r"([0-9.]+) *GB", size)
    return int(float(found[1]) * 1000**3) if found else 0


def _shipped() -> Mapping[str, ImageVersion]:
    try:
        return {key: each.version for key, each in recipes(None).items()}
    except BuildingError:
        return {}


def _inspect(client: docker.DockerClient, reference: str) -> Mapping[str, str] | None:
    try:
        found: Mapping[str, str] = client.api.inspect_image(reference)
    except docker.errors.NotFound:
        return None
    return found


def _missing(
    key: str, version: ImageVersion, policy: str, built: Mapping[str, str], is_needed: bool
) -> Finding:
    """Return what a missing image means; one that nobody gets unasked isn't in the way."""
    here = built.get(version.image)
    cure = f"gpuspawner image build {here}" if here else f"docker pull {version.image}"
    if here is None and policy != "never":
        what = f"{key}: {version.image} isn't on this machine: the first start fetches it"
        return Finding("note", what, cure)
    what = f"{key}: {version.image} isn't {'built' if here else 'on this machine'}"
    if is_needed:
        return Finding("failure", what, cure, blocks=False)
    return Finding(
        "warning", f"{what}: who picks it reads that", f"{cure}\nor leave it out: {HIDE}"
    )


HIDE = "load_catalogue(…, hide={KEY}) in the configuration"


def _check_fit(
    context: Context, key: str, version: ImageVersion, image: Mapping[str, str]
) -> Iterator[Finding]:
    machine = ARCHITECTURES.get(str(context.engine_info.get("Architecture")), "")
    made_for = image.get("Architecture") or machine
    if machine and made_for != machine:
        what = f"{key}: {version.image} is for {made_for}, and this machine is {machine}"
        yield Finding("failure", what, f"docker pull --platform linux/{machine} {version.image}")
        return
    driver = context.inventory.driver if context.inventory else None
    can = fit(version, driver, [gpu for gpu in context.gpus if gpu.state != "excluded"])
    if can.reason:
        what = f"{key}: {can.reason}, so its servers get no GPUs"
        yield Finding("warning", what, f"update the driver: {DRIVERS}\nor leave it out: {HIDE}")
    elif can.note:
        yield Finding(
            "note", f"{key}: {can.note}", f"to have all of it, update the driver: {DRIVERS}"
        )
    elif version.deprecated:
        yield Finding("note", f"{key}: {version.deprecated}")
    else:
        yield Finding("ok", f"{key}: {version.image}")


DRIVERS = "https://www.nvidia.com/drivers"
