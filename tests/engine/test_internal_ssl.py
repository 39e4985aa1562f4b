"""JupyterHub's `internal_ssl`: the dashboard doesn't work with it and says so."""

from __future__ import annotations

import pytest

from ..support.dashboards import lines

pytestmark = pytest.mark.engine

ENCRYPTED = """
c.JupyterHub.internal_ssl = True
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
"""


@pytest.mark.thorough
def test_a_hub_whose_dashboard_can_t_start_with_it_ends_and_says_why(make_hub):
    with pytest.raises(AssertionError, match="the hub ended") as ended:
        make_hub(lines(), ENCRYPTED)
    said = str(ended.value)
    assert "gpuspawner: the dashboard doesn't work with c.JupyterHub.internal_ssl." in said
    assert "Take it out of c.JupyterHub.services" in said
    assert "Traceback" not in said.split("gpuspawner: the dashboard")[1]
