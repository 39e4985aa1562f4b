"""Who says who somebody is, on this machine: a GitHub for OAuth 2, and a Moodle for LTI 1.3."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

LTI = "https://purl.imsglobal.org/spec/lti/claim/"

# (status, headers, body)
Answer = tuple[int, dict[str, str], bytes]


class IdentityProvider:
    """A server whose paths are methods; `user` is who sits before the browser that comes next."""

    def __init__(self) -> None:
        self.user = "ada"
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(_fields(body.decode()))

            def _answer(self, form: dict[str, str]) -> None:
                parts = urlsplit(self.path)
                token = (self.headers.get("Authorization") or "").rpartition(" ")[2]
                answer = provider.answer(parts.path, {**_fields(parts.query), **form}, token)
                status, headers, body = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def answer(self, path: str, fields: dict[str, str], token: str) -> Answer:
        """Answer a request.

        Args:
            path: its path.
            fields: of its query and its form.
            token: the token that it bears.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GitHub(IdentityProvider):
    """GitHub, where Ada and Ben are members of our-lab, which only members may know of Ben."""

    def __init__(self) -> None:
        # Of each code and token: whose it is, and its scopes.
        self._given: dict[str, tuple[str, list[str]]] = {}
        super().__init__()

    def answer(self, path: str, fields: dict[str, str], token: str) -> Answer:
        """Answer as https://docs.github.com/en/apps/oauth-apps and its REST API do."""
        if path == "/login/oauth/authorize":
            code = secrets.token_hex(8)
            self._given[code] = self.user, fields.get("scope", "").split()
            back = urlencode({"code": code, "state": fields["state"]})
            return 302, {"Location": f"{fields['redirect_uri']}?{back}"}, b""
        if path == "/login/oauth/access_token":
            if fields["client_secret"] != "a secret" or fields["code"] not in self._given:
                return _as_json({"error": "bad_verification_code"})
            made = secrets.token_hex(8)
            self._given[made] = self._given.pop(fields["code"])
            return _as_json({"access_token": made, "token_type": "bearer"})
        if token not in self._given:
            return _as_json({"message": "Bad credentials"}, 401)
        user, scopes = self._given[token]
        if path == "/api/v3/user":
            return _as_json({"login": user, "email": f"{user}@example.org"})
        known = {"ada", "ben"} if "read:org" in scopes else {"ada"}
        organisation, member = path.removeprefix("/api/v3/orgs/").split("/members/")
        is_member = organisation == "our-lab" and member == user and user in known
        return (204 if is_member else 404), {}, b""


class Moodle(IdentityProvider):
    """Moodle, or another platform for LTI 1.3, which knows one hub by its client id."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        # Changes what it says, as an attacker would.
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda claims: claims
        super().__init__()

    def answer(self, path: str, fields: dict[str, str], token: str) -> Answer:
        """Answer as https://www.imsglobal.org/spec/security/v1p0/ asks of a platform."""
        if path == "/mod/lti/certs.php":
            public = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
            return _as_json({"keys": [{**public, "kid": "1", "alg": "RS256", "use": "sig"}]})
        assert path == "/mod/lti/auth.php"
        assert (fields["response_type"], fields["response_mode"]) == ("id_token", "form_post")
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": fields["client_id"],
            "sub": "17",
            "email": f"{fields['login_hint']}@example.org",
            "nonce": fields["nonce"],
            "iat": now,
            "exp": now + 60,
            f"{LTI}message_type": "LtiResourceLinkRequest",
            f"{LTI}version": "1.3.0",
            f"{LTI}deployment_id": "1",
            f"{LTI}target_link_uri": fields["redirect_uri"],
            f"{LTI}resource_link": {"id": "notebooks"},
            f"{LTI}roles": ["http://purl.imsglobal.org/vocab/lis/v2/membership#Learner"],
        }
        signed = jwt.encode(self.change(claims), self._key, "RS256", headers={"kid": "1"})
        shown = (
            f'<form action="{escape(fields["redirect_uri"])}" method="post">'
            f'<input name="id_token" value="{signed}">'
            f'<input name="state" value="{escape(fields["state"])}"></form>'
        )
        return 200, {"Content-Type": "text/html"}, shown.encode()


def _fields(text: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(text).items()}


def _as_json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
