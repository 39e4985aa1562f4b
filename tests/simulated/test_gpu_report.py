"""`gpuspawner doctor --gpu-report`, on simulated GPUs and with a stand-in for the CUDA library.

A stand-in doesn't compile the kernel: NVIDIA's own assembler does, where its package is installed.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpuspawner.doctor import cuda_kernel, gpu_report, report_events, report_memory
from gpuspawner.doctor.findings import Check, Context, Finding
from gpuspawner.doctor.kernels import judge_torch
from gpuspawner.gpus.model import GPU
from gpuspawner.simulation.library import Binaries
from gpuspawner.simulation.mig import layout, partition
from gpuspawner.simulation.presets import PRESETS
from gpuspawner.simulation.state import State, describe

from ..support.cuda import MODE, compile_library
from ..support.nvml import Program, environment
from ..support.paths import ROOT

STATE = describe([("A100-40GB", 1), ("T4", 1)])
FIRST = STATE.gpus[0].uuid
MIG = partition(STATE, 0, layout("1g.5gb, 2g.10gb"))


def report(folder: Path, binaries: Binaries, state: State | None, *words: str, **more: str):
    """Run it; return exit status and output."""
    where = dict(os.environ)
    if state is not None:
        state.write(folder / "state")
        where = environment(binaries.directory, folder / "state")
    done = subprocess.run(
        [sys.executable, "-m", "gpuspawner", "doctor", "--gpu-report", *words],
        cwd=folder,
        env={**where, "PYTHONPATH": str(ROOT), "DOCKER_HOST": f"unix://{folder}/none", **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_without_a_gpu_it_is_skipped_with_a_sentence(tmp_path: Path, binaries: Binaries) -> None:
    status, said = report(tmp_path, binaries, replace(STATE, gpus=()))
    assert (status, said) == (0, "skipped: the NVIDIA driver has no GPU\n")


def test_it_says_what_the_driver_answers_and_what_could_not_be_tried(
    tmp_path: Path, binaries: Binaries
) -> None:
    (tmp_path / "jupyterhub_config.py").write_text("raise SystemExit('it is read')")
    status, said = report(tmp_path, binaries, MIG)
    assert status == 0, said
    assert "it is read" not in said
    assert "simulated GPUs: this says nothing of real ones" in said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for words in (
        "NVIDIA driver version 570.133.20, CUDA 12.8",
        "Inventory GPU 0: NVIDIA A100-SXM4-40GB (8.0), 0 of 40960 MiB",
        "Inventory GPU 0 (1: 2g.10gb): NVIDIA A100-SXM4-40GB (8.0)",
        "Inventory GPU 1: Tesla T4 (7.5), 0 of 15360 MiB and 0 % used, share 1, free",
        "skipped Docker Engine nothing is tried in containers: there is no socket",
        "skipped CUDA kernel a simulated GPU runs no kernel",
        "skipped Kernel in it see Docker Engine",
    ):
        assert any(words in line for line in lines), words
    # A T4 has no MIG mode, and a GPU in MIG mode doesn't tell its use: they answer differently.
    assert len([line for line in lines if "NVML's answers GPU" in line]) == 2


def test_a_driver_that_breaks_off_is_a_failure_and_no_skip(
    tmp_path: Path, binaries: Binaries
) -> None:
    status, said = report(tmp_path, binaries, replace(STATE, fault="library_mismatch"))
    assert status == 1, said
    assert "✗ failure  NVIDIA driver" in said


def test_what_a_driver_refuses_is_told_by_nvml_s_name_of_the_error(
    tmp_path: Path, binaries: Binaries
) -> None:
    state = STATE.with_gpu(1, function_faults=(("nvmlDeviceGetTemperature", 4),))
    _, said = report(tmp_path, binaries, state, "--json")
    (line,) = [
        each["found"]
        for each in json.loads(said)
        if each["check"] == "NVML's answers" and each["found"].startswith("GPU 1:")
    ]
    assert "NoPermission: temperature" in line


@pytest.mark.parametrize("name", ["dgx-a100", "wsl2"])
def test_it_is_anonymous(name: str, tmp_path: Path, binaries: Binaries) -> None:
    state = PRESETS[name].state()
    _, said = report(tmp_path, binaries, state)
    assert len(said.splitlines()) > 10
    assert not re.search(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-", said)
    for private in {socket.gethostname(), getpass.getuser()} - {"root", "localhost"}:
        assert not re.search(rf"\b{re.escape(private)}\b", said)
    assert str(tmp_path) not in said or not str(tmp_path).startswith(str(Path.home()))


def test_names_that_sentences_have_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "atlas.example.org")
    whole, part = "GPU-" + 36 * "a", "MIG-11111111-2222-3333-4444-555555555555"
    whole = "GPU-aaaaaaaa-1111-2222-3333-444444444444"
    units = (GPU(whole, 3, "A"), GPU(part, 3, "A", kind="1g.5gb", part=2, parent=whole))
    clean = gpu_report.anonymous(Context(None, Path(), gpus=units))
    assert clean(f"{whole.upper()}, {part}") == "GPU-3, MIG-3:2"
    assert clean("GPU-bbbbbbbb-1111-2222-3333-444444444444") == "GPU-?"
    assert clean(f"MIG-{whole}/1/0 and {whole[4:]}") == "MIG-GPU-? and ?"
    assert clean("version 20.10.24 at tcp://10.1.2.3:2375, or 10.1.2.3") == (
        "version 20.10.24 at ADDRESS, or ADDRESS"
    )
    assert clean("atlas.example.org, atlas and atlases") == "HOST, HOST and atlases"
    assert clean("GPU 1 is out of service: Ben burnt it") == "GPU 1 is out of service"


def test_no_configuration_goes_with_it_and_a_python_with_nothing_else(tmp_path: Path) -> None:
    for words, told in (
        (["--gpu-report", "-f", "x.py"], "--gpu-report reads no configuration"),
        (["--python", "python3"], "--python belongs to --gpu-report"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "gpuspawner", "doctor", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert told in done.stderr


def test_the_check_of_a_part_that_there_is_not_is_skipped(tmp_path: Path) -> None:
    context = Context(None, tmp_path)
    found = [Finding("ok", "it was tried")]
    (before,) = gpu_report.if_there("gpuspawner.no_such_part", lambda context: iter(found), context)
    assert before.state == "skipped"
    there = gpu_report.if_there("gpuspawner.gpus.nvml", lambda context: iter(found), context)
    assert list(there) == found


LISTENS = """
import json, sys, time
print(json.dumps({"watching": json.loads(sys.argv[1])}), flush=True)
sys.stdin.read()
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ((LISTENS, '["GPU-0", "GPU-1"]', "0"), [("ok", "events of 2 of 2 GPUs are heard of")]),
        (
            (LISTENS, '["GPU-1"]', "0"),
            [("note", "events of 1 of 2 GPUs are heard of; not of GPU-0")],
        ),
        (
            (LISTENS, '["GPU-0", "GPU-1"]', "60"),
            [
                ("ok", "events of 2 of 2 GPUs are heard of"),
                ("failure", "its program hasn't ended 0.5 seconds after it was to"),
            ],
        ),
        (
            ("raise SystemExit(3)",),
            [("note", "no GPU here has events: a hub goes by what it reads")],
        ),
        (("raise SystemExit(4)",), [("failure", "its program ended with status 4")]),
        (
            ("import time; time.sleep(60)",),
            [
                ("failure", "it hears nothing within 5 seconds"),
            ],
        ),
    ],
)
def test_the_program_that_hears_of_events_is_judged(
    monkeypatch: pytest.MonkeyPatch, program: tuple[str, ...], found: list[tuple[str, str]]
) -> None:
    code, *arguments = program
    monkeypatch.setattr(report_events, "COMMAND", (sys.executable, "-c", code, *arguments))
    monkeypatch.setattr(report_events, "SECONDS", 5.0)
    monkeypatch.setattr(report_events, "END_SECONDS", 0.5 if "60" in str(program) else 20.0)
    context = Context(None, Path(), gpus=(GPU("GPU-0", 0, "A"), GPU("GPU-1", 1, "A")))
    assert [(each.state, each.found) for each in report_events.check(context)] == found


HELD = 256 << 20


@pytest.mark.parametrize(
    ("processes", "is_found", "state", "words"),
    [
        ({7: HELD + 1, 8: 1}, True, "ok", "names the process, with 256 MiB"),
        ({7: HELD - 1}, True, "failure", "holds 255 MiB, of 256 MiB"),
        ({7: HELD}, False, "failure", "isn't found in /proc"),
        ({7: None}, True, "warning", "doesn't say how much"),
        ({8: HELD}, True, "warning", "other process ids"),
        (None, True, "warning", "doesn't say what processes hold"),
    ],
)
def test_what_a_memory_guard_rests_on_is_judged(
    processes: dict[int, int | None] | None, is_found: bool, state: str, words: str
) -> None:
    memory = None if processes is None else SimpleNamespace(processes=processes)
    found = report_memory.judge("GPU 0", 7, memory, is_found)
    assert found.state == state
    assert words in found.found


def test_each_check_needs_only_such_as_were_made_before() -> None:
    made: list[Check] = []
    for each in gpu_report.checks(Path(sys.executable)):
        assert set(each.needs) <= {check.title for check in made}, each.title
        made.append(each)
    assert len({each.title for each in made}) == len(made)


# ---- The kernel ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in for the CUDA library."""
    return compile_library(tmp_path_factory.mktemp("cuda"))


RUN_KERNEL = """
from gpuspawner.doctor import kernels
from gpuspawner.doctor.findings import Context
from gpuspawner.gpus import nvml
kernels.SECONDS = 20 if {mode!r} != "hang" else 0.5
kernels.RELEASE_SECONDS = 0.5
from pathlib import Path
context = Context(None, Path(), inventory=nvml.read())
units = [each for each in kernels.to_try(context) if not each.why_not]
findings = kernels.run_on(units[{unit}])
first = next(findings)
result = (first.state, first.found)
"""
REST = "result = [(each.state, each.found) for each in findings]"


@pytest.fixture
def program(binaries: Binaries, cuda: Path, tmp_path: Path) -> Iterator[Program]:
    """A program that sees simulated GPUs and the stand-in for CUDA."""
    STATE.write(tmp_path / "state")
    # Both libraries are looked for in one list of folders.
    folders = f"{binaries.directory}{os.pathsep}{cuda}"
    with Program(binaries.directory, tmp_path / "state", LD_LIBRARY_PATH=folders) as made:
        yield made


def run_kernel(program: Program, mode: str = "", unit: int = 0) -> tuple[str, str]:
    text = f"import os; os.environ[{MODE!r}] = {mode!r}\n" + RUN_KERNEL.format(mode=mode, unit=unit)
    return program.run(text)


def test_a_kernel_is_run_on_the_gpu_that_is_meant_and_nvml_has_to_show_it(program: Program) -> None:
    state, said = run_kernel(program, unit=1)
    assert state == "ok"
    assert re.match(
        r"GPU 1: right, on Stand-in 0 \(8\.6\) by CUDA 12080; init .* kernel [\d.]+", said
    )
    used = STATE.with_gpu(1, processes=((4242, 256),))
    assert program.run("result = (next(findings).found)", used) == (
        "GPU 1: NVML shows that a program uses it"
    )
    assert program.run(REST, STATE) == []


def test_a_program_on_a_gpu_that_nvml_does_not_show_is_a_failure(program: Program) -> None:
    run_kernel(program)
    ((state, said),) = program.run(REST)
    assert state == "failure"
    assert said == "GPU 0: it reads free while a program of 256 MiB is on it"


def test_a_gpu_that_stays_in_use_afterwards_is_told(program: Program) -> None:
    run_kernel(program)
    used = STATE.with_gpu(0, processes=((4242, 256),))
    assert program.run(REST, used)[-1][0] == "warning"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("wrong", "GPU 0: the kernel's result is wrong"),
        ("ptx", "GPU 0: cuModuleLoadData: CUDA_ERROR_INVALID_PTX"),
        ("none", "GPU 0: cuInit: CUDA_ERROR_NO_DEVICE"),
        ("odd", "GPU 0: cuInit: error 4711"),
        ("old", "GPU 0: a GPU of compute capability 2.6 is too old"),
        ("crash", "GPU 0: the program ended with status 9 and said nothing"),
        ("hang", "GPU 0: no answer within 0.5 seconds"),
        ("other", f"GPU 0: CUDA ran the kernel on 01010101-.* in place of {FIRST}"),
    ],
)
def test_what_goes_wrong_with_a_kernel_is_a_failure_that_says_what(
    program: Program, mode: str, words: str
) -> None:
    state, said = run_kernel(program, mode)
    assert state == "failure"
    assert re.fullmatch(words, said)


def test_without_the_cuda_library_it_says_what_to_install(
    binaries: Binaries, tmp_path: Path
) -> None:
    STATE.write(tmp_path / "state")
    with Program(binaries.directory, tmp_path / "state") as program:
        state, said = run_kernel(program)
    assert (state, said) == ("failure", "GPU 0: the driver's library libcuda.so.1 isn't here")


def test_a_mig_instance_is_tried_and_its_gpu_is_not(program: Program) -> None:
    program.run("from gpuspawner.gpus import nvml; nvml.close()", MIG)
    state, said = run_kernel(program, unit=1)
    assert state == "ok", said
    assert said.startswith("GPU 0 (1: 2g.10gb): right")
    told = program.run("result = [(each.name, each.why_not) for each in kernels.to_try(context)]")
    assert told == [
        ("GPU 0", "it is in MIG mode"),
        ("GPU 0 (0: 1g.5gb)", ""),
        ("GPU 0 (1: 2g.10gb)", ""),
        ("GPU 1", ""),
    ]


@pytest.mark.parametrize(
    ("fields", "why_not"),
    [
        ({"processes": ((4242, 2000),), "memory_used_mib": 2000}, "a program uses it"),
        # A desktop draws on it: nobody computes.
        ({"memory_used_mib": 3000}, ""),
        ({"memory_used_mib": 40000}, "960 MiB of its memory are free"),
        ({"fault": "lost"}, "it doesn't tell its UUID"),
        ({"compute_mode": "prohibited"}, "it isn't handed out"),
    ],
)
def test_nothing_is_run_on_what_somebody_uses(
    program: Program, fields: dict[str, object], why_not: str
) -> None:
    text = (
        "from pathlib import Path\n"
        "from gpuspawner.doctor import kernels\n"
        "from gpuspawner.doctor.findings import Context\n"
        "from gpuspawner.gpus import nvml\n"
        "context = Context(None, Path(), inventory=nvml.read())\n"
        "result = [each.why_not for each in kernels.to_try(context)]"
    )
    told = program.run(text, STATE.with_gpu(0, **fields))
    assert told == [why_not, ""]


@pytest.mark.parametrize(
    ("capability", "target"), [((9, 0), 75), ((7, 5), 75), ((7, 0), 50), ((3, 5), 30)]
)
def test_the_kernel_is_written_for_a_gpu_at_most_as_new_as_this_one(
    capability: tuple[int, int], target: int
) -> None:
    assert f".target sm_{target}\n" in cuda_kernel.kernel(capability)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
def test_nvidia_s_own_assembler_takes_the_kernel(architecture: str, tmp_path: Path) -> None:
    found = find_spec("nvidia")
    folders = found.submodule_search_locations if found else ()
    assembler = next(
        (path for each in folders or () if (path := Path(each) / "cuda_nvcc/bin/ptxas").is_file()),
        None,
    )
    if assembler is None:
        pytest.skip("NVIDIA's assembler isn't installed: pip install nvidia-cuda-nvcc-cu12")
    (tmp_path / "kernel.ptx").write_text(cuda_kernel.kernel((7, 5)))
    words = [str(assembler), "-arch", architecture, "kernel.ptx", "-o", "kernel.cubin"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# ---- PyTorch -------------------------------------------------------------------------------------

RIGHT = {"torch": "2.7.0", "cuda": "12.6", "devices": 1, "uuid": FIRST[4:], "right": True}


@pytest.mark.parametrize(
    ("status", "output", "state", "words"),
    [
        (0, json.dumps(RIGHT), "ok", "PyTorch 2.7.0 with CUDA 12.6: right"),
        (0, f"a warning\n{json.dumps({**RIGHT, 'uuid': ''})}\n", "ok", "right"),
        (0, json.dumps({**RIGHT, "devices": 0}), "failure", "sees 0 GPUs in place of 1"),
        (0, json.dumps({**RIGHT, "devices": 2}), "failure", "sees 2 GPUs in place of 1"),
        (0, json.dumps({**RIGHT, "uuid": 36 * "a"}), "failure", f"sees {36 * 'a'} in place"),
        (0, json.dumps({**RIGHT, "right": False}), "failure", "other numbers"),
        (1, "Traceback …\nRuntimeError: CUDA error", "failure", "RuntimeError: CUDA error"),
        (0, "", "failure", "PyTorch fails: status 0"),
        (0, "[1]", "failure", "PyTorch fails: [1]"),
    ],
)
def test_what_pytorch_says_is_judged(status: int, output: str, state: str, words: str) -> None:
    found = judge_torch("GPU 0", FIRST, status, output)
    assert found.state == state
    assert words in found.found
