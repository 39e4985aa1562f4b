"""Checks, in a container, that an image matches its catalogue entry and its lock."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
import docker.errors

from ..untrusted import parse_json
from .recipe import BuildingError, Recipe

# What every image version must have.
USER = {"user": "jovyan", "uid": 1000, "home": "/home/jovyan", "process_1": "tini"}
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "NVIDIA_VISIBLE_DEVICES": "void",
    "SHELL": "/bin/bash",
    "VIRTUAL_ENV": "/opt/jupyter",
}
# What users install is kept apart for each version: `gpuspawner_packages` in the image.
OWN_PACKAGES = "/home/jovyan/.local/share/gpuspawner/packages"

# One call each, since the time of a call is limited and nvcc is slow.
SCRIPTS = ("check-image", "check-start", "list-contents", "describe-image", "try-torch")


def describe(client: docker.DockerClient, image: str, recipe: Recipe) -> dict[str, Any]:
    """Run the describing scripts in a container without network or capabilities; return the result.

    Raises:
        BuildingError: it doesn't start or run.
    """
    return _run_scripts(client, image, [recipe.folder / "checks" / name for name in SCRIPTS])


def contents(client: docker.DockerClient, image: str, recipe: Recipe) -> dict[str, Any]:
    """Return the packages that are installed in an image.

    Raises:
        BuildingError: it doesn't start or run.
    """
    return _run_scripts(client, image, [recipe.folder / "checks" / "list-contents"])


def _run_scripts(client: docker.DockerClient, image: str, scripts: list[Path]) -> dict[str, Any]:
    """Run scripts in a container; return their JSON results, merged."""
    container = None
    try:
        container = client.containers.run(
            image,
            ["sleep", "infinity"],
            detach=True,
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        )
        description: dict[str, Any] = {}
        for script in scripts:
            description |= parse_json(_run(container, script) or "{}")
        return description
    except (docker.errors.DockerException, ValueError) as error:
        raise BuildingError(f"the image {image} can't be looked at: {error}") from None
    finally:
        if container is not None:
            container.remove(force=True)


def _run(container: Any, script: Path) -> str:
    code, output = container.exec_run(["python", "-c", script.read_text()], demux=True)
    written, errors = ((part or b"").decode("utf-8", "replace") for part in output)
    if code:
        last = (errors or written).strip()[-500:] or "it said nothing"
        raise BuildingError(f"{script.name} failed in the image: {last}")
    return str(written)


def problems(description: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return how a description differs from the catalogue entry and the lock, as sentences."""
    found = [
        f"{name} is {description[name]!r}, not {wanted!r}"
        for name, wanted in USER.items()
        if description[name] != wanted
    ]
    environment = description["environment"]
    found += [
        f"the variable {name} is {environment[name]!r}, not {wanted!r}"
        for name, wanted in ENVIRONMENT.items()
        if environment[name] != wanted
    ]
    found += [f"the program {tool} is missing" for tool in description["missing_tools"]]
    if description["login_python"] != f"{OWN_PACKAGES}/{recipe.key}/bin/python":
        found.append(f"a terminal's python is {description['login_python'] or 'missing'}")
    for name, wrong in (
        ("work_is_writable", "the user can't write to the work folder"),
        ("consistent", "`pip check` finds packages that don't agree"),
        ("kernel_answers", "a Python kernel doesn't compute"),
        ("jupyter_seconds", "JupyterLab doesn't answer"),
    ):
        if not description[name]:
            found.append(wrong)
    return found + _not_working(description, recipe) + _differing_versions(description, recipe)


def _not_working(description: Mapping[str, Any], recipe: Recipe) -> list[str]:
    found = []
    if description.get("processes"):
        found.append(f"two processes of torch.distributed fail: {description['processes']}")
    if has_nvcc(recipe):
        failure = description.get("extension", "nvcc isn't on the PATH")
        found += [f"a CUDA extension can't be compiled: {failure}"] if failure else []
    return found


def has_nvcc(recipe: Recipe) -> bool:
    """Return whether a version has to have a compiler for CUDA."""
    return "nvidia-cuda-nvcc" in pins(recipe.lock.read_text())


def _differing_versions(description: Mapping[str, Any], recipe: Recipe) -> list[str]:
    installed = {
        normalized_name(name): version for name, version in description["packages"].items()
    }
    lock = recipe.lock.read_text()
    found = [
        f"{name} is {installed[name]}, the lock says {' or '.join(sorted(versions))}"
        for name, versions in pins(lock).items()
        if name in installed and installed[name] not in versions
    ]
    found += [f"{name} is missing" for name in _unconditional(lock) if name not in installed]
    version = recipe.version
    said = dict(description["torch"])
    built_for = tuple(said.pop("compute_capabilities", ()))
    if version.compute_capabilities not in ((), built_for):
        found.append(
            f"compute_capabilities is {list(built_for)}, "
            f"the catalogue says {list(version.compute_capabilities)}"
        )
    if said:
        said["framework"] = f"PyTorch {said.pop('torch')}"
    said["python"] = ".".join(description["python"].split(".")[:2])
    for field in ("framework", "cuda", "cudnn", "nccl", "python"):
        promised = getattr(version, field)
        if promised and said.get(field, "") != promised:
            found.append(
                f"{field} is {said.get(field) or 'missing'}, the catalogue says {promised}"
            )
    return found


def pins(lock: str) -> dict[str, set[str]]:
    """Return package -> the versions that a lock allows; several if platforms differ."""
    allowed: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", lock, re.MULTILINE):
        allowed.setdefault(normalized_name(name), set()).add(version)
    return allowed


def _unconditional(lock: str) -> list[str]:
    """Return the packages without an environment marker, which a lock wants on every platform."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==[^\s;\\]+ *\\?$", lock, re.MULTILINE)
    return [normalized_name(name) for name in found]


def normalized_name(name: str) -> str:
    """Return the normalized form of a Python package's name."""
    # ref: https://packaging.python.org/en/latest/specifications/name-normalization/
    return re.sub(r"[-_.]+", "-", name).lower()
