"""The keeper's work towards daemons: takes their connections, answers requests, tells events.

One keeper serves one engine root; a lock on ROOT/keeper/lock makes sure of it. It leaves when it
has had neither containers nor connections for a while.
"""

from __future__ import annotations

import os
import signal
import socket

from tiffin.errors import Conflict, InvalidParameter, StartFailure, TiffinError
from tiffin.keeper.attachment import Attachment
from tiffin.keeper.containers import Containers
from tiffin.keeper.launcher import NativeLauncher
from tiffin.keeper.loop import IN, Loop, Timer, report, say
from tiffin.keeper.peer import Peer
from tiffin.linux.sockets import bind_unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Fields = dict[str, Any]


_ACCEPT_PAUSE = 0.2


class Server:
    """The keeper of the engine root ``root``."""

    def __init__(self, root: str, idle: float, launcher: NativeLauncher | None = None) -> None:
        directory = f"{root}/keeper"
        self._path = f"{directory}/keeper.sock"
        self._idle = idle
        self._launcher = launcher or NativeLauncher()
        self._loop = Loop()
        self._peers: list[Peer] = []
        self._containers = Containers(self._loop, directory, self._launcher, self._broadcast)
        self._idle_timer: Timer | None = None
        self._stopping = False
        self._requests: dict[str, Callable[[Fields, list[int]], object]] = {
            "attach": self._attach,
            "signal": self._signal,
            "resize": self._resize,
            "forget": self._forget,
            "list": self._list,
            "shutdown": self._shutdown,
        }

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until it is time to leave. ``ready`` is called once clients can connect."""
        wake, woken = os.pipe()
        for fd in (wake, woken):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._listen()
        self._containers.find()
        self._loop.watch(wake, IN, lambda _: self._woken(wake))
        ready()
        try:
            self._consider_leaving()
            while not self._stopping:
                self._loop.turn()
                self._consider_leaving()
        finally:
            self._end()
            signal.set_wakeup_fd(-1)
            os.close(wake)
            os.close(woken)

    # Connections.

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if os.path.exists(self._path):
            os.unlink(self._path)
        bind_unix(listener, self._path)
        os.chmod(self._path, 0o600)
        listener.listen(64)
        self._listener = listener
        self._loop.watch(listener.fileno(), IN, self._knocked)

    def _knocked(self, _events: int) -> None:
        try:
            self._accept()
        except OSError as error:
            # Too many open files: those who wait are taken when there are fewer.
            say(f"a daemon's connection cannot be taken yet: {error}")
            listener = self._listener
            self._loop.drop(listener.fileno())
            self._loop.after(_ACCEPT_PAUSE, lambda: self._expect(listener))

    def _expect(self, listener: socket.socket) -> None:
        if listener is self._listener and listener.fileno() >= 0:
            self._loop.watch(listener.fileno(), IN, self._knocked)

    def _accept(self) -> bool:
        """Take one connection; False if there is none."""
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        self._peers.append(Peer(self._loop, sock, self._called, self._gone))
        return True

    def _gone(self, peer: Peer) -> None:
        self._peers.remove(peer)
        self._containers.leave(peer)

    def _called(self, peer: Peer, message: Fields, fds: list[int]) -> None:
        """Any message of a daemon. Descriptors that nobody took are closed here."""
        answer: Fields = {"id": message.get("id")}
        do = message.get("do")
        try:
            if do == "offer":
                self._containers.take_offer(str(message.get("container")), fds)
                return
            if do == "hello":
                self._hello(peer)
            elif do == "start":
                # This and the next are answered once it is known.
                self._start(peer, message, answer)
                return
            elif do == "exec":
                self._exec(message, fds, lambda outcome: self._answer(peer, answer, outcome))
                return
            elif isinstance(do, str) and do in self._requests:
                answer["result"] = self._requests[do](message, fds)
            else:
                raise InvalidParameter(f"the keeper knows no {do!r}")
        except TiffinError as error:
            answer["error"] = _problem(error)
        except (KeyError, TypeError, ValueError) as error:
            report()
            text = f"the keeper does not understand this request: {error!r}"
            answer["error"] = _problem(InvalidParameter(text))
        except Exception as error:
            # A mistake in here, or a failing file system: this request fails, the others'
            # containers go on.
            report()
            answer["error"] = _problem(TiffinError(f"the keeper failed: {error}"))
        finally:
            for fd in fds:
                os.close(fd)
        peer.send(answer, [])

    def _answer(
        self, peer: Peer, answer: Fields, outcome: Fields | StartFailure, held: str = ""
    ) -> None:
        """Answer with what became of a start, and what the daemon shall keep of a container."""
        fds: list[int] = []
        if isinstance(outcome, StartFailure):
            answer["error"] = _problem(outcome)
        else:
            answer["result"] = outcome
            if held:
                answer["held"] = held
                fds = self._containers.held(held)
        peer.send(answer, fds)

    def _broadcast(self, event: Fields) -> None:
        for peer in list(self._peers):
            peer.send(dict(event), [])

    def _hello(self, peer: Peer) -> None:
        # While the daemon, which has its answer by then, is preparing the first request.
        self._loop.after(0, self._launcher.load)
        self._containers.adopt()
        for container in self._containers.all():
            if container.running:
                peer.send({"held": container.id}, container.held())
            else:
                peer.send(container.exit_event(), [])

    # Requests.

    def _start(self, peer: Peer, message: Fields, answer: Fields) -> None:
        id = _name(message["container"])
        self._containers.start(
            id,
            message["plan"],
            log=message["log"],
            terminal=bool(message["terminal"]),
            open_stdin=bool(message["open_stdin"]),
            stdin_once=bool(message["stdin_once"]),
            size=_size(message["size"]),
            asker=peer,
            done=lambda outcome: self._answer(peer, answer, outcome, id),
        )

    def _exec(
        self, message: Fields, fds: list[int], done: Callable[[Fields | StartFailure], None]
    ) -> None:
        options = message["attachment"]
        attachment = None if options is None else self._attachment(fds, options)
        try:
            self._containers.exec(
                _name(message["exec"]),
                _name(message["container"]),
                message["process"],
                terminal=bool(message["terminal"]),
                stdin=bool(message["open_stdin"]),
                attachment=attachment,
                size=_size(message["size"]),
                capture=int(message.get("capture") or 0),
                done=done,
            )
        except BaseException:
            if attachment is not None:
                attachment.abandon()
            raise

    def _attach(self, message: Fields, fds: list[int]) -> None:
        id = _name(message["container"])
        self._containers.attach(id, self._attachment(fds, message["attachment"]))

    def _attachment(self, fds: list[int], options: Fields) -> Attachment:
        if not fds:
            raise InvalidParameter("an attachment needs a connection")
        try:
            attachment = Attachment(self._loop, fds[0], options)
        except OSError as error:
            raise InvalidParameter(f"this cannot be attached: {error}") from None
        del fds[0]
        return attachment

    def _signal(self, message: Fields, _fds: list[int]) -> None:
        self._containers.running(message["target"]).signal(int(message["signal"]))

    def _resize(self, message: Fields, _fds: list[int]) -> None:
        size = _size(message["size"]) or (0, 0)
        self._containers.running(message["target"]).resize(*size)

    def _forget(self, message: Fields, _fds: list[int]) -> None:
        self._containers.forget(_name(message["container"]))

    def _list(self, _message: Fields, _fds: list[int]) -> list[Fields]:
        return self._containers.describe()

    def _shutdown(self, message: Fields, _fds: list[int]) -> None:
        running = [container.id for container in self._containers.all() if container.running]
        if running and not message["force"]:
            raise Conflict(f"{len(running)} containers are running, {running[0]} is one of them")
        self._stopping = True

    # Ends.

    def _woken(self, wake: int) -> None:
        """A signal came: a child has ended."""
        try:
            while os.read(wake, 4096):
                pass
        except BlockingIOError:
            # All read.
            pass
        self._containers.reap()

    def _terminate(self, *_: object) -> None:
        self._stopping = True

    def _consider_leaving(self) -> None:
        if self._peers or self._containers.busy:
            if self._idle_timer is not None:
                self._idle_timer.cancel()
                self._idle_timer = None
        elif self._idle_timer is None:
            self._idle_timer = self._loop.after(self._idle, self._leave)

    def _leave(self) -> None:
        # Once the name is gone nobody can come; but somebody may have come just before.
        self._idle_timer = None
        if os.path.exists(self._path):
            os.unlink(self._path)
        if self._accept():
            self._loop.drop(self._listener.fileno())
            self._listener.close()
            self._listen()
        else:
            self._stopping = True

    def _end(self) -> None:
        if os.path.exists(self._path):
            os.unlink(self._path)
        self._loop.drop(self._listener.fileno())
        self._listener.close()
        self._containers.close()
        for peer in list(self._peers):
            peer.close()
        self._loop.close()


def _problem(error: TiffinError) -> Fields:
    kind = "StartFailure" if isinstance(error, StartFailure) else type(error).__name__
    return {"kind": kind, "message": error.message, "exit_code": error.exit_code}


def _name(value: object) -> str:
    """A name that is a folder's."""
    if not isinstance(value, str) or not value.replace("-", "").replace("_", "").isalnum():
        raise InvalidParameter(f"{value!r} is no container's ID")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))
