"""What `/hub/metrics` tells of GPUs, and the Grafana dashboard that shows it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ..support.grafana import dashboard_names
from ..support.hubs import WAITING, until

pytestmark = pytest.mark.engine

SCRAPER = [
    "c.JupyterHub.load_roles = [*c.JupyterHub.load_roles,"
    " {'name': 'scraper', 'services': ['tests'], 'scopes': ['read:metrics']}]",
]


def scrape(hub: Any) -> dict[str, float]:
    """Return series -> value."""
    text = hub._admin.get(f"{hub.url}/hub/metrics").text
    lines = re.findall(r"^(gpuspawner_\w+(?:\{.*\})?) (\S+)$", text, re.M)
    return {name: float(value) for name, value in lines}


def test_metrics_tell_of_gpus_waits_starts_refusals_and_errors_and_of_no_user(make_hub, idle_host):
    from dataclasses import replace

    hub = make_hub(
        *SCRAPER,
        WAITING,
        "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 1}",
        "c.GPUSpawner.gpu_limit = 3",
    )
    hub.start_server("grace-hopper", {"gpus": 3})
    hub.start_server("ben", {"gpus": 0})
    assert hub.spawn("cyd", {"gpus": 4}).status_code == 403
    assert hub.spawn("dan", {"gpus": 2}).status_code == 202
    model = "NVIDIA A100-SXM4-40GB"
    leased = f'gpuspawner_gpus{{model="{model}",state="leased"}}'
    leased_too = f'gpuspawner_gpus{{state="leased",model="{model}"}}'
    until(lambda: 3.0 in (scrape(hub).get(leased), scrape(hub).get(leased_too)), "3 leased")
    until(lambda: scrape(hub)["gpuspawner_queue_length"] == 1, "one waits", log=hub.log)
    found = scrape(hub)
    assert found["gpuspawner_leases"] == 1
    assert found["gpuspawner_wait_seconds_count"] >= 1
    assert found['gpuspawner_start_seconds_count{gpus="yes"}'] == 1
    assert found['gpuspawner_start_seconds_count{gpus="no"}'] == 1
    assert found['gpuspawner_refusals_total{reason="choice"}'] == 1
    idle_host.change(lambda state: replace(state, fault="driver_not_loaded"))
    until(
        lambda: scrape(hub).get('gpuspawner_errors_total{source="nvml"}', 0) > 0,
        "NVML's errors are counted",
        log=hub.log,
    )
    found = scrape(hub)
    assert not any("grace" in name for name in found)
    bare = {name.partition("{")[0] for name in found}
    assert dashboard_names() <= bare
