"""A program of a few instructions that starts a container's program when it is told to.

A runtime such as LXC executes a program itself and waits for its end itself. The starter is what it
executes: it says that all is made, waits until the keeper has taken the container over, makes the
terminal its controlling one, and becomes the container's program with exactly
the environment that is asked for. It is executed from a descriptor (:data:`PROGRAM`), since the
container's files have none of ours.

Its arguments (:func:`arguments`) are the environment, an empty string, the path of the terminal
that its streams shall be (or an empty string), the path of the program, and the program's
arguments. On the socket :data:`CHANNEL` it writes one byte when it has begun, reads one byte when
it shall go on (at an end of file it exits with 125), and, should the program not be executable,
writes one byte with the number of the error. An end of file there means that the program runs.

This module is part of the keeper: it imports next to nothing.

Source: elf(5); the calling conventions of syscall(2).
"""

from __future__ import annotations

import fcntl
import os
import struct

from tiffin.errors import Unsupported

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Iterable

PROGRAM = 8
"""The descriptor that has the starter."""
CHANNEL = 9
"""The descriptor that is the starter's end of the socket."""
_BASE = 0x400000
_HEADER, _SEGMENT = 64, 56
_CODE = {
    "x86_64": (
        62,
        (
            "488d5c2410"  # lea rbx, [rsp+16]        the environment: all but argv[0]
            "4889df"  # mov rdi, rbx
            "488b07"  # next: mov rax, [rdi]
            "4883c708"  # add rdi, 8
            "803800"  # cmp byte ptr [rax], 0
            "75f4"  # jne next                       … up to the empty string,
            "48c747f800000000"  # mov qword ptr [rdi-8], 0   which becomes its end
            "4889fd"  # mov rbp, rdi                 the terminal, the path, the arguments
            "bf08000000b8030000000f05"  # close(PROGRAM)
            "bf09000000488b7508ba01000000b8010000000f05"  # write(CHANNEL, path, 1)
            "6a00"  # push 0
            "bf090000004889e6ba0100000031c00f05"  # read(CHANNEL, rsp, 1)
            "83f8010f8585000000"  # cmp eax, 1; jne exit
            "488b7d00803f00742b"  # mov rdi, [rbp]; cmp byte ptr [rdi], 0; je go
            "be0200000031d2b8020000000f05"  # open(terminal, O_RDWR, 0)
            "85c07819"  # test eax, eax; js go
            "89c731f6"  # mov edi, eax; xor esi, esi
            "b8210000000f05"  # again: dup2(edi, esi)
            "ffc683fe0375f2"  # inc esi; cmp esi, 3; jne again
            "b8030000000f05"  # close(edi)
            "31ffbe0e54000031d2b8100000000f05"  # go: ioctl(0, TIOCSCTTY, 0)
            "bf09000000be02000000ba01000000b8480000000f05"  # fcntl(CHANNEL, F_SETFD, CLOEXEC)
            "488b7d08488d75104889dab83b0000000f05"  # execve([rbp+8], rbp+16, rbx)
            "f7d8890424"  # neg eax; mov [rsp], eax
            "bf090000004889e6ba01000000b8010000000f05"  # write(CHANNEL, rsp, 1)
            "bf7d000000b8e70000000f05"  # exit: exit_group(125)
        ),
    ),
    "aarch64": (
        183,
        (
            "f3430091"  # add x19, sp, #16
            "f40313aa"  # mov x20, x19
            "808640f8"  # next: ldr x0, [x20], #8
            "00004039"  # ldrb w0, [x0]
            "c0ffff35"  # cbnz w0, next
            "9f821ff8"  # stur xzr, [x20, #-8]
            "000180d2280780d2010000d4"  # close(PROGRAM)
            "200180d2810640f9220080d2080880d2010000d4"  # write(CHANNEL, path, 1)
            "ff4300d1"  # sub sp, sp, #16
            "200180d2e1030091220080d2e80780d2010000d4"  # read(CHANNEL, sp, 1)
            "1f0400f1a1050054"  # cmp x0, #1; b.ne exit
            "810240f92000403980020034"  # ldr x1, [x20]; ldrb w0, [x1]; cbz w0, go
            "600c8092420080d2030080d2080780d2010000d4"  # openat(AT_FDCWD, terminal, O_RDWR, 0)
            "c001f8b7"  # tbnz x0, #63, go
            "f50300aa160080d2"  # mov x21, x0; mov x22, #0
            "e00315aae10316aa020080d2080380d2010000d4"  # again: dup3(x21, x22, 0)
            "d6060091df0e00f121ffff54"  # add x22, x22, #1; cmp x22, #3; b.ne again
            "e00315aa280780d2010000d4"  # close(x21)
            "000080d2c1818ad2020080d2a80380d2010000d4"  # go: ioctl(0, TIOCSCTTY, 0)
            "200180d2410080d2220080d2280380d2010000d4"  # fcntl(CHANNEL, F_SETFD, CLOEXEC)
            "800640f981420091e20313aaa81b80d2010000d4"  # execve([x20, #8], x20+16, x19)
            "e00300cbe00300f9"  # neg x0, x0; str x0, [sp]
            "200180d2e1030091220080d2080880d2010000d4"  # write(CHANNEL, sp, 1)
            "a00f80d2c80b80d2010000d4"  # exit: exit_group(125)
        ),
    ),
}


def image(machine: str = "") -> bytes:
    """The starter's file. Raises Unsupported for a machine that there is none for."""
    machine = machine or os.uname().machine
    if machine not in _CODE:
        raise Unsupported(f"there is no starter for this machine ({machine})")
    number, text = _CODE[machine]
    code = bytes.fromhex(text)
    size = _HEADER + _SEGMENT + len(code)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = identity + struct.pack(
        "<HHIQQQIHHHHHH",
        *(2, number, 1, _BASE + _HEADER + _SEGMENT, _HEADER, 0, 0),
        *(_HEADER, _SEGMENT, 1, 0, 0, 0),
    )
    # One segment, readable and executable.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    return header + segment + code


_MFD_EXEC = 0x10
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def open_program(machine: str = "") -> int:
    """A descriptor, which is the caller's, of a file with the starter that nobody can change."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("starter", flags | _MFD_EXEC)
    except OSError:
        # Before Linux 6.3 every such file may be executed.
        fd = os.memfd_create("starter", flags)
    try:
        os.write(fd, image(machine))
        os.fchmod(fd, 0o555)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def arguments(
    environment: Iterable[str], path: str, args: list[str], terminal: str = ""
) -> list[str]:
    """The starter's arguments, its own name first; ``terminal`` is a path to reopen the streams
    from, if they shall be a terminal's."""
    own = f"/proc/self/fd/{PROGRAM}"
    return [own, *(text for text in environment if text), "", terminal, path, *args]
