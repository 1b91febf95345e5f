"""The files that are mounted over a container's /etc, as Docker writes them."""

from __future__ import annotations

from pathlib import Path

from tiffin.engine.container import Container
from tiffin.engine.isolation import hostname
from tiffin.engine.links import Links
from tiffin.engine.networkmodes import SHARED
from tiffin.engine.root import Root
from tiffin.errors import InvalidParameter
from tiffin.network.files import (
    Resolver,
    embedded_resolv_conf,
    hosts_text,
    plain_resolv_conf,
)
from tiffin.network.ledger import Ledger, Network
from tiffin.network.plans import is_named
from tiffin.network.realm import DEFAULT
from tiffin.network.settings import Endpoint

_HOST_RESOLV_CONF = Path("/etc/resolv.conf")


class EtcFiles:
    """The files of a root's containers: ``hosts``, ``hostname``, ``resolv.conf``."""

    def __init__(self, root: Root, ledger: Ledger, links: Links) -> None:
        self._root = root
        self._ledger = ledger
        self._links = links

    def resolver(self, container: Container) -> Resolver:
        try:
            text = _HOST_RESOLV_CONF.read_text()
        except FileNotFoundError:
            text = ""
        host = container.spec.host
        return Resolver.parse(text).with_overrides(
            host.get("Dns") or [], host.get("DnsSearch") or [], host.get("DnsOptions") or []
        )

    def write(self, container: Container) -> None:
        """Write the files that are mounted over the container's /etc, as Docker writes them.

        They are written in place: a running container sees the new content.
        """
        mode = container.spec.host["NetworkMode"]
        if mode.startswith(SHARED):
            return
        folder = self._root.container(container.id)
        name = hostname(container)
        domain = container.spec.config.get("Domainname") or ""
        (folder / "hostname").write_text(f"{name}\n")
        joined = self._ledger.of_container(container.id)
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
            hosts = hosts_text(name, domain, addresses, extra, self._links.hosts(container))
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
            text = embedded_resolv_conf(self.resolver(container))
        elif host["NetworkMode"] == "host" and not overridden:
            text = _HOST_RESOLV_CONF.read_text() if _HOST_RESOLV_CONF.exists() else ""
        else:
            ipv6 = not joined or any(endpoint.ipv6 for _, endpoint in joined)
            text = plain_resolv_conf(self.resolver(container), ipv6=ipv6)
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
        default = self._ledger.find_name(DEFAULT)
        for network in networks or ([default] if default is not None else []):
            subnet = network.subnet(4) or network.subnet(6)
            if subnet is not None and subnet.gateway is not None:
                return str(subnet.gateway)
        return ""

    def folder(self, container: Container) -> Path:
        """Where the files lie that a container finds in its /etc."""
        mode = container.spec.host["NetworkMode"]
        if mode.startswith(SHARED):
            return self._root.container(mode.removeprefix(SHARED))
        return self._root.container(container.id)
