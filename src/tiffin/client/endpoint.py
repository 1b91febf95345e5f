"""Where the daemon is, and starting one where none answers.

The *endpoint* is chosen by ``-H``, else ``TIFFIN_HOST``, else it is the socket of the engine root
(``--root``, ``TIFFIN_ROOT``, ``/var/lib/tiffin``). Only in the last case a daemon is started on
demand: a socket that someone named is someone else's to serve.

Two command lines may find no daemon at the same moment and each start one. The daemon that comes
second finds the root taken and ends; its starter then finds the first one's socket.
"""

from __future__ import annotations

import os
import socket

from tiffin.errors import InvalidParameter, Unreachable

DEFAULT_ROOT = "/var/lib/tiffin"
DEFAULT_SOCKET = "/run/tiffin/tiffin.sock"
_PATH_LIMIT = 107  # of sun_path, without the final zero
_PATIENCE = 15.0
"""Seconds that another starter's daemon gets to answer, once ours found the root taken."""


class Endpoint:
    """One address that a daemon may answer at."""

    __slots__ = ("address", "automatic", "root", "text")

    def __init__(
        self, text: str, address: str | tuple[str, int], root: str, automatic: bool
    ) -> None:
        self.text = text
        self.address = address
        self.root = root
        self.automatic = automatic

    @classmethod
    def choose(cls, host: str, root: str) -> Endpoint:
        """The endpoint for the global options; raises InvalidParameter for a malformed one."""
        root = os.path.abspath(root or os.environ.get("TIFFIN_ROOT") or DEFAULT_ROOT)
        host = host or os.environ.get("TIFFIN_HOST", "")
        if host:
            return cls(host, _address(host), root, False)
        path = DEFAULT_SOCKET if root == DEFAULT_ROOT else f"{root}/tiffin.sock"
        return cls(f"unix://{path}", path, root, True)

    def connect(self, *, start: bool = True) -> socket.socket:
        """A connected socket, after starting a daemon if that is ours to do.

        Raises Unreachable where nobody answers, with the daemon's own words if it did not start.
        """
        try:
            return self._connect()
        except (FileNotFoundError, ConnectionRefusedError):
            if not self.automatic or not start:
                raise Unreachable(
                    f"Cannot connect to the tiffin daemon at {self.text}. "
                    "Is the tiffin daemon running?"
                ) from None
        except OSError as error:
            raise Unreachable(
                f"Cannot connect to the tiffin daemon at {self.text}: {error.strerror or error}"
            ) from None
        return self._start()

    def _connect(self) -> socket.socket:
        if isinstance(self.address, tuple):
            return socket.create_connection(self.address)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if len(os.fsencode(self.address)) <= _PATH_LIMIT:
                connection.connect(self.address)
            else:
                from tiffin.linux.sockets import connect_unix

                connect_unix(connection, self.address)
        except BaseException:
            connection.close()
            raise
        return connection

    def _start(self) -> socket.socket:
        failure = start_daemon(self.root)
        try:
            return self._connect()
        except (FileNotFoundError, ConnectionRefusedError):
            if not failure:
                raise Unreachable(
                    f"The tiffin daemon said that it is ready, but nothing answers at {self.text}"
                ) from None
        if "is in use by" not in failure:
            raise Unreachable(f"Cannot start the tiffin daemon: {failure}")
        import time

        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            time.sleep(0.02)
            try:
                return self._connect()
            except (FileNotFoundError, ConnectionRefusedError):
                continue
        raise Unreachable(f"Cannot start the tiffin daemon: {failure}")


def _address(host: str) -> str | tuple[str, int]:
    scheme, separator, rest = host.partition("://")
    if separator and scheme == "unix" and rest:
        return os.path.abspath(rest)
    if separator and scheme == "tcp" and rest:
        name, colon, port = rest.rstrip("/").rpartition(":")
        if not colon:
            name, port = port, "2375"
        if port.isdigit():
            return name.strip("[]") or "localhost", int(port)
    raise InvalidParameter(
        f"invalid bind address format: {host} (want unix:///path/of/socket or tcp://host:port)"
    )


def start_daemon(root: str) -> str:
    """Starts a daemon on ``root`` and waits until it is ready.

    Returns an empty string, or what the daemon said when it could not start. The daemon is in its
    own session with no tie to this terminal; what it prints goes to ``daemon.log`` in the root.
    """
    import sys

    try:
        os.makedirs(root, 0o710, exist_ok=True)
        log = os.open(
            f"{root}/daemon.log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        if isinstance(error, PermissionError):
            reason += (
                ": run it as root (sudo), or name a daemon that root runs with -H or TIFFIN_HOST"
            )
        return reason
    said = os.fstat(log).st_size
    ready, ready_end = os.pipe()
    try:
        # The pipe keeps its number in the child; a copy of a descriptor onto itself would stay
        # close-on-exec, so it gets the inheritable flag here instead.
        os.set_inheritable(ready_end, True)
        child = os.posix_spawn(
            sys.executable,
            [
                *(sys.executable, "-m", "tiffin", "--root", root, "serve"),
                *("--on-demand", "--ready-fd", str(ready_end)),
            ],
            _environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
        os.close(ready_end)
        ready_end = -1
        text = b""
        while not text.endswith(b"\n"):
            part = os.read(ready, 65536)
            if not part:
                break
            text += part
        if text[:5].lower() == b"ready":
            return ""
        os.waitpid(child, 0)
        words = text.decode(errors="replace").strip()
        if not words:
            words = os.pread(log, 65536, said).decode(errors="replace").strip()
        return words or f"it ended without a word; see {root}/daemon.log"
    finally:
        os.close(log)
        os.close(ready)
        if ready_end >= 0:
            os.close(ready_end)


def _environment() -> dict[str, str]:
    """The daemon's environment: this one, and where this very tiffin is imported from."""
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = os.environ.get("PYTHONPATH", "")
    if source in paths.split(os.pathsep):
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{paths}".rstrip(os.pathsep)}
