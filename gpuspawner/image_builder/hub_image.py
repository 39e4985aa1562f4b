"""The image of the hub itself, with its proxy and its dashboard; built from a checkout.

It isn't an image version: no user can choose it. `image/hub/compose.yaml` starts it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import docker.errors

from . import recipe
from .recipe import BuildingError

REFERENCE = "gpuspawner/hub:latest"
DOCKERFILE = "image/hub/Dockerfile"
# What `docker build` by hand gets too: see image/hub/Dockerfile.dockerignore.
INPUTS = (
    "gpuspawner",
    "image",
    "jupyterhub_config.py",
    "pyproject.toml",
    "hatch_build.py",
    "LICENSE",
    "README.md",
    "package.json",
    "package-lock.json",
    ".npmrc",
    "requirements/build.txt",
    "requirements/run.txt",
)
# The builder's own, or made by a build. Of image/hub only what the Dockerfile takes: files of an
# administrator's may lie beside it.
LEFT_OUT = ("image/network/", "gpuspawner/image/")
FOLDER = "image/hub/"
OF_FOLDER = ("Dockerfile", "apt.txt", "in_container.py", "with-secret")
MADE = (".pyc", ".mo", ".new")
REGISTRY_VARIABLES = ("npm_config_registry", "NPM_CONFIG_REGISTRY")
# Each must run as the image's user, without a network, in a container that can't be written to.
PROGRAMS = (
    "jupyterhub --version",
    "configurable-http-proxy --version",
    "gpuspawner image list",
    "python -c 'import gpuspawner.spawner, gpuspawner.dashboard.command'",
    "with-secret A /tmp/secret true",
)


def checkout() -> Path:
    """Return the folder of the checkout that this program runs from.

    Raises:
        BuildingError: it was installed, so that its sources aren't here.
    """
    folder = Path(__file__).parents[2]
    if not all((folder / name).exists() for name in (DOCKERFILE, *INPUTS)):
        raise BuildingError("the hub's image is built from a checkout: run this in one")
    return folder


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name in the build context, path) of the files that decide what the image is."""
    for wanted in INPUTS:
        path = folder / wanted
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = each.relative_to(folder).as_posix()
            if not each.is_file() or each.suffix in MADE or name.startswith(LEFT_OUT):
                continue
            if not name.startswith(FOLDER) or name.removeprefix(FOLDER) in OF_FOLDER:
                yield name, each


def network_files(environment: Mapping[str, str] = os.environ) -> dict[str, bytes]:
    """Return the files with this machine's network settings, npm's registry among them.

    Raises:
        BuildingError: a variable names a CA bundle that can't be read.
    """
    found = recipe.network_files(environment)
    registry = next((environment[name] for name in REGISTRY_VARIABLES if name in environment), "")
    return {**found, "npm-registry": registry.encode()} if registry else found


def build_context(folder: Path, network: Mapping[str, bytes]) -> bytes:
    """Return the build context, a gzipped tar, with the builder's network in `image/network/`."""
    more = {
        "image/network/README": b"see image/network/README.md",
        **{f"image/network/{name}": content for name, content in network.items()},
    }
    return recipe.packed(files(folder), more)


def problems(client: docker.DockerClient, image: str) -> list[str]:
    """Return what doesn't run in an image, as sentences."""
    found = []
    for program in PROGRAMS:
        try:
            client.containers.run(
                image,
                ["bash", "-c", program],
                network_mode="none",
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                read_only=True,
                tmpfs={"/tmp": ""},  # noqa: S108 - the container's
                stderr=True,
                remove=True,
            )
        except docker.errors.ContainerError as error:
            output: Any = error.stderr  # bytes, though its type says text
            said = (output or b"").decode("utf-8", "replace").strip()[-500:]
            found.append(f"`{program}` fails: {said or 'it said nothing'}")
    return found
