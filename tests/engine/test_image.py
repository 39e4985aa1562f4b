"""What the built images are."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import docker
import pytest
import requests
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from gpuspawner.__main__ import main
from gpuspawner.image_builder import bom
from gpuspawner.image_builder.recipe import COMMON, recipes

from ..support.paths import ROOT

pytestmark = pytest.mark.engine

IMAGE = ROOT / "image"
VERSIONS = recipes(IMAGE)


def test_the_built_image_is_what_it_promises(minimal_image, capsys) -> None:
    assert main(["image", "verify", "minimal"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("minimal: Python 3.11.")
    assert "runs as jovyan" in said


def test_pytorch_is_what_it_promises_and_its_processes_meet(pytorch_image, capsys) -> None:
    assert main(["image", "verify", "pytorch-2.7"]) == 0
    said = capsys.readouterr().out
    assert "torch 2.7.0, cuda 12.6, cudnn 9.5.1, nccl 2.26.2, two processes meet" in said


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


@pytest.mark.parametrize("said", HUB_SAID)
def test_the_health_check_asks_where_the_hub_said(jupyter_container, said: str) -> None:
    (check,) = jupyter_container.attrs["Config"]["Healthcheck"]["Test"][1:]
    code, _ = jupyter_container.exec_run(check, environment={"JUPYTERHUB_SERVICE_URL": said})
    assert code == HUB_SAID[said]


@pytest.mark.thorough
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


def test_what_is_loaded_when_asked_answers_like_the_rest(jupyter: str, jupyter_container) -> None:
    checked = f"http://{jupyter}/nvdashboard/accelerators/check"
    stranger = requests.get(checked, timeout=30, allow_redirects=False)
    assert stranger.headers["Location"].startswith("/login")
    assert requests.get(checked, headers=AS_USER, timeout=30).json()["has_gpu"] is False
    # No WebSocket, so no SSH; and who isn't known doesn't get that far.
    assert requests.get(f"http://{jupyter}/sshd", headers=AS_USER, timeout=30).status_code == 400
    assert requests.get(f"http://{jupyter}/sshd/", timeout=30).status_code == 403
    assert requests.get(f"http://{jupyter}/sshdx", headers=AS_USER, timeout=30).status_code == 404


def test_a_course_comes_by_a_link(jupyter: str) -> None:
    page = requests.get(f"http://{jupyter}/git-pull?repo=x", headers=AS_USER, timeout=30)
    assert page.status_code == 200
    assert "git-pull" in page.text


def test_building_again_is_a_look(minimal_image, capsys) -> None:
    client, reference = minimal_image
    before = client.images.get(reference).id
    assert main(["image", "build", "minimal"]) == 0
    assert capsys.readouterr().err == f"minimal: {reference} is up to date\n"
    assert client.images.get(reference).id == before


def test_the_list_says_that_it_is_built(minimal_image, capsys) -> None:
    assert main(["image", "list", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["minimal"]["state"] == "built"
    assert rows["minimal"]["size_mb"] > 0


def test_nothing_in_the_image_makes_a_user_root(minimal_image) -> None:
    client, reference = minimal_image
    command = ["find", "/", "-xdev", "-type", "f", "-perm", "/6000"]
    found = client.containers.run(reference, command, user="root", network_mode="none", remove=True)
    assert found == b""


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
    assert "/.local/share/gpuspawner/packages/minimal/bin/python-" in screen
    assert re.search(r"jovyan@\w+:", screen)
    socket.close()


def test_neither_news_nor_an_index_is_asked_for(jupyter: str) -> None:
    page = requests.get(f"http://{jupyter}/lab", headers=AS_USER, timeout=30).text
    config = json.loads(re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.S)[1])
    assert config["news"] == {"disabled": True}
    assert config["extensionManager"]["can_install"] is False


def test_what_a_package_of_the_users_shows_in_notebooks_is_fetched_by_the_page(
    jupyter: str, jupyter_container
) -> None:
    build = {"load": "static/remote.js", "extension": "./extension"}
    about = json.dumps({"name": "shown", "version": "1.0", "jupyterlab": {"_build": build}})
    folder = "~/.local/share/gpuspawner/packages/minimal/share/jupyter/labextensions/shown"
    begin = f"mkdir -p {folder}/static; cd {folder}; echo 'let x' > static/remote.js"
    command = f"{begin}; echo '{about}' > package.json"
    assert jupyter_container.exec_run(["bash", "-c", command]).exit_code == 0
    page = requests.get(f"http://{jupyter}/lab", headers=AS_USER, timeout=30).text
    config = json.loads(re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.S)[1])
    assert "shown" in {each["name"] for each in config["federated_extensions"]}
    file = f"http://{jupyter}/lab/extensions/shown/static/remote.js"
    assert requests.get(file, headers=AS_USER, timeout=30).text == "let x\n"
