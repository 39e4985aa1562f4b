"""A hub with the dashboard as the shipped configuration starts it, and people who look at it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import requests
import yaml

import gpuspawner.dashboard

from .hubs import Hub, free_port, until
from .paths import ROOT

ADMIN_PASSWORD = "an administrator's password for tests, long enough"

# The shipped lines, on a port of this hub's own.
LINES = """
from traitlets.config.loader import PyFileConfigLoader

shipped = PyFileConfigLoader("jupyterhub_config.py", path={repository!r}).load_config().JupyterHub
address = f"http://{{c.JupyterHub.hub_ip}}:{port}"
c.JupyterHub.services = [{{**shipped.services[0], "url": address}}, *c.JupyterHub.services]
c.JupyterHub.load_roles = [*shipped.load_roles, *c.JupyterHub.load_roles]
c.GPUSpawner.environment = {{"GPUSPAWNER_API_URL": f"{{address}}/services/gpus/api"}}
c.Authenticator.admin_users = {{"boss"}}
c.SharedPasswordAuthenticator.admin_password = {password!r}
c.GPUSpawner.poll_interval = 1
c.GPUSpawner.default_hours = 2
c.GPUSpawner.hour_limit = 8
c.GPUSpawner.extend_minutes = None
c.GPUSpawner.longest_wait_minutes = 60
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 1}}
"""

# JupyterLab's page may ask the dashboard, as the shipped configuration has it. After LINES.
LAB_MAY_ASK = f"""
here = PyFileConfigLoader("jupyterhub_config.py", path={str(ROOT)!r}).load_config().GPUSpawner
c.GPUSpawner.oauth_client_allowed_scopes = here.oauth_client_allowed_scopes
"""

OPENAPI = yaml.safe_load((Path(gpuspawner.dashboard.__file__).parent / "openapi.yaml").read_text())


def lines() -> str:
    """Return the lines of a configuration with the dashboard."""
    return LINES.format(repository=str(ROOT), port=free_port(), password=ADMIN_PASSWORD)


def check(name: str, value: Any) -> Any:
    """Return a value that is what the API's description calls `name`."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": OPENAPI["components"]}
    jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    ).validate(value)
    return value


class Visitor:
    """Somebody with a browser, without its script, on the dashboard."""

    def __init__(self, hub: Hub, user: str) -> None:
        self.session = hub.log_in(user, ADMIN_PASSWORD) if user == "boss" else hub.log_in(user)
        self.url = f"{hub.url}/services/gpus/"

    def page(self) -> str:
        """Open it."""
        answer = self.session.get(self.url)
        assert answer.status_code == 200, answer.text
        return answer.text

    def status(self) -> dict[str, Any]:
        """Return what the JSON API says to who is logged in here."""
        self.page()
        answer = self.session.get(f"{self.url}api/status")
        assert answer.status_code == 200, answer.text
        return check("Status", answer.json())

    def press(self, **fields: str) -> str:
        """Send one of the page's forms, and return the page with what came of it."""
        xsrf = re.search(r'data-xsrf="([^"]+)"', self.page())
        assert xsrf
        answer = self.session.post(self.url, data={**fields, "_xsrf": xsrf[1]})
        assert answer.status_code == 200, answer.text
        return answer.text

    def said(self, **fields: str) -> str:
        """Send one of the page's forms, and return the sentence that came of it."""
        found = re.search(r'<p class="alert [^>]*role="status">([^<]+)</p>', self.press(**fields))
        assert found
        return found[1].replace("&#39;", "'")


class Program:
    """Somebody with a token."""

    def __init__(self, hub: Hub, user: str) -> None:
        browser = hub.log_in(user, ADMIN_PASSWORD) if user == "boss" else hub.log_in(user)
        browser.get(f"{hub.url}/hub/token")
        made = browser.post(
            f"{hub.url}/hub/api/users/{user}/tokens",
            json={"note": "for tests"},
            headers={"X-XSRFToken": browser.cookies.get("_xsrf", path="/hub/")},
        )
        assert made.status_code == 201, made.text
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"token {made.json()['token']}"
        self.url = f"{hub.url}/services/gpus/api"

    def ask(self, method: str, path: str, json: Any = None) -> Any:
        """Call the JSON API; a refusal has the form that is described."""
        answer = self.session.request(method, f"{self.url}{path}", json=json)
        if answer.status_code >= 400:
            assert check("Refusal", answer.json())["status"] == answer.status_code
        return answer

    def status(self) -> dict[str, Any]:
        """Return what the JSON API says."""
        answer = self.ask("GET", "/status")
        assert answer.status_code == 200, answer.text
        return check("Status", answer.json())


def server(program: Program) -> dict[str, Any]:
    """Return what the API says of a user's one server, once it is in what was read last."""
    until(lambda: program.status()["servers"], "the server is seen")
    return program.status()["servers"][0]


def states(status: dict[str, Any]) -> list[str]:
    """Return the GPUs' states, in their order."""
    return [gpu["state"] for gpu in status["gpus"]]
