"""The Grafana dashboard, and the metrics that the module defines."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpuspawner.gpus.allocation import with_leases
from gpuspawner.gpus.model import Holder, Lease, Node
from gpuspawner.hub.metrics import HostMetrics
from gpuspawner.leases.ledger import View

from ..support.grafana import dashboard_names
from ..support.units import gpu, partitioned, shared


def test_the_dashboard_names_nothing_that_the_module_does_not_define():
    from gpuspawner.hub import metrics

    source = Path(metrics.__file__).read_text()
    for name in dashboard_names():
        assert re.sub(r"_(bucket|count|sum|total)$", "", name) in source


async def test_parts_of_gpus_are_no_more_gpus_than_the_machine_has():
    units = (gpu(0), *shared(1, 8), *partitioned(2, "3g.20gb", "4g.20gb"))
    held = Lease(Holder("ada"), frozenset({"GPU-1#0/8", "MIG-2-0#3g.20gb/7@GPU-2"}))
    ledger = SimpleNamespace(
        last_view=View(with_leases([Node("", gpus=units)], [held]), (held,)),
        last_view_at=time.monotonic(),
    )
    queue = SimpleNamespace(waiting=())
    found = HostMetrics(ledger, queue, asyncio.get_running_loop()).collect()
    gpus = next(each for each in found if each.name == "gpuspawner_gpus")
    values = {sample.labels["state"]: sample.value for sample in gpus.samples}
    assert values == {
        "free": pytest.approx(1 + 7 / 8 + 4 / 7),
        "leased": pytest.approx(1 / 8 + 3 / 7),
    }
    assert sum(values.values()) == pytest.approx(3)
