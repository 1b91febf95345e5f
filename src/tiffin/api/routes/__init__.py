"""The routes of the API, one module a noun; each turns a request into calls of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiffin.api.routes.absent import AbsentRoutes
from tiffin.api.routes.archives import ArchiveRoutes
from tiffin.api.routes.builds import BuildRoutes
from tiffin.api.routes.containers import ContainerRoutes
from tiffin.api.routes.execs import ExecRoutes
from tiffin.api.routes.images import ImageRoutes
from tiffin.api.routes.networks import NetworkRoutes
from tiffin.api.routes.registries import RegistryRoutes
from tiffin.api.routes.storage import StorageRoutes
from tiffin.api.routes.streams import Crossing, StreamRoutes
from tiffin.api.routes.system import SystemRoutes
from tiffin.api.routes.volumes import VolumeRoutes
from tiffin.api.routing import Router

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiffin.engine import Engine

__all__ = ["all_routes"]


def all_routes(engine: Engine, shutdown: Callable[[bool], None]) -> Router:
    """The router of the whole API; ``shutdown`` is what ``POST /tiffin/shutdown`` calls."""
    router = Router()
    attaching = Crossing()
    ContainerRoutes(engine, attaching).register(router)
    StreamRoutes(engine, attaching).register(router)
    ArchiveRoutes(engine).register(router)
    ExecRoutes(engine).register(router)
    images = ImageRoutes(engine)
    images.register(router)
    RegistryRoutes(engine, images).register(router)
    StorageRoutes(engine).register(router)
    BuildRoutes(engine).register(router)
    VolumeRoutes(engine).register(router)
    NetworkRoutes(engine).register(router)
    SystemRoutes(engine, shutdown).register(router)
    AbsentRoutes().register(router)
    return router
