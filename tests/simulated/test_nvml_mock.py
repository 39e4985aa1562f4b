"""The inventory on NVIDIA's own mock of NVML, where somebody has built it.

Its answers are NVIDIA's, and so is its ABI: what the inventory makes of them is what the library
itself says, and our stand-in answers the same for the same machine.

ref: https://github.com/NVIDIA/k8s-test-infra/tree/main/pkg/gpu/mocknvml
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.simulation.library import Binaries
from gpuspawner.simulation.presets import PRESETS

from ..support.nvml import Program

# The folder with its `libnvidia-ml.so.1`, and with its `configs`.
VARIABLE = "GPUSPAWNER_NVML_MOCK"
MOCK = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None
CONFIGS = sorted((MOCK / "configs").glob("*.yaml")) if MOCK else []
A100 = "mock-nvml-config-a100.yaml"

pytestmark = pytest.mark.skipif(
    MOCK is None, reason=f"{VARIABLE} names no folder with NVIDIA's mock of NVML"
)

RAW = """
import pynvml
pynvml.nvmlInit()
result = []
for index in range(pynvml.nvmlDeviceGetCount()):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    result.append((
        pynvml.nvmlDeviceGetUUID(gpu),
        pynvml.nvmlDeviceGetName(gpu),
        pynvml.nvmlDeviceGetMemoryInfo(gpu).total >> 20,
        tuple(pynvml.nvmlDeviceGetCudaComputeCapability(gpu)),
        pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)),
        bool(pynvml.nvmlDeviceGetMigMode(gpu)[0]),
    ))
pynvml.nvmlShutdown()
"""


@pytest.fixture
def mock(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    """A program that sees the mock, as one of its configurations says."""
    given: dict[str, Any] = {"MOCK_NVML_CONFIG": str(request.param)} if request.param else {}
    with Program(MOCK, tmp_path / "state", **given) as program:
        yield program


@pytest.mark.parametrize(
    "mock", ["", *CONFIGS], indirect=True, ids=lambda path: getattr(path, "stem", "default")
)
def test_the_inventory_is_what_the_library_says(mock: Program) -> None:
    raw = mock.run(RAW)
    found = mock.read()
    assert raw
    assert [
        (
            *(gpu.uuid, gpu.name, gpu.memory_total_mib, gpu.compute_capability),
            *(gpu.utilization_percent, gpu.processes, gpu.mig),
        )
        for gpu in found.gpus
    ] == raw
    assert {(gpu.state, gpu.in_use, gpu.reason, gpu.warning) for gpu in found.gpus} == {
        ("ok", False, "", "")
    }
    near = {gpu.uuid: dict(gpu.links) for gpu in found.gpus}
    others = {uuid: set(near) - {uuid} for uuid in near}
    assert {uuid: set(each) for uuid, each in near.items()} == others
    assert all(near[one][other] == near[other][one] for one in near for other in near[one])


@pytest.mark.parametrize("mock", [path for path in CONFIGS if path.name == A100], indirect=True)
def test_our_stand_in_answers_as_it_does_of_a_dgx_a100(
    mock: Program, binaries: Binaries, tmp_path: Path
) -> None:
    theirs = mock.read()
    with Program(binaries.directory, tmp_path / "state") as program:
        ours = program.read(PRESETS["dgx-a100"].state())
    assert (theirs.cuda, len(theirs.gpus)) == (ours.cuda, len(ours.gpus))
    # The last two of ours are in MIG mode.
    for one, other in list(zip(theirs.gpus, ours.gpus, strict=True))[:6]:
        for name in ("name", "memory_total_mib", "compute_capability", "mig", "compute_mode"):
            assert getattr(one, name) == getattr(other, name), name
        assert (one.processes, one.utilization_percent) == (other.processes, 0)
        # In hundreds: the NVLinks. How near the GPUs are beside them depends on the machine.
        links = [close // 100 for _, close in one.links]
        assert links[:5] == [close // 100 for _, close in other.links][:5] == [12] * 5
