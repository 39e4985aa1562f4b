"""The Grafana dashboard, and the metrics that the module defines."""

from __future__ import annotations

import re
from pathlib import Path

from ..support.grafana import dashboard_names


def test_the_dashboard_names_nothing_that_the_module_does_not_define():
    from gpuspawner.hub import metrics

    source = Path(metrics.__file__).read_text()
    for name in dashboard_names():
        assert re.sub(r"_(bucket|count|sum|total)$", "", name) in source
