"""One hub on a simulated host of its own, for what is measured of it."""

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


@contextmanager
def one_hub(gpus: int, lines: Iterable[str]) -> Iterator[tuple[SimulatedHost, Hub]]:
    """Have a hub run, with the image `minimal` built.

    Args:
        gpus: how many the host has.
        lines: of the hub's configuration.
    """
    # The images are those of `make run`, where that was used: there is no need for two of each.
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
