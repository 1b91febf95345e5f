"""The engine: the verbs on images, containers, builds and volumes, as a synchronous library."""

from tiffin.engine.engine import Engine

__all__ = ["Engine"]
