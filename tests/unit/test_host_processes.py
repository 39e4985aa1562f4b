"""Which container a process is in, and that no other process gets its signal."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus.host_processes import (
    HostProcess,
    container_ids,
    find,
    has_processes,
    send_signal,
)

from ..support.control_groups import Container, containers
from ..support.requirements import cannot

ONE, OTHER, OUTER = "1a" * 32, "2b" * 32, "3c" * 32
NS_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


# -- Control groups' paths, as engines write them --------------------------------------------------

PATHS = {
    "cgroupfs, version 2": f"0::/docker/{ONE}\n",
    "systemd, version 2": f"0::/system.slice/docker-{ONE}.scope\n",
    "of a slice's own": f"0::/gpus.slice/gpus-users.slice/docker-{ONE}.scope\n",
    "seen from another container": f"0::/../../system.slice/docker-{ONE}.scope\n",
    "with init's own group": f"0::/system.slice/docker-{ONE}.scope/init.scope\n",
    "rootless": f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ONE}.scope\n",
    "version 1": f"4:pids:/docker/{ONE}\n3:cpuset,cpu:/docker/{ONE}\n1:name=system:/docker/{ONE}\n",
    "version 1, half of it": f"9:devices:/docker/{ONE}\n8:pids:/\n0::/system.slice/x.service\n",
    "an engine in a container": f"0::/docker/{OUTER}/docker/{ONE}\n",
    "with a container of its own": f"0::/docker/{ONE}/docker/{OTHER}\n",
    "with a name that looks like another's": f"0::/docker/{ONE}/{OTHER}\n",
}
NOBODYS = {
    "the machine's own": "0::/user.slice/user-1000.slice/session-2.scope\n",
    "rootless, without groups": "0::/user.slice/user-1000.slice/user@1000.service/docker.service\n",
    "another's container": f"0::/docker/{OUTER}\n",
    "longer than an id": f"0::/docker/{ONE}a\n",
    "shorter than an id": f"0::/docker/{ONE[1:]}\n",
    "hierarchies that don't agree": f"4:pids:/docker/{ONE}\n3:cpu:/docker/{OTHER}\n",
    "nothing": "",
    "what is no such file": "\x00\xff\n::::\n",
}


def process(text: str) -> HostProcess:
    return HostProcess(1, 1, "", container_ids(text))


@pytest.mark.parametrize("name", PATHS)
def test_a_process_is_in_the_container_that_its_control_group_names(name: str) -> None:
    assert process(PATHS[name]).container({ONE, OTHER}) == ONE


@pytest.mark.parametrize("name", NOBODYS)
def test_who_is_in_none_is_in_none(name: str) -> None:
    assert process(NOBODYS[name]).container({ONE, OTHER}) is None


@given(st.text(alphabet="0123456789abcdef/:-.\n", max_size=300))
def test_no_text_is_taken_for_a_container_that_it_does_not_name(text: str) -> None:
    found = process(text).container({ONE})
    assert found is None or any(ONE in line for line in text.splitlines())


# -- Real processes --------------------------------------------------------------------------------


def test_real_processes_are_found_in_the_groups_that_they_are_in() -> None:
    with Container("system.slice/docker-{id}.scope") as one, Container() as other:
        child, below = one.start(), one.start(below="mine/deeper")
        (stranger,) = (other.start(),)
        known = {one.id, other.id}
        for each, container in ((child, one), (below, one), (stranger, other)):
            found = find(each.pid)
            assert found
            assert (found.pid, found.container(known)) == (each.pid, container.id)
            assert found.name.startswith("python")
        own = find(os.getpid())
        assert own
        assert own.container(known) is None
        assert has_processes(one.id)
        child.kill()
        # It is there until somebody waits for it, and runs no more.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert find(child.pid) is None
    assert not has_processes(one.id)


def test_a_process_that_is_not_there_or_may_not_be_looked_at_is_none(tmp_path: Path) -> None:
    assert find(2**22 + 1) is None
    folder = tmp_path / "41"
    folder.mkdir()
    assert find(41, tmp_path) is None
    good = "41 (a (b) c) S 1 41 41 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5171 0 0"
    (folder / "cgroup").write_text(f"0::/docker/{ONE}\n")
    (folder / "status").write_text("Name:\tx\nNSpid:\t41\t7\nPid:\t41\n")
    (folder / "stat").write_text(good)
    found = find(41, tmp_path)
    assert found == HostProcess(41, 5171, "a (b) c", ((ONE,),), 7)
    # One more namespace between, or none below: which of the ids a container knows isn't clear.
    for line in ("NSpid:\t41\t9\t7\n", "NSpid:\t41\n", ""):
        (folder / "status").write_text(f"Name:\tNSpid:\t41\t1\n{line}")
        assert find(41, tmp_path) == replace(found, inside=None)
    for bad in ("", "41 (x) S 1", good.replace("5171", "x"), good.replace(") S", ") Z")):
        (folder / "stat").write_text(bad)
        assert find(41, tmp_path) is None
    (folder / "stat").write_text(good)
    (folder / "cgroup").unlink()
    assert find(41, tmp_path) is None


def found(child: subprocess.Popen[bytes]) -> HostProcess:
    process = find(child.pid)
    assert process
    return process


def test_a_signal_ends_the_process_that_was_found() -> None:
    with containers(2) as (one, other):
        first, second = one.start(), one.start()
        assert send_signal(found(first), signal.SIGTERM, one.id, {one.id, other.id})
        assert first.wait() == -signal.SIGTERM
        assert second.poll() is None


def test_nobody_gets_a_signal_that_is_for_another_process_or_container() -> None:
    with containers(2) as (one, other):
        child, known = one.start(), {one.id, other.id}
        process = found(child)
        # The id is another process's by now: that one began at another time.
        earlier = replace(process, began=process.began - 1)
        assert not send_signal(earlier, signal.SIGKILL, one.id, known)
        # The process has moved, or never was there.
        assert not send_signal(process, signal.SIGKILL, other.id, known)
        assert not send_signal(process, signal.SIGKILL, one.id, {other.id})
        own = find(os.getpid())
        assert own
        assert not send_signal(own, signal.SIGKILL, one.id, known)
        child.terminate()
        assert child.wait() == -signal.SIGTERM
        assert not send_signal(process, signal.SIGKILL, one.id, known)


def with_pid(container: Container, pid: int) -> subprocess.Popen[bytes] | None:
    """Start a process that gets an id which another has had; None: somebody else was quicker."""
    for _ in range(200):
        NS_LAST_PID.write_text(str(pid - 1))
        child = container.start()
        if child.pid == pid:
            return child
        child.kill()
        child.wait()
    return None


def test_who_has_got_the_id_of_a_process_that_has_ended_gets_no_signal() -> None:
    with containers(1) as (one,):
        if not os.access(NS_LAST_PID, os.W_OK):
            cannot("needs a kernel that lets one choose the next process's id")
        child = one.start()
        process = found(child)
        child.kill()
        child.wait()
        heir = with_pid(one, process.pid)
        if heir is None:
            pytest.skip("this machine starts too many processes")
        # The same id, the same container, and yet not the same process.
        assert found(heir).container({one.id}) == one.id
        assert not send_signal(process, signal.SIGKILL, one.id, {one.id})
        heir.terminate()
        assert heir.wait() == -signal.SIGTERM
