"""JupyterHub's `internal_ssl`: servers work with it, the dashboard doesn't and says so."""

from __future__ import annotations

import json

import pytest

from ..support.dashboards import lines
from ..support.hubs import IMAGES_OWN
from ..support.looks import inside

pytestmark = pytest.mark.engine

ENCRYPTED = """
c.JupyterHub.internal_ssl = True
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
"""


def test_a_hub_whose_dashboard_can_t_start_with_it_ends_and_says_why(make_hub):
    with pytest.raises(AssertionError, match="the hub ended") as ended:
        make_hub(lines(), ENCRYPTED)
    said = str(ended.value)
    assert "gpuspawner: the dashboard doesn't work with c.JupyterHub.internal_ssl." in said
    assert "Take it out of c.JupyterHub.services" in said
    assert "Traceback" not in said.split("gpuspawner: the dashboard")[1]


def test_a_server_with_gpus_starts_and_answers_with_it(make_hub, engine):
    hub = make_hub(IMAGES_OWN, ENCRYPTED)
    hub.start_server("ada", {"gpus": 1})
    answer = hub.log_in("ada").get(f"{hub.url}/user/ada/api", timeout=60)
    assert "version" in json.loads(answer.text)
    listed = inside(engine, "ada", "nvidia-smi -L")
    assert listed.count("UUID") == 1
    plain = "curl -s -o /dev/null -w %{http_code} http://127.0.0.1:8888/user/ada/api"
    assert inside(engine, "ada", f"{plain}; true") == "000"
