"""What ``--security-opt`` asks for, and what the host can do about it.

Options are Docker's: ``no-new-privileges``, ``seccomp=unconfined|builtin|JSON`` (a client sends the
profile itself, not its file), ``apparmor=PROFILE|unconfined``, ``label=…``, ``systempaths=…``. The
separator may be ``:``, as in older clients.

AppArmor and SELinux are the host's: where the kernel has them, containers get a profile and labels;
where it doesn't, what was asked for is passed over, and a warning says so.
"""

from __future__ import annotations

import functools
import glob
import os
from dataclasses import dataclass
from typing import Any

from tiffin.engine import apparmor, selinux
from tiffin.errors import InvalidParameter
from tiffin.runtime import seccomp
from tiffin.runtime.settings import MASKED_PATHS

JSON = dict[str, Any]

_TRUE = ("", "true", "1")
_FALSE = ("false", "0")


@dataclass(slots=True)
class Options:
    """The options of a container, taken apart."""

    no_new_privileges: bool = False
    seccomp: str | None = None
    """None: what the engine does by default; else ``unconfined``, ``builtin``, or a profile."""
    apparmor: str = ""
    labels: tuple[str, ...] = ()
    """SELinux: ``disable``, ``type:NAME``…"""


def parse(options: list[str] | None) -> Options:
    """Take the options apart. Raises InvalidParameter for one that isn't known."""
    result = Options()
    for text in options or []:
        ends = [text.find(sign) for sign in "=:" if sign in text]
        end = min(ends, default=len(text))
        name, value = text[:end], text[end + 1 :]
        if name == "no-new-privileges":
            if value not in (*_TRUE, *_FALSE):
                raise InvalidParameter(f'invalid --security-opt: "{text}"')
            result.no_new_privileges = value in _TRUE
        elif not ends:
            raise InvalidParameter(f'invalid --security-opt 1: "{text}"')
        elif name == "seccomp":
            result.seccomp = value
        elif name == "apparmor":
            result.apparmor = value
        elif name == "label":
            result.labels = (*result.labels, value)
        else:
            raise InvalidParameter(f'invalid --security-opt 2: "{text}"')
    return result


def check(host: JSON) -> None:
    """Refuse what can't be done, before anything is made. Raises InvalidParameter, Unsupported."""
    options = parse(host.get("SecurityOpt"))
    selinux.labels(options.labels, "")
    profile = options.seccomp
    if profile in (None, seccomp.UNCONFINED, seccomp.BUILTIN):
        return
    if not seccomp.available():
        raise InvalidParameter("seccomp is not enabled in your kernel, cannot run a custom profile")
    resolved = seccomp.resolve(seccomp.parse(profile or ""), ())
    if resolved is not None:
        seccomp.compile_filter(resolved)
        seccomp.flags(resolved)


def profile_of(host: JSON) -> tuple[bool, str | None]:
    """Whether a container is filtered, and its profile (None: the default)."""
    chosen = parse(host.get("SecurityOpt")).seccomp
    if chosen == seccomp.UNCONFINED or (host.get("Privileged") and chosen is None):
        return False, None
    if not seccomp.available():
        return False, None
    return True, None if chosen in (None, seccomp.BUILTIN) else chosen


def apparmor_profile(host: JSON) -> str | None:
    """The AppArmor profile for a container's processes; None for none. Raises Conflict."""
    name = parse(host.get("SecurityOpt")).apparmor
    if name == apparmor.UNCONFINED or (host.get("Privileged") and not name):
        return None
    if not apparmor.enabled():
        return None
    return name or apparmor.default()


def apparmor_name(host: JSON) -> str:
    """``AppArmorProfile`` of ``inspect``."""
    if not apparmor.enabled():
        return ""
    name = parse(host.get("SecurityOpt")).apparmor
    unconfined = host.get("Privileged") or apparmor.parser() is None
    return name or (apparmor.UNCONFINED if unconfined else apparmor.DEFAULT)


def labels(host: JSON, identity: str) -> tuple[str, str]:
    """The SELinux labels of a container's processes and of its files; empty for none."""
    options = parse(host.get("SecurityOpt")).labels
    shared = any(host.get(kind) == "host" for kind in ("PidMode", "IpcMode"))
    if not options and (host.get("Privileged") or shared):
        # As in Docker: what sees the host's processes is not kept from them by labels.
        return "", ""
    return selinux.labels(options, identity)


def warnings(host: JSON) -> list[str]:
    """What was asked for and can't be had here, for the answer of ``create``."""
    options = parse(host.get("SecurityOpt"))
    result = []
    if not seccomp.available() and options.seccomp != seccomp.UNCONFINED:
        result.append("Your kernel does not support seccomp. The container runs without a filter.")
    if options.apparmor not in ("", apparmor.UNCONFINED) and not apparmor.enabled():
        result.append(
            "AppArmor is not enabled on this host. "
            f"The profile '{options.apparmor}' is not applied."
        )
    if not options.apparmor and apparmor.enabled() and apparmor.parser() is None:
        result.append(
            "AppArmor's default profile can't be loaded: apparmor_parser is not installed. "
            "The container runs unconfined by it."
        )
    asked = [label for label in options.labels if label != "disable"]
    if asked and not selinux.enabled():
        result.append(
            f"SELinux labels are not enabled on this host. Discarded: {', '.join(asked)}."
        )
    return result


@functools.cache
def masked_paths() -> tuple[str, ...]:
    """The paths that are hidden unless asked otherwise; how hot the processors run tells
    neighbours what others do."""
    return (*MASKED_PATHS, *sorted(glob.glob("/sys/devices/system/cpu/cpu*/thermal_throttle")))


def described() -> list[str]:
    """``SecurityOptions`` of ``info``."""
    found = []
    if apparmor.enabled():
        found.append("name=apparmor")
    if selinux.enabled():
        found.append("name=selinux")
    if seccomp.available():
        found.append("name=seccomp,profile=builtin")
    if os.path.isdir("/sys/fs/cgroup"):
        found.append("name=cgroupns")
    return found
