"""Log drivers: which options each takes, and what the keeper is told of them.

``json-file`` and ``local`` are files; ``journald``, ``syslog`` and ``fluentd`` are sockets that the
keeper sends to, with a copy kept in a file of the form of ``local``, from which ``logs`` reads,
unless ``cache-disabled`` is set; ``none`` keeps nothing.

Source: the pages of the drivers in Docker's documentation, "Configure logging drivers".
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tiffin.engine.container import Container
from tiffin.errors import InvalidParameter, StartFailure
from tiffin.units import Malformed, parse_duration, parse_size

JSON = dict[str, Any]

NAMES = ("fluentd", "journald", "json-file", "local", "none", "syslog")
JOURNAL = "/run/systemd/journal/socket"
_BUFFER = 1 << 20

_ANY = frozenset({"mode", "max-buffer-size"})
_INFORMATION = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
_CACHE = frozenset({"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"})
_ROTATION = frozenset({"max-size", "max-file", "compress"})
_OPTIONS = {
    # What can be read needs no cache; as in Docker its options are taken all the same, so that they
    # may be given whichever driver there is.
    "json-file": _ANY | _INFORMATION | _ROTATION | _CACHE,
    "local": _ANY | _ROTATION | _CACHE,
    "none": frozenset[str](),
    "journald": _ANY | _INFORMATION | _CACHE,
    "syslog": _ANY
    | _INFORMATION
    | _CACHE
    | {"syslog-address", "syslog-facility", "syslog-format"}
    | {"syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify"},
    "fluentd": _ANY
    | _INFORMATION
    | _CACHE
    | {"fluentd-address", "fluentd-async", "fluentd-async-reconnect-interval"}
    | {"fluentd-buffer-limit", "fluentd-retry-wait", "fluentd-max-retries"}
    | {"fluentd-request-ack", "fluentd-sub-second-precision", "fluentd-write-timeout"},
}
_BOOLEANS = (
    "compress", "cache-compress", "cache-disabled", "fluentd-async", "fluentd-request-ack",
    "fluentd-sub-second-precision",
)  # fmt: skip
_DURATIONS = ("fluentd-retry-wait", "fluentd-write-timeout", "fluentd-async-reconnect-interval")
_FACILITIES = {
    name: number
    for number, name in enumerate(
        "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp".split()
    )
} | {f"local{number}": 16 + number for number in range(8)}
_FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_PORTS = {"syslog": 514, "fluentd": 24224}


def check(log: Mapping[str, Any]) -> JSON:
    """A ``LogConfig``, checked and completed. Raises InvalidParameter, Unsupported."""
    kind = log.get("Type") or "json-file"
    options = dict(log.get("Config") or {})
    if kind not in NAMES:
        raise InvalidParameter(f'error looking up logging plugin {kind}: plugin "{kind}" not found')
    if kind == "none" and options:
        raise InvalidParameter("invalid logging opts for driver none")
    for name in options:
        if name not in _OPTIONS[kind]:
            raise InvalidParameter(f"unknown log opt '{name}' for {kind} log driver")
    _check_values(kind, options)
    return {"Type": kind, "Config": options}


def _check_values(kind: str, options: Mapping[str, str]) -> None:
    mode = options.get("mode") or "blocking"
    if mode not in ("blocking", "non-blocking"):
        raise InvalidParameter(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options and mode != "non-blocking":
        raise InvalidParameter(
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
        )
    for name in ("max-size", "cache-max-size", "max-buffer-size", "fluentd-buffer-limit"):
        if name in options:
            _size(options[name])
    for name in ("max-file", "cache-max-file"):
        if name in options and not (options[name].isdigit() and int(options[name]) > 0):
            raise InvalidParameter(f"{name} must be a number greater than 0: '{options[name]}'")
    for name in _BOOLEANS:
        if name in options:
            _boolean(name, options[name])
    for name in _DURATIONS:
        if name in options:
            _seconds(name, options[name])
    retries = options.get("fluentd-max-retries")
    if retries is not None and not retries.isdigit():
        raise InvalidParameter(f"fluentd-max-retries is a number of times, not '{retries}'")
    if 0 < _seconds("", options.get("fluentd-async-reconnect-interval") or "0") < 0.1:
        raise InvalidParameter("fluentd-async-reconnect-interval must be between 100ms and 10s")
    rotates = int(options.get("max-file") or 1) > 1 and options.get("max-size")
    if options.get("compress") == "true" and kind == "json-file" and not rotates:
        raise InvalidParameter(
            "compress cannot be true when max-file is less than 2 or max-size is not set"
        )
    for name in ("labels-regex", "env-regex"):
        try:
            re.compile(options.get(name) or "")
        except re.error as error:
            raise InvalidParameter(f"{name}: '{options[name]}': {error}") from None
    _parse_tag(options.get("tag") or "", lambda name: "")
    if kind == "syslog":
        _facility(options.get("syslog-facility") or "daemon")
        if (options.get("syslog-format") or "") not in _FORMATS:
            raise InvalidParameter(f"Invalid syslog format: '{options['syslog-format']}'")
        _address(kind, options.get("syslog-address") or "unixgram:///dev/log")
    if kind == "fluentd":
        _address(kind, options.get("fluentd-address") or "")


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise InvalidParameter(f"{name} is true or false, not '{text}'")
    return text.lower() in ("true", "1", "t")


def _seconds(name: str, text: str) -> float:
    """A duration as Go writes it (``1m30s``, ``500ms``; 0 needs no unit)."""
    try:
        nanoseconds = parse_duration(text)
    except Malformed:
        nanoseconds = -1
    if nanoseconds < 0:
        raise InvalidParameter(f"{name} is a duration such as 500ms or 1m30s, not '{text}'")
    return nanoseconds / 1e9


def _facility(text: str) -> int:
    if text in _FACILITIES:
        return _FACILITIES[text]
    if text.isdigit() and int(text) < 24:
        return int(text)
    raise InvalidParameter(f"invalid syslog facility: '{text}'")


def _size(text: str) -> int | None:
    """Bytes of a size such as ``10m``; None for ``-1``, no limit."""
    return None if text == "-1" else parse_size(text)


# What is said of the container with each message.


def _parse_tag(template: str, value: Callable[[str], str]) -> str:
    """A tag's template, with ``{{.Name}}`` and its like replaced; raises InvalidParameter."""

    def replace(match: re.Match[str]) -> str:
        name = match[1].strip()
        if not name.startswith(".") or name[1:] not in _TAG_FIELDS:
            raise InvalidParameter(
                f"the log tag '{template}' can't be used: it may have "
                + ", ".join(f"{{{{.{field}}}}}" for field in _TAG_FIELDS)
            )
        return value(name[1:])

    return re.sub(r"{{(.*?)}}", replace, template)


_TAG_FIELDS = (
    "ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "Command", "DaemonName",
)  # fmt: skip


def _tag(container: Container, default: str) -> str:
    values = {
        "ID": container.id[:12],
        "FullID": container.id,
        "Name": container.name,
        "ImageID": container.image.removeprefix("sha256:")[:12],
        "ImageFullID": container.image,
        "ImageName": container.spec.image_name,
        "Command": " ".join(container.arguments),
        "DaemonName": "tiffin",
    }
    template = container.spec.host["LogConfig"]["Config"].get("tag") or default
    return _parse_tag(template, lambda name: values[name])


def attributes(container: Container) -> dict[str, str]:
    """The labels and variables that the options want to be said with each message."""
    options = container.spec.host["LogConfig"]["Config"]
    variables = {
        name: value
        for name, _, value in (
            text.partition("=") for text in container.spec.config.get("Env") or []
        )
    }
    found: dict[str, str] = {}
    for key, values in (("labels", container.labels), ("env", variables)):
        wanted = [name.strip() for name in (options.get(key) or "").split(",")]
        found.update({name: values[name] for name in wanted if name in values})
        if pattern := options.get(f"{key}-regex"):
            found.update({n: value for n, value in values.items() if re.search(pattern, n)})
    return found


# What the keeper is told.


def keeper_options(container: Container, folder: Path) -> JSON | None:
    """The ``log`` of :meth:`KeeperClient.start`; ``folder`` is the container's.

    Raises StartFailure where a driver's socket does not answer.
    """
    log = container.spec.host["LogConfig"]
    kind, options = log["Type"], log["Config"]
    if kind == "none":
        return None
    path = container.log_path
    result: JSON = {"path": str(folder / path) if path else None}
    if kind == "json-file":
        result.update(
            max_size=_size(options.get("max-size") or "-1"),
            max_file=int(options.get("max-file") or 1),
            compress=_boolean("compress", options.get("compress") or "false"),
        )
        attrs = attributes(container)
        if options.get("tag"):
            attrs["tag"] = _tag(container, "")
        if attrs:
            result["attrs"] = attrs
        return result
    prefix = "" if kind == "local" else "cache-"
    result.update(
        max_size=_size(options.get(f"{prefix}max-size") or "20m"),
        max_file=int(options.get(f"{prefix}max-file") or 5),
        compress=_boolean("compress", options.get(f"{prefix}compress") or "true"),
    )
    if path:
        (folder / path).parent.mkdir(mode=0o710, exist_ok=True)
    if kind != "local":
        result["attrs"] = attributes(container)
        result["forward"] = _forward(container, kind, options)
    return result


def _forward(container: Container, kind: str, options: Mapping[str, str]) -> JSON:
    extra = attributes(container)
    tag = _tag(container, "{{.ID}}")
    limit = options.get("max-buffer-size") or options.get("fluentd-buffer-limit")
    forward: JSON = {
        "driver": kind,
        "buffer": (_size(limit) if limit else None) or _BUFFER,
        "blocking": (options.get("mode") or "blocking") == "blocking",
        "tag": tag,
    }
    must_answer = True
    if kind == "journald":
        forward.update(_address(kind, f"unixgram://{JOURNAL}"))
        forward["fields"] = {
            "CONTAINER_ID": container.id[:12],
            "CONTAINER_ID_FULL": container.id,
            "CONTAINER_NAME": container.name,
            "CONTAINER_TAG": tag,
            "IMAGE_NAME": container.spec.image_name,
            "SYSLOG_IDENTIFIER": tag,
            **{_journal_name(name): value for name, value in extra.items()},
        }
    elif kind == "syslog":
        forward.update(_address(kind, options.get("syslog-address") or "unixgram:///dev/log"))
        forward["facility"] = _facility(options.get("syslog-facility") or "daemon")
        forward["format"] = options.get("syslog-format") or ""
        forward["hostname"] = os.uname().nodename
        if "tls" in forward:
            forward["tls"] |= {
                "ca": options.get("syslog-tls-ca-cert") or "",
                "cert": options.get("syslog-tls-cert") or "",
                "key": options.get("syslog-tls-key") or "",
                # As in Docker, it is said by being there, whatever its value.
                "verify": "syslog-tls-skip-verify" not in options,
            }
    else:
        forward.update(_address(kind, options.get("fluentd-address") or ""))
        forward["precise"] = _boolean("", options.get("fluentd-sub-second-precision") or "false")
        forward["fields"] = {
            "container_id": container.id,
            "container_name": f"/{container.name}",
            **extra,
        }
        forward["ack"] = _boolean("", options.get("fluentd-request-ack") or "false")
        forward["retry_wait"] = _seconds("", options.get("fluentd-retry-wait") or "1s")
        forward["write_timeout"] = _seconds("", options.get("fluentd-write-timeout") or "0")
        if options.get("fluentd-max-retries"):
            forward["max_retries"] = int(options["fluentd-max-retries"])
        must_answer = not _boolean("", options.get("fluentd-async") or "false")
        if not must_answer:
            interval = options.get("fluentd-async-reconnect-interval") or "0"
            forward["reconnect"] = _seconds("", interval)
    _resolve(forward, must_answer)
    return forward


def _journal_name(name: str) -> str:
    """A field's name as the journal takes it."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper()).lstrip("_0123456789") or "LABEL"


def _address(kind: str, text: str) -> JSON:
    """``family``, ``kind`` and ``address`` of a driver's address; raises InvalidParameter."""
    if "://" not in text:
        text = f"tcp://{text or '127.0.0.1'}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InvalidParameter(f"invalid {kind} address '{text}': {error}") from None
    scheme = parts.scheme
    if scheme in ("unix", "unixgram") and parts.path:
        # A unix:// address of syslog may be of either kind; /dev/log is one of datagrams.
        return {
            "family": "unix",
            "kind": "stream" if scheme == "unix" else "datagram",
            "address": parts.path,
        }
    # Docker's names for it: syslog has tcp+tls, fluentd tls.
    encrypted = scheme == {"syslog": "tcp+tls", "fluentd": "tls"}.get(kind)
    if encrypted:
        host = parts.hostname or "127.0.0.1"
        tls = {"name": host, "ca": "", "cert": "", "key": "", "verify": True}
        return {
            "family": "inet",
            "kind": "stream",
            "address": [host, port or _PORTS[kind]],
            "tls": tls,
        }
    if scheme in ("tcp", "udp") and (scheme == "tcp" or kind == "syslog"):
        return {
            "family": "inet",
            "kind": "stream" if scheme == "tcp" else "datagram",
            "address": [parts.hostname or "127.0.0.1", port or _PORTS[kind]],
        }
    raise InvalidParameter(
        f"invalid {kind} address '{text}': write it as tcp://HOST:PORT"
        + (", tcp+tls://HOST:PORT, udp://HOST:PORT" if kind == "syslog" else ", tls://HOST:PORT")
        + " or unix:///PATH"
    )


def _resolve(forward: JSON, must_answer: bool) -> None:
    """Find the address that a name stands for, and try the socket; raises StartFailure."""
    family, address = forward["family"], forward["address"]
    kind = socket.SOCK_STREAM if forward["kind"] == "stream" else socket.SOCK_DGRAM
    try:
        if family != "unix":
            found = socket.getaddrinfo(address[0], address[1], type=kind)[0]
            forward["family"] = "inet6" if found[0] == socket.AF_INET6 else "inet"
            forward["address"] = list(found[4])
        if not must_answer:
            return
        if _answers(forward, kind):
            return
        # Which of the two kinds a unix socket is, only trying tells.
        forward["kind"] = "datagram"
        _answers(forward, socket.SOCK_DGRAM)
    except OSError as error:
        where = address if family == "unix" else f"{address[0]}:{address[1]}"
        raise StartFailure(
            f"failed to initialize logging driver: dial {forward['driver']} {where}: "
            f"{(error.strerror or str(error)).lower()}"
        ) from None


def _answers(forward: JSON, kind: socket.SocketKind) -> bool:
    """Whether one can connect; False if a unix socket is of the other kind. Raises OSError."""
    import errno

    families = {"unix": socket.AF_UNIX, "inet": socket.AF_INET, "inet6": socket.AF_INET6}
    with socket.socket(families[forward["family"]], kind) as sock:
        sock.settimeout(5)
        address = forward["address"]
        try:
            sock.connect(tuple(address) if isinstance(address, list) else address)
        except OSError as error:
            if error.errno == errno.EPROTOTYPE and kind == socket.SOCK_STREAM:
                return False
            raise
        if forward.get("tls"):
            # Loaded only where it is used: it is large.
            from tiffin.keeper import encryption

            with encryption.wrap(sock, forward["tls"]) as encrypted:
                encrypted.do_handshake()
    return True
