"""Links: the interfaces of networks and endpoints, on the host's side and inside containers.

Words: a network of the driver *bridge* has one bridge or, since a bridge holds 1,023 ports, several
that are joined in a star around the first, which has the gateway's addresses; an endpoint is a pair
of veth interfaces, one at a bridge, one inside. *macvlan* and *ipvlan* endpoints are interfaces of
a parent on the host.

Every interface of ours has a name that begins with ``tf`` and the engine's mark, or says in its
alias whose it is: what no row knows of is removed at start-up. An endpoint's interfaces go when the
last process of its container does, with the namespace; nobody waits for that.
"""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import ipaddress
import threading
from collections.abc import Iterable, Sequence

from tiffin.errors import Conflict, InvalidParameter, TiffinError, Unsupported
from tiffin.network import rtnetlink
from tiffin.network.ledger import Network
from tiffin.network.namespace import Namespace, write_sysctls
from tiffin.network.patience import once_released
from tiffin.network.settings import BRIDGE_NAME, Endpoint

BRIDGE_PORTS = 1000
"""How many endpoints a bridge gets: the kernel's 1,023, less those that lead to other bridges."""

_EXFULL = 54
_LEAVING_SECONDS = 10.0
_LAST_VLAN = 4094


class Links:
    """The interfaces of one engine."""

    def __init__(self, mark: str, bridge_ports: int = BRIDGE_PORTS) -> None:
        self._mark = mark
        self._prefix = f"tf{mark[:5]}"
        self._capacity = bridge_ports
        self._lock = threading.RLock()
        self._socket: rtnetlink.Socket | None = None
        # Of each network that is up: its bridges' (index, name), and who is at each.
        self._bridges: dict[str, list[tuple[int, str, set[str]]]] = {}

    def close(self) -> None:
        """Let go of the kernel's socket; the interfaces stay."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._bridges.clear()

    def _kernel(self) -> rtnetlink.Socket:
        if self._socket is None:
            self._socket = rtnetlink.Socket()
        return self._socket

    def _name(self, kind: str, key: str) -> str:
        letters = base64.b32encode(hashlib.sha256(key.encode()).digest()[:5]).decode().lower()
        return f"{self._prefix}{kind}{letters[:7]}"

    def _alias(self, network: Network) -> str:
        return f"tiffin {self._mark} network {network.id}"

    def _unfinished(self, network: Network) -> str:
        """What a bridge is called until it has all that it needs: one that an engine was killed at
        is no network's."""
        return f"tiffin {self._mark} unfinished {network.id}"

    def host_link(self, endpoint: Endpoint) -> str:
        """The name of an endpoint's interface on the host."""
        return self._name("e", endpoint.id)

    def host_networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """What the host has routes to or addresses in."""
        with self._lock:
            kernel = self._kernel()
            found = [network for network, _ in kernel.routes()]
            found += [interface.network for _, interface in kernel.addresses()]
        return [network for network in found if network.prefixlen]

    # -- networks ---------------------------------------------------------------------------

    def bridge_name(self, network: Network) -> str:
        """The name of a network's (first) bridge."""
        return network.settings.options.get(BRIDGE_NAME) or f"br-{network.id[:12]}"

    def free_default_name(self) -> str:
        """A name for the default network's bridge that no interface of the host has."""
        with self._lock:
            kernel = self._kernel()
            number = 0
            while kernel.link(f"tiffin{number}") is not None:
                number += 1
        return f"tiffin{number}"

    def up(self, network: Network) -> list[str]:
        """Make a network's bridge if it is not there; the names of all its bridges.

        Raises Conflict where another interface has its name, and TiffinError.
        """
        with self._lock:
            bridges = self._bridges.get(network.id)
            if bridges is None:
                bridges = self._find(network)
                if not bridges:
                    bridges = [self._make_first(network)]
                self._bridges[network.id] = bridges
            return [name for _, name, _ in bridges]

    def bridges(self, network: Network) -> list[str]:
        """The names of a network's bridges, as far as it is up."""
        with self._lock:
            return [name for _, name, _ in self._bridges.get(network.id, ())]

    def find(self, network: Network) -> bool:
        """Whether a bridge of the network is on the host."""
        with self._lock:
            return bool(self._find(network))

    def _find(self, network: Network) -> list[tuple[int, str, set[str]]]:
        """The bridges that an engine before this one has made."""
        alias = self._alias(network)
        links = self._kernel().links()
        endpoints = {self.host_link(one): one.id for one in network.endpoints.values()}
        found = [
            (
                link.index,
                link.name,
                {endpoints[other.name] for other in links
                 if other.master == link.index and other.name in endpoints},
            )
            for link in links
            if link.alias == alias and link.kind == "bridge"
        ]  # fmt: skip
        first = self.bridge_name(network)
        return sorted(found, key=lambda bridge: (bridge[1] != first, bridge[0]))

    def _make_first(self, network: Network) -> tuple[int, str, set[str]]:
        name = self.bridge_name(network)
        kernel = self._kernel()
        if kernel.link(name) is not None:
            raise Conflict(
                f"bridge {name} can't be made for network {network.name}: an interface of that "
                "name is there already, and it is not this engine's"
            )
        index = self._make_bridge(network, name)
        if network.subnet(6) is not None:
            # Addresses are ready at once, and routers' advertisements don't come from containers.
            write_sysctls(
                [(f"ipv6/conf/{name}/accept_dad", "0"), (f"ipv6/conf/{name}/accept_ra", "0")]
            )
        else:
            write_sysctls([(f"ipv6/conf/{name}/disable_ipv6", "1")])
        requests = [
            rtnetlink.add_address(
                index, ipaddress.ip_interface(f"{subnet.gateway}/{subnet.network.prefixlen}")
            )
            for subnet in network.subnets
            if subnet.gateway is not None
        ]
        try:
            kernel.run(*requests, rtnetlink.set_up(index))
            write_sysctls([(f"ipv4/conf/{name}/route_localnet", "1")])
            kernel.run(rtnetlink.set_alias(name, self._alias(network)))
        except BaseException:
            kernel.run(rtnetlink.delete_link(name))
            raise
        return index, name, set()

    def _make_bridge(self, network: Network, name: str) -> int:
        digest = hashlib.sha256(f"{network.id} {name}".encode()).digest()
        mac = ":".join(f"{byte:02x}" for byte in b"\x02\x42" + digest[:4])
        kernel = self._kernel()
        try:
            kernel.run(
                rtnetlink.new_bridge(name, mac, network.settings.mtu),
                rtnetlink.set_alias(name, self._unfinished(network)),
            )
        except OSError as error:
            kernel.run(rtnetlink.delete_link(name))
            raise _explained(error, "bridge") from error
        link = kernel.link(name)
        assert link is not None
        return link.index

    def _make_further(self, network: Network) -> tuple[int, str, set[str]]:
        """One more bridge, joined to the first by a pair of links."""
        bridges = self._bridges[network.id]
        key = f"{network.id} {len(bridges)}"
        name = self._name("b", key)
        index = self._make_bridge(network, name)
        near, far = self._name("x", key), self._name("y", key)
        requests = [
            # One that an engine was killed at.
            rtnetlink.delete_link(near),
            rtnetlink.new_veth(near, bridges[0][0], far, mtu=network.settings.mtu),
            rtnetlink.set_master(far, index),
        ]
        if not network.settings.icc:
            # Those of the further bridge reach the first one's gateway, and nobody at its ports.
            requests.append(rtnetlink.set_port(near, isolated=True, hairpin=False))
        try:
            # The first bridge may be full of those that have just left.
            once_released(
                functools.partial(self._kernel().run, *requests), _LEAVING_SECONDS, _EXFULL
            )
            write_sysctls([(f"ipv6/conf/{name}/disable_ipv6", "1")])
            self._kernel().run(rtnetlink.set_alias(name, self._alias(network)))
        except BaseException as error:
            self._kernel().run(rtnetlink.delete_link(near), rtnetlink.delete_link(name))
            if isinstance(error, OSError) and error.errno == _EXFULL:
                raise TiffinError(
                    f"network {network.name} can't grow: its bridge {bridges[0][1]} has all the "
                    "ports that the kernel allows, and others than containers are at them"
                ) from error
            raise
        bridge = (index, name, set[str]())
        bridges.append(bridge)
        return bridge

    def down(self, network: Network) -> None:
        """Remove a network's bridges."""
        with self._lock:
            bridges = self._bridges.pop(network.id, None) or self._find(network)
            kernel = self._kernel()
            names = [name for _, name, _ in bridges]
            links = [self._name("x", f"{network.id} {number}") for number in range(1, len(names))]
            kernel.run(*(rtnetlink.delete_link(name) for name in [*links, *names]))

    def clear(self) -> None:
        """Remove the bridges of all networks."""
        with self._lock:
            self._bridges.clear()
            kernel = self._kernel()
            doomed = [
                link.name
                for link in kernel.links()
                if link.name.startswith(f"{self._prefix}x")
                or (link.kind == "bridge" and link.alias.startswith(f"tiffin {self._mark} "))
            ]
            if doomed:
                kernel.run(*(rtnetlink.delete_link(name) for name in doomed))

    # -- endpoints --------------------------------------------------------------------------

    def plug(
        self, network: Network, endpoint: Endpoint, namespace: Namespace, *, published: bool = False
    ) -> bool:
        """Make an endpoint's interface in a namespace, with its addresses. What has published
        ports reaches itself through them.

        Whether a further bridge was made for it. Raises TiffinError.
        """
        with self._lock:
            before = len(self._bridges.get(network.id, ()))
            if network.settings.driver == "bridge":
                self._plug_bridge(network, endpoint, namespace, published)
            else:
                self._plug_parent(network, endpoint, namespace)
            after = len(self._bridges.get(network.id, ()))
        with namespace.visit():
            further = [ipaddress.ip_interface(text) for text in endpoint.link_local]
            if not endpoint.ipv6 and not any(one.version == 6 for one in further):
                write_sysctls([(f"ipv6/conf/{endpoint.interface}/disable_ipv6", "1")])
            with rtnetlink.Socket() as inside:
                link = inside.link(endpoint.interface)
                if link is None:
                    raise TiffinError(
                        f"interface {endpoint.interface} is not where it was made: try again"
                    )
                requests = [
                    *(
                        rtnetlink.add_address(link.index, one)
                        for one in [*endpoint.interfaces, *further]
                    ),
                    rtnetlink.set_up(link.index),
                ]
                if network.settings.driver == "bridge":
                    inside.run(*requests)
                else:
                    # On one parent nobody gets an address, or a MAC, of one that is just leaving.
                    for request in requests:
                        once_released(functools.partial(inside.run, request), _LEAVING_SECONDS)
        return after > before

    def _plug_bridge(
        self, network: Network, endpoint: Endpoint, namespace: Namespace, published: bool
    ) -> None:
        self.up(network)
        kernel = self._kernel()
        name = self.host_link(endpoint)
        while True:
            bridge = next(
                (one for one in self._bridges[network.id] if len(one[2]) < self._capacity), None
            ) or self._make_further(network)
            requests = [
                rtnetlink.new_veth(
                    name,
                    bridge[0],
                    endpoint.interface,
                    peer_namespace=namespace.fd,
                    peer_mac=endpoint.mac,
                    mtu=network.settings.mtu,
                )
            ]
            isolated = not network.settings.icc
            if isolated or published:
                requests.append(rtnetlink.set_port(name, isolated=isolated, hairpin=published))
            try:
                kernel.run(*requests)
            except OSError as error:
                if error.errno == _EXFULL:
                    # Those that have just left are still on their way out.
                    kernel.run(rtnetlink.delete_link(name))
                    self._make_further(network)
                    continue
                if error.errno == errno.ENODEV and kernel.link(bridge[1]) is None:
                    # Somebody took the bridge away.
                    del self._bridges[network.id]
                    self.up(network)
                    continue
                raise _explained(error, "veth") from error
            bridge[2].add(endpoint.id)
            return

    def _plug_parent(self, network: Network, endpoint: Endpoint, namespace: Namespace) -> None:
        kernel = self._kernel()
        settings = network.settings
        driver = settings.driver
        parent = kernel.link(self.parent(network))
        if parent is None:
            raise _missing_parent(self.parent(network), network)
        mode, flag = settings.choice(f"{driver}_mode"), ""
        if driver == "ipvlan":
            flag = settings.choice("ipvlan_flag")
        request = rtnetlink.new_child(
            endpoint.interface,
            parent.index,
            driver,
            mode,
            flag,
            namespace=namespace.fd,
            mac=endpoint.mac if driver == "macvlan" else "",
            mtu=network.settings.mtu,
        )
        try:
            kernel.run(request)
        except OSError as error:
            raise _explained(error, driver) from error

    def parent(self, network: Network) -> str:
        """The host's interface that a macvlan or ipvlan network is on."""
        given = network.settings.options.get("parent")
        return given or self._name("p", network.id)

    def make_parent(self, network: Network) -> None:
        """Make the parent if it is ours to make: a VLAN of an interface (``eth0.10``), or, where
        none was given, one that leads nowhere. Raises TiffinError."""
        name = self.parent(network)
        with self._lock:
            kernel = self._kernel()
            if kernel.link(name) is not None:
                return
            base, dot, number = name.rpartition(".")
            try:
                if not network.settings.options.get("parent"):
                    kernel.run(rtnetlink.new_dummy(name))
                elif dot and number.isdigit() and (link := kernel.link(base)) is not None:
                    if not 1 <= int(number) <= _LAST_VLAN:
                        raise InvalidParameter(
                            f"vlan id must be between 1-{_LAST_VLAN}, received: {number}"
                        )
                    kernel.run(rtnetlink.new_vlan(name, link.index, int(number)))
                else:
                    raise _missing_parent(base if dot and number.isdigit() else name, network)
                kernel.run(rtnetlink.set_alias(name, self._alias(network)))
            except OSError as error:
                kind = "VLAN" if network.settings.options.get("parent") else "dummy"
                raise _explained(error, kind) from error

    def remove_parent(self, network: Network) -> None:
        """Remove the parent if it was made for this network."""
        with self._lock:
            link = self._kernel().link(self.parent(network))
            if link is not None and link.alias == self._alias(network):
                self._kernel().run(rtnetlink.delete_link(link.name))

    def probe(self, driver: str, namespace: Namespace) -> None:
        """Raise Unsupported, by name, where the kernel has no such kind of interface."""
        with namespace.visit(), rtnetlink.Socket() as inside:
            try:
                inside.run(rtnetlink.new_veth("parent", 0, "other"))
                parent = inside.link("parent")
                assert parent is not None
                inside.run(
                    rtnetlink.new_child("probe", parent.index, driver, namespace=namespace.fd)
                )
            except OSError as error:
                raise _explained(error, driver) from error

    def unplug(self, network: Network, endpoint: Endpoint) -> None:
        """An endpoint's container has ended: its interface is silenced at once, and goes with the
        namespace."""
        with self._lock:
            for _, _, members in self._bridges.get(network.id, ()):
                members.discard(endpoint.id)
            if network.settings.driver == "bridge":
                self._kernel().run(rtnetlink.set_down(self.host_link(endpoint)))

    def pull(self, network: Network, endpoint: Endpoint, namespace: Namespace) -> None:
        """Take an endpoint's interface out of a container that goes on running."""
        with self._lock:
            for _, _, members in self._bridges.get(network.id, ()):
                members.discard(endpoint.id)
        with namespace.visit(), rtnetlink.Socket() as inside:
            inside.run(rtnetlink.delete_link(endpoint.interface))

    # -- start-up ---------------------------------------------------------------------------

    def sweep(self, networks: Iterable[Network]) -> bool:
        """Remove the interfaces of this engine that no row knows of; whether there are any left."""
        known: set[str] = set()
        aliases: set[str] = set()
        for network in networks:
            aliases.add(self._alias(network))
            known.update(self.host_link(one) for one in network.endpoints.values())
        with self._lock:
            kernel = self._kernel()
            gone = []
            left = False
            for link in kernel.links():
                left = left or link.alias.startswith(f"tiffin {self._mark} ")
                stray = link.name.startswith(f"{self._prefix}e") and link.name not in known
                ours = link.alias.startswith(f"tiffin {self._mark} ")
                if stray or (ours and link.alias not in aliases):
                    gone.append(link.name)
            if gone:
                kernel.run(*(rtnetlink.delete_link(name) for name in gone))
            return left


def set_routes(namespace: Namespace, gateways: Sequence[tuple[str, str]]) -> None:
    """The default routes of a namespace: (interface, gateway) a version, or an interface alone
    with an empty gateway for both. What was there before goes."""
    with namespace.visit(), rtnetlink.Socket() as inside:
        requests = [rtnetlink.delete_default_route(4), rtnetlink.delete_default_route(6)]
        for interface, gateway in gateways:
            link = inside.link(interface)
            if link is None:
                continue
            if gateway:
                requests.append(rtnetlink.add_route(link.index, ipaddress.ip_address(gateway)))
            else:
                requests.append(rtnetlink.add_route(link.index, None))
        inside.run(*requests)


def prepare(namespace: Namespace) -> None:
    """A namespace's loopback, and what Docker sets in each: low ports and ping for everybody."""
    with namespace.visit():
        write_sysctls(
            [
                ("ipv4/ip_unprivileged_port_start", "0"),
                ("ipv4/ping_group_range", "0 2147483647"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
            ]
        )
        with rtnetlink.Socket() as inside:
            inside.run(rtnetlink.set_up(1))


def _missing_parent(name: str, network: Network) -> InvalidParameter:
    return InvalidParameter(
        f"-o parent interface was not found on the host: {name} (network {network.name})"
    )


def _explained(error: OSError, kind: str) -> TiffinError:
    if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
        return Unsupported(f"this kernel has no interfaces of the kind {kind}: {error.strerror}")
    if error.errno == errno.EPERM:
        return TiffinError(f"networks can't be set up: {error.strerror}: run as root")
    return TiffinError(f"networks can't be set up: {error.strerror}")
