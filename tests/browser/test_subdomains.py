"""A hub with a domain for each user: all of it works, and no user's page acts as who opens it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ..support.dashboards import ADMIN_PASSWORD, LAB_MAY_ASK, lines
from ..support.hubs import IMAGES_OWN, PASSWORD, Hub

pytestmark = [pytest.mark.engine, pytest.mark.browser]

MORE = """
from urllib.parse import urlsplit

c.JupyterHub.subdomain_host = f"http://hub.test:{urlsplit(c.JupyterHub.bind_url).port}"
c.GPUSpawner.extend_minutes = None
"""


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image):
    running = hubs_of_run(lines(), LAB_MAY_ASK, IMAGES_OWN, MORE)
    yield running
    running.stop()


@pytest.fixture
def hub(idle_host, _hub):
    """A hub at hub.test, with the dashboard, without servers."""
    yield _hub
    _hub.stop_all_servers()


def at(hub: Hub, domain: str) -> str:
    """Return the address of the hub, of a user or of a service."""
    return f"http://{domain}:{hub.port}"


def log_in(page, hub: Hub, path: str, user: str = "ada") -> None:
    """Open a page of the hub's, and log in for it."""
    page.goto(at(hub, "hub.test") + path)
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(ADMIN_PASSWORD if user == "boss" else PASSWORD)
    page.get_by_role("button", name=re.compile("sign in", re.I)).click()


@pytest.mark.thorough
def test_form_lab_extend_and_dashboard(hub: Hub, page, picture) -> None:
    log_in(page, hub, "/hub/spawn")
    sentence = page.locator("#gpuspawner-sentence")
    sentence.get_by_text("Starts now, with 1 GPU.").wait_for()
    page.locator("#gpuspawner-gpus-2").check()
    sentence.get_by_text("Starts now, with 2 GPUs.").wait_for()
    page.get_by_role("button", name="Start").click()
    page.locator("#jp-top-panel").wait_for()
    assert page.url.startswith(at(hub, "ada.hub.test") + "/user/ada/lab")

    item = page.get_by_role("button", name="GPUs of this server")
    item.get_by_text(re.compile(r"^2 × A100 · 1 h 5\d min left$")).wait_for()
    item.click()
    panel = page.get_by_role("dialog", name="GPUs of this server")
    panel.get_by_role("button", name="Extend").click()
    panel.get_by_text(re.compile("This server now ends at")).wait_for()
    item.get_by_text(re.compile(r"^2 × A100 · 3 h 5\d min left$")).wait_for()
    picture(page, "subdomain-lab")

    with page.context.expect_page() as opened:
        panel.get_by_role("link", name="All GPUs of this machine").click()
    dashboard = opened.value
    dashboard.get_by_text("ada").first.wait_for()
    assert dashboard.url == at(hub, "gpus--service.hub.test") + "/services/gpus/"
    dashboard.get_by_role("button", name="Extend").first.click()
    dashboard.get_by_text("Your server now ends at").wait_for()
    picture(dashboard, "subdomain-dashboard")


# What a page of ada's server tries as whoever opens it: -> what came of each.
ATTEMPTS = """
async ({hub, dashboard}) => {
  const tried = {};
  const attempt = async (name, url, how) => {
    try {
      const answer = await fetch(url, how);
      tried[name] = answer.ok ? "done" : `${answer.status}`;
    } catch (error) {
      tried[name] = "no answer";
    }
  };
  const page = JSON.parse(document.getElementById("jupyter-config-data").textContent);
  const token = {headers: {Authorization: `token ${page.token}`}};
  const cookies = {credentials: "include"};
  await attempt("read users with cookies", `${hub}/hub/api/users`, cookies);
  await attempt("read the hub's page with cookies", `${hub}/hub/admin`, cookies);
  await attempt("read the dashboard with cookies", `${dashboard}/services/gpus/`, cookies);
  await attempt("read its API with cookies", `${dashboard}/services/gpus/api/status`, cookies);
  for (const kind of ["text/plain", "application/x-www-form-urlencoded"])
    await attempt(`add a user with cookies as ${kind}`, `${hub}/hub/api/users`,
      {...cookies, method: "POST", mode: "no-cors", headers: {"Content-Type": kind},
       body: JSON.stringify({usernames: ["eve"], admin: true})});
  await attempt("stop a server with cookies", `${dashboard}/services/gpus/`,
    {...cookies, method: "POST", mode: "no-cors",
     body: new URLSearchParams({do: "stop", user: "ben"})});
  await attempt("read users with the token", `${hub}/hub/api/users`, token);
  await attempt("add a user with the token", `${hub}/hub/api/users/eve`,
    {...token, method: "POST"});
  await attempt("stop a server with the token", `${dashboard}/services/gpus/api/users/ben/server`,
    {...token, method: "DELETE"});
  const frame = document.createElement("iframe");
  frame.src = `${hub}/hub/admin`;
  await new Promise((done) => { frame.onload = done; document.body.append(frame); });
  let inside = null;
  try { inside = frame.contentDocument?.body?.textContent; } catch {}
  tried["read a frame"] = inside ? "done" : "no answer";
  tried["cookies"] = document.cookie;
  return tried;
}
"""


def test_a_page_of_a_server_can_t_act_as_the_administrator_who_opens_it(hub: Hub, page) -> None:
    for user in ("ada", "ben"):
        hub.start_server(user, {"gpus": 1})
    log_in(page, hub, "/hub/admin", "boss")
    page.get_by_text("Start All").wait_for()
    page.goto(at(hub, "ada.hub.test") + "/user/ada/lab")
    page.get_by_role("button", name=re.compile("authorize", re.I)).click()
    page.locator("#jp-top-panel").wait_for()
    where = {"hub": at(hub, "hub.test"), "dashboard": at(hub, "gpus--service.hub.test")}
    tried = page.evaluate(ATTEMPTS, where)
    assert "jupyterhub" not in tried.pop("cookies")
    # "0": it was sent, and the answer is kept from the page.
    assert set(tried.values()) <= {"no answer", "0", "403", "404"}, tried
    assert hub.api("GET", "/users/eve").status_code == 404
    assert hub.ready("ben")


# No name server knows the domain, so the address is given apart from it, which websocat can't.
FIRST_MESSAGE = """
import asyncio, sys
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

async def first(url, host, token):
    headers = {"Host": host, "Authorization": f"token {token}"}
    connection = await websocket_connect(HTTPRequest(url, headers=headers))
    return await connection.read_message()

print(asyncio.run(first(*sys.argv[1:])).decode())
"""

TOKEN_OF_USER = """
async () => {
  const headers = {"X-XSRFToken": window.jhdata.xsrf_token, "Content-Type": "application/json"};
  const body = JSON.stringify({expires_in: 600});
  const answer = await fetch("/hub/api/users/ada/tokens", {method: "POST", headers, body});
  return (await answer.json()).token;
}
"""


@pytest.mark.thorough
def test_ssh_goes_to_the_user_s_domain(hub: Hub, page) -> None:
    hub.start_server("ada", {"gpus": 1})
    log_in(page, hub, "/hub/token")
    page.get_by_role("button", name="Request new API token").wait_for()
    token = page.evaluate(TOKEN_OF_USER)
    host = f"ada.hub.test:{hub.port}"
    url = f"ws://127.0.0.1:{hub.port}/user/ada/sshd"
    words = [sys.executable, "-c", FIRST_MESSAGE, url, host, token]
    said = subprocess.run(words, capture_output=True, timeout=60)
    assert said.stdout.startswith(b"SSH-2.0-"), said.stderr
