"""A hub where all servers have its own address: what a page of one can do to who opens it."""

from __future__ import annotations

import pytest

from ..support.browsers import log_in
from ..support.dashboards import ADMIN_PASSWORD

pytestmark = [pytest.mark.engine, pytest.mark.browser]

# A page of ada's server acts as whoever opens it: -> the hub's answer.
ATTEMPT = """
async () => {
  const home = window.open("/hub/home");
  while (!home.jhdata) await new Promise((done) => setTimeout(done, 50));
  const headers = {"X-XSRFToken": home.jhdata.xsrf_token, "Content-Type": "application/json"};
  home.close();
  const body = JSON.stringify({usernames: ["eve"], admin: true});
  return (await fetch("/hub/api/users", {method: "POST", headers, body})).status;
}
"""


def test_a_page_of_a_server_acts_as_the_administrator_who_opens_it(dashboard_hub, page) -> None:
    """README and doctor say so: with `subdomain_host` none does."""
    hub = dashboard_hub
    hub.start_server("ada", {"gpus": 0})
    log_in(page, hub, "boss", ADMIN_PASSWORD)
    page.get_by_text("Start My Server").or_(page.get_by_text("Token")).first.wait_for()
    page.goto(f"{hub.url}/user/ada/")
    try:
        assert page.evaluate(ATTEMPT) == 201
        assert hub.api("GET", "/users/eve").json()["admin"] is True
    finally:
        hub.api("DELETE", "/users/eve")
