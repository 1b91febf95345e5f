"""A container, as an object of ``client.containers``."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import datetime
from json import loads
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from tiffin.errors import InvalidParameter, NotModified, StartFailure
from tiffin.sdk import settings, streams
from tiffin.sdk.resource import Removable
from tiffin.sdk.streams import CHUNK, Output
from tiffin.sdk.transport import Hijacked, Source

if TYPE_CHECKING:
    import socket

    from tiffin.sdk.images import Image

Moment = datetime | int | float | str


class ExecResult(NamedTuple):
    """How ``exec_run`` came out; the exit code of what still streams is None."""

    exit_code: int | None
    output: Any


def moment(value: Moment | None) -> str | None:
    """A point in time as the API takes it: seconds since 1970, or any of its own forms."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return f"{value.timestamp():.9f}"
    return f"{value:.9f}" if isinstance(value, float) else str(value)


class Container(Removable):
    """One container.

    As a context manager it is removed at the end of the block, running or not, with its anonymous
    volumes.
    """

    @property
    def name(self) -> str:
        """The container's name."""
        names = self.attrs.get("Names")
        return str(names[0] if names else self.attrs["Name"]).lstrip("/")

    @property
    def image(self) -> Image:
        """The image that it was made of."""
        return self.client.images.get(self.attrs.get("ImageID") or self.attrs["Image"])

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        source = self.attrs if "Labels" in self.attrs else self.attrs["Config"]
        return dict(source.get("Labels") or {})

    @property
    def status(self) -> str:
        """``created``, ``running``, ``paused``, ``exited``… (at the last reload)."""
        state = self.attrs["State"]
        return str(state["Status"] if isinstance(state, dict) else state)

    @property
    def health(self) -> str:
        """``healthy``, ``unhealthy``, ``starting``; ``unknown`` without a check."""
        state = self.attrs["State"]
        found = state.get("Health") if isinstance(state, dict) else None
        return str((found or {}).get("Status") or "unknown")

    @property
    def ports(self) -> dict[str, list[dict[str, str]] | None]:
        """The ports that it exposes, with where they are published."""
        return dict((self.attrs.get("NetworkSettings") or {}).get("Ports") or {})

    @property
    def _tty(self) -> bool:
        if "Config" not in self.attrs:
            self.reload()
        return bool(self.attrs["Config"]["Tty"])

    def _take_away(self) -> None:
        self.remove(v=True, force=True)

    def _inspect(self) -> dict[str, Any]:
        return dict(self.client.transport.call("GET", f"{self._path}/json"))

    @property
    def _path(self) -> str:
        return f"/containers/{self.id}"

    def _do(self, verb: str, body: Any = None, **query: Any) -> Any:
        try:
            return self.client.transport.call("POST", f"{self._path}/{verb}", query, body)
        except NotModified:
            return None

    def start(self, *, detach_keys: str | None = None) -> None:
        """Starts it; raises StartFailure if its first program can't be."""
        try:
            self._do("start", detachKeys=detach_keys)
        except InvalidParameter as error:
            raise StartFailure.told(error.message) from None

    def stop(self, *, timeout: int | None = None, signal: str | None = None) -> None:
        """Asks it to end, and kills it after ``timeout`` seconds (10)."""
        self._do("stop", t=timeout, signal=signal)

    def restart(self, *, timeout: int | None = None, signal: str | None = None) -> None:
        """Stops and starts it."""
        self._do("restart", t=timeout, signal=signal)

    def kill(self, signal: str | int | None = None) -> None:
        """Sends a signal, SIGKILL if none is named."""
        self._do("kill", signal=signal)

    def pause(self) -> None:
        """Freezes all its processes."""
        self._do("pause")

    def unpause(self) -> None:
        """Lets them go on."""
        self._do("unpause")

    def rename(self, name: str) -> None:
        """Gives it another name."""
        self._do("rename", name=name)

    def resize(self, height: int, width: int) -> None:
        """Tells its terminal the size."""
        self._do("resize", h=height, w=width)

    def update(self, **limits: Any) -> dict[str, Any]:
        """Changes limits (``mem_limit``, ``cpu_shares``, …, ``restart_policy``) as it runs."""
        return dict(self._do("update", settings.limits(limits)))

    def remove(self, *, v: bool = False, link: bool = False, force: bool = False) -> None:
        """Removes it; ``v``: its anonymous volumes too; ``force``: even if it runs."""
        query = {"v": v, "link": link, "force": force}
        self.client.transport.call("DELETE", self._path, query)

    def wait(self, *, timeout: float | None = None, condition: str | None = None) -> dict[str, Any]:
        """Waits for its end (or ``next-exit``, ``removed``); ``{"StatusCode": …}``.

        Raises TimedOut after ``timeout`` seconds.
        """
        _, answer = self.client.transport.whole(
            "POST", f"{self._path}/wait", {"condition": condition}, timeout=timeout
        )
        return dict(answer)

    def diff(self) -> list[dict[str, Any]]:
        """What it changed: ``{"Path", "Kind"}``, Kind 0 for changed, 1 for added, 2 for deleted."""
        return list(self.client.transport.call("GET", f"{self._path}/changes") or [])

    def top(self, *, ps_args: str | None = None) -> dict[str, Any]:
        """Its processes: ``{"Titles", "Processes"}``."""
        return dict(self.client.transport.call("GET", f"{self._path}/top", {"ps_args": ps_args}))

    def commit(
        self,
        repository: str | None = None,
        tag: str | None = None,
        *,
        message: str | None = None,
        author: str | None = None,
        pause: bool = True,
        changes: str | list[str] | None = None,
        conf: dict[str, Any] | None = None,
    ) -> Image:
        """Makes an image of what it is now."""
        query = {
            "container": self.id,
            "repo": repository,
            "tag": tag,
            "comment": message,
            "author": author,
            "pause": "1" if pause else "0",
            "changes": changes,
        }
        made = self.client.transport.call("POST", "/commit", query, conf)
        return self.client.images.get(made["Id"])

    def export(self, chunk_size: int | None = CHUNK) -> Output[bytes]:
        """Its whole file system as a tar."""
        answer = self.client.transport.stream("GET", f"{self._path}/export")
        return streams.chunks(answer, chunk_size)

    def put_archive(self, path: str, data: Source) -> bool:
        """Unpacks a tar into the folder ``path``; True, or an error."""
        answer = self.client.transport.upload("PUT", f"{self._path}/archive", {"path": path}, data)
        answer.read()
        answer.drop()
        return True

    def get_archive(
        self, path: str, chunk_size: int | None = CHUNK
    ) -> tuple[Output[bytes], dict[str, Any]]:
        """A file or folder as a tar, and its name, size, mode, time and link target."""
        answer = self.client.transport.stream("GET", f"{self._path}/archive", {"path": path})
        described = base64.b64decode(answer.headers["x-docker-container-path-stat"])
        return streams.chunks(answer, chunk_size), loads(described)

    @overload
    def logs(
        self,
        *,
        stdout: bool = ...,
        stderr: bool = ...,
        stream: Literal[False] = ...,
        timestamps: bool = ...,
        tail: int | str = ...,
        since: Moment | None = ...,
        until: Moment | None = ...,
        follow: bool | None = ...,
    ) -> bytes: ...
    @overload
    def logs(
        self,
        *,
        stdout: bool = ...,
        stderr: bool = ...,
        stream: Literal[True],
        timestamps: bool = ...,
        tail: int | str = ...,
        since: Moment | None = ...,
        until: Moment | None = ...,
        follow: bool | None = ...,
    ) -> Output[bytes]: ...
    def logs(
        self,
        *,
        stdout: bool = True,
        stderr: bool = True,
        stream: bool = False,
        timestamps: bool = False,
        tail: int | str = "all",
        since: Moment | None = None,
        until: Moment | None = None,
        follow: bool | None = None,
    ) -> bytes | Output[bytes]:
        """What it said. ``stream``: piece by piece, and on to its end unless ``follow=False``."""
        query = {
            "stdout": stdout,
            "stderr": stderr,
            "timestamps": timestamps,
            "tail": tail,
            "since": moment(since),
            "until": moment(until),
            "follow": stream if follow is None else follow,
        }
        tty = self._tty
        answer = self.client.transport.stream("GET", f"{self._path}/logs", query)
        items = streams.pieces(answer.parts(), tty=tty)
        output = Output((data for _, data in items), answer.drop)
        return output if stream else b"".join(output)

    @overload
    def stats(self, *, stream: Literal[False]) -> dict[str, Any]: ...
    @overload
    def stats(
        self, *, decode: Literal[True], stream: Literal[True] = ...
    ) -> Output[dict[str, Any]]: ...
    @overload
    def stats(
        self, *, decode: Literal[False] | None = ..., stream: Literal[True] = ...
    ) -> Output[bytes]: ...
    def stats(self, *, decode: bool | None = None, stream: bool = True) -> Any:
        """What it uses: one reading a second as JSON (``decode``: as dictionaries), or one."""
        path = f"{self._path}/stats"
        if not stream:
            return self.client.transport.call("GET", path, {"stream": "0"})
        answer = self.client.transport.stream("GET", path, {"stream": "1"})
        return streams.messages(answer) if decode else streams.lines(answer)

    def attach(
        self,
        *,
        stdout: bool = True,
        stderr: bool = True,
        stream: bool = False,
        logs: bool = False,
        demux: bool = False,
    ) -> Any:
        """Its output from now on, to its end; ``logs``: what it said before, too.

        Bytes, or an iterator (``stream``); with ``demux`` pairs of stdout and stderr.
        """
        connection = self._attached(stdout=stdout, stderr=stderr, stream=True, logs=logs)
        return _output(connection, tty=self._tty, stream=stream, demux=demux)

    def _attached(self, **query: Any) -> Hijacked:
        return self.client.transport.hijack(f"{self._path}/attach", query)

    def attach_socket(self, *, params: dict[str, Any] | None = None) -> socket.socket:
        """The connection itself, for input too; multiplexed unless there is a terminal."""
        query = params or {"stdout": True, "stderr": True, "stream": True}
        return self._attached(**query).socket

    def exec_run(
        self,
        cmd: str | list[str],
        stdout: bool = True,
        stderr: bool = True,
        stdin: bool = False,
        tty: bool = False,
        privileged: bool = False,
        user: str = "",
        detach: bool = False,
        stream: bool = False,
        socket: bool = False,
        environment: dict[str, str] | list[str] | None = None,
        workdir: str | None = None,
        demux: bool = False,
    ) -> ExecResult:
        """Runs a further program in it: its exit code and its output.

        ``stream``: the output is an iterator; ``socket``: it is the connection; ``demux``: it is
        (or yields) pairs of stdout and stderr; ``detach``: there is none. In these cases but
        ``demux`` alone the exit code is None.
        """
        made = self._do(
            "exec",
            {
                "Cmd": settings.words(cmd),
                "AttachStdin": stdin,
                "AttachStdout": stdout,
                "AttachStderr": stderr,
                "Tty": tty,
                "Privileged": privileged,
                "User": user,
                "Env": settings.environment(environment or []),
                "WorkingDir": workdir or "",
            },
        )
        path = f"/exec/{made['Id']}"
        start = {"Detach": detach, "Tty": tty}
        if detach:
            self.client.transport.call("POST", f"{path}/start", None, start)
            return ExecResult(None, b"")
        connection = self.client.transport.hijack(f"{path}/start", None, start)
        if socket:
            return ExecResult(None, connection.socket)
        output = _output(connection, tty=tty, stream=stream, demux=demux)
        if stream:
            return ExecResult(None, output)
        return ExecResult(self.client.transport.call("GET", f"{path}/json")["ExitCode"], output)


def _output(connection: Hijacked, *, tty: bool, stream: bool, demux: bool) -> Any:
    items = streams.pieces(connection.parts(), tty=tty)
    if stream:
        shown: Iterator[Any] = streams.pairs(items) if demux else (data for _, data in items)
        return Output(shown, connection.close)
    try:
        if demux:
            return streams.both(items)
        return b"".join(data for _, data in items)
    finally:
        connection.close()
