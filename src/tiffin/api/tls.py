"""TLS in front of the server: a tunnel for each connection, which the rest knows nothing of.

Why a tunnel, and not an ``SSLSocket`` in the server: a hijacked connection is handed to the keeper
as a descriptor, files go out by sendfile, and bodies are read with flags, all of which need a plain
socket. So each TLS connection is decrypted into one end of a socket pair; the server gets the other
end, and what it may do with a unix socket it may do here. A thread and a copy a connection are the
price; the local socket pays none of it.

A client must show a certificate that the CA signed. Its ``close_notify`` ends its half (as
``CloseWrite`` in Go does), the end of the TCP connection ends both.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tiffin.errors import InvalidParameter

logger = logging.getLogger("tiffin.api")

HANDSHAKE_SECONDS = 10
LINGER_SECONDS = 2
_READ_SIZE = 64 * 1024
_HELD = 256 * 1024
"""How much may wait to be written on a side before no more is read for it."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files that a TLS listener needs."""

    authority: Path
    """The CA that signs the clients' certificates."""
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What connections are made with. Raises InvalidParameter where a file is no good."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            names = f"{self.authority}, {self.certificate}, {self.key}"
            raise InvalidParameter(f"cannot use the certificates {names}: {error}") from error
        return context


def tunnel(connection: socket.socket, context: ssl.SSLContext) -> socket.socket:
    """Decrypt ``connection``, which belongs to the tunnel from here on; the plain end."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(
        target=_run, args=(connection, ours, context), name="tls", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:
        ours.close()
        theirs.close()
        raise
    return theirs


def _run(connection: socket.socket, plain: socket.socket, context: ssl.SSLContext) -> None:
    with connection, plain:
        try:
            one = _Tunnel(connection, plain, context)
            if one.handshake():
                one.carry()
        except OSError as error:
            # A client may go at any moment, in any of a dozen ways.
            logger.info("a TLS connection ended: %s", error)


class _Tunnel:
    def __init__(
        self, connection: socket.socket, plain: socket.socket, context: ssl.SSLContext
    ) -> None:
        self._connection = connection
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._to_client = bytearray()
        self._to_server = bytearray()
        self._client_reads = True
        """Whether the server may still send."""
        self._client_writes = True
        """Whether the client may still send."""

    def handshake(self) -> bool:
        """Agree with the client; False where that fails, and the client has been told why."""
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        while True:
            try:
                self._tls.do_handshake()
                self._connection.sendall(self._outgoing.read())
                return True
            except ssl.SSLWantReadError:
                self._connection.sendall(self._outgoing.read())
                self._connection.settimeout(max(0.01, deadline - time.monotonic()))
                data = self._connection.recv(_READ_SIZE)
                if not data:
                    return False
                self._incoming.write(data)
            except ssl.SSLError as error:
                logger.warning("refused a TLS connection: %s", error.reason or error)
                self._connection.sendall(self._outgoing.read())
                self._linger()
                return False

    def carry(self) -> None:
        """Carry bytes both ways until either side is done."""
        self._connection.setblocking(False)
        self._plain.setblocking(False)
        gone = not self._decrypt()
        while not gone:
            ready = self._wait()
            client, server = ready.get(self._connection.fileno()), ready.get(self._plain.fileno())
            if client is not None and client & ~select.POLLOUT:
                gone = not self._from_client()
            if server is not None and server & ~select.POLLOUT:
                self._from_server()
            if not self._flush():
                return
            if not self._client_reads and not self._to_client:
                self._linger()
                return
        self._flush()

    def _wait(self) -> dict[int, int]:
        poll = select.poll()
        client = server = 0
        if len(self._to_server) < _HELD:
            client |= select.POLLIN
        if self._to_client:
            client |= select.POLLOUT
        if self._client_reads and len(self._to_client) < _HELD:
            server |= select.POLLIN
        if self._to_server:
            server |= select.POLLOUT
        poll.register(self._connection, client)
        if server:
            poll.register(self._plain, server)
        return dict(poll.poll())

    def _from_client(self) -> bool:
        """Take what has come; False once the TCP connection has ended."""
        try:
            data = self._connection.recv(_READ_SIZE)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._incoming.write(data)
        return self._decrypt()

    def _decrypt(self) -> bool:
        try:
            while data := self._tls.read(_READ_SIZE):
                self._to_server += data
            self._client_writes = False
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._client_writes = False
        except ssl.SSLError as error:
            logger.info("a TLS connection broke: %s", error.reason or error)
            return False
        self._to_client += self._outgoing.read()
        return True

    def _from_server(self) -> None:
        try:
            data = self._plain.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self._tls.write(data)
        else:
            self._client_reads = False
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                # It wants the client's close_notify, which nobody waits for.
                pass
        self._to_client += self._outgoing.read()

    def _flush(self) -> bool:
        """Write what can be written; False once neither side takes anything."""
        try:
            if self._to_client:
                del self._to_client[: self._connection.send(self._to_client)]
        except BlockingIOError:
            pass
        try:
            if self._to_server:
                del self._to_server[: self._plain.send(self._to_server)]
            if not self._to_server and not self._client_writes:
                self._plain.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except BrokenPipeError:
            # The server reads no more; its answer may still be on the way.
            self._to_server.clear()
        return True

    def _linger(self) -> None:
        """Let the client read what it was sent: closing over unread bytes would reset it."""
        self._connection.settimeout(LINGER_SECONDS)
        self._connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + LINGER_SECONDS
        while time.monotonic() < deadline and self._connection.recv(_READ_SIZE):
            pass
