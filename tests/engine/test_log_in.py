"""The handbook's ways to log in, with what they log in at on this machine."""

from __future__ import annotations

import json
import re
from contextlib import closing
from importlib.metadata import version
from typing import Any

import jupyterhub
import pytest
import requests
from bs4 import BeautifulSoup

from ..support.hubs import Hub
from ..support.identity_providers import GitHub, Moodle
from ..support.paths import ROOT

pytestmark = pytest.mark.engine

PAGE = (ROOT / "docs" / "how-to" / "log-in.md").read_text()
# NativeAuthenticator's log-in page uses what JupyterHub has had until 5.
IS_6 = jupyterhub.version_info[0] >= 6
NATIVE_FAILS = IS_6 and version("jupyterhub-nativeauthenticator") == "1.3.0"


def snippet(word: str) -> str:
    """Return the only block of the page that has a word in it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [each for each in blocks if word in each]
    return found


def placed(text: str, **given: str) -> str:
    """Return a block whose lines for these traits have other values.

    Args:
        given: trait -> Python code.
    """
    for trait, value in given.items():
        text, count = re.subn(rf"(?m)^(c\.\w+\.{trait} = ).*$", rf"\g<1>{value}", text)
        assert count == 1, trait
    assert "…" not in text
    assert "example.org" not in text
    return text


def browser() -> requests.Session:
    """Return what keeps cookies and follows redirections."""
    session = requests.Session()
    session.trust_env = False
    return session


def who(hub: Hub, session: requests.Session) -> str | None:
    """Return as whom a browser is logged in."""
    page = session.get(f"{hub.url}/hub/home", allow_redirects=False)
    if page.status_code != 200:
        return None
    (name,) = re.findall(r'^ *user: "(.*)",$', page.text, re.M)
    return json.loads(f'"{name}"')


# ---- OAuth 2 -------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_member_of_the_organisation_logs_in_by_oauth_and_nobody_else(make_hub):
    with closing(GitHub()) as github:
        lines = placed(
            snippet("GitHubOAuthenticator"),
            client_id='"our-hub"',
            client_secret='"a secret"',
            oauth_callback_url='c.JupyterHub.bind_url + "/hub/oauth_callback"',
        )
        # Of the lines that these replace one would let everybody in.
        at = f'c.GitHubOAuthenticator.github_url = "{github.url}"'
        hub = make_hub("c.Authenticator.allow_all = False", lines, at)
        # Ben's membership is one that only members see.
        for user in ("ada", "ben"):
            github.user, session = user, browser()
            answer = session.get(f"{hub.url}/hub/oauth_login")
            assert answer.ok, answer.text
            assert who(hub, session) == user
        github.user, session = "eve", browser()
        answer = session.get(f"{hub.url}/hub/oauth_login")
        assert answer.status_code == 403
        assert who(hub, session) is None
        # Nor is anybody who is sent there by another's link.
        forged = browser().get(f"{hub.url}/hub/oauth_callback?code=0&state=0")
        assert forged.status_code == 400


# ---- LTI 1.3 -------------------------------------------------------------------------------------


def launch(hub: Hub, moodle: Moodle, user: str, client: str = "our-hub") -> tuple[Any, Any]:
    """Press a course's link to a hub; return the browser, and the answer that it ends with."""
    session = browser()
    begin = {
        "iss": moodle.url,
        "login_hint": user,
        "client_id": client,
        "target_link_uri": f"{hub.url}/hub/home",
    }
    page = session.post(f"{hub.url}/hub/lti13/oauth_login", data=begin)
    form = BeautifulSoup(page.content, "html.parser").form
    assert form, page.text
    fields = {each["name"]: each["value"] for each in form.select("input")}
    return session, session.post(form["action"], data=fields)


@pytest.mark.thorough
def test_a_course_s_link_logs_its_student_in_by_lti(make_hub):
    with closing(Moodle()) as moodle:
        lines = placed(
            snippet("LTI13Authenticator"),
            issuer=f'"{moodle.url}"',
            client_id='["our-hub"]',
            authorize_url=f'"{moodle.url}/mod/lti/auth.php"',
            jwks_endpoint=f'"{moodle.url}/mod/lti/certs.php"',
        )
        hub = make_hub(lines)
        session, answer = launch(hub, moodle, "ada")
        assert answer.ok, answer.text
        assert answer.url == f"{hub.url}/hub/home"
        assert who(hub, session) == "ada@example.org"
        for change in (
            {"iss": "http://127.0.0.1:1"},
            {"aud": "another-hub"},
            {"nonce": "another's"},
            {"exp": 1},
        ):
            moodle.change = lambda claims, change=change: {**claims, **change}
            session, answer = launch(hub, moodle, "ada")
            assert 400 <= answer.status_code < 500, change
            assert who(hub, session) is None


# ---- accounts of the hub's own -------------------------------------------------------------------


def sign_up(hub: Hub, user: str, password: str) -> str:
    """Ask for an account; return what the page says to that."""
    session = browser()
    session.get(f"{hub.url}/hub/signup")
    form = {
        "username": user,
        "signup_password": password,
        "signup_password_confirmation": password,
        "_xsrf": session.cookies.get("_xsrf", path="/hub/"),
    }
    page = session.post(f"{hub.url}/hub/signup", data=form)
    assert page.ok, page.text
    return BeautifulSoup(page.content, "html.parser").select_one(".alert").text.strip()


def log_in(hub: Hub, user: str, password: str) -> tuple[requests.Session, Any]:
    """Return a browser, and the answer to its log-in."""
    session = browser()
    session.get(f"{hub.url}/hub/login")
    xsrf = session.cookies.get("_xsrf", path="/hub/")
    form = {"username": user, "password": password, "_xsrf": xsrf}
    return session, session.post(f"{hub.url}/hub/login", data=form, allow_redirects=False)


def all_of_it(hub: Hub) -> None:
    """Sign up, be let in by an administrator, and log in."""
    # An administrator of the configuration's needs nobody's word.
    assert "create" in sign_up(hub, "ada", "a long password")
    session, answer = log_in(hub, "ada", "a long password")
    assert answer.status_code == 302
    assert who(hub, session) == "ada"
    sign_up(hub, "ben", "another password")
    refused, answer = log_in(hub, "ben", "another password")
    assert "has not been authorized" in answer.text
    assert who(hub, refused) is None
    assert session.get(f"{hub.url}/hub/authorize/ben").ok
    entered, answer = log_in(hub, "ben", "another password")
    assert answer.status_code == 302
    assert who(hub, entered) == "ben"
    assert log_in(hub, "ben", "a wrong password")[1].status_code != 302


@pytest.mark.thorough
def test_accounts_of_the_hub_s_own_log_in_where_the_page_says_that_they_do(make_hub):
    said = ("this NativeAuthenticator uses what JupyterHub 6 hasn't",) if NATIVE_FAILS else ()
    hub = make_hub(snippet("NativeAuthenticator"), doctor=said)
    if not NATIVE_FAILS:
        all_of_it(hub)
        return
    assert "Its version 1.3.0" in PAGE
    sign_up(hub, "ada", "a long password")
    session, answer = log_in(hub, "ada", "a long password")
    assert answer.status_code == 500
    assert "'LoginHandler' object has no attribute 'statsd'" in hub.log()
    assert who(hub, session) is None
