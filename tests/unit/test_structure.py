"""The shape of the code: what may import what."""

from __future__ import annotations

import re
import sys

import pytest

from gpuspawner.backends.base import Backend
from gpuspawner.backends.server import ServerOfBackend

from ..support.imports import MODULES, all_that_loads, imports, imports_of, ours, top
from ..support.paths import ROOT


@pytest.mark.parametrize(
    "module", ["gpus.allocation", "gpus.links", "gpus.model", "gpus.unit_names", "i18n.lazy_text"]
)
def test_what_decides_and_its_words_load_only_the_standard_library(module: str) -> None:
    assert top(all_that_loads(module)) - {"gpuspawner", ""} <= sys.stdlib_module_names
    assert ours(imports(module)) <= {
        "i18n.lazy_text",
        "gpus.health_facts",
        "gpus.links",
        "gpus.model",
        "gpus.unit_names",
    }


def test_what_says_it_in_a_language_knows_nothing_of_what_is_said() -> None:
    rooms = [name for name in MODULES if name.startswith("i18n.")]
    assert rooms
    assert {name for room in rooms for name in ours(imports(room))} <= {*rooms, "i18n.__init__"}


def test_only_the_inventory_imports_pynvml() -> None:
    assert [name for name in MODULES if "pynvml" in top(imports(name))] == [
        "gpus.nvml",
        "gpus.nvml_answers",
        "gpus.nvml_events",
        "gpus.nvml_health",
        "gpus.nvml_links",
        "gpus.nvml_mig",
        "gpus.nvml_processes",
        "gpus.nvml_queries",
    ]


# Distributions whose modules have other names.
CALLED = {"dateutil": "python-dateutil", "pynvml": "nvidia-ml-py", "yaml": "pyyaml"}


def test_what_is_imported_is_asked_for_by_name() -> None:
    """What another package happens to bring may go with its next version."""
    project = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2]
    asked = set(re.findall(r'"([\w-]+)>=', project.partition("\ntest = ")[0]))
    used = {name for module in MODULES for name in top(imports(module))} - {"", "gpuspawner"}
    others = used - {*sys.stdlib_module_names}
    assert {CALLED.get(name, name).replace("_", "-") for name in others} <= asked


def test_only_what_sends_messages_imports_apprise() -> None:
    assert [name for name in MODULES if "apprise" in top(imports(name))] == [
        "notifications.sending"
    ]


ROOMS = {"gpus", "images", "leases", "scheduling", "choices", "i18n", "notifications"}
NEUTRAL = [name for name in MODULES if name.partition(".")[0] in ROOMS]
NEUTRAL += ["settings", "errors", "group_overrides", "kept_rules", "base_spawner", "spawn_attempt"]
NEUTRAL += [
    "wait_in_queue",
    "gpu_switch",
    "running_choice",
    "wait_while_running",
    "hub.switches",
    "hub.state",
    "hub.compat",
    "hub.spawn_form",
    "hub.health_watch",
]
# What the hub asks its nodes with, and what listens on a node's network.
NEUTRAL += ["nodes.client", "nodes.daemon", "nodes.reports", "nodes.resources", "nodes.identity"]
NEUTRAL += ["nodes.invited", "nodes.oldest_engine"]
NEUTRAL += ["backends.base", "backends.launch", "backends.leftovers", "backends.server"]


@pytest.mark.parametrize("module", NEUTRAL)
def test_what_serves_every_backend_loads_no_docker(module: str) -> None:
    assert not top(all_that_loads(module)) & {"docker", "dockerspawner"}


def test_what_decides_loads_no_hub() -> None:
    deciding = [name for name in NEUTRAL if name.startswith(("gpus.", "scheduling.", "images."))]
    assert [name for name in deciding if "jupyterhub" in top(all_that_loads(name))] == []


@pytest.mark.parametrize(
    "module",
    [
        "gpus.nvml",
        "images.catalogue",
        "backends.docker.container_config",
        "backends.docker.readiness",
        "backends.docker.volumes",
    ],
)
def test_what_deals_with_one_outside_world_knows_none_of_ours(module: str) -> None:
    assert ours(all_that_loads(module)) <= {
        "errors",
        "i18n.lazy_text",
        "gpus.health_facts",
        "gpus.links",
        "gpus.nvml_health",
        "gpus.nvml_links",
        "gpus.nvml_mig",
        "gpus.nvml_processes",
        "gpus.nvml_queries",
        "gpus.state",
        "gpus.model",
        "gpus.unit_names",
        "gpus.missing_driver",
        "backends.docker.device_requests",
        "backends.docker.poll_interval",
        "backends.docker.volume_folders",
        "timeouts",
        "leases.clock",
        "leases.labels",
        "untrusted",
    }


def test_the_simulation_imports_nothing_of_ours() -> None:
    simulation = [name for name in MODULES if name.startswith("simulation.")]
    assert simulation
    used = {other for name in simulation for other in ours(imports(name))}
    assert {name for name in used if not name.startswith("simulation.")} == set()


def test_a_hub_reads_its_nodes_without_a_driver_and_a_node_serves_without_a_hub() -> None:
    assert "pynvml" not in top(all_that_loads("nodes.client"))
    assert "jupyterhub" not in top(all_that_loads("nodes.command"))


def test_nothing_imports_the_spawner() -> None:
    assert [name for name in MODULES if "spawner" in ours(imports(name))] == []


def test_what_others_have_written_is_read_in_one_place() -> None:
    """Brackets that lie too deep raise what nobody expects: there it is an error of the text's."""
    parsers = re.compile(r"\b(json\.loads?|yaml\.\w*load\w*)\(")
    found = [
        name
        for name, path in MODULES.items()
        if parsers.search(path.read_text()) and not name.startswith("simulation.")
    ]
    assert found == ["untrusted"]


def test_nothing_loses_a_cancel() -> None:
    found = [name for name, path in MODULES.items() if "asyncio.wait_for(" in path.read_text()]
    assert [name for name in found if not name.startswith("simulation.")] == []


def test_an_exception_from_a_check_names_the_check() -> None:
    bare = re.compile(r"#\s*(noqa(?!:)|type:\s*ignore(?!\[))")
    found = [
        f"{name}:{number}"
        for name, path in MODULES.items()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []


def test_no_test_module_imports_another() -> None:
    paths = sorted((ROOT / "tests").rglob("*.py"))
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    closed = {name for name in modules if re.search(r"\.(test_\w+|conftest)$", name)}
    assert len(closed) > 50
    found = {str(path.relative_to(ROOT)): imports_of(path, ROOT) & closed for path in paths}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_folders_of_the_tests() -> None:
    folders = {
        path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert {str(each) for each in folders} == {"unit", "engine", "browser", "simulated"}


def test_the_page_on_another_backend_names_each_method_of_the_interface() -> None:
    text = (ROOT / "docs" / "explanation" / "kubernetes.md").read_text()
    methods = {
        name
        for cls in (Backend, ServerOfBackend)
        for name, value in vars(cls).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
    assert {"list", "create_server", "server_id"} < methods
    assert [name for name in sorted(methods) if f"`{name}`" not in text] == []
