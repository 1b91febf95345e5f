"""What a build is asked for, besides its context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiffin.errors import InvalidParameter, Unsupported
from tiffin.image.reference import Reference

NETWORK_MODES = ("default", "none", "host")

_REFUSED = {
    "remote": "a remote context: clone or download it, and build the folder",
    "pull": "--pull: pull the base image before the build",
    "squash": "--squash: copy what counts into a last stage with COPY --from",
    "cachefrom": "--cache-from",
    "extrahosts": "--add-host",
    "memory": "--memory",
    "memswap": "--memory-swap",
    "cpushares": "--cpu-shares",
    "cpusetcpus": "--cpuset-cpus",
    "cpusetmems": "--cpuset-mems",
    "cpuperiod": "--cpu-period",
    "cpuquota": "--cpu-quota",
    "shmsize": "--shm-size",
    "ulimits": "--ulimit",
    "cgroupparent": "--cgroup-parent",
    "securityopt": "--security-opt",
    "isolation": "--isolation",
    "outputs": "--output",
    "session": "a BuildKit session: set DOCKER_BUILDKIT=0",
}
"""Parameters of the API that tiffin has no support for, and what to say of each."""


@dataclass(slots=True)
class BuildOptions:
    """As ``docker build`` has them."""

    tags: Sequence[str] = ()
    dockerfile: str = "Dockerfile"
    """The Dockerfile's path in the context; a caller that opens the context uses it."""
    build_args: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    target: str = ""
    platform: str = ""
    network_mode: str = "default"
    """``default``, ``none`` or ``host``, for every RUN."""
    quiet: bool = False
    remove: bool = True
    """Accepted: a step's container never outlives its step."""

    def __post_init__(self) -> None:
        self.network_mode = self.network_mode or "default"
        if self.network_mode not in NETWORK_MODES:
            raise Unsupported(
                f"network mode {self.network_mode!r} is not supported for builds yet: "
                f"one of {', '.join(NETWORK_MODES)}"
            )
        for tag in self.tags:
            Reference.parse(tag)

    @classmethod
    def from_query(cls, query: Mapping[str, Sequence[str]]) -> BuildOptions:
        """The options of ``POST /build?…``; ``query`` has all values of each parameter.

        Raises Unsupported, naming it, for a parameter that would change the result and that
        tiffin does not know how to honour; InvalidParameter for a malformed one.
        """

        def last(name: str) -> str:
            values = query.get(name) or ("",)
            return values[-1]

        for name, what in _REFUSED.items():
            if last(name) not in ("", "0", "false", "False", "null", "[]", "{}", "default"):
                raise Unsupported(f"{what} is not supported by tiffin's builder yet ({name})")
        if last("version") == "2":
            raise Unsupported(
                "BuildKit's protocol is not supported by tiffin's builder yet: "
                "set DOCKER_BUILDKIT=0"
            )
        return cls(
            tags=[tag for tag in query.get("t", ()) if tag],
            dockerfile=last("dockerfile") or "Dockerfile",
            build_args=_strings(last("buildargs"), "buildargs", optional=True),
            labels={
                name: value or ""
                for name, value in _strings(last("labels"), "labels", optional=False).items()
            },
            no_cache=_true(last("nocache")),
            target=last("target"),
            platform=last("platform"),
            network_mode=last("networkmode") or "default",
            quiet=_true(last("q")),
            remove=_true(last("rm") or "1"),
        )


def _true(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "no", "false", "none")


def _strings(text: str, name: str, *, optional: bool) -> dict[str, str | None]:
    if not text:
        return {}
    try:
        members: Any = json.loads(text)
    except ValueError:
        members = None
    if members is None and text == "null":
        return {}
    if not isinstance(members, dict) or not all(
        isinstance(value, str) or (optional and value is None) for value in members.values()
    ):
        raise InvalidParameter(f"{name} must be a JSON object of strings")
    return members
