"""What a Docker engine that is no swarm manager, and has no plugins, answers."""

from __future__ import annotations

from tiffin.api.exchange import Request, Response
from tiffin.api.routing import Router
from tiffin.errors import NotFound, Unreachable, Unsupported

NO_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect '
    "this node to swarm and try again."
)
_NOUNS = ("services", "tasks", "nodes", "secrets", "configs")


class AbsentRoutes:
    """Swarm, plugins and BuildKit sessions."""

    def register(self, router: Router) -> None:
        """Add the routes."""
        for noun in _NOUNS:
            router.add("GET", f"/{noun}", self.no_manager)
            router.add("POST", f"/{noun}/create", self.no_manager)
            for method in ("GET", "POST", "DELETE"):
                router.add(method, f"/{noun}/{{name:.*}}", self.no_manager)
        router.add("GET", "/swarm", self.no_manager)
        router.add("GET", "/swarm/unlockkey", self.no_manager)
        router.add("POST", "/swarm/update", self.no_manager)
        router.add("POST", "/swarm/leave", self.no_member)
        for action in ("init", "join", "unlock"):
            router.add("POST", f"/swarm/{action}", self.no_swarm)
        router.add("GET", "/plugins", self.no_plugins)
        router.add("GET", "/plugins/{name:.*}/json", self.no_plugin)
        router.add("DELETE", "/plugins/{name:.*}", self.no_plugin)
        for action in ("privileges", "pull", "create"):
            router.add("GET" if action == "privileges" else "POST", f"/plugins/{action}", self.none)
        for action in ("enable", "disable", "upgrade", "push", "set"):
            router.add("POST", f"/plugins/{{name:.*}}/{action}", self.no_plugin)
        router.add("POST", "/session", self.no_session)
        router.add("POST", "/grpc", self.no_session)

    def no_manager(self, request: Request, response: Response) -> None:
        raise Unreachable(NO_MANAGER)

    def no_member(self, request: Request, response: Response) -> None:
        raise Unreachable("This node is not part of a swarm")

    def no_swarm(self, request: Request, response: Response) -> None:
        raise Unsupported("tiffin has no swarm mode")

    def no_plugins(self, request: Request, response: Response) -> None:
        response.json([])

    def no_plugin(self, request: Request, response: Response) -> None:
        raise NotFound(f'plugin "{request.names["name"]}" not found')

    def none(self, request: Request, response: Response) -> None:
        raise Unsupported("tiffin has no plugins")

    def no_session(self, request: Request, response: Response) -> None:
        raise Unsupported(
            "tiffin builds without BuildKit's sessions: set DOCKER_BUILDKIT=0, or use tiffin build"
        )
