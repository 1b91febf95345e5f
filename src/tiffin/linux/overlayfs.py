"""Mounts of overlayfs, also with more layers than fit into one text.

mount(2) takes a page of options, which the names of lower directories fill after some 250. From
Linux 6.7 on they can be given one by one (``lowerdir+``), as many as overlayfs stacks. That takes a
system call for each, so a text that fits is given as one: 10 layers are mounted in 230 µs that way,
and in 300 the other.

The options are those of mount(8), separated by commas; relative names in them are looked up from
the current directory, either way.

Source: ``Documentation/filesystems/overlayfs.rst``, fsopen(2), fsconfig(2), fsmount(2).
"""

from __future__ import annotations

import errno
import os

from tiffin.linux import detached, syscalls

MOST = 500
"""How many layers overlayfs stacks."""
PAGE = os.sysconf("SC_PAGE_SIZE")
"""How many bytes of options mount(2) takes, the one that ends them among them."""
_ATTRIBUTES = {
    syscalls.MS_RDONLY: syscalls.MOUNT_ATTR_RDONLY,
    syscalls.MS_NOSUID: syscalls.MOUNT_ATTR_NOSUID,
    syscalls.MS_NODEV: syscalls.MOUNT_ATTR_NODEV,
    syscalls.MS_NOEXEC: syscalls.MOUNT_ATTR_NOEXEC,
}


def fits(options: str) -> bool:
    """Whether mount(2) takes that much text."""
    return len(os.fsencode(options)) < PAGE


def takes_one_by_one() -> bool:
    """Whether this kernel knows ``lowerdir+``; asks it, and leaves nothing."""
    try:
        context = detached.open_context("overlay")
    except OSError:
        return False
    try:
        # An overlayfs that knows it looks for the directory; before Linux 6.5 every word is taken,
        # and after that one that is not known is refused.
        detached.configure(context, "overlay", "lowerdir+", "/dev/null/nothing")
    except OSError as error:
        return error.errno == errno.ENOTDIR
    finally:
        os.close(context)
    return False


def mount(source: str, target: str, flags: int, options: str) -> None:
    """Mount overlayfs on a directory. Raises OSError."""
    if fits(options):
        syscalls.mount(source, target, "overlay", flags, options)
        return
    context = detached.open_context("overlay")
    try:
        for key, value in _pairs(source, flags, options):
            detached.configure(context, "overlay", key, value)
        attributes = sum(new for old, new in _ATTRIBUTES.items() if flags & old)
        tree = detached.create(context, "overlay", attributes)
    finally:
        os.close(context)
    try:
        place = os.open(target, os.O_PATH | os.O_CLOEXEC)
        try:
            syscalls.move_mount(tree, place)
        finally:
            os.close(place)
    finally:
        os.close(tree)


def _pairs(source: str, flags: int, options: str) -> list[tuple[str, str | None]]:
    """What fsconfig(2) is told: names and values, None for a flag."""
    pairs: list[tuple[str, str | None]] = [("source", source)]
    if flags & syscalls.MS_RDONLY:
        pairs.append(("ro", None))
    for option in _split(options):
        key, equals, value = option.partition("=")
        if key == "lowerdir":
            pairs += [("lowerdir+", name) for name in value.split(":")]
        else:
            pairs.append((key, value if equals else None))
    return pairs


def _split(options: str) -> list[str]:
    """At the commas outside of quotes, which an SELinux label is in; mount(2) takes them off."""
    parts: list[str] = []
    for number, text in enumerate(options.split('"')):
        pieces = [text] if number % 2 else text.split(",")
        if parts:
            parts[-1] += pieces.pop(0)
        parts += pieces
    return parts
