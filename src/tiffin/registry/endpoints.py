"""Where a registry is found, and on what terms: mirrors, insecure ones, private CAs.

The words: a *domain* is what a reference names (``docker.io``, ``host:5000``); an *endpoint* is
one place that serves it: the registry itself, or a *mirror*, asked first when pulling. An
*insecure* endpoint may have a certificate that nobody signed, or speak plain HTTP; it is that only
where the configuration says so, or where its host is this machine (``localhost``, ``127.0.0.0/8``,
``::1``), as for Docker.

The configuration is ``registries.toml`` in the engine root, then in ``/etc/tiffin``; the first
that has a table for the domain counts::

    [registry."docker.io"]
    mirrors = ["https://mirror.example"]     # asked in this order, for pulls only
    location = "https://registry.example"    # where the registry itself is, if not at its domain
    insecure = false

``certs.d/HOST/`` in the same folders, and in ``/etc/docker``: ``*.crt`` are CAs that are trusted
in addition to the system's, ``NAME.cert`` with ``NAME.key`` a client certificate.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tiffin.errors import InvalidParameter

SYSTEM_FOLDERS = (Path("/etc/tiffin"), Path("/etc/docker"))
_HUB = "docker.io"
_HUB_LOCATION = "https://registry-1.docker.io"
_KEYS = {"mirrors", "location", "insecure"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that serves a registry."""

    host: str
    """Host and port; credentials and certificates are looked up by it."""
    schemes: tuple[str, ...]
    """To be tried in this order; only an insecure endpoint has ``http``."""
    prefix: str = ""
    """A path before ``/v2``, without a slash at its end."""
    verify: bool = True
    mirror: bool = False
    authorities: tuple[Path, ...] = ()
    certificate: tuple[Path, Path] | None = None
    """The client's certificate and key."""
    domain: str = ""
    """The domain that references call it by."""


class Configuration:
    """The registries that an engine root knows something about."""

    def __init__(
        self,
        folders: Sequence[Path] = SYSTEM_FOLDERS,
        *,
        insecure: Sequence[str] = (),
    ) -> None:
        """``folders`` hold ``registries.toml`` and ``certs.d``; the first ones count more.
        ``insecure`` names further hosts that are. Raises InvalidParameter for a broken file."""
        self._folders = tuple(folders)
        self._insecure = frozenset(insecure)
        self._tables: dict[str, dict[str, Any]] = {}
        for folder in reversed(self._folders):
            self._read(folder / "registries.toml")

    def _read(self, path: Path) -> None:
        try:
            document = tomllib.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise InvalidParameter(f"{path} can't be read: {error}") from error
        tables = document.get("registry", {})
        if not isinstance(tables, dict):
            raise InvalidParameter(f"{path}: registry must be a table")
        for domain, table in tables.items():
            if not isinstance(table, dict) or set(table) - _KEYS:
                unknown = ", ".join(sorted(set(table) - _KEYS)) if isinstance(table, dict) else ""
                raise InvalidParameter(
                    f'{path}: [registry."{domain}"] may have {", ".join(sorted(_KEYS))}'
                    + (f", not {unknown}" if unknown else "")
                )
            mirrors = table.get("mirrors", [])
            if not isinstance(mirrors, list) or not all(isinstance(each, str) for each in mirrors):
                raise InvalidParameter(f'{path}: mirrors of "{domain}" must be a list of URLs')
            self._tables[domain] = table

    @property
    def mirrors(self) -> list[str]:
        """The mirrors of Docker Hub, for ``info``."""
        return list(self._tables.get(_HUB, {}).get("mirrors", ()))

    @property
    def insecure(self) -> list[str]:
        """The hosts that are insecure by name, for ``info``."""
        named = {domain for domain, table in self._tables.items() if table.get("insecure")}
        return sorted(named | self._insecure)

    def endpoints(self, domain: str, *, mirrors: bool = True) -> list[Endpoint]:
        """The places to ask for ``domain``, in order; mirrors only if wanted.

        Raises InvalidParameter for a malformed URL in the configuration.
        """
        table = self._tables.get(domain, {})
        found = []
        if mirrors:
            for url in table.get("mirrors", ()):
                found.append(self._endpoint(domain, url, mirror=True))
        location = table.get("location") or (_HUB_LOCATION if domain == _HUB else domain)
        found.append(self._endpoint(domain, location, mirror=False))
        return found

    def _endpoint(self, domain: str, url: str, *, mirror: bool) -> Endpoint:
        parts = urlsplit(url if "://" in url else f"//{url}")
        if parts.scheme not in ("", "http", "https") or not parts.netloc or parts.query:
            raise InvalidParameter(f"malformed URL of a registry: {url!r}")
        if "@" in parts.netloc:
            raise InvalidParameter(
                f"the URL of {parts.hostname} holds credentials: use `tiffin login` for them"
            )
        host = parts.netloc
        insecure = self._is_insecure(domain, host)
        if parts.scheme:
            schemes: tuple[str, ...] = (parts.scheme,)
        else:
            schemes = ("https", "http") if insecure else ("https",)
        authorities, certificate = self._certificates(host)
        return Endpoint(
            host,
            schemes,
            parts.path.rstrip("/"),
            not insecure,
            mirror,
            authorities,
            certificate,
            domain,
        )

    def _is_insecure(self, domain: str, host: str) -> bool:
        for name in (host, domain if host == domain else host):
            if name in self._insecure or self._tables.get(name, {}).get("insecure") is True:
                return True
        return is_loopback(host)

    def _certificates(self, host: str) -> tuple[tuple[Path, ...], tuple[Path, Path] | None]:
        authorities: list[Path] = []
        certificate = None
        for folder in self._folders:
            place = folder / "certs.d" / host
            if not place.is_dir():
                continue
            authorities += sorted(place.glob("*.crt"))
            for path in sorted(place.glob("*.cert")):
                key = path.with_suffix(".key")
                if not key.exists():
                    raise InvalidParameter(f"missing key {key.name} for client certificate {path}")
                certificate = certificate or (path, key)
        return tuple(authorities), certificate


def is_loopback(host: str) -> bool:
    """Whether ``host`` (with or without a port) is this machine by its name or address."""
    name = host.partition("]")[0].removeprefix("[") if host[:1] == "[" else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
