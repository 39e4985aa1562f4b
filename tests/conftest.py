"""Fixtures: one simulated GPU host for the whole run, and real JupyterHubs on it."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest
from hypothesis import HealthCheck, settings

from .support import dashboards
from .support.built_images import engines_cache, ensure_image
from .support.hub_nursery import HubNursery
from .support.hubs import PLAIN_SERVER, Hub, write_config
from .support.looks import clear
from .support.requirements import cannot

# About how many seconds a test with a marker takes, and one without any. What a worker has to run
# one after the other goes first where that is long, so that none is left with it at the end.
TAKES = {"browser": 10.0, "engine": 4.0, "": 0.1}

# How many tests that need no engine two workers run while the third builds an image.
MEANWHILE = 1500

# What these modules are about goes through none of the packages that we depend on, or they read the
# repository's own files: nothing that an older package could change. Their tests don't run again on
# the oldest packages, but in `make test-all`.
SAME_ON_OLDEST = {
    *("test_allocation", "test_bench", "test_building", "test_compatibility", "test_docs"),
    *("test_doctor_machine", "test_image", "test_lease_machine", "test_nodes", "test_queue_order"),
    *("test_quick_start", "test_setup", "test_structure", "test_waiting"),
    *("test_command", "test_simulation", "test_state"),
}

# How many examples a property is tried on; `make test-all` has hypothesis's own number.
# A loaded machine is no fault of the code's.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=25, **PATIENT)
settings.register_profile("thorough", **PATIENT)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what chooses more than `make test` has, and another order."""
    parser.addoption("--all", action="store_true", help="also what takes long: see CONTRIBUTING.md")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="in an order of this seed's")


def pytest_configure(config: pytest.Config) -> None:
    """Try each property on as many examples as are wanted."""
    settings.load_profile("thorough" if config.getoption("--all") else "fast")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say how the order can be had again."""
    seed = config.getoption("--shuffle")
    return None if seed is None else f"shuffled: --shuffle {seed}"


def folder_of(item: pytest.Item) -> str:
    """Return "unit", "engine", "browser" or "simulated"."""
    return item.path.parent.name


def shares_a_fixture(item: pytest.Item) -> bool:
    """Return whether its module makes something, such as a hub, for all of its tests."""
    found = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
    return any(definitions[-1].scope == "module" for definitions in found)


def run_together(item: pytest.Item) -> str:
    """Return the name of the group that one worker runs; of its own where it is in none."""
    group = item.get_closest_marker("xdist_group")
    return group.args[0] if group else item.nodeid


def takes(item: pytest.Item) -> float:
    """Return about how many seconds a test takes."""
    return next(seconds for name, seconds in TAKES.items() if name in {*item.keywords, ""})


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep what shares a hub on one worker, and what wants PyTorch's large image on one engine."""
    names = set(getattr(item, "fixturenames", ()))
    if "pytorch_image" in names:
        item.add_marker(pytest.mark.thorough)
        item.add_marker(pytest.mark.xdist_group("pytorch"))
    elif shares_a_fixture(item):
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if {"minimal_image", "pytorch_image"} & names:
        # The first that wants an image builds it.
        item.add_marker(pytest.mark.timeout(900))
    if item.path.stem in SAME_ON_OLDEST and folder_of(item) in ("unit", "simulated"):
        item.add_marker(pytest.mark.same_on_oldest)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for, and put the rest into an order."""
    if not config.getoption("--all"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
    together = Counter[str]()
    for item in items:
        together[run_together(item)] += takes(item)
    items.sort(key=lambda item: together[run_together(item)], reverse=True)
    items[:] = beside_the_building_of_an_image(items)
    seed = config.getoption("--shuffle")
    if seed is not None:
        random.Random(seed).shuffle(items)


def beside_the_building_of_an_image(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return an order in which one worker builds the image, and no other waits for it idly."""
    wanting = [item for item in items if "minimal_image" in getattr(item, "fixturenames", ())]
    needing_no_engine = [item for item in items if not {"engine", "browser"} & {*item.keywords}]
    first = [*wanting[:1], *needing_no_engine[:MEANWHILE]]
    return list(dict.fromkeys([*first, *items]))


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set this machine's time zone, for the C library too, until the test is over."""

    def set_zone(zone: str) -> None:
        patch.setenv("TZ", zone)
        time.tzset()

    with monkeypatch.context() as patch:
        yield set_zone
    time.tzset()


@pytest.fixture(scope="session")
def thorough(request) -> bool:
    """Whether a matrix is gone through as a whole, and not only some of it."""
    return bool(request.config.getoption("--all"))


def has_nvml() -> bool:
    """Return whether this process has a driver's library loaded, real or simulated."""
    return "libnvidia-ml" in Path("/proc/self/maps").read_text()


@pytest.fixture(autouse=True)
def loads_no_simulated_driver() -> Iterator[None]:
    """Hold each test to it that it loads no NVML here: those after it would find a driver."""
    allowed = has_nvml() or Path("/proc/driver/nvidia").exists()
    yield
    assert allowed or not has_nvml(), "this test loaded NVML into the process of all tests"


@pytest.fixture(scope="session")
def nvml_cache(tmp_path_factory) -> Path:
    """The folder of the simulated NVML libraries; what all workers need is compiled by one."""
    base: Path = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "simulated-nvml"


@pytest.fixture(scope="session")
def binaries(nvml_cache: Path) -> Any:
    """The simulated NVML library and `nvidia-smi`, built from this checkout's sources."""
    from gpuspawner.simulation.library import build

    return build(nvml_cache)


@pytest.fixture(scope="module")
def program(binaries, tmp_path_factory) -> Iterator[Any]:
    """A process that lives through all of a module's scenarios, as a hub does."""
    from .support.nvml import Program

    with Program(binaries.directory, tmp_path_factory.mktemp("program") / "state") as program:
        yield program


@pytest.fixture(scope="session")
def host():
    """A simulated host with four A100, its own engine, and nobody on it."""
    from gpuspawner.simulation.host import SimulatedHost, SimulationError
    from gpuspawner.simulation.state import describe

    if os.geteuid() != 0 or not shutil.which("dockerd"):
        cannot("needs root and dockerd (make test installs it)")
    try:
        with SimulatedHost(describe([("A100-40GB", 4)]), cache=engines_cache()) as running:
            before = dict(os.environ)
            # docker-py and our own code in this process talk to it as well.
            os.environ.update(running.additions)
            yield running
            os.environ.clear()
            os.environ.update(before)
    except SimulationError as error:
        cannot(str(error))


@pytest.fixture(scope="session")
def engine(host) -> Iterator[docker.APIClient]:
    """A client of the simulated host's engine."""
    client = docker.APIClient(base_url=host.docker_host, version="auto", timeout=60)
    yield client
    client.close()


@pytest.fixture(scope="session")
def minimal_image(engine, host) -> tuple[docker.DockerClient, str]:
    """A client of the host's engine, and the `minimal` image's reference, built if need be."""
    ensure_image(host, "minimal")
    client = docker.DockerClient(base_url=host.docker_host, version="auto")
    return client, "gpuspawner/minimal:py3.11"


@pytest.fixture(scope="session")
def pytorch_image(engine, host) -> tuple[docker.DockerClient, str]:
    """The same of the form's default, which is large: only for tests that are about PyTorch."""
    ensure_image(host, "pytorch-2.7", shared=False)
    client = docker.DockerClient(base_url=host.docker_host, version="auto")
    return client, "gpuspawner/pytorch:2.7"


@pytest.fixture
def idle_host(host, engine, minimal_image):
    """The simulated host, all GPUs free and healthy, no containers; the same afterwards."""
    first = host.read()
    clear(engine)
    yield host
    host.write(first)
    clear(engine)


@pytest.fixture(scope="session")
def nursery(host, tmp_path_factory) -> Iterator[HubNursery]:
    """What hubs are forked from."""
    made = HubNursery(tmp_path_factory.mktemp("nursery"), host.environment)
    yield made
    made.close()


@pytest.fixture(scope="session")
def hubs_of_run(host, nursery, tmp_path_factory):
    """Start hubs that are ended with the run at the latest.

    Their servers are plain ones; those of a hub with the line `IMAGES_OWN` are JupyterLabs.
    """
    started: list[Hub] = []

    def make(
        *lines: str,
        shipped: bool = False,
        environment: Mapping[str, str] | None = None,
        doctor: Collection[str] = (),
        prefix: str = "",
    ):
        folder = tmp_path_factory.mktemp("hub")
        write_config(folder, [PLAIN_SERVER, *lines], shipped, prefix)
        hub = Hub(folder, host.environment if environment is None else environment, nursery)
        started.append(hub)
        hub.start(doctor)
        return hub

    yield make
    for hub in started:
        hub.stop()


@pytest.fixture
def make_hub(idle_host, hubs_of_run):
    """Start hubs with the lines of a configuration; all are ended with the test."""
    hubs: list[Hub] = []

    def make(*lines: str, **how) -> Hub:
        hubs.append(hubs_of_run(*lines, **how))
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.stop()


@pytest.fixture(scope="module")
def _module_hub(request, hubs_of_run, minimal_image) -> Iterator[Hub]:
    hub = hubs_of_run(*request.module.LINES)
    yield hub
    hub.stop()


@pytest.fixture
def module_hub(idle_host, _module_hub) -> Iterator[Hub]:
    """A hub of its module's, with the module's `LINES`, without servers and users."""
    yield _module_hub
    _module_hub.begin_anew()


@pytest.fixture(scope="session")
def _usual_hub(hubs_of_run, minimal_image) -> Hub:
    return hubs_of_run("c.GPUSpawner.poll_interval = 1")


@pytest.fixture(scope="session")
def _dashboard_hub(hubs_of_run, minimal_image) -> Hub:
    return hubs_of_run(dashboards.lines())


@pytest.fixture
def dashboard_hub(idle_host, _dashboard_hub) -> Iterator[Hub]:
    """The run's hub with the dashboard, without servers."""
    yield _dashboard_hub
    _dashboard_hub.stop_all_servers()


@pytest.fixture
def hub(idle_host, _usual_hub) -> Iterator[Hub]:
    """The run's usual hub, without servers; tests that end a hub or need other lines make one."""
    yield _usual_hub
    _usual_hub.stop_all_servers()
