"""The directory: who is called what in which network.

A sandbox sees the names of its own networks only, in their order, and the links that were made for
it alone. Several endpoints may have one name (aliases): each question gives all of them, each time
beginning with another.
"""

from __future__ import annotations

import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Entry:
    """An endpoint as the directory knows it."""

    __slots__ = ("age", "endpoint", "names", "network", "sandbox", "title", "v4", "v6")

    def __init__(
        self,
        endpoint: str,
        network: str,
        sandbox: str,
        names: list[str],
        title: str,
        v4: str,
        v6: str,
    ) -> None:
        self.endpoint = endpoint
        self.network = network
        self.sandbox = sandbox
        self.names = [name.lower() for name in names]
        self.title = title
        self.v4 = v4
        self.v6 = v6
        self.age = 0


class Directory:
    """All entries, by endpoint, by name, and by address."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._names: dict[tuple[str, str], dict[str, Entry]] = {}
        self._addresses: dict[tuple[str, bytes], Entry] = {}
        self._turn = 0
        self._age = 0

    def begin(self) -> None:
        """From here on, who there is will be told anew; meanwhile nobody is forgotten."""
        self._age += 1

    def settle(self) -> None:
        """All has been told: forget those that were not."""
        for entry in [one for one in self._entries.values() if one.age != self._age]:
            self.leave(entry.endpoint)

    def join(self, entry: Entry) -> None:
        """Add an endpoint, or change it."""
        self.leave(entry.endpoint)
        entry.age = self._age
        self._entries[entry.endpoint] = entry
        for name in entry.names:
            self._names.setdefault((entry.network, name), {})[entry.endpoint] = entry
        for address in packed(entry):
            self._addresses[entry.network, address] = entry

    def leave(self, endpoint: str) -> None:
        """Remove an endpoint, if it is there."""
        entry = self._entries.pop(endpoint, None)
        if entry is None:
            return
        for name in entry.names:
            holders = self._names.get((entry.network, name), {})
            holders.pop(endpoint, None)
            if not holders:
                self._names.pop((entry.network, name), None)
        for address in packed(entry):
            if self._addresses.get((entry.network, address)) is entry:
                del self._addresses[entry.network, address]

    def leave_all(self, sandbox: str) -> None:
        """Remove every endpoint of a sandbox."""
        for entry in [one for one in self._entries.values() if one.sandbox == sandbox]:
            self.leave(entry.endpoint)

    def find(self, name: str, networks: Iterable[str]) -> list[Entry]:
        """Those that have a name, in the first of the networks that has any."""
        for network in networks:
            holders = self._names.get((network, name))
            if holders:
                found = list(holders.values())
                self._turn += 1
                start = self._turn % len(found)
                return found[start:] + found[:start]
        return []

    def title(self, address: str, networks: Iterable[str]) -> str:
        """The name of an address, empty if it is nobody's."""
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                key = socket.inet_pton(family, address)
            except OSError:
                continue
            for network in networks:
                entry = self._addresses.get((network, key))
                if entry is not None:
                    return entry.title
        return ""


def packed(entry: Entry) -> list[bytes]:
    """An entry's addresses as bytes."""
    found = []
    if entry.v4:
        found.append(socket.inet_pton(socket.AF_INET, entry.v4))
    if entry.v6:
        found.append(socket.inet_pton(socket.AF_INET6, entry.v6))
    return found
