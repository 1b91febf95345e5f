"""The keeper's ends of a process's streams.

A container's stdout and stderr are FIFOs that the container itself holds open for reading too: so
it gets no SIGPIPE when the keeper dies, and what it wrote waits for the next keeper. Its stdin is a
FIFO of which it holds the reading end only where it shall ever see an end of it (``stdin_once``);
else it holds both, and sees none. An exec'd process has pipes. A terminal is read from and written
to through its master.
"""

from __future__ import annotations

import collections
import errno
import os

from tiffin.keeper.loop import IN, OUT, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tiffin.keeper.attachment import Attachment
    from tiffin.keeper.recorder import Recorder

_READ = 1 << 16
_DRAIN_LIMIT = 8 << 20
"""More than any pipe holds: a process that lives on and writes must not hold up the end."""


class Fifos:
    """The FIFOs of a container, in its folder of the keeper."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def make(self, name: str) -> None:
        """Make a FIFO. Only root reaches the folder; inside the container, whoever holds the
        stream may open it again (``/dev/stdout``)."""
        path = f"{self._directory}/{name}"
        os.mkfifo(path, 0o600)
        os.chmod(path, 0o666)

    def open(self, name: str, flags: int) -> int:
        """Open one, without waiting for the other end."""
        return os.open(f"{self._directory}/{name}", flags | os.O_NONBLOCK | os.O_CLOEXEC)

    def open_for_container(self, name: str, flags: int) -> int:
        """Open one as the container shall have it: operations on it wait."""
        fd = self.open(name, flags)
        os.set_blocking(fd, True)
        return fd


class Source:
    """Where output comes from, once it was resumed. It owns ``fd``, which does not block."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        stream: int,
        terminal: bool,
        recorder: Recorder | None,
        deliver: Callable[[int, bytes], None],
    ) -> None:
        self._loop = loop
        self.fd = fd
        self._stream = stream
        self._terminal = terminal
        self._recorder = recorder
        self._deliver = deliver
        self._paused = True

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused and self.fd >= 0:
            self._paused = True
            self._loop.drop(self.fd)

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._watch()

    def drain(self) -> None:
        """Read all that is there."""
        total = 0
        while self.fd >= 0 and total < _DRAIN_LIMIT:
            count = self._pull()
            if not count:
                return
            total += count

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            self._loop.drop(self.fd)
            os.close(self.fd)
            self.fd = -1

    def _watch(self) -> None:
        if self.fd >= 0:
            self._loop.watch(self.fd, IN, self._ready)

    def _ready(self, _events: int) -> None:
        self._pull()

    def _pull(self) -> int:
        try:
            if self._recorder is not None:
                data = self._recorder.pull(self._stream, self.fd, terminal=self._terminal)
            else:
                data = os.read(self.fd, _READ)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # A terminal that nobody has open any more.
            data = b""
        if not data:
            self.close()
            return 0
        self._deliver(self._stream, data)
        return len(data)


class Sink:
    """Where input goes. It owns ``fd``, which does not block."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._queue: collections.deque[tuple[Attachment, memoryview]] = collections.deque()
        self._ending = False

    def feed(self, attachment: Attachment, data: bytes) -> bool:
        """Deliver; False if it has to wait, then the attachment is resumed later."""
        if self._fd < 0 or self._ending:
            return True
        sent = 0
        if not self._queue:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                pass
            except OSError:
                # Nobody reads it any more.
                self.close()
                return True
            if sent == len(data):
                return True
        self._queue.append((attachment, memoryview(data)[sent:]))
        self._loop.watch(self._fd, OUT, self._ready)
        return False

    def finish(self) -> None:
        """No more comes: the reader sees the end once it has read what is under way."""
        self._ending = True
        if not self._queue:
            self.close()

    def close(self) -> None:
        """Close the descriptor; what is under way is dropped."""
        if self._fd < 0:
            return
        self._loop.drop(self._fd)
        os.close(self._fd)
        self._fd = -1
        waiting = {attachment for attachment, _ in self._queue}
        self._queue.clear()
        for attachment in waiting:
            attachment.resume()

    def _ready(self, _events: int) -> None:
        while self._queue:
            attachment, data = self._queue[0]
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if sent < len(data):
                self._queue[0] = (attachment, data[sent:])
                continue
            self._queue.popleft()
            if all(other is not attachment for other, _ in self._queue):
                attachment.resume()
        if self._ending:
            self.close()
        elif self._fd >= 0 and not self._queue:
            self._loop.drop(self._fd)


def exec_streams(
    stdin: bool, stdout: bool, stderr: bool, *, captured: bool
) -> tuple[list[int], list[int]]:
    """An exec'd process's ends of its streams, and the other ends (-1: none; it has /dev/null
    then); what is ``captured`` is one stream. The descriptors are the caller's. Raises OSError."""
    theirs: list[int] = []
    ours = [-1, -1, -1]
    try:
        if captured:
            theirs.append(_exec_stream(0, False, ours))
            theirs.append(_exec_stream(1, True, ours))
            theirs.append(os.dup(theirs[1]))
        else:
            for number, pipe in enumerate((stdin, stdout, stderr)):
                theirs.append(_exec_stream(number, pipe, ours))
    except BaseException:
        for fd in (*theirs, *ours):
            if fd >= 0:
                os.close(fd)
        raise
    return theirs, ours


def _exec_stream(number: int, pipe: bool, ours: list[int]) -> int:
    """An exec'd process's end of a stream; the other end goes into ``ours``."""
    if not pipe:
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    reader, writer = os.pipe()
    theirs, ours[number] = (reader, writer) if number == 0 else (writer, reader)
    os.set_blocking(ours[number], False)
    os.fchmod(theirs, 0o666)
    return theirs
