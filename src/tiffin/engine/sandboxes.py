"""A container's side of its networks: what was asked, its sandbox, its files, Docker's views.

Which networks a container is in is part of its spec: Docker's ``EndpointsConfig``, by the networks'
names. Addresses and ports belong to a run of it, and are in the ledger of
:mod:`tiffin.network.ledger` while it runs.

Source: Docker Engine API v1.50, ``EndpointSettings``, ``NetworkSettings``, ``PortSummary``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiffin.engine.container import Container, Spec
from tiffin.engine.events import Events
from tiffin.engine.isolation import hostname
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.network import interfaces, ports
from tiffin.network.fabric import DEFAULT, Fabric, Place, SandboxPlan, host_address, is_named
from tiffin.network.files import (
    Resolver,
    embedded_resolv_conf,
    hosts_text,
    plain_resolv_conf,
)
from tiffin.network.ledger import Network
from tiffin.network.namespace import Namespace
from tiffin.network.settings import Asked, Endpoint

JSON = dict[str, Any]

BUILT_IN = ("none", "host")
"""Networks that are none: there is nothing to make for them."""
NETWORK_IDS = {"none": f"{1:012x}{0:052x}", "host": f"{2:012x}{0:052x}"}
"""They have fixed IDs."""

_SHARED = "container:"
_HOST_RESOLV_CONF = Path("/etc/resolv.conf")


def normalise(config: JSON, host: JSON, networking: JSON) -> JSON:
    """The networks that a container is to be in, by name as it was written: Docker's
    ``EndpointsConfig``, the one of ``NetworkMode`` first.

    Raises InvalidParameter, in Docker's words, for what contradicts itself.
    """
    mode = host.get("NetworkMode") or "default"
    if mode == "default":
        mode = DEFAULT
    given = {
        (DEFAULT if name == "default" else name): body or {}
        for name, body in (networking.get("EndpointsConfig") or {}).items()
    }
    mac = config.get("MacAddress") or ""
    if mode.startswith(_SHARED):
        _check_shared(config, host, mac)
        if given.keys() - {mode}:
            raise InvalidParameter(
                "conflicting options: cannot attach both to a container's network and to others"
            )
        return {}
    if mode in BUILT_IN:
        others = given.keys() - {mode}
        if others:
            raise InvalidParameter(
                f"conflicting options: cannot attach both user-defined and non-user-defined "
                f"network-modes ({mode} and {', '.join(sorted(others))})"
            )
        if mac and mode == "host":
            raise InvalidParameter("conflicting options: mac-address and the network mode")
        return {mode: given.get(mode, {})}
    endpoints = {mode: dict(given.pop(mode, {})), **given}
    if mac and not endpoints[mode].get("MacAddress"):
        endpoints[mode]["MacAddress"] = mac
    for name, body in endpoints.items():
        asked = Asked.of_request(body)
        if name in BUILT_IN:
            raise InvalidParameter(
                "conflicting options: cannot attach both user-defined and non-user-defined "
                f"network-modes ({mode} and {name})"
            )
        if name == DEFAULT and (asked.ipv4 or asked.ipv6):
            raise InvalidParameter(
                "invalid endpoint settings:\nuser specified IP address is supported on user "
                "defined networks only"
            )
        if name == DEFAULT and asked.aliases:
            raise InvalidParameter(
                "invalid endpoint settings:\nnetwork-scoped aliases are only supported for "
                "user-defined networks"
            )
    if host.get("Links") and mode != DEFAULT:
        endpoints[mode]["Links"] = [*(endpoints[mode].get("Links") or []), *host["Links"]]
    # What makes no sense is said at once, not at the start.
    ports.wanted(host.get("PortBindings"), config.get("ExposedPorts") or {}, False)
    return endpoints


def _check_shared(config: JSON, host: JSON, mac: str) -> None:
    for wrong, what in (
        (config.get("Hostname"), "hostname"),
        (host.get("Links"), "links"),
        (host.get("Dns") or host.get("DnsSearch") or host.get("DnsOptions"), "dns"),
        (host.get("ExtraHosts"), "custom host-to-IP mapping"),
        (mac, "mac-address"),
    ):
        if wrong:
            raise InvalidParameter(f"conflicting options: {what} and the network mode")
    if host.get("PortBindings") or host.get("PublishAllPorts"):
        raise InvalidParameter(
            "conflicting options: port publishing and the container type network mode"
        )
    if config.get("ExposedPorts"):
        raise InvalidParameter(
            "conflicting options: port exposing and the container type network mode"
        )


class Sandboxes:
    """The sandboxes of a root's containers."""

    def __init__(self, root: Root, roster: Roster, fabric: Fabric, events: Events) -> None:
        self._root = root
        self._roster = roster
        self._fabric = fabric
        self._events = events

    # -- what was asked ---------------------------------------------------------------------

    @staticmethod
    def asked(container: Container) -> dict[str, JSON]:
        """The networks that a container is to be in: name → Docker's EndpointSettings."""
        endpoints: dict[str, JSON] = container.spec.networks.get("EndpointsConfig") or {}
        return endpoints

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
            if mode.startswith(_SHARED):
                target = self._roster.get(mode.removeprefix(_SHARED))
                spec.host["NetworkMode"] = f"{_SHARED}{target.id}"
            for text in spec.host.get("Links") or []:
                self._roster.get(text.partition(":")[0])
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

    def _names(self, container: Container, asked: Asked) -> list[str]:
        names = [container.name, *asked.aliases, container.id[:12]]
        own = container.spec.config.get("Hostname") or ""
        if own:
            names.append(own)
        return list(dict.fromkeys(names))

    def plan(self, container: Container) -> SandboxPlan:
        """What a container needs of networks. Raises NotFound for one that is gone."""
        places = []
        default_address = ""
        for name, body in self.asked(container).items():
            network = self._fabric.ledger.find_name(name)
            if network is None:
                raise NotFound(f"network {name} not found")
            asked = Asked.of_request(body)
            default_address = default_address or host_address(network)
            places.append(Place(network, asked, self._names(container, asked)))
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
            self._resolver(container).servers,
        )

    # -- the life of a sandbox --------------------------------------------------------------

    def open(self, container: Container) -> tuple[str | None, Namespace | None]:
        """Before a start: the path of the network namespace to join, None for a new and empty
        one, and what holds it until the container runs.

        The container's files in /etc are written. Raises TiffinError.
        """
        mode = container.spec.host["NetworkMode"]
        if mode.startswith(_SHARED):
            target = self._target(container)
            return f"/proc/{target.state.pid}/ns/net", None
        namespace = None
        if not self.asked(container).keys() <= set(BUILT_IN):
            namespace = self._fabric.open(self.plan(container))
        try:
            self.write_files(container)
        except BaseException:
            self._fabric.close(container.id)
            if namespace is not None:
                namespace.close()
            raise
        return (namespace.path if namespace is not None else None), namespace

    def _target(self, container: Container) -> Container:
        reference = container.spec.host["NetworkMode"].removeprefix(_SHARED)
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
        running = {}
        for container in self._roster.all():
            if container.running and self._fabric.ledger.of_container(container.id):
                try:
                    running[container.id] = (self.plan(container), container.state.pid)
                except NotFound:
                    # Its network can't have been removed while it was in it; then it is not.
                    continue
        self._fabric.resume(running)

    def renamed(self, container: Container) -> None:
        """A container has another name."""
        if container.running and self._fabric.ledger.of_container(container.id):
            self._fabric.rename(self.plan(container))

    def connect(self, container: Container, network: Network, body: JSON | None) -> None:
        """Put a container into a network, now if it runs, and at each start from now on.

        The container's lock is held. Raises Forbidden (it is there already), InvalidParameter.
        """
        endpoints = self.asked(container)
        if container.spec.host["NetworkMode"].startswith(_SHARED):
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
                self.write_files(container)
        except BaseException:
            container.spec.networks = {"EndpointsConfig": before}
            raise

    def disconnect(self, container: Container, name: str) -> None:
        """Take a container out of a network. The container's lock is held. Raises Forbidden."""
        endpoints = self.asked(container)
        if name == "host":
            raise Conflict("container cannot be disconnected from host network or connected to it")
        if name not in endpoints:
            raise Conflict(f"container {container.id} is not connected to network {name}")
        rest = {key: body for key, body in endpoints.items() if key != name}
        container.spec.networks = {"EndpointsConfig": rest}
        network = self._fabric.ledger.find_name(name)
        if container.running and network is not None:
            self._fabric.disconnect(self.plan(container), network)
            self.write_files(container)

    # -- files ------------------------------------------------------------------------------

    def _resolver(self, container: Container) -> Resolver:
        try:
            text = _HOST_RESOLV_CONF.read_text()
        except FileNotFoundError:
            text = ""
        host = container.spec.host
        return Resolver.parse(text).with_overrides(
            host.get("Dns") or [], host.get("DnsSearch") or [], host.get("DnsOptions") or []
        )

    def write_files(self, container: Container) -> None:
        """Write the files that are mounted over the container's /etc, as Docker writes them.

        They are written in place: a running container sees the new content.
        """
        mode = container.spec.host["NetworkMode"]
        if mode.startswith(_SHARED):
            return
        folder = self._root.container(container.id)
        name = hostname(container)
        domain = container.spec.config.get("Domainname") or ""
        (folder / "hostname").write_text(f"{name}.{domain}\n" if domain else f"{name}\n")
        joined = self._fabric.ledger.of_container(container.id)
        extra = self._extra_hosts(container, joined)
        if mode == "host":
            source = Path("/etc/hosts")
            hosts = source.read_text() if source.exists() else ""
            hosts += "".join(f"{address}\t{host}\n" for host, address in extra)
        else:
            addresses = [
                address
                for _, endpoint in joined
                for address in (endpoint.address(4), endpoint.address(6))
                if address
            ]
            if not addresses and domain:
                addresses = ["127.0.0.1"]
            hosts = hosts_text(name, domain, addresses, extra, self._links(container))
        (folder / "hosts").write_text(hosts)
        self._write_resolv_conf(container, folder / "resolv.conf", joined)
        for file in ("hostname", "hosts", "resolv.conf"):
            # Whatever this process's umask: every user in the container reads them.
            (folder / file).chmod(0o644)

    def _write_resolv_conf(
        self, container: Container, path: Path, joined: list[tuple[Network, Endpoint]]
    ) -> None:
        host = container.spec.host
        overridden = any(host.get(key) for key in ("Dns", "DnsSearch", "DnsOptions"))
        if any(is_named(network) for network, _ in joined):
            text = embedded_resolv_conf(self._resolver(container))
        elif host["NetworkMode"] == "host" and not overridden:
            text = _HOST_RESOLV_CONF.read_text() if _HOST_RESOLV_CONF.exists() else ""
        else:
            ipv6 = not joined or any(endpoint.ipv6 for _, endpoint in joined)
            text = plain_resolv_conf(self._resolver(container), ipv6=ipv6)
        path.write_text(text)

    def _extra_hosts(
        self, container: Container, joined: list[tuple[Network, Endpoint]]
    ) -> list[tuple[str, str]]:
        found = []
        for text in container.spec.host.get("ExtraHosts") or []:
            name, _, address = text.partition(":")
            if address == "host-gateway":
                gateway = self._host_gateway(joined)
                if not gateway:
                    raise InvalidParameter(
                        f"invalid IP address in add-host: {text}: there is no bridge to the host"
                    )
                address = gateway
            found.append((name, address))
        return found

    def _host_gateway(self, joined: list[tuple[Network, Endpoint]]) -> str:
        """The host's address as the container reaches it: that of its (first) bridge."""
        networks = [network for network, _ in joined if network.settings.driver == "bridge"]
        default = self._fabric.ledger.find_name(DEFAULT)
        for network in networks or ([default] if default is not None else []):
            subnet = network.subnet(4) or network.subnet(6)
            if subnet is not None and subnet.gateway is not None:
                return str(subnet.gateway)
        return ""

    def _links(self, container: Container) -> list[tuple[str, list[str]]]:
        """The lines of ``--link`` on the default network, which has no name server."""
        found = []
        for text in container.spec.host.get("Links") or []:
            reference, _, alias = text.partition(":")
            try:
                target = self._roster.get(reference)
            except NotFound:
                continue
            for network, endpoint in self._fabric.ledger.of_container(target.id):
                if not is_named(network):
                    names = [alias or target.name, target.id[:12], target.name]
                    found.append((endpoint.address(4), list(dict.fromkeys(names))))
        return found

    def link_environment(self, container: Container) -> list[str]:
        """The variables of ``--link`` on the default network: where the ports of the other are."""
        if DEFAULT not in self.asked(container):
            return []
        variables = []
        for text in container.spec.host.get("Links") or []:
            reference, _, alias = text.partition(":")
            try:
                target = self._roster.get(reference)
            except NotFound:
                continue
            address = next(
                (
                    endpoint.address(4)
                    for network, endpoint in self._fabric.ledger.of_container(target.id)
                    if not is_named(network)
                ),
                "",
            )
            if not address:
                raise Conflict(
                    f"Cannot link to a non running container: /{target.name} AS "
                    f"/{container.name}/{alias or target.name}"
                )
            name = (alias or target.name).upper().replace("-", "_")
            variables.append(f"{name}_NAME=/{container.name}/{alias or target.name}")
            for position, key in enumerate(sorted(target.spec.config.get("ExposedPorts") or {})):
                port, protocol = ports.parse_port(key)
                url = f"{protocol}://{address}:{port}"
                prefix = f"{name}_PORT_{port}_{protocol.upper()}"
                if not position:
                    variables.append(f"{name}_PORT={url}")
                variables += [
                    f"{prefix}={url}",
                    f"{prefix}_ADDR={address}",
                    f"{prefix}_PORT={port}",
                    f"{prefix}_PROTO={protocol}",
                ]
        return variables

    def folder(self, container: Container) -> Path:
        """Where the files lie that a container finds in its /etc."""
        mode = container.spec.host["NetworkMode"]
        if mode.startswith(_SHARED):
            return self._root.container(mode.removeprefix(_SHARED))
        return self._root.container(container.id)

    # -- Docker's views ---------------------------------------------------------------------

    def statistics(self, container: Container) -> dict[str, dict[str, int]]:
        """What has gone through a running container's interfaces: name → Docker's NetworkStats.

        Those of another container, if it is in that one's network; none in the host's.
        """
        mode = container.spec.host["NetworkMode"]
        owner = mode.removeprefix(_SHARED) if mode.startswith(_SHARED) else container.id
        names = [endpoint.interface for _, endpoint in self._fabric.ledger.of_container(owner)]
        return interfaces.counts(container.state.pid, names) if names else {}

    def networks_view(self, container: Container) -> JSON:
        """``NetworkSettings.Networks``."""
        joined = {
            network.name: (network, endpoint)
            for network, endpoint in self._fabric.ledger.of_container(container.id)
        }
        view = {}
        for name, body in self.asked(container).items():
            pair = joined.get(name)
            if pair is None:
                network = self._fabric.ledger.find_name(name)
                key = NETWORK_IDS.get(name) or (network.id if network is not None else "")
                view[name] = self._endpoint_view(container, name, body, key)
            else:
                view[name] = self._endpoint_view(container, name, body, pair[0].id, *pair)
        return view

    def _endpoint_view(
        self,
        container: Container,
        name: str,
        body: JSON,
        key: str,
        network: Network | None = None,
        endpoint: Endpoint | None = None,
    ) -> JSON:
        view: JSON = {
            "IPAMConfig": body.get("IPAMConfig"),
            "Links": body.get("Links"),
            "Aliases": body.get("Aliases"),
            "MacAddress": "",
            "DriverOpts": body.get("DriverOpts"),
            "GwPriority": body.get("GwPriority") or 0,
            "NetworkID": key,
            "EndpointID": "",
            "Gateway": "",
            "IPAddress": "",
            "IPPrefixLen": 0,
            "IPv6Gateway": "",
            "GlobalIPv6Address": "",
            "GlobalIPv6PrefixLen": 0,
            "DNSNames": None,
        }
        if name not in BUILT_IN and (network is None or is_named(network)) and name != DEFAULT:
            view["DNSNames"] = self._names(container, Asked.of_request(body))
        if network is not None and endpoint is not None:
            v4, v6 = network.subnet(4), network.subnet(6)
            view.update(
                EndpointID=endpoint.id,
                MacAddress=endpoint.mac,
                Gateway=_gateway(network, v4.gateway if v4 else None),
                IPAddress=endpoint.address(4),
                IPPrefixLen=int(endpoint.ipv4.partition("/")[2] or 0),
                IPv6Gateway=_gateway(network, v6.gateway if v6 else None),
                GlobalIPv6Address=endpoint.address(6),
                GlobalIPv6PrefixLen=int(endpoint.ipv6.partition("/")[2] or 0),
            )
        return view

    def settings_view(self, container: Container) -> JSON:
        """``NetworkSettings`` of ``inspect``."""
        networks = self.networks_view(container)
        first = networks.get(DEFAULT, {})
        pid = container.state.pid
        return {
            "Bridge": "",
            "SandboxID": container.id if container.running else "",
            "SandboxKey": f"/proc/{pid}/ns/net" if container.running and pid else "",
            "Ports": self._ports_map(container),
            "HairpinMode": False,
            "LinkLocalIPv6Address": "",
            "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": None,
            "SecondaryIPv6Addresses": None,
            **{
                key: first.get(key, default)
                for key, default in (
                    ("EndpointID", ""),
                    ("Gateway", ""),
                    ("GlobalIPv6Address", ""),
                    ("GlobalIPv6PrefixLen", 0),
                    ("IPAddress", ""),
                    ("IPPrefixLen", 0),
                    ("IPv6Gateway", ""),
                    ("MacAddress", ""),
                )
            },
            "Networks": networks,
        }

    def _ports_map(self, container: Container) -> JSON:
        if not container.running or container.spec.host["NetworkMode"] == "host":
            return {}
        view: JSON = {}
        for key in container.spec.config.get("ExposedPorts") or {}:
            port, protocol = ports.parse_port(key)
            view[f"{port}/{protocol}"] = None
        for one in self._fabric.ledger.ports(container.id):
            key = f"{one.container_port}/{one.protocol}"
            view[key] = [
                *(view.get(key) or []),
                {"HostIp": one.host_address, "HostPort": str(one.host_port)},
            ]
        return view

    def ports_view(self, container: Container) -> list[JSON]:
        """``Ports`` of a row of ``ps``."""
        rows = []
        for key, hosts in self._ports_map(container).items():
            port, protocol = ports.parse_port(key)
            if not hosts:
                rows.append({"PrivatePort": port, "Type": protocol})
            rows += [
                {
                    "IP": host["HostIp"],
                    "PrivatePort": port,
                    "PublicPort": int(host["HostPort"]),
                    "Type": protocol,
                }
                for host in hosts or []
            ]
        return rows

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
        for name in self.asked(container):
            network = self._fabric.ledger.find_name(name)
            key = network.id if network is not None else NETWORK_IDS.get(name, "")
            if any(name == one or (key and key.startswith(one)) for one in references):
                return True
        return False

    def users(self, name: str) -> list[Container]:
        """The containers that are, or at their next start will be, in a network."""
        return [one for one in self._roster.all() if name in self.asked(one)]


def _gateway(network: Network, address: Any) -> str:
    return "" if address is None or network.settings.internal else str(address)
