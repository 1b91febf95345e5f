"""Publications: a container's ports on the host, and where they lead.

A published port is a socket that holds it, a row, and an element of the firewall, in that order
when it is made. It leads to the first of its container's networks that ports of the host can lead
into, and follows the container from there to the next.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from tiffin.errors import TiffinError, Unsupported
from tiffin.network import briefing, firewall, ports
from tiffin.network.briefing import Held
from tiffin.network.ledger import Ledger
from tiffin.network.patience import once_released
from tiffin.network.plans import SandboxPlan, publishes
from tiffin.network.porter.client import Message, PorterClient

logger = logging.getLogger("tiffin")


class Publications:
    """The published ports of one root."""

    def __init__(self, ledger: Ledger, wall: firewall.Firewall, porter: PorterClient) -> None:
        self._ledger = ledger
        self._firewall = wall
        self._porter = porter

    # -- where they lead --------------------------------------------------------------------

    def _targets(self, container: str) -> tuple[str, str]:
        """The IPv4 and the IPv6 address that a container's published ports lead to."""
        found = ["", ""]
        for network, endpoint in self._ledger.of_container(container):
            if publishes(network):
                for position, version in enumerate((4, 6)):
                    found[position] = found[position] or endpoint.address(version)
        return found[0], found[1]

    def _target(self, container: str) -> str:
        """The one that the porter carries what it gets to."""
        v4, v6 = self._targets(container)
        return v4 or v6

    def elements(self, container: str) -> list[firewall.Element]:
        """What the firewall holds of a container's ports."""
        published = self._ledger.ports(container)
        if not published:
            return []
        found = []
        for address in filter(None, self._targets(container)):
            for port in published:
                element = firewall.port_element(port, address)
                if element is not None:
                    found.append(element)
        return found

    # -- made and changed -------------------------------------------------------------------

    def hold(self, plan: SandboxPlan) -> Held:
        """Take a container's ports, before anything is made for it.

        Raises TiffinError in Docker's words for a port in use; then none is held.
        """
        if not any(publishes(place.network) for place in plan.places):
            # As in Docker: nothing leads into an internal network, or past a macvlan's parent.
            plan.ports = []
        if plan.ports:
            self._firewall.prepare()
        try:
            return self._hold_at_last(plan.ports)
        except Unsupported:
            raise
        except TiffinError as error:
            raise TiffinError(
                "driver failed programming external connectivity on endpoint "
                f"{plan.name}: {error.message}"
            ) from error

    def lead(self, container: str, held: Held) -> None:
        """Lead ports that are held to a container that has its addresses."""
        if held:
            self._ledger.publish(container, [port for port, _ in held])
            self._firewall.change(self.elements(container))

    def give(self, container: str, held: Held) -> list[Message]:
        """What the porter is to be told of ports that are held; their sockets go with it."""
        return briefing.hold(container, held, self._target(container))

    def follow(self, plan: SandboxPlan, before: list[firewall.Element], pid: int) -> None:
        """Lead published ports to where the container is now; ``before`` are its rules till then.

        As in Docker, its ports are free when it has left the last network that they can lead into,
        and published when it comes into the first.
        """
        container = plan.container
        target = self._target(container)
        published = self._ledger.ports(container)
        held: Held = []
        if target and not published and plan.ports:
            self._firewall.prepare()
            held = self._hold_at_last(plan.ports)
            self._ledger.publish(container, [port for port, _ in held])
        after = self.elements(container)
        try:
            if before != after:
                self._firewall.change(
                    [one for one in after if one not in before],
                    [one for one in before if one not in after],
                )
        except BaseException:
            release(held)
            raise
        if held:
            self._porter.say(*self.give(container, held), briefing.opened(container, pid))
        elif published:
            self._porter.say(briefing.aim(container, target))
            if not target:
                self._porter.sync()
                self._ledger.unpublish(container)

    def hold_again(self, container: str) -> list[Message]:
        """Hold the ports that are published already, for a porter that has none of them; what it is
        to be told."""
        held: Held = []
        for port in self._ledger.ports(container):
            try:
                held.append((port, once_released(functools.partial(ports.bind, port))))
            except OSError as error:
                # The firewall redirects it all the same; only localhost's IPv6 is lost.
                logger.warning("port %d could not be held again: %s", port.host_port, error)
        return self.give(container, held)

    # -- sockets ----------------------------------------------------------------------------

    def _hold_at_last(self, wanted: Sequence[ports.Wanted]) -> Held:
        try:
            return self._hold(wanted)
        except TiffinError:
            if not self._porter.alive:
                raise
        # It may still have what an engine gave it that was killed before its container started.
        self._porter.sync()
        return self._hold(wanted)

    def _hold(self, wanted: Sequence[ports.Wanted]) -> Held:
        held: Held = []
        taken = self._ledger.taken() if wanted else set()
        try:
            for one in wanted:
                got = ports.hold(one, taken)
                held += got
                taken.update((port.protocol, port.host_address, port.host_port) for port, _ in got)
        except BaseException:
            release(held)
            raise
        return held


def release(held: Held) -> None:
    """Let go of ports that nobody was told of."""
    for _, sock in held:
        sock.close()
