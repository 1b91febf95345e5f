"""Requests to one endpoint: connections, TLS, proxies, redirects, retries.

Rules:

- What may be repeated is, after connection failures, 429 and 5xx: a few times, each wait twice as
  long as the one before, or as long as ``Retry-After`` says. A wait that is too long to be patient
  for is an error that says so.
- ``Authorization`` and client certificates go to the endpoint itself. A redirect to another host
  is followed without them, never from https to http, and a 401 there is not answered.
- Plain HTTP and certificates that nobody signed only for endpoints that are insecure.
- Proxies are the environment's (``HTTPS_PROXY``, ``HTTP_PROXY``, ``NO_PROXY``); this machine is
  reached without one.
"""

from __future__ import annotations

import email.utils
import random
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    HTTPError,
    InsecureRequestWarning,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)

from tiffin.errors import (
    Forbidden,
    InvalidParameter,
    TiffinError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from tiffin.registry.answers import BROKEN, DOCUMENT_LIMIT, Answer, shown
from tiffin.registry.authorization import Authorization, parse_challenges
from tiffin.registry.credentials import Credentials
from tiffin.registry.endpoints import Endpoint, is_loopback

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Failures that may be gone at the next attempt."""
_REDIRECT_LIMIT = 10
_USER_AGENT = "tiffin"

FAILED: tuple[type[Exception], ...] = (Unreachable, HTTPError, OSError)
"""What a request raises where the endpoint can't be reached."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and how long, to wait for a registry that fails."""

    attempts: int = 5
    first: float = 0.25
    """Seconds before the second attempt; doubled each time, and up to half as much at random."""
    longest: float = 60.0
    """Seconds; what is asked to be waited for longer is an error."""
    connect: float = 15.0
    read: float = 60.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failure of an attempt (counted from 0)."""
        return min(self.first * 2.0**attempt, self.longest) * random.uniform(1.0, 1.5)


class Cancelled(TiffinError):
    """Whoever wanted the answer is gone."""


class _Broken(Exception):
    """A connection failed, and with whom: a redirect may lead elsewhere."""

    def __init__(self, error: Exception, host: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.host = host


class Transport:
    """Speaks to one endpoint; any thread may use it."""

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials | None = None,
        *,
        patience: Patience | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.endpoint = endpoint
        self.patience = patience or Patience()
        self.cancelled = cancelled
        self._scheme = endpoint.schemes[0] if len(endpoint.schemes) == 1 else ""
        self._finding = threading.Lock()
        self._own = self._context()
        self._pooling = threading.Lock()
        # By whether it is for the endpoint itself, and by proxy.
        self._pools: dict[tuple[bool, str | None], urllib3.PoolManager] = {}
        self.authorization = Authorization(
            endpoint.host,
            credentials,
            self._ask_realm,
            secure=endpoint.schemes == ("https",) and endpoint.verify,
        )

    def close(self) -> None:
        """Close all connections."""
        with self._pooling:
            for pool in self._pools.values():
                pool.clear()

    def _context(self) -> ssl.SSLContext:
        endpoint = self.endpoint
        context = ssl.create_default_context()
        try:
            for path in endpoint.authorities:
                context.load_verify_locations(path)
            if endpoint.certificate is not None:
                context.load_cert_chain(*endpoint.certificate)
        except (ssl.SSLError, OSError) as error:
            raise InvalidParameter(
                f"the certificates for {endpoint.host} can't be used: {error}"
            ) from error
        if not endpoint.verify:
            # It is insecure by its name in the configuration: no need to say so each time.
            urllib3.disable_warnings(InsecureRequestWarning)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _pool(self, url: str) -> urllib3.PoolManager:
        """The connections for a URL: through the proxy of its host, if it has one, and with this
        endpoint's certificates only to the endpoint itself."""
        parts = urlsplit(url)
        own = parts.netloc == self.endpoint.host
        proxy = _proxy(parts.scheme, parts.netloc)
        with self._pooling:
            found = self._pools.get((own, proxy))
            if found is None:
                found = self._pools[own, proxy] = self._manager(proxy, self._own if own else None)
            return found

    def _manager(self, proxy: str | None, context: ssl.SSLContext | None) -> urllib3.PoolManager:
        options: dict[str, Any] = {
            "num_pools": 8,
            "maxsize": 16,
            "timeout": urllib3.Timeout(connect=self.patience.connect, read=self.patience.read),
            "retries": False,
        }
        if context is not None:
            options["ssl_context"] = context
        if proxy is None:
            return urllib3.PoolManager(**options)
        parts = urlsplit(proxy)
        headers = None
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers = urllib3.make_headers(proxy_basic_auth=pair)
            proxy = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)

    # Requests.

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        scopes: frozenset[str] = frozenset(),
        repeat: bool = True,
        redirect: bool = True,
    ) -> Answer:
        """Send a request for a path (``/v2/…``) or a URL, and give the answer, whatever its status.

        ``repeat``: it does no harm to send it again. Raises Unreachable, TooManyRequests,
        Unauthorized (the authorization server refuses), Cancelled.
        """
        attempt = 0
        tried = False
        while True:
            if self.cancelled():
                raise Cancelled(f"the request to {self.endpoint.host} is no longer wanted")
            authorization = self.authorization.header(scopes)
            delay = self.patience.delay(attempt)
            last = not repeat or attempt + 1 >= self.patience.attempts
            try:
                answer = self._follow(method, target, headers or {}, body, authorization, redirect)
            except _Broken as broken:
                error = broken.error
                # Nobody listens, or there is no such host: that rarely passes in seconds.
                nobody = attempt > 0 and isinstance(error, NewConnectionError | NameResolutionError)
                if last or nobody or _hopeless(error):
                    raise self._unreachable(error, broken.host) from error
            else:
                if answer.status == 401 and self._is_own(answer.url) and not tried:
                    challenges = parse_challenges(_all(answer.headers, "WWW-Authenticate"))
                    answer.close()
                    tried = True
                    if self.authorization.answer(challenges, scopes, authorization):
                        continue
                    raise self._unauthorized()
                if answer.status not in _PASSING:
                    return answer
                wanted = _retry_after(answer.headers)
                if wanted is not None:
                    delay = max(wanted, 0.0)
                # A request that must not be repeated was refused, not begun, by 429 and 503.
                again = attempt + 1 < self.patience.attempts and answer.status in (429, 503)
                if (last and not again) or delay > self.patience.longest:
                    if answer.status == 429:
                        answer.close()
                        raise TooManyRequests(
                            f"toomanyrequests: registry {self.endpoint.host} wants to be asked"
                            + (f" again in {wanted:.0f} seconds" if wanted else " less often")
                        )
                    return answer
                answer.close()
            attempt += 1
            self.wait(delay)

    def fetch(
        self,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        scopes: frozenset[str] = frozenset(),
        limit: int = DOCUMENT_LIMIT,
    ) -> tuple[Answer, bytes]:
        """Get a document, anew where the connection breaks inside it.

        Gives the answer and its body; one of another status than 200 is not read, but to be closed.
        Raises what :meth:`request` does, and InvalidParameter for a document that is too long.
        """
        attempt = 0
        while True:
            answer = self.request("GET", target, headers=headers, scopes=scopes)
            if answer.status != 200:
                return answer, b""
            try:
                body = answer.whole(limit)
                if answer.length is not None and len(body) < answer.length:
                    raise ConnectionError("the answer ended early")
                return answer, body
            except BROKEN as error:
                answer.close()
                attempt += 1
                if attempt == self.patience.attempts:
                    raise Unreachable(
                        f"registry {self.endpoint.host} broke the connection in the middle of"
                        f" {shown(target)}: {error}"
                    ) from error
            self.wait(self.patience.delay(attempt - 1))

    def login(self, target: str) -> Answer:
        """Ask for a path with credentials, once; a token is asked for with a refresh token to it.

        Gives the answer, whatever its status. Raises Unreachable, Unauthorized (the authorization
        server refuses).
        """
        try:
            answer = self._follow("GET", target, {}, None, None, True)
            if answer.status != 401:
                return answer
            challenges = parse_challenges(_all(answer.headers, "WWW-Authenticate"))
            if not self.authorization.login(challenges):
                return answer
            answer.close()
            header = self.authorization.header(frozenset())
            return self._follow("GET", target, {}, None, header, True)
        except _Broken as broken:
            raise self._unreachable(broken.error, broken.host) from broken.error

    def wait(self, seconds: float) -> None:
        """Sleep, unless nobody waits any more; raises Cancelled then."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.cancelled():
                raise Cancelled(f"the request to {self.endpoint.host} is no longer wanted")
            time.sleep(min(left, 0.2))

    def _follow(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        authorization: str | None,
        redirect: bool,
    ) -> Answer:
        url = target
        for _ in range(_REDIRECT_LIMIT):
            try:
                answer = self._send(method, url, headers, body, authorization)
            except BROKEN as error:
                raise _Broken(error, urlsplit(url).netloc or self.endpoint.host) from error
            location = answer.headers.get("Location")
            if not redirect or answer.status not in _REDIRECTS or not location:
                return answer
            answer.close()
            before, url = answer.url, urljoin(answer.url, location)
            if urlsplit(before).scheme == "https" and urlsplit(url).scheme != "https":
                raise Forbidden(
                    f"refused a redirect from {shown(before)} to {shown(url)}, which has no TLS"
                )
            if answer.status == 303 and method != "HEAD":
                method, body = "GET", None
        raise TiffinError(f"{shown(target)} of {self.endpoint.host} redirects too often")

    def _send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        authorization: str | None,
    ) -> Answer:
        if not target.startswith("/"):
            own = self._is_own(target)
            return self._open(method, target, headers, body, authorization if own else None)
        path = self.endpoint.prefix + target
        if self._scheme:
            url = f"{self._scheme}://{self.endpoint.host}{path}"
            return self._open(method, url, headers, body, authorization)
        with self._finding:
            return self._find(method, path, headers, body, authorization)

    def _find(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        authorization: str | None,
    ) -> Answer:
        """The first request to an insecure endpoint finds out what it speaks."""
        failure: Exception | None = None
        for scheme in (self._scheme,) if self._scheme else self.endpoint.schemes:
            url = f"{scheme}://{self.endpoint.host}{path}"
            try:
                answer = self._open(method, url, headers, body, authorization)
            except BROKEN as error:
                if _speaks_tls(error):
                    raise
                failure = error
            else:
                self._scheme = scheme
                return answer
        assert failure is not None
        raise failure

    def _open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        authorization: str | None,
    ) -> Answer:
        sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        if authorization is not None:
            sent["Authorization"] = authorization
        response = self._pool(url).request(
            method,
            url,
            body=body,
            headers=sent,
            preload_content=False,
            redirect=False,
            retries=False,
        )
        return Answer(response, url)

    def _is_own(self, url: str) -> bool:
        parts = urlsplit(url)
        return parts.netloc == self.endpoint.host and (
            parts.scheme == self._scheme or (not self._scheme and parts.scheme == "https")
        )

    def _ask_realm(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        for attempt in range(self.patience.attempts):
            try:
                answer = self._open(method, url, headers, body, None)
                data = answer.whole()
                if answer.status not in _PASSING or attempt + 1 == self.patience.attempts:
                    return answer.status, data
            except BROKEN as error:
                if attempt + 1 == self.patience.attempts or _hopeless(error):
                    raise self._unreachable(error, urlsplit(url).netloc) from error
            self.wait(self.patience.delay(attempt))
        raise AssertionError

    def _unauthorized(self) -> Unauthorized:
        return Unauthorized(
            f"unauthorized: authentication required: log in to {self.endpoint.host} first, or again"
        )

    def _unreachable(self, error: Exception, host: str) -> TiffinError:
        host = host.rpartition("@")[2]
        if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Unreachable(
                f"tls: failed to verify the certificate of registry {host}: {_reason(error)}: put"
                f" its CA into certs.d/{host}/ca.crt"
            )
        if isinstance(error, SSLError) and _wants_certificate(error):
            if self.endpoint.certificate is None or host != self.endpoint.host:
                return Unreachable(
                    f"tls: registry {host} wants a client certificate: put it and its key into"
                    f" certs.d/{host}/client.cert and client.key"
                )
            return Unreachable(
                f"tls: registry {host} refuses the client certificate"
                f" {self.endpoint.certificate[0]}: {_reason(error)}"
            )
        return Unreachable(f"registry {host} can't be reached: {_reason(error)}")


def _proxy(scheme: str, host: str) -> str | None:
    if host and (is_loopback(host) or _bypassed(host)):
        return None
    proxies = urllib.request.getproxies_environment()
    return proxies.get(scheme) or proxies.get("all")


def _bypassed(host: str) -> bool:
    # Public in what it does, and missing from the published types.
    bypass: Callable[[str], bool] = vars(urllib.request)["proxy_bypass_environment"]
    return bool(bypass(host))


def _hopeless(error: Exception) -> bool:
    return _speaks_tls(error) or (
        isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
    )


def _speaks_tls(error: Exception) -> bool:
    """Whether TLS is refused in its own words: plain HTTP is then no answer to that."""
    return isinstance(error, SSLError) and "_ALERT_" in str(error)


def _wants_certificate(error: Exception) -> bool:
    # What TLS 1.3 has an alert of its own for is a bad certificate to servers of TLS 1.2.
    return any(
        f"ALERT_{alert}" in str(error)
        for alert in ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA")
    )


def _reason(error: Exception) -> str:
    text = str(error)
    # urllib3 puts the object that failed before the sentence.
    if "object at 0x" in text:
        text = text.rpartition(">: ")[2] or text.rpartition("): ")[2] or text
    if text.startswith("HTTP") and "): " in text:
        text = text.partition("): ")[2]
    return text or type(error).__name__


def _all(headers: Mapping[str, str], name: str) -> list[str]:
    getlist = getattr(headers, "getlist", None)
    if getlist is not None:
        return list(getlist(name))
    return [headers[name]] if name in headers else []


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    if text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment.timestamp() - time.time()
