"""Group overrides that are wrong: told to the user and to the log."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup

from ..support.looks import containers, labelled

pytestmark = pytest.mark.engine


def test_an_override_that_cannot_be_applied_is_told_to_user_and_log(make_hub, engine):
    hub = make_hub(
        "c.JupyterHub.load_groups = {'lab': {'users': ['ada']}}",
        "c.Spawner.group_overrides = {'the lab': {'groups': ['lab'],"
        " 'spawner_override': {'gpu_limit': 'four'}}}",
        doctor=("gpu_limit: it must be a whole number",),
    )
    sentence = (
        "c.Spawner.group_overrides['the lab'] can't be applied: The 'gpu_limit' trait of a "
        "GPUSpawner instance expected an int, not the str 'four'."
    )
    page = hub.log_in("ada").get(f"{hub.url}/hub/spawn")
    assert page.status_code == 500
    shown = " ".join(BeautifulSoup(page.content, "html.parser").select_one(".error").text.split())
    assert f"{sentence} Please tell an administrator." in shown
    refused = hub.spawn("ada", {"gpus": 1})
    assert refused.json()["message"] == f"{sentence} Please tell an administrator."
    assert containers(engine) == []
    assert sentence in hub.log()
    # Who isn't in that group is served.
    hub.start_server("ben", {"gpus": 1})
    assert len(labelled(engine)["ben"]) == 1
