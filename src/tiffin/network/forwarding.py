"""Forwarding: the host passes packets on, as it must for containers to be reached, and no more.

Switching it on makes a router of the whole host. Where it was off, and so this engine has switched
it on, the firewall drops what would pass between the interfaces that were there by then: what was
no router before is none for others. Interfaces that come later (another engine's, a virtual
machine's) are their makers' business. When nothing runs any more, and no others have come, it is
switched off again.

What was switched is kept in a file, for one boot of one network namespace.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tiffin.errors import Unsupported
from tiffin.network import firewall, rtnetlink
from tiffin.network.namespace import write_sysctls

_V4 = "ipv4/ip_forward"
_V6 = "ipv6/conf/all/forwarding"


class Forwarding:
    """What one engine has done to the host's forwarding; ``folder`` is where it remembers that."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "forwarding.json"
        self._here = f"{_text('kernel/random/boot_id')} {os.stat('/proc/self/ns/net').st_ino}"
        self._foreign: dict[str, list[str]] = {}
        try:
            noted = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return
        if noted["where"] == self._here:
            self._foreign = noted["foreign"]

    @property
    def guards(self) -> bool:
        """Whether there is something to drop."""
        return bool(self._foreign)

    def elements(self) -> list[firewall.Element]:
        """What the firewall holds of it: the interfaces between which nothing passes."""
        return [
            (f"foreign{version}", f'"{name}"')
            for version, names in self._foreign.items()
            for name in names
        ]

    def plan(self, *, ipv6: bool) -> list[firewall.Element]:
        """Note what is to be switched on, and give what the firewall has to hold before that.

        Raises Unsupported for IPv6 where the host has none.
        """
        before = self.elements()
        for version, parameter in (("4", _V4), ("6", _V6))[: 2 if ipv6 else 1]:
            try:
                on = _text(f"net/{parameter}") == "1"
            except FileNotFoundError as error:
                raise Unsupported("this host has no IPv6: leave out --ipv6") from error
            if not on and version not in self._foreign:
                self._foreign[version] = _strange()
        added = [element for element in self.elements() if element not in before]
        if added or self._foreign:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file.write_text(json.dumps({"where": self._here, "foreign": self._foreign}))
        return added

    def switch_on(self, *, ipv6: bool) -> None:
        """Let the host pass packets on.

        With IPv6 the kernel stops to listen to routers where it forwards; interfaces that did are
        told to go on.
        """
        if _text(f"net/{_V4}") != "1":
            write_sysctls([(_V4, "1")])
        if not ipv6 or _text(f"net/{_V6}") == "1":
            return
        with rtnetlink.Socket() as kernel:
            names = [link.name for link in kernel.links()]
        for name in names:
            try:
                listens = _text(f"net/ipv6/conf/{name}/accept_ra") == "1"
            except FileNotFoundError:
                continue
            if listens:
                write_sysctls([(f"ipv6/conf/{name}/accept_ra", "2")])
        write_sysctls([(_V6, "1")])

    def switch_off(self) -> bool:
        """Nothing runs any more: switch off what was switched on, unless others have come that may
        need it. Whether there is nothing to guard any more."""
        if not self._foreign:
            return True
        names = set(_strange())
        if any(names - set(foreign) for foreign in self._foreign.values()):
            return False
        write_sysctls([(_V4 if version == "4" else _V6, "0") for version in self._foreign])
        self._foreign = {}
        self._file.unlink(missing_ok=True)
        return True


def _strange() -> list[str]:
    """The interfaces that are not ours."""
    with rtnetlink.Socket() as kernel:
        return [
            link.name
            for link in kernel.links()
            if link.name != "lo"
            and not link.alias.startswith("tiffin ")
            and not (link.kind == "veth" and link.name.startswith("tf"))
        ]


def _text(name: str) -> str:
    with open(f"/proc/sys/{name}") as file:
        return file.read().strip()
