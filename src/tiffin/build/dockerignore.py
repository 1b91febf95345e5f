"""What ``.dockerignore`` keeps out of a build context, by Docker's own rules.

They are not git's. A pattern is matched against the whole path from the context's root: ``*.md``
means the top level only, ``**/*.md`` every level. A leading or trailing slash changes nothing. A
path is out if a pattern matches it or one of the directories above it; ``!pattern`` lets it in
again; of several patterns the last one that matches decides. ``**`` stands for any number of
directories, also none. A line that begins with ``#`` is a comment.

Two peculiarities of the reference implementation are kept, since files depend on them: a pattern
of ``**`` and plain text alone (``**file``) matches every path that ends in the text (``myfile``
too), while ``**file*`` wants ``file`` at the start of a name; and ``dir/**`` matches what is in
``dir`` but not ``dir`` itself.

Source: Docker's "Build context" page, and the behaviour of github.com/moby/patternmatcher.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from tiffin.build import wildcards
from tiffin.errors import InvalidParameter


def read_patterns(content: bytes) -> list[str]:
    """The patterns of a ``.dockerignore`` file, cleaned, in order."""
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    patterns: list[str] = []
    for line in text.split("\n"):
        if line.startswith("#"):
            continue
        pattern = line.strip()
        if not pattern:
            continue
        exception = pattern.startswith("!")
        if exception:
            pattern = pattern[1:].strip()
        if pattern:
            pattern = _clean(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        patterns.append("!" + pattern if exception else pattern)
    return patterns


def _clean(path: str) -> str:
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


@dataclass(frozen=True, slots=True)
class _Pattern:
    expression: re.Pattern[str]
    exception: bool
    prefix: str
    """For an exception: the path above which it can't let anything in."""


State = tuple[bool, ...]
"""Which of the patterns match a directory or one above it."""


class Ignore:
    """The patterns of one ``.dockerignore``, ready to be asked."""

    def __init__(self, patterns: list[str]) -> None:
        """Raises InvalidParameter for a pattern that makes no sense."""
        self._patterns = [_compile(text) for text in patterns if text.strip()]
        self._exceptions = [each for each in self._patterns if each.exception]
        self._all: re.Pattern[str] | None = None
        if self._patterns and not self._exceptions:
            # Without exceptions the order says nothing, and one expression answers for all.
            joined = "|".join(f"(?:{each.expression.pattern})" for each in self._patterns)
            self._all = re.compile(joined, re.DOTALL)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    @property
    def root(self) -> State:
        """The state to begin a walk with."""
        return (False,) * len(self._patterns)

    def check(self, path: str, above: State) -> tuple[bool, State]:
        """Whether ``path`` is kept out, given the state of its directory; and its own state."""
        if self._all is not None:
            out = above[0] or self._all.fullmatch(path) is not None
            return out, (out,) * len(above)
        out = False
        state: list[bool] = []
        for pattern, matched_above in zip(self._patterns, above, strict=True):
            matches = matched_above or pattern.expression.fullmatch(path) is not None
            state.append(matches)
            if matches:
                out = not pattern.exception
        return out, tuple(state)

    def may_hold_exceptions(self, directory: str) -> bool:
        """Whether an excluded directory may still hold something that an exception lets in."""
        for pattern in self._exceptions:
            prefix = pattern.prefix
            if not prefix or f"{prefix}/".startswith(f"{directory}/"):
                return True
            if f"{directory}/".startswith(f"{prefix}/"):
                return True
        return False

    def excludes(self, path: str) -> bool:
        """Whether ``path`` is kept out, looked at by itself."""
        state = self.root
        out = False
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            out, state = self.check("/".join(parts[:count]), state)
        return out


def _compile(text: str) -> _Pattern:
    cleaned = _clean(text.strip())
    exception = cleaned.startswith("!")
    if exception:
        cleaned = cleaned[1:]
        if not cleaned:
            raise InvalidParameter('illegal exclusion pattern in .dockerignore: "!"')
    try:
        wildcards.compiled(cleaned)  # only for its complaint
        expression = _expression(cleaned)
    except InvalidParameter as error:
        raise InvalidParameter(f".dockerignore: {error.message}") from None
    prefix = wildcards.literal_prefix(cleaned)
    return _Pattern(re.compile(expression, re.DOTALL), exception, prefix)


def _expression(pattern: str) -> str:
    if pattern.startswith("**") and not re.search(r"[*?\[\]\\]", pattern[2:]):
        suffix = pattern[2:]
        if suffix.startswith("/"):
            return f"(?:.*/)?{re.escape(suffix[1:])}"
        return f".*{re.escape(suffix)}"
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        if pattern.startswith("**", position):
            position += 2
            if pattern.startswith("/", position):
                position += 1
            parts.append(".*" if position >= len(pattern) else "(?:.*/)?")
            continue
        character = pattern[position]
        position += 1
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "[":
            expression, position = wildcards.character_class(pattern, position)
            parts.append(expression)
        elif character == "\\":
            parts.append(re.escape(pattern[position : position + 1]))
            position += 1
        else:
            parts.append(re.escape(character))
    return "".join(parts)
