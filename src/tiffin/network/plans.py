"""Plans: what a container needs of networks, and what a network can do for one."""

from __future__ import annotations

from dataclasses import dataclass, field

from tiffin.network import ports
from tiffin.network.ledger import Network
from tiffin.network.settings import DEFAULT_BRIDGE, HOST_BINDING, Asked


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


def publishes(network: Network) -> bool:
    """Whether the ports of the host can lead into a network."""
    return network.settings.driver == "bridge" and not network.settings.internal


def is_named(network: Network) -> bool:
    """Whether the embedded name server knows who is in a network: not in the default one."""
    return not network.settings.options.get(DEFAULT_BRIDGE)


def host_address(network: Network) -> str:
    """The address of the host's that ports of a network are published at unless told otherwise."""
    return network.settings.options.get(HOST_BINDING, "")
