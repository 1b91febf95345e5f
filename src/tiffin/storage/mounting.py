"""A driver's mounts, made in this process: what the runtime does for a container, for those who
look into a tree themselves.

It changes the current directory, so it belongs into a thread or process that has one of its own
(:mod:`tiffin.linux.mounttree`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from tiffin.linux import mounts as mounting
from tiffin.linux import overlayfs, syscalls
from tiffin.storage.driver import Mount


def mount_all(mounts: Iterable[Mount], place: str) -> None:
    """Make the mounts in their order on ``place``. Raises OSError."""
    for one in mounts:
        if one.directory:
            os.chdir(one.directory)
        options = mounting.parse_options(one.options)
        if one.fstype == "overlay":
            overlayfs.mount(one.source, place, options.flags, options.data)
        else:
            syscalls.mount(one.source, place, one.fstype, options.flags, options.data or None)
        if options.flags & syscalls.MS_BIND and options.flags & syscalls.MS_RDONLY:
            # A bind mount takes its flags only when it is mounted again.
            syscalls.mount(None, place, None, options.flags | syscalls.MS_REMOUNT)
