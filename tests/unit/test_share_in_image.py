"""What the images tell PyTorch of a shared GPU, and what they show in a notebook."""

from __future__ import annotations

import http.server
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.simulation.state import describe

from ..support.nvml import environment
from ..support.paths import ROOT

SITE = ROOT / "image/rootfs/opt/jupyter/lib/python3.11/site-packages"
GIB = 1024

# As much of torch as matters: what is to be done when the GPU is used first waits until then.
TORCH = """
import torch.cuda
HOME = __spec__.loader.__class__.__name__
"""
CUDA = """
_queued_calls, _initialized, limits = [], False, {}

def _lazy_call(callable):
    _queued_calls.append(callable)

def _lazy_init():
    global _initialized
    if not _initialized:
        _initialized = True
        for each in _queued_calls:
            each()

def device_count():
    return 2

def set_per_process_memory_fraction(fraction, device=None):
    _lazy_init()
    limits[device] = fraction
"""


@pytest.fixture
def torch(tmp_path: Path) -> Path:
    """A folder with a module of that name."""
    package = tmp_path / "packages" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TORCH)
    (package / "cuda.py").write_text(CUDA)
    return package


def run(folder: Path, code: str, fraction: str | None = "0.113", **variables: str) -> list[str]:
    """Run a program with the images' `.pth` files, and return the lines that it prints."""
    clean = {name: value for name, value in os.environ.items() if "GPUSPAWNER" not in name}
    given = {} if fraction is None else {"GPUSPAWNER_GPU_MEMORY_FRACTION": fraction}
    # As a folder of site-packages is read at a Python's start; the server's start isn't the matter.
    begin = f"import site; site.addsitedir({str(SITE)!r}); import sys; "
    begin += f"sys.path.insert(0, {str(folder)!r})\n"
    done = subprocess.run(
        [sys.executable, "-B", "-c", begin + code],
        env={**clean, **given, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


USE = "torch.cuda._lazy_init(); print(torch.cuda.limits)"


def test_torch_is_told_its_part_when_it_uses_the_gpu_and_not_before(torch: Path) -> None:
    code = f"import torch; print(torch.cuda._initialized, torch.HOME); {USE}"
    assert run(torch.parent, code) == ["False SourceFileLoader", "{0: 0.113, 1: 0.113}"]
    code = "from torch import cuda; import torch, importlib; importlib.reload(torch); " + USE
    assert run(torch.parent, code) == ["{0: 0.113, 1: 0.113}"]


def test_who_asks_for_another_part_has_that(torch: Path) -> None:
    code = "import torch; torch.cuda.set_per_process_memory_fraction(0.5, 0); " + USE
    assert run(torch.parent, code) == ["{0: 0.5, 1: 0.113}"]


def test_a_program_that_needs_no_torch_loads_none(torch: Path) -> None:
    code = "import json, sys; print('torch' in sys.modules)"
    assert run(torch.parent, code) == ["False"]
    # Nor is a program without torch told anything else than ever.
    code = "try:\n import torch\nexcept ModuleNotFoundError as error: print(error)"
    assert run(torch.parent.parent, code) == ["No module named 'torch'"]


@pytest.mark.parametrize("fraction", [None, "", "0", "1", "7", "-1", "nan", "much"])
def test_a_whole_gpu_and_a_part_that_is_none_limit_nothing(torch: Path, fraction) -> None:
    assert run(torch.parent, f"import torch; {USE}", fraction) == ["{}"]


@pytest.mark.parametrize(
    "cuda",
    [
        "limits = {}\ndef _lazy_init(): pass",
        CUDA.replace("_queued_calls.append(callable)", "raise TypeError"),
        CUDA.replace("    return 2", "    raise RuntimeError('no driver')"),
        CUDA.replace("    limits[device] = fraction", "    raise ValueError(fraction)"),
    ],
)
def test_no_program_breaks_where_torch_is_another_one(torch: Path, cuda: str) -> None:
    (torch / "cuda.py").write_text(cuda)
    assert run(torch.parent, f"import torch; {USE}") == ["{}"]


def test_a_torch_that_does_not_load_says_its_own_words(torch: Path) -> None:
    (torch / "__init__.py").write_text("raise OSError('libcudart.so.12: no such file')")
    code = "for _ in 1, 2:\n try: import torch\n except OSError as error: print(error)"
    assert run(torch.parent, code) == ["libcudart.so.12: no such file"] * 2


# -- What a notebook shows -------------------------------------------------------------------------

SHARED = {
    "GPUSPAWNER_GPUS": "GPU-1",
    "GPUSPAWNER_GPU_SHARE": "1/8",
    "GPUSPAWNER_MEMORY_GUARD": "60",
    "GPUSPAWNER_UNTIL": "2033-05-18T03:33:20+00:00",
    "JUPYTERHUB_USER": "ada",
    "TZ": "UTC",
}
SHOW = "import gpuspawner_gpu; print(repr(gpuspawner_gpu.share()))"


@pytest.fixture
def driver(binaries, tmp_path: Path) -> dict[str, str]:
    """The environment of a server whose GPU has 40 GiB, 18 of them in use."""
    state = describe([("A100-40GB", 1)]).with_gpu(0, memory_used_mib=18 * GIB)
    state.write(tmp_path / "state")
    found = environment(binaries.directory, tmp_path / "state")
    names = ("LD_LIBRARY_PATH", "GPUSPAWNER_SIMULATED_STATE")
    return {name: found[name] for name in names}


def test_a_shared_gpu_is_shown_with_its_part_its_limit_and_its_end(driver) -> None:
    assert run(SITE, SHOW, **{**driver, **SHARED}) == [
        "1/8 of NVIDIA A100-SXM4-40GB, shared with others",
        "Your part of its memory: 5.0 GB",
        "What PyTorch and JAX take at most, per process: 4.5 GB",
        "Used by all together: 18.0 / 40.0 GB".replace(" / ", " of "),
        "Your time ends: 2033-05-18 03:33",
        "Who holds more than their part for 60 seconds is warned; after as long again the largest "
        "process is ended, and then the server is stopped.",
    ]
    off = run(SITE, SHOW, **{**driver, **SHARED, "GPUSPAWNER_MEMORY_GUARD": "off"})
    assert off[-1].startswith("Nothing limits who takes more than their part")
    chinese = run(SITE, SHOW, **{**driver, **SHARED, "LANGUAGE": "zh_CN"})
    assert chinese[0] == "NVIDIA A100-SXM4-40GB 的 1/8，与他人共享"
    assert len(chinese) == 6


def test_whole_gpus_and_none_are_shown_as_what_they_are(driver) -> None:
    two = {"GPUSPAWNER_GPUS": "GPU-1,GPU-2"}
    found = run(SITE, SHOW, None, **{**driver, **two})
    assert found == ["2 × NVIDIA A100-SXM4-40GB: yours alone", "Your time ends: never"]
    assert run(SITE, SHOW, None, **driver) == ["This server has no GPU."]
    # No driver, and variables that make no sense: what isn't known is said to be so.
    odd = {**SHARED, "GPUSPAWNER_GPU_SHARE": "1/0", "GPUSPAWNER_UNTIL": "soon"}
    assert run(SITE, SHOW, "x", **{**odd, "LD_LIBRARY_PATH": ""})[0] == "1 × GPU: yours alone"


ANSWER = {
    "servers": [
        {"user": "ben", "server": "", "until": None, "memory": None},
        {
            "user": "ada",
            "server": "",
            "until": "2033-05-18T05:00:00+00:00",
            "memory": {"guarded": False, "used_bytes": 3 * 2**30},
        },
    ]
}


@contextmanager
def dashboard(status: int = 200, **headers: str) -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    """Answer as the dashboard does; yield where, and what was asked."""
    asked: list[Mapping[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({"path": self.path, "token": self.headers.get("Authorization", "")})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(ANSWER).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api", asked
        server.shutdown()


def test_what_the_hub_knows_counts_before_what_was_so_at_the_start(driver) -> None:
    # A proxy that is named for others isn't asked for the hub: it would get the token.
    nowhere = {"http_proxy": "http://127.0.0.1:9", "JUPYTERHUB_API_TOKEN": "secret"}
    with dashboard() as (url, asked):
        known = {**driver, **SHARED, **nowhere, "GPUSPAWNER_API_URL": url}
        found = run(SITE, SHOW, **known)
        assert "Held by this server: 3.0 of 5.0 GB" in found
        assert "Your time ends: 2033-05-18 05:00" in found
        assert found[-1].startswith("Nothing limits")
        assert asked == [{"path": "/api/status?history=false", "token": "token secret"}]
    gone = run(SITE, SHOW, **known)
    assert "Your time ends: 2033-05-18 03:33" in gone


def test_nobody_to_whom_the_hub_leads_gets_the_token(driver) -> None:
    with dashboard() as (elsewhere, stranger), dashboard(302, Location=elsewhere) as (url, asked):
        token = {"JUPYTERHUB_API_TOKEN": "secret", "GPUSPAWNER_API_URL": url}
        run(SITE, SHOW, **{**driver, **SHARED, **token})
        assert len(asked) == 1
        assert stranger == []


NOTEBOOK = """
import sys, types
shown = []
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: object())
sys.modules["IPython.display"] = types.SimpleNamespace(display=shown.append)
import gpuspawner_gpu
(one,) = shown
print(one._repr_html_())
"""


def test_one_import_shows_it_in_a_notebook_and_in_a_program_nothing(driver) -> None:
    model = {**driver, **SHARED}
    (html,) = run(SITE, NOTEBOOK, **model)
    assert html.startswith(
        "<strong>1/8 of NVIDIA A100-SXM4-40GB, shared with others</strong><table>"
    )
    assert "<td>5.0 GB</td>" in html
    assert run(SITE, "import gpuspawner_gpu", **model) == []


def test_all_that_it_says_is_there_in_chinese(monkeypatch) -> None:
    monkeypatch.syspath_prepend(SITE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("gpuspawner_gpu")
    said = {
        value
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and name != "HUB_SECONDS"
    }
    assert set(module.CHINESE) == said
    for english, chinese in module.CHINESE.items():
        assert sorted(part.split("}")[0] for part in english.split("{")[1:]) == sorted(
            part.split("}")[0] for part in chinese.split("{")[1:]
        )
    for name in [name for name in sys.modules if name.startswith("gpuspawner_")]:
        del sys.modules[name]
