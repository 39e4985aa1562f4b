"""The image versions: what their files promise, and what the built `minimal` image is."""

from __future__ import annotations

import json
import re
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import requests
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from gpuspawner.__main__ import main
from gpuspawner.image_builder import bom
from gpuspawner.image_builder.checks import pins
from gpuspawner.image_builder.recipe import COMMON, recipes

IMAGE = Path(__file__).parent.parent / "image"
VERSIONS = recipes(IMAGE)
DOCKERFILE = (IMAGE / "Dockerfile").read_text()

# A builder's own CA bundle, and what a Python left that read a module here.
UNREAD = (".pem", ".pyc")
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
    ("key", "below"), [(key, below) for key in VERSIONS for below in VERSIONS[key].below]
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
    assert [line for line in addresses if "//127.0.0.1" not in line] == []
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
    assert taken == {path.name for path in IMAGE.iterdir()} - {"network", ".dockerignore"}


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


@pytest.mark.engine
def test_the_built_image_is_what_it_promises(minimal_image, capsys) -> None:
    assert main(["image", "verify", "minimal"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("minimal: Python 3.11.")
    assert "runs as jovyan" in said


@pytest.mark.engine
def test_pytorch_is_what_it_promises_and_its_processes_meet(pytorch_image, capsys) -> None:
    assert main(["image", "verify", "pytorch-2.7"]) == 0
    said = capsys.readouterr().out
    assert "torch 2.7.0, cuda 12.6, cudnn 9.5.1, nccl 2.26.2, two processes meet" in said


@pytest.mark.engine
def test_the_bill_of_materials_has_what_is_in_the_image(minimal_image, capsys) -> None:
    client, reference = minimal_image
    assert main(["image", "sbom", "--print", "minimal"]) == 0
    urls = [each["purl"] for each in json.loads(capsys.readouterr().out)["components"]]
    command = ["dpkg-query", "-W", "-f", "${Package}\\n"]
    debian = client.containers.run(reference, command, network_mode="none", remove=True).split()
    assert len([url for url in urls if url.startswith("pkg:deb/debian/")]) == len(debian)
    python = {url for url in urls if url.startswith("pkg:pypi/")}
    committed = json.loads(VERSIONS[COMMON].lock.with_name(bom.FILE).read_text())["components"]
    assert python == {each["purl"] for each in committed if "pypi/" in each["purl"]}


@pytest.mark.engine
def test_no_secret_and_nothing_of_a_builder_is_in_the_image(minimal_image) -> None:
    client, reference = minimal_image
    keys = (
        "ls /etc/ssh/*key* /home/jovyan/work/.ssh/* 2>/dev/null; command -v sudo; ls -A /run/build"
    )
    found = client.containers.run(
        reference, ["bash", "-c", f"{keys} 2>/dev/null; true"], network_mode="none", remove=True
    )
    assert found == b""
    history = json.dumps(client.images.get(reference).history())
    assert "index-url" not in history
    assert "://" not in history


# What the hub tells a server, and what the health check makes of it while Jupyter runs.
HUB_SAID = {
    "http://0.0.0.0:8888/user/ada/": 0,
    "http://[::]:8888/": 0,
    "https://127.0.0.1:8888/user/ada/": 0,  # with a certificate of the hub's own nobody may ask
    "http://127.0.0.1:8889/user/ada/": 1,
    "": 0,  # no hub
}


@pytest.mark.engine
@pytest.mark.parametrize("said", HUB_SAID)
def test_the_health_check_asks_where_the_hub_said(jupyter_container, said: str) -> None:
    (check,) = jupyter_container.attrs["Config"]["Healthcheck"]["Test"][1:]
    code, _ = jupyter_container.exec_run(check, environment={"JUPYTERHUB_SERVICE_URL": said})
    assert code == HUB_SAID[said]


@pytest.mark.engine
def test_a_server_that_does_not_answer_is_unhealthy(minimal_image) -> None:
    client, reference = minimal_image
    listens = "import socket, time; s = socket.create_server(('', 8888)); time.sleep(999)"
    container = client.containers.run(
        reference, ["python", "-c", listens], detach=True, network_mode="none"
    )
    try:
        code, _ = container.exec_run(
            "server-answers", environment={"JUPYTERHUB_SERVICE_URL": "http://:8888/"}
        )
    finally:
        container.remove(force=True)
    assert code == 1


@pytest.mark.engine
def test_what_is_loaded_when_asked_answers_like_the_rest(jupyter: str, jupyter_container) -> None:
    checked = f"http://{jupyter}/nvdashboard/accelerators/check"
    stranger = requests.get(checked, timeout=30, allow_redirects=False)
    assert stranger.headers["Location"].startswith("/login")
    assert requests.get(checked, headers=AS_USER, timeout=30).json()["has_gpu"] is False
    # No WebSocket, so no SSH; and who isn't known doesn't get that far.
    assert requests.get(f"http://{jupyter}/sshd", headers=AS_USER, timeout=30).status_code == 400
    assert requests.get(f"http://{jupyter}/sshd/", timeout=30).status_code == 403
    assert requests.get(f"http://{jupyter}/sshdx", headers=AS_USER, timeout=30).status_code == 404


@pytest.mark.engine
def test_a_course_comes_by_a_link(jupyter: str) -> None:
    page = requests.get(f"http://{jupyter}/git-pull?repo=x", headers=AS_USER, timeout=30)
    assert page.status_code == 200
    assert "git-pull" in page.text


@pytest.mark.engine
def test_building_again_is_a_look(minimal_image, capsys) -> None:
    client, reference = minimal_image
    before = client.images.get(reference).id
    assert main(["image", "build", "minimal"]) == 0
    assert capsys.readouterr().err == f"minimal: {reference} is up to date\n"
    assert client.images.get(reference).id == before


@pytest.mark.engine
def test_the_list_says_that_it_is_built(minimal_image, capsys) -> None:
    assert main(["image", "list", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["minimal"]["state"] == "built"
    assert rows["minimal"]["size_mb"] > 0


@pytest.mark.engine
def test_nothing_in_the_image_makes_a_user_root(minimal_image) -> None:
    client, reference = minimal_image
    command = ["find", "/", "-xdev", "-type", "f", "-perm", "/6000"]
    found = client.containers.run(reference, command, user="root", network_mode="none", remove=True)
    assert found == b""


@pytest.mark.engine
def test_the_user_may_write_to_a_new_volume(minimal_image) -> None:
    client, reference = minimal_image
    volume = client.volumes.create()
    try:
        written = client.containers.run(
            reference,
            ["bash", "-c", "echo kept > work/note; stat -c '%U %G' work work/note"],
            volumes={volume.name: {"bind": "/home/jovyan/work", "mode": "rw"}},
            network_mode="none",
            remove=True,
        )
    finally:
        volume.remove()
    assert written.decode().splitlines() == ["jovyan users"] * 2


# A package of one module, as `pip` gets it from an index.
WHEEL = """
import zipfile
name = "lesson-1.0-py3-none-any.whl"
with zipfile.ZipFile(name, "w") as wheel:
    wheel.writestr("lesson.py", "answer = 42")
    info = "lesson-1.0.dist-info"
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: lesson\\nVersion: 1.0\\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
    wheel.writestr(f"{info}/RECORD", "")
"""


@pytest.mark.engine
@pytest.mark.parametrize("installer", ["pip", "uv pip"])
def test_the_user_can_install_a_package(minimal_image, installer: str) -> None:
    client, reference = minimal_image
    script = f"""
        python -c '{WHEEL}'
        {installer} install --quiet --no-index lesson-1.0-py3-none-any.whl
        cd / && python -c 'import lesson; print(lesson.answer)'
    """
    written = client.containers.run(
        reference, ["bash", "-ec", script], network_mode="none", remove=True
    )
    assert written == b"42\n"


# Whoever has it needs no XSRF cookie.
TOKEN = "lab"
AS_USER = {"Authorization": f"token {TOKEN}"}


@pytest.fixture(scope="module")
def jupyter_container(minimal_image) -> Iterator[docker.models.containers.Container]:
    """A container of the image with a JupyterLab that answers, without a hub."""
    client, reference = minimal_image
    command = [
        "jupyter",
        "lab",
        "--ip=0.0.0.0",
        f"--IdentityProvider.token={TOKEN}",
        "--no-browser",
    ]
    container = client.containers.run(
        reference, command, detach=True, cap_drop=["ALL"], security_opt=["no-new-privileges"]
    )
    try:
        _address(container)
        yield container
    finally:
        container.remove(force=True, v=True)


@pytest.fixture(scope="module")
def jupyter(jupyter_container) -> str:
    """Its address."""
    return _address(jupyter_container)


def _address(container: docker.models.containers.Container) -> str:
    last: object = None
    for _ in range(1200):
        container.reload()
        networks = container.attrs["NetworkSettings"]["Networks"]
        address = f"{networks['bridge']['IPAddress']}:8888"
        try:
            if requests.get(f"http://{address}/api", timeout=5).ok:
                return address
        except requests.RequestException as error:
            last = error
        assert container.status == "running", container.logs().decode()
        time.sleep(0.05)
    raise AssertionError(f"no answer: {last}")


@pytest.mark.engine
async def test_a_terminal_opens_in_the_environment(jupyter: str) -> None:
    url = f"http://{jupyter}/api/terminals"
    name = requests.post(url, headers=AS_USER, timeout=30).json()["name"]
    address = f"ws://{jupyter}/terminals/websocket/{name}"
    socket = await websocket_connect(HTTPRequest(address, headers=AS_USER))
    await socket.write_message(
        json.dumps(["stdin", "echo at-$(command -v python)-$USER-$(id -un)\r"])
    )
    screen = ""
    while "at-/" not in screen:
        message = await socket.read_message()
        assert message is not None, screen
        kind, *rest = json.loads(message)
        screen += rest[0] if kind == "stdout" else ""
    assert "at-/opt/jupyter/bin/python-" in screen
    assert re.search(r"jovyan@\w+:", screen)
    socket.close()


@pytest.mark.engine
def test_neither_news_nor_an_index_is_asked_for(jupyter: str) -> None:
    page = requests.get(f"http://{jupyter}/lab", headers=AS_USER, timeout=30).text
    config = json.loads(re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.S)[1])
    assert config["news"] == {"disabled": True}
    assert config["extensionManager"]["can_install"] is False
