"""Credentials of registries: Docker's ``config.json``, credential helpers, and the API's header.

Words: the *key* of a registry in ``config.json`` is its host, and for Docker Hub
``https://index.docker.io/v1/``. A *helper* is a program ``docker-credential-NAME`` that keeps
secrets elsewhere: one for all registries (``credsStore``), or for single ones (``credHelpers``).

Rules: the file has mode 0600 and is replaced in one step; members that tiffin doesn't know stay;
secrets are never part of a message, of ``repr`` or of a command line.

The command line imports this module, so it imports little.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode

from tiffin.errors import InvalidParameter, NotFound, TiffinError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HUB_KEY = "https://index.docker.io/v1/"
_HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
_TOKEN_USER = "<token>"


class Credentials:
    """Who asks: a user with a password, or with an identity token got at the login."""

    __slots__ = ("identity_token", "password", "registry_token", "username")

    def __init__(
        self,
        username: str = "",
        password: str = "",
        identity_token: str = "",
        registry_token: str = "",
    ) -> None:
        self.username = username
        self.password = password
        self.identity_token = identity_token
        self.registry_token = registry_token

    def __repr__(self) -> str:
        return f"Credentials({self.username!r})"

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    @classmethod
    def of_document(cls, document: Any) -> Credentials:
        """From an entry of ``auths``, or the API's AuthConfig; raises InvalidParameter."""
        if not isinstance(document, dict):
            raise InvalidParameter("credentials must be an object")
        fields = {}
        for name in ("username", "password", "identitytoken", "registrytoken", "auth"):
            value = document.get(name) or ""
            if not isinstance(value, str):
                raise InvalidParameter(f"{name} of credentials must be a string")
            fields[name] = value
        if fields["auth"] and not fields["username"]:
            try:
                user, colon, password = b64decode(fields["auth"]).decode().partition(":")
            except ValueError:
                colon = ""
            if not colon:
                raise InvalidParameter(
                    "malformed credentials: auth must be base64 of user:password"
                )
            fields["username"], fields["password"] = user, password.rstrip("\0")
        return cls(
            fields["username"],
            fields["password"],
            fields["identitytoken"],
            fields["registrytoken"],
        )

    def header(self, server: str) -> str:
        """The value of the API's ``X-Registry-Auth``."""
        document = {
            "username": self.username,
            "password": self.password,
            "identitytoken": self.identity_token,
            "serveraddress": server,
        }
        data = {name: value for name, value in document.items() if value}
        return urlsafe_b64encode(json.dumps(data).encode()).decode()


def parse_header(value: str | None) -> Credentials | None:
    """The credentials of an ``X-Registry-Auth`` header; None if there are none.

    Raises InvalidParameter for a malformed one.
    """
    if not value:
        return None
    try:
        document = json.loads(urlsafe_b64decode(value + "=" * (-len(value) % 4)))
    except (ValueError, RecursionError):
        raise InvalidParameter("malformed X-Registry-Auth header: not base64 of JSON") from None
    return Credentials.of_document(document or {}) or None


def parse_config_header(value: str) -> dict[str, Credentials]:
    """The credentials of an ``X-Registry-Config`` header, by host: a build may need many.

    Raises InvalidParameter for a malformed one.
    """
    try:
        # Docker's clients differ in the alphabet that they use.
        text = value.replace("+", "-").replace("/", "_")
        document = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidParameter("malformed X-Registry-Config header: not base64 of JSON")
    found = {host_of(key): Credentials.of_document(entry) for key, entry in document.items()}
    return {host: credentials for host, credentials in found.items() if credentials}


def config_header(credentials: dict[str, Credentials]) -> str:
    """The value of ``X-Registry-Config`` for credentials by host."""
    document = {}
    for host, one in credentials.items():
        fields = {
            "username": one.username,
            "password": one.password,
            "identitytoken": one.identity_token,
            "serveraddress": key_of(host),
        }
        document[key_of(host)] = {name: value for name, value in fields.items() if value}
    return urlsafe_b64encode(json.dumps(document).encode()).decode()


def key_of(domain: str) -> str:
    """The key of a registry in ``config.json``."""
    return HUB_KEY if domain in _HUB_HOSTS else domain


def host_of(key: str) -> str:
    """The host that a key names: ``https://host/v1/`` and ``host`` are the same."""
    bare = key.partition("://")[2] or key
    host = bare.partition("/")[0]
    return "docker.io" if host in _HUB_HOSTS else host


class CredentialsFile:
    """Docker's ``config.json`` of a user."""

    def __init__(self, path: str | None = None) -> None:
        """``path`` of the file; by default in ``$DOCKER_CONFIG``, else ``~/.docker``."""
        if path is None:
            folder = os.environ.get("DOCKER_CONFIG") or os.path.join(
                os.path.expanduser("~"), ".docker"
            )
            path = os.path.join(folder, "config.json")
        self.path = path

    def _read(self) -> dict[str, Any]:
        try:
            with open(self.path, encoding="utf-8") as file:
                document = json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not JSON"
            raise InvalidParameter(f"{self.path} can't be read: {reason}") from None
        if not isinstance(document, dict):
            raise InvalidParameter(f"{self.path} can't be read: not an object")
        return document

    def _write(self, document: dict[str, Any]) -> None:
        folder = os.path.dirname(self.path) or "."
        os.makedirs(folder, mode=0o700, exist_ok=True)
        # A link stays one: what it points to is replaced.
        path = os.path.realpath(self.path)
        temporary = f"{path}.{os.getpid()}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(document, file, indent="\t")
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @staticmethod
    def _helper(document: dict[str, Any], domain: str) -> str:
        helpers = document.get("credHelpers") or {}
        for key, name in helpers.items():
            if host_of(key) == domain:
                return str(name)
        return str(document.get("credsStore") or "")

    def get(self, domain: str) -> Credentials | None:
        """The credentials for a registry, or None.

        Raises InvalidParameter for a broken file, TiffinError for a helper that fails.
        """
        document = self._read()
        domain = host_of(domain)
        helper = self._helper(document, domain)
        if helper:
            try:
                answer = json.loads(_ask(helper, "get", key_of(domain)))
                user, secret = str(answer["Username"]), str(answer["Secret"])
            except NotFound:
                return None
            except (ValueError, KeyError, TypeError):
                raise TiffinError(f"docker-credential-{helper} gave no credentials") from None
            if user == _TOKEN_USER:
                return Credentials(identity_token=secret)
            return Credentials(user, secret)
        for key, entry in (document.get("auths") or {}).items():
            if host_of(key) == domain:
                return Credentials.of_document(entry) or None
        return None

    def all(self) -> dict[str, Credentials]:
        """All credentials, by host; a helper that fails is asked for nothing more.

        Raises InvalidParameter for a broken file.
        """
        document = self._read()
        hosts = {
            host_of(key) for name in ("auths", "credHelpers") for key in document.get(name) or {}
        }
        store = str(document.get("credsStore") or "")
        if store:
            try:
                hosts |= {host_of(key) for key in json.loads(_ask(store, "list", ""))}
            except (TiffinError, ValueError):
                # One that can't list still answers for the hosts that the file names.
                pass
        found = {host: self.get(host) for host in sorted(hosts)}
        return {host: one for host, one in found.items() if one}

    def store(self, domain: str, credentials: Credentials) -> str:
        """Keep credentials; returns the helper that has them, or "" for the file itself."""
        document = self._read()
        domain = host_of(domain)
        helper = self._helper(document, domain)
        auths = document.setdefault("auths", {})
        for key in [key for key in auths if host_of(key) == domain]:
            del auths[key]
        if helper:
            user, secret = credentials.username, credentials.password
            if credentials.identity_token:
                user, secret = _TOKEN_USER, credentials.identity_token
            given = json.dumps({"ServerURL": key_of(domain), "Username": user, "Secret": secret})
            _ask(helper, "store", given)
            auths[key_of(domain)] = {}
        else:
            pair = f"{credentials.username}:{credentials.password}"
            if credentials.identity_token:
                pair = f"{credentials.username}:"
            entry = {"auth": b64encode(pair.encode()).decode()}
            if credentials.identity_token:
                entry["identitytoken"] = credentials.identity_token
            auths[key_of(domain)] = entry
        self._write(document)
        return helper

    def erase(self, domain: str) -> bool:
        """Forget the credentials of a registry; whether there were any."""
        document = self._read()
        domain = host_of(domain)
        helper = self._helper(document, domain)
        auths = document.get("auths") or {}
        keys = [key for key in auths if host_of(key) == domain]
        if helper and (keys or domain in map(host_of, document.get("credHelpers") or {})):
            try:
                _ask(helper, "erase", key_of(domain))
            except NotFound:
                # It had none: as wanted.
                pass
        if not keys:
            return False
        for key in keys:
            del auths[key]
        self._write(document)
        return True


def _ask(helper: str, action: str, given: str) -> str:
    """Run a credential helper; raises NotFound if it has none, TiffinError if it fails."""
    import subprocess

    if "/" in helper:
        raise InvalidParameter(f"malformed name of a credential helper: {helper!r}")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, action], input=given.encode(), capture_output=True, timeout=60, check=False
        )
    except FileNotFoundError:
        raise TiffinError(
            f"error getting credentials: {program} is not installed, and config.json names it"
        ) from None
    except subprocess.TimeoutExpired:
        raise TiffinError(f"error getting credentials: {program} does not answer") from None
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        if "credentials not found" in output.lower():
            raise NotFound(f"{program} has no credentials")
        # What a failing helper prints is its complaint, not a secret; but only `get` gives any.
        text = output.strip()[:200] if action != "get" else f"exit code {done.returncode}"
        raise TiffinError(f"error getting credentials: {program} {action}: {text}")
    return output
