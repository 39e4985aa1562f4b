"""What doctor says of the memory guard, and whether the machine's processes are seen."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from gpuspawner.backends.docker.backend import DockerBackend
from gpuspawner.backends.docker.process_view import sees_processes
from gpuspawner.doctor.findings import Configuration, Context, Finding
from gpuspawner.doctor.memory_guard import memory_guard

SHARED = {"NVIDIA A100-SXM4-40GB": 8}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[docker.APIClient]:
    """A client of an engine that only listens, in this process."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        client = docker.APIClient(base_url=f"unix://{path}", version="1.41")
        yield client
        client.close()


def look(engine: Any, container: Any = None, ours: bool = True, **traits: Any) -> list[Finding]:
    given = Configuration(
        Path("jupyterhub_config.py"), "gpuspawner.GPUSpawner", ours, traits, {}, {}
    )
    context = Context(None, Path(), configuration=given, own_container=container)
    context.engine = SimpleNamespace(api=engine)  # type: ignore[assignment]
    return list(memory_guard(context))


def test_it_says_nothing_where_no_gpu_is_shared(engine) -> None:
    assert look(engine) == look(engine, shared_gpus={"T4": 1}) == []
    assert look(engine, ours=False, shared_gpus=SHARED) == []
    assert look(engine, has_course_slots=False) == []
    assert list(memory_guard(Context(None, Path()))) == []


def test_where_it_is_on_off_or_blind_it_says_which(engine, tmp_path: Path) -> None:
    (found,) = look(engine, shared_gpus=SHARED)
    assert (found.state, found.found) == (
        "ok",
        "servers that share a GPU are kept to their part of its memory",
    )
    assert look(engine, has_course_slots=True) == [found]
    (found,) = look(engine, shared_gpus=SHARED, memory_guard=False)
    assert (found.state, "c.GPUSpawner.memory_guard = False" in found.found) == ("note", True)
    engine.get_adapter(engine.base_url).socket_path = str(tmp_path / "gone")
    (found,) = look(engine, shared_gpus=SHARED)
    assert (found.state, "can't be opened" in found.found) == ("warning", True)


def test_a_proc_that_hides_others_is_as_good_as_none(engine, tmp_path: Path, monkeypatch) -> None:
    assert sees_processes(engine)
    assert not sees_processes(engine, tmp_path)
    monkeypatch.setattr("gpuspawner.doctor.memory_guard.sees_processes", lambda client: False)
    for container, advice in ((None, "on the machine itself"), ({"Id": "x"}, "--pid=host")):
        (found,) = look(engine, container, shared_gpus=SHARED)
        assert found.state == "warning"
        assert found.found.startswith("nothing limits what a server takes of a shared GPU's memory")
        assert advice in found.advice


def test_an_engine_over_the_network_is_seen_from_the_machines_own_namespace(tmp_path: Path) -> None:
    client = docker.APIClient(base_url="tcp://127.0.0.1:9", version="1.41")
    (tmp_path / "self" / "ns").mkdir(parents=True)
    link = tmp_path / "self" / "ns" / "pid"
    for target, sees in (("pid:[4026531836]", True), ("pid:[4026532177]", False)):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert sees_processes(client, tmp_path) is sees
    client.close()


def test_a_backend_asks_again_while_the_engine_is_away(engine) -> None:
    backend = DockerBackend(lambda: engine, log=None)
    adapter = engine.get_adapter(engine.base_url)
    path, adapter.socket_path = adapter.socket_path, "/nowhere"
    assert backend.sees_processes is False
    adapter.socket_path = path
    assert backend.sees_processes is True
    adapter.socket_path = "/nowhere"
    assert backend.sees_processes is True
    backend.executor.shutdown()


# The other end of the socket is in a namespace around this one.
INSIDE = """
import docker, sys
from gpuspawner.backends.docker.process_view import sees_processes
client = docker.APIClient(base_url="unix://" + sys.argv[1], version="1.41")
print(sees_processes(client))
"""


def test_an_engine_outside_of_ones_own_namespace_is_not_seen(engine) -> None:
    path = engine.get_adapter(engine.base_url).socket_path
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs namespaces of users and of process ids")
    inside = [*words, sys.executable, "-c", INSIDE, path]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
