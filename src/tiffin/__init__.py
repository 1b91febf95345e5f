"""tiffin: a container engine in Python.

The public names are loaded on first use, so that ``import tiffin`` costs the command line and the
keeper nothing.
"""

from __future__ import annotations

from tiffin.version import __version__

TYPE_CHECKING = False  # typing would cost the command line and the keeper 10 ms
if TYPE_CHECKING:
    from typing import Any

    from tiffin.engine import Engine

__all__ = ["Engine", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from tiffin.engine import Engine

        return Engine
    raise AttributeError(f"module 'tiffin' has no attribute {name!r}")
