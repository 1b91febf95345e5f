"""The fabric: networks and sandboxes, with all that has to be made and taken away for them.

A *sandbox* is the network side of a running container: its namespace, its endpoints, its published
ports, its names. Order, for each of them: what may be refused comes first (ports, addresses), the
rows, then links and rules; nothing has started yet. Taking away goes the other way round: links
fall silent, rules go, and only then are addresses and ports free for others.

What an engine that was killed has left is taken away by :meth:`Fabric.resume`.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiffin.errors import InvalidParameter, TiffinError, Unsupported
from tiffin.network import addresses, firewall, links, ports
from tiffin.network.files import EMBEDDED
from tiffin.network.ledger import Ledger, Network, pools_taken
from tiffin.network.namespace import Namespace
from tiffin.network.porter.client import Message, PorterClient
from tiffin.network.porter.server import DESCRIPTORS
from tiffin.network.settings import (
    BRIDGE_NAME,
    DEFAULT_BRIDGE,
    HOST_BINDING,
    Asked,
    Endpoint,
    NetworkSettings,
    Port,
)
from tiffin.store.database import Database

DRIVERS = ("bridge", "macvlan", "ipvlan")
DEFAULT = "bridge"
"""The name of the network that containers are in unless they ask for another."""

_MANY = 200
"""Endpoints of a network from which on the kernel's tables of neighbours may be too small."""

logger = logging.getLogger("tiffin")


@dataclass(slots=True)
class Place:
    """A network that a container is to be in."""

    network: Network
    asked: Asked
    names: list[str]


@dataclass(slots=True)
class SandboxPlan:
    """What a container needs of networks."""

    container: str
    name: str
    places: list[Place]
    ports: list[ports.Wanted] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)
    """Whom the embedded name server asks."""


class Fabric:
    """The networks of one root. Usable from any thread."""

    def __init__(self, database: Database, root: Path, mark: str) -> None:
        self._mark = mark
        self.ledger = Ledger(database)
        self._links = links.Links(mark)
        self._firewall = firewall.Firewall(mark, self._elements)
        self._porter = PorterClient(root, self._sandboxes, self._restore)
        self._up: set[str] = set()
        self._lock = threading.RLock()
        # Of running containers: process, whom their name server asks, their links.
        self._pids: dict[str, int] = {}
        self._plans: dict[str, SandboxPlan] = {}
        self._leaving: queue.SimpleQueue[_Leaving | None] = queue.SimpleQueue()
        self._waiting: list[_Leaving] = []
        self._broom: threading.Thread | None = None

    # -- networks ---------------------------------------------------------------------------

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
            network = self.ledger.add(name, settings)
            try:
                if settings.driver == "bridge":
                    if DEFAULT_BRIDGE not in settings.options:
                        self.bring_up(network)
                else:
                    self._links.make_parent(network)
            except BaseException:
                self.ledger.drop(network)
                raise
        return network

    @staticmethod
    def _check(settings: NetworkSettings) -> None:
        # Asking for them makes them complain about values that make no sense.
        _ = (settings.mtu, settings.icc, settings.masquerade)

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
                taken = pools_taken(self.ledger.networks()) + self._links.host_networks()
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
            links.allow_forwarding(ipv6=network.subnet(6) is not None)
            self._links.up(network)
            self._up.add(network.id)
            try:
                self._firewall.change(self._network_elements(network))
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
        others = pools_taken(one for one in self.ledger.networks() if one is not network)
        if subnet is not None and any(
            subnet.network.overlaps(one) for one in [*host, *others] if one.version == 4
        ):
            chosen = addresses.choose(4, self._mark, [*host, *others])
            network.settings.ipam = [{"Subnet": str(chosen)}]
            self.ledger.renumber(network)
        options[BRIDGE_NAME] = self._links.free_default_name()
        self.ledger.save(network)

    def make_default(self) -> None:
        """See to it that there is the default network; nothing is made on the host yet."""
        if self.ledger.find_name(DEFAULT) is None:
            options = {DEFAULT_BRIDGE: "true", BRIDGE_NAME: "tiffin0"}
            settings = NetworkSettings(ipam=[{"Subnet": addresses.POOLS[0][0]}], options=options)
            self.ledger.add(DEFAULT, settings)

    def remove(self, network: Network) -> None:
        """Remove a network; raises Forbidden while something is in it."""
        with self._lock:
            self._flush()
            bridges = self._links.bridges(network)
            self.ledger.drop(network)
            if network.id in self._up:
                self._up.discard(network.id)
                self._firewall.change((), self._network_elements(network, bridges))
            if network.settings.driver == "bridge":
                self._links.down(network)
            else:
                self._links.remove_parent(network)

    def _network_elements(
        self, network: Network, bridges: list[str] | None = None
    ) -> list[firewall.Element]:
        settings = network.settings
        return firewall.bridge_elements(
            self._links.bridges(network) if bridges is None else bridges,
            [str(subnet.network) for subnet in network.subnets],
            icc=settings.icc,
            internal=settings.internal,
            masquerade=settings.masquerade,
        )

    def _elements(self) -> Iterable[firewall.Element]:
        """All that the firewall shall hold."""
        found: list[firewall.Element] = []
        for network in self.ledger.networks():
            if network.id in self._up:
                found += self._network_elements(network)
        for container in self.ledger.containers():
            found += self._port_elements(container)
        return found

    def _targets(self, container: str) -> tuple[str, str]:
        """The IPv4 and the IPv6 address that a container's published ports lead to."""
        found = ["", ""]
        for network, endpoint in self.ledger.of_container(container):
            if _publishes(network):
                for position, version in enumerate((4, 6)):
                    found[position] = found[position] or endpoint.address(version)
        return found[0], found[1]

    def _port_elements(self, container: str) -> list[firewall.Element]:
        published = self.ledger.ports(container)
        if not published:
            return []
        found = []
        for address in filter(None, self._targets(container)):
            for port in published:
                element = firewall.port_element(port, address)
                if element is not None:
                    found.append(element)
        return found

    # -- sandboxes --------------------------------------------------------------------------

    def open(self, plan: SandboxPlan) -> Namespace:
        """Make a container's sandbox; the caller closes the namespace once the container runs.

        Raises TiffinError in Docker's words for a port in use, an address in use, an unknown
        network; then nothing is left of it.
        """
        container = plan.container
        if self._waiting:
            self._flush()
        if not any(_publishes(place.network) for place in plan.places):
            # As in Docker: nothing leads into an internal network, or past a macvlan's parent.
            plan.ports = []
        if plan.ports:
            self._firewall.prepare()
        try:
            held = self._hold(plan.ports)
        except TiffinError as error:
            raise TiffinError(
                "driver failed programming external connectivity on endpoint "
                f"{plan.name}: {error.message}"
            ) from error
        namespace: Namespace | None = None
        try:
            namespace = Namespace.new()
            links.prepare(namespace)
            for number, place in enumerate(plan.places):
                self._join(plan, place, f"eth{number}", namespace)
            self._route(container, plan, namespace)
            self._plans[container] = plan
            if held:
                self.ledger.publish(container, [port for port, _ in held])
                self._firewall.change(self._port_elements(container))
            self._tell(container, plan, namespace, held)
            return namespace
        except BaseException as error:
            for _, sock in held:
                if sock is not None:
                    sock.close()
            self.close(container)
            self._flush()
            if namespace is not None:
                namespace.close()
            if isinstance(error, OSError):
                raise TiffinError(f"the network can't be set up: {error}") from error
            raise

    def _hold(self, wanted: Sequence[ports.Wanted]) -> list[tuple[Port, socket.socket | None]]:
        held: list[tuple[Port, socket.socket | None]] = []
        taken = self.ledger.taken() if wanted else set()
        try:
            for one in wanted:
                got = ports.hold(one, taken)
                held += got
                taken.update((port.protocol, port.host_address, port.host_port) for port, _ in got)
        except BaseException:
            for _, sock in held:
                if sock is not None:
                    sock.close()
            raise
        return held

    def _join(
        self, plan: SandboxPlan, place: Place, interface: str, namespace: Namespace
    ) -> Endpoint:
        network, container = place.network, plan.container
        if network.settings.driver == "bridge":
            self.bring_up(network)
        if len(network.endpoints) == _MANY:
            links.make_room_for_neighbours()
        endpoint = self.ledger.join(network, container, place.asked, interface, place.names)
        try:
            published = bool(plan.ports)
            if self._links.plug(network, endpoint, namespace, published=published):
                self._firewall.change(self._network_elements(network))
        except BaseException:
            self._links.unplug(network, endpoint)
            self.ledger.leave(endpoint)
            raise
        if is_named(network):
            self._porter.say(self._join_message(network, endpoint, plan.name))
        return endpoint

    @staticmethod
    def _join_message(network: Network, endpoint: Endpoint, title: str) -> Message:
        names = [name for name in endpoint.names if name]
        return (
            {
                "do": "join",
                "endpoint": endpoint.id,
                "network": network.id,
                "sandbox": endpoint.container,
                "names": [*names, *(f"{name}.{network.name}" for name in names)],
                "title": f"{title}.{network.name}",
                "v4": endpoint.address(4),
                "v6": endpoint.address(6),
            },
            (),
        )

    def _route(self, container: str, plan: SandboxPlan, namespace: Namespace) -> None:
        """The default routes: through the network of the highest priority, else by name."""
        priorities = {place.network.id: place.asked.priority for place in plan.places}
        gateways: dict[int, tuple[str, str]] = {}
        joined = self.ledger.of_container(container)
        joined.sort(key=lambda pair: (-priorities.get(pair[0].id, 0), pair[0].name))
        for network, endpoint in joined:
            if network.settings.internal:
                continue
            for version in (4, 6):
                subnet = network.subnet(version)
                if subnet is None or version in gateways or not endpoint.address(version):
                    continue
                if subnet.gateway is not None:
                    gateways[version] = (endpoint.interface, str(subnet.gateway))
                elif network.settings.options.get("ipvlan_mode", "").startswith("l3"):
                    gateways[version] = (endpoint.interface, "")
        links.set_routes(namespace, list(gateways.values()))

    def _tell(
        self,
        container: str,
        plan: SandboxPlan,
        namespace: Namespace,
        held: list[tuple[Port, socket.socket | None]],
    ) -> None:
        """Hand the sockets of names and ports to the porter."""
        messages: list[Message] = []
        if any(is_named(place.network) for place in plan.places):
            messages.append((self._names_message(plan), name_sockets(namespace)))
        messages += self._hold_messages(container, held)
        if messages:
            self._porter.say(*messages)

    def _names_message(self, plan: SandboxPlan) -> dict[str, Any]:
        joined = self.ledger.of_container(plan.container)
        outside = any(not network.settings.internal for network, _ in joined)
        aliases: dict[str, str] = {}
        for place in plan.places:
            for text in place.asked.links:
                target, _, alias = text.partition(":")
                aliases[(alias or target).lower()] = target.lower()
        return {
            "do": "names",
            "sandbox": plan.container,
            "networks": [network.id for network, _ in joined if is_named(network)],
            "servers": plan.servers if outside else [],
            "links": aliases,
        }

    def _hold_messages(
        self, container: str, held: list[tuple[Port, socket.socket | None]]
    ) -> list[Message]:
        v4, v6 = self._targets(container)
        rows, fds = [], []
        for port, sock in held:
            if sock is not None and not (v4 or v6):
                sock.close()
            elif sock is not None:
                rows.append([port.protocol, v4 or v6, port.container_port])
                fds.append(sock.detach())
        return [
            (
                {
                    "do": "hold",
                    "sandbox": container,
                    "ports": rows[start : start + DESCRIPTORS],
                    "anew": start == 0,
                },
                fds[start : start + DESCRIPTORS],
            )
            for start in range(0, len(rows), DESCRIPTORS)
        ]

    def started(self, container: str, pid: int) -> None:
        """A container that has a sandbox has its first process."""
        self._pids[container] = pid
        plan = self._plans.get(container)
        if plan is not None and (
            self.ledger.ports(container) or any(is_named(one.network) for one in plan.places)
        ):
            self._porter.say(({"do": "open", "sandbox": container}, _pidfd(pid)))

    def close(self, container: str) -> list[Network]:
        """A container has ended, or did not start: take its sandbox away.

        Gives the networks that it leaves by that.
        """
        self._pids.pop(container, None)
        plan = self._plans.pop(container, None)
        joined = self.ledger.of_container(container)
        published = self.ledger.ports(container)
        if not joined and not published:
            return []
        if any(one.container == container for one in self._waiting):
            # It is on its way out already.
            return []
        for network, endpoint in joined:
            self._links.unplug(network, endpoint)
            if is_named(network):
                self._porter.say(({"do": "leave", "endpoint": endpoint.id}, ()))
        told = bool(published) or any(is_named(network) for network, _ in joined)
        if told:
            self._porter.say(({"do": "close", "sandbox": container}, ()))
        leaving = _Leaving(container, [endpoint for _, endpoint in joined])
        left = [network for network, _ in joined] if plan is not None else []
        if not published:
            self._settle(leaving)
            return left
        # The kernel takes long to forget a rule; addresses and ports are free only after that.
        leaving.elements = self._port_elements(container)
        with self._lock:
            self._waiting.append(leaving)
            if self._broom is None:
                self._broom = threading.Thread(target=self._sweep, name="networks", daemon=True)
                self._broom.start()
        self._leaving.put(leaving)
        return left

    def _settle(self, leaving: _Leaving) -> None:
        for endpoint in leaving.endpoints:
            self.ledger.leave(endpoint)
        self.ledger.unpublish(leaving.container)

    def _sweep(self) -> None:
        """The broom: takes the rules of those that have left away, many at once."""
        while (leaving := self._leaving.get()) is not None:
            batch = [leaving]
            while not self._leaving.empty():
                more = self._leaving.get()
                if more is None:
                    self._leaving.put(None)
                    break
                batch.append(more)
            try:
                elements = [element for one in batch for element in one.elements]
                for one in batch:
                    self.ledger.unpublish(one.container)
                if elements:
                    self._firewall.change((), elements)
                self._porter.sync()
            except (OSError, TiffinError) as error:
                logger.error("rules of ended containers could not be removed: %s", error)
            finally:
                for one in batch:
                    self._settle(one)
                    one.done.set()
                with self._lock:
                    self._waiting = [one for one in self._waiting if not one.done.is_set()]

    def _flush(self) -> None:
        """Wait until all that has left has left nothing."""
        for one in list(self._waiting):
            one.done.wait()

    # -- changes while running --------------------------------------------------------------

    def connect(self, plan: SandboxPlan, place: Place) -> Endpoint:
        """Put a running container into one more network; ``plan`` has the new place already."""
        container = plan.container
        used = {endpoint.interface for _, endpoint in self.ledger.of_container(container)}
        number = next(n for n in range(len(used) + 1) if f"eth{n}" not in used)
        with Namespace.of_process(self._pids[container]) as namespace:
            before = self._port_elements(container)
            named = any(is_named(one) for one, _ in self.ledger.of_container(container))
            try:
                endpoint = self._join(plan, place, f"eth{number}", namespace)
            except OSError as error:
                raise TiffinError(f"the network can't be set up: {error}") from error
            self._plans[container] = plan
            self._route(container, plan, namespace)
            self._republish(container, before)
            if is_named(place.network):
                fds = () if named else name_sockets(namespace)
                self._porter.say((self._names_message(plan), fds))
                if not named:
                    self._porter.say(
                        ({"do": "open", "sandbox": container}, _pidfd(self._pids[container]))
                    )
        return endpoint

    def disconnect(self, plan: SandboxPlan, network: Network) -> None:
        """Take a running container out of a network; ``plan`` has the place no more."""
        container = plan.container
        endpoint = network.endpoints.get(container)
        if endpoint is None:
            return
        before = self._port_elements(container)
        with Namespace.of_process(self._pids[container]) as namespace:
            self._links.pull(network, endpoint, namespace)
            self.ledger.leave(endpoint)
            self._plans[container] = plan
            self._route(container, plan, namespace)
        self._porter.say(({"do": "leave", "endpoint": endpoint.id}, ()))
        if is_named(network):
            self._porter.say((self._names_message(plan), ()))
        self._republish(container, before)

    def _republish(self, container: str, before: list[firewall.Element]) -> None:
        after = self._port_elements(container)
        if before != after:
            self._firewall.change(
                [one for one in after if one not in before],
                [one for one in before if one not in after],
            )

    def rename(self, plan: SandboxPlan) -> None:
        """A running container has other names now."""
        self._plans[plan.container] = plan
        names = {place.network.id: place.names for place in plan.places}
        for network, endpoint in self.ledger.of_container(plan.container):
            endpoint.names = names.get(network.id, endpoint.names)
            self.ledger.save_endpoint(endpoint)
            if is_named(network):
                self._porter.say(self._join_message(network, endpoint, plan.name))

    # -- start-up and end -------------------------------------------------------------------

    def resume(self, running: Mapping[str, tuple[SandboxPlan, int]]) -> None:
        """At start-up: take over what runs, take away what does not any more.

        ``running`` are the plans and first processes of the containers that run.
        """
        for container in self.ledger.containers():
            if container not in running:
                for _, endpoint in self.ledger.of_container(container):
                    self.ledger.leave(endpoint)
                self.ledger.unpublish(container)
        try:
            swept = self._links.sweep(self.ledger.networks())
        except OSError as error:
            logger.error("links of ended containers could not be removed: %s", error)
            swept = False
        alive = {key: value for key, value in running.items() if self.ledger.of_container(key)}
        if not alive:
            if swept:
                try:
                    self._firewall.remove()
                except Unsupported:
                    # Then there is no table either.
                    pass
            return
        for container, (plan, pid) in alive.items():
            self._plans[container], self._pids[container] = plan, pid
        with self._lock:
            for network in self.ledger.networks():
                if network.settings.driver == "bridge" and network.endpoints:
                    self._links.up(network)
                    self._up.add(network.id)
            self._firewall.install()
        # Whatever is said first tells the porter all the rest too.
        self._porter.say(({"do": "leave", "endpoint": ""}, ()))

    def _sandboxes(self) -> list[str]:
        return list(self._pids)

    def _restore(self, have: set[str]) -> Iterable[Message]:
        """What a porter is told that has just been met."""
        messages: list[Message] = []
        for container, pid in list(self._pids.items()):
            plan = self._plans.get(container)
            if plan is None:
                continue
            joined = self.ledger.of_container(container)
            named = any(is_named(network) for network, _ in joined)
            published = self.ledger.ports(container)
            if not named and not published:
                continue
            messages += [
                self._join_message(network, endpoint, plan.name)
                for network, endpoint in joined
                if is_named(network)
            ]
            try:
                if named:
                    fds: Sequence[int] = ()
                    if container not in have:
                        with Namespace.of_process(pid) as namespace:
                            fds = name_sockets(namespace, redirect=False)
                    messages.append((self._names_message(plan), fds))
                if container not in have:
                    messages += self._hold_messages(container, self._hold_again(published))
                    messages.append(({"do": "open", "sandbox": container}, _pidfd(pid)))
            except (OSError, TiffinError) as error:
                logger.error("names or ports of %s are not served: %s", container[:12], error)
        messages.append(({"do": "settled"}, ()))
        return messages

    @staticmethod
    def _hold_again(published: list[Port]) -> list[tuple[Port, socket.socket | None]]:
        held = []
        for port in published:
            try:
                held.append((port, ports.bind(port)))
            except OSError as error:
                # The firewall redirects it all the same; only localhost's IPv6 is lost.
                logger.warning("port %d could not be held again: %s", port.host_port, error)
        return held

    def shutdown(self, *, idle: bool) -> None:
        """Let go of everything; where nothing runs (``idle``), the host is left as it was."""
        self._flush()
        if self._broom is not None:
            self._leaving.put(None)
            self._broom.join()
        self._porter.close(shutdown=idle)
        if idle:
            for network in self.ledger.networks():
                if network.id in self._up and network.settings.driver == "bridge":
                    self._links.down(network)
            if self._firewall.installed:
                self._firewall.remove()
        self._links.close()


@dataclass(slots=True, eq=False)
class _Leaving:
    """A container whose ports are being taken back."""

    container: str
    endpoints: list[Endpoint]
    elements: list[firewall.Element] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


def _publishes(network: Network) -> bool:
    """Whether the ports of the host can lead into a network."""
    return network.settings.driver == "bridge" and not network.settings.internal


def is_named(network: Network) -> bool:
    """Whether the embedded name server knows who is in a network: not in the default one."""
    return not network.settings.options.get(DEFAULT_BRIDGE)


def host_address(network: Network) -> str:
    """The address of the host's that ports of a network are published at unless told otherwise."""
    return network.settings.options.get(HOST_BINDING, "")


def name_sockets(namespace: Namespace, *, redirect: bool = True) -> list[int]:
    """The embedded name server's sockets (UDP, TCP) in a namespace, as descriptors."""
    with namespace.visit():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for sock in (udp, tcp):
                sock.bind((EMBEDDED, firewall.NAMES_PORT))
            tcp.listen(16)
            if redirect:
                firewall.redirect_names(EMBEDDED)
            return [udp.detach(), tcp.detach()]
        except BaseException:
            udp.close()
            tcp.close()
            raise


def _pidfd(pid: int) -> list[int]:
    """A descriptor of a process; none if it has ended, which the keeper tells soon."""
    try:
        return [os.pidfd_open(pid)]
    except ProcessLookupError:
        return []
