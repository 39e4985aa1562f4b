"""`gpuspawner image`: what goes to the engine, what comes back, and what is said when it fails."""

from __future__ import annotations

import base64
import copy
import gzip
import io
import json
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.__main__ import main
from gpuspawner.image_builder import base, bom, buildkit, checks, failures, locks
from gpuspawner.image_builder.buildkit import BuildFailed
from gpuspawner.image_builder.recipe import (
    BuildingError,
    Recipe,
    network_files,
    proxy_arguments,
    recipe,
    recipes,
)

from ..support.paths import ROOT

IMAGE = ROOT / "image"
PYTORCH = recipe("pytorch-2.7", IMAGE)
DEVEL = recipe("pytorch-2.15-devel", IMAGE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of image/ that a test may change."""
    return shutil.copytree(IMAGE, tmp_path / "image")


# What goes to the engine


def names(parcel: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(parcel)) as opened:
        return opened.getnames()


def test_the_parcel_has_the_common_version_and_its_own() -> None:
    sent = names(PYTORCH.build_context({}))
    locks_sent = [name for name in sent if name.endswith("requirements.lock")]
    assert locks_sent == [
        "versions/minimal/requirements.lock",
        "versions/pytorch-2.7/requirements.lock",
    ]
    assert sent[0] == "Dockerfile"
    assert names(recipe("minimal", IMAGE).build_context({"ca.pem": b"x"}))[-1] == "network/ca.pem"


def test_an_addition_is_sent_with_the_version_below_it_and_shares_its_steps() -> None:
    assert (DEVEL.base_version, DEVEL.addition) == ("pytorch-2.15", "pytorch-2.15-devel")
    assert (PYTORCH.base_version, PYTORCH.addition) == ("pytorch-2.7", "")
    without = names(recipe("pytorch-2.15", IMAGE).build_context({}))
    added = set(names(DEVEL.build_context({}))) - set(without)
    # The steps of the version below see nothing else than they do in its own build.
    assert added == {"additions/pytorch-2.15-devel/requirements.lock"}
    assert "additions/README" in without


def test_an_addition_that_does_not_say_to_what_is_a_sentence(folder: Path) -> None:
    (folder / "additions" / "pytorch-2.15-devel" / "requirements.in").write_text("cuda-toolkit\n")
    with pytest.raises(BuildingError, match="must begin with a version's"):
        recipe("pytorch-2.15-devel", folder).fingerprint()


def test_equal_files_make_an_equal_parcel(folder: Path) -> None:
    for path in folder.rglob("*"):
        path.touch()
    copied = recipe("pytorch-2.7", folder)

    def unzipped(found: Recipe) -> bytes:
        return gzip.decompress(found.build_context({}))

    assert unzipped(copied) == unzipped(PYTORCH)


ALL = {"pytorch-2.7", "pytorch-2.15", "pytorch-2.15-devel", "minimal"}


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ("Dockerfile", ALL),
        ("steps/pip-install", ALL),
        ("rootfs/usr/local/bin/server-answers", ALL),
        ("versions/minimal/requirements.lock", ALL),
        ("versions/pytorch-2.7/requirements.lock", {"pytorch-2.7"}),
        ("versions/pytorch-2.7/apt.txt", {"pytorch-2.7"}),
        ("versions/pytorch-2.15/requirements.lock", {"pytorch-2.15", "pytorch-2.15-devel"}),
        ("additions/pytorch-2.15-devel/requirements.lock", {"pytorch-2.15-devel"}),
        ("versions/pytorch-2.7/requirements.in", set()),
        ("catalogue.yaml", set()),
        ("README.md", set()),
    ],
)
def test_the_fingerprint_is_of_what_is_built(folder: Path, changed: str, keys: set[str]) -> None:
    before = {key: found.fingerprint() for key, found in recipes(folder).items()}
    with (folder / changed).open("a") as file:
        file.write("\n# changed\n")
    after = {key: found.fingerprint() for key, found in recipes(folder).items()}
    assert {key for key in before if before[key] != after[key]} == keys


def test_a_machines_own_ca_and_index_go_along(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(b"a certificate")
    environment = {"PIP_CERT": str(bundle), "UV_DEFAULT_INDEX": "https://me:pw@index/simple"}
    assert network_files(environment) == {
        "ca.pem": b"a certificate",
        "index-url": b"https://me:pw@index/simple",
    }


def test_a_machine_with_the_distributions_cas_hands_over_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system.pem").write_bytes(b"all")
    (tmp_path / "own").mkdir()
    monkeypatch.setattr("gpuspawner.image_builder.recipe.SYSTEM_CA", tmp_path / "system.pem")
    monkeypatch.setattr("gpuspawner.image_builder.recipe.OWN_CAS", tmp_path / "own")
    assert network_files({}) == {}
    (tmp_path / "own" / "company.crt").write_bytes(b"one")
    assert network_files({}) == {"ca.pem": b"all"}


def test_a_ca_bundle_that_is_not_there_is_named() -> None:
    with pytest.raises(BuildingError, match="SSL_CERT_FILE names a CA bundle that can't be read"):
        network_files({"SSL_CERT_FILE": "/nowhere/ca.pem"})


def test_proxies_are_handed_on_as_they_are_written() -> None:
    given_ = {"http_proxy": "http://proxy:3128", "NO_PROXY": "localhost", "HOME": "/root", "x": ""}
    assert proxy_arguments(given_) == {"http_proxy": "http://proxy:3128", "NO_PROXY": "localhost"}


# What comes back


def varint(value: int) -> bytes:
    """Return protobuf's form of a number."""
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + varint(rest) if rest else bytes([head])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def trace(text: bytes) -> dict[str, Any]:
    """Return the message in which BuildKit says that a step wrote something."""
    log = field(1, b"sha256:0") + varint(3 << 3) + varint(1) + field(4, text)
    content = field(1, field(1, b"sha256:0")) + field(3, log)
    return {"id": "moby.buildkit.trace", "aux": base64.b64encode(content).decode()}


@given(st.lists(st.tuples(st.integers(1, 5000), st.binary(max_size=300))))
def test_protobuf_fields_are_read_back(written: list[tuple[int, bytes]]) -> None:
    message = b"".join(
        field(number, content) + varint(7 << 3) + varint(len(content) << 40)
        for number, content in written
    )
    assert list(buildkit.fields(message)) == written


@given(st.binary(max_size=200))
def test_a_broken_message_is_no_error(message: bytes) -> None:
    buildkit.log_text(message)


class Engine:
    """As much of an engine as a build speaks with: fixed answers, and what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self.asked: list[tuple[str, bytes]] = []
        self.url = ""

    def answer(self, target: str) -> tuple[int, bytes]:
        for part, (status, messages) in self.answers.items():
            if part in target:
                return status, b"".join(json.dumps(each).encode() + b"\r\n" for each in messages)
        return 404, b'{"message": "no such thing"}'


@contextmanager
def serving(engine: Engine) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            engine.asked.append((self.path, content))
            status, body = engine.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    engine.url = f"tcp://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The engine that DOCKER_HOST names."""
    standing_in = Engine()
    standing_in.answers["/version"] = (200, [{"ApiVersion": "1.41", "Version": "20.10.24"}])
    standing_in.answers["/_ping"] = (200, [{}])
    with serving(standing_in):
        monkeypatch.setenv("DOCKER_HOST", standing_in.url)
        yield standing_in


def build(lines: list[str]) -> str:
    client = docker.from_env()
    try:
        return buildkit.build(client, b"parcel", {"A": "1"}, {"l": "2"}, lines.append)
    finally:
        client.close()


def test_a_build_tells_whole_lines_and_returns_the_image(engine: Engine) -> None:
    messages = [trace(b"==> One\n  Downl"), trace(b"oading torch\r\n"), trace(b"\n")]
    identity = {"id": "moby.image.id", "aux": {"ID": "sha256:abc"}}
    engine.answers["/build"] = (200, [*messages, identity])
    lines: list[str] = []
    assert build(lines) == "sha256:abc"
    assert lines == ["==> One", "  Downloading torch"]
    target, content = engine.asked[-1]
    assert "version=2" in target
    assert "&t=" not in target  # a tag would make an unchecked image look finished
    assert content == b"parcel"


def test_a_failed_step_brings_its_last_lines(engine: Engine) -> None:
    error = {"error": "executor failed running [x]: exit code: 1"}
    engine.answers["/build"] = (200, [trace(b"fine\nError: no"), error])
    with pytest.raises(BuildFailed, match="exit code: 1") as failed:
        build([])
    assert failed.value.lines == ["fine", "Error: no"]


@pytest.mark.parametrize(
    ("status", "messages", "said"),
    [
        (500, [{"message": "no space left on device"}], "no space left"),
        (200, [trace(b"working\n")], "ended the build without an image"),
    ],
)
def test_a_build_without_an_image_is_a_failure(
    engine: Engine, status: int, messages: list[dict[str, Any]], said: str
) -> None:
    engine.answers["/build"] = (status, messages)
    with pytest.raises(BuildFailed, match=said):
        build([])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["OSError: [Errno 28] No space left on device"], "the disk is full"),
        (
            ["error: Hash mismatch for `tornado==6.6.1`", "Expected:"],
            "tornado==6.6.1 is not the file",
        ),
        (
            ["the base image has Python 3.13.5, the locks are for 3.11"],
            "the base image has Python 3.13.5, the locks are for 3.11",
        ),
        (["runc: exec: /bin/bash: stat /bin/bash: no such file or directory"], "must be Debian"),
        (["apt-install: line 10: apt-get: command not found"], "must be Debian"),
        (
            ["W: Failed to fetch InRelease  Could not connect", "E: Unable to locate package git"],
            "packages can't be fetched",
        ),
        (["E: Unable to locate package git"], "has no package git"),
        (
            [
                "WARNING: SSLError(SSLCertVerificationError(1, 'certificate verify failed'))",
                "ERROR: Could not find a version that satisfies the requirement uv",
            ],
            "a TLS certificate isn't trusted",
        ),
        (["error: client error (Connect)", "dns error: failed to lookup"], "can't be fetched"),
        (["one", "  something new  ", ""], "a step failed: something new"),
        ([], "a step failed: exit code: 1"),
    ],
)
def test_why_a_build_failed_is_a_sentence(lines: list[str], said: str) -> None:
    assert said in failures.explain_failure(BuildFailed("exit code: 1", lines))


# The base image


def test_a_base_on_the_engine_is_used_as_it_is(engine: Engine) -> None:
    engine.answers[f"/images/{base.MADE}/json"] = (200, [{"Id": "sha256:1"}])
    assert base.ensure_base_image(docker.from_env(), lambda _: None) == base.MADE
    assert not [target for target, _ in engine.asked if "/images/create" in target]


def test_without_a_registry_and_mmdebstrap_it_says_what_to_install(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answers["/images/create"] = (500, [{"message": "lookup registry: no such host"}])
    monkeypatch.setenv("PATH", "/nowhere")
    said: list[str] = []
    with pytest.raises(BuildingError, match="run `apt-get install mmdebstrap`"):
        base.ensure_base_image(docker.from_env(), said.append)
    assert said[0] == f"Base image: pulling {base.PULLED}"
    assert "no such host" in said[1]


def test_a_full_disk_is_a_sentence_whenever_it_is_noticed(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "write /usr/share/locale: no space left on device"
    engine.answers["/images/gpuspawner/minimal"] = (500, [{"message": said}])
    assert main(["image", "build", "minimal"]) == 1
    assert capsys.readouterr().err.startswith("gpuspawner image: the disk is full")


def test_a_named_base_is_never_replaced_by_another(engine: Engine) -> None:
    engine.answers["/images/create"] = (404, [{"message": "manifest unknown"}])
    with pytest.raises(BuildingError, match=r"lab/base:1 can't be pulled: .*manifest unknown"):
        base.ensure_base_image(docker.from_env(), lambda _: None, "lab/base:1")


def test_of_a_pulled_and_a_made_base_the_newer_is_used(engine: Engine) -> None:
    """Where a pull failed, a fresh one was made beside the old."""
    for reference, created in ((base.PULLED, "2026-01-01"), (base.MADE, "2026-02-01")):
        answer = {"Id": f"sha256:{created}", "Created": f"{created}T00:00:00Z"}
        engine.answers[f"/images/{reference}/json"] = (200, [answer])
    assert base.ensure_base_image(docker.from_env(), lambda _: None) == base.MADE


def test_a_pull_that_breaks_off_is_a_failed_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an older image is there, which docker-py would return for the new one."""
    engine.answers[f"/images/{base.PULLED}/json"] = (200, [{"Id": "sha256:old"}])
    engine.answers["/images/create"] = (200, [{"error": "broke off"}])
    monkeypatch.setenv("PATH", "/nowhere")
    said: list[str] = []
    with pytest.raises(BuildingError, match="no registry to pull"):
        base.ensure_base_image(docker.from_env(), said.append, fresh=True)
    assert "No registry (broke off)" in said[1]


def test_mmdebstraps_first_error_is_the_reason(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine.answers["/images/create"] = (500, [{"message": "no registry"}])
    failing = tmp_path / "mmdebstrap"
    failing.write_text("#!/bin/sh\necho 'E: no mirror' >&2; echo 'E: failed to run' >&2; exit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildingError, match=r"base image: E: no mirror$"):
        base.ensure_base_image(docker.from_env(), lambda _: None)


# The check of a built image


def described(**changes: Any) -> dict[str, Any]:
    """Return what a right image says of itself, with changes."""
    packages = {name: min(found) for name, found in checks.pins(PYTORCH.lock.read_text()).items()}
    packages["jupyter_client"] = packages.pop("jupyter-client")  # as some packages call themselves
    right = {
        **checks.USER,
        "work_is_writable": True,
        "python": "3.11.2",
        "environment": dict(checks.ENVIRONMENT),
        "missing_tools": [],
        "login_python": f"{checks.OWN_PACKAGES}/pytorch-2.7/bin/python",
        "packages": packages,
        "torch": {
            "torch": "2.7.0",
            "cuda": "12.6",
            "cudnn": "9.5.1",
            "nccl": "2.26.2",
            "compute_capabilities": list(PYTORCH.version.compute_capabilities),
        },
        "processes": "",
        "consistent": True,
        "kernel_answers": True,
        "jupyter_seconds": 0.4,
    }
    wrong = copy.deepcopy(right)
    for name, value in changes.items():
        wrong[name] = {**wrong[name], **value} if isinstance(value, dict) and value else value
    return wrong


def test_a_right_image_has_no_problem() -> None:
    assert checks.problems(described(), PYTORCH) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"uid": 0}, "uid is 0, not 1000"),
        ({"process_1": "sleep"}, "process_1 is 'sleep', not 'tini'"),
        (
            {"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}},
            "the variable NVIDIA_VISIBLE_DEVICES is 'all', not 'void'",
        ),
        ({"missing_tools": ["git"]}, "the program git is missing"),
        ({"login_python": "/usr/bin/python"}, "a terminal's python is /usr/bin/python"),
        ({"work_is_writable": False}, "the user can't write to the work folder"),
        ({"consistent": False}, "`pip check` finds packages that don't agree"),
        ({"kernel_answers": False}, "a Python kernel doesn't compute"),
        ({"jupyter_seconds": None}, "JupyterLab doesn't answer"),
        ({"packages": {"tornado": "5.0"}}, "tornado is 5.0, the lock says"),
        ({"packages": {"jupyter_client": "1"}}, "jupyter-client is 1, the lock says"),
        ({"torch": {"torch": "2.6.0"}}, "framework is PyTorch 2.6.0, the catalogue says"),
        ({"torch": {"cuda": "11.8"}}, "cuda is 11.8, the catalogue says 12.6"),
        ({"torch": {}}, "cuda is missing, the catalogue says 12.6"),
        ({"torch": {"compute_capabilities": ["9.0"]}}, "compute_capabilities is ['9.0'], the"),
        ({"processes": "no route"}, "two processes of torch.distributed fail: no route"),
        ({"python": "3.10.1"}, "python is 3.10, the catalogue says 3.11"),
    ],
)
def test_a_wrong_image_is_told_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    found = checks.problems(described(**changes), PYTORCH)
    assert [sentence for sentence in found if sentence.startswith(said)], found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, ["a CUDA extension can't be compiled: nvcc isn't on the PATH"]),
        ({"extension": "no cudart"}, ["a CUDA extension can't be compiled: no cudart"]),
        ({"extension": ""}, []),
    ],
)
def test_a_version_with_nvcc_must_compile(found: dict[str, str], said: list[str]) -> None:
    problems = checks.problems(described(), DEVEL)
    with_answer = checks.problems({**described(), **found}, DEVEL)
    assert [each for each in with_answer if "extension" in each] == said
    assert any("extension" in each for each in problems)


def test_a_package_that_is_missing_is_a_problem() -> None:
    description = described()
    del description["packages"]["tornado"]
    assert checks.problems(description, PYTORCH) == ["tornado is missing"]


# The bill of materials

CONTENTS = {
    "packages": {"torch": "2.7.0", "jupyter_client": "8.6.3"},
    "licenses": {"jupyter_client": "BSD-3-Clause"},
    "system": {
        "id": "debian",
        "version": "12",
        "packages": [["bash", "5.2.15-2+b8", "amd64"], ["perl", "5:36~rc1", "all"]],
    },
}


def test_a_bill_names_every_package_by_its_url() -> None:
    document = json.loads(bom.bill(CONTENTS, PYTORCH))
    assert document["metadata"]["component"]["bom-ref"] == "gpuspawner/pytorch:2.7"
    assert [component["purl"] for component in document["components"]] == [
        "pkg:deb/debian/bash@5.2.15-2%2Bb8?arch=amd64&distro=debian-12",
        "pkg:deb/debian/perl@5:36~rc1?arch=all&distro=debian-12",
        "pkg:pypi/jupyter-client@8.6.3",
        "pkg:pypi/torch@2.7.0",
    ]
    client = document["components"][2]
    assert client["licenses"] == [{"expression": "BSD-3-Clause"}]


def test_equal_images_have_equal_bills() -> None:
    turned = {**CONTENTS, "packages": dict(reversed(CONTENTS["packages"].items()))}
    assert bom.bill(turned, PYTORCH) == bom.bill(CONTENTS, PYTORCH)


# The locks


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `uv` that only notes how it is called, and fails where the file `fail` is."""
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nhere = pathlib.Path({str(tmp_path)!r})\n"
        "with (here / 'calls').open('a') as calls: print(*sys.argv[1:], file=calls)\n"
        "if (here / 'fail').exists(): sys.exit('No solution found')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return tmp_path


def test_the_common_lock_is_first_and_binds_the_others(uv: Path, folder: Path) -> None:
    written = locks.write(recipes(folder).values(), upgrade=True)
    assert [path.relative_to(folder).as_posix() for path in written] == [
        "versions/minimal/requirements.lock",
        "installer.lock",
        "versions/pytorch-2.7/requirements.lock",
        "versions/pytorch-2.15/requirements.lock",
        "additions/pytorch-2.15-devel/requirements.lock",
    ]
    first, begins, version, _, addition = (uv / "calls").read_text().splitlines()
    assert "--upgrade" in first
    assert "-c versions/minimal/requirements.lock" not in first
    assert begins.endswith("- -o installer.lock -c versions/minimal/requirements.lock")
    assert version.endswith("-c versions/minimal/requirements.lock")
    assert addition.endswith(
        "-c versions/minimal/requirements.lock -c versions/pytorch-2.15/requirements.lock"
    )


def test_requirements_that_cannot_be_met_are_said(
    uv: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (uv / "fail").touch()
    assert main(["image", "--folder", str(folder), "lock", "minimal"]) == 1
    said = capsys.readouterr().err
    assert "versions/minimal/requirements.lock can't be written: No solution found" in said


# The command


@pytest.mark.parametrize("action", ["build", "verify", "sbom", "lock"])
def test_an_unknown_version_is_told_the_known_ones(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["image", action, "pytorch-1.0"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "gpuspawner image: there is no image version 'pytorch-1.0'; "
        "there are: pytorch-2.7, pytorch-2.15, pytorch-2.15-devel, minimal\n"
    )


@pytest.mark.parametrize("action", ["build", "verify", "sbom"])
def test_an_engine_out_of_reach_is_a_sentence(
    action: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert main(["image", action, "minimal"]) == 1
    assert capsys.readouterr().err.startswith(
        "gpuspawner image: the Docker Engine can't be reached"
    )


def test_the_list_needs_no_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert main(["image", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in rows] == list(recipes(IMAGE))
    assert {row["present"] for row in rows} == {None}
    assert {row["state"] for row in rows} == {"unknown: no engine can be reached"}
    assert main(["image", "list"]) == 0
    assert "PyTorch 2.7: PyTorch 2.7.0 · CUDA 12.6 · Python 3.11" in capsys.readouterr().out


def test_the_list_says_what_replaces_a_version(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    entry = "minimal: {image: lab/old:1, title: Old, deprecated: take pytorch-2.15}\n"
    (folder / "catalogue.yaml").write_text(entry)
    assert main(["image", "--folder", str(folder), "list"]) == 0
    assert "deprecated: take pytorch-2.15" in capsys.readouterr().out


def test_a_broken_catalogue_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "catalogue.yaml").write_text("minimal: {image: [1]}\n")
    assert main(["image", "--folder", str(folder), "list"]) == 1
    assert capsys.readouterr().err.startswith("gpuspawner image: ")


@pytest.mark.parametrize("action", ["verify", "sbom"])
def test_what_is_not_built_says_how_to_build_it(
    action: str, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["image", action, "minimal"]) == 1
    assert "run `gpuspawner image build minimal`" in capsys.readouterr().err
