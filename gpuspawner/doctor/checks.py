"""The list of all checks, in the order in which a machine is set up."""

from __future__ import annotations

from . import (
    configuration,
    containers,
    engine,
    gpus,
    hub_machine,
    images,
    injection,
    machines,
    memory_guard,
    networks,
    outsiders,
    shared_homes,
    swarm,
    swarm_node,
    toolkit,
)
from .findings import Check

DRIVER, GPUS = "NVIDIA driver", "GPUs"
ENGINE, TOOLKIT, SETTING = "Docker Engine", "Container Toolkit", "Toolkit's setting"
CONFIGURATION, SETTINGS = "Configuration", "Settings"
IMAGES, PROXY, NETWORK, HUB = "Images", "Proxy", "Network", "Hub's address"
INJECTION = "GPUs into containers"
MACHINES = "Other machines"
SWARM, SWARM_NODE = "Docker Swarm", "In the Swarm"
SHARED_HOMES = "Shared homes"
WITH_GPU, WITHOUT_GPU = "Container with a GPU", "Container without"

CHECKS = (
    Check(DRIVER, gpus.driver, is_slow=True),
    Check(ENGINE, engine.engine, is_slow=True),
    Check(TOOLKIT, toolkit.toolkit, needs=(DRIVER, ENGINE)),
    Check(SETTING, toolkit.setting, needs=(DRIVER, ENGINE, TOOLKIT)),
    Check(CONFIGURATION, configuration.configuration, is_slow=True),
    Check(SETTINGS, configuration.settings, needs=(CONFIGURATION,)),
    Check(GPUS, gpus.gpus, needs=(DRIVER,)),
    Check(INJECTION, injection.injection, needs=(DRIVER, ENGINE, TOOLKIT)),
    Check("Memory guard", memory_guard.memory_guard, needs=(ENGINE, CONFIGURATION)),
    Check(SWARM_NODE, swarm_node.swarm_node, needs=(ENGINE,)),
    Check(MACHINES, machines.machines, is_slow=True),
    Check(SWARM, swarm.swarm, needs=(ENGINE, CONFIGURATION)),
    Check("Other containers", outsiders.outsiders, needs=(ENGINE,)),
    Check(IMAGES, images.images, needs=(ENGINE,)),
    Check(
        SHARED_HOMES,
        shared_homes.shared_homes,
        needs=(ENGINE, CONFIGURATION, SWARM),
        is_slow=True,
    ),
    Check(PROXY, hub_machine.proxy, is_slow=True),
    Check("Disk space", hub_machine.disk),
    Check("Connections", hub_machine.connections),
    Check("Permissions", hub_machine.permissions),
    Check(NETWORK, networks.network, needs=(ENGINE, CONFIGURATION)),
    Check(WITHOUT_GPU, containers.without_gpu, needs=(ENGINE,), is_slow=True),
    Check(HUB, containers.hub_address, needs=(ENGINE, CONFIGURATION, NETWORK), is_slow=True),
    Check(
        WITH_GPU,
        containers.with_gpu,
        needs=(ENGINE, DRIVER, GPUS, TOOLKIT, SETTING, INJECTION),
        is_slow=True,
    ),
)
