"""The realm: the networks of one root, with the bridges and rules that each of them needs.

A network is a row first; its bridge and its elements of the firewall are made when it is *brought
up*, which its making does, and for the default one its first container.
"""

from __future__ import annotations

import threading

from tiffin.errors import Forbidden, InvalidParameter, Unsupported
from tiffin.network import addresses, firewall, links
from tiffin.network.forwarding import Forwarding
from tiffin.network.ledger import Ledger, Network, pools_taken
from tiffin.network.namespace import Namespace
from tiffin.network.settings import (
    BRIDGE_NAME,
    CHILD_CHOICES,
    DEFAULT_BRIDGE,
    NetworkSettings,
)

DRIVERS = ("bridge", "macvlan", "ipvlan")
DEFAULT = "bridge"
"""The name of the network that containers are in unless they ask for another."""


class Realm:
    """The networks of one root. Usable from any thread."""

    def __init__(
        self,
        mark: str,
        ledger: Ledger,
        made: links.Links,
        wall: firewall.Firewall,
        forwarding: Forwarding,
    ) -> None:
        self._mark = mark
        self._ledger = ledger
        self._links = made
        self._firewall = wall
        self._forwarding = forwarding
        self._up: set[str] = set()
        self._lock = threading.RLock()

    def create(self, name: str, settings: NetworkSettings) -> Network:
        """Make a network. Raises Conflict, Forbidden (overlap), InvalidParameter, Unsupported."""
        if settings.driver not in DRIVERS:
            raise Unsupported(
                f"could not find plugin {settings.driver} in v1 plugin registry: the network "
                f"drivers here are {', '.join(DRIVERS)}"
            )
        if not settings.ipv4 and not settings.ipv6:
            raise InvalidParameter("IPv4 or IPv6 must be enabled")
        self._check(settings)
        if settings.driver != "bridge":
            with Namespace.new() as probe:
                self._links.probe(settings.driver, probe)
        with self._lock:
            self._fill_in(settings)
            network = self._ledger.add(name, settings)
            try:
                if settings.driver == "bridge":
                    if DEFAULT_BRIDGE not in settings.options:
                        self.bring_up(network)
                else:
                    self._links.make_parent(network)
            except BaseException:
                self._ledger.drop(network)
                raise
        return network

    def _check(self, settings: NetworkSettings) -> None:
        # Asking for them makes them complain about values that make no sense.
        _ = (settings.mtu, settings.icc, settings.masquerade, settings.interface_prefix)
        for option in CHILD_CHOICES:
            if option.startswith(settings.driver):
                settings.choice(option)
        parent = settings.options.get("parent")
        if settings.driver == "bridge" or not parent:
            return
        if parent == "lo":
            raise InvalidParameter(
                f"loopback interface is not a valid {settings.driver} parent link"
            )
        if settings.driver == "macvlan":
            self._check_passthru(parent, settings)

    def _check_passthru(self, parent: str, settings: NetworkSettings) -> None:
        """One network alone has a parent that is passed through."""
        for other in self._ledger.networks():
            if other.settings.driver != "macvlan" or other.settings.options.get("parent") != parent:
                continue
            if settings.choice("macvlan_mode") == "passthru":
                raise Forbidden(
                    f"cannot use mode passthru, macvlan network {other.name} is already using "
                    f"parent interface {parent}"
                )
            if other.settings.choice("macvlan_mode") == "passthru":
                raise Forbidden(
                    f"macvlan network {other.name} is already using parent interface {parent} in "
                    "mode passthru"
                )

    def _fill_in(self, settings: NetworkSettings) -> None:
        """Choose the subnets that were not given."""
        versions: list[int] = [4] * settings.ipv4 + [6] * settings.ipv6
        for config in settings.ipam:
            if config.get("Subnet"):
                version: int = addresses.parse_subnet(config["Subnet"]).version
                if not (settings.ipv4 if version == 4 else settings.ipv6):
                    raise InvalidParameter(
                        f"IPv{version} is not enabled for the network: leave out "
                        f"{config['Subnet']}" + (", or use --ipv6" if version == 6 else "")
                    )
                if version in versions:
                    versions.remove(version)
                elif settings.driver == "bridge":
                    raise InvalidParameter(f"a bridge network has one IPv{version} subnet")
        taken = None
        for version in versions:
            if taken is None:
                taken = pools_taken(self._ledger.networks()) + self._links.host_networks()
            chosen = addresses.choose(version, self._mark, taken)
            bare = next((one for one in settings.ipam if not one.get("Subnet")), None)
            if bare is not None:
                bare["Subnet"] = str(chosen)
            else:
                settings.ipam.append({"Subnet": str(chosen)})
            taken.append(chosen)
        settings.ipam = [config for config in settings.ipam if config.get("Subnet")]

    def bring_up(self, network: Network) -> None:
        """Make a bridge network's bridge and rules, unless they are there."""
        with self._lock:
            if network.id in self._up:
                return
            if network.settings.options.get(DEFAULT_BRIDGE):
                self._claim_default(network)
            ipv6 = network.subnet(6) is not None
            guard = self._forwarding.plan(ipv6=ipv6)
            self._links.up(network)
            self._up.add(network.id)
            try:
                self._firewall.change([*guard, *self.elements_of(network)])
                self._forwarding.switch_on(ipv6=ipv6)
            except BaseException:
                self._up.discard(network.id)
                self._links.down(network)
                raise

    def _claim_default(self, network: Network) -> None:
        """The default network's bridge and subnet are chosen when they are first needed, and again
        where the host has changed meanwhile."""
        if self._links.find(network):
            return
        options = network.settings.options
        host = self._links.host_networks()
        subnet = network.subnet(4)
        others = pools_taken(one for one in self._ledger.networks() if one is not network)
        if subnet is not None and any(
            subnet.network.overlaps(one) for one in [*host, *others] if one.version == 4
        ):
            chosen = addresses.choose(4, self._mark, [*host, *others])
            network.settings.ipam = [{"Subnet": str(chosen)}]
            self._ledger.renumber(network)
        options[BRIDGE_NAME] = self._links.free_default_name()
        self._ledger.save(network)

    def make_default(self) -> None:
        """See to it that there is the default network; nothing is made on the host yet."""
        if self._ledger.find_name(DEFAULT) is None:
            options = {DEFAULT_BRIDGE: "true", BRIDGE_NAME: "tiffin0"}
            settings = NetworkSettings(ipam=[{"Subnet": addresses.POOLS[0][0]}], options=options)
            self._ledger.add(DEFAULT, settings)

    def remove(self, network: Network) -> None:
        """Remove a network; raises Forbidden while something is in it."""
        with self._lock:
            bridges = self._links.bridges(network)
            self._ledger.drop(network)
            if network.id in self._up:
                self._up.discard(network.id)
                self._firewall.change((), self.elements_of(network, bridges))
            if network.settings.driver == "bridge":
                self._links.down(network)
            else:
                self._links.remove_parent(network)

    def elements_of(
        self, network: Network, bridges: list[str] | None = None
    ) -> list[firewall.Element]:
        """What the firewall holds of a network that is up (``bridges``: of those alone)."""
        settings = network.settings
        return firewall.bridge_elements(
            self._links.bridges(network) if bridges is None else bridges,
            [str(subnet.network) for subnet in network.subnets],
            icc=settings.icc,
            internal=settings.internal,
            masquerade=settings.masquerade,
        )

    def elements(self) -> list[firewall.Element]:
        """What the firewall holds of all networks that are up."""
        return self._forwarding.elements() + [
            element
            for network in self._ledger.networks()
            if network.id in self._up
            for element in self.elements_of(network)
        ]

    def resume(self) -> None:
        """At start-up: bring up what something is in; the rules are the caller's to make."""
        with self._lock:
            for network in self._ledger.networks():
                if network.settings.driver == "bridge" and network.endpoints:
                    self._links.up(network)
                    self._up.add(network.id)

    def take_down(self) -> None:
        """Remove every bridge, also those of an engine that was killed; nothing runs any more."""
        with self._lock:
            self._links.clear()
            self._up.clear()
