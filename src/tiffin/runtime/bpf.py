"""A small compiler from rules about system calls to the classic BPF that seccomp(2) runs.

A filter looks at ``struct seccomp_data``: the call's number, the architecture, the address, six
64 bit arguments. The program first finds the architecture, then the number by halving, and at the
end, if need be, looks at arguments. A program is a list of (code, jump if true, jump if false,
value); jumps are forwards and relative, so that a piece of code can be put together from its end.

Source: seccomp(2); ``Documentation/networking/filter.rst`` and
``Documentation/userspace-api/seccomp_filter.rst`` of Linux 6.18. All architectures here are little
endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

Code = list[tuple[int, int, int, int]]

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP = 0x05
_EQUAL = 0x15
_GREATER = 0x25
_AT_LEAST = 0x35
_RETURN = 0x06

_NUMBER = 0
_ARCHITECTURE = 4
_ARGUMENTS = 16
_FARTHEST = 255
MOST_INSTRUCTIONS = 4096

KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
ERRNO = 0x00050000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000

X32_BIT = 0x40000000
AUDIT_X86_64 = 0xC000003E


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of an argument; ``operation`` is EQ, NE, LT, LE, GT, GE or MASKED_EQ (of
    MASKED_EQ, ``value`` is the mask, and ``second`` what must be left)."""

    index: int
    operation: str
    value: int
    second: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """What to return if all conditions hold."""

    action: int
    conditions: tuple[Condition, ...] = ()


def _compare(condition: Condition, skip: int) -> Code:
    """Go on behind this code if the condition holds, else ``skip`` instructions further."""
    low_word = 0xFFFFFFFF
    place = _ARGUMENTS + 8 * condition.index
    high, low = condition.value >> 32 & low_word, condition.value & low_word
    load_high, load_low = (_LOAD, 0, 0, place + 4), (_LOAD, 0, 0, place)
    kind = condition.operation
    if kind == "EQ":
        return [load_high, (_EQUAL, 0, 2 + skip, high), load_low, (_EQUAL, 0, skip, low)]
    if kind == "NE":
        return [load_high, (_EQUAL, 0, 2, high), load_low, (_EQUAL, skip, 0, low)]
    if kind == "MASKED_EQ":
        return [
            load_high,
            (_AND, 0, 0, high),
            (_EQUAL, 0, 3 + skip, condition.second >> 32 & low_word),
            load_low,
            (_AND, 0, 0, low),
            (_EQUAL, 0, skip, condition.second & low_word),
        ]
    test = {"GT": _GREATER, "LE": _GREATER, "GE": _AT_LEAST, "LT": _AT_LEAST}[kind]
    if kind in ("GT", "GE"):
        return [
            load_high,
            (_GREATER, 3, 0, high),
            (_EQUAL, 0, 2 + skip, high),
            load_low,
            (test, 0, skip, low),
        ]
    return [
        load_high,
        (_GREATER, 3 + skip, 0, high),
        (_EQUAL, 0, 2, high),
        load_low,
        (test, skip, 0, low),
    ]


def _one_of(index: int, values: list[int], action: int) -> Code:
    """Return the action if the argument is one of some 32 bit values, else go on behind."""
    place = _ARGUMENTS + 8 * index
    count = len(values)
    code: Code = [(_LOAD, 0, 0, place + 4), (_EQUAL, 0, count + 2, 0), (_LOAD, 0, 0, place)]
    for number, value in enumerate(values):
        left = count - number - 1
        code.append((_EQUAL, left, 0 if left else 1, value))
    return [*code, (_RETURN, 0, 0, action)]


def _cases(cases: Sequence[Case]) -> Code:
    """Try cases in order; the last one has no condition."""
    code: Code = []
    position = 0
    while position < len(cases):
        case = cases[position]
        values = []
        # Many values of one argument with the same outcome are one question.
        for other in cases[position : position + 100]:
            first = other.conditions[0] if len(other.conditions) == 1 else None
            if (
                first is None
                or other.action != case.action
                or (first.index, first.operation) != (case.conditions[0].index, "EQ")
                or first.value >> 32
            ):
                break
            values.append(first.value)
        if len(values) > 1:
            code += _one_of(case.conditions[0].index, values, case.action)
            position += len(values)
            continue
        body: Code = [(_RETURN, 0, 0, case.action)]
        for condition in reversed(case.conditions):
            body = _compare(condition, len(body)) + body
        code += body
        position += 1
    return code


def _search(ranges: list[tuple[int, Sequence[Case]]]) -> Code:
    """Find the range that the number, which is loaded, is in; ranges are (first number, cases)."""
    if len(ranges) == 1:
        return _cases(ranges[0][1])
    middle = len(ranges) // 2
    low, high = _search(ranges[:middle]), _search(ranges[middle:])
    if len(low) <= _FARTHEST:
        return [(_AT_LEAST, len(low), 0, ranges[middle][0]), *low, *high]
    return [(_AT_LEAST, 0, 1, ranges[middle][0]), (_JUMP, 0, 0, len(low)), *low, *high]


@dataclass(frozen=True, slots=True)
class Table:
    """The rules of one architecture: its AUDIT_ARCH number, the cases by number of the call, and
    the number from which on calls are unknown, with what is returned for those."""

    architecture: int
    calls: dict[int, list[Case]]
    unknown_from: int | None = None
    unknown: int = ERRNO | 38


def _ranges(
    calls: dict[int, list[Case]], default: int, start: int, stop: int
) -> list[tuple[int, Sequence[Case]]]:
    """Numbers from ``start`` up to ``stop`` with equal cases put together."""
    otherwise = (Case(default),)
    rows: list[tuple[int, Sequence[Case]]] = []

    def add(number: int, cases: Sequence[Case]) -> None:
        if not rows or list(rows[-1][1]) != list(cases):
            rows.append((number, cases))

    expected = start
    for number in sorted(calls):
        if not start <= number < stop:
            continue
        if number > expected:
            add(expected, otherwise)
        cases = calls[number]
        if cases[-1].conditions:
            cases = [*cases, Case(default)]
        add(number, cases)
        expected = number + 1
    add(expected, otherwise)
    return rows


def _table(table: Table, default: int, start: int, stop: int) -> Code:
    rows = _ranges(table.calls, default, start, stop)
    if table.unknown_from is not None:
        # What lies behind the last number that a rule speaks of is one range with one case, or
        # numbers of an architecture's own far above.
        last = table.unknown_from + start
        for position, (first, cases) in enumerate(rows):
            if first >= last and list(cases) == [Case(default)]:
                rows[position] = (first, (Case(table.unknown),))
                break
    return _search(rows)


def assemble(tables: Sequence[Table], x32: Table | None, default: int) -> bytes:
    """The program: an array of ``struct sock_filter``.

    Of the calls of an architecture that is not in ``tables``, the process dies. ``x32`` holds the
    numbers of x86-64's second kind of calls, X32_BIT included, whose architecture is the same.
    Raises ValueError for a program that is too large for the kernel.
    """
    code: Code = [(_RETURN, 0, 0, KILL_PROCESS)]
    for table in reversed(tables):
        body = _table(table, default, 0, X32_BIT)
        if table.architecture == AUDIT_X86_64:
            other: Code = [(_RETURN, 0, 0, KILL_PROCESS)]
            if x32 is not None:
                other = _table(x32, default, X32_BIT, 1 << 32)
            body = [(_AT_LEAST, 0, 1, X32_BIT), (_JUMP, 0, 0, len(body)), *body, *other]
        body = [(_LOAD, 0, 0, _NUMBER), *body]
        code = [(_EQUAL, 1, 0, table.architecture), (_JUMP, 0, 0, len(body)), *body, *code]
    code = [(_LOAD, 0, 0, _ARCHITECTURE), *code]
    if len(code) > MOST_INSTRUCTIONS:
        raise ValueError(f"{len(code)} instructions are more than the kernel's {MOST_INSTRUCTIONS}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
