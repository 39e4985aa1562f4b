"""`gpuspawner image build` on a real engine, with a Dockerfile of a second on top of `minimal`."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import docker
import pytest

from gpuspawner.__main__ import main

from ..support.paths import ROOT

pytestmark = pytest.mark.engine

IMAGE = ROOT / "image"
REFERENCE = "gpuspawner/rehearsal:1"
CATALOGUE = f"minimal: {{image: {REFERENCE}, title: Rehearsal}}\n"
DOCKERFILE = """
ARG BASE
FROM ${BASE}
ARG VERSION
ARG AS_OF
USER root
RUN --mount=type=tmpfs,target=/run --mount=type=bind,source=network,target=/run/build/network \\
    echo "==> Speaking with ${VERSION}'s network"; \\
    echo "proxy: ${http_proxy}"; \\
    echo "ca: $(cat /run/build/network/ca.pem) index: $(cat /run/build/network/index-url)"
USER jovyan
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder made like image/, whose `minimal` is quick to build."""
    made = tmp_path / "image"
    shutil.copytree(IMAGE, made)
    (made / "catalogue.yaml").write_text(CATALOGUE)
    (made / "Dockerfile").write_text(DOCKERFILE)
    return made


@pytest.fixture
def client(minimal_image) -> Iterator[docker.DockerClient]:
    """The engine, which afterwards has the images that it had before."""
    client, _ = minimal_image
    yield client
    for found in client.images.list(filters={"reference": REFERENCE}):
        client.images.remove(found.id, force=True)


@pytest.fixture(autouse=True)
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of which nobody may find out in the image."""
    # Another one each time, for a step that sees the same network again comes from the cache.
    (tmp_path / "ca.pem").write_text(f"hush-certificate-{uuid4().hex}")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://me:hush-password@index/simple")
    monkeypatch.setenv("http_proxy", "http://me:hush-proxy@proxy:3128")


def build(folder: Path, minimal_image: tuple[docker.DockerClient, str], *words: str) -> int:
    """Build the rehearsal on `minimal`; return the exit status."""
    _, base = minimal_image
    return main(["image", "--folder", str(folder), "build", "minimal", "--base", base, *words])


def ids(client: docker.DockerClient) -> set[str]:
    return {found.id for found in client.images.list()}


def test_a_build_is_checked_then_tagged_and_keeps_no_secret(
    client, minimal_image, folder: Path, capsys
) -> None:
    assert build(folder, minimal_image, "--verbose") == 0
    progress = capsys.readouterr().err
    assert "Speaking with minimal's network" in progress
    assert "proxy: http://me:hush-proxy@proxy:3128" in progress
    assert "ca: hush-certificate-" in progress
    assert "index: https://me:hush-password@index/simple" in progress
    built = client.images.get(REFERENCE)
    written = json.dumps([built.attrs, built.history()])
    search = [
        "grep",
        "-rlas",
        "hush-",
        "/etc",
        "/home",
        "/opt/jupyter/etc",
        "/root",
        "/run",
        "/tmp",
    ]
    found = client.containers.run(
        REFERENCE, ["bash", "-c", f"{' '.join(search)} || true"], user="root", remove=True
    )
    assert "hush-" not in written
    assert found == b""


@pytest.mark.thorough
def test_what_is_replaced_goes_and_equal_files_build_nothing(
    client, minimal_image, folder: Path, capsys
) -> None:
    assert build(folder, minimal_image) == 0
    first = client.images.get(REFERENCE).id
    capsys.readouterr()
    assert build(folder, minimal_image) == 0
    assert capsys.readouterr().err == f"minimal: {REFERENCE} is up to date\n"
    (folder / "rootfs" / "new").write_text("changed")
    (folder / "Dockerfile").write_text(DOCKERFILE + "COPY rootfs/new /tmp/new\n")
    assert build(folder, minimal_image) == 0
    assert client.images.get(REFERENCE).id != first
    assert first not in ids(client)


@pytest.mark.thorough
def test_what_somebody_has_named_themselves_stays(client, minimal_image, folder: Path) -> None:
    """To go back to it, say: by its id the engine would take its last name, and remove it."""
    assert build(folder, minimal_image) == 0
    before = client.images.get(REFERENCE)
    before.tag("lab/known-good", "1")
    try:
        (folder / "rootfs" / "new").write_text("changed")
        (folder / "Dockerfile").write_text(DOCKERFILE + "COPY rootfs/new /tmp/new\n")
        assert build(folder, minimal_image) == 0
        assert client.images.get(REFERENCE).id != before.id
        assert client.images.get("lab/known-good:1").id == before.id
    finally:
        client.images.remove("lab/known-good:1")


# What a Dockerfile may end with, and what is said of it.
WRONG = {
    # A device that is always full: what the kernel says of a disk that is.
    "RUN head -c 1 /dev/zero > /dev/full": "wasn't built: the disk is full",
    "ENV NVIDIA_VISIBLE_DEVICES=all": "NVIDIA_VISIBLE_DEVICES isn't void",
    "ENV LANG=C": "isn't what it should be: the variable LANG is 'C', not 'C.UTF-8'",
    "ENTRYPOINT []": "process_1 is 'sleep', not 'tini'",
    "USER root": "the image's user is root",
}


@pytest.mark.thorough
def test_a_failed_or_wrong_build_changes_no_image(
    client, minimal_image, folder: Path, capsys
) -> None:
    assert build(folder, minimal_image) == 0
    before = ids(client)
    first = client.images.get(REFERENCE).id
    for line, said in WRONG.items():
        capsys.readouterr()
        (folder / "Dockerfile").write_text(DOCKERFILE + line + "\n")
        assert build(folder, minimal_image) == 1, line
        assert said in capsys.readouterr().err
        assert client.images.get(REFERENCE).id == first, line
        assert ids(client) == before, line


# A package of one module, and an index with nothing else.
INDEX = """
ARG BASE
FROM ${BASE}
ARG VERSION
ARG AS_OF
USER root
RUN mkdir -p /tmp/index/lesson && cd /tmp/index/lesson && python -c '\\
import zipfile; wheel = zipfile.ZipFile("lesson-1.0-py3-none-any.whl", "w"); \\
wheel.writestr("lesson.py", "answer = 42"); info = "lesson-1.0.dist-info/"; \\
wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: lesson\\nVersion: 1.0\\n"); \\
wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n"); \\
wheel.writestr(info + "RECORD", ""); wheel.close()' && \\
    echo '<a href="lesson-1.0-py3-none-any.whl">lesson-1.0-py3-none-any.whl</a>' > index.html
USER jovyan
"""
INSTALL = """
RUN --mount=type=tmpfs,target=/run --mount=type=bind,source=versions,target=/run/build/versions \\
    --mount=type=bind,source=network,target=/run/build/network \\
    --mount=type=bind,source=steps,target=/run/build/steps \\
    bash -ec 'source /run/build/steps/network.sh; \\
    bash /run/build/steps/pip-install /run/build/versions/minimal/requirements.lock Lesson'
"""
LOCK = f"lesson==1.0 --hash=sha256:{'0' * 64}\n"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("file:///tmp/index", "lesson==1.0 is not the file that the lock names"),
        ("http://127.0.0.1:9/simple", "packages can't be fetched"),
    ],
)
def test_what_a_real_index_answers_is_told_in_a_sentence(
    client, minimal_image, folder: Path, capsys, monkeypatch, index: str, said: str
) -> None:
    before = ids(client)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index)
    monkeypatch.delenv("http_proxy")
    monkeypatch.delenv("SSL_CERT_FILE")
    (folder / "Dockerfile").write_text(INDEX + INSTALL)
    (folder / "versions" / "minimal" / "requirements.lock").write_text(LOCK)
    assert build(folder, minimal_image) == 1
    sentences = capsys.readouterr().err.splitlines()
    assert sentences[-1].startswith(f"gpuspawner image: minimal wasn't built: {said}")
    assert ids(client) == before


@pytest.mark.thorough
def test_a_base_that_is_no_distribution_is_told_in_a_sentence(
    client, minimal_image, tmp_path: Path, capsys
) -> None:
    folder = shutil.copytree(IMAGE, tmp_path / "real")
    (folder / "catalogue.yaml").write_text(CATALOGUE)
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.add(__file__, "a-file")
    client.api.import_image(str(tmp_path / "base.tar"), repository="localhost/empty", tag="1")
    try:
        command = ["image", "--folder", str(folder), "build", "minimal"]
        assert main([*command, "--base", "localhost/empty:1"]) == 1
    finally:
        client.images.remove("localhost/empty:1", force=True)
    said = "the base image has no apt-get or bash: it must be Debian or made from it"
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)
    assert client.images.list(REFERENCE) == []
