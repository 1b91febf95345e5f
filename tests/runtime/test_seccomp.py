"""Seccomp profiles: how they are read, and what the filters that come of them let through."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bpf_machine import run
from tiffin.errors import InvalidParameter, Unsupported
from tiffin.linux import capabilities
from tiffin.runtime import bpf, seccomp
from tiffin.runtime.seccomp_default import default_profile

X86_64, I386, ARM64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
ALLOW, EPERM, ENOSYS = bpf.ALLOW, bpf.ERRNO | errno.EPERM, bpf.ERRNO | errno.ENOSYS


def compiled(
    profile: dict[str, Any], held: tuple[str, ...] = capabilities.DEFAULT, machine: str = "x86_64"
) -> bytes:
    resolved = seccomp.resolve(profile, held, machine, "6.1.0")
    assert resolved is not None
    return seccomp.compile_filter(resolved, machine)


def default(*more: str, machine: str = "x86_64") -> bytes:
    return compiled(default_profile(), (*capabilities.DEFAULT, *more), machine)


def outcome(program: bytes, name: str, *arguments: int, machine: str = "x86_64") -> int:
    offset = bpf.X32_BIT if machine == "x32" else 0
    architecture = {"x86_64": X86_64, "x32": X86_64, "x86": I386, "aarch64": ARM64, "arm": ARM}
    number = seccomp.numbers(machine)[name] + offset
    return run(program, architecture[machine], number, arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (), ALLOW),
        ("execve", (), ALLOW),
        ("mount", (), EPERM),
        ("bpf", (), EPERM),
        ("add_key", (), EPERM),
        ("keyctl", (), EPERM),
        ("kexec_load", (), EPERM),
        ("open_by_handle_at", (), EPERM),
        ("io_uring_setup", (), EPERM),
        ("clone3", (), ENOSYS),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x11 | 0x10000000,), EPERM),
        ("clone", (0x11 | 0x20000000,), EPERM),
        ("unshare", (0x10000000,), EPERM),
        ("socket", (2,), ALLOW),
        ("socket", (38,), EPERM),
        ("socket", (40,), EPERM),
        ("socket", (1 << 32 | 2,), EPERM),
        ("socket", (45,), ALLOW),
        ("socket", (46,), EPERM),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0x0040000,), EPERM),
    ],
)
def test_the_default_policy(name: str, arguments: tuple[int, ...], expected: int) -> None:
    assert outcome(default(), name, *arguments) == expected


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "clone3"),
        ("SYS_ADMIN", "unshare"),
        ("BPF", "bpf"),
        ("SYS_MODULE", "init_module"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
        ("SYS_TIME", "clock_settime"),
        ("SYSLOG", "syslog"),
    ],
)
def test_a_capability_brings_its_system_calls(capability: str, name: str) -> None:
    assert outcome(default(), name) != ALLOW
    assert outcome(default(capability), name) == ALLOW


def test_other_kinds_of_calls_of_the_same_machine_are_filtered_too() -> None:
    program = default()
    for machine in ("x86", "x32"):
        assert outcome(program, "read", machine=machine) == ALLOW
        assert outcome(program, "mount", machine=machine) == EPERM
        assert outcome(program, "kexec_load", machine=machine) == EPERM
    assert outcome(program, "arch_prctl") == ALLOW
    arm = default(machine="aarch64")
    assert outcome(arm, "read", machine="aarch64") == ALLOW
    assert outcome(arm, "cacheflush", machine="arm") == ALLOW
    assert outcome(arm, "mount", machine="arm") == EPERM


def test_an_unknown_architecture_dies() -> None:
    assert run(default(), ARM64, 0) == bpf.KILL_PROCESS
    plain = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": ""}]}
    plain["syscalls"] = []
    assert run(compiled(plain), I386, 4) == bpf.KILL_PROCESS
    assert run(compiled(plain), X86_64, bpf.X32_BIT) == bpf.KILL_PROCESS


def test_a_call_that_is_newer_than_the_profile_does_not_exist() -> None:
    assert run(default(), X86_64, 5000) == ENOSYS
    assert run(default(), X86_64, bpf.X32_BIT + 5000) == ENOSYS
    killing = {**default_profile(), "defaultAction": "SCMP_ACT_KILL_PROCESS"}
    assert run(compiled(killing), X86_64, 5000) == bpf.KILL_PROCESS


def rule(action: str, *arguments: tuple[int, str, int, int], **more: Any) -> dict[str, Any]:
    return {
        "names": ["getpid", "no_such_call"],
        "action": f"SCMP_ACT_{action}",
        "args": [
            {"index": index, "op": f"SCMP_CMP_{operation}", "value": value, "valueTwo": second}
            for index, operation, value, second in arguments
        ],
        **more,
    }


def profile(*rules: dict[str, Any], action: str = "KILL_PROCESS") -> dict[str, Any]:
    return {"defaultAction": f"SCMP_ACT_{action}", "syscalls": list(rules)}


WORD = st.one_of(
    st.integers(0, 5), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 32, (1 << 32) - 1])
)
COMPARE = {
    "EQ": lambda a, b, c: a == b,
    "NE": lambda a, b, c: a != b,
    "LT": lambda a, b, c: a < b,
    "LE": lambda a, b, c: a <= b,
    "GT": lambda a, b, c: a > b,
    "GE": lambda a, b, c: a >= b,
    "MASKED_EQ": lambda a, b, c: a & b == c,
}
CONDITION = st.tuples(st.sampled_from(sorted(COMPARE)), WORD, WORD)


@settings(max_examples=200, deadline=None)
@given(
    rules=st.lists(st.lists(CONDITION, min_size=1, max_size=3), min_size=1, max_size=4),
    arguments=st.lists(WORD, min_size=3, max_size=3),
)
def test_conditions_hold_as_written(
    rules: list[list[tuple[str, int, int]]], arguments: list[int]
) -> None:
    made = [
        rule(
            "ERRNO",
            *[(index, *condition) for index, condition in enumerate(conditions)],
            errnoRet=number,
        )
        for number, conditions in enumerate(rules)
    ]
    expected = bpf.KILL_PROCESS
    for number, conditions in reversed(list(enumerate(rules))):
        if all(
            COMPARE[operation](argument, value, second)
            for (operation, value, second), argument in zip(conditions, arguments, strict=False)
        ):
            expected = bpf.ERRNO | number
    assert outcome(compiled(profile(*made)), "getpid", *arguments) == expected


def test_a_rule_that_asks_for_one_argument_twice_holds_if_either_does() -> None:
    program = compiled(profile(rule("ALLOW", (0, "EQ", 1, 0), (0, "EQ", 2, 0))))
    assert [outcome(program, "getpid", value) for value in (1, 2, 3)] == [
        ALLOW,
        ALLOW,
        bpf.KILL_PROCESS,
    ]


def test_conditions_come_before_a_rule_without_any() -> None:
    program = compiled(profile(rule("ALLOW"), rule("ERRNO", (0, "GT", 9, 0), errnoRet=7)))
    assert outcome(program, "getpid", 1) == ALLOW
    assert outcome(program, "getpid", 10) == bpf.ERRNO | 7


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        json.dumps({"architectures": ["SCMP_ARCH_X86"], "archMap": [{}]}),
    ],
)
def test_what_is_no_profile_is_refused(broken: str) -> None:
    with pytest.raises(InvalidParameter):
        seccomp.parse(broken)


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (profile(action="NONSENSE"), InvalidParameter),
        (profile(rule("NOTIFY")), Unsupported),
        (profile(rule("ALLOW", (9, "EQ", 0, 0))), InvalidParameter),
        (profile(rule("ALLOW", (0, "SO", 0, 0))), InvalidParameter),
        (profile(rule("ERRNO", errnoRet=70000)), InvalidParameter),
        ({**profile(), "listenerPath": "/x"}, Unsupported),
    ],
)
def test_what_can_not_be_done_is_refused(broken: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        compiled(broken)


def test_conditions_on_the_kernel_and_the_machine() -> None:
    conditional = profile(
        {**rule("ALLOW"), "includes": {"minKernel": "4.8"}},
        {**rule("TRAP"), "excludes": {"arches": ["amd64"]}},
    )
    old = seccomp.resolve(conditional, (), "x86_64", "4.4.0-1")
    new = seccomp.resolve(conditional, (), "aarch64", "6.18.4-x")
    assert old is not None and old["syscalls"] == []
    assert new is not None
    assert [made["action"] for made in new["syscalls"]] == ["SCMP_ACT_ALLOW", "SCMP_ACT_TRAP"]


def test_an_empty_profile_asks_for_no_filter() -> None:
    assert seccomp.resolve({}, ()) is None


def test_a_filter_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = seccomp.Filters(tmp_path / "seccomp").get(None, capabilities.DEFAULT)
    assert made is not None and len(made[0]) % 8 == 0
    assert len(os.listdir(tmp_path / "seccomp")) == 1

    def never(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(seccomp, "compile_filter", never)
    again = seccomp.Filters(tmp_path / "seccomp")
    assert again.get(None, capabilities.DEFAULT) == made
    with pytest.raises(AssertionError):
        again.get(None, ())


def by_library(resolved: dict[str, Any]) -> bytes:
    """The filter that libseccomp makes, for a comparison."""
    library = ctypes.CDLL(ctypes.util.find_library("seccomp"))
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(0x00050001))
    for token in (I386, 0x4000003E):
        assert library.seccomp_arch_add(context, token) in (0, -errno.EEXIST)
    operations = {"LT": 2, "EQ": 4, "MASKED_EQ": 7}

    class Comparison(ctypes.Structure):
        _fields_ = (
            ("index", ctypes.c_uint),
            ("operation", ctypes.c_int),
            ("one", ctypes.c_uint64),
            ("two", ctypes.c_uint64),
        )

    for item in resolved["syscalls"]:
        action = ALLOW if item["action"] == "SCMP_ACT_ALLOW" else bpf.ERRNO | item["errnoRet"]
        comparisons = [
            Comparison(
                row["index"],
                operations[row["op"].removeprefix("SCMP_CMP_")],
                row["value"],
                row.get("valueTwo", 0),
            )
            for row in item.get("args", [])
        ]
        for name in item["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1:
                continue
            array = (Comparison * len(comparisons))(*comparisons)
            library.seccomp_rule_add_array(
                context, ctypes.c_uint32(action), number, len(comparisons), array
            )
    with tempfile.TemporaryFile() as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        file.seek(0)
        program = file.read()
    library.seccomp_release(context)
    return program


@pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="needs libseccomp")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows one machine's tables")
@pytest.mark.parametrize("more", [(), ("SYS_ADMIN", "SYS_PTRACE")])
def test_the_filter_decides_as_the_one_that_libseccomp_makes(more: tuple[str, ...]) -> None:
    held = (*capabilities.DEFAULT, *more)
    resolved = seccomp.resolve(default_profile(), held, "x86_64", "6.1.0")
    assert resolved is not None
    library = ctypes.CDLL(ctypes.util.find_library("seccomp"))
    for item in resolved["syscalls"]:
        # An older library doesn't know the names of newer calls.
        item["names"] = [
            name
            for name in item["names"]
            if library.seccomp_syscall_resolve_name(name.encode()) != -1
        ]
    theirs, ours = by_library(resolved), seccomp.compile_filter(resolved, "x86_64")
    newest = 440
    for architecture, offset in ((X86_64, 0), (I386, 0), (X86_64, bpf.X32_BIT)):
        for number in range(newest):
            for argument in (0, 2, 12, 38, 40, 0x20000, 0x10000011, 0xFFFFFFFF):
                call = (architecture, number + offset, [argument])
                assert run(ours, *call) == run(theirs, *call), call
