"""A mounted tree that is in no place: mounts as a file descriptor.

For reading and writing the files of a container that does not run: its snapshot is mounted where
nobody can see it, used through a descriptor, and gone when that is closed, also after a kill -9.

How: a thread of its own leaves the process's mount namespace (namespaces are a thread's, not a
process's), mounts there, takes a detached copy of the tree by open_tree(2), and ends; with it ends
its namespace. Needs Linux 5.2.

Source: open_tree(2), unshare(2), mount_namespaces(7).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from tiffin.linux import syscalls


def root_of(pid: int) -> int:
    """A detached copy of the file system that is a process's root, without what is mounted in it.

    The descriptor (O_PATH, close-on-exec) is the root of the copy; the caller closes it. Raises
    FileNotFoundError or ProcessLookupError if the process is gone.
    """
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def clone() -> int:
        # A mount can only be copied in its own namespace; entering it needs a root and a working
        # directory of the thread's own, and sets both to the namespace's root.
        syscalls.unshare(syscalls.CLONE_FS)
        syscalls.setns(namespace, syscalls.CLONE_NEWNS)
        return syscalls.open_tree(syscalls.AT_FDCWD, "/", syscalls.OPEN_TREE_CLONE)

    try:
        return _in_thread(clone)
    finally:
        os.close(namespace)


def detached_tree(place: str, mount: Callable[[], None]) -> int:
    """Run ``mount`` in a mount namespace of its own and return what it put at ``place``.

    ``mount`` runs in another thread, which may change its working directory freely. The
    descriptor (O_PATH, close-on-exec) is the root of the tree; the caller closes it. Raises what
    ``mount`` raises.
    """

    def work() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_FS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        mount()
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
        return syscalls.open_tree(syscalls.AT_FDCWD, place, flags)

    return _in_thread(work)


def _in_thread(work: Callable[[], int]) -> int:
    result: list[int] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="mounttree", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
