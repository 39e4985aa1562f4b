"""A machine and a hub get to know each other: invitations, over real TLS and by the command."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gpuspawner.nodes import services
from gpuspawner.nodes.addresses import (
    AddressError,
    NodeAddress,
    add_address,
    read_addresses,
    remove_address,
)
from gpuspawner.nodes.client import NodesReader
from gpuspawner.nodes.daemon import read_hubs
from gpuspawner.nodes.identity import Identity, load_or_make
from gpuspawner.nodes.invitations import (
    MAX_WRONG,
    Host,
    InvitationError,
    SwarmInvitation,
    accept,
    make_token,
    read_token,
)
from gpuspawner.nodes.joining import JoinError, check_version
from gpuspawner.nodes.node_side import add_hub
from gpuspawner.simulation.state import describe

from ..support.nodes import NodeDaemon
from ..support.nvml import environment
from ..support.paths import ROOT
from ..support.requirements import cannot

SWARM = SwarmInvitation("SWMTKN-1-x", ("10.0.0.1:2377",))
STATE = describe([("A100-40GB", 1)])


@pytest.fixture
def hub(tmp_path) -> Identity:
    return load_or_make(tmp_path / "hub", "hub")


@pytest.fixture
def node(tmp_path) -> Identity:
    return load_or_make(tmp_path / "atlas", "atlas")


@asynccontextmanager
async def waiting(hub: Identity) -> AsyncIterator[tuple[Host, tuple[str, int], list[NodeAddress]]]:
    """An invitation that waits: where, and who was admitted."""
    admitted: list[NodeAddress] = []
    host = Host(hub, SWARM, admitted.append)
    port = host.start("127.0.0.1", 0)
    try:
        yield host, ("127.0.0.1", port), admitted
    finally:
        await host.stop()


async def test_both_know_each_other_afterwards(hub, node):
    async with waiting(hub) as (host, where, admitted):
        welcome = await accept(node, where, host.token, "atlas", "", 8413)
        address = await host.taken_up()
    assert welcome.certificate == hub.certificate
    assert welcome.swarm == SWARM
    assert address == NodeAddress("atlas", "127.0.0.1", 8413, node.fingerprint)
    assert admitted == [address]


async def test_an_invitation_holds_once(hub, node):
    async with waiting(hub) as (host, where, admitted):
        await accept(node, where, host.token, "atlas", "", 8413)
        with pytest.raises(InvitationError, match="was taken up"):
            await accept(node, where, host.token, "borea", "", 8413)
    assert len(admitted) == 1


async def test_of_many_who_come_at_once_one_is_let_in(hub, node):
    async with waiting(hub) as (host, where, admitted):
        tries = [accept(node, where, host.token, f"node{n}", "", 8413) for n in range(8)]
        found = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(each, InvitationError) for each in found) == len(admitted) == 1


async def test_who_guesses_ends_it(hub, node):
    async with waiting(hub) as (host, where, admitted):
        wrong = make_token(hub.fingerprint, b"x" * 18)
        for _ in range(MAX_WRONG):
            with pytest.raises(InvitationError, match="isn't the token"):
                await accept(node, where, wrong, "atlas", "", 8413)
        with pytest.raises(InvitationError, match="has ended"):
            await host.taken_up()
        with pytest.raises(InvitationError, match="has ended"):
            await accept(node, where, host.token, "atlas", "", 8413)
    assert admitted == []


async def test_the_secret_is_told_nobody_but_the_hub(hub, node, tmp_path):
    other = load_or_make(tmp_path / "other", "hub")
    async with waiting(hub) as (host, _, _admitted), waiting(other) as (impostor, where, none):
        with pytest.raises(InvitationError, match="its certificate is"):
            await accept(node, where, host.token, "atlas", "", 8413)
        assert impostor._wrong == 0
    assert none == []


@pytest.mark.parametrize(
    ("name", "address", "port"),
    [("", "", 8413), ("../x", "", 8413), ("a b", "", 8413), ("atlas", "", 0), ("atlas", "", 99999)],
)
async def test_a_machine_that_cannot_be_found_is_refused_and_may_try_again(
    hub, node, name, address, port
):
    async with waiting(hub) as (host, where, admitted):
        with pytest.raises(InvitationError, match="doesn't let this machine join"):
            await accept(node, where, host.token, name, address, port)
        assert admitted == []
        await accept(node, where, host.token, "atlas", address, 8413)


async def test_a_hub_that_cannot_keep_it_lets_nobody_in(hub, node):
    def full(_: NodeAddress) -> None:
        raise OSError(28, "No space left on device")

    host = Host(hub, None, full)
    port = host.start("127.0.0.1", 0)
    with pytest.raises(InvitationError, match="No space left"):
        await accept(node, ("127.0.0.1", port), host.token, "atlas", "", 8413)
    assert not host._taken.done()
    await host.stop()


async def test_where_nobody_waits_is_a_sentence(hub, node):
    async with waiting(hub) as (host, where, _):
        token = host.token
    with pytest.raises(InvitationError, match="doesn't let this machine join: 127"):
        await accept(node, where, token, "atlas", "", 8413)


@pytest.mark.parametrize("token", ["", "x", "ä", "A" * 66, "A" * 68, "=" * 67])
def test_half_a_token_is_none(token):
    with pytest.raises(InvitationError, match="copy the whole line"):
        read_token(token)


def test_a_token_says_hub_and_secret(hub):
    secret = bytes(range(18))
    assert read_token(make_token(hub.fingerprint, secret)) == (hub.fingerprint, secret)
    assert "SWMTKN" not in repr(SWARM)


# -- The hub's list --------------------------------------------------------------------------------


def test_the_list_keeps_one_of_each_name(tmp_path):
    one = NodeAddress("atlas", "10.0.0.1", 8413, "a" * 64)
    two = NodeAddress("borea", "borea.example.org", 8413, "b" * 64)
    anew = NodeAddress("atlas", "10.0.0.9", 8413, "c" * 64)
    for each in (two, one, anew):
        add_address(tmp_path / "hub", each)
    assert read_addresses(tmp_path / "hub") == (anew, two)
    assert remove_address(tmp_path / "hub", "atlas")
    assert not remove_address(tmp_path / "hub", "atlas")
    assert read_addresses(tmp_path / "hub") == (two,)
    assert read_addresses(tmp_path / "none") == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"nodes": [{}]}',
        '{"nodes": [{"name": "a", "host": "b", "port": true, "fingerprint": "%s"}]}' % ("a" * 64),
        '{"nodes": [{"name": "a", "host": "b c", "port": 1, "fingerprint": "%s"}]}' % ("a" * 64),
        '{"nodes": [{"name": "a", "host": "b", "port": 1, "fingerprint": "A"}]}',
    ],
)
def test_a_broken_list_is_a_sentence(tmp_path, text):
    (tmp_path / "nodes.json").write_text(text)
    with pytest.raises(AddressError, match=r"nodes\.json"):
        read_addresses(tmp_path)


def test_a_machine_may_be_asked_by_two_hubs(tmp_path, hub, node):
    for certificate in (hub.certificate, node.certificate, hub.certificate):
        add_hub(tmp_path, certificate)
    assert read_hubs(tmp_path / "hubs.pem") == [hub.certificate, node.certificate]


@pytest.mark.parametrize("version", ["", "20.10.24+dfsg1", "25.0.2", "x"])
def test_an_engine_that_ends_servers_at_every_change_is_refused(version):
    with pytest.raises(JoinError, match=r"25\.0\.3"):
        check_version(version)


# -- By the command --------------------------------------------------------------------------------


async def test_invited_and_joined_by_the_command(binaries, tmp_path):
    if os.geteuid() != 0:
        cannot("needs root")
    hub_folder, folder = tmp_path / "hub", tmp_path / "node"
    state = tmp_path / "state"
    STATE.write(state)
    seen = environment(binaries.directory, state, PYTHONPATH=str(ROOT), DOCKER_HOST="unix:///none")
    base = [sys.executable, "-m", "gpuspawner", "node"]
    invite = [*base, "invite", "--no-swarm", "--host", "127.0.0.1", "--port", "0"]
    inviting = subprocess.Popen(
        [*invite, "--hub-folder", str(hub_folder)], stdout=subprocess.PIPE, text=True, env=seen
    )
    try:
        assert inviting.stdout
        line = next(line for line in inviting.stdout if "node join" in line)
        words = line.split()[line.split().index("join") :]
        join = [*base, *words, "--yes", "--no-service", "--folder", str(folder), "--name", "atlas"]
        joined = subprocess.run(join, capture_output=True, text=True, env=seen, check=False)
        assert joined.returncode == 0, joined.stderr
        assert "The hub knows this machine." in joined.stdout
        assert "Invited: atlas at 127.0.0.1 port 8413" in inviting.stdout.read()
        assert inviting.wait() == 0
    finally:
        inviting.kill()
        inviting.wait()
    (known,) = read_addresses(hub_folder)
    hub = load_or_make(hub_folder, "hub")
    # The daemon, with what joining has written.
    with NodeDaemon(folder, binaries.directory, [hub], STATE) as daemon:
        assert known.fingerprint == daemon.identity.fingerprint
        (found,) = await NodesReader([daemon.address], hub, 20)()
        assert [gpu.state for gpu in found.gpus] == ["free"]
        add_address(hub_folder, daemon.address)
        status = [*base, "status", "--hub-folder", str(hub_folder)]
        said = subprocess.run(status, capture_output=True, text=True, env=seen, check=False)
        assert (said.returncode, said.stderr) == (0, "")
        assert "1 GPUs or parts of one (NVIDIA A100-SXM4-40GB): 1 not in use" in said.stdout
    said = subprocess.run(status, capture_output=True, text=True, env=seen, check=False)
    assert said.returncode == 1
    assert "! unknown, so nothing is handed out there" in said.stdout
    assert "PRIVATE" not in said.stdout + joined.stdout


def test_half_a_line_is_refused_before_anything_is_done(tmp_path):
    if os.geteuid() != 0:
        cannot("needs root")
    words = ["-m", "gpuspawner", "node", "join", "hub:8414", "AAAA", "--yes"]
    done = subprocess.run(
        [sys.executable, *words, "--folder", str(tmp_path / "new")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert "copy the whole line" in done.stderr
    assert not (tmp_path / "new").exists()


# -- The units -------------------------------------------------------------------------------------


def unit(name: str) -> dict[str, list[str]]:
    """Setting -> its values in a unit that is installed."""
    found: dict[str, list[str]] = {}
    for line in services.rendered(name, 8413).splitlines():
        key, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z]+", key):
            found.setdefault(key, []).append(value)
    return found


def test_what_listens_on_the_network_has_no_rights_and_what_has_them_does_not_listen():
    daemon, part = unit(services.DAEMON), unit(services.PART)
    assert daemon["ExecStart"] == [f"{sys.executable} -m gpuspawner node serve --port 8413"]
    assert daemon["DynamicUser"] == ["yes"]
    assert daemon["CapabilityBoundingSet"] == [""]
    # In Docker's group it would be root.
    assert daemon["SupplementaryGroups"] == ["gpuspawner-node"]
    assert part["PrivateNetwork"] == ["yes"]
    assert "AF_INET" not in part["RestrictAddressFamilies"][0]
    for each in (daemon, part):
        assert each["NoNewPrivileges"] == ["yes"]
        assert each["ProtectSystem"] == ["strict"]


def test_systemd_takes_the_units(tmp_path):
    """Each setting is one that systemd knows, and the daemon is well guarded."""
    for name in services.UNITS:
        text = services.rendered(name, 8413)
        text = re.sub("^ExecStart=.*", "ExecStart=/bin/true", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in services.UNITS]
    try:
        said = subprocess.run(
            ["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        cannot("needs systemd-analyze")
    ours = [line for line in said.stderr.splitlines() if "gpuspawner-node" in line]
    assert (said.returncode, ours) == (0, [])
