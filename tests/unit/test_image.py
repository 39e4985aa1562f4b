"""The image versions: what their files promise."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from gpuspawner.image_builder import bom
from gpuspawner.image_builder.checks import pins
from gpuspawner.image_builder.recipe import COMMON, recipes

from ..support.paths import ROOT

IMAGE = ROOT / "image"
VERSIONS = recipes(IMAGE)
DOCKERFILE = (IMAGE / "Dockerfile").read_text()

# A builder's own CA bundle, and what a Python left that read a module here.
UNREAD = (".pem", ".pyc")
# A name, which nobody asks for anything.
NAMESPACE = "http://www.w3.org/2000/svg"
# What a lock pins in another form than the catalogue says it: with CUDA 12 and before, and after.
PACKAGES = {
    "cuda": {"nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"},
    "cudnn": {"nvidia-cudnn-cu12", "nvidia-cudnn-cu13"},
    "nccl": {"nvidia-nccl-cu12", "nvidia-nccl-cu13"},
}


def requirements(lock: str) -> list[str]:
    """Return a lock's requirements, each with its hashes on one line."""
    joined = lock.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("key", VERSIONS)
def test_every_requirement_of_a_version_is_pinned_with_hashes(key: str) -> None:
    lines = requirements(VERSIONS[key].lock.read_text())
    assert lines
    assert [line for line in lines if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:", line)] == []


def test_the_build_begins_with_the_uv_that_the_environment_has() -> None:
    begins = (IMAGE / "installer.lock").read_text()
    assert len(requirements(begins)) == 1
    assert pins(begins)["uv"] == pins(VERSIONS[COMMON].lock.read_text())["uv"]


@pytest.mark.parametrize(
    ("key", "below"), [(key, below) for key in VERSIONS for below in VERSIONS[key].parent_versions]
)
def test_a_version_has_what_is_below_it_at_the_same_versions(key: str, below: str) -> None:
    shared = pins(VERSIONS[below].lock.read_text())
    own = pins(VERSIONS[key].lock.read_text())
    assert {name: own.get(name) for name in shared} == shared


@pytest.mark.parametrize("key", VERSIONS)
def test_the_bill_of_materials_is_of_the_lock(key: str) -> None:
    """Renew it with `gpuspawner image sbom KEY` after a new lock was built."""
    document = json.loads(VERSIONS[key].lock.with_name(bom.FILE).read_text())
    assert document["metadata"]["component"]["bom-ref"] == VERSIONS[key].version.image
    urls = [component["purl"] for component in document["components"]]
    python = dict(url.removeprefix("pkg:pypi/").split("@") for url in urls if "pypi/" in url)
    pinned = pins(VERSIONS[key].lock.read_text())
    assert {name: found for name, found in python.items() if found not in pinned[name]} == {}
    assert len(python) > 100
    assert len([url for url in urls if url.startswith("pkg:deb/debian/")]) > 100


@pytest.mark.parametrize("key", VERSIONS)
def test_what_is_excluded_is_in_no_lock(key: str) -> None:
    excluded = (IMAGE / "excludes.txt").read_text()
    names = re.findall(r"^([\w-]+)", excluded, re.MULTILINE)
    assert names == ["rfc3987-syntax"]
    assert set(names).isdisjoint(pins(VERSIONS[key].lock.read_text()))


@pytest.mark.parametrize("key", VERSIONS)
def test_the_catalogue_says_what_the_lock_pins(key: str) -> None:
    version, pinned = VERSIONS[key].version, pins(VERSIONS[key].lock.read_text())
    for field, packages in PACKAGES.items():
        promised = getattr(version, field)
        found = "".join(min(pinned[package]) for package in packages & pinned.keys())
        assert found == promised or found.startswith(f"{promised}.")
        assert bool(promised) == bool(found)
    if version.framework:
        name, number = version.framework.split()
        assert pinned["torch" if name == "PyTorch" else name.lower()] == {number}


@pytest.mark.parametrize("key", VERSIONS)
def test_a_version_with_cuda_names_what_it_needs_of_the_host(key: str) -> None:
    version = VERSIONS[key].version
    for said in (version.min_driver, version.toolkit_driver, version.compute_capabilities):
        assert bool(said) == bool(version.cuda)
    assert version.size


@pytest.mark.parametrize("key", [key for key in VERSIONS if VERSIONS[key].addition])
def test_nvcc_is_of_the_frameworks_cuda(key: str) -> None:
    pinned = pins(VERSIONS[key].lock.read_text())
    assert min(pinned["nvidia-cuda-nvcc"]).startswith(f"{VERSIONS[key].version.cuda}.")


def test_the_users_server_has_the_hubs_jupyterhub() -> None:
    hub = pins((IMAGE.parent / "requirements" / "run.txt").read_text())
    assert pins(VERSIONS[COMMON].lock.read_text())["jupyterhub"] == hub["jupyterhub"]


def test_exactly_one_version_is_the_default() -> None:
    assert [key for key in VERSIONS if VERSIONS[key].version.default] == ["pytorch-2.7"]


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(IMAGE.rglob("*")) if path.is_file() and path.suffix not in UNREAD],
    ids=lambda path: str(path.relative_to(IMAGE)),
)
def test_no_file_ties_the_build_to_one_network(path: Path) -> None:
    lines = path.read_text().splitlines()
    addresses = [
        line for line in lines if re.search(r"://[\w.]", line) and "ref: https://" not in line
    ]
    allowed = ("//127.0.0.1", NAMESPACE)
    assert [line for line in addresses if not any(each in line for each in allowed)] == []
    assert [
        line for line in lines if re.match(r"\s*(--(extra-)?index-url|-i |--find-links)", line)
    ] == []


def test_nothing_is_fetched_from_a_registry_but_the_base() -> None:
    assert not re.search(r"^#\s*syntax=", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE) == ["${BASE}"]
    assert "--from=" not in DOCKERFILE


def test_the_builders_network_is_only_mounted_never_copied() -> None:
    copied = re.findall(r"^(?:COPY|ADD) (?:--chown=\S+ )?(\S+) (\S+)$", DOCKERFILE, re.MULTILINE)
    assert copied == [(f"rootfs{folder}", folder) for folder in ("/etc/", "/usr/", "/opt/jupyter/")]
    declared = re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)
    assert set(declared) == {"BASE", "AS_OF", "VERSION", "ADDITION"}


def test_the_wheel_has_the_image_s_files_and_nothing_of_a_builder_s_network() -> None:
    project = (IMAGE.parent / "pyproject.toml").read_text()
    taken = set(re.findall(r'^"image/(.+)" = "gpuspawner/image/\1"$', project, re.MULTILINE))
    # The hub's own image is built from a checkout, which it installs.
    left_out = {"network", ".dockerignore", "hub"}
    assert taken == {path.name for path in IMAGE.iterdir()} - left_out


def test_everything_in_rootfs_gets_into_the_image() -> None:
    files = [path for path in (IMAGE / "rootfs").rglob("*") if path.is_file()]
    copied = tuple(f"{IMAGE}/rootfs{folder}" for folder in ("/etc/", "/usr/", "/opt/jupyter/"))
    assert [path for path in files if not str(path).startswith(copied)] == []


def test_the_image_ends_as_the_user_with_no_gpu_visible() -> None:
    assert re.findall(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE)[-1] == "jovyan"
    assert re.findall(r"NVIDIA_VISIBLE_DEVICES=(\w+)", DOCKERFILE) == ["void"]


def test_the_build_sees_a_module_without_bytecode(tmp_path: Path) -> None:
    uncompiled = runpy.run_path(str(IMAGE / "checks" / "check-image"))["uncompiled"]
    (tmp_path / "tests").mkdir()
    for name in ("done.py", "missing.py", "not-a-module.py", "tests/unused.py"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "template.py").write_text("{% not python %}\n")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / f"done.{sys.implementation.cache_tag}.pyc").touch()
    assert uncompiled(tmp_path, ("tests",)) == [tmp_path / "missing.py"]
    assert set(uncompiled(tmp_path)) == {tmp_path / "missing.py", tmp_path / "tests" / "unused.py"}
