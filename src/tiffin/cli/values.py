"""What the texts of single flags mean: environment, labels, limits, devices, signals of health.

Each function takes the text of one flag, returns the value that the API takes, and raises
ValueError with docker's sentence for a text that makes no sense.
"""

from __future__ import annotations

import json
import os

from tiffin.cli.flags import Kind, parse_int, quote
from tiffin.errors import InvalidParameter
from tiffin.units import parse_duration, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ULIMITS = frozenset(
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending "
    "stack".split()
)
_SYSCTL_PREFIXES = ("net.", "fs.mqueue.")
_SYSCTL_NAMES = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax "
    "kernel.shmmni kernel.shm_rmid_forced".split()
)


def environment(text: str) -> str:
    """``NAME=value`` as it is; ``NAME`` alone is looked up by ``resolve_environment``."""
    if not text.partition("=")[0]:
        raise ValueError(f"invalid environment variable: {text}")
    return text


def resolve_environment(texts: list[str]) -> list[str]:
    """A name without a value gets the one that it has here, or means "unset".

    Of several texts for one name the last one counts.
    """
    resolved: dict[str, str] = {}
    for text in texts:
        name, equals, _ = text.partition("=")
        if not equals and name in os.environ:
            text = f"{name}={os.environ[name]}"
        resolved[name] = text
    return list(resolved.values())


def platform_object(text: str) -> str | None:
    """``os/architecture[/variant]`` (or an architecture) as the JSON that the API takes for images
    that are here; None if empty."""
    if not text:
        return None
    parts = text.split("/")
    named = dict(zip(("os", "architecture", "variant"), parts, strict=False))
    if len(parts) == 1:
        named = {"os": "linux", "architecture": text}
    return json.dumps(named)


def label(text: str) -> str:
    """``name=value``, or a name alone (its value is empty)."""
    if not text.partition("=")[0].strip():
        raise ValueError(f"invalid label '{text}': empty name")
    return text


def pairs(texts: list[str]) -> dict[str, str]:
    """``name=value`` texts as a mapping; the last one of a name wins."""
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def read_lines(path: str) -> list[str]:
    """The lines of a file of variables or labels: no comments, no empty ones, name=value.

    Raises InvalidParameter for what docker refuses: a name with a blank in it, and OSError.
    """
    with open(path, encoding="utf-8-sig") as file:
        lines = file.read().splitlines()
    found = []
    for line in lines:
        text = line.lstrip()
        if not text or text.startswith("#"):
            continue
        name, equals, _ = text.partition("=")
        if " " in name or "\t" in name:
            raise InvalidParameter(
                f"poorly formatted environment: variable '{name}' contains whitespaces"
            )
        if not name:
            raise InvalidParameter(
                f"poorly formatted environment: no variable name on line '{text}'"
            )
        found.append(text if equals else name)
    return found


def extra_host(text: str) -> str:
    """``name:address`` or ``name=address`` for /etc/hosts, as the API has it (with a colon)."""
    name, separator, address = text.partition("=")
    if not separator:
        name, separator, address = text.partition(":")
    if not separator or not name:
        raise ValueError(f"bad format for add-host: {quote(text)}")
    if address[:1] == "[" and address[-1:] == "]":
        address = address[1:-1]
    if address != "host-gateway" and not _is_address(address):
        raise ValueError(f"invalid IP address in add-host: {quote(address)}")
    return f"{name}:{address}"


def _is_address(text: str) -> bool:
    import socket

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except OSError:
            continue
        return True
    return False


def address(text: str) -> str:
    """An IP address."""
    if not _is_address(text.strip()):
        raise ValueError(f"IP address is not correctly formatted: {text}")
    return text.strip()


def cpus(text: str) -> int:
    """A number of CPUs in billionths (``1.5`` is 1500000000)."""
    from fractions import Fraction

    try:
        number = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    nano = number * 1_000_000_000
    if nano.denominator != 1:
        raise ValueError("value is too precise")
    return int(nano)


def memory_swap(text: str) -> int:
    """Bytes, or -1 for no limit."""
    return -1 if text == "-1" else parse_size(text)


def ulimit(text: str) -> dict[str, Any]:
    """``nofile=1024:2048`` (soft and hard), ``nofile=1024`` (both)."""
    name, equals, values = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in _ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    soft_text, colon, hard_text = values.partition(":")
    soft = parse_int(soft_text)
    hard = parse_int(hard_text) if colon else soft
    if hard != -1 and (soft > hard or soft == -1):
        raise ValueError(
            f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )
    return {"Name": name, "Soft": soft, "Hard": hard}


def sysctl(text: str) -> tuple[str, str]:
    """``net.core.somaxconn=1024``: only what belongs to a namespace."""
    name, equals, value = text.partition("=")
    if not equals or not (name in _SYSCTL_NAMES or name.startswith(_SYSCTL_PREFIXES)):
        raise ValueError(f"sysctl '{text}' is not allowed")
    return name, value


def device(text: str) -> dict[str, str]:
    """``/dev/host[:/dev/container][:rwm]`` as the API's mapping; raises InvalidParameter."""
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise InvalidParameter(f"bad format for path: {text}")
    permissions = "rwm"
    inside = parts[0]
    if len(parts) == 3:
        inside, permissions = parts[1] or parts[0], parts[2]
    elif len(parts) == 2:
        if parts[1] and not set(parts[1]) - set("rwm"):
            permissions = parts[1]
        else:
            inside = parts[1]
    for path in (parts[0], inside):
        if not path.startswith("/"):
            raise InvalidParameter(f"{path} is not an absolute path")
    if not permissions or set(permissions) - set("rwm"):
        raise InvalidParameter(f"invalid device mode: {permissions}")
    return {"PathOnHost": parts[0], "PathInContainer": inside, "CgroupPermissions": permissions}


def weight_device(text: str) -> dict[str, Any]:
    """``/dev/sda:500``."""
    path, colon, number = text.rpartition(":")
    if not colon or not path.startswith("/dev/"):
        raise ValueError(f"bad format: {text}")
    if not number.isdigit() or not (int(number) == 0 or 10 <= int(number) <= 1000):
        raise ValueError(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": int(number)}


def rate_device(text: str) -> dict[str, Any]:
    """``/dev/sda:5m`` (bytes a second)."""
    path, colon, number = text.rpartition(":")
    if not colon or not path.startswith("/dev/"):
        raise ValueError(f"bad format: {text}")
    try:
        return {"Path": path, "Rate": parse_size(number)}
    except ValueError:
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is "
            "<device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional "
            "and can be kb, mb, or gb"
        ) from None


def operations_device(text: str) -> dict[str, Any]:
    """``/dev/sda:100`` (operations a second)."""
    path, colon, number = text.rpartition(":")
    if not colon or not path.startswith("/dev/"):
        raise ValueError(f"bad format: {text}")
    if not number.isdigit():
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. "
            "Number must be a positive integer"
        )
    return {"Path": path, "Rate": int(number)}


def stream_name(text: str) -> str:
    """``stdin``, ``stdout`` or ``stderr``."""
    name = text.lower()
    if name not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return name


def filter_pair(text: str) -> tuple[str, str]:
    """``name=value`` of ``--filter``."""
    name, equals, value = text.partition("=")
    if not text:
        raise ValueError("bad format of filter (expected name=value)")
    if not equals:
        raise ValueError("bad format of filter (expected name=value)")
    return name.strip().lower(), value.strip()


def filters(given: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The API's filters from the pairs that were given."""
    result: dict[str, list[str]] = {}
    for name, value in given:
        result.setdefault(name, []).append(value)
    return result


def restart_policy(text: str) -> dict[str, Any]:
    """``no``, ``always``, ``unless-stopped``, ``on-failure[:times]``; raises InvalidParameter."""
    name, colon, count = text.partition(":")
    times = 0
    if colon:
        if not name:
            raise InvalidParameter("invalid restart policy format: no policy provided before colon")
        try:
            times = int(count)
        except ValueError:
            raise InvalidParameter(
                "invalid restart policy format: maximum retry count must be an integer"
            ) from None
    return {"Name": name, "MaximumRetryCount": times}


def capabilities(names: list[str]) -> list[str]:
    """Capabilities by their full names, without doubles, in order."""
    full = set()
    for name in names:
        upper = name.strip().upper()
        full.add(upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}")
    return ["ALL"] if "ALL" in full else sorted(full)


BYTES = Kind("bytes", parse_size)
SWAP = Kind("bytes", memory_swap)
DECIMAL = Kind("decimal", cpus)
DURATION = Kind("duration", parse_duration)
ENVIRONMENT = Kind("list", environment, many=True)
LABELS = Kind("list", label, many=True)
FILTERS = Kind("filter", filter_pair, many=True)
HOSTS = Kind("list", extra_host, many=True)
ADDRESSES = Kind("list", address, many=True)
ULIMITS = Kind("ulimit", ulimit, many=True)
SYSCTLS = Kind("map", sysctl, many=True)
STREAMS = Kind("list", stream_name, many=True)
WEIGHTS = Kind("list", weight_device, many=True)
RATES = Kind("list", rate_device, many=True)
OPERATIONS = Kind("list", operations_device, many=True)
