"""The Grafana dashboard that comes with us."""

from __future__ import annotations

import json
import re

from .paths import ROOT

DASHBOARD = ROOT / "grafana" / "gpuspawner.json"


def dashboard_names() -> set[str]:
    """Return the metrics that its panels ask for."""
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(expressions) > 10
    return {name for each in expressions for name in re.findall(r"gpuspawner_\w+", each)}
