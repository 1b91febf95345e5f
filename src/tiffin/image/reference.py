"""References: the names that images are called by.

``busybox``, ``busybox:1``, ``host:5000/team/app:2@sha256:…`` are *familiar* forms; each has one
*canonical* form that names the registry's domain and the whole path
(``docker.io/library/busybox:1``). A reference consists of a domain, a path, and at most one tag and
one digest. The rules, and the words of the refusals, are those of Docker's reference grammar
(distribution/reference): the part before the first ``/`` is a domain if it has a dot, a colon or an
upper-case letter, or is ``localhost``; a path is in lower case; a bare image id is no name.

The command line imports this module: no ``re`` here, nor anything that imports it.
"""

from __future__ import annotations

from tiffin.errors import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["DEFAULT_DOMAIN", "DEFAULT_TAG", "Reference", "check_digest", "is_digest", "is_image_id"]

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_PATH_MAX = 255
_TAG_MAX = 128
_DIGEST_HEX_MIN = 32
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}

_DIGITS = "0123456789"
_LOWER = "abcdefghijklmnopqrstuvwxyz" + _DIGITS
_ALNUM = _LOWER + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HEX = _DIGITS + "abcdef"
_ANY_HEX = _HEX + "ABCDEF"
_MIXED_SEPARATORS = ("..", "___", "._", "_.", ".-", "-.", "_-", "-_")


class Reference:
    """An image's name, taken apart. Immutable, hashable; two are equal if all four parts are."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(
        self, domain: str, path: str, tag: str | None = None, digest: str | None = None
    ) -> None:
        """Takes parts that are known to be right; text from outside goes through ``parse``."""
        self.domain: Final = domain
        self.path: Final = path
        self.tag: Final = tag
        self.digest: Final = digest

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference that ``text`` is, completed by Docker's defaults (but for the tag).

        Raises InvalidParameter with Docker's sentence if ``text`` is no reference.
        """
        if is_image_id(text):
            raise InvalidParameter(
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )
        domain, rest = _split_domain(text)
        name = rest.partition(":")[0]
        if name.lower() != name:
            raise InvalidParameter(
                f"invalid reference format: repository name ({name}) must be lowercase"
            )
        named, at, digest = rest.partition("@")
        path, colon, tag = named.partition(":")
        if (
            not _is_domain(domain)
            or not all(map(_is_path_component, path.split("/")))
            or (colon and not _is_tag(tag))
            or (at and not _looks_like_digest(digest))
        ):
            raise InvalidParameter(f"invalid reference format: {_quoted(text)}")
        if len(path) > _PATH_MAX:
            raise InvalidParameter(
                f"repository name must not be more than {_PATH_MAX} characters, and the one given"
                f" has {len(path)}"
            )
        if at:
            check_digest(digest)
        return cls(domain, path, tag if colon else None, digest if at else None)

    @property
    def name(self) -> str:
        """Domain and path, without tag and digest: ``docker.io/library/busybox``."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The shortest text that ``parse`` reads as this name: ``busybox``, ``host:5000/app``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        short = self.path
        if short.startswith(_OFFICIAL) and "/" not in short[len(_OFFICIAL) :]:
            short = short[len(_OFFICIAL) :]
        # docker.io/localhost/app must not become localhost/app: that is another registry's.
        if is_image_id(short) or _split_domain(short) != (self.domain, self.path):
            return self.name
        return short

    @property
    def familiar(self) -> str:
        """The form for people: ``busybox:1``; a tag is shown only if there is one."""
        return self.familiar_name + self._suffix

    @property
    def canonical(self) -> str:
        """The form to store and compare: ``docker.io/library/busybox:1``."""
        return self.name + self._suffix

    @property
    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{tag}@{self.digest}" if self.digest is not None else tag

    @property
    def is_name_only(self) -> bool:
        """Whether there is neither tag nor digest."""
        return self.tag is None and self.digest is None

    def with_default_tag(self) -> Reference:
        """With ``latest`` as the tag, if there is neither tag nor digest."""
        return self.with_tag(DEFAULT_TAG) if self.is_name_only else self

    def with_tag(self, tag: str) -> Reference:
        """With another tag, and the same digest. Raises InvalidParameter for a malformed one."""
        if not _is_tag(tag):
            raise InvalidParameter(f"invalid tag format: {_quoted(tag)}")
        return Reference(self.domain, self.path, tag, self.digest)

    def with_digest(self, digest: str) -> Reference:
        """With another digest, and the same tag. Raises InvalidParameter for a malformed one."""
        return Reference(self.domain, self.path, self.tag, check_digest(digest))

    def without_tag(self) -> Reference:
        """Without the tag; a digest stays."""
        return Reference(self.domain, self.path, None, self.digest)

    def without_digest(self) -> Reference:
        """Without the digest; a tag stays."""
        return Reference(self.domain, self.path, self.tag, None)

    def name_only(self) -> Reference:
        """Without tag and digest."""
        return Reference(self.domain, self.path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reference):
            return NotImplemented
        return self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __str__(self) -> str:
        return self.familiar

    def __repr__(self) -> str:
        return f"Reference({self.canonical!r})"


def is_image_id(text: str) -> bool:
    """Whether ``text`` is a whole image id without its algorithm: 64 lower-case hex digits."""
    return len(text) == 64 and not text.strip(_HEX)


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest of a known algorithm: ``sha256:`` and 64 hex digits."""
    algorithm, _, hexadecimal = text.partition(":")
    return len(hexadecimal) == _DIGEST_LENGTHS.get(algorithm) and not hexadecimal.strip(_HEX)


def check_digest(text: str) -> str:
    """Gives ``text`` back if it is a digest; raises InvalidParameter saying what is wrong."""
    algorithm, colon, hexadecimal = text.partition(":")
    if not colon or not algorithm or not hexadecimal:
        raise InvalidParameter(f"invalid checksum digest format: {_quoted(text)}")
    length = _DIGEST_LENGTHS.get(algorithm)
    if length is None:
        raise InvalidParameter(f"unsupported digest algorithm: {_quoted(algorithm)}")
    if len(hexadecimal) != length:
        raise InvalidParameter(
            f"invalid checksum digest length: {algorithm} has {length} hexadecimal digits,"
            f" {_quoted(text)} has {len(hexadecimal)}"
        )
    if hexadecimal.strip(_HEX):
        raise InvalidParameter(f"invalid checksum digest format: {_quoted(text)}")
    return text


def _split_domain(text: str) -> tuple[str, str]:
    """Domain and the rest, with the defaults filled in; neither is checked."""
    first, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, _OFFICIAL + text
    if first == _LEGACY_DOMAIN:
        first = DEFAULT_DOMAIN
    elif first != "localhost" and not ("." in first or ":" in first) and first == first.lower():
        return DEFAULT_DOMAIN, text
    if first == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return first, rest


def _is_domain(text: str) -> bool:
    if text.startswith("["):
        address, bracket, after = text[1:].partition("]")
        if not bracket or not address or address.strip(_ANY_HEX + ":"):
            return False
        if not after:
            return True
        return after[0] == ":" and len(after) > 1 and not after[1:].strip(_DIGITS)
    host, colon, port = text.partition(":")
    if colon and (not port or port.strip(_DIGITS)):
        return False
    return all(
        part and part[0] != "-" and part[-1] != "-" and not part.strip(_ALNUM + "-")
        for part in host.split(".")
    )


def _is_path_component(text: str) -> bool:
    # Letters and digits in groups, parted by one of: a dot, one or two underscores, any dashes.
    return (
        bool(text)
        and text[0] in _LOWER
        and text[-1] in _LOWER
        and not text.strip(_LOWER + "._-")
        and not any(mixed in text for mixed in _MIXED_SEPARATORS)
    )


def _is_tag(text: str) -> bool:
    return 0 < len(text) <= _TAG_MAX and text[0] in _ALNUM + "_" and not text.strip(_ALNUM + "_.-")


def _looks_like_digest(text: str) -> bool:
    # The grammar admits more algorithms than are supported; check_digest tells them apart.
    algorithm, _, hexadecimal = text.partition(":")
    if len(hexadecimal) < _DIGEST_HEX_MIN or hexadecimal.strip(_ANY_HEX):
        return False
    for separator in "-_+":
        algorithm = algorithm.replace(separator, ".")
    return all(
        part and part[0] not in _DIGITS and not part.strip(_ALNUM) for part in algorithm.split(".")
    )


def _quoted(text: str) -> str:
    shown = text if len(text) <= 300 else text[:297] + "..."
    return '"' + shown.encode("unicode_escape").decode("ascii") + '"'
