"""How a registry is told who asks: its challenges, and the tokens got for them.

A registry answers 401 with *challenges* (``WWW-Authenticate``). ``Basic`` wants user and password
with each request; ``Bearer`` names a *realm* to ask for a token that is good for some *scopes*
(``repository:team/app:pull,push``). With an *identity token* (a refresh token, kept by the login
instead of the password) tokens are got by OAuth2.

Rules: credentials go to the registry itself and to its realm, and to a realm without TLS only if
the registry is insecure too. Tokens are kept in memory, by scopes, until shortly before their end.

Source: distribution's token authentication and OAuth2 documents; RFC 9110, section 11.
"""

from __future__ import annotations

import json
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from tiffin.errors import Forbidden, TiffinError, Unauthorized
from tiffin.registry.credentials import Credentials

CLIENT_ID = "tiffin"
_LIFETIME = 60
"""What a token lives whose answer does not say: as the specification has it."""
_MARGIN = 10
_PARAMETER = re.compile(r'\s*([\w!#$%&\'*+.^`|~-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]*)\s*,?')
_SCHEME = re.compile(r"\s*([\w!#$%&'*+.^`|~-]+)(?:\s+|$)")

Ask = Callable[[str, str, Mapping[str, str], bytes | None], tuple[int, bytes]]
"""Method, URL, headers, body → status and body; follows no redirect, adds no credentials."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a registry offers."""

    scheme: str
    """In lower case."""
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of ``WWW-Authenticate`` headers; what is malformed is left out."""
    found = []
    for text in headers:
        position = 0
        while position < len(text):
            scheme = _SCHEME.match(text, position)
            if scheme is None:
                break
            position = scheme.end()
            parameters = {}
            while (match := _PARAMETER.match(text, position)) is not None:
                value = match[2]
                if value[:1] == '"':
                    value = re.sub(r"\\(.)", r"\1", value[1:-1])
                parameters[match[1].lower()] = value
                position = match.end()
            found.append(Challenge(scheme[1].lower(), parameters))
            while text[position : position + 1] in (",", " "):
                position += 1
    return found


class Authorization:
    """What one client tells one registry about itself; any thread may use it."""

    def __init__(
        self, host: str, credentials: Credentials | None, ask: Ask, *, secure: bool
    ) -> None:
        """``secure``: the registry is spoken to over TLS only, so its realm has to be too."""
        self._host = host
        self._credentials = credentials
        self._ask = ask
        self._secure = secure
        self._lock = threading.Lock()
        self._basic = False
        # By scopes: a token, and when it ends (monotonic).
        self._tokens: dict[frozenset[str], tuple[str, float]] = {}
        self._challenge: Challenge | None = None
        self.identity_token = ""
        """A refresh token that a realm has given at a login."""

    def header(self, scopes: frozenset[str]) -> str | None:
        """The ``Authorization`` to send, as far as it is known already."""
        credentials = self._credentials
        if credentials is not None and credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        with self._lock:
            token, end = self._tokens.get(scopes, ("", 0.0))
            if token and time.monotonic() < end:
                return f"Bearer {token}"
            if self._basic and credentials is not None:
                pair = f"{credentials.username}:{credentials.password}"
                return "Basic " + b64encode(pair.encode()).decode()
        return None

    def answer(
        self, challenges: list[Challenge], scopes: frozenset[str], refused: str | None
    ) -> bool:
        """Do what the challenges ask for; whether the request is worth repeating.

        ``refused`` is the Authorization that was not enough. Raises Unauthorized where the realm
        refuses the credentials, TiffinError where it fails.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                if refused is None or not self._renewed(scopes, refused):
                    if self._credentials is not None and self._credentials.registry_token:
                        return False
                    self._fetch(challenge, scopes)
                return True
        for challenge in challenges:
            if challenge.scheme == "basic":
                credentials = self._credentials
                if not credentials or not credentials.username or refused is not None:
                    return False
                with self._lock:
                    self._basic = True
                return True
        return False

    def _renewed(self, scopes: frozenset[str], refused: str) -> bool:
        """Whether another thread has got a new token meanwhile; the refused one is forgotten.

        A registry may refuse a token before its time: its clock differs, or its key is new.
        """
        with self._lock:
            token, _ = self._tokens.get(scopes, ("", 0.0))
            if token and f"Bearer {token}" != refused:
                return True
            self._tokens.pop(scopes, None)
        return False

    def login(self, challenges: list[Challenge]) -> bool:
        """Like :meth:`answer` for a login, which wants a refresh token too."""
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                self._fetch(challenge, frozenset(), offline=True)
                return True
        return self.answer(challenges, frozenset(), None)

    def _fetch(
        self, challenge: Challenge, scopes: frozenset[str], *, offline: bool = False
    ) -> None:
        realm = challenge.parameters["realm"]
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise TiffinError(f"registry {self._host} names a malformed realm")
        if self._secure and parts.scheme != "https":
            raise Forbidden(
                f"registry {self._host} asks for credentials to be sent to"
                f" {parts.hostname}, which has no TLS: refused"
            )
        named = challenge.parameters.get("scope", "")
        wanted = sorted(scopes | set(named.split()))
        service = challenge.parameters.get("service", "")
        credentials = self._credentials or Credentials()
        document = None
        if credentials.identity_token:
            document = self._oauth(realm, service, wanted, credentials)
        if document is None:
            document = self._get(realm, service, wanted, credentials, offline)
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token:
            raise TiffinError(f"authorization server {parts.netloc} did not include a token")
        lifetime = document.get("expires_in")
        if not isinstance(lifetime, int | float) or lifetime < _LIFETIME:
            lifetime = _LIFETIME
        if offline and isinstance(document.get("refresh_token"), str):
            self.identity_token = document["refresh_token"]
        with self._lock:
            self._tokens[scopes] = (token, time.monotonic() + lifetime - _MARGIN)

    def _oauth(
        self, realm: str, service: str, scopes: list[str], credentials: Credentials
    ) -> dict[str, Any] | None:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "service": service,
            "client_id": CLIENT_ID,
            "scope": " ".join(scopes),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, body = self._ask("POST", realm, headers, urlencode(form).encode())
        if status in (404, 405) and credentials.username:
            # A realm that is older than OAuth2.
            return None
        return self._document(realm, status, body)

    def _get(
        self,
        realm: str,
        service: str,
        scopes: list[str],
        credentials: Credentials,
        offline: bool,
    ) -> dict[str, Any]:
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        if credentials.username:
            query.append(("account", credentials.username))
            pair = f"{credentials.username}:{credentials.password}"
            headers["Authorization"] = "Basic " + b64encode(pair.encode()).decode()
        if offline:
            query += [("offline_token", "true"), ("client_id", CLIENT_ID)]
        separator = "&" if urlsplit(realm).query else "?"
        status, body = self._ask("GET", f"{realm}{separator}{urlencode(query)}", headers, None)
        return self._document(realm, status, body)

    def _document(self, realm: str, status: int, body: bytes) -> dict[str, Any]:
        where = urlsplit(realm).netloc
        if status in (400, 401, 403):
            raise Unauthorized(
                f"unauthorized: {where} refuses the credentials for {self._host}: log in again"
                if self._credentials
                else f"unauthorized: authentication required: log in to {self._host} first"
            )
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if status != 200 or not isinstance(document, dict):
            raise TiffinError(f"authorization server {where} answers {status} instead of a token")
        return document
