"""What a build is asked for, besides its context."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiffin.build.cachespec import CacheSpec
from tiffin.errors import InvalidParameter, Unsupported
from tiffin.image.reference import Reference

ENTITLEMENTS = ("network.host", "security.insecure")

MOST_JOBS = 64

_REFUSED = {
    "outputs": "--output by the API: the image is stored; export it from there",
    "isolation": "--isolation",
    "session": "a BuildKit session: set DOCKER_BUILDKIT=0",
}
"""Parameters of the API that tiffin has no support for, and what to say of each."""

_NOTHING = ("", "0", "false", "False", "null", "[]", "{}", "default")

_LIMITS = {
    "memory": "Memory",
    "memswap": "MemorySwap",
    "cpushares": "CpuShares",
    "cpuperiod": "CpuPeriod",
    "cpuquota": "CpuQuota",
    "shmsize": "ShmSize",
}
_PLACES = {
    "cpusetcpus": "CpusetCpus",
    "cpusetmems": "CpusetMems",
    "cgroupparent": "CgroupParent",
}


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
    """``default``, ``none``, ``host``, ``container:NAME`` or a network's name, for every RUN."""
    quiet: bool = False
    remove: bool = True
    """Accepted: a step's container never outlives its step."""
    pull: bool = False
    """Whether base images are asked for at their registry though they are here."""
    squash: bool = False
    no_cache_filter: Sequence[str] = ()
    """Stages, by name, of which nothing is taken from the cache."""
    contexts: Mapping[str, str] = field(default_factory=dict)
    """Named contexts: a folder's path, or ``docker-image://`` and an image."""
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    ssh: Mapping[str, str] = field(default_factory=dict)
    """The host's paths of agents' sockets, by id."""
    host: Mapping[str, Any] = field(default_factory=dict)
    """What RUN gets of Docker's ``HostConfig``: limits, hosts, ulimits."""
    allow: Sequence[str] = ()
    """``network.host``, ``security.insecure``."""
    jobs: int = 0
    """How many stages work at once; 0: as many as the machine has processors, at least 2."""
    debug: str = ""
    """``plain`` or ``tty`` if the container of a command that fails stays, its program a shell
    without or with a terminal."""
    why: bool = False
    """Whether more is said of why steps did not come from the cache."""
    events: bool = False
    """Whether events are sent along with the messages (:mod:`tiffin.build.progress`)."""
    as_docker: bool = False
    """As Docker's first builder, for its clients: what a RUN prints on stderr is red, and where
    ``cache_from`` has names of images, steps come from the cache only if one of these has them."""
    cache_from: Sequence[str] = ()
    """Caches to take steps from, as ``--cache-from`` has them."""
    cache_to: Sequence[str] = ()
    """Caches to write, as ``--cache-to`` has them."""
    remote: str = ""
    """The URL of the context: an archive, a lone Dockerfile, or a git repository."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """As ``--annotation`` has them, by their kind and name: ``manifest:name``."""
    credentials: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """For registries, by their hosts; the engine knows what they are."""

    def __post_init__(self) -> None:
        self.network_mode = self.network_mode or "default"
        for name in ("no_cache_filter", "allow", "cache_from", "cache_to"):
            setattr(self, name, tuple(getattr(self, name)))
        for tag in self.tags:
            Reference.parse(tag)
        self.jobs = min(self.jobs or max(2, os.cpu_count() or 2), MOST_JOBS)
        if self.jobs < 0:
            raise InvalidParameter(f"--jobs must be a positive number, not {self.jobs}")
        if self.debug not in ("", "plain", "tty"):
            raise InvalidParameter(f"debug must be plain or tty, not {self.debug!r}")
        self.contexts = {name.lower(): where for name, where in self.contexts.items()}
        for text in self.cache_from:
            CacheSpec.source(text)
        for text in self.cache_to:
            CacheSpec.target(text)
        for entitlement in self.allow:
            if entitlement not in ENTITLEMENTS:
                raise InvalidParameter(
                    f"invalid entitlement {entitlement!r}: one of {', '.join(ENTITLEMENTS)}"
                )

    @classmethod
    def from_query(cls, query: Mapping[str, Sequence[str]]) -> BuildOptions:
        """The options of ``POST /build?…``; ``query`` has all values of each parameter.

        Raises Unsupported, naming it, for a parameter that would change the result and that
        tiffin does not know how to honour; InvalidParameter for a malformed one.
        """

        def first(name: str) -> str:
            values = query.get(name) or ("",)
            return values[0]

        for name, what in _REFUSED.items():
            if first(name) not in _NOTHING:
                raise Unsupported(f"{what} is not supported by tiffin's builder yet ({name})")
        if first("version") == "2":
            raise Unsupported(
                "BuildKit's protocol is not supported by tiffin's builder yet: "
                "set DOCKER_BUILDKIT=0"
            )
        return cls(
            tags=[tag for tag in query.get("t", ()) if tag],
            dockerfile=first("dockerfile") or "Dockerfile",
            build_args=_strings(first("buildargs"), "buildargs", optional=True),
            labels={
                name: value or ""
                for name, value in _strings(first("labels"), "labels", optional=False).items()
            },
            no_cache=_true(first("nocache")),
            target=first("target"),
            platform=first("platform"),
            network_mode=first("networkmode") or "default",
            quiet=_true(first("q")),
            remove=_true(first("rm") or "1"),
            pull=_true(first("pull")),
            squash=_true(first("squash")),
            no_cache_filter=_list(first("nocachefilter"), "nocachefilter"),
            contexts=_plain(_strings(first("contexts"), "contexts", optional=False)),
            ssh=_plain(_strings(first("ssh"), "ssh", optional=False)),
            host=_host(query, first),
            allow=_list(first("allow"), "allow"),
            jobs=_number(first("jobs"), "jobs"),
            debug=first("debug"),
            why=_true(first("why")),
            events=_true(first("events")),
            as_docker=first("as-docker") != "0",
            cache_from=_list(first("cachefrom"), "cachefrom"),
            cache_to=_list(first("cacheto"), "cacheto"),
            remote=first("remote"),
            annotations=_plain(_strings(first("annotations"), "annotations", optional=False)),
        )


def _host(query: Mapping[str, Sequence[str]], first: Callable[[str], str]) -> dict[str, Any]:
    host: dict[str, Any] = {}
    for name, key in _LIMITS.items():
        if number := _number(first(name), name):
            host[key] = number
    for name, key in _PLACES.items():
        if first(name):
            host[key] = first(name)
    if hosts := [each for text in query.get("extrahosts", ()) for each in text.split(",") if each]:
        host["ExtraHosts"] = hosts
    if first("securityopt") not in _NOTHING:
        host["SecurityOpt"] = _list(first("securityopt"), "securityopt")
    if first("ulimits") not in _NOTHING:
        host["Ulimits"] = _json(first("ulimits"), "ulimits", list)
    return host


def _number(text: str, name: str) -> int:
    try:
        return int(text or "0")
    except ValueError:
        raise InvalidParameter(f"{name} must be a number, not {text!r}") from None


def _json(text: str, name: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise InvalidParameter(f"{name} must be JSON: a {kind.__name__}")
    return value


def _list(text: str, name: str) -> list[str]:
    if text in _NOTHING:
        return []
    members = _json(text, name, list)
    if not all(isinstance(each, str) for each in members):
        raise InvalidParameter(f"{name} must be a JSON list of strings")
    return list(members)


def _plain(members: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in members.items()}


def _true(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "no", "false", "none")


def _strings(text: str, name: str, *, optional: bool) -> dict[str, str | None]:
    if not text:
        return {}
    try:
        members: Any = json.loads(text)
    except (ValueError, RecursionError):
        members = None
    if members is None and text == "null":
        return {}
    if not isinstance(members, dict) or not all(
        isinstance(value, str) or (optional and value is None) for value in members.values()
    ):
        raise InvalidParameter(f"{name} must be a JSON object of strings")
    return members
