"""A container's side of its networks: what it is to have, and its sandbox while it runs.

Which networks a container is in is part of its spec: Docker's ``EndpointsConfig``, by the networks'
names. Addresses and ports belong to a run of it, and are in the ledger of
:mod:`tiffin.network.ledger` while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiffin.engine.container import Container, Spec
from tiffin.engine.etcfiles import EtcFiles
from tiffin.engine.events import Events
from tiffin.engine.links import Links
from tiffin.engine.networkmodes import (
    BUILT_IN,
    NETWORK_IDS,
    SHARED,
    asked_networks,
    names_in,
)
from tiffin.engine.networkviews import NetworkViews
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.network import interfaces, ports
from tiffin.network.fabric import Fabric
from tiffin.network.ledger import Network
from tiffin.network.namespace import Namespace
from tiffin.network.plans import Place, SandboxPlan, host_address, is_named
from tiffin.network.settings import Asked, Endpoint

JSON = dict[str, Any]


class Sandboxes:
    """The sandboxes of a root's containers."""

    def __init__(self, root: Root, roster: Roster, fabric: Fabric, events: Events) -> None:
        self._roster = roster
        self._fabric = fabric
        self._events = events
        self.links = Links(roster, fabric.ledger)
        self.files = EtcFiles(root, fabric.ledger, self.links)
        self.views = NetworkViews(fabric.ledger)

    # -- what was asked ---------------------------------------------------------------------

    def settle(self, spec: Spec) -> None:
        """At creation: networks get their own names. One that is not there is missed at the start,
        as in Docker: to clients, what is not found at creation is the image.

        Raises InvalidParameter for another container that is not there.
        """
        endpoints = {}
        for name, body in (spec.networks.get("EndpointsConfig") or {}).items():
            network = None if name in BUILT_IN else self._fabric.ledger.find(name)
            endpoints[network.name if network else name] = body
            if network is not None:
                self._check(network, Asked.of_request(body))
        spec.networks = {"EndpointsConfig": endpoints}
        mode = spec.host["NetworkMode"]
        try:
            if mode.startswith(SHARED):
                target = self._roster.get(mode.removeprefix(SHARED))
                spec.host["NetworkMode"] = f"{SHARED}{target.id}"
                # It is called as the other is, whose files in /etc it has.
                for key in ("Hostname", "Domainname"):
                    spec.config[key] = target.spec.config.get(key) or ""
            if spec.host.get("Links"):
                spec.host["Links"] = self.links.settle(spec.host["Links"])
        except NotFound as error:
            raise InvalidParameter(error.message) from error

    @staticmethod
    def _check(network: Network, asked: Asked) -> None:
        for text, version in ((asked.ipv4, 4), (asked.ipv6, 6)):
            if text and network.subnet(version) is None:
                raise InvalidParameter(
                    "invalid endpoint settings:\nno configured subnet or ip-range contain the IP "
                    f"address {text}"
                )

    def plan(self, container: Container) -> SandboxPlan:
        """What a container needs of networks. Raises NotFound for one that is gone."""
        places = []
        default_address = ""
        for name, body in asked_networks(container).items():
            network = self._fabric.ledger.find_name(name)
            if network is None:
                raise NotFound(f"network {name} not found")
            asked = Asked.of_request(body)
            default_address = default_address or host_address(network)
            places.append(Place(network, asked, names_in(container, asked)))
        host = container.spec.host
        return SandboxPlan(
            container.id,
            container.name,
            places,
            ports.wanted(
                host.get("PortBindings"),
                container.spec.config.get("ExposedPorts") or {},
                bool(host.get("PublishAllPorts")),
                default_address,
            ),
            self.files.resolver(container).servers,
        )

    # -- the life of a sandbox --------------------------------------------------------------

    def open(self, container: Container) -> tuple[str | None, Namespace | None]:
        """Before a start: the path of the network namespace to join, None for a new and empty
        one, and what holds it until the container runs.

        The container's files in /etc are written. Raises TiffinError.
        """
        mode = container.spec.host["NetworkMode"]
        if mode.startswith(SHARED):
            target = self._target(container)
            return f"/proc/{target.state.pid}/ns/net", None
        namespace = None
        if not asked_networks(container).keys() <= set(BUILT_IN):
            namespace = self._fabric.open(self.plan(container))
        try:
            self.files.write(container)
        except BaseException:
            self._fabric.close(container.id)
            if namespace is not None:
                namespace.close()
            raise
        return (namespace.path if namespace is not None else None), namespace

    def _target(self, container: Container) -> Container:
        reference = container.spec.host["NetworkMode"].removeprefix(SHARED)
        target = self._roster.find(reference)
        if target is None:
            raise NotFound(f"No such container: {reference}")
        if not target.running:
            raise Conflict(
                f"cannot join network of a non running container: {target.id}: start "
                f"{target.name} first"
            )
        return target

    def started(self, container: Container, pid: int) -> None:
        """A container has its first process."""
        joined = self._fabric.ledger.of_container(container.id)
        if joined:
            self._fabric.started(container.id, pid)
        for network, _ in joined:
            self._tell("connect", network, container)

    def _tell(self, action: str, network: Network, container: Container) -> None:
        self._events.publish(
            "network",
            action,
            network.id,
            container=container.id,
            name=network.name,
            type=network.settings.driver,
        )

    def close(self, container: Container) -> None:
        """A container has ended, or did not start."""
        for network in self._fabric.close(container.id):
            self._tell("disconnect", network, container)

    def resume(self) -> None:
        """At start-up, when it is known what runs."""
        running: dict[str, tuple[SandboxPlan, int]] = {}
        for container in self._roster.all():
            if container.running and self._fabric.ledger.of_container(container.id):
                try:
                    running[container.id] = (self.plan(container), container.state.pid)
                except NotFound:
                    # Its network can't have been removed while it was in it; then it is not.
                    continue
        for key in self._fabric.resume(running):
            self.files.write(self._roster.get(key))

    def renamed(self, container: Container) -> None:
        """A container has another name."""
        if container.running and self._fabric.ledger.of_container(container.id):
            self._fabric.rename(self.plan(container))

    def connect(self, container: Container, network: Network, body: JSON | None) -> None:
        """Put a container into a network, now if it runs, and at each start from now on.

        The container's lock is held. Raises Forbidden (it is there already), InvalidParameter.
        """
        endpoints = asked_networks(container)
        if container.spec.host["NetworkMode"].startswith(SHARED):
            raise InvalidParameter(
                "container sharing network namespace with another container or host cannot be "
                "connected to any other network"
            )
        if "host" in endpoints:
            raise InvalidParameter(
                "container sharing network namespace with another container or host cannot be "
                "connected to any other network"
            )
        if "none" in endpoints:
            raise InvalidParameter(
                "container cannot be connected to multiple networks with one of the networks in "
                "private (none) mode"
            )
        if network.name in endpoints:
            raise Conflict(
                f"endpoint with name {container.name} already exists in network {network.name}"
            )
        asked = Asked.of_request(body)
        self._check(network, asked)
        if (asked.ipv4 or asked.ipv6) and not is_named(network):
            raise InvalidParameter(
                "invalid endpoint settings:\nuser specified IP address is supported on user "
                "defined networks only"
            )
        before = dict(endpoints)
        container.spec.networks = {"EndpointsConfig": {**endpoints, network.name: body or {}}}
        try:
            if container.running:
                plan = self.plan(container)
                self._fabric.connect(plan, plan.places[-1])
                self.files.write(container)
        except BaseException:
            container.spec.networks = {"EndpointsConfig": before}
            raise

    def disconnect(
        self, container: Container, name: str, record: Callable[[], None] = lambda: None
    ) -> None:
        """Take a container out of a network. The container's lock is held.

        ``record`` is called once its spec has changed, before anything else does: an engine that is
        killed meanwhile goes on from there. Raises Conflict where it is not in it.
        """
        endpoints = asked_networks(container)
        if name == "host":
            raise Conflict("container cannot be disconnected from host network or connected to it")
        if name not in endpoints:
            raise Conflict(f"container {container.id} is not connected to network {name}")
        rest = {key: body for key, body in endpoints.items() if key != name}
        container.spec.networks = {"EndpointsConfig": rest}
        record()
        network = self._fabric.ledger.find_name(name)
        if container.running and network is not None:
            self._fabric.disconnect(self.plan(container), network)
            self.files.write(container)

    def statistics(self, container: Container) -> dict[str, dict[str, int]]:
        """What has gone through a running container's interfaces: name → Docker's NetworkStats.

        Those of another container, if it is in that one's network; none in the host's.
        """
        mode = container.spec.host["NetworkMode"]
        owner = mode.removeprefix(SHARED) if mode.startswith(SHARED) else container.id
        names = [endpoint.interface for _, endpoint in self._fabric.ledger.of_container(owner)]
        return interfaces.counts(container.state.pid, names) if names else {}

    def members(self, network: Network) -> Mapping[str, tuple[Container, Endpoint]]:
        """The running containers of a network, by ID."""
        found = {}
        for key, endpoint in list(network.endpoints.items()):
            container = self._roster.find(key)
            if container is not None:
                found[key] = (container, endpoint)
        return found

    def uses(self, container: Container, references: Sequence[str]) -> bool:
        """Whether a container is in any of some networks, by name or ID."""
        for name in asked_networks(container):
            network = self._fabric.ledger.find_name(name)
            key = network.id if network is not None else NETWORK_IDS.get(name, "")
            if any(name == one or (key and key.startswith(one)) for one in references):
                return True
        return False

    def users(self, name: str) -> list[Container]:
        """The containers that are, or at their next start will be, in a network."""
        return [one for one in self._roster.all() if name in asked_networks(one)]
