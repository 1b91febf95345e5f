"""A session with a container: its streams on one connection, and this terminal.

Bytes go both ways until the daemon ends the stream: keys or stdin to the container (with
half-close at the end of stdin), its output to stdout and stderr. Signals that come meanwhile are
passed on (``--sig-proxy``), and a change of the terminal's size goes to the container's terminal.
All of it in one loop on one poll, so nothing waits for anything else.
"""

from __future__ import annotations

import os
import select
import signal

from tiffin.cli.streams import Demultiplexer
from tiffin.cli.terminal import DetachWatch, RawMode, flush, is_terminal
from tiffin.client.connection import write_all
from tiffin.errors import TiffinError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import FrameType, TracebackType

_BLOCK = 1 << 18
_PROXIED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "PWR", "VTALRM", "PROF", "IO")


def _note(_number: int, _frame: FrameType | None) -> None:
    """The signal's number is in the wake-up pipe already."""


class Signals:
    """Catches signals for the length of a ``with`` block and gives them out by number."""

    def __init__(self, *, proxied: bool, resize: bool) -> None:
        names = [f"SIG{name}" for name in _PROXIED] if proxied else []
        if resize:
            names.append("SIGWINCH")
        self._numbers = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
        self._saved: dict[int, object] = {}
        self.fd = -1
        self._end = -1
        self._wakeup = -1

    def __enter__(self) -> Signals:
        self.fd, self._end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        for number in self._numbers:
            self._saved[number] = signal.signal(number, _note)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.fd)
        os.close(self._end)

    def take(self) -> bytes:
        """The numbers of the signals that came since the last time."""
        try:
            return os.read(self.fd, 512)
        except BlockingIOError:
            return b""


class Session:
    """What to connect with what; ``run`` does it."""

    def __init__(
        self,
        connection: socket.socket,
        initial: bytes,
        *,
        multiplexed: bool,
        terminal: bool,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        detach_keys: bytes = b"",
        resize: Callable[[], None] | None = None,
        proxy: Callable[[int], None] | None = None,
    ) -> None:
        self._connection = connection
        self._initial = initial
        self._demultiplexer = (
            Demultiplexer(1 if stdout else None, 2 if stderr else None) if multiplexed else None
        )
        self._output = stdout or stderr
        self._stdin = stdin
        self._raw = terminal and stdin and is_terminal(0)
        self._watch = DetachWatch(detach_keys) if self._raw and detach_keys else None
        self._resize = resize if terminal and (is_terminal(1) or is_terminal(0)) else None
        self._proxy = proxy
        self._pending = b""

    @property
    def detached(self) -> bool:
        """Whether the stream ended because of the detach keys."""
        return self._watch is not None and self._watch.seen

    def run(self, started: Callable[[], None] | None = None) -> None:
        """Copies until the daemon ends the stream.

        ``started`` is called once signals are caught and the terminal is raw, before the first
        byte: it starts the container. Raises TiffinError with what the daemon said at the end.
        """
        flush()
        with Signals(proxied=self._proxy is not None, resize=self._resize is not None) as signals:
            if self._raw:
                with RawMode():
                    self._copy(signals, started)
            else:
                self._copy(signals, started)
        complaint = self._demultiplexer.complaint if self._demultiplexer else b""
        if complaint:
            raise TiffinError(
                "error from daemon in stream: " + complaint.decode(errors="replace").strip()
            )

    def _copy(self, signals: Signals, started: Callable[[], None] | None) -> None:
        connection = self._connection
        try:
            if started is not None:
                started()
            if self._resize is not None:
                self._resize()
            self._loop(signals)
        finally:
            connection.close()

    def _loop(self, signals: Signals) -> None:
        connection = self._connection
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        poller.register(signals.fd, select.POLLIN)
        if self._stdin:
            poller.register(0, select.POLLIN)
        else:
            connection_half_close(connection)
        connection.setblocking(False)
        buffer = memoryview(bytearray(_BLOCK))
        if self._initial:
            self._put_out(memoryview(self._initial))
        while True:
            for fd, events in poller.poll():
                if fd == signals.fd:
                    self._signalled(signals)
                elif fd == 0 and self._stdin:
                    self._read_stdin(poller)
                else:
                    if events & select.POLLOUT:
                        self._send(poller)
                    if events & ~select.POLLOUT:
                        try:
                            count = connection.recv_into(buffer)
                        except BlockingIOError:
                            continue
                        except ConnectionResetError:
                            return
                        if not count:
                            return
                        self._put_out(buffer[:count])

    def _put_out(self, data: memoryview) -> None:
        if self._demultiplexer is not None:
            self._demultiplexer.feed(data)
        elif self._output:
            write_all(1, data)

    def _signalled(self, signals: Signals) -> None:
        for number in signals.take():
            if number == signal.SIGWINCH:
                if self._resize is not None:
                    self._resize()
            elif self._proxy is not None:
                self._proxy(number)

    def _read_stdin(self, poller: select.poll) -> None:
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return
        except OSError:
            # The terminal is gone (EIO), which is the end of what it will say.
            data = b""
        if not data:
            poller.unregister(0)
            self._stdin = False
        elif self._watch is not None:
            self._watch.feed(data)
        self._pending += data
        self._send(poller)

    def _send(self, poller: select.poll) -> None:
        """Sends what is pending; with the rest left, stdin waits until it is gone."""
        connection = self._connection
        try:
            while self._pending:
                sent = connection.send(self._pending)
                self._pending = self._pending[sent:]
        except BlockingIOError:
            poller.modify(connection, select.POLLIN | select.POLLOUT)
            if self._stdin:
                poller.modify(0, 0)
            return
        except (BrokenPipeError, ConnectionResetError):
            # The container takes no more input; its output may go on.
            self._pending = b""
            if self._stdin:
                poller.unregister(0)
                self._stdin = False
        poller.modify(connection, select.POLLIN)
        if self._stdin:
            poller.modify(0, select.POLLIN)
        else:
            connection_half_close(connection)


def connection_half_close(connection: socket.socket) -> None:
    """Tells the daemon that nothing more comes from here."""
    try:
        connection.shutdown(1)
    except OSError:
        # It closed the connection already.
        return
