"""A hub on a simulated host, for benchmarks of a single hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpuspawner.__main__ import main as gpuspawner
from gpuspawner.simulation.host import SimulatedHost, cache_folder
from gpuspawner.simulation.state import describe
from tests.support.hubs import Hub, write_config

# A configuration's lines with which the hub's pages are ours, as in the shipped one.
OUR_PAGES = "from gpuspawner import TEMPLATES\nc.JupyterHub.template_paths = [TEMPLATES]"


@contextmanager
def one_hub(gpus: int, lines: Iterable[str]) -> Iterator[tuple[SimulatedHost, Hub]]:
    """Run a hub on a simulated host that has the image `minimal`; yield both.

    Args:
        gpus: the number of the host's GPUs.
        lines: further lines of the hub's configuration.
    """
    # The images of `make run`, if there are any: they needn't be built twice.
    with (
        SimulatedHost(describe([("A100-40GB", gpus)]), cache=cache_folder()) as host,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.environ.update(host.additions)
        if gpuspawner(["image", "build", "minimal"]) != 0:
            raise SystemExit(1)
        write_config(Path(folder), lines)
        hub = Hub(Path(folder), host.environment)
        hub.start()
        try:
            yield host, hub
        finally:
            hub.stop()
