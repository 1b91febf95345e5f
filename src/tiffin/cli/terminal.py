"""This terminal: its raw mode, its size, and the keys that detach from a container.

In raw mode each key goes to the container as it is. The mode is restored at the end of the
``with`` block, also when the process is told to end by a signal meanwhile.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
_NAMED_KEYS = {"ctrl-@": 0, "ctrl-[": 27, "ctrl-\\": 28, "ctrl-]": 29, "ctrl-^": 30, "ctrl-_": 31}
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


def is_terminal(fd: int) -> bool:
    """Whether the descriptor is a terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def size(fd: int = 1) -> tuple[int, int]:
    """Rows and columns of the terminal; (0, 0) where there is none."""
    for candidate in (fd, 0, 2):
        try:
            columns, rows = os.get_terminal_size(candidate)
        except OSError:
            continue
        return rows, columns
    return 0, 0


class RawMode:
    """Keeps a terminal in raw mode for the length of a ``with`` block."""

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._saved: list[object] | None = None
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> RawMode:
        import termios

        saved = termios.tcgetattr(self._fd)
        mode: list[Any] = [list(item) if isinstance(item, list) else item for item in saved]
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        self._saved = saved
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL or number == signal.SIGINT:
                self._handlers[number] = signal.signal(number, self._end)
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        return self

    def _end(self, number: int, _frame: FrameType | None) -> None:
        """A signal that ends the process: restore first, then end by that very signal."""
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def restore(self) -> None:
        """Gives the terminal its own mode back; harmless when done already."""
        if self._saved is None:
            return
        import termios

        saved, self._saved = self._saved, None
        termios.tcsetattr(self._fd, termios.TCSANOW, saved)  # type: ignore[arg-type]

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def parse_keys(text: str) -> bytes:
    """The bytes of ``ctrl-p,ctrl-q`` and the like; raises ValueError for an unknown key."""
    keys = bytearray()
    for name in text.split(","):
        if len(name) == 1:
            keys += name.encode()
        elif name.startswith("ctrl-") and len(name) == 6 and "a" <= name[5] <= "z":
            keys.append(ord(name[5]) - ord("a") + 1)
        elif name in _NAMED_KEYS:
            keys.append(_NAMED_KEYS[name])
        else:
            raise ValueError(f"Unknown character: '{name}'")
    return bytes(keys)


class DetachWatch:
    """Notices when the detach keys pass by on their way to the daemon, which acts on them.

    When the stream ends, this tells "detached" from "the container ended".
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0
        self.seen = False

    def feed(self, data: bytes) -> None:
        """Looks at keys that were typed."""
        keys = self._keys
        for byte in data:
            if byte == keys[self._matched]:
                self._matched += 1
                if self._matched == len(keys):
                    self.seen, self._matched = True, 0
            else:
                self._matched = 1 if byte == keys[0] else 0


def check_terminal(attach_stdin: bool, terminal: bool) -> str:
    """Why a container with a terminal can't have this stdin; empty when it can."""
    if attach_stdin and terminal and not is_terminal(0):
        return "the input device is not a TTY"
    return ""


def flush() -> None:
    """Puts out what Python holds back, before bytes are written beside it."""
    sys.stdout.flush()
    sys.stderr.flush()
