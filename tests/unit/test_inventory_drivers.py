"""The inventory and NVML as a whole: drivers that are gone, old, strange or slow."""

from __future__ import annotations

import re
from pathlib import Path

import pynvml
import pytest

from gpuspawner.gpus.nvml import Inventory, InventoryError
from gpuspawner.simulation.library import Binaries, build
from gpuspawner.simulation.models import NOT_BEFORE_DRIVER_510
from gpuspawner.simulation.state import State, describe

from ..support.nvml import Program, compile_variant

HOST = describe([("A100-40GB", 2), ("T4", 1)])
UNKNOWN = 999


def with_library(directory: Path, tmp_path: Path, **variables: str) -> Program:
    return Program(directory, tmp_path / "state", **variables)


HOST_FAULTS = [
    ("driver_not_loaded", "driver isn't loaded"),
    ("library_mismatch", "different versions"),
    ("no_permission", "may not use"),
    ("unknown", "Unknown Error"),
]


@pytest.mark.parametrize(("fault", "part"), HOST_FAULTS)
def test_a_driver_that_goes_and_comes_back(program: Program, fault: str, part: str) -> None:
    assert len(program.read(HOST).gpus) == 3
    with pytest.raises(InventoryError, match=part) as caught:
        program.read(State(fault=fault, gpus=HOST.gpus))
    assert re.fullmatch(r"[A-Z].*\.", str(caught.value))
    with pytest.raises(InventoryError, match=part):
        program.read()
    assert len(program.read(HOST).gpus) == 3


def test_a_container_that_lost_its_gpus_is_named_with_its_restart(
    program: Program, tmp_path: Path
) -> None:
    mounts, own = tmp_path / "mountinfo", "0f" * 32
    mounts.write_text(f"1 2 8:1 /docker/containers/{own}/hosts /etc/hosts rw - ext4 /dev/sda1 rw")
    program.run("from pathlib import Path; from gpuspawner.gpus import missing_driver as place")
    before = program.run("result = str(place.MOUNTS)")
    program.run(f"place.MOUNTS = Path({str(mounts)!r})")
    try:
        with pytest.raises(InventoryError, match=f"`docker restart {own[:12]}`"):
            program.read(State(fault="unknown", gpus=HOST.gpus))
    finally:
        program.run(f"place.MOUNTS = Path({before!r})")


def test_a_driver_that_was_reloaded_between_two_reads(program: Program) -> None:
    program.read(State(gpus=HOST.gpus, loads=1))
    inventory = program.read(State(driver="580.65.06", gpus=HOST.gpus, loads=2))
    assert (inventory.driver, len(inventory.gpus)) == ("580.65.06", 3)


def test_a_driver_that_goes_while_it_is_read(program: Program) -> None:
    faults = (("nvmlDeviceGetMemoryInfo_v2", 9),)
    with pytest.raises(InventoryError, match="driver isn't loaded"):
        program.read(State(gpus=HOST.gpus, function_faults=faults))


def test_a_gpu_that_comes_back(program: Program) -> None:
    assert program.read(HOST.with_gpu(1, fault="lost")).gpus[1].state == "unhealthy"
    assert program.read(HOST).gpus[1].state == "ok"


@pytest.mark.parametrize(
    "function", ["nvmlSystemGetDriverVersion", "nvmlDeviceGetCount_v2", "nvmlInitWithFlags"]
)
def test_a_host_question_that_fails(binaries: Binaries, tmp_path: Path, function: str) -> None:
    with with_library(binaries.directory, tmp_path) as program:
        state = State(gpus=HOST.gpus, function_faults=((function, UNKNOWN),))
        with pytest.raises(InventoryError, match=r"Unknown Error.*nvidia-smi"):
            program.read(state)
        assert len(program.read(HOST).gpus) == 3


def test_a_cuda_version_that_nvml_does_not_tell(program: Program) -> None:
    faults = (("nvmlSystemGetCudaDriverVersion", UNKNOWN), ("nvmlSystemGetCudaDriverVersion_v2", 3))
    inventory = program.read(State(gpus=HOST.gpus, function_faults=faults))
    assert (inventory.driver, inventory.cuda) == ("570.133.20", None)


def test_a_driver_without_gpus(program: Program) -> None:
    assert program.read(State()) == Inventory("570.133.20", "12.8", ())


def test_a_host_without_nvidia_library_is_a_normal_value(tmp_path: Path) -> None:
    with with_library(tmp_path, tmp_path) as program:
        assert program.read() == Inventory(None, None, ())


def test_a_library_that_is_there_and_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    with (
        with_library(tmp_path, tmp_path) as program,
        pytest.raises(InventoryError, match="can't be loaded"),
    ):
        program.read()


FIRST_AND_THIRD = tuple(f"nvmlDeviceGetComputeRunningProcesses{v}" for v in ("", "_v3"))
OLD_DRIVERS = [
    ("before 510", NOT_BEFORE_DRIVER_510),
    ("before 450", (*NOT_BEFORE_DRIVER_510, "nvmlDeviceGetComputeRunningProcesses_v2")),
    ("with the second version alone", (NOT_BEFORE_DRIVER_510[0], *FIRST_AND_THIRD)),
    ("before MIG", (*NOT_BEFORE_DRIVER_510, "nvmlDeviceGetMigMode", "nvmlDeviceGetRemappedRows")),
]


@pytest.mark.parametrize(("name", "missing"), OLD_DRIVERS, ids=[name for name, _ in OLD_DRIVERS])
def test_an_older_driver(
    nvml_cache: Path, tmp_path: Path, name: str, missing: tuple[str, ...]
) -> None:
    old = build(nvml_cache, missing_functions=missing)
    host = describe([("V100-32GB", 2)], driver="470.82.01")
    host = host.with_gpu(1, processes=((41, 100), (42, 100)))
    with with_library(old.directory, tmp_path) as program:
        inventory = program.read(host)
    assert (inventory.driver, inventory.cuda) == ("470.82.01", "11.4")
    rest, busy = inventory.gpus
    assert (rest.state, rest.in_use, rest.processes) == ("ok", False, 0)
    assert (busy.state, busy.in_use, busy.processes) == ("ok", True, 2)
    # Version 1 of the memory query, the only one there, counts what the driver keeps.
    assert rest.memory_used_mib == host.gpus[0].memory_reserved_mib


def test_no_way_to_count_processes(nvml_cache: Path, tmp_path: Path) -> None:
    names = ("", "_v2", "_v3")
    missing = tuple(f"nvmlDeviceGetComputeRunningProcesses{name}" for name in names)
    old = build(nvml_cache, missing_functions=missing)
    with with_library(old.directory, tmp_path) as program:
        gpu = program.read(HOST).gpus[0]
    assert (gpu.state, gpu.processes) == ("ok", None)
    assert "memory alone" in gpu.warning


def test_a_library_too_old_to_start(nvml_cache: Path, tmp_path: Path) -> None:
    old = build(nvml_cache, missing_functions=("nvmlInitWithFlags",))
    with (
        with_library(old.directory, tmp_path) as program,
        pytest.raises(InventoryError, match="Function Not Found"),
    ):
        program.read(HOST)


@pytest.mark.parametrize("code", [2, 25])
def test_a_driver_that_does_not_know_the_memory_struct(program: Program, code: int) -> None:
    faults = (("nvmlDeviceGetMemoryInfo_v2", code),)
    gpu = program.read(HOST.with_gpu(0, function_faults=faults)).gpus[0]
    assert (gpu.state, gpu.memory_used_mib) == ("ok", HOST.gpus[0].memory_reserved_mib)


def test_an_nvidia_ml_py_that_gives_bytes(binaries: Binaries, tmp_path: Path) -> None:
    """As those before the text functions were decorated did."""
    source = Path(pynvml.__file__).read_text()
    decorated = "@convertStrBytes\n"
    assert decorated in source
    (tmp_path / "pynvml.py").write_text(source.replace(decorated, ""))
    with with_library(binaries.directory, tmp_path, PYTHONPATH=str(tmp_path)) as program:
        inventory = program.read(HOST)
        assert program.run("result = nvml.pynvml.nvmlSystemGetDriverVersion()") == b"570.133.20"
    assert inventory.driver == "570.133.20"
    assert inventory.gpus[0].name == "NVIDIA A100-SXM4-40GB"
    assert inventory.gpus[0].uuid == HOST.gpus[0].uuid


# A library that writes down each time it is started and stopped.
COUNTING = """
#include <fcntl.h>
#include <unistd.h>
static void note(const char *what)
{
    int file = open(getenv("NOTES"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(file, what, 1) != 1)
        _exit(1);
    close(file);
}
nvmlReturn_t nvmlShutdown(void)
{
    note("-");
    return original_nvmlShutdown();
}
__attribute__((constructor)) static void loaded(void) { note("+"); }
"""


def test_nvml_stays_initialised_until_something_fails(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    directory = compile_variant(tmp_path, "nvmlShutdown", COUNTING)
    with with_library(directory, tmp_path, NOTES=str(notes)) as program:
        program.read(HOST)
        program.read(HOST)
        assert notes.read_text() == "+"
        program.read(HOST.with_gpu(0, fault="reset_required"))
        assert notes.read_text() == "+-", "a GPU is reset only when nobody holds it"
        program.read(HOST)
        program.run("nvml.close()")
        assert notes.read_text() == "+--"
        program.run("nvml.close()")
        assert notes.read_text() == "+--"
        program.read(HOST)
        with pytest.raises(InventoryError):
            program.read(State(gpus=HOST.gpus, function_faults=(("nvmlDeviceGetUUID", 9),)))
        # Once for the session that was kept, once for the one that was tried instead.
        assert notes.read_text() == "+----"


def test_a_session_of_before_mig_mode_is_followed_by_one_that_sees_the_instances(
    tmp_path: Path,
) -> None:
    notes = tmp_path / "notes"
    directory = compile_variant(tmp_path, "nvmlShutdown", COUNTING)
    in_container = (("nvmlDeviceGetMemoryInfo", 4), ("nvmlDeviceGetMemoryInfo_v2", 4))
    divided = HOST.with_gpu(0, mig=True, function_faults=in_container)
    with with_library(directory, tmp_path, NOTES=str(notes)) as program:
        program.read(HOST)
        assert program.read(divided).gpus[0].state == "mig"
        assert notes.read_text() == "+--"
        program.read(divided)
        assert notes.read_text() == "+---", "each read sees the instances of its own time"


def test_nvml_is_let_go_of_while_a_gpu_waits_for_a_reset_or_is_out_of_service(
    tmp_path: Path,
) -> None:
    notes = tmp_path / "notes"
    directory = compile_variant(tmp_path, "nvmlShutdown", COUNTING)
    with with_library(directory, tmp_path, NOTES=str(notes)) as program:
        assert program.read(HOST.with_gpu(0, remap_pending=True)).gpus[0].state == "ok"
        assert notes.read_text() == "+-"
        program.read(HOST, lets_go=True)
        assert notes.read_text() == "+--"
        program.read(HOST)
        assert notes.read_text() == "+--"


OUT_OF_SERVICE = """
import asyncio, logging
from gpuspawner.gpus.out_of_service import OutOfServiceMark
from gpuspawner.gpus.reader import Reader
from gpuspawner.hub.health_watch import HealthWatch
from gpuspawner.leases.ledger import Ledger
from gpuspawner.leases.notes import Notes
reader, marks = Reader(10), {}
class Backend:
    async def notes(self):
        return Notes(marks)
class Events:
    def __init__(self, on_event):
        self.turn_on = self.turn_off = lambda: None
async def list_servers():
    return []
async def read():
    health = HealthWatch(reader, Backend(), tuple, logging.getLogger('hub'), Events)
    return await Ledger(list_servers, health.read_nodes, read_notes=health.read_notes).read()
"""


def test_a_reader_lets_go_of_nvml_from_the_first_mark_to_the_last(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    directory = compile_variant(tmp_path, "nvmlShutdown", COUNTING)
    with with_library(directory, tmp_path, NOTES=str(notes)) as program:
        program.run(OUT_OF_SERVICE, HOST)
        program.run("asyncio.run(read())")
        program.run("marks['GPU'] = OutOfServiceMark('GPU')\nasyncio.run(read())")
        program.run("asyncio.run(read())")
        assert notes.read_text() == "+-"
        program.run("marks.clear()\nasyncio.run(read())")
        program.run("asyncio.run(read())")
        assert notes.read_text() == "+--"


THREADS = """
import threading
from gpuspawner.gpus import nvml
seen, failures = [], []
def work():
    try:
        for _ in range(50):
            seen.append(tuple(gpu.state for gpu in nvml.read().gpus))
    except Exception as error:
        failures.append(repr(error))
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
result = (seen, failures)
"""


def test_threads_may_read_at_once(program: Program) -> None:
    # With one sick GPU each read starts and stops NVML, under the others' feet but for the lock.
    seen, failures = program.run(THREADS, HOST.with_gpu(0, fault="lost"))
    assert failures == []
    assert seen == [("unhealthy", "ok", "ok")] * 200


HANGING = """
import threading
from gpuspawner.gpus import nvml
nvml.LOCK_TIMEOUT_SECONDS = 0.01
thread = threading.Thread(target=nvml.read)
thread.start()
while not nvml._lock.locked():
    pass
try:
    nvml.read()
except nvml.InventoryError as error:
    result = str(error)
thread.join()
"""


def test_behind_a_driver_that_hangs_a_reader_gives_up(binaries: Binaries, tmp_path: Path) -> None:
    with with_library(binaries.directory, tmp_path) as program:
        sentence = program.run(HANGING, State(gpus=HOST.gpus[:1], slow_milliseconds=50))
    assert "has not answered" in sentence
