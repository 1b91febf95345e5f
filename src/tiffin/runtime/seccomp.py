"""Seccomp: from a profile to the filter that a container's processes run under.

A *profile* is Docker's JSON form (``--security-opt seccomp=FILE``), or the OCI runtime
specification's, which is the same without conditions. It is *resolved* for a machine, a kernel and
a set of capabilities, into the OCI form, and *compiled* (:mod:`tiffin.runtime.bpf`). Nothing but
Python is needed for that.

A compiled filter is kept (:class:`Filters`): in memory, and below the engine's root, under the
digests of what it was made of. The keeper gets the bytes and loads them.

How rules are read: names that an architecture does not have are passed over. Of several rules for
one call those with conditions come first, in their order, then the first without; conditions of one
rule must all hold, but if it asks for one argument twice, any of them will do (as in runc). Calls
with numbers above all that the profile names fail with ENOSYS rather than EPERM, so that programs
that try what is newer than the profile fall back on what is older.

Source: OCI runtime specification 1.2, ``config-linux.md``, Seccomp; seccomp(2). Numbers of system
calls: ``syscalls.csv``, of Linux 7.1.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tiffin.errors import InvalidParameter, Unsupported
from tiffin.linux import capabilities as caps
from tiffin.runtime import bpf

JSON = dict[str, Any]
UNCONFINED = "unconfined"
BUILTIN = "builtin"

_REVISION = 1
"""Of the compiler: what an older one made is not taken from the disk."""
_NUMBERS = Path(__file__).with_name("syscalls.csv")

# Machine (uname) → Docker's name in conditions, the specification's, AUDIT_ARCH_* (audit.h).
_MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64", bpf.AUDIT_X86_64),
    "x86": ("x86", "SCMP_ARCH_X86", 0x40000003),
    "x32": ("x32", "SCMP_ARCH_X32", bpf.AUDIT_X86_64),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64", 0xC00000B7),
    "arm": ("arm", "SCMP_ARCH_ARM", 0x40000028),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64", 0xC00000F3),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE", 0xC0000015),
    "loongarch64": ("loong64", "SCMP_ARCH_LOONGARCH64", 0xC0000102),
}
_BY_SPECIFICATION = {row[1]: name for name, row in _MACHINES.items()}
_ACTIONS = {
    "SCMP_ACT_KILL": bpf.KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": bpf.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": bpf.KILL_PROCESS,
    "SCMP_ACT_TRAP": bpf.TRAP,
    "SCMP_ACT_ERRNO": bpf.ERRNO,
    "SCMP_ACT_TRACE": bpf.TRACE,
    "SCMP_ACT_LOG": bpf.LOG,
    "SCMP_ACT_ALLOW": bpf.ALLOW,
}
_OPERATIONS = ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_OWN_NUMBERS = 0x10000
"""From here on a 32 bit ARM has calls of its own, which say nothing about how new a call is."""
_EPERM = 1
_HIGHEST_ERRNO = 4095


def available() -> bool:
    """Whether the kernel can filter system calls."""
    return os.path.exists("/proc/sys/kernel/seccomp/actions_avail")


def features() -> JSON:
    """What profiles may ask for, as the specification's ``features.md`` lists it."""
    return {
        "actions": list(_ACTIONS),
        "operators": [f"SCMP_CMP_{name}" for name in _OPERATIONS],
        "archs": [row[1] for row in _MACHINES.values()],
        "knownFlags": list(_FLAGS),
        "supportedFlags": list(_FLAGS),
    }


def parse(text: str | bytes) -> JSON:
    """The profile of a file's text. Raises InvalidParameter if it is none."""
    try:
        profile = json.loads(text)
    except ValueError as error:
        raise InvalidParameter(f"Decoding seccomp profile failed: {error}") from None
    if not isinstance(profile, dict):
        raise InvalidParameter("Decoding seccomp profile failed: it is not a JSON object")
    if profile.get("architectures") and profile.get("archMap"):
        raise InvalidParameter(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either "
            "'architectures' or 'archMap'"
        )
    return profile


def resolve(
    profile: JSON,
    capabilities: Collection[str],
    machine: str | None = None,
    kernel: str | None = None,
) -> JSON | None:
    """The OCI form of a profile for a bounding set (names without ``CAP_``); None: no filter.

    ``machine`` and ``kernel`` are uname(2)'s. Raises InvalidParameter for what makes no sense.
    """
    system = os.uname()
    machine, kernel = machine or system.machine, kernel or system.release
    if not profile.get("defaultAction") and not profile.get("syscalls"):
        return None
    names, docker = _MACHINES.get(machine), ""
    architectures = list(profile.get("architectures") or [])
    if names is not None:
        docker = names[0]
        for row in profile.get("archMap") or []:
            if row.get("architecture") == names[1]:
                architectures = [names[1], *(row.get("subArchitectures") or [])]
    held = {f"CAP_{caps.canonical(name) or name}" for name in capabilities}
    rules = []
    for rule in profile.get("syscalls") or []:
        if _applies(rule, docker, held, kernel):
            rules.append(_rule(rule))
    result: JSON = {"defaultAction": profile.get("defaultAction"), "syscalls": rules}
    for key in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"):
        if profile.get(key) is not None:
            result[key] = profile[key]
    if architectures:
        result["architectures"] = architectures
    return result


def _applies(rule: JSON, machine: str, held: set[str], kernel: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if includes.get("arches") and machine not in includes["arches"]:
        return False
    if not held.issuperset(includes.get("caps") or []):
        return False
    if includes.get("minKernel") and _version(kernel) < _version(includes["minKernel"]):
        return False
    if machine in (excludes.get("arches") or []):
        return False
    if held.intersection(excludes.get("caps") or []):
        return False
    return not (excludes.get("minKernel") and _version(kernel) >= _version(excludes["minKernel"]))


def _version(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise InvalidParameter(f"invalid kernel version in the seccomp profile: '{text}'")
    return int(match[1]), int(match[2])


def _rule(rule: JSON) -> JSON:
    names = rule.get("names") or []
    if rule.get("name"):
        if names:
            raise InvalidParameter(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' "
                "or 'names'"
            )
        names = [rule["name"]]
    result: JSON = {"names": list(names), "action": rule.get("action")}
    if rule.get("errnoRet") is not None:
        result["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        result["args"] = [
            {key: item[key] for key in ("index", "value", "valueTwo", "op") if key in item}
            for item in rule["args"]
        ]
    return result


def numbers(machine: str) -> dict[str, int]:
    """The numbers of a machine's system calls by name."""
    lines = _NUMBERS.read_text().splitlines()
    column = lines[0].split(",").index(machine)
    result = {}
    for line in lines[1:]:
        fields = line.split(",")
        if fields[column]:
            result[fields[0]] = int(fields[column])
    return result


def compile_filter(resolved: JSON, machine: str | None = None) -> bytes:
    """The filter of a resolved profile: what seccomp(2) takes, an array of ``sock_filter``.

    Raises InvalidParameter for what makes no sense and Unsupported for what can't be done.
    """
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise Unsupported(f"seccomp filters can't be made for this machine ({machine})")
    if resolved.get("listenerPath"):
        raise Unsupported("a seccomp profile with a listenerPath can't be used")
    default = _action(resolved.get("defaultAction"), resolved.get("defaultErrnoRet"))
    wanted = [machine]
    for name in resolved.get("architectures") or []:
        other = _BY_SPECIFICATION.get(name)
        if other is not None and other not in wanted:
            wanted.append(other)
    tables = []
    x32 = None
    for name in wanted:
        offset = bpf.X32_BIT if name == "x32" else 0
        table = _table(resolved, name, offset, default)
        if name == "x32":
            x32 = table
        else:
            tables.append(table)
    try:
        return bpf.assemble(tables, x32, default)
    except ValueError as error:
        raise InvalidParameter(f"the seccomp profile is too large: {error}") from None


def _table(resolved: JSON, machine: str, offset: int, default: int) -> bpf.Table:
    known = numbers(machine)
    calls: dict[int, list[bpf.Case]] = {}
    final: dict[int, bpf.Case] = {}
    newest = -1
    for rule in resolved.get("syscalls") or []:
        action = _action(rule["action"], rule.get("errnoRet"))
        choices = _conditions(rule.get("args") or [])
        for name in rule["names"]:
            number = known.get(name)
            if number is None:
                continue
            if number < _OWN_NUMBERS:
                newest = max(newest, number)
            number += offset
            for conditions in choices:
                case = bpf.Case(action, conditions)
                if conditions:
                    calls.setdefault(number, []).append(case)
                else:
                    final.setdefault(number, case)
    for number, case in final.items():
        cases = [other for other in calls.get(number, ()) if other.action != case.action]
        calls[number] = [*cases, case]
    unknown = newest + 1 if default == bpf.ERRNO | _EPERM else None
    return bpf.Table(_MACHINES[machine][2], calls, unknown)


def _conditions(arguments: list[JSON]) -> list[tuple[bpf.Condition, ...]]:
    """The alternatives that a rule's arguments mean."""
    conditions = []
    for item in arguments:
        operation = str(item.get("op") or "").removeprefix("SCMP_CMP_")
        index = item.get("index")
        if operation not in _OPERATIONS or not isinstance(index, int) or not 0 <= index <= 5:
            raise InvalidParameter(f"invalid argument in the seccomp profile: {item}")
        conditions.append(
            bpf.Condition(
                index,
                operation,
                int(item.get("value") or 0) & (1 << 64) - 1,
                int(item.get("valueTwo") or 0) & (1 << 64) - 1,
            )
        )
    if len({condition.index for condition in conditions}) < len(conditions):
        return [(condition,) for condition in conditions]
    return [tuple(conditions)]


def _action(name: str | None, number: int | None) -> int:
    if name not in _ACTIONS:
        if name == "SCMP_ACT_NOTIFY":
            raise Unsupported("a seccomp profile with the action SCMP_ACT_NOTIFY can't be used")
        raise InvalidParameter(f"invalid action in the seccomp profile: '{name}'")
    base = _ACTIONS[name]
    if base in (bpf.ERRNO, bpf.TRACE):
        code = _EPERM if number is None else number
        if not 0 <= code <= _HIGHEST_ERRNO:
            raise InvalidParameter(f"invalid errno in the seccomp profile: {code}")
        return base | code
    return base


def flags(resolved: Mapping[str, Any]) -> int:
    """The flags for seccomp(2). Raises Unsupported for one that isn't known."""
    result = 0
    for name in resolved.get("flags") or []:
        if name not in _FLAGS:
            raise Unsupported(f"the seccomp flag {name} can't be used")
        result |= _FLAGS[name]
    return result


class Filters:
    """Compiled filters, kept in a folder and in memory. Usable from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, bytes] = {}
        self._default: str | None = None

    def resolved(self, profile: str | None, capabilities: Collection[str]) -> JSON | None:
        """The OCI form of a profile's text (None: the default) for a set of capabilities."""
        return resolve(self._parsed(profile), capabilities)

    @staticmethod
    def _parsed(profile: str | None) -> JSON:
        if profile is not None:
            return parse(profile)
        from tiffin.runtime.seccomp_default import default_profile

        return default_profile()

    def get(self, profile: str | None, capabilities: Collection[str]) -> tuple[bytes, int] | None:
        """The filter and its flags; None where the profile asks for no filter.

        Raises InvalidParameter or Unsupported.
        """
        key = self._key(profile, capabilities)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._read(key) or self._make(key, profile, capabilities)
            self._kept[key] = kept
        return (kept[4:], int.from_bytes(kept[:4], "little")) if len(kept) > 4 else None

    def _key(self, profile: str | None, capabilities: Collection[str]) -> str:
        if profile is not None:
            digest = hashlib.sha256(profile.encode()).hexdigest()[:32]
        else:
            if self._default is None:
                source = Path(__file__).with_name("seccomp_default.py").read_bytes()
                self._default = hashlib.sha256(source).hexdigest()[:32]
            digest = self._default
        system = os.uname()
        kernel = ".".join(str(part) for part in _version(system.release))
        held = caps.mask(list(capabilities))
        return f"{digest}-{system.machine}-{kernel}-{held:x}-{_REVISION}.bpf"

    def _read(self, key: str) -> bytes | None:
        try:
            content = (self._folder / key).read_bytes()
        except FileNotFoundError:
            return None
        return content if len(content) >= 4 and (len(content) - 4) % 8 == 0 else None

    def _make(self, key: str, profile: str | None, capabilities: Collection[str]) -> bytes:
        resolved = self.resolved(profile, capabilities)
        content = (0).to_bytes(4, "little")
        if resolved is not None:
            content = flags(resolved).to_bytes(4, "little") + compile_filter(resolved)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A name of this thread's own first, so that nobody ever reads half a filter.
        temporary = self._folder / f".{key}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            temporary.write_bytes(content)
            temporary.rename(self._folder / key)
        finally:
            temporary.unlink(missing_ok=True)
        return content
