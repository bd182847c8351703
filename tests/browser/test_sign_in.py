"""Sign-in in a real browser, with an OpenID Connect provider inside this test."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlparse

import pytest

from tests.deadline import wait_until
from tests.ports import free_port

pytest.importorskip("authlib")

UNUSABLE = "The sign-in settings of this server cannot be used."


def handler_of(provider):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            address = urlparse(self.path)
            if address.path == "/authorize":
                asked = {name: values[0] for name, values in parse_qs(address.query).items()}
                provider.nonce = asked.get("nonce")
                self.send_response(302)
                self.send_header(
                    "Location",
                    f"{asked['redirect_uri']}?{urlencode({'code': 'c', 'state': asked['state']})}",
                )
                self.end_headers()
            else:
                self._answer(provider.keys() if address.path == "/keys" else provider.metadata())

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(provider.token())

        def _answer(self, payload):
            body = json.dumps(payload).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


class Provider:
    """Provider that signs everybody in as Ann."""

    def __init__(self):
        from joserfc.jwk import RSAKey

        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.nonce = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def metadata(self):
        places = {
            "authorization_endpoint": "authorize",
            "token_endpoint": "token",
            "jwks_uri": "keys",
        }
        return {
            "issuer": self.url,
            **{name: f"{self.url}/{path}" for name, path in places.items()},
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def keys(self):
        return {"keys": [self.key.as_dict(private=False)]}

    def token(self):
        from joserfc import jwt

        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": "1",
            "aud": "thaw",
            "iat": now,
            "exp": now + 600,
            "email": "ann@example.org",
        }
        signed = jwt.encode(
            {"alg": "RS256", "kid": "one"}, claims | {"nonce": self.nonce}, self.key
        )
        return {"access_token": "a", "token_type": "Bearer", "expires_in": 600, "id_token": signed}


@pytest.fixture
def provider():
    running = Provider()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def secrets(provider, port, tmp_path):
    """Return the file with the secrets of a server on ``port``."""
    file = tmp_path / "secrets.toml"
    file.write_text(
        f"""[auth]
redirect_uri = "http://127.0.0.1:{port}/oauth2callback"
cookie_secret = "{"s" * 40}"
client_id = "thaw"
client_secret = "secret"
server_metadata_url = "{provider.url}/.well-known/openid-configuration"
"""
    )
    return file


def test_pages_show_nothing_before_sign_in_nor_once_its_settings_break(
    secrets, start, port, page, tab, tmp_path
):
    def shows_nothing(page):
        return page.locator("[data-testid=stPageLink], [data-testid=stMetric]").count() == 0

    server = start(tmp_path, port, [f"--secrets.files={secrets}"])
    page.goto(f"{server.url}/train")
    sign_in = page.get_by_role("button", name="Sign in")
    sign_in.wait_for()
    assert shows_nothing(page)
    sign_in.click()
    page.get_by_role("button", name="Sign out").click()
    sign_in.wait_for()
    assert shows_nothing(page)
    sign_in.click()
    page.get_by_role("link", name="Train").wait_for()

    visitor = tab()  # who has not signed in
    whole = secrets.read_text()
    secrets.write_text(whole.replace('client_id = "thaw"', 'client_id = "thaw'))
    either = visitor.get_by_role("button", name="Sign in").or_(visitor.get_by_text(UNUSABLE))

    def is_refused():
        visitor.goto(f"{server.url}/runs")
        either.wait_for()
        return visitor.get_by_text(UNUSABLE).count()

    wait_until(is_refused, "the server does not look at its secrets")
    page.get_by_role("link", name="Dataset").click()  # without loading the page anew
    for shown in (page, visitor):
        shown.get_by_text(UNUSABLE).wait_for()
        assert shows_nothing(shown)
        assert shown.get_by_test_id("stButton").count() == 0
        assert "client_id" not in shown.content()
    assert "secrets.toml" in (tmp_path / "server.log").read_text()
    secrets.write_text(whole)
    visitor.reload()
    visitor.get_by_role("button", name="Sign in").wait_for()
