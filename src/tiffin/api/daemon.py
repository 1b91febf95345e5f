"""The daemon: the process that owns an engine root and answers the API.

Its life: open the engine (which takes the root's lock), listen, say ``ready`` to whoever started
it, serve, stop. Containers live on under the keeper when it leaves, however it leaves. A daemon
that was started on demand leaves by itself when nobody is connected and nothing runs.

Whoever starts a daemon on demand waits on ``ready_fd`` for a line: ``ready``, or why not.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tiffin.api.routes import all_routes
from tiffin.api.server import Server, answers
from tiffin.errors import Forbidden, InvalidParameter, RootInUse, TiffinError, Unsupported

if TYPE_CHECKING:
    import ssl

    from tiffin.engine import Engine

logger = logging.getLogger("tiffin")

IDLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """Who may talk to the daemon, beside root."""

    group: str = ""
    """The group that may use the unix sockets, by name or number; empty for root's own."""
    authority: str = ""
    """Files of TLS for ``tcp://`` addresses: the CA of the clients' certificates, …"""
    certificate: str = ""
    key: str = ""
    insecure_tcp: bool = False
    """Said on top of a ``tcp://`` address: whoever reaches it may be root here, no questions."""

    def group_id(self) -> int | None:
        """The group's number; raises InvalidParameter if there is none of that name."""
        if not self.group:
            return None
        if self.group.isdigit():
            return int(self.group)
        import grp

        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            raise InvalidParameter(
                f"there is no group {self.group}: make it, or name another"
            ) from None

    def context(self, host: str) -> ssl.SSLContext | None:
        """How ``host`` is listened on: with TLS, or (None) without, because it was said twice.

        Raises Forbidden where neither was asked for.
        """
        files = (self.authority, self.certificate, self.key)
        if any(files):
            from tiffin.api.tls import Certificates

            if not all(files):
                raise InvalidParameter(
                    "TLS needs all of --tlscacert, --tlscert and --tlskey: clients must show a "
                    "certificate too"
                )
            return Certificates(*map(Path, files)).context()
        if self.insecure_tcp:
            return None
        raise Forbidden(
            f"listening on {host} would make whoever reaches it root on this machine: give "
            "--tlscacert, --tlscert and --tlskey, so that clients need a certificate, or say "
            "--insecure-tcp too"
        )


def socket_path(host: str) -> Path:
    """The path in ``unix:///path``, or a plain path. Raises Unsupported for other schemes."""
    scheme, separator, rest = host.partition("://")
    if not separator:
        rest = host
    elif scheme != "unix":
        raise Unsupported(f"cannot listen on {host}: use unix:///path/of/socket")
    if not rest.startswith("/"):
        raise InvalidParameter(f"invalid address {host}: use unix:///path/of/socket")
    return Path(rest)


def tcp_address(host: str, default_port: int) -> tuple[str, int]:
    """The address and port in ``tcp://address[:port]``; raises InvalidParameter."""
    text = host.removeprefix("tcp://")
    try:
        parts = urlsplit(f"//{text}")
        port = default_port if parts.port is None else parts.port
    except ValueError:
        parts, port = None, -1
    if parts is None or parts.path or parts.username or not parts.hostname:
        raise InvalidParameter(f"invalid address {host}: use tcp://address:port")
    return parts.hostname, port


def default_host(root: Path) -> str:
    """Where the daemon of a root listens if nothing else is asked for."""
    from tiffin.engine.root import DEFAULT_ROOT, DEFAULT_SOCKET

    return f"unix://{DEFAULT_SOCKET if root == Path(DEFAULT_ROOT) else root / 'tiffin.sock'}"


def serve(
    root: str | os.PathLike[str] | None = None,
    hosts: Sequence[str] | None = None,
    *,
    on_demand: bool = False,
    storage_driver: str | None = None,
    storage_options: Sequence[str] = (),
    ready_fd: int | None = None,
    access: Access | None = None,
) -> int:
    """Be the daemon of ``root`` until told to stop; the exit code.

    ``hosts`` are ``unix://`` and ``tcp://`` addresses, the root's own one if there are none; the
    latter as ``access`` says. ``on_demand``: leave
    when idle for ``TIFFIN_IDLE_SECONDS`` (30), and write the log without colours or a terminal.
    Must be called from the main thread, since it handles SIGTERM and SIGINT.
    """
    os.umask(0o022)
    _log_to_stderr()
    _raise_descriptor_limit()
    announcement = _Announcement(ready_fd)
    try:
        return _serve(
            root,
            hosts or (),
            on_demand,
            (storage_driver, storage_options),
            announcement,
            access or Access(),
        )
    except TiffinError as error:
        announcement.say(error.message)
        logger.error("%s", error.message)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        announcement.say(f"the daemon cannot start: {where}{error.strerror or error}")
        logger.exception("the daemon failed")
        return 1
    finally:
        announcement.close()


def _serve(
    root: str | os.PathLike[str] | None,
    hosts: Sequence[str],
    on_demand: bool,
    storage: tuple[str | None, Sequence[str]],
    announcement: _Announcement,
    access: Access,
) -> int:
    seconds = _idle_seconds()
    with _open(root, on_demand, storage) as engine:

        def shutdown(keeper: bool) -> None:
            if keeper:
                engine.shutdown_keeper()
            server.stop()

        with Server(all_routes(engine, shutdown)) as server:
            addresses = list(hosts) or [default_host(engine.root.path)]
            for address in addresses:
                _listen(server, address, access)

            def stop(number: int, _: Any) -> None:
                server.stop()

            before = {number: signal.signal(number, stop) for number in _STOPPING}
            try:
                announcement.say("ready")
                logger.info("listening on %s", ", ".join(addresses))
                server.serve((lambda: not engine.busy) if on_demand else None, seconds)
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
            logger.info("leaving")
    return 0


def _listen(server: Server, host: str, access: Access) -> None:
    if not host.startswith("tcp://"):
        server.listen(socket_path(host), access.group_id())
        return
    context = access.context(host)
    if context is None:
        logger.warning("%s is open to whoever reaches it, and gives them root here", host)
    server.listen_tcp(tcp_address(host, 2375 if context is None else 2376), context)


def _open(
    root: str | os.PathLike[str] | None,
    on_demand: bool,
    storage: tuple[str | None, Sequence[str]],
) -> Engine:
    """The engine. A daemon that is just leaving has given up its socket already, and the root in a
    moment: a command that comes right then must not fail, so its daemon waits for that moment."""
    from tiffin.engine import Engine
    from tiffin.engine.root import DEFAULT_ROOT

    what = _ON_DEMAND if on_demand else "the daemon (tiffin serve)"
    place = Path(root or os.environ.get("TIFFIN_ROOT") or DEFAULT_ROOT).absolute()
    path = socket_path(default_host(place))
    deadline = time.monotonic() + _LEAVING_SECONDS
    while True:
        try:
            return Engine(
                place,
                storage_driver=storage[0],
                storage_options=storage[1],
                what=what,
                lasting=not on_demand,
            )
        except RootInUse as error:
            leaving = on_demand and _ON_DEMAND in error.message and not answers(path)
            if not leaving or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


_ON_DEMAND = "the daemon that a command started"
_LEAVING_SECONDS = 12.0
_STOPPING = (signal.SIGTERM, signal.SIGINT)


class _Announcement:
    """One line to whoever waits for the daemon to be ready."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def say(self, line: str) -> None:
        """Write the line, the first time."""
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, line.replace("\n", " ").encode() + b"\n")
        except BrokenPipeError:
            # Who started us did not wait. The next command finds us all the same.
            pass
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _idle_seconds() -> float:
    text = os.environ.get("TIFFIN_IDLE_SECONDS", "")
    try:
        seconds = float(text) if text else IDLE_SECONDS
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e9:
        raise InvalidParameter(f"TIFFIN_IDLE_SECONDS={text} is not a number of seconds")
    return seconds


def _log_to_stderr() -> None:
    """Who starts a daemon on demand has put ROOT/daemon.log there."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _raise_descriptor_limit() -> None:
    """Each connection takes a descriptor; the usual soft limit of 1,024 is for select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
