"""Docker's views of a container's networks and ports.

Source: Docker Engine API v1.50, ``NetworkSettings``, ``EndpointSettings``, ``PortSummary``.
"""

from __future__ import annotations

from typing import Any

from tiffin.engine.container import Container
from tiffin.engine.networkmodes import BUILT_IN, NETWORK_IDS, asked_networks, names_in
from tiffin.network import ports
from tiffin.network.ledger import Ledger, Network
from tiffin.network.plans import is_named
from tiffin.network.realm import DEFAULT
from tiffin.network.settings import Asked, Endpoint

JSON = dict[str, Any]


class NetworkViews:
    """What ``inspect`` and ``ps`` show of networks."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def networks_view(self, container: Container) -> JSON:
        """``NetworkSettings.Networks``."""
        joined = {
            network.name: (network, endpoint)
            for network, endpoint in self._ledger.of_container(container.id)
        }
        view = {}
        for name, body in asked_networks(container).items():
            pair = joined.get(name)
            if pair is None:
                network = self._ledger.find_name(name)
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
            "MacAddress": body.get("MacAddress") or "",
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
            view["DNSNames"] = names_in(container, Asked.of_request(body))
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
        joined = [network for network, _ in self._ledger.of_container(container.id)]
        if joined and all(network.settings.driver != "bridge" for network in joined):
            # As in Docker: past a parent nothing is published, nor shown as if it could be.
            return view
        for key in container.spec.config.get("ExposedPorts") or {}:
            port, protocol = ports.parse_port(key)
            view[f"{port}/{protocol}"] = None
        for one in self._ledger.ports(container.id):
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


def _gateway(network: Network, address: Any) -> str:
    return "" if address is None or not network.settings.leads_out else str(address)
