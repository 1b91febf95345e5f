"""The engine in this process, with the same objects as a client of a daemon.

It serves the API to itself: each connection that the transport wants is one end of a socket pair,
and a thread answers at the other one with the daemon's own routes. Nothing listens anywhere.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from tiffin.errors import Unsupported
from tiffin.sdk.client import Client
from tiffin.sdk.transport import Transport

if TYPE_CHECKING:
    from tiffin.engine import Engine as Core


class Engine(Client):
    """Everything under one engine root, without a daemon.

    ``root`` is the folder (``TIFFIN_ROOT``, else /var/lib/tiffin); ``storage_driver`` a name as in
    ``--storage-driver``. The root is this process's until :meth:`close`; containers go on running
    after that. Raises RootInUse if a daemon has the root: use :func:`tiffin.connect` then.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        storage_driver: str | None = None,
    ) -> None:
        from tiffin.api.routes import all_routes
        from tiffin.api.server import Server
        from tiffin.engine import Engine as Core

        self.core: Core = Core(root, storage_driver=storage_driver)
        """The engine below: its verbs take and give the API's dictionaries."""
        self._server = Server(all_routes(self.core, self._refuse))
        super().__init__(Transport(self._connect, local=True))

    def _connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._server.adopt(theirs)
        return ours

    @staticmethod
    def _refuse(keeper: bool) -> None:
        raise Unsupported("there is no daemon to shut down: call close()")

    def close(self) -> None:
        """Lets go of the root; containers go on running under the keeper."""
        super().close()
        self._server.close()
        self.core.close()
