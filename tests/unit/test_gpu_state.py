"""What the inventory sees, in the words of people and policies."""

from __future__ import annotations

from pathlib import Path

from gpuspawner.simulation.library import build
from gpuspawner.simulation.models import MODELS
from gpuspawner.simulation.state import State, describe

from ..support.nvml import Program

HOST = describe([("T4", 1), ("A100-40GB", 1)])
SURVEY = "from gpuspawner.gpus.reader import read_node; result = read_node()"
FUNCTION = "nvmlDeviceGetCudaComputeCapability"


def capabilities(program: Program, state: State) -> list[str | None]:
    return [gpu.compute_capability for gpu in program.run(SURVEY, state).gpus]


def test_each_model_tells_its_compute_capability(program: Program) -> None:
    """As NVIDIA lists them.

    ref: https://developer.nvidia.com/cuda-gpus
    """
    models = ["V100-16GB", "T4", "RTX-2080-Ti", "A100-40GB", "A10", "L4", "H100", "B200"]
    found = capabilities(program, describe([(name, 1) for name in models]))
    assert found == ["7.0", "7.5", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0"]
    everyone = capabilities(program, describe([(name, 1) for name in MODELS]))
    assert everyone == ["{}.{}".format(*model.compute_capability) for model in MODELS.values()]


def test_windows_subsystem_shows_a_server_all_gpus_so_that_one_is_handed_out(
    program: Program, tmp_path: Path
) -> None:
    program.run("from pathlib import Path; from gpuspawner.gpus import reader")
    program.run(f"reader.WSL = Path({str(tmp_path)!r})")
    gpus = program.run(SURVEY, describe([("RTX-4090", 3)])).gpus
    assert [gpu.state for gpu in gpus] == ["free", "excluded", "excluded"]
    assert str(gpus[1].reason).startswith("On WSL 2 a server with a GPU sees all of them")
    lost = describe([("RTX-4090", 2)]).with_gpu(0, fault="lost")
    gpus = program.run(SURVEY, lost).gpus
    assert [gpu.state for gpu in gpus] == ["unhealthy", "excluded"], "its holder may have both"
    program.run("reader.WSL = Path('/nowhere')")
    assert [gpu.state for gpu in program.run(SURVEY, HOST).gpus] == ["free", "free"]


def test_a_gpu_that_does_not_tell_its_compute_capability_is_free_all_the_same(
    program: Program,
) -> None:
    silent = HOST.with_gpu(0, compute_capability=None)
    failing = HOST.with_gpu(0, function_faults=((FUNCTION, 999),))
    for state in (silent, failing):
        assert capabilities(program, state) == [None, "8.0"]
        assert [gpu.state for gpu in program.run(SURVEY).gpus] == ["free", "free"]


def test_a_driver_without_that_question_leaves_it_open(nvml_cache: Path, tmp_path: Path) -> None:
    old = build(nvml_cache, missing_functions=(FUNCTION,))
    with Program(old.directory, tmp_path / "state") as program:
        assert capabilities(program, HOST) == [None, None]
        assert [gpu.state for gpu in program.run(SURVEY).gpus] == ["free", "free"]
