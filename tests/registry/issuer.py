"""A token issuer and a registry that trusts it: two servers that know nothing of tiffin's own."""

from __future__ import annotations

import json
import secrets
from base64 import b64decode
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from registry.faulty import FaultyProxy
from registry.serving import Handler, Serving

USER, PASSWORD, REFRESH = "somebody", "hunter2-word", "refresh-word-1"


class Issuer(Serving):
    """Gives tokens for scopes, by Docker's GET and by OAuth2's POST."""

    def __init__(self, *, oauth: bool = True, member: str = "token") -> None:
        self.oauth = oauth
        self.member = member
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        """Method and parameters of each request."""
        self.authorizations: list[str | None] = []
        self.tokens: dict[str, frozenset[str]] = {}
        self.lifetime = 300
        issuer = self

        class Requests(Handler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                issuer.asked.append(("GET", query))
                given = self.headers.get("Authorization")
                issuer.authorizations.append(given)
                allowed = True
                if given is not None:
                    allowed = _pair(given) == f"{USER}:{PASSWORD}"
                scopes = query.get("scope", [])
                if given is None and any("push" in scope for scope in scopes):
                    scopes = []  # anonymous may pull
                self.answer(allowed, scopes, "offline_token" in query)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                form = parse_qs(self.rfile.read(length).decode())
                issuer.asked.append(("POST", form))
                issuer.authorizations.append(self.headers.get("Authorization"))
                if not issuer.oauth:
                    self.document(405, {})
                    return
                allowed = form.get("grant_type") == ["refresh_token"]
                allowed = allowed and form.get("refresh_token") == [REFRESH]
                self.answer(allowed, form.get("scope", [""])[0].split(), False)

            def answer(self, allowed: bool, scopes: list[str], refresh: bool) -> None:
                if not allowed:
                    self.document(401, {"details": "incorrect username or password"})
                    return
                token = secrets.token_urlsafe(12)
                issuer.tokens[token] = frozenset(scopes)
                document: dict[str, object] = {issuer.member: token, "expires_in": issuer.lifetime}
                if refresh:
                    document["refresh_token"] = REFRESH
                self.document(200, document)

            def document(self, status: int, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Requests)

    @property
    def scopes(self) -> list[set[str]]:
        """The scopes of each request, in order."""
        return [
            {scope for value in parameters.get("scope", []) for scope in value.split()}
            for _, parameters in self.asked
        ]


def _pair(authorization: str) -> str:
    scheme, _, text = authorization.partition(" ")
    return b64decode(text).decode() if scheme == "Basic" else ""


class Guarded(FaultyProxy):
    """Stands before a registry and wants the issuer's tokens; each is good for ``uses`` requests.

    With ``elsewhere`` (an address), blobs are redirected there.
    """

    def __init__(
        self, upstream: str, issuer: Issuer, *, uses: int = 10_000, elsewhere: str = ""
    ) -> None:
        super().__init__(upstream)
        self.issuer = issuer
        self.uses = uses
        self.elsewhere = elsewhere
        self._used: dict[str, int] = {}

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        wanted = self._wanted(request.command, request.path)
        used = self._used[token] = self._used.get(token, 0) + 1
        if token not in self.issuer.tokens or used > self.uses or not self._covers(token, wanted):
            self.authorizations.append(request.headers.get("Authorization"))
            self.requests.append(f"{request.command} {request.path}")
            request.rfile.read(int(request.headers.get("Content-Length") or 0))
            request.send_response(401)
            challenge = f'Bearer realm="http://{self.issuer.address}/auth",service="the service"'
            if wanted:
                challenge += f',scope="{wanted}"'
            request.send_header("WWW-Authenticate", challenge)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if self.elsewhere and request.command == "GET" and "/blobs/" in request.path:
            self.authorizations.append(request.headers.get("Authorization"))
            request.send_response(307)
            request.send_header("Location", f"http://{self.elsewhere}{request.path}?sign=secret")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        super().handle(request)

    @staticmethod
    def _wanted(method: str, path: str) -> str:
        parts = urlsplit(path).path.split("/")
        if len(parts) < 4 or not parts[2]:
            return ""
        return f"repository:{parts[2]}:{'pull' if method in ('GET', 'HEAD') else 'pull,push'}"

    def _covers(self, token: str, wanted: str) -> bool:
        if not wanted:
            return True
        name, _, actions = wanted.rpartition(":")
        return any(
            scope.rpartition(":")[0] == name
            and set(actions.split(",")) <= set(scope.rpartition(":")[2].split(","))
            for scope in self.issuer.tokens[token]
        )
