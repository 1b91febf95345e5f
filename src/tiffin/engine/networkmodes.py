"""Network modes: what a container asks of networks, checked.

``NetworkMode`` is ``default``, ``none``, ``host``, ``container:ID`` or a network's name; Docker's
``EndpointsConfig`` says more about that one network and about further ones.

Source: Docker Engine API v1.50, ``HostConfig.NetworkMode``, ``NetworkingConfig``.
"""

from __future__ import annotations

from typing import Any

from tiffin.engine.container import Container
from tiffin.errors import InvalidParameter
from tiffin.network import ports
from tiffin.network.realm import DEFAULT
from tiffin.network.settings import Asked

JSON = dict[str, Any]

BUILT_IN = ("none", "host")
"""Networks that are none: there is nothing to make for them."""
NETWORK_IDS = {"none": f"{1:012x}{0:052x}", "host": f"{2:012x}{0:052x}"}
"""They have fixed IDs."""
SHARED = "container:"
"""What the mode begins with that is another container's network."""


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
    if mode.startswith(SHARED):
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
        (host.get("Dns") or host.get("DnsSearch") or host.get("DnsOptions"), "dns"),
        (host.get("ExtraHosts"), "custom host-to-IP mapping"),
        (mac, "mac-address"),
    ):
        if wrong:
            raise InvalidParameter(f"conflicting options: {what} and the network mode")
    if host.get("Links"):
        raise InvalidParameter(
            "conflicting options: container type network can't be used with links. This would "
            "result in undefined behavior"
        )
    if host.get("PortBindings") or host.get("PublishAllPorts"):
        raise InvalidParameter(
            "conflicting options: port publishing and the container type network mode"
        )
    if config.get("ExposedPorts"):
        raise InvalidParameter(
            "conflicting options: port exposing and the container type network mode"
        )


def asked_networks(container: Container) -> dict[str, JSON]:
    """The networks that a container is to be in: name → Docker's EndpointSettings."""
    endpoints: dict[str, JSON] = container.spec.networks.get("EndpointsConfig") or {}
    return endpoints


def names_in(container: Container, asked: Asked) -> list[str]:
    """What a container is called in a network."""
    names = [container.name, *asked.aliases, container.id[:12]]
    own = container.spec.config.get("Hostname") or ""
    if own:
        names.append(own)
    return list(dict.fromkeys(names))
