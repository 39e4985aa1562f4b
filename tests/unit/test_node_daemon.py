"""A node's daemon and the hub's reader, over real TLS with real certificates."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from gpuspawner.doctor.findings import Context
from gpuspawner.doctor.machines import machines
from gpuspawner.gpus.model import GPU, Node
from gpuspawner.i18n.languages import LOG
from gpuspawner.nodes import identity
from gpuspawner.nodes.addresses import FOLDER, NodeAddress, add_address, remove_address
from gpuspawner.nodes.client import NodesReader
from gpuspawner.nodes.identity import Identity, IdentityError, load, load_or_make, server_context
from gpuspawner.nodes.reports import PROTOCOL, NodeReport, written
from gpuspawner.simulation.state import describe

from ..support.nodes import NodeDaemon

TWO = describe([("A100-40GB", 2)])
# Longer than an answer takes on a machine that is busy.
SECONDS = 20.0
# For what never answers.
SOON = 0.5
UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Identity:
    return load_or_make(tmp_path_factory.mktemp("hub"), "hub")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Identity:
    return load_or_make(tmp_path_factory.mktemp("stranger"), "hub")


@pytest.fixture(scope="module")
def running(binaries, hub, tmp_path_factory) -> Iterator[NodeDaemon]:
    folder = tmp_path_factory.mktemp("atlas")
    with NodeDaemon(folder, binaries.directory, [hub], TWO) as daemon:
        yield daemon


@pytest.fixture
def daemon(running) -> Iterator[NodeDaemon]:
    """The running daemon, whose NVML says again what it said at first."""
    TWO.write(running.state_path)
    return running


def states(node: Node) -> list[str]:
    return [gpu.state for gpu in node.gpus]


# -- What it says ----------------------------------------------------------------------------------


async def test_a_hub_reads_a_nodes_gpus(daemon, hub):
    reader = NodesReader([daemon.address], hub, SECONDS)
    (node,) = await reader()
    assert (node.name, node.driver, states(node)) == ("atlas", TWO.driver, ["free", "free"])
    assert [gpu.uuid for gpu in node.gpus] == [gpu.uuid for gpu in TWO.gpus]
    assert {gpu.node for gpu in node.gpus} == {"atlas"}
    assert reader.problems == {}
    report = reader.reports["atlas"]
    assert report.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert abs(reader.clock_offset("atlas")) < SECONDS


async def test_the_rules_by_which_gpus_are_read_are_the_hubs(daemon, hub):
    first, second = (gpu.uuid for gpu in TWO.gpus)
    TWO.with_gpu(1, memory_used_mib=3000).write(daemon.state_path)
    usual = NodesReader([daemon.address], hub, SECONDS)
    other = NodesReader(
        [daemon.address],
        hub,
        SECONDS,
        excluded=[first],
        memory_threshold_mib=4000,
        shared={second: 2},
    )
    assert states((await usual())[0]) == ["free", "foreign"]
    assert states((await other())[0]) == ["excluded", "free", "free"]
    assert [gpu.id for gpu in (await other())[0].gpus[1:]] == [f"{second}#0/2", f"{second}#1/2"]


async def test_what_is_true_now_is_said_and_not_what_was(daemon, hub):
    reader = NodesReader([daemon.address], hub, SECONDS)
    assert states((await reader())[0]) == ["free", "free"]
    TWO.with_gpu(0, processes=((4001, 3000),)).write(daemon.state_path)
    assert states((await reader())[0]) == ["foreign", "free"]
    assert (await reader())[0].gpus[0].reason == "A process computes on it."


async def test_gpus_that_cannot_be_read_are_unknown_with_the_nodes_own_sentence(daemon, hub):
    reader = NodesReader([daemon.address], hub, SECONDS)
    await reader()
    replace(TWO, fault="library_mismatch").write(daemon.state_path)
    (node,) = await reader()
    assert states(node) == ["unknown", "unknown"]
    assert "can't be read" in reader.problems["atlas"]
    TWO.write(daemon.state_path)
    assert states((await reader())[0]) == ["free", "free"]
    assert reader.problems == {}


async def test_without_the_part_that_asks_the_engine_gpus_are_read_all_the_same(daemon, hub):
    reader = NodesReader([daemon.address], hub, SECONDS)
    with pytest.raises(Exception, match="doesn't answer") as failed:
        await reader.images("atlas", ["lab:1"])
    assert "asks Docker doesn't run" in failed.value.technical
    assert states((await reader())[0]) == ["free", "free"]


# -- Who may ask, and who may answer ---------------------------------------------------------------


async def test_a_daemon_of_another_certificate_is_told_nothing(daemon, hub, stranger):
    wrong = replace(daemon.address, fingerprint=stranger.fingerprint)
    reader = NodesReader([wrong], hub, SECONDS)
    assert await reader() == (Node("atlas"),)
    assert daemon.identity.fingerprint in reader.problems["atlas"]


async def test_nothing_is_sent_before_the_certificate_is_the_right_one(hub, stranger):
    came: list[bytes] = []

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read())
        writer.close()

    tls = server_context(stranger, [hub.certificate])
    server = await asyncio.start_server(impostor, "127.0.0.1", 0, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        node = NodesReader([NodeAddress("atlas", "127.0.0.1", port, "0" * 64)], hub, SECONDS)
        assert states((await node())[0]) == []
        while not came:
            await asyncio.sleep(0.01)
    assert came == [b""]


async def test_a_hub_that_a_node_does_not_know_learns_nothing(daemon, stranger):
    reader = NodesReader([daemon.address], stranger, SECONDS)
    assert await reader() == (Node("atlas"),)
    assert "know this hub's certificate" in reader.problems["atlas"]


def hello(port: int, tls: ssl.SSLContext) -> bytes:
    """What a daemon answers to somebody; raises what TLS does."""
    import socket

    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        tls.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"GET /v1/node HTTP/1.0\r\n\r\n")
        return connection.recv(100)


def context_of(hub: Identity | None = None) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if hub:
        tls.load_cert_chain(hub.file)
    return tls


def test_who_has_no_certificate_is_told_nothing(daemon, hub):
    with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|EOF"):
        hello(daemon.port, context_of())
    assert hello(daemon.port, context_of(hub)).startswith(b"HTTP/1.1 200")


def test_older_tls_is_refused(daemon, hub):
    tls = context_of(hub)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        hello(daemon.port, tls)


def issued_by(issuer: Identity, folder: Path) -> Identity:
    """A certificate that a known hub has signed for somebody else."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    known = x509.load_pem_x509_certificate(issuer.certificate.encode())
    signer = serialization.load_pem_private_key(issuer.file.read_bytes(), None)
    own = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(known.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(known.not_valid_before_utc)
        .not_valid_after(datetime(2100, 1, 1, tzinfo=timezone.utc))
        .sign(signer, hashes.SHA256())
    )
    file = folder / "identity.pem"
    file.write_bytes(
        own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    file.chmod(0o600)
    return load(file)


async def test_what_a_known_hub_has_signed_is_not_known(daemon, hub, tmp_path):
    reader = NodesReader([daemon.address], issued_by(hub, tmp_path), SECONDS)
    assert await reader() == (Node("atlas"),)


async def test_dates_say_nothing_of_who_is_known(binaries, tmp_path, monkeypatch):
    past = datetime(2001, 1, 1, tzinfo=timezone.utc)
    monkeypatch.setattr(identity, "_FOREVER", datetime(2002, 1, 1, tzinfo=timezone.utc))

    class Then(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> datetime:
            return past

    monkeypatch.setattr(identity, "datetime", Then)
    old = load_or_make(tmp_path / "hub", "hub")
    with NodeDaemon(tmp_path / "atlas", binaries.directory, [old], TWO) as daemon:
        (node,) = await NodesReader([daemon.address], old, SECONDS)()
    ended = x509.load_pem_x509_certificate(daemon.identity.certificate.encode())
    assert ended.not_valid_after_utc.year == 2002
    assert states(node) == ["free", "free"]


def test_a_daemon_that_knows_no_hub_does_not_start(hub):
    with pytest.raises(IdentityError, match="No hub is known"):
        server_context(hub, [])


# -- Keys ------------------------------------------------------------------------------------------


def test_a_key_is_its_owners_alone_and_made_once(tmp_path):
    made = load_or_make(tmp_path / "new", "atlas")
    assert made.file.stat().st_mode & 0o777 == 0o600
    assert load_or_make(tmp_path / "new", "other") == made
    assert list((tmp_path / "new").iterdir()) == [made.file]
    made.file.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        load(made.file)


@pytest.mark.parametrize(
    "content", ["", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "é", "key"]
)
def test_a_broken_key_is_a_sentence(tmp_path, content):
    file = tmp_path / "identity.pem"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(IdentityError, match=r"identity\.pem"):
        load(file)


def test_a_key_without_its_certificate_is_a_sentence(tmp_path, hub, stranger):
    file = tmp_path / "identity.pem"
    key = hub.file.read_text().partition("-----BEGIN CERT")[0]
    file.write_text(key + stranger.certificate)
    file.chmod(0o600)
    with pytest.raises(IdentityError, match="can't be used"):
        load(file)


async def test_the_log_has_no_key(daemon, hub, stranger):
    await NodesReader([daemon.address], stranger, SECONDS)()
    await NodesReader([daemon.address], hub, SECONDS)()
    assert "PRIVATE" not in daemon.log


# -- Daemons that are gone, slow, or of another version --------------------------------------------


async def test_a_killed_daemon_is_unknown_until_it_runs_again(binaries, hub, tmp_path):
    with NodeDaemon(tmp_path / "atlas", binaries.directory, [hub], TWO) as daemon:
        reader = NodesReader([daemon.address], hub, SECONDS)
        (before,) = await reader()
        daemon.kill()
        (node,) = await reader()
        assert states(node) == ["unknown", "unknown"]
        assert [gpu.id for gpu in node.gpus] == [gpu.id for gpu in before.gpus]
        reason = node.gpus[0].reason
        assert reason.startswith("The machine doesn't answer. Its GPUs were last")
        assert LOG.say(reason).startswith("Machine atlas doesn't answer. Its GPUs were last")
        assert "Connect" in reader.problems["atlas"] or "refused" in reader.problems["atlas"]
        daemon.start()
        assert states((await reader())[0]) == ["free", "free"]


async def test_a_stopped_daemon_is_waited_for_once_and_then_counts_again(
    binaries, hub, daemon, tmp_path
):
    with NodeDaemon(tmp_path / "b", binaries.directory, [hub], TWO, "borea") as stopped:
        reader = NodesReader([daemon.address, stopped.address], hub, SECONDS)
        TWO_OTHERS.write(stopped.state_path)
        assert [states(node) for node in await reader()] == [["free", "free"], ["free", "free"]]
        stopped.signal(signal.SIGSTOP)
        reader._timeout = SOON
        for _ in range(3):
            one, other = await reader()
            assert (states(one), states(other)) == (["free", "free"], ["unknown", "unknown"])
        assert "doesn't answer within" in reader.problems["borea"]
        stopped.signal(signal.SIGCONT)
        reader._timeout = SECONDS
        while "borea" in reader.problems:
            await reader()
            await asyncio.sleep(0.05)
        assert states((await reader())[1]) == ["free", "free"]


TWO_OTHERS = describe([("T4", 2)])


async def test_nobody_waits_twice_for_a_node_that_does_not_answer(hub):
    asked = 0

    async def silent_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(3600)

    server = await asyncio.start_server(silent_one, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader = NodesReader([NodeAddress("atlas", "127.0.0.1", port, "0" * 64)], hub, SOON)
        await reader()
        # From here on none of many readers waits: the question in the background has no end.
        reader._timeout = 3600
        for _ in range(50):
            assert await asyncio.wait_for(reader(), SECONDS) == (Node("atlas"),)
        assert asked == 2
        reader.close()


# -- Daemons that lie ------------------------------------------------------------------------------


@asynccontextmanager
async def liar(hub: Identity, node: Identity, answer: Callable[[], bytes]) -> AsyncIterator[int]:
    """A daemon with the right certificate that answers whatever it likes; yields its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer())
        await writer.drain()
        writer.close()

    tls = server_context(node, [hub.certificate])
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


def as_json(value: Any, length: int | None = None, kind: str = "application/json") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n"
    head += f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


def told(**changes: Any) -> dict[str, Any]:
    """A report of one free GPU, with changes; those of the GPU begin with `gpu_`."""
    found = written(NodeReport(Node("x", "570.1", "12.8", (GPU(UUID, 0, "A100"),)), "1.0"))
    for name, value in changes.items():
        if name.startswith("gpu_"):
            found["gpus"][0][name.removeprefix("gpu_")] = value
        else:
            found[name] = value
    return found


LIES = {
    "HTML": as_json(b"<html>", kind="text/html"),
    "no HTTP": b"hello\r\n\r\n",
    "nothing": b"",
    "half": as_json(told(), length=100_000),
    "endless": as_json(told(), length=10**11),
    "negative length": as_json(told(), length=-1),
    "another script's digits": as_json(told()).replace(b"Length: ", b"Length: \xb2"),
    "no JSON": as_json(b"{"),
    "deep JSON": as_json(b"[" * 100_000),
    "a list": as_json([1]),
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: https://else/\r\nContent-Length: 0\r\n\r\n",
    "an error": as_json(told()).replace(b"200 OK", b"500 No"),
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000,
    "no GPUs' list": as_json(told(gpus=None)),
    "too many GPUs": as_json(told(gpus=[told()["gpus"][0]] * 20_000)),
    "a GPU twice": as_json(told(gpus=[told()["gpus"][0]] * 2)),
    "negative memory": as_json(told(gpu_memory_used_mib=-1)),
    "memory as text": as_json(told(gpu_memory_total_mib="40960")),
    "memory as truth": as_json(told(gpu_memory_total_mib=True)),
    "no number": as_json(told(age=float("nan"))),
    "free without a name": as_json(told(gpu_uuid=None)),
    "an odd name": as_json(told(gpu_uuid="GPU-1\n")),
    "held by somebody": as_json(told(gpu_state="leased")),
    "no such state": as_json(told(gpu_state="idle")),
    "more than a GPU": as_json(told(gpu_share="8")),
    "a part of nothing": as_json(told(gpu_share="1/8")),
    "share by zero": as_json(told(gpu_share="1/0")),
    "a slot beyond": as_json(told(gpu_kind="shared", gpu_part=8, gpu_parts=8, gpu_share="1/8")),
    "a kind with markup": as_json(told(gpu_kind="<b>")),
    "free without a driver": as_json(told(driver=None)),
    "an old reading": as_json(told(age=3600.0)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_makes_a_node_unknown_and_the_others_stay(daemon, hub, stranger, lie, caplog):
    answers = iter([as_json(told()), LIES[lie], LIES[lie]])
    async with liar(hub, stranger, lambda: next(answers)) as port:
        liars = NodeAddress("borea", "127.0.0.1", port, stranger.fingerprint)
        reader = NodesReader([liars, daemon.address], hub, SECONDS)
        assert states((await reader())[0]) == ["free"]
        lying, honest = await reader()
    assert states(lying) == ["unknown"]
    assert states(honest) == ["free", "free"]
    assert reader.problems["borea"]
    assert "breaks the hub's reader" not in caplog.text + reader.problems["borea"]


async def test_another_version_says_which(hub, stranger):
    later = as_json(told(protocol=PROTOCOL + 1, version="9.9"))
    async with liar(hub, stranger, lambda: later) as port:
        address = NodeAddress("borea", "127.0.0.1", port, stranger.fingerprint)
        reader = NodesReader([address], hub, SECONDS)
        assert await reader() == (Node("borea"),)
    assert "gpuspawner 9.9 runs there" in reader.problems["borea"]


async def test_what_two_nodes_say_they_have_is_neithers(daemon, hub, stranger):
    stolen = TWO.gpus[0].uuid
    answer = as_json(told(gpu_uuid=stolen.upper().replace("GPU-", "GPU-")))
    async with liar(hub, stranger, lambda: answer) as port:
        address = NodeAddress("borea", "127.0.0.1", port, stranger.fingerprint)
        reader = NodesReader([daemon.address, address], hub, SECONDS)
        one, other = await reader()
    assert [(gpu.state, gpu.uuid) for gpu in (*one.gpus, *other.gpus)] == [
        ("unknown", None),
        ("free", TWO.gpus[1].uuid),
        ("unknown", None),
    ]
    reason = other.gpus[0].reason
    assert reason == "Another machine says that it has it, too."
    assert LOG.say(reason) == "Machines atlas and borea both say that they have it."
    assert reader.contested == {stolen.lower(): ["atlas", "borea"]}


async def test_a_node_is_called_what_the_hub_calls_it(hub, stranger):
    answer = as_json(told(name="root", node="root"))
    async with liar(hub, stranger, lambda: answer) as port:
        address = NodeAddress("borea", "127.0.0.1", port, stranger.fingerprint)
        (node,) = await NodesReader([address], hub, SECONDS)()
    assert (node.name, node.gpus[0].node) == ("borea", "borea")


# -- What a daemon is sent -------------------------------------------------------------------------


def post(daemon: NodeDaemon, hub: Identity, body: bytes, length: int | None = None) -> bytes:
    import socket

    head = f"POST /v1/node HTTP/1.0\r\nContent-Length: {length or len(body)}\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", daemon.port)) as plain,
        context_of(hub).wrap_socket(plain) as connection,
    ):
        connection.sendall(head.encode() + body)
        found = b""
        while more := connection.recv(65536):
            found += more
        return found


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"[" * 100_000, b'{"a": 1}', b'{"shared": {"A100": 0}}', b'{"excluded": "GPU"}'],
)
def test_a_question_that_makes_no_sense_is_refused(daemon, hub, body):
    answer = post(daemon, hub, body)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"Traceback" not in answer


def test_a_question_of_any_size_is_refused_before_it_is_read(daemon, hub):
    assert post(daemon, hub, b"", length=10**10).startswith(b"HTTP/1.1 400")
    assert b"200" in hello(daemon.port, context_of(hub))


# -- What doctor says of them ----------------------------------------------------------------------


def found_by_doctor(folder: Path) -> list[tuple[str, str]]:
    return [(each.state, each.found) for each in machines(Context(None, folder))]


def test_doctor_asks_each_machine_that_the_hub_knows(daemon, tmp_path):
    assert found_by_doctor(tmp_path) == []
    known = tmp_path / FOLDER
    hub = load_or_make(known, "hub")
    add_address(known, daemon.address)
    ((state, said),) = found_by_doctor(tmp_path)
    assert (state, said[:48]) == ("failure", "atlas is unknown, so nothing is handed out there")
    with (
        NodeDaemon(tmp_path / "b", daemon.library, [hub], TWO, "borea") as borea,
        NodeDaemon(tmp_path / "c", daemon.library, [hub], TWO, "cetus") as cetus,
    ):
        for each in (borea, cetus):
            add_address(known, each.address)
        remove_address(known, "atlas")
        found = found_by_doctor(tmp_path)
    states = [state for state, _ in found]
    said = " ".join(said for _, said in found)
    # Each answers, its other part doesn't run, and both of them say that they have the same GPUs.
    assert states == ["ok", "warning", "ok", "warning", "failure", "failure"]
    assert f"{TWO.gpus[0].uuid.lower()} is on borea and cetus" in said
    (known / "nodes.json").write_text("[")
    ((state, said),) = found_by_doctor(tmp_path)
    assert (state, "isn't a list of machines" in said) == ("failure", True)
