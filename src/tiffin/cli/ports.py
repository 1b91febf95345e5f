"""``-p`` and ``--expose``: which ports of a container are published where.

``-p [[ADDRESS:][HOST_PORT]:]CONTAINER_PORT[/PROTOCOL]``, with ranges on both sides.
"""

from __future__ import annotations

from tiffin.errors import InvalidParameter

_PROTOCOLS = ("tcp", "udp", "sctp")
_HIGHEST = 65535


def _range(text: str, what: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise InvalidParameter(f"invalid {what}: {text}")
    low, high = int(first), int(last) if dash else int(first)
    if high > _HIGHEST or low > high:
        raise InvalidParameter(f"invalid {what}: {text}")
    return low, high


def _protocol(text: str) -> tuple[str, str]:
    ports, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in _PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {protocol}")
    return ports, protocol


def published(texts: list[str]) -> dict[str, list[dict[str, str]]]:
    """The API's PortBindings of ``-p`` flags; raises InvalidParameter."""
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        ports, protocol = _protocol(text)
        rest, _, container = ports.rpartition(":")
        address, colon, host = rest.rpartition(":")
        if not colon:
            address, host = "", rest
        if address[:1] == "[" and address[-1:] == "]":
            address = address[1:-1]
        if not container:
            raise InvalidParameter("no port specified: " + text + "<empty>")
        low, high = _range(container, "containerPort")
        host_low, host_high = _range(host, "hostPort") if host else (0, 0)
        one_of_many = host and high == low and host_high > host_low
        if host and not one_of_many and host_high - host_low != high - low:
            raise InvalidParameter(
                f"invalid ranges specified for container and host Ports: {container} and {host}"
            )
        for offset in range(high - low + 1):
            published_at = host if one_of_many else str(host_low + offset) if host else ""
            bindings.setdefault(f"{low + offset}/{protocol}", []).append(
                {"HostIp": address, "HostPort": published_at}
            )
    return bindings


def exposed(texts: list[str]) -> list[str]:
    """The ports of ``--expose`` flags, each with its protocol; raises InvalidParameter."""
    found: list[str] = []
    for text in texts:
        if ":" in text:
            raise InvalidParameter(f"invalid port format for --expose: {text}")
        ports, protocol = _protocol(text)
        try:
            low, high = _range(ports, "range")
        except InvalidParameter:
            raise InvalidParameter(f"invalid range format for --expose: {text}") from None
        found.extend(f"{port}/{protocol}" for port in range(low, high + 1))
    return found
