"""``-v`` and ``--mount``: what is mounted into a container.

``-v`` is short: ``SOURCE:TARGET[:OPTIONS]`` or a lone ``TARGET`` (an anonymous volume). ``--mount``
is a line of fields like CSV: ``type=bind,source=/a,target=/b,readonly``.
"""

from __future__ import annotations

import os

from tiffin.cli.flags import Kind
from tiffin.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SWITCHES = ("readonly", "ro", "volume-nocopy", "bind-nonrecursive")


def volumes(texts: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The API's Binds and (anonymous) Volumes of ``-v`` flags.

    A source that starts with a dot or a tilde is a path of this side and made absolute.
    """
    binds: list[str] = []
    anonymous: dict[str, dict[str, str]] = {}
    for text in texts:
        source, colon, rest = text.partition(":")
        if not colon:
            anonymous[text] = {}
            continue
        if source.startswith("~"):
            source = os.path.expanduser(source)
        if source.startswith("."):
            source = os.path.abspath(source)
        binds.append(f"{source}:{rest}")
    return binds, anonymous


def _fields(text: str) -> list[str]:
    """The fields of one line of CSV."""
    if '"' not in text:
        return text.split(",")
    from csv import reader

    return next(iter(reader([text])))


def mount(text: str) -> dict[str, Any]:
    """The API's Mount of a ``--mount`` flag; raises ValueError with docker's sentence."""
    result: dict[str, Any] = {"Type": "volume"}
    options: dict[str, dict[str, Any]] = {}
    for field in _fields(text):
        key, equals, value = field.partition("=")
        key = key.strip().lower()
        if not equals:
            if key not in _SWITCHES:
                raise ValueError(f"invalid field '{field}' must be a key=value pair")
            value = "true"
        _set(result, options, key, value, field)
    kind = result["Type"]
    if not kind:
        raise ValueError("type is required")
    if not result.get("Target"):
        raise ValueError("target is required")
    for other in options:
        if other != kind:
            raise ValueError(f"cannot mix '{other}-*' options with mount type '{kind}'")
    for name, values in options.items():
        result[f"{name.capitalize()}Options"] = values
    return result


def _set(
    result: dict[str, Any], options: dict[str, dict[str, Any]], key: str, value: str, field: str
) -> None:
    match key:
        case "type":
            result["Type"] = value.lower()
        case "source" | "src":
            if value == "." or value.startswith(("./", "../")) or value == "..":
                value = os.path.abspath(value)
            result["Source"] = value
        case "target" | "dst" | "destination":
            result["Target"] = value
        case "readonly" | "ro":
            result["ReadOnly"] = _switch(key, value)
        case "consistency":
            result["Consistency"] = value.lower()
        case "bind-propagation":
            options.setdefault("bind", {})["Propagation"] = value.lower()
        case "bind-nonrecursive":
            options.setdefault("bind", {})["NonRecursive"] = _switch(key, value)
        case "bind-recursive":
            _recursive(options.setdefault("bind", {}), value)
        case "volume-nocopy":
            options.setdefault("volume", {})["NoCopy"] = _switch(key, value)
        case "volume-subpath":
            options.setdefault("volume", {})["Subpath"] = value
        case "volume-label":
            name, _, text = value.partition("=")
            options.setdefault("volume", {}).setdefault("Labels", {})[name] = text
        case "volume-driver":
            options.setdefault("volume", {}).setdefault("DriverConfig", {})["Name"] = value
        case "volume-opt":
            name, _, text = value.partition("=")
            options.setdefault("volume", {}).setdefault("DriverConfig", {}).setdefault(
                "Options", {}
            )[name] = text
        case "image-subpath":
            options.setdefault("image", {})["Subpath"] = value
        case "tmpfs-size":
            try:
                options.setdefault("tmpfs", {})["SizeBytes"] = parse_size(value)
            except ValueError:
                raise ValueError(f"invalid value for {key}: {value}") from None
        case "tmpfs-mode":
            try:
                options.setdefault("tmpfs", {})["Mode"] = int(value, 8)
            except ValueError:
                raise ValueError(f"invalid value for {key}: {value}") from None
        case _:
            raise ValueError(f"unexpected key '{key}' in '{field}'")


def _switch(key: str, value: str) -> bool:
    if value.lower() in ("1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise ValueError(f"invalid value for {key}: {value}")


def _recursive(options: dict[str, Any], value: str) -> None:
    match value:
        case "enabled":
            return
        case "disabled":
            options["NonRecursive"] = True
        case "writable":
            options["ReadOnlyNonRecursive"] = True
        case "readonly":
            options["ReadOnlyForceRecursive"] = True
        case _:
            raise ValueError(
                f"invalid value for bind-recursive: {value} "
                '(must be "enabled", "disabled", "writable", or "readonly")'
            )


def tmpfs(texts: list[str]) -> dict[str, str]:
    """The API's Tmpfs of ``--tmpfs TARGET[:OPTIONS]`` flags."""
    return {target: options for target, _, options in (text.partition(":") for text in texts)}


MOUNTS = Kind("mount", mount, many=True)
