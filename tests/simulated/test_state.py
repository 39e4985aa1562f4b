"""The state of a simulated host: what it may say, its file, and how its library is built."""

from __future__ import annotations

import dataclasses
import re
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.simulation.events import KINDS, SimulatedEvent
from gpuspawner.simulation.library import BuildError, build
from gpuspawner.simulation.mig import layout, partition
from gpuspawner.simulation.models import MODELS, cuda_of
from gpuspawner.simulation.state import (
    ADDRESSING_MODES,
    COMPUTE_MODES,
    FABRIC_STATES,
    GPU_FAULTS,
    HOST_FAULTS,
    MAX_GPUS,
    MIG_GAPS,
    RECOVERY_ACTIONS,
    SimulatedGPU,
    State,
    describe,
)

HOST = describe([("A100-40GB", 2), ("T4", 1)])
UUIDS = [gpu.uuid for gpu in HOST.gpus]
INSTANCE = partition(HOST, 0, ["1g.5gb"]).gpu(0).instances[0]


def test_describe_gives_gpus_as_nvml_names_them() -> None:
    assert [gpu.name for gpu in HOST.gpus] == ["NVIDIA A100-SXM4-40GB"] * 2 + ["Tesla T4"]
    assert [gpu.minor_number for gpu in HOST.gpus] == [0, 1, 2]
    assert [gpu.memory_total_mib for gpu in HOST.gpus] == [40960, 40960, 15360]
    assert [gpu.mig for gpu in HOST.gpus] == [False, False, None]
    assert all(re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", u) for u in UUIDS)
    assert describe([("NVIDIA A100-SXM4-40GB", 2), ("T4", 1)]) == HOST


def test_describe_is_stable_and_every_gpu_its_own() -> None:
    assert describe([("A100-40GB", 2), ("T4", 1)]) == HOST
    # Other runs and machines must get these too: rehearsals and documents name them.
    assert UUIDS[0] == "GPU-de19d88b-5cba-3bca-a2c2-92e3b448fe6b"
    many = [gpu for name in MODELS for gpu in describe([(name, MAX_GPUS)]).gpus]
    assert len({gpu.uuid for gpu in many}) == len(many)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_can_be_described(name: str) -> None:
    (gpu,) = describe([(name, 1)]).gpus
    assert gpu.name == MODELS[name].name
    assert gpu.compute_capability == MODELS[name].compute_capability


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("570.133.20", "12.8"),
        ("580.65.06", "13.0"),
        ("550.54.14", "12.4"),
        ("535.104.05", "12.2"),
        ("525.60.13", "12.0"),
        ("470.82.01", "11.4"),
        ("590.44.01", "13.1"),
        ("552.22", "12.4"),  # a branch that isn't in the table: the one before it
    ],
)
def test_the_cuda_version_goes_with_the_driver(driver: str, cuda: str) -> None:
    assert cuda_of(driver) == cuda
    assert State(driver=driver).cuda == cuda
    assert State(driver=driver, cuda="11.0").cuda == "11.0"


def test_only_is_what_a_container_sees() -> None:
    seen = HOST.only([UUIDS[2], UUIDS[1]])
    assert [gpu.uuid for gpu in seen.gpus] == [UUIDS[1], UUIDS[2]], "in the host's order"
    assert [gpu.minor_number for gpu in seen.gpus] == [1, 2], "as /dev numbers them"
    assert (seen.driver, seen.cuda) == (HOST.driver, HOST.cuda)
    assert HOST.only([]).gpus == ()
    with pytest.raises(ValueError, match="there is no GPU 'GPU-no'"):
        HOST.only(["GPU-no"])


def test_with_gpu_changes_one_gpu() -> None:
    changed = HOST.with_gpu(1, memory_used_mib=7)
    assert changed == HOST.with_gpu(UUIDS[1], memory_used_mib=7)
    assert changed.gpu(1).memory_used_mib == 7
    assert (changed.gpus[0], changed.gpus[2]) == (HOST.gpus[0], HOST.gpus[2])
    assert HOST.gpu(1).memory_used_mib == 0


BAD_GPU = [
    ("uuid", "GPU-1", "uuid is 'GPU-1'"),
    ("name", "two\nlines", "text on one line"),
    ("name", "", "text on one line"),
    ("serial", "a\nb", "serial"),
    ("bus_id", "07:00.0", "like 00000000:07:00.0"),
    ("minor_number", -1, "from 0 to 255"),
    ("minor_number", True, "whole number"),
    ("memory_total_mib", -5, "from 0"),
    ("memory_total_mib", 1.5, "whole number"),
    ("memory_used_mib", 40961, "memory_used_mib is 40961"),
    ("memory_reserved_mib", 99999, "memory_reserved_mib is 99999"),
    ("utilization_percent", 101, "from 0 to 100"),
    ("fan_percent", 200, "from 0 to 100"),
    ("power_limit_watts", "400", "whole number"),
    ("ecc_errors", -1, "ecc_errors"),
    ("compute_mode", "shared", "one of default, exclusive_process, prohibited"),
    ("compute_capability", (8,), "a pair such as"),
    ("compute_capability", (8, -1), "compute_capability"),
    ("mig", "on", "a bool, or None"),
    ("mig", 2, "a bool, or None"),
    ("fault", "broken", "one of lost, unreachable, reset_required"),
    ("processes", ((0, 5),), "process id"),
    ("processes", ((5, -5),), "MiB"),
    ("processes", (5,), "pairs"),
    ("processes", [(5, 5)], "a tuple"),
    ("processes", ((5, 40000), (6, 321)), "the MiB of all processes is 40321"),
    ("processes", tuple((pid, 1) for pid in range(1, 66)), "number of processes"),
    ("function_faults", (("init", 3),), "an NVML function"),
    ("function_faults", (("nvmlInit\n", 3),), "an NVML function"),
    ("function_faults", (("nvmlInit", 0),), "a code from 1 to 999"),
    ("function_faults", (("nvmlInit", 3),) * 17, "at most 16"),
    ("temperature", 3, "the GPU's field"),
    ("mps_processes", ((0, 5),), "process id"),
    ("mig_pending", "soon", "a bool, or None"),
    ("mig_slices", 0, "from 1 to 7"),
    ("recovery_action", "pray", "one of none, gpu_reset"),
    ("fabric", "torn", "one of not_started"),
    ("addressing_mode", "flat", "one of none, hmm, ats"),
    ("clocks_event_reasons", 512, "from 0 to 511"),
    ("instances", (INSTANCE,), "() outside MIG mode"),
    ("events", [SimulatedEvent(1, "xid", 79)], "a tuple of at most 16"),
]


@pytest.mark.parametrize(("key", "value", "part"), BAD_GPU)
def test_a_gpu_that_nvml_could_not_show_is_refused(key: str, value: Any, part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)) as caught:
        HOST.with_gpu(0, **{key: value})
    assert "must be" in str(caught.value)


BAD_STATE: list[tuple[dict[str, Any], str]] = [
    ({"driver": "new"}, "driver is 'new'"),
    ({"driver": 570}, "driver is 570"),
    ({"driver": "304.1"}, "from branch 418 or newer"),
    ({"cuda": "12"}, "cuda is '12'"),
    ({"fault": "gone"}, "driver_not_loaded"),
    ({"function_faults": (("nvmlInit", 1000),)}, "a code from 1 to 999"),
    ({"loads": -1}, "loads is -1"),
    ({"slow_milliseconds": -1}, "slow_milliseconds is -1"),
    ({"gpus": (HOST.gpus[0], HOST.gpus[0])}, "different for each GPU"),
    ({"gpus": HOST.gpus * 30}, "the number of GPUs"),
    (
        {"gpus": (HOST.gpus[0], dataclasses.replace(HOST.gpus[1], minor_number=0))},
        "minor_number",
    ),
]


@pytest.mark.parametrize(("arguments", "part"), BAD_STATE)
def test_a_host_that_could_not_be_is_refused(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        State(**arguments)


@pytest.mark.parametrize(
    ("models", "part"),
    [
        ([("A1000", 1)], "model is 'A1000'; it must be one of A10,"),
        ([("T4", -1)], "the count of T4 is -1"),
        ([("T4", 40), ("L4", 40)], "number of GPUs"),
    ],
)
def test_a_host_that_can_not_be_described(models: list[tuple[str, int]], part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        describe(models)


# The file ---------------------------------------------------------------------------------------

one_line = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
pairs = st.lists(st.tuples(st.integers(1, 99999), st.integers(0, 99)), max_size=3).map(tuple)
function_faults = st.lists(
    st.tuples(st.sampled_from(["nvmlInit", "nvmlDeviceGetName"]), st.integers(1, 999)), max_size=3
).map(tuple)
maybe = st.sampled_from([None, False, True])
gpus = st.builds(
    SimulatedGPU,
    uuid=st.uuids().map(lambda uuid: f"GPU-{uuid}"),
    name=one_line,
    minor_number=st.integers(0, 255),
    serial=st.none() | one_line.filter(lambda text: text != "-"),
    memory_used_mib=st.integers(0, 16384),
    utilization_percent=st.none() | st.integers(0, 100),
    processes=pairs,
    graphics_processes=pairs,
    compute_mode=st.sampled_from(COMPUTE_MODES),
    compute_capability=st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99)),
    mig=maybe,
    ecc=maybe,
    remap_pending=maybe,
    mig_pending=maybe,
    mig_slices=st.integers(1, 7),
    mps_processes=pairs,
    recovery_action=st.sampled_from([None, *RECOVERY_ACTIONS]),
    clocks_event_reasons=st.none() | st.integers(0, 511),
    fabric=st.sampled_from([None, *FABRIC_STATES]),
    addressing_mode=st.sampled_from([None, *ADDRESSING_MODES]),
    events=st.lists(
        st.builds(
            SimulatedEvent,
            number=st.integers(1, 2**31 - 1),
            kind=st.sampled_from(KINDS),
            data=st.integers(0, 999),
            gi=st.none() | st.integers(0, 13),
            ci=st.none() | st.integers(0, 7),
        ),
        max_size=3,
    ).map(tuple),
    fault=st.sampled_from([None, *GPU_FAULTS]),
    function_faults=function_faults,
)
states = st.builds(
    State,
    driver=st.sampled_from(["570.133.20", "470.82"]),
    gpus=st.lists(gpus, max_size=3, unique_by=lambda gpu: gpu.minor_number).map(tuple),
    fault=st.sampled_from([None, *HOST_FAULTS]),
    function_faults=function_faults,
    slow_milliseconds=st.integers(0, 10),
    loads=st.integers(0, 3),
    privileged=st.booleans(),
    mig_gap=st.sampled_from(MIG_GAPS),
)
layouts = st.sampled_from(["none", "1g.5gb x7", "3g.20gb, 2g.10gb, 1g.5gb x2", "1c.3g.20gb x3"])


def divided(drawn: tuple[State, str, list[tuple[int, int]], str]) -> State:
    """A host with one more GPU, in MIG mode, with processes on its first instance."""
    state, text, processes, driver = drawn
    whole = describe([("A100-40GB", 1)], driver=driver)
    parent = partition(whole, 0, layout(text)).gpu(0)
    parent = dataclasses.replace(parent, minor_number=0)
    if parent.instances:
        first = dataclasses.replace(parent.instances[0], processes=processes)
        parent = dataclasses.replace(parent, instances=(first, *parent.instances[1:]))
    return dataclasses.replace(
        state, gpus=(parent, *(gpu for gpu in state.gpus if gpu.minor_number))
    )


drivers = st.sampled_from(["570.133.20", "460.32.03"])


@given(states | st.tuples(states, layouts, pairs, drivers).map(divided))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, state: State) -> None:
    path = tmp_path_factory.getbasetemp() / "state-of-hypothesis"
    state.write(path)
    assert State.read(path) == state


@pytest.mark.parametrize(
    ("right", "wrong", "part"),
    [
        ("cuda 12.8", "cuda twelve", "cuda is 'twelve'"),
        ("driver 570", "river 570", "line 1 of the state file, 'river 570"),
        ("minor_number 1", "minor_number one", "'minor_number one'"),
        ("mig 0", "mig 7", "'mig 7'"),
        ("utilization_percent 0", "utilization 0", "the key is 'utilization'"),
        ("fault -", "fault", "fault"),
        ("minor_number 1\n", "", "given ['minor_number'] too"),
    ],
)
def test_a_file_with_a_mistake_is_refused(
    tmp_path: Path, right: str, wrong: str, part: str
) -> None:
    HOST.write(tmp_path / "state")
    text = (tmp_path / "state").read_text()
    assert right in text
    (tmp_path / "state").write_text(text.replace(right, wrong, 1))
    with pytest.raises(ValueError, match=re.escape(part)):
        State.read(tmp_path / "state")


def test_a_reader_never_sees_half_a_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    one, other = HOST, describe([("H100", 8)])
    one.write(path)
    done = threading.Event()

    def write() -> None:
        for _ in range(200):
            other.write(path)
            one.write(path)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = [State.read(path)]
    while not done.is_set():
        seen.append(State.read(path))
    thread.join()
    assert all(state in (one, other) for state in seen)
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(OSError, match="state"):
        HOST.write(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


# Building ---------------------------------------------------------------------------------------


def test_a_library_is_built_once_for_its_content(tmp_path: Path) -> None:
    first = build(tmp_path)
    made = first.library.stat().st_mtime_ns
    assert build(tmp_path) == first
    assert first.library.stat().st_mtime_ns == made
    assert build(tmp_path, ["nvmlInit_v2"]).directory != first.directory
    assert sorted(path.name for path in first.directory.iterdir()) == [
        "libnvidia-ml.so.1",
        "nvidia-smi",
    ]


@pytest.mark.thorough
def test_libraries_may_be_built_at_once(tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(build(tmp_path).library)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert len(set(made)) == 1
    assert made[0].is_file()


def test_without_a_compiler_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="needs a C compiler"):
        build(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = shutil.which("sh")
    (tmp_path / "cc").write_text(f"#!{shell}\necho no headers >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no headers"):
        build(tmp_path / "cache")
