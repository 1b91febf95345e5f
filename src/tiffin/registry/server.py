"""A registry of our own: an HTTP(S) server on a folder of the local disk, or an object store.

::

    with RegistryServer(folder) as server:      # listens on a free port of 127.0.0.1
        print(server.address)                   # 127.0.0.1:34567

Each connection has a thread; a thread serves one request after the other.
"""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from http.server import HTTPServer
from pathlib import Path
from typing import Any

from tiffin.errors import Conflict, InvalidParameter
from tiffin.registry.client import Registry
from tiffin.registry.exchange import Exchange
from tiffin.registry.passthrough import Upstream
from tiffin.registry.protocol import Policy, Protocol
from tiffin.registry.storage import Storage
from tiffin.registry.stores import Store


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    allow_reuse_address = True
    context: ssl.SSLContext | None = None

    def server_bind(self) -> None:
        # HTTPServer's would look the host's name up, which may take long and is used by nothing.
        socketserver.TCPServer.server_bind(self)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.context is not None:
            request.settimeout(30)
            try:
                request = self.context.wrap_socket(request, server_side=True)
            except (OSError, ssl.SSLError):
                # A client that speaks something else, or left.
                return
        super().finish_request(request, client_address)
        if self.context is not None:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys

        if isinstance(sys.exception() if hasattr(sys, "exception") else None, ConnectionError):
            return
        super().handle_error(request, client_address)


class RegistryServer:
    """See the module's text. A context manager, or :meth:`serve` and :meth:`close`."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        policy: Policy | None = None,
        certificate: tuple[Path, Path] | None = None,
        upstream: Registry | None = None,
        store: Store | None = None,
    ) -> None:
        """``store`` keeps the contents, if not ``folder`` itself. ``certificate`` is a chain and
        its key: with it the server speaks TLS only. ``upstream`` makes it a read-only cache of
        another registry.

        Raises Conflict where the address is in use, InvalidParameter for a certificate that can't
        be used.
        """
        self.storage = Storage(folder, store)
        self._upstream = upstream
        protocol = Protocol(
            self.storage,
            policy or Policy(),
            Upstream(upstream, self.storage) if upstream is not None else None,
            tls=certificate is not None,
        )
        handler = type("RegistryExchange", (Exchange,), {"answer_request": staticmethod(protocol)})
        server = type("RegistrySocket", (_Server,), {})
        if ":" in host:
            server.address_family = socket.AF_INET6  # type: ignore[attr-defined]
        try:
            self._server: _Server = server((host, port), handler)
        except OSError as error:
            raise Conflict(f"can't listen on {host}:{port}: {error.strerror}") from error
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                context.load_cert_chain(*certificate)
            except (OSError, ssl.SSLError) as error:
                self._server.server_close()
                raise InvalidParameter(f"{certificate[0]} can't be used: {error}") from error
            self._server.context = context
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Host and port, as in references."""
        host, port = self._server.server_address[:2]
        shown = str(host)
        return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"

    def serve(self) -> None:
        """Answer requests until :meth:`close` is called from another thread."""
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        if self._upstream is not None:
            self._upstream.transport.close()

    def __enter__(self) -> RegistryServer:
        self._thread = threading.Thread(target=self.serve, name="registry", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._thread is not None:
            self._thread.join()
