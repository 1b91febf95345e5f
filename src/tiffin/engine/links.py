"""Links: what ``--link`` gives a container of the default network, which has no name server.

A link is kept as ``ID:ALIAS``, so that it holds when the other container is renamed. It gives lines
in ``/etc/hosts`` and variables that tell the other's address, ports and environment. On a network
of one's own a link is a name for one container, which its name server knows.

Source: docs.docker.com, "Legacy container links".
"""

from __future__ import annotations

from collections.abc import Iterator

from tiffin.engine.container import Container
from tiffin.engine.networkmodes import asked_networks
from tiffin.engine.roster import Roster
from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.network import ports
from tiffin.network.ledger import Ledger
from tiffin.network.plans import is_named
from tiffin.network.realm import DEFAULT

_NOT_TOLD = ("HOME", "PATH")


def split(text: str) -> tuple[str, str]:
    """(container, alias) of ``NAME:ALIAS``; without an alias it is the name's."""
    target, _, alias = text.partition(":")
    return target.removeprefix("/"), (alias or target).removeprefix("/")


class Links:
    """The links of a root's containers."""

    def __init__(self, roster: Roster, ledger: Ledger) -> None:
        self._roster = roster
        self._ledger = ledger

    def settle(self, links: list[str]) -> list[str]:
        """At creation: links by ID. Raises NotFound."""
        found = []
        for text in links:
            target, alias = split(text)
            try:
                found.append(f"{self._roster.get(target).id}:{alias}")
            except NotFound as error:
                raise NotFound(f"could not get container for {target}: {error.message}") from error
        return found

    def _targets(self, container: Container) -> Iterator[tuple[Container, str]]:
        for text in container.spec.host.get("Links") or []:
            reference, alias = split(text)
            try:
                yield self._roster.get(reference), alias
            except NotFound:
                # It was removed meanwhile.
                continue

    def _address(self, target: Container) -> str:
        for network, endpoint in self._ledger.of_container(target.id):
            if not is_named(network):
                return endpoint.address(4)
        return ""

    def hosts(self, container: Container) -> list[tuple[str, list[str]]]:
        """The lines of ``/etc/hosts``: address and names."""
        found = []
        for target, alias in self._targets(container):
            address = self._address(target)
            if address:
                names = [alias, target.id[:12], target.name]
                found.append((address, list(dict.fromkeys(names))))
        return found

    def environment(self, container: Container, *, starting: bool = False) -> list[str]:
        """The variables; ``starting``: raises Conflict for a container that does not run."""
        if DEFAULT not in asked_networks(container):
            return []
        variables = []
        for target, alias in self._targets(container):
            address = self._address(target)
            if not address and not starting:
                continue
            if not address:
                raise Conflict(
                    f"Cannot link to a non running container: /{target.name} AS "
                    f"/{container.name}/{alias}"
                )
            name = alias.upper().replace("-", "_")
            variables.append(f"{name}_NAME=/{container.name}/{alias}")
            exposed = sorted(
                (ports.parse_port(key) for key in target.spec.config.get("ExposedPorts") or {}),
                key=lambda one: (one[0], one[1] != "tcp"),
            )
            for position, (port, protocol) in enumerate(exposed):
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
            for text in target.spec.config.get("Env") or []:
                key, equals, _ = text.partition("=")
                if equals and key not in _NOT_TOLD:
                    variables.append(f"{name}_ENV_{text}")
        return variables

    def view(self, container: Container) -> list[str] | None:
        """``HostConfig.Links`` of ``inspect``: ``/TARGET:/NAME/ALIAS``."""
        if not container.spec.host.get("Links"):
            return None
        return [
            f"/{target.name}:/{container.name}/{alias}"
            for target, alias in self._targets(container)
        ]

    def names(self) -> dict[str, list[str]]:
        """What linked containers are called by those that link to them: ID → ``/NAME/ALIAS``."""
        found: dict[str, list[str]] = {}
        for container in self._roster.all():
            for target, alias in self._targets(container):
                found.setdefault(target.id, []).append(f"/{container.name}/{alias}")
        return found

    def remove(self, name: str) -> Container:
        """Remove the link ``NAME/ALIAS``; the container whose spec has changed.

        Raises InvalidParameter for what is no link's name, NotFound.
        """
        holder, slash, alias = name.removeprefix("/").partition("/")
        if not slash:
            raise InvalidParameter(f"Conflict, cannot remove the default link name of {name}")
        container = self._roster.get(holder)
        with container.lock:
            links = container.spec.host.get("Links") or []
            rest = [text for text in links if split(text)[1] != alias]
            if len(rest) == len(links):
                raise NotFound(f"Cannot get parent /{holder} for name /{holder}/{alias}")
            container.spec.host["Links"] = rest
        return container
