"""The SDK: objects for containers, images, networks and volumes, with docker-py's names.

The words: a *client* has one *collection* a noun (``client.containers``), which gives *objects*
(``Container``) that keep what the API said of them (``attrs``) until they are told to ``reload``.

There is one set of objects, and they know one thing only: the Docker Engine API, spoken over
connections that a :class:`~tiffin.sdk.transport.Transport` opens. :func:`connect` opens them at a
daemon's socket; :class:`Engine` opens an engine in this process and serves the same API to itself
over socket pairs. So whatever works with one works with the other, streams and attached
connections included, and nothing is written twice.
"""

from __future__ import annotations

from tiffin.sdk.client import Client, connect
from tiffin.sdk.engine import Engine

__all__ = ["Client", "Engine", "connect"]
