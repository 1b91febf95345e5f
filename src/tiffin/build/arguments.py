"""Build arguments: which are declared, what their values are, and who may see them.

An ARG above the first FROM is *global*: it counts in FROM, and in a stage that declares it again
without a value. An ARG in a stage counts from there to the stage's end. A value given to the
build comes before a default. A variable of the image's environment hides an argument of its name.
Proxies need no declaration, and appear neither in the history nor in a step's key; the platform's
arguments are global ones that exist by themselves.

Source: the Dockerfile reference, "ARG".
"""

from __future__ import annotations

from collections.abc import Mapping

from tiffin.build.instructions import Arg
from tiffin.image.platforms import Platform

SOURCE_DATE_EPOCH = "SOURCE_DATE_EPOCH"

TARGET_STAGE = "TARGETSTAGE"
"""The name of the stage that is built; ``default`` for one without."""

SANDBOX_HOSTNAME = "BUILDKIT_SANDBOX_HOSTNAME"
CACHE_MOUNT_NAMESPACE = "BUILDKIT_CACHE_MOUNT_NS"

BUILT_IN = (
    SANDBOX_HOSTNAME,
    CACHE_MOUNT_NAMESPACE,
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_INLINE_CACHE",
    "BUILDKIT_MULTI_PLATFORM",
    "BUILDKIT_SYNTAX",
    TARGET_STAGE,
)
"""Arguments that ask something of the builder and need no declaration."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
PREDEFINED = frozenset([*_PROXIES, *(name.lower() for name in _PROXIES)])


def _platform_arguments() -> dict[str, str]:
    host = Platform.of_host()
    values: dict[str, str] = {}
    for side in ("TARGET", "BUILD"):
        values[f"{side}PLATFORM"] = str(host)
        values[f"{side}OS"] = host.os
        values[f"{side}ARCH"] = host.architecture
        values[f"{side}VARIANT"] = host.variant
    return values


class Arguments:
    """The arguments of a build, or of one stage of it."""

    def __init__(self, given: Mapping[str, str | None]) -> None:
        """``given`` is what ``--build-arg`` says."""
        self._given = {name: value for name, value in given.items() if value is not None}
        self._global = {
            name: self._given.get(name, value) for name, value in _platform_arguments().items()
        }
        self._stage: dict[str, str] = {}
        self._consumed = {SOURCE_DATE_EPOCH, *PREDEFINED, *BUILT_IN}

    @property
    def globals(self) -> dict[str, str]:
        """What FROM sees."""
        return self._global

    def declare_global(self, instruction: Arg) -> None:
        """An ARG above the first FROM, its variables replaced."""
        for name, default in instruction.arguments:
            self._consumed.add(name)
            value = self._given.get(name, default)
            if value is not None:
                self._global[name] = value

    def of_stage(self, name: str, below: Arguments | None = None) -> Arguments:
        """The arguments of a stage, which declares nothing yet but what the stage ``below``, that
        it starts from, has declared."""
        stage = Arguments({})
        stage._given = self._given
        stage._global = {**self._global, TARGET_STAGE: self._given.get(TARGET_STAGE, name)}
        stage._consumed = self._consumed
        stage._stage = dict(below._stage) if below is not None else {}
        return stage

    def declare(self, instruction: Arg) -> None:
        """An ARG in a stage, its variables replaced."""
        for name, default in instruction.arguments:
            self._consumed.add(name)
            value = self._given.get(name, default)
            if value is None:
                value = self._global.get(name)
            if value is not None:
                self._stage[name] = value
            else:
                self._stage.pop(name, None)

    def visible(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What an instruction's variables stand for, given the image's environment."""
        proxies = {name: value for name, value in self._given.items() if name in PREDEFINED}
        return {**proxies, **self._stage, **environment}

    def of_run(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What a RUN is given, and depends on."""
        return {
            name: self._stage[name]
            for name in sorted(self._stage)
            if name not in environment and name not in PREDEFINED
        }

    def proxies(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What a RUN is given without depending on it."""
        values = self.visible({})
        return {
            name: values[name]
            for name in sorted(PREDEFINED)
            if name in values and name not in environment
        }

    def unused(self) -> list[str]:
        """Given arguments that nothing has declared."""
        return sorted(set(self._given) - self._consumed - set(_platform_arguments()))
