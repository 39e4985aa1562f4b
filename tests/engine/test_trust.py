"""What a user can and can't do to others, to the machine and to the hub, tried from a server.

README says it, in both languages, and the handbook says more. Each sentence there is in a table
below, with the tests that try to break it: one without a test fails here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import textwrap
import threading
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
from jupyterhub.apihandlers import default_handlers

from ..support import dashboards
from ..support.dashboards import Program
from ..support.hubs import PASSWORD, until, with_groups
from ..support.looks import clear, container_of, free_gpus, inside
from ..support.paths import ROOT

pytestmark = pytest.mark.engine

# As in the shipped configuration, but less memory and fewer processes: a bomb of 4096 takes long.
SMALL = {
    "mem_limit": "192M",
    "shm_size": "64M",
    "extra_host_config": {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": 64,
    },
}
# As docs/how-to/log-in.md has them.
OPERATORS = """
c.JupyterHub.load_groups["operators"] = {"users": ["olga"]}
c.JupyterHub.load_roles.append({
    "name": "operators",
    "groups": ["operators"],
    "scopes": ["admin-ui", "list:users", "list:groups", "admin:servers"],
})
"""
SECRET = "what-only-ben-may-read"


@pytest.fixture(scope="module")
def hub(hubs_of_run, engine, minimal_image):
    """A hub with the shipped configuration and the dashboard; ada and ben have a GPU each."""
    clear(engine)
    running = hubs_of_run(
        dashboards.lines(),
        f"c.SharedPasswordAuthenticator.user_password = {PASSWORD!r}",
        with_groups({"small": SMALL, "labs": {"cmd": None}}),
        OPERATORS,
        shipped=True,
    )
    for user in ("ada", "ben"):
        running.start_server(user, {"gpus": 1, "image": "minimal"})
    inside(
        engine, "ben", f"mkdir -p ~/work; echo {SECRET} | tee ~/secret ~/work/secret /tmp/secret"
    )
    yield running
    running.stop()
    clear(engine)


def tries(engine: Any, user: str, code: str, root: bool = False) -> Any:
    """Return what Python code in a user's server finds out: the JSON value that it prints.

    `fails(f)` in it is the error that `f()` raises, by its class's name; "" if it doesn't. So is
    `connects(places, seconds)` of each (host, port).
    """
    begin = """
    import ctypes, errno, glob, json, os, pathlib, socket, stat, subprocess, sys
    libc = ctypes.CDLL(None, use_errno=True)
    def fails(do):
        try:
            do()
        except Exception as error:
            return type(error).__name__
        return ""
    def syscall(name, *arguments):
        if getattr(libc, name)(*arguments) == -1:
            raise OSError(ctypes.get_errno(), name)
    def connects(places, seconds):
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(len(places)) as pool:
            found = pool.map(
                lambda place: fails(lambda: socket.create_connection(place, seconds)), places
            )
            return {f"{where} {port}": said for (where, port), said in zip(places, found)}
    """
    whole = textwrap.dedent(begin) + textwrap.dedent(code)
    said = inside(engine, user, f"python -c {shlex.quote(whole)}", root=root)
    try:
        return json.loads(said)
    except ValueError:
        raise AssertionError(said) from None


def address(engine: Any, user: str) -> dict[str, str]:
    """Return where a user's server is on the servers' network."""
    found = engine.inspect_container(container_of(engine, user))
    (network,) = found["NetworkSettings"]["Networks"].values()
    return {
        "ip": network["IPAddress"],
        "gateway": network["Gateway"],
        "mac": network["MacAddress"],
        "name": found["Name"].lstrip("/"),
        "id": found["Id"][:12],
    }


# ---- To others -----------------------------------------------------------------------------------

LISTENS = """
import pathlib, socket, threading
tcp = socket.create_server(("", 9999))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 9999))
heard = pathlib.Path("/tmp/heard")
def hear():
    while True:
        heard.open("ab").write(udp.recv(100))
threading.Thread(target=hear, daemon=True).start()
heard.touch()
while True:
    tcp.accept()[0].sendall(b"hello")
"""


def test_no_server_reaches_another_s_ports_by_address_or_by_name(hub, engine):
    ben = address(engine, "ben")
    job = engine.exec_create(container_of(engine, "ben"), ["python", "-c", LISTENS])
    engine.exec_start(job["Id"], detach=True)
    until(lambda: inside(engine, "ben", "ls /tmp/heard") == "/tmp/heard", "ben listens")
    reach = f"""
    ben = {ben!r}
    octets = [int(each, 16) for each in ben["mac"].split(":")]
    octets = [octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]]
    pairs = [f"{{high:02x}}{{low:02x}}" for high, low in zip(octets[::2], octets[1::2])]
    link_local = "fe80::" + ":".join(pairs) + "%eth0"
    places = [
        (where, port)
        for where in (ben["ip"], ben["name"], ben["id"], link_local)
        for port in (8888, 9999)
    ]
    tcp = connects(places, 3)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(3):
        udp.sendto(sys.argv[1].encode() if sys.argv[1:] else b"from-ada", (ben["ip"], 9999))
    raw = fails(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    print(json.dumps([tcp, raw]))
    """
    from_ada, raw = tries(engine, "ada", reach)
    assert "" not in from_ada.values(), from_ada
    assert raw == "PermissionError"
    # The same from where it may be done: ben's own server, and the machine, where the hub is.
    from_ben, _ = tries(engine, "ben", reach)
    assert from_ben[f"{ben['ip']} 9999"] == ""
    assert from_ben[f"{ben['name']} 8888"] == ""
    with closing(socket.create_connection((ben["ip"], 9999), timeout=10)) as there:
        assert there.recv(5) == b"hello"
    heard = inside(engine, "ben", "cat /tmp/heard")
    assert heard == "from-ada" * 3  # ben's own
    assert requests.get(f"http://{ben['ip']}:8888/", timeout=10).text == "plain"


def test_no_server_has_files_of_another_s(hub, engine):
    assert inside(engine, "ben", "cat ~/secret") == SECRET
    big = " ".join(f"--exclude-dir={name}" for name in ("proc", "sys", "usr", "opt"))
    command = f"grep -rslF {SECRET} / {big}; true"
    assert "/home/jovyan/secret" in inside(engine, "ben", command)
    assert inside(engine, "ada", command) == ""
    mounts = tries(
        engine,
        "ada",
        """
        lines = [line.split() for line in open("/proc/self/mountinfo")]
        print(json.dumps({line[4]: line[3] for line in lines}))
        """,
    )
    ours = {path: source for path, source in mounts.items() if "/volumes/" in source}
    assert {path: source.split("/volumes/")[1] for path, source in ours.items()} == {
        "/home/jovyan": "gpuspawner-jovyan-ada/_data",
        "/home/jovyan/course": "gpuspawner-course/_data",
    }
    assert "Read-only" in inside(engine, "ada", "touch ~/course/mine 2>&1")


@pytest.mark.parametrize(
    "choice",
    [
        {"volumes": {"gpuspawner-jovyan-ben": "/mnt"}},
        {"mounts": ["/"]},
        {"extra_host_config": {"privileged": True}},
        {"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}},
        {"device_requests": [{"count": -1}]},
        {"gpu_ids": [0, 1, 2, 3]},
        {"username": "ben"},
        {"image": "gpuspawner/minimal:py3.11"},
        {"image": "alpine"},
        {"image": "minimal", "gpus": 3},
    ],
    ids=str,
)
def test_nobody_chooses_what_an_administrator_has_not_allowed(hub, choice):
    ada = program(hub, "ada").session
    url = f"{hub.url}/hub/api/users/ada/servers/another"
    refused = ada.post(url, json={"gpus": 0, **choice}, timeout=60)
    assert refused.status_code in (400, 403), refused.text
    assert hub.server("ada", "another").get("ready", False) is False


def test_no_server_sees_or_makes_a_gpu_that_it_was_not_granted(hub, engine):
    code = """
    def make(minor):
        os.mknod(f"/tmp/nvidia{minor}", stat.S_IFCHR | 0o666, os.makedev(195, minor))
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True,
                            env={**os.environ, "NVIDIA_VISIBLE_DEVICES": "all"}).stdout
    print(json.dumps({
        "devices": [each for each in glob.glob("/dev/nvidia[0-9]*")],
        "listed": [line.split("UUID: ")[1].rstrip(")") for line in listed.splitlines()],
        "made": [fails(lambda: make(minor)) for minor in range(4)],
    }))
    """
    of_ada, of_ben = (tries(engine, user, code) for user in ("ada", "ben"))
    for found in (of_ada, of_ben):
        assert len(found["devices"]) == len(found["listed"]) == 1
        assert found["made"] == ["PermissionError"] * 4
    assert of_ada["devices"] != of_ben["devices"]
    assert not {*of_ada["listed"]} & {*of_ben["listed"], *free_gpus()}
    hub.start_server("eve", {"gpus": 0, "image": "minimal"})
    of_eve = tries(engine, "eve", code.replace('["nvidia-smi", "-L"]', '["true"]'))
    assert (of_eve["devices"], of_eve["made"]) == ([], ["PermissionError"] * 4)
    hub.stop_server("eve")


def operations() -> list[tuple[str, str]]:
    """Return each operation of JupyterHub's REST API, with ben's name in its address."""
    found = []
    for pattern, handler in default_handlers:
        path = pattern.removesuffix("$").removesuffix("/?").replace(r"(?:/([^/]+))?", "/ben")
        path = re.sub(r"\(\[\^/\][*+]\)", "ben", path)
        assert not re.search(r"[()\[\]?*+]", path), pattern
        names = {name for each in handler.__mro__ for name in vars(each)}
        found += [
            (method, path)
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
            if method.lower() in names
        ]
    return found


def whole_state(hub: Any) -> Any:
    """Return what a hub has, apart from when who was active."""
    users = hub.api("GET", "/users").json()
    return {
        "users": {u["name"]: (u["admin"], u["groups"], sorted(u["servers"])) for u in users},
        "ready": hub.ready_users(),
        "groups": {each["name"]: each["users"] for each in hub.api("GET", "/groups").json()},
        "ben": hub.server("ben")["started"],
        "gpus": [
            (gpu["state"], gpu["until"], gpu["out_of_service"])
            for gpu in program(hub, "boss").status()["gpus"]
        ],
    }


@cache
def program(hub: Any, user: str) -> Program:
    """Return somebody with a token of their own that may do all that they may."""
    return Program(hub, user)


def tokens(hub: Any, engine: Any) -> dict[str, str]:
    """Return ada's tokens: the one that her server has, and one of her own that may do all."""
    return {
        "server": inside(engine, "ada", "echo $JUPYTERHUB_API_TOKEN"),
        "user": token_of(program(hub, "ada")),
    }


def token_of(person: Program) -> str:
    return str(person.session.headers["Authorization"]).removeprefix("token ")


BODIES = (None, {"usernames": ["mallory"], "users": ["ada"], "admin": True, "gpus": 0})


@pytest.mark.parametrize("whose", ["server", "user"])
def test_no_token_of_a_user_s_reads_or_changes_anything_of_another_s(hub, engine, whose):
    """From inside the server, past the proxy: by each operation that JupyterHub has."""
    token = tokens(hub, engine)[whose]
    before = whole_state(hub)
    asked = [(method, path, body) for method, path in operations() for body in BODIES]
    assert len(asked) > 80
    answers = tries(
        engine,
        "ada",
        f"""
        import urllib.error, urllib.request
        hub = os.environ["JUPYTERHUB_API_URL"].removesuffix("/api")
        found = []
        for method, path, body in json.loads({json.dumps(json.dumps(asked))}):
            request = urllib.request.Request(
                hub + path, method=method, headers={{"Authorization": "token {token}"}},
                data=None if body is None else json.dumps(body).encode(),
            )
            try:
                answer = urllib.request.urlopen(request, timeout=30)
                found.append([answer.status, answer.read().decode()])
            except urllib.error.HTTPError as error:
                found.append([error.code, error.read().decode()])
        print(json.dumps(found))
        """,
    )
    for (method, path, _), (status, text) in zip(asked, answers, strict=True):
        # JupyterHub's handler of the one address has no parameter for the other's part.
        known = path.startswith("/api/authorizations/token")
        assert status < 500 or known, (method, path, text)
        if status < 400:
            assert method == "GET", (method, path, text)
            assert "ben" not in text, (method, path, text)
    assert whole_state(hub) == before


@pytest.mark.parametrize("whose", ["server", "user"])
def test_nor_on_the_dashboard(hub, engine, whose):
    ada = Program(hub, "ada")
    ada.session.headers["Authorization"] = f"token {tokens(hub, engine)[whose]}"
    before = whole_state(hub)
    (gpu, *_) = free_gpus()
    for method, path, body in (
        ("DELETE", "/users/ben/server", None),
        ("POST", "/users/ben/server/extend", {"hours": 1}),
        ("POST", "/users/ben/server/here", None),
        ("PUT", f"/gpus/{gpu}/out-of-service", {"why": "mine"}),
        ("DELETE", f"/gpus/{gpu}/out-of-service", None),
        ("DELETE", f"/orphans/{container_of(engine, 'ben')}", None),
    ):
        assert ada.ask(method, path, body).status_code in (403, 404), (method, path)
    status = ada.status()
    assert "ben" not in json.dumps(status)
    assert not status["you"]["administrator"]
    assert whole_state(hub) == before


def opens(hub: Any, user: str, whose: str) -> int:
    """Return the hub's answer when a user's browser is sent to ask whether it may open a server."""
    browser = hub.log_in(user, dashboards.ADMIN_PASSWORD) if user == "boss" else hub.log_in(user)
    question = {
        "client_id": f"jupyterhub-user-{whose}",
        "redirect_uri": f"/user/{whose}/oauth_callback",
        "response_type": "code",
        "state": "x",
    }
    return browser.get(f"{hub.url}/hub/api/oauth2/authorize", params=question).status_code


def test_nobody_opens_another_s_server_through_the_hub(hub, engine):
    """A JupyterLab asks the hub who comes."""
    hub.add_to_group("labs", "lea")
    hub.start_server("lea", {"gpus": 0, "image": "minimal"})
    lab = f"{hub.url}/user/lea/api/contents"

    def status(token: str) -> int:
        return requests.get(
            lab, headers={"Authorization": f"token {token}"}, timeout=60
        ).status_code

    for token in tokens(hub, engine).values():
        assert status(token) == 403
    assert requests.get(lab, timeout=60).status_code == 403
    assert status(token_of(program(hub, "lea"))) == 200
    hub.stop_server("lea")
    assert opens(hub, "ben", "ada") == 403
    # Who is to stop servers needs no right to open them; an administrator has it.
    assert opens(hub, "olga", "ada") == 403
    assert opens(hub, "boss", "ada") == 200
    assert opens(hub, "ada", "ada") == 200


# ---- To the machine ------------------------------------------------------------------------------


def test_nobody_becomes_root_or_gains_a_right(hub, engine):
    # As an image may have it: a program that belongs to root and runs as root.
    inside(engine, "ada", "cp /usr/bin/id /usr/bin/rootid && chmod 4755 /usr/bin/rootid", root=True)
    found = tries(
        engine,
        "ada",
        """
        status = dict(
            line.split(":", 1) for line in open("/proc/self/status").read().splitlines()
        )
        flags = {"CLONE_NEWUSER": 0x10000000, "CLONE_NEWNS": 0x20000}
        print(json.dumps({
            "rights": [status[f"Cap{each}"].strip() for each in "Inh Prm Eff Bnd Amb".split()],
            "no new": status["NoNewPrivs"].strip(),
            "seccomp": status["Seccomp"].strip(),
            "is set": stat.filemode(os.stat("/usr/bin/rootid").st_mode),
            "who": subprocess.run(["rootid", "-u"], capture_output=True, text=True).stdout.strip(),
            "tried": {
                "setuid": fails(lambda: os.setuid(0)),
                "setgid": fails(lambda: os.setgid(0)),
                "chown": fails(lambda: os.chown("/tmp", 0, 0)),
                "chroot": fails(lambda: os.chroot("/tmp")),
                "mount": fails(lambda: syscall("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
                "hostname": fails(lambda: syscall("sethostname", b"x", 1)),
                "passwd": fails(lambda: open("/etc/passwd", "a")),
                **{name: fails(lambda: syscall("unshare", flag)) for name, flag in flags.items()},
            },
        }))
        """,
    )
    assert found["rights"] == ["0" * 16] * 5
    assert (found["no new"], found["seccomp"]) == ("1", "2")
    assert (found["is set"], found["who"]) == ("-rwsr-xr-x", "1000")
    assert set(found["tried"].values()) == {"PermissionError"}, found["tried"]


def test_no_process_device_or_file_of_the_machine_s_is_there(hub, engine):
    """And none of a neighbour's: each server's processes are its own."""
    found = tries(
        engine,
        "ada",
        """
        attach = 16
        def trace(pid):
            syscall("ptrace", attach, pid, None, None)
        writable = ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern",
                    "/proc/sys/kernel/hostname", "/sys/kernel/uevent_helper",
                    "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/devices/devices.allow"]
        readable = ["/proc/kcore", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/etc/shadow"]
        devices = [each for each in glob.glob("/dev/*") if stat.S_ISBLK(os.stat(each).st_mode)]
        print(json.dumps({
            "commands": [
                pathlib.Path(each).read_bytes().replace(b"\\0", b" ").decode()
                for each in glob.glob("/proc/[0-9]*/cmdline") if os.path.exists(each)
            ],
            "blocks": devices,
            "made": fails(lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))),
            "written": [each for each in writable if not fails(lambda: open(each, "w").write("1"))],
            "read": [each for each in readable if not fails(lambda: open(each, "rb").read(1))],
            "traced": [pid for pid in range(1, 400)
                       if pid != os.getpid() and os.path.exists(f"/proc/{pid}")
                       and not os.path.exists(f"/proc/{pid}/cmdline")],
            "tracing the outside": fails(lambda: trace(os.getpid() + 1000)),
        }))
        """,
    )
    said = " ".join(found["commands"])
    assert "a plain server listens" in said
    assert 1 <= len(found["commands"]) < 10, found["commands"]
    for word in ("dockerd", "jupyterhub", "configurable-http-proxy", "pytest"):
        assert word not in said
    assert (found["blocks"], found["made"]) == ([], "PermissionError")
    assert (found["written"], found["read"], found["traced"]) == ([], [], [])
    assert found["tracing the outside"] == "ProcessLookupError"


def test_the_docker_socket_and_what_is_the_hub_s_is_nowhere_in_a_server(hub, engine):
    gateway = address(engine, "ada")["gateway"]
    (hub_ip,) = re.findall(r"//([^:/]+)", inside(engine, "ada", "echo $JUPYTERHUB_API_URL"))
    ports = {
        "docker": 2375,
        "docker with TLS": 2376,
        "the proxy's API": hub.api_port,
        "the proxy": hub.port,
        "the hub": hub.hub_port,
    }
    places = [(where, port) for where in (gateway, hub_ip) for port in ports.values()]
    found = tries(
        engine,
        "ada",
        f"""
        sockets = []
        for folder, inner, files in os.walk("/", onerror=lambda error: None):
            if folder == "/":
                inner[:] = [each for each in inner if each not in ("proc", "sys", "usr", "opt")]
            for each in files:
                path = os.path.join(folder, each)
                if not fails(lambda: os.lstat(path)) and stat.S_ISSOCK(os.lstat(path).st_mode):
                    sockets.append(path)
        names = ("docker.sock", "containerd.sock", "gpuspawner.sock", "jupyterhub.sqlite",
                 "jupyterhub_cookie_secret", "user-password", "admin-password")
        print(json.dumps({{
            "sockets": sockets,
            "abstract": [line.split()[-1] for line in open("/proc/net/unix") if " @" in line],
            "files": [each for each in names for path in ("/run", "/var/run", "/", "/srv", "/tmp")
                      if os.path.exists(os.path.join(path, each))],
            "ports": connects({places!r}, 3),
            "secrets": [name for name in os.environ
                        if name.startswith(("DOCKER_", "CONFIGPROXY_", "SSL_"))],
        }}))
        """,
    )
    assert (found["sockets"], found["abstract"], found["files"]) == ([], [], [])
    assert found["secrets"] == []
    # The hub itself answers, to who has a token.
    reached = {each for each, error in found["ports"].items() if not error}
    assert reached == {f"{hub_ip} {hub.hub_port}"}
    there = (hub.folder / "gpuspawner.sock", hub.folder / "jupyterhub.sqlite")
    assert [path.exists() for path in there] == [True, True]
    assert there[0].stat().st_mode & 0o077 == 0


FORKS = """
children, why = [], ""
while len(children) < 500 and not why:
    try:
        pid = os.fork()
    except OSError as error:
        why = type(error).__name__
        break
    if pid == 0:
        import time
        time.sleep(600)
        os._exit(0)
    children.append(pid)
for each in children:
    os.kill(each, 9)
print(json.dumps([len(children), why]))
"""
FILLS = "x = bytearray(1 << 30); print(len(x))"
SHARES = "f = open('/dev/shm/x', 'wb'); [f.write(bytes(1 << 20)) for _ in range(1024)]"


def test_nobody_takes_more_processes_or_memory_than_their_limit(hub, engine):
    hub.add_to_group("small", "fay")
    hub.start_server("fay", {"gpus": 0, "image": "minimal"})
    forked, why = tries(engine, "fay", FORKS)
    assert why == "BlockingIOError"
    assert 30 < forked < 64
    assert hub.ready("fay")
    # More than the limit ends the program that wants it, whichever way it wants it.
    for code in (FILLS, SHARES):
        said = inside(engine, "fay", f"python -c {shlex.quote(code)}; echo ended with $?")
        assert re.search(r"ended with (137|1)\b", said), said
        assert "1073741824" not in said
    for user in ("ada", "ben"):
        assert inside(engine, user, "echo fine") == "fine"
        assert hub.ready(user)
    hub.stop_server("fay")


def test_what_is_written_outside_the_home_is_gone_and_little_can_be(hub, engine):
    hub.start_server("hal", {"gpus": 0, "image": "minimal"})
    found = tries(
        engine,
        "hal",
        """
        folders = []
        for folder, inner, _ in os.walk("/", onerror=lambda error: None):
            inner[:] = [each for each in inner
                        if os.path.join(folder, each) not in ("/proc", "/sys", "/dev/fd")]
            if os.access(folder, os.W_OK):
                folders.append(folder)
                inner.clear()
        print(json.dumps(sorted(folders)))
        """,
    )
    # The image's own packages are its user's, for `pip install` in a running server.
    mine = ("/home/jovyan", "/opt/jupyter")
    outside = [each for each in found if not each.startswith(mine)]
    assert {*outside} <= {"/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock"}, outside
    for folder in [*outside, *mine]:
        inside(engine, "hal", f"echo kept > {folder}/left-by-hal")
    hub.stop_server("hal")
    hub.start_server("hal", {"gpus": 0, "image": "minimal"})
    left = inside(engine, "hal", "find / -name left-by-hal 2> /dev/null; true").split()
    assert left == ["/home/jovyan/left-by-hal"]
    hub.stop_server("hal")


# ---- What a user can -----------------------------------------------------------------------------


def test_processors_and_disk_are_everybody_s(hub, engine):
    container = engine.inspect_container(container_of(engine, "ada"))
    limits = container["HostConfig"]
    assert [limits[each] for each in ("NanoCpus", "CpuQuota", "CpusetCpus")] == [0, 0, ""]
    assert not limits.get("StorageOpt")
    sizes = tries(
        engine,
        "ada",
        """
        size = lambda path: os.statvfs(path).f_blocks * os.statvfs(path).f_frsize
        print(json.dumps([size("/"), size("/home/jovyan")]))
        """,
    )
    engines = Path(engine.info()["DockerRootDir"])
    found = tries(engine, "ben", 'print(json.dumps(os.statvfs("/").f_blocks))')
    assert sizes[0] == sizes[1] > 0
    assert engines
    assert found > 0


def test_a_server_has_the_machine_s_kernel_and_driver(hub, engine, host):
    for user in ("ada", "ben"):
        found = tries(engine, user, "print(json.dumps(list(os.uname())[2:]))")
        assert found == [*os.uname()][2:]
    drivers = {
        inside(engine, user, "nvidia-smi --query-gpu=driver_version --format=csv,noheader")
        for user in ("ada", "ben")
    }
    assert drivers == {host.read().driver}


def test_a_server_sees_that_there_are_others_and_the_machine_s_open_ports(hub, engine):
    ada, ben = address(engine, "ada"), address(engine, "ben")
    with closing(socket.create_server(("", 0))) as listening:
        port = listening.getsockname()[1]

        def answer() -> None:
            with closing(listening.accept()[0]) as there:
                there.sendall(b"the machine")

        threading.Thread(target=answer, daemon=True).start()
        found = tries(
            engine,
            "ada",
            f"""
            hub = os.environ["JUPYTERHUB_API_URL"].split("/")[2].split(":")[0]
            with socket.create_connection((hub, {port}), timeout=10) as there:
                said = there.recv(20).decode()
            print(json.dumps([said, socket.gethostbyaddr({ben["ip"]!r})[0]]))
            """,
        )
    assert found[0] == "the machine"
    assert ben["name"] in found[1]
    assert ada["name"] != ben["name"]


# ---- What is written -----------------------------------------------------------------------------

ONE_ADDRESS = "browser/test_one_address.py"
SUBDOMAINS = "browser/test_subdomains.py"
DELETED = "engine/test_volumes_of_deleted.py"
# What each line says -> the tests that try to break it: of this module, or of another one. First
# README's, and below what the Chinese one says.
SENTENCES = {
    "reach another user's server but through the hub and its log-in": [
        "test_no_server_reaches_another_s_ports_by_address_or_by_name",
        "test_nobody_opens_another_s_server_through_the_hub",
    ],
    "read or write another user's files": ["test_no_server_has_files_of_another_s"],
    "see or use a GPU that their server wasn't granted": [
        "test_no_server_sees_or_makes_a_gpu_that_it_was_not_granted"
    ],
    "read or change anything of another user's, on the hub or on the dashboard, with a token of "
    "their own or of their server": [
        "test_no_token_of_a_user_s_reads_or_changes_anything_of_another_s",
        "test_nor_on_the_dashboard",
    ],
    "become root in a server, or gain a right that it didn't start with": [
        "test_nobody_becomes_root_or_gains_a_right"
    ],
    "see processes, devices or files of the machine's or of another server's": [
        "test_no_process_device_or_file_of_the_machine_s_is_there",
        "test_no_server_has_files_of_another_s",
    ],
    "reach the Docker socket, the hub's database and secrets, its control socket or the proxy's "
    "API": ["test_the_docker_socket_and_what_is_the_hub_s_is_nowhere_in_a_server"],
    "take more memory or more processes than their limit": [
        "test_nobody_takes_more_processes_or_memory_than_their_limit"
    ],
    "leave anything behind outside their home when the server ends": [
        "test_what_is_written_outside_the_home_is_gone_and_little_can_be"
    ],
    "start an image, or get a mount or a right, that an administrator hasn't allowed": [
        "test_nobody_chooses_what_an_administrator_has_not_allowed"
    ],
    "use all of the processors and fill the disk, which you can limit": [
        "test_processors_and_disk_are_everybody_s"
    ],
    "see that other servers run, and how many, but not whose": [
        "test_a_server_sees_that_there_are_others_and_the_machine_s_open_ports",
        "engine/test_config.py::test_no_server_is_told_who_else_runs_one",
    ],
    "reach what the machine and your network offer to everybody": [
        "test_a_server_sees_that_there_are_others_and_the_machine_s_open_ports"
    ],
    "do on the hub whatever the reader of a page of their server may (of an administrator: "
    "everything), without subdomain_host: don't open servers of people whom you don't trust, or "
    "use a role without that right": [
        f"{ONE_ADDRESS}::test_a_page_of_a_server_acts_as_the_administrator_who_opens_it",
        "test_nobody_opens_another_s_server_through_the_hub",
    ],
    "With JupyterHub's subdomain_host each server has an address of its own, and its pages can't "
    "do that.": [
        f"{SUBDOMAINS}::test_a_page_of_a_server_can_t_act_as_the_administrator_who_opens_it"
    ],
    "Who can reach the Docker socket is root on the machine, images are trusted code, and the "
    "kernel and the GPUs' driver are shared by all.": [
        "test_a_server_has_the_machine_s_kernel_and_driver",
        "test_nobody_chooses_what_an_administrator_has_not_allowed",
        "test_the_docker_socket_and_what_is_the_hub_s_is_nowhere_in_a_server",
    ],
}
CHINESE = [
    "绕过 Hub 及其登录，连到别人的服务器",
    "读取或改动别人的文件",
    "看到或使用没有分给自己服务器的 GPU",
    "用自己的或自己服务器的令牌，在 Hub 或 GPU 面板上读取或改动别人的任何东西",
    "在服务器里成为 root，或得到它启动时没有的权限",
    "看到这台机器或别的服务器的进程、设备和文件",
    "碰到 Docker 套接字、Hub 的数据库和密钥、Hub 的控制套接字，或代理的 API",
    "占用超过上限的内存或进程",
    "在服务器结束后，还在主目录以外留下任何东西",
    "启动管理员没有允许的镜像，或得到没有允许的挂载和权限",
    "用满所有处理器，写满磁盘；磁盘您可以限制",
    "看到有别的服务器在运行、有多少台，但看不到是谁的",
    "连到这台机器和您的网络对所有人开放的东西",
    "在没有 subdomain_host 时，让自己服务器的网页在 Hub 上做打开它的人能做的事（打开它的若是"
    "管理员，就是一切）：不信任的人，不要打开他们的服务器，或者用没有这项权限的角色",
    "用 JupyterHub 的 subdomain_host 给每台服务器一个自己的地址，它的网页就做不到这一点。",
    "能访问 Docker 套接字的人就是这台机器的 root，镜像是受信任的代码，"
    "内核和 GPU 驱动由所有人共用。",
]
# How each paragraph of the handbook's begins.
HANDBOOK = {
    "The Docker socket belongs to the hub alone": [
        "test_the_docker_socket_and_what_is_the_hub_s_is_nowhere_in_a_server"
    ],
    "An image version is trusted code": [
        "test_nobody_chooses_what_an_administrator_has_not_allowed"
    ],
    "Who opens somebody else's server acts there as its owner likes.": [
        f"{ONE_ADDRESS}::test_a_page_of_a_server_acts_as_the_administrator_who_opens_it",
        f"{SUBDOMAINS}::test_a_page_of_a_server_can_t_act_as_the_administrator_who_opens_it",
        "test_nobody_opens_another_s_server_through_the_hub",
    ],
    "A server knows the network that it is on": [
        "test_a_server_sees_that_there_are_others_and_the_machine_s_open_ports",
        "engine/test_config.py::test_no_server_is_told_who_else_runs_one",
    ],
    "How much one request or one connection may take of the hub": [
        "engine/test_config.py::test_what_anybody_sends_the_hub_has_a_size"
    ],
    "How much a user writes to their volume is limited only where": [
        "test_processors_and_disk_are_everybody_s",
        "engine/test_home_sizes.py::test_doctor_tells_whether_it_is_enforced",
    ],
    "A new user finds no files of a deleted one of that name": [
        f"{DELETED}::test_a_new_user_of_that_name_finds_no_file_and_the_old_ones_are_there",
        f"{DELETED}::test_where_volumes_are_kept_a_new_user_of_that_name_has_them",
    ],
}


def plain(text: str) -> str:
    """Return words without Markdown's marks, on one line."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    text = re.sub(r"([。，；：、）]) *\n *|\n *(?=[^\x00-\x7f])", r"\1", text)
    return " ".join(re.sub(r"[*`]", "", text).split())


def section(page: str, heading: str) -> tuple[list[str], list[str]]:
    """Return the items of a section's lists, and its other paragraphs, without Markdown's marks."""
    text = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = [block for part in text.split("\n\n") for block in re.split(r"\n(?=- )", part)]
    blocks = [block.strip() for block in blocks if block.strip()]
    items = [plain(block[2:]).rstrip(";.；。") for block in blocks if block.startswith("- ")]
    return items, [plain(block) for block in blocks if not block.startswith("- ")]


def test_each_line_of_readme_s_has_a_test_in_both_languages() -> None:
    items, paragraphs = section("README.md", "Whom you have to trust")
    chinese, others = section("README.zh-CN.md", "您必须信任谁")
    at = len(items)
    assert items == [*SENTENCES][:at]
    assert chinese == CHINESE[:at]
    assert paragraphs[-1] == " ".join([*SENTENCES][at:])
    assert others[-1] == "".join(CHINESE[at:])
    assert len(CHINESE) == len(SENTENCES)


def test_each_paragraph_of_the_handbook_s_has_a_test() -> None:
    items, paragraphs = section("docs/explanation/limits.md", "Security")
    assert len(paragraphs) == 1
    assert [next((b for b in HANDBOOK if each.startswith(b)), each) for each in items] == [
        *HANDBOOK
    ]


def test_these_tests_are_there() -> None:
    named = {name for names in (*SENTENCES.values(), *HANDBOOK.values()) for name in names}
    for each in named:
        path, _, name = each.rpartition("::")
        source = ROOT / "tests" / path if path else Path(__file__)
        assert f"def {name}(" in source.read_text(), each
