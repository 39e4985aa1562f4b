"""Which images are on a machine, as the form shows it."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup

pytestmark = pytest.mark.engine


def test_the_form_offers_no_version_whose_image_is_not_there(make_hub):
    hub = make_hub(
        "c.GPUSpawner.images = {'gone': 'gpuspawner/no-such:image',"
        " 'minimal': 'gpuspawner/minimal:py3.11'}"
    )
    page = hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada")
    soup = BeautifulSoup(page.text, "html.parser")
    offered = {str(each["value"]): each for each in soup.select('input[name="image"]')}
    assert offered["gone"].has_attr("disabled")
    assert offered["minimal"].has_attr("checked")
    # What is sent all the same is looked for at the start, which has the last word.
    refused = hub.spawn("ada", {"image": "gone", "gpus": 0})
    assert "isn't on the GPU machine" in refused.json()["message"]
