"""The command line of ``tiffin-runtime``: runc's, as engines use it."""

from __future__ import annotations

import re
import signal

from tiffin.errors import InvalidParameter

_NAME = re.compile(r"[A-Za-z0-9_+.-]+")

_FLAGS_WITHOUT_VALUE = {
    "all", "detach", "force", "help", "json", "keep", "no-new-keyring", "no-new-privs", "no-pivot",
    "no-subreaper", "quiet", "stats", "systemd-cgroup", "tty", "version", "debug",
}  # fmt: skip
_LISTS = ("additional-gids", "cap", "env")
"""Options that may be given several times: their values, with a newline between them."""
_SHORT = {
    "a": "all", "b": "bundle", "c": "cap", "d": "detach", "e": "env", "f": "format",
    "g": "additional-gids", "h": "help", "p": "process", "q": "quiet", "r": "resources",
    "t": "tty", "u": "user", "v": "version",
}  # fmt: skip


class Arguments:
    """A command line taken apart: global options, the command, its options, what is left."""

    def __init__(self, words: list[str]) -> None:
        self.options: dict[str, str] = {}
        self.command = ""
        self.rest: list[str] = []
        position = 0
        while position < len(words):
            word = words[position]
            position += 1
            if self.rest and self.command in ("exec", "kill", "ps"):
                self.rest.append(word)
            elif word.startswith("-") and word != "-" and len(word) > 1:
                name, equals, value = word.lstrip("-").partition("=")
                name = _SHORT.get(name, name) if not word.startswith("--") else name
                if name == "pid-file" or name not in _FLAGS_WITHOUT_VALUE:
                    if not equals:
                        if position >= len(words):
                            raise InvalidParameter(f"flag needs an argument: {word}")
                        value = words[position]
                        position += 1
                elif not equals:
                    value = "true"
                if name in _LISTS and name in self.options:
                    value = f"{self.options[name]}\n{value}"
                self.options[name] = value
            elif not self.command:
                self.command = word
            else:
                self.rest.append(word)

    def get(self, name: str, default: str = "") -> str:
        """An option's value."""
        return self.options.get(name, default)

    def has(self, name: str) -> bool:
        """Whether an option was given, and not as ``false``."""
        return self.options.get(name, "false") != "false"

    @property
    def id(self) -> str:
        """The container's ID. Raises InvalidParameter."""
        if not self.rest:
            raise InvalidParameter("container id cannot be empty")
        if not _NAME.fullmatch(self.rest[0]) or self.rest[0] in (".", ".."):
            raise InvalidParameter(f"invalid container ID format: {self.rest[0]}")
        return self.rest[0]


def signal_number(text: str) -> int:
    """A signal by its number or name. Raises InvalidParameter."""
    if text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise InvalidParameter(f"unknown signal {text!r}") from None
