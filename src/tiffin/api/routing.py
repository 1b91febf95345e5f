"""From a request to its handler: versions, paths, errors.

A path may start with the API version that the client speaks (``/v1.43``); without it the newest
one is meant. Patterns are Docker's: ``{name}`` is one segment, ``{name:.*}`` takes slashes too
(image names). What no pattern matches is ``page not found``, a known path with a wrong method too.

Errors become answers in :meth:`Router.__call__` and nowhere else: a TiffinError its status and its
message, everything else 500 and a traceback in the daemon's log. An answer that has begun can't
change its status: it is cut off, so that the client sees that it is not whole.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from tiffin.api.bodies import Disconnected
from tiffin.api.exchange import Request, Response
from tiffin.errors import InvalidParameter, NotModified, TiffinError
from tiffin.version import API_VERSION, MIN_API_VERSION

logger = logging.getLogger("tiffin.api")

Handler = Callable[[Request, Response], None]

_VERSION = re.compile(r"/v(\d{1,3})\.(\d{1,3})(?=/|$)")
_VARIABLE = re.compile(r"\{(\w+)(:\.\*)?\}")


def parse_version(text: str) -> tuple[int, int]:
    """``1.50`` as a pair that compares."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


_NEWEST = parse_version(API_VERSION)
_OLDEST = parse_version(MIN_API_VERSION)


class Router:
    """The table of handlers; itself the server's handler."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Handler] = {}
        # By method and first segment, the order of registration decides.
        self._patterns: dict[tuple[str, str], list[tuple[re.Pattern[str], Handler]]] = {}

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Send ``method`` requests for ``pattern`` to ``handler``."""
        if "{" not in pattern:
            self._exact[method, pattern] = handler
            return
        position = 0
        text = ""
        for match in _VARIABLE.finditer(pattern):
            text += re.escape(pattern[position : match.start()])
            text += f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})"
            position = match.end()
        text += re.escape(pattern[position:])
        key = (method, pattern.split("/", 2)[1])
        self._patterns.setdefault(key, []).append((re.compile(text, re.DOTALL), handler))

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
        """The handler of a path without its version, and the path's variables."""
        handler = self._exact.get((method, path))
        if handler is not None:
            return handler, {}
        first = path.split("/", 2)[1] if path.startswith("/") else ""
        for pattern, handler in self._patterns.get((method, first), ()):
            match = pattern.fullmatch(path)
            if match:
                return handler, match.groupdict()
        return None

    def __call__(self, request: Request, response: Response) -> None:
        """Answer ``request``, whatever happens."""
        try:
            self._dispatch(request, response)
            response.finish()
        except Disconnected:
            raise
        except NotModified:
            response.empty(304)
        except TiffinError as error:
            self._fail(request, response, error.status, error.message)
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.path)
            text = f"{type(error).__name__}: {error}"
            self._fail(request, response, 500, f"internal error: {text} (see the daemon's log)")

    def _dispatch(self, request: Request, response: Response) -> None:
        path = request.path
        version = _VERSION.match(path)
        if version:
            asked = (int(version[1]), int(version[2]))
            text = f"{version[1]}.{version[2]}"
            if asked < _OLDEST:
                raise InvalidParameter(
                    f"client version {text} is too old. Minimum supported API version is "
                    f"{MIN_API_VERSION}, please upgrade your client to a newer version"
                )
            if asked > _NEWEST:
                raise InvalidParameter(
                    f"client version {text} is too new. "
                    f"Maximum supported API version is {API_VERSION}"
                )
            request.version = asked
            path = path[version.end() :]
        found = self.find(request.method, path)
        if found is None:
            response.json({"message": "page not found"}, 404)
            return
        handler, request.names = found
        handler(request, response)

    def _fail(self, request: Request, response: Response, status: int, message: str) -> None:
        if response.started:
            logger.error("%s %s was cut off: %s", request.method, request.path, message)
            return
        response.discard()
        response.json({"message": message}, status)
