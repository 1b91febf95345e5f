"""TLS for log drivers. Loaded only where one has it: :mod:`ssl` is large."""

from __future__ import annotations

import os
import ssl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a socket that does not block raises where another one raises BlockingIOError."""

_contexts: dict[tuple[object, ...], ssl.SSLContext] = {}


def wrap(sock: socket.socket, options: dict[str, Any]) -> ssl.SSLSocket:
    """Encryption over a connected socket, which is taken over; the handshake is still to be done.

    ``options``: ``name`` (of the server), ``ca``, ``cert``, ``key`` (files or empty), ``verify``.
    Raises OSError (ssl.SSLError is one) for files that can't be used.
    """
    return _context(options).wrap_socket(
        sock, do_handshake_on_connect=False, server_hostname=options["name"]
    )


def wants_to_read(error: OSError) -> bool:
    """Whether it is reading that one of :data:`WANTS` waits for."""
    return isinstance(error, ssl.SSLWantReadError)


def _context(options: dict[str, Any]) -> ssl.SSLContext:
    files = [options[name] for name in ("ca", "cert", "key")]
    trusted = ssl.get_default_verify_paths()
    # Files are replaced when they are renewed, and a keeper lives long.
    stamps = [_stamp(path) for path in (*files, trusted.cafile, trusted.capath)]
    key = (*files, options["verify"], *stamps)
    found = _contexts.get(key)
    if found is None:
        found = ssl.create_default_context()
        if options["ca"]:
            found.load_verify_locations(options["ca"])
        if options["cert"] or options["key"]:
            found.load_cert_chain(options["cert"], options["key"] or None)
        if not options["verify"]:
            found.check_hostname = False
            found.verify_mode = ssl.CERT_NONE
        _contexts[key] = found
    return found


def _stamp(path: str | None) -> tuple[str, int, int] | None:
    """What tells a file from the one that was there before."""
    try:
        info = os.stat(path or "")
    except FileNotFoundError:
        return None
    return path or "", info.st_ino, info.st_mtime_ns
