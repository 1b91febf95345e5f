"""Every error that tiffin raises on purpose, and what each becomes outside.

This is the one place where an error meets an HTTP status (of the Docker Engine API) and an exit
code (of the command line). A message says what happened, to which image, file or container, and
what to do; clients match on Docker's own wording, so where Docker has a sentence for the case,
the message starts with it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing would cost the command line and the keeper 10 ms
if TYPE_CHECKING:
    from typing import Any, ClassVar


class TiffinError(Exception):
    """Something went wrong that tiffin can explain; the base of all the others."""

    status: ClassVar[int] = 500
    """The HTTP status that the API answers with."""
    excerpt: str = ""
    """Lines of the user's own file that it is about, to be shown with it; or nothing."""
    exit_code: int = 1
    """What a command line exits with, unless the command has its own rule (``run``: 125)."""

    @property
    def message(self) -> str:
        """The sentence for a person, without a class name."""
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidParameter(TiffinError):
    """What was asked makes no sense: a malformed reference, an unknown field, a bad archive."""

    status = 400


class TooSlow(InvalidParameter):
    """A client takes too long to say what it wants."""

    status = 408


class Unsupported(InvalidParameter):
    """What was asked is sensible, and tiffin can't do it yet; the message names it."""

    status = 501


class CorruptArchive(InvalidParameter):
    """An archive or tar that is broken, truncated, or tries to leave its root."""


class DigestMismatch(InvalidParameter):
    """Bytes that do not hash to what they were said to be."""


class NotFound(TiffinError):
    """No image, container, layer, volume, file or command of that name."""

    status = 404


class ImageNotFound(NotFound):
    """No image of that name here, and none in the registry if that was asked."""


class Conflict(TiffinError):
    """The thing exists already, is in use, or is in a state that does not allow this."""

    status = 409


class NotModified(TiffinError):
    """The thing is in the wanted state already (starting what runs, stopping what doesn't)."""

    status = 304
    exit_code = 0


class Forbidden(TiffinError):
    """Refused for a reason of safety."""

    status = 403


class Unauthorized(TiffinError):
    """A registry does not know who asks: no credentials, or wrong ones."""

    status = 401


class TooManyRequests(TiffinError):
    """A registry wants to be asked less often, for longer than is worth waiting for."""

    status = 429


class RootInUse(Conflict):
    """Another process owns the engine root; the message says which."""


class StorageFull(TiffinError):
    """The file system under the engine root has no room; nothing was kept of the attempt."""

    status = 507


class StartFailure(TiffinError):
    """A container's (or an exec's) first program could not be started.

    ``exit_code`` is Docker's: 127 where the program does not exist, 126 where it may not or can't
    be run, 125 for anything before that.
    """

    status = 400

    def __init__(self, message: str, exit_code: int = 125) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    @classmethod
    def told(cls, message: str) -> StartFailure:
        """From what a daemon said of it, which has the exit code in words only."""
        if "executable file not found" in message or "no such file or directory" in message:
            return cls(message, 127)
        if "permission denied" in message or "is a directory" in message:
            return cls(message, 126)
        return cls(message)


class ContainerError(TiffinError):
    """A container that was run to its end ended with another exit code than 0."""

    def __init__(
        self, container: Any, exit_status: int, command: Any, image: str, stderr: bytes | None
    ) -> None:
        said = "" if stderr is None else f": {stderr.decode(errors='replace')}"
        super().__init__(
            f"Command '{command}' in image '{image}' returned non-zero exit status "
            f"{exit_status}{said}"
        )
        self.container = container
        self.exit_status = self.exit_code = exit_status
        self.command = command
        self.image = image
        self.stderr = stderr


class BuildFailure(TiffinError):
    """An instruction of a Dockerfile failed; the message names it, its line and its exit code.

    ``build_log`` has what the build said until then, where a client of the API raises it.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.build_log: list[dict[str, Any]] = []


class Unreachable(TiffinError):
    """The daemon, the keeper or a registry does not answer; the message says where and why."""

    status = 503


class TimedOut(TiffinError, TimeoutError):
    """What was waited for did not come within the time that the caller gave it."""

    status = 504


def of_status(status: int, message: str) -> TiffinError:
    """The error that an answer of the API stands for; none of tiffin's own: with ``status``."""
    if status == 404 and any(words in message.lower() for words in _NO_IMAGE):
        return ImageNotFound(message)
    kind = _BY_STATUS.get(status)
    if kind is not None:
        return kind(message)
    error = (InvalidParameter if 400 <= status < 500 else TiffinError)(message)
    error.status = status  # type: ignore[misc]  # the class has the usual one
    return error


_NO_IMAGE = (
    "no such image",
    "not found: does not exist or no pull access",
    "repository does not exist",
    "does not match the specified platform",
)
_BY_STATUS: dict[int, type[TiffinError]] = {
    kind.status: kind
    for kind in (
        InvalidParameter, Unauthorized, Forbidden, NotFound, Conflict, NotModified,
        TooManyRequests, TiffinError, Unsupported, Unreachable, StorageFull,
    )
}  # fmt: skip
