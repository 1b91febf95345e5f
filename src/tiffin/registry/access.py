"""Who may use a registry of ours: users of an htpasswd file, with each request or with a token.

Passwords are checked by the system's ``crypt`` (bcrypt, yescrypt, sha512-crypt…), which takes long
on purpose; a password that was right is remembered for a while, as a keyed hash in memory.

*Tokens* are got from ``/token`` of the registry itself with user and password, are good for the
scopes asked for, and are signed with a secret that is in the registry's folder. They end after
five minutes; refresh tokens don't, until the secret or the user's password is changed.

Source: distribution's token authentication and OAuth2 documents.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

from tiffin.errors import InvalidParameter, Unsupported

LIFETIME = 300
_REMEMBERED = 600.0
_UNSUPPORTED = ("$apr1$", "{SHA}")


class Passwords:
    """The users of an htpasswd file, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidParameter for a broken file, Unsupported for hashes that can't be checked
        here."""
        self._path = path
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, float] = {}
        self._stamp: tuple[int, int] = (0, 0)
        self._hashes: dict[str, str] = {}
        self._load()

    def _load(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._stamp:
                return
            text = self._path.read_text()
        except OSError as error:
            raise InvalidParameter(f"{self._path} can't be read: {error.strerror}") from error
        hashes = {}
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            user, colon, hashed = line.partition(":")
            if not colon or not user or not hashed:
                raise InvalidParameter(f"{self._path}, line {number}: expected user:hash")
            if hashed.startswith(_UNSUPPORTED):
                raise Unsupported(
                    f"{self._path}, line {number}: MD5 and SHA-1 passwords are not supported:"
                    " make them with htpasswd -B"
                )
            hashes[user] = hashed
        self._hashes, self._stamp = hashes, stamp
        self._right.clear()

    def check(self, user: str, password: str) -> bool:
        """Whether the password is the user's."""
        with self._lock:
            self._load()
            hashed = self._hashes.get(user)
            message = f"{user}\0{hashed}\0{password}".encode()
            seal = hmac.new(self._key, message, hashlib.sha256).digest()
            if self._right.get(seal, 0.0) > time.monotonic():
                return True
        # Somebody who is not listed takes as long as somebody who is.
        against = hashed or next(iter(self._hashes.values()), "*")
        found = _crypt(password, against)
        right = hashed is not None and hmac.compare_digest(found.encode(), hashed.encode())
        if right:
            with self._lock:
                self._right[seal] = time.monotonic() + _REMEMBERED
        return right

    def mark(self, user: str) -> str:
        """Changes when the user's password does; "" for nobody."""
        with self._lock:
            self._load()
            hashed = self._hashes.get(user)
        return hashlib.sha256(hashed.encode()).hexdigest()[:16] if hashed else ""


def only_pulls(scopes: list[str]) -> list[str]:
    """What of ``scopes`` is pulling."""
    found = []
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        if resource.startswith("repository:") and "pull" in actions.split(","):
            found.append(f"{resource}:pull")
    return found


def parse_basic(header: str) -> tuple[str, str] | None:
    """User and password of an ``Authorization: Basic`` header, or None."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(value.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return (user, password) if colon else None


class Tokens:
    """Makes and checks tokens."""

    def __init__(self, folder: Path, passwords: Passwords, service: str) -> None:
        self._passwords = passwords
        self.service = service
        self._secret = _secret(folder / "token-secret")

    def issue(self, user: str, scopes: list[str], *, refresh: bool) -> dict[str, Any]:
        """The answer of the token endpoint for a user who has proved to be one."""
        now = int(time.time())
        access = [scope for scope in scopes if scope.count(":") >= 2]
        claims = {"sub": user, "exp": now + LIFETIME, "access": access, "use": "access"}
        token = self._sign(claims)
        answer = {
            "token": token,
            "access_token": token,
            "expires_in": LIFETIME,
            "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "scope": " ".join(access),
        }
        if refresh:
            answer["refresh_token"] = self._sign(
                {"sub": user, "use": "refresh", "mark": self._passwords.mark(user)}
            )
        return answer

    def user_of_refresh(self, token: str) -> str | None:
        """Whose refresh token it is, or None if it is no good."""
        claims = self._verify(token)
        if claims is None or claims.get("use") != "refresh":
            return None
        user = str(claims.get("sub"))
        mark = self._passwords.mark(user)
        return user if mark and claims.get("mark") == mark else None

    def allows(self, token: str, needed: list[tuple[str, str]]) -> bool | None:
        """Whether the token is good for all of ``needed`` (``repository:name``, action); None if
        it is none of ours, or has ended."""
        claims = self._verify(token)
        if claims is None or claims.get("use") != "access" or claims.get("exp", 0) < time.time():
            return None
        granted: set[tuple[str, str]] = set()
        for scope in claims.get("access", ()):
            resource, _, actions = str(scope).rpartition(":")
            granted.update((resource, action) for action in actions.split(","))
        return all(
            (resource, action) in granted or (resource, "*") in granted
            for resource, action in needed
        )

    def _sign(self, claims: dict[str, Any]) -> str:
        body = urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        seal = hmac.new(self._secret, body.encode(), hashlib.sha256).digest()
        return f"{body}.{urlsafe_b64encode(seal).decode().rstrip('=')}"

    def _verify(self, token: str) -> dict[str, Any] | None:
        body, _, seal = token.partition(".")
        expected = hmac.new(self._secret, body.encode(), hashlib.sha256).digest()
        try:
            given = urlsafe_b64decode(seal + "=" * (-len(seal) % 4))
            if not hmac.compare_digest(given, expected):
                return None
            claims = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except ValueError:
            return None
        return claims if isinstance(claims, dict) else None


def _secret(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}~")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            os.link(temporary, path)
        except FileExistsError:
            # Another process was first.
            pass
    finally:
        os.unlink(temporary)
    return path.read_bytes()


_crypt_lock = threading.Lock()


def _crypt(password: str, setting: str) -> str:
    # Python's own crypt module is gone from 3.13 on. crypt(3) has one buffer for all threads.
    with _crypt_lock:
        function = _library().crypt
        function.restype = ctypes.c_char_p
        found: bytes | None = function(password.encode(), setting.encode())
        return (found or b"*").decode("ascii", "replace")


def _library() -> ctypes.CDLL:
    for name in ("libcrypt.so.1", "libcrypt.so.2"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Unsupported("passwords can't be checked: there is no libcrypt on this machine")
