"""The presets against what drivers of real machines have answered, as their owners have published.

Facts only, each with where it was read. Who can record more of a machine adds a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from gpuspawner.gpus.links import NVLINK
from gpuspawner.simulation.mig import layout, partition
from gpuspawner.simulation.models import MODELS
from gpuspawner.simulation.presets import PRESETS
from gpuspawner.simulation.state import describe

from ..support.nvml import Program


@dataclass(frozen=True)
class Recorded:
    """What was seen of a machine.

    Args:
        ref: where it was published.
        facts: fields of `GPUFacts` of its first GPU.
        host: fields of `Inventory`.
        bus_id: the first GPU's, as NVML writes it.
        nvlinks: pairs of GPUs, by index -> their NVLinks.
    """

    ref: str
    facts: dict[str, Any] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    bus_id: str = ""
    nvlinks: dict[tuple[int, int], int] = field(default_factory=dict)


EVERY_PAIR = [(one, other) for one in range(8) for other in range(8) if one != other]
RECORDED = [
    # `nvidia-smi topo -m` of two such machines, without MIG: each GPU is 12 links from each other.
    *(
        ("dgx-a100", Recorded(f"https://github.com/{ref}", nvlinks=dict.fromkeys(EVERY_PAIR, 12)))
        for ref in ("NVIDIA/nccl/issues/1505", "NVIDIA/DCGM/issues/149")
    ),
    (
        "dgx-a100",
        Recorded(
            "https://github.com/NVIDIA/k8s-test-infra/blob/main/pkg/gpu/mocknvml/configs/"
            "mock-nvml-config-a100.yaml",
            {"name": "NVIDIA A100-SXM4-40GB", "memory_total_mib": 40960, "mig": False},
            {"cuda": "12.4"},  # of a driver of the same branch
        ),
    ),
    # NCCL's dump of the topology of half of one, GPUs by their bus ids.
    (
        "dgx-1",
        Recorded(
            "https://github.com/NVIDIA/nccl/issues/671",
            {"compute_capability": (7, 0)},
            nvlinks={(0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2}
            | {(1, 2): 2, (1, 3): 1, (1, 5): 2, (0, 5): 0, (0, 6): 0, (0, 7): 0},
        ),
    ),
    (
        "l40s",
        Recorded(
            "https://github.com/akash-network/provider-configs/pull/99",
            {"name": "NVIDIA L40S", "memory_total_mib": 46068},
        ),
    ),
    (
        "gb10",
        Recorded(
            "https://github.com/canonical/inference-snaps/issues/143",
            {"name": "NVIDIA GB10", "memory_total_mib": None, "utilization_percent": 0}
            | {"mig": None, "compute_mode": "default"},
            {"driver": "580.95.05", "cuda": "13.0"},
            "0000000F:01:00.0",
        ),
    ),
    (
        "jetson",
        Recorded(
            "https://github.com/dusty-nv/jetson-containers/issues/1403",
            {"name": "Orin (nvgpu)", "memory_total_mib": None, "utilization_percent": None}
            | {"mig": None, "compute_mode": None},
            {"driver": "540.4.0", "cuda": "12.6"},
        ),
    ),
    (
        "jetson",
        Recorded(
            "https://github.com/sgl-project/sglang/issues/3331", {"compute_capability": (8, 7)}
        ),
    ),
]
# Nobody's answers of these were found.
NOT_RECORDED = {"a30", "gh200", "rtx-4090", "wsl2"}


def test_each_preset_was_recorded_or_is_known_not_to_be() -> None:
    assert {name for name, _ in RECORDED} | NOT_RECORDED == set(PRESETS)
    assert not {name for name, _ in RECORDED} & NOT_RECORDED


@pytest.mark.parametrize(
    ("name", "recorded"), RECORDED, ids=lambda each: getattr(each, "ref", each)
)
def test_a_preset_answers_as_a_real_one_has(
    program: Program, name: str, recorded: Recorded
) -> None:
    state = PRESETS[name].state()
    if recorded.nvlinks:
        # The links of a GPU in MIG mode aren't asked for, and theirs weren't.
        gpus = range(len(state.gpus))
        for index in gpus:
            state = state.with_gpu(index, mig=None, instances=())
    found = program.read(state)
    first = found.gpus[0]
    assert {key: getattr(found, key) for key in recorded.host} == recorded.host
    assert {key: getattr(first, key) for key in recorded.facts} == recorded.facts
    if recorded.bus_id:
        assert state.gpus[0].bus_id == recorded.bus_id
    for (one, other), links in recorded.nvlinks.items():
        near = dict(found.gpus[one].links)[found.gpus[other].uuid]
        assert near // NVLINK == links, (one, other)


def test_models_have_the_memory_that_their_drivers_tell() -> None:
    """Ref: https://github.com/modal-labs/modal-client/pull/2797 (what `nvidia-smi` shows, MiB)."""
    recorded = {"H100": 81559, "A100-80GB": 81920, "A100-40GB": 40960, "A10": 23028}
    recorded |= {"L40S": 46068, "L4": 23034, "T4": 15360}
    assert {name: MODELS[name].memory_total_mib for name in recorded} == recorded


def test_mig_instances_have_the_ids_and_memory_that_were_seen() -> None:
    # ref: https://github.com/NVIDIA/k8s-device-plugin/issues/306
    state = partition(describe([("A100-40GB", 1)]), 0, layout("2g.10gb x3, 1g.5gb"))
    found = [(each.gi, each.ci, each.memory_total_mib) for each in state.gpu(0).instances]
    assert found == [(3, 0, 9984), (4, 0, 9984), (5, 0, 9984), (13, 0, 4864)]
    # ref: https://github.com/XuehaiPan/nvitop/pull/8
    assert MODELS["A100-80GB"].mig_profiles["2g.20gb"] == 19968
