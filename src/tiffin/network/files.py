"""The files that a container finds in its /etc: ``hosts`` and ``resolv.conf``, as text.

Pure functions; who writes the files is the engine.

Source: resolv.conf(5), hosts(5), and what Docker writes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

EMBEDDED = "127.0.0.11"
"""Where the embedded name server is in each container of a user-defined network."""

_LOCAL_V4 = "127.0.0.1\tlocalhost\n"
_LOCAL_V6 = (
    "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
)
_FALLBACK = ("8.8.8.8", "8.8.4.4")


def hosts_text(
    hostname: str,
    domainname: str,
    addresses: Sequence[str],
    extra: Iterable[tuple[str, str]],
    links: Iterable[tuple[str, Sequence[str]]] = (),
) -> str:
    """``/etc/hosts``: the local names, ``extra`` (name, address) pairs, links, and its own name at
    each of its addresses."""
    text = _LOCAL_V4 + _LOCAL_V6
    text += "".join(f"{address}\t{name}\n" for name, address in extra)
    text += "".join(f"{address}\t{' '.join(names)}\n" for address, names in links)
    own = hostname
    if domainname:
        own = f"{hostname}.{domainname} {hostname}"
    elif "." in hostname:
        own = f"{hostname} {hostname.partition('.')[0]}"
    for address in addresses:
        text += f"{address}\t{own}\n"
    return text


@dataclass(slots=True)
class Resolver:
    """What a resolv.conf says."""

    servers: list[str] = field(default_factory=list)
    search: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> Resolver:
        """Read one; what it does not know is left out."""
        found = cls()
        for line in text.splitlines():
            words = line.split("#")[0].split(";")[0].split()
            if len(words) < 2:
                continue
            if words[0] == "nameserver":
                found.servers.append(words[1])
            elif words[0] in ("search", "domain"):
                found.search = words[1:]
            elif words[0] == "options":
                found.options += words[1:]
        return found

    def with_overrides(
        self, servers: Sequence[str], search: Sequence[str], options: Sequence[str]
    ) -> Resolver:
        """As ``--dns``, ``--dns-search`` and ``--dns-option`` change it; a search of ``.`` is
        none at all."""
        chosen = list(search) or list(self.search)
        return Resolver(
            list(servers) or list(self.servers),
            [] if chosen == ["."] else chosen,
            list(options) or list(self.options),
        )


def plain_resolv_conf(resolver: Resolver, *, ipv6: bool) -> str:
    """For a container without the embedded server: the host's servers but those that only the
    host itself reaches; where none is left, two public ones, as in Docker."""
    servers = [server for server in resolver.servers if not _is_loopback(server)]
    if not ipv6:
        servers = [server for server in servers if ":" not in server]
    return _render(servers or list(_FALLBACK), resolver.search, resolver.options)


def embedded_resolv_conf(resolver: Resolver) -> str:
    """For a container of a user-defined network; the note says whom the server asks itself."""
    options = list(resolver.options)
    if not any(option.startswith("ndots:") for option in options):
        options.append("ndots:0")
    text = _render([EMBEDDED], resolver.search, options)
    return f"{text}\n# Other names are asked of: {' '.join(resolver.servers) or 'nobody'}\n"


def _render(servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> str:
    text = "# Written by tiffin. Changes that you make are kept until the next start.\n"
    text += "".join(f"nameserver {server}\n" for server in servers)
    if search:
        text += f"search {' '.join(search)}\n"
    if options:
        text += f"options {' '.join(options)}\n"
    return text


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False
