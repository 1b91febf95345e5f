"""A mounted tree that is in no place: mounts as a file descriptor.

For reading and writing the files of a container that does not run: its snapshot is mounted where
nobody can see it, used through a descriptor, and gone when that is closed, also after a kill -9.

How: a thread of its own leaves the process's mount namespace (namespaces are a thread's, not a
process's), mounts there, takes a detached copy of the tree by open_tree(2), and ends; with it ends
its namespace. Needs Linux 5.2.

Source: open_tree(2), unshare(2), mount_namespaces(7).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tiffin.linux import syscalls


def detached_tree(place: str, mount: Callable[[], None]) -> int:
    """Run ``mount`` in a mount namespace of its own and return what it put at ``place``.

    ``mount`` runs in another thread, which may change its working directory freely. The
    descriptor (O_PATH, close-on-exec) is the root of the tree; the caller closes it. Raises what
    ``mount`` raises.
    """
    result: list[int] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_FS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            mount()
            flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
            result.append(syscalls.open_tree(syscalls.AT_FDCWD, place, flags))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="mounttree", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
