"""tiffin: a container engine in Python.

:func:`connect` talks to a daemon, :class:`Engine` is an engine in this process; both have the same
objects, with docker-py's names. Errors are in :mod:`tiffin.errors`, values for options in
``tiffin.types``.

The public names are loaded on first use, so that ``import tiffin`` costs the command line and the
keeper nothing.
"""

from __future__ import annotations

from tiffin.version import __version__

TYPE_CHECKING = False  # typing would cost the command line and the keeper 10 ms
if TYPE_CHECKING:
    from typing import Any

    from tiffin.sdk import Client, Engine, connect
    from tiffin.sdk import types as types

__all__ = ["Client", "Engine", "__version__", "connect", "types"]


def __getattr__(name: str) -> Any:
    if name in ("Client", "Engine", "connect"):
        from tiffin import sdk

        return getattr(sdk, name)
    if name == "types":
        from tiffin.sdk import types

        return types
    raise AttributeError(f"module 'tiffin' has no attribute {name!r}")
