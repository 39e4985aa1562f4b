"""A simulated host leaves nothing, however it ends, and the machine as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gpuspawner.simulation.host import SimulatedHost
from gpuspawner.simulation.machine import HIDDEN_FOLDERS

from ..support.labs import STATE, UUIDS, Lab, belongings, ended, left_by, until
from ..support.paths import ROOT

pytestmark = pytest.mark.engine


def test_images_and_volumes_stay_and_nothing_else(engine_cache, image_files, tmp_path):
    own = tmp_path / "cache"
    with SimulatedHost(STATE, own) as host:
        lab = Lab(host)
        lab.load(image_files)
        volumes = {"work": {"bind": "/work", "mode": "rw"}}
        lab.run("/probe", "write", "/work/notebook", "a thought", volumes=volumes)
        net = lab.client.networks.create("left-behind")
        lab.begin("/probe", "wait", gpus=[UUIDS[0]], network=net.name)
        paused = lab.begin("/probe", "wait", restart_policy={"Name": "always"})
        paused.pause()
        lab.client.close()
        directory = host.directory
        assert len(belongings(directory)) > 10
    assert left_by(directory) == []
    assert list((own / "engine-0/containers").iterdir()) == []
    with SimulatedHost(STATE, own) as host:
        lab = Lab(host)
        assert lab.client.containers.list(all=True) == []
        assert lab.client.networks.list("left-behind") == []
        assert lab.run("/probe", "read", "/work/notebook", volumes=volumes) == "a thought"
        lab.client.close()


@pytest.mark.parametrize("words", ["exit 1", "exec sleep 600"])
def test_a_start_that_fails_or_is_ended_halfway_leaves_nothing(engine_cache, tmp_path, words):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "dockerd").write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo version 20.10; exit; fi\n'
        f'echo "$2" > {tmp_path}/called.new\nmv {tmp_path}/called.new {tmp_path}/called\n'
        f"echo I am broken\n{words}\n"
    )
    (programs / "dockerd").chmod(0o755)
    starting = subprocess.Popen(
        [sys.executable, "-m", "gpuspawner", "simulate", "--", "true"],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(engine_cache),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: (tmp_path / "called").exists(), "the engine was started")
    directory = Path((tmp_path / "called").read_text().strip()).parent
    if words != "exit 1":
        starting.terminate()
    _, said = starting.communicate()
    assert starting.returncode == (1 if words == "exit 1" else 128 + signal.SIGTERM)
    assert "Traceback" not in said
    assert ("I am broken" in said) == (words == "exit 1")
    assert left_by(directory) == []


def test_when_its_keeper_is_killed_it_sweeps_up_itself(engine_cache):
    host = SimulatedHost(STATE, engine_cache)
    with host:
        directory = host.directory
        host._keeper.kill()
        host._keeper.wait()
        assert belongings(directory) != []
    assert left_by(directory) == []


# A host with a container, in a process that is to be killed with its keeper.
DOOMED = textwrap.dedent(
    """
    import sys, time
    from gpuspawner.simulation.host import SimulatedHost
    from tests.support.labs import STATE, Lab
    with SimulatedHost(STATE, sys.argv[1]) as host:
        lab = Lab(host)
        lab.load({"probe": open(sys.argv[2], "rb").read()})
        container = lab.begin("/probe", "wait")
        container.reload()
        print(host.directory, host._keeper.pid, container.attrs["State"]["Pid"], flush=True)
        time.sleep(600)
    """
)


def test_what_was_killed_as_a_whole_is_swept_up_by_the_next(engine_cache, image_files):
    words = [sys.executable, "-c", DOOMED, str(engine_cache), str(engine_cache / "probe")]
    doomed = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        said = doomed.stdout.readline()
        directory, keeper, inside = (
            kind(word) for kind, word in zip((Path, int, int), said.split(), strict=True)
        )
        os.kill(keeper, signal.SIGKILL)  # first who would clean up
    finally:
        doomed.kill()
        doomed.communicate()
    assert [line for line in belongings(directory) if "--comment" in line]
    with SimulatedHost(STATE, engine_cache) as host:
        assert ended(inside)
        lab = Lab(host)
        assert lab.client.containers.list(all=True) == []
        lab.client.close()
        assert host.directory == directory or left_by(directory) == []
        next_one = host.directory
    assert left_by(directory) == []
    assert left_by(next_one) == []


# -- what the machine had before -----------------------------------------------------------------

# In a network namespace of the test's own, so that it can have any setting and rule.
ELSEWHERE = textwrap.dedent(
    """
    import json, subprocess, sys
    from pathlib import Path
    from gpuspawner.simulation.host import SimulatedHost
    from gpuspawner.simulation.state import describe

    forward = Path("/proc/sys/net/ipv4/ip_forward")
    def now():
        rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True)
        rules = [line for line in rules.stdout.splitlines() if line.startswith("-A")]
        links = [line.split(":")[0].strip() for line in open("/proc/self/net/dev")][2:]
        return [forward.read_text().strip(), sorted(rules), sorted(links)]
    def call(*words):
        subprocess.run(words, check=True)

    call("ip", "link", "set", "lo", "up")
    forward.write_text("0")
    like_ours = [f"{start}gpuspawner-{n}{end}" for n in range(16) for start, end in ("x ", " x")]
    for tag in ("gpuspawner-", "gpuspawner", "somebody else", *like_ours):
        comment = ["-m", "comment", "--comment", tag]
        call("iptables", "-A", "FORWARD", "-i", "eth9", *comment, "-j", "ACCEPT")
        call("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "eth9", *comment, "-j", "RETURN")
    seen = {"before": now()}
    with SimulatedHost(describe(), sys.argv[1]) as one:
        seen["folder"] = str(one.directory)
        seen["one"] = now()
        with SimulatedHost(describe(), sys.argv[1]) as two:
            seen["two"] = now()
        seen["one again"] = now()
    seen["after"] = now()
    with SimulatedHost(describe(), sys.argv[1]):
        call("ip", "link", "add", "docker0", "type", "bridge")
    seen["with an engine"] = now()
    print(json.dumps(seen))
    """
)


def test_the_machine_is_put_back_as_it_was(engine_cache, lab):
    words = ["unshare", "--net", sys.executable, "-c", ELSEWHERE, str(engine_cache)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["after"] == seen["before"]
    assert seen["before"][0] == "0"
    assert [seen[when][0] for when in ("one", "two", "one again")] == ["1", "1", "1"]
    assert seen["one again"] == seen["one"] != seen["two"]
    # An engine that was started meanwhile needs what it found.
    assert seen["with an engine"][0] == "1"
    # Folders and control groups are shared with hosts in other network namespaces.
    assert Path(seen["folder"]) != lab.host.directory
    assert lab.run("nvidia-smi", "-L", gpus=[UUIDS[0]]).count("UUID") == 1


# In network namespaces of the test's own: a machine whose firewall refuses what it isn't told of,
# and a world outside of it that knows the machine's address only.
OUTSIDE = textwrap.dedent(
    """
    import subprocess, sys
    from pathlib import Path
    from gpuspawner.simulation.host import SimulatedHost
    from tests.support.labs import *

    SERVER = '''
    import socket, sys
    sys.stdin.readline()
    with socket.create_server(("198.51.100.2", 80)) as server:
        print("ready", flush=True)
        while True:
            peer, (address, _) = server.accept()
            peer.sendall(address.encode())
            peer.close()
    '''
    def call(*words):
        subprocess.run(words, check=True)
    def set_up(name, address, *enter):
        call(*enter, "ip", "address", "add", address, "dev", name)
        call(*enter, "ip", "link", "set", name, "up")

    words = ["unshare", "--net", sys.executable, "-c", textwrap.dedent(SERVER)]
    world = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        there = Path(f"/proc/{world.pid}/ns/net")
        until(lambda: there.readlink() != Path("/proc/self/ns/net").readlink(), "there is a world")
        peer = ["peer", "name", "inside", "netns", str(world.pid)]
        call("ip", "link", "add", "outside", "type", "veth", *peer)
        set_up("outside", "198.51.100.1/30")
        set_up("inside", "198.51.100.2/30", "nsenter", f"--net={there}")
        set_up("lo", "127.0.0.1/8")
        call("ip", "route", "add", "default", "via", "198.51.100.2")
        call("iptables", "-P", "INPUT", "DROP")
        call("iptables", "-A", "FORWARD", "-j", "DROP")
        print("go on", file=world.stdin, flush=True)
        assert world.stdout.readline().strip() == "ready"
        with SimulatedHost(STATE, sys.argv[1]) as host:
            lab = Lab(host)
            lab.load({"probe": Path(sys.argv[2]).read_bytes()})
            print(lab.run("/probe", "fetch", "198.51.100.2", "80"))
            with socket.create_server((host.hub_ip, 0)) as hub:
                hub.settimeout(60)
                asking = lab.begin("/probe", "fetch", host.hub_ip, str(hub.getsockname()[1]))
                hub.accept()[0].close()
            lab.client.close()
    finally:
        world.kill()
        world.communicate()
    """
)


def test_containers_reach_the_world_and_the_hub_through_a_firewall(engine_cache, image_files):
    words = [sys.executable, "-c", OUTSIDE, str(engine_cache), str(engine_cache / "probe")]
    done = subprocess.run(["unshare", "--net", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "198.51.100.1\n"


# In network and mount namespaces of the test's own: a machine that has an engine already, with a
# containerd where Docker looks for one, and both where they are by default.
BESIDE = textwrap.dedent(
    """
    import json, os, subprocess, sys, time
    from pathlib import Path
    from gpuspawner.simulation.host import SimulatedHost
    from tests.support.labs import *

    def call(*words):
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    def begin(*words):
        log = open(f"{sys.argv[3]}/{words[0]}.log", "wb")
        return subprocess.Popen(words, stdout=log, stderr=log)
    def rules():
        return sorted(line for line in call("iptables-save").splitlines() if line[:1] in "-")

    class Machine:
        docker_host = "unix:///run/docker.sock"
    for folder in HIDDEN:
        Path(folder).mkdir()
    call("ip", "link", "set", "lo", "up")
    config = Path(sys.argv[3], "containerd.toml")
    config.write_text(f'version = 2\\nroot = "{sys.argv[3]}/containerd"\\n')
    parts = [begin("containerd", "--config", str(config))]
    try:
        until(lambda: Path("/run/containerd/containerd.sock").exists(), "containerd listens")
        group = ["--cgroup-parent=/simulation-test", "--exec-opt=native.cgroupdriver=cgroupfs"]
        data = f"--data-root={sys.argv[3]}/docker"
        parts.append(begin("dockerd", "-H", Machine.docker_host, data, *group))
        until(lambda: answers(Path("/run/docker.sock")), "the machine's engine listens")
        machine = Lab(Machine)
        probe = {"probe": Path(sys.argv[2]).read_bytes()}
        machine.load(probe)
        theirs = machine.begin("/probe", "wait")
        before = rules()
        with SimulatedHost(STATE, sys.argv[1]) as host:
            lab = Lab(host)
            lab.load(probe)
            assert lab.run("nvidia-smi", "-L", gpus=[UUIDS[0]]).count("UUID") == 1
            lab.begin("/probe", "wait")
            (ours,) = lab.client.containers.list()
            assert machine.client.containers.list() == [theirs]
            assert machine.run("/probe", "devices") == ""
            print(host.directory)
        assert rules() == before
        assert "docker0" in Path("/proc/self/net/dev").read_text()
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\\n"
        assert machine.client.containers.list() == [theirs]
        assert machine.run("/probe", "devices") == ""
        theirs.remove(force=True)
    finally:
        for part in reversed(parts):
            part.terminate()
            part.wait()
        for group in Path("/sys/fs/cgroup").glob("**/simulation-test"):
            group.rmdir()
    """
)


def test_the_machines_own_engine_goes_on_beside_it(engine_cache, lab, tmp_path):
    code = f"HIDDEN = {[str(folder) for folder in HIDDEN_FOLDERS]}\n{BESIDE}"
    script = f'mount -t tmpfs tmpfs /run && exec {sys.executable} -c "$0" "$@"'
    words = [code, str(engine_cache), str(engine_cache / "probe"), str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Neither folders nor network are shared with the host that runs outside, but control groups.
    assert Path(done.stdout.strip()) != lab.host.directory
    assert lab.run("nvidia-smi", "-L", gpus=[UUIDS[0]]).count("UUID") == 1


# In a mount namespace of the test's own, where the host's resolver listens on its loopback.
RESOLVER = textwrap.dedent(
    """
    import socket, subprocess, sys, threading
    from gpuspawner.simulation.host import SimulatedHost
    from gpuspawner.simulation.state import describe
    from tests.support.labs import Lab

    subprocess.run(["mount", "--bind", sys.argv[2], "/etc/resolv.conf"], check=True)
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.99", 53))
    def answer():
        while True:
            question, asker = resolver.recvfrom(512)
            resolver.sendto(b"answer to " + question, asker)
    threading.Thread(target=answer, daemon=True).start()
    with SimulatedHost(describe(), sys.argv[1]) as host:
        lab = Lab(host)
        lab.load({"probe": open(sys.argv[3], "rb").read()})
        run = lab.run
        lines = run("/probe", "read", "/etc/resolv.conf").splitlines()
        servers = [line.split()[1] for line in lines if line.startswith("nameserver")]
        assert servers == [host.hub_ip], servers
        assert "search lab.example" in lines, lines
        print(run("/probe", "ask", servers[0], "53", "a question"))
        lab.client.close()
        print(host.directory)
    """
)


def test_containers_resolve_names_where_the_hosts_resolver_is_on_its_loopback(
    engine_cache, image_files, tmp_path
):
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.99\nsearch lab.example\n")
    files = [str(tmp_path / "resolv.conf"), str(engine_cache / "probe")]
    words = ["unshare", "--mount", sys.executable, "-c", RESOLVER, str(engine_cache), *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, directory = done.stdout.splitlines()
    assert said == "answer to a question"
    assert left_by(Path(directory)) == []
