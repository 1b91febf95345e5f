"""The kernel as a container's set-up uses it: one object, so that a fake can stand in.

Paths come in two kinds. *Host paths* are looked up as this process sees them. *Inside paths* are
absolute paths of the container, looked up under the root file system that :meth:`Kernel.enter_root`
named (:mod:`tiffin.linux.inside`).

Everything raises OSError that names the call and its argument.

Needs Linux 5.12 (mount_setattr).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct

from tiffin.linux import overlayfs, syscalls
from tiffin.linux.inside import Inside, named, refuse_proc
from tiffin.linux.terminals import set_size, unlock_terminal

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def _mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    if fstype == "overlay":
        overlayfs.mount(source, target, flags, data)
    else:
        syscalls.mount(source, target, fstype, flags, data or None)


class Kernel:
    """The real one."""

    def __init__(self, user_namespace: int = -1) -> None:
        self._user_namespace = user_namespace
        self._inside = Inside()
        self._null = -1
        self._empty = -1
        self._trees: dict[str, int] = {}
        self.terminal: tuple[int, int] | None = None
        """Master and slave, once :meth:`open_terminal` has made them."""

    # namespaces

    def join_namespace(self, path: str, kind: int) -> None:
        """setns(2) into the namespace that a host path names, which must be of that kind."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise named(error, f"open({path})") from None
        try:
            syscalls.setns(fd, kind)
        finally:
            os.close(fd)

    def unshare(self, flags: int) -> None:
        """unshare(2)."""
        syscalls.unshare(flags)

    def set_hostname(self, name: str) -> None:
        """sethostname(2)."""
        syscalls.sethostname(name)

    def set_domainname(self, name: str) -> None:
        """setdomainname(2)."""
        syscalls.setdomainname(name)

    def raise_interface(self, name: str) -> None:
        """Bring a network interface up."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as request:
            encoded = name.encode()
            answer = fcntl.ioctl(request, _SIOCGIFFLAGS, struct.pack("16sH14x", encoded, 0))
            flags = struct.unpack("16sH14x", answer)[1] | _IFF_UP
            fcntl.ioctl(request, _SIOCSIFFLAGS, struct.pack("16sH14x", encoded, flags))

    # user namespaces; the descriptor is given to __init__

    def map_tree(self, path: str) -> None:
        """Mount a host path on itself, with its owners mapped for the user namespace."""
        tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
        try:
            self._set_attributes(tree, path, syscalls.MOUNT_ATTR_IDMAP, False)
            target = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                syscalls.move_mount(tree, target)
            finally:
                os.close(target)
        finally:
            os.close(tree)

    def own_files_as(self, uid: int, gid: int) -> None:
        """Let what is made from here on belong to these IDs; all capabilities stay."""
        _, permitted, inheritable = syscalls.capget()
        syscalls.set_file_ids(uid, gid)
        syscalls.capset(permitted, permitted, inheritable)

    def enter_user_namespace(self) -> None:
        """Become the root of the user namespace, in a mount namespace that is its own."""
        syscalls.setns(self._user_namespace, syscalls.CLONE_NEWUSER)
        syscalls.unshare(syscalls.CLONE_NEWNS)

    def _set_attributes(self, tree: int, source: str, attributes: int, recursive: bool) -> None:
        try:
            syscalls.mount_setattr(
                tree,
                attributes,
                recursive=recursive,
                user_namespace=max(0, self._user_namespace)
                if attributes & syscalls.MOUNT_ATTR_IDMAP
                else 0,
            )
        except OSError as error:
            if not attributes & syscalls.MOUNT_ATTR_IDMAP or error.errno != errno.EINVAL:
                raise
            raise OSError(
                errno.EINVAL,
                f"the file system of {source} can't be mounted with its owners mapped for a user "
                "namespace",
            ) from None

    # mounts, host paths

    def set_propagation(self, path: str, flags: int) -> None:
        """Change how mounts under a host path propagate."""
        syscalls.mount(None, path, None, flags)

    def copy_tree(self, source: str, recursive: bool, key: str) -> None:
        """Keep a detached copy of what a host path shows, for a later :meth:`attach_tree`."""
        flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
        self._trees[key] = syscalls.open_tree(syscalls.AT_FDCWD, source, flags)

    def borrow_tree(self, namespace: str, path: str, key: str) -> None:
        """Keep a detached copy of what ``path`` shows in another mount namespace."""
        own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            other = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(other, syscalls.CLONE_NEWNS)
            finally:
                os.close(other)
            try:
                # Looked up from the other's root: its links lead nowhere else.
                flags = syscalls.OPEN_TREE_CLONE
                self._trees[key] = syscalls.open_tree(syscalls.AT_FDCWD, path, flags)
            finally:
                syscalls.setns(own, syscalls.CLONE_NEWNS)
        finally:
            os.close(own)

    def mount_root(
        self, fstype: str, source: str, target: str, flags: int, data: str, directory: str | None
    ) -> None:
        """mount(2) on a host path, from ``directory`` as the current one."""
        if directory is not None:
            try:
                os.chdir(directory)
            except OSError as error:
                raise named(error, f"chdir({directory})") from None
        _mount(source, target, fstype, flags, data)
        # Of a bind mount, mount(2) takes the other flags in a second step only.
        extra = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        if flags & syscalls.MS_BIND and flags & extra:
            again = flags & extra | syscalls.MS_BIND | syscalls.MS_REMOUNT
            syscalls.mount(None, target, None, again)

    def change_directory(self, path: str) -> None:
        """Go to a host path, where the next mount's names are looked up."""
        try:
            os.chdir(path)
        except OSError as error:
            raise named(error, f"chdir({path})") from None

    def enter_root(self, path: str) -> None:
        """Take a host path as the root that inside paths are looked up in."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._inside.root = os.open(path, flags)

    # inside paths

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """Make an inside directory with its parents, owned by root; fine if it exists."""
        os.close(self._inside.directory(path, mode))

    def make_node(
        self, path: str, kind: int, major: int, minor: int, mode: int, uid: int, gid: int
    ) -> None:
        """mknod(2) at an inside path; what is there already stays."""
        parent, name = self._inside.parent(path)
        try:
            try:
                os.mknod(name, kind | mode, os.makedev(major, minor), dir_fd=parent)
            except FileExistsError:
                return
            except OSError as error:
                raise named(error, f"mknod({path})") from None
            if uid or gid:
                os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def make_symlink(self, target: str, path: str) -> None:
        """symlink(2) at an inside path; what is there already stays."""
        parent, name = self._inside.parent(path)
        try:
            os.symlink(target, name, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)

    def mount(self, fstype: str, source: str, target: str, flags: int, data: str) -> None:
        """mount(2) of a new file system on an inside directory, made if missing."""
        fd = self._inside.directory(target)
        try:
            refuse_proc(fd, target)
            try:
                _mount(source, f"/proc/self/fd/{fd}", fstype, flags, data)
            except OSError as error:
                raise named(error, f"mount({fstype} on {target})") from None
        finally:
            os.close(fd)

    def attach_tree(
        self,
        source: str,
        target: str,
        recursive: bool = True,
        attributes: int = 0,
        attributes_recursive: bool = False,
        propagation: int = 0,
        key: str | None = None,
    ) -> None:
        """Bind the host path ``source`` (or the copy under ``key``) at an inside path.

        The target is made if missing: a directory for a directory, else an empty file. The
        attributes (MOUNT_ATTR_*) are set before the mount can be seen.
        """
        if key is None:
            flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
            tree = syscalls.open_tree(syscalls.AT_FDCWD, source, flags)
        else:
            tree = self._trees.pop(key)
        try:
            self._attach(tree, source, target, attributes, attributes_recursive, propagation)
        finally:
            os.close(tree)

    def attach_below(
        self,
        source: str,
        below: str,
        target: str,
        recursive: bool = True,
        attributes: int = 0,
        attributes_recursive: bool = False,
    ) -> None:
        """Bind what is at ``below`` in the host directory ``source`` at an inside path.

        Others may write to the directory: no symlink in it leads out of it.
        """
        directory = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
            found = syscalls.openat2(directory, below, os.O_PATH, 0, resolve)
        finally:
            os.close(directory)
        try:
            flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
            tree = syscalls.open_tree(
                found, "", flags | (syscalls.AT_RECURSIVE if recursive else 0)
            )
        finally:
            os.close(found)
        try:
            self._attach(tree, source, target, attributes, attributes_recursive)
        finally:
            os.close(tree)

    def show_below(self, path: str, below: str) -> None:
        """Put what is at ``below`` in the mount at an inside path (its very root) over it."""
        top = self._inside.open(path)
        try:
            resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
            found = syscalls.openat2(top, below, os.O_PATH | os.O_DIRECTORY, 0, resolve)
        except OSError as error:
            raise named(error, f"{path}/{below}") from None
        finally:
            os.close(top)
        try:
            flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
            tree = syscalls.open_tree(found, "", flags)
        finally:
            os.close(found)
        try:
            self._attach(tree, f"{path}/{below}", path)
        finally:
            os.close(tree)

    def _attach(
        self,
        tree: int,
        source: str,
        target: str,
        attributes: int = 0,
        attributes_recursive: bool = False,
        propagation: int = 0,
    ) -> None:
        directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        if attributes:
            self._set_attributes(tree, source, attributes, attributes_recursive)
        fd = self._inside.target(target, directory)
        try:
            refuse_proc(fd, target)
            try:
                syscalls.move_mount(tree, fd)
            except OSError as error:
                raise named(error, f"mount({source} on {target})") from None
        finally:
            os.close(fd)
        if propagation:
            recursive = bool(propagation & syscalls.MS_REC)
            kind = propagation & ~syscalls.MS_REC
            syscalls.mount_setattr(tree, propagation=kind, recursive=recursive)

    def bind_groups(self, root: str, groups: list[list[str]], attributes: int) -> None:
        """A tmpfs at an inside path with a bind mount (or a symlink, ``@target``) a group.

        The tmpfs is new, so that names in it need no care.
        """
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        self.mount("tmpfs", "cgroup", root, flags, "mode=755")
        directory = self._inside.directory(root)
        os.fchdir(directory)
        for name, source in groups:
            if source.startswith("@"):
                os.symlink(source[1:], name)
                continue
            os.mkdir(name, 0o755)
            syscalls.mount(source, name, None, syscalls.MS_BIND)
        # One call for all of them, and for the tmpfs itself.
        syscalls.mount_setattr(directory, attributes, recursive=True)
        os.close(directory)

    def set_read_only(self, path: str) -> None:
        """Make the mount at an inside path (its very root) read-only."""
        fd = self._inside.open(path)
        try:
            syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY)
        finally:
            os.close(fd)

    def protect(self, path: str) -> None:
        """Bind an inside path on itself, read-only; nothing happens if it isn't there."""
        fd = self._inside.find(path)
        if fd is None:
            return
        try:
            self._cover(path, fd, fd)
        finally:
            os.close(fd)

    def mask(self, path: str, label: str = "") -> None:
        """Hide an inside path: a directory under an empty read-only tmpfs, one for all of them; a
        file under the container's /dev/null; nothing happens if it isn't there.

        Each file system costs memory in every memory cgroup of the machine, for its shrinker.
        """
        fd = self._inside.find(path)
        if fd is None:
            return
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                self._cover(path, fd, self._open_null())
            elif self._empty >= 0:
                self._cover(path, fd, self._empty)
            else:
                flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
                flags |= syscalls.MS_NOEXEC
                data = "nr_blocks=1,nr_inodes=1"
                if label:
                    data += f',context="{label}"'
                try:
                    syscalls.mount("tmpfs", f"/proc/self/fd/{fd}", "tmpfs", flags, data)
                except OSError as error:
                    raise named(error, f"mask({path})") from None
                self._empty = self._inside.open(path)
        finally:
            os.close(fd)

    def _open_null(self) -> int:
        """The container's null device, kept open until the root is pivoted."""
        if self._null < 0:
            self._null = self._inside.open("/dev/null")
            if os.fstat(self._null).st_rdev != os.makedev(1, 3):
                raise OSError(errno.ENODEV, "/dev/null of the container is not the null device")
        return self._null

    def _cover(self, path: str, target: int, source: int) -> None:
        """Attach a copy of what ``source`` is on ``target``, read-only if it's the same."""
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
        if source == target:
            flags |= syscalls.AT_RECURSIVE
        try:
            tree = syscalls.open_tree(source, "", flags)
            try:
                if source == target:
                    syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_RDONLY, recursive=True)
                syscalls.move_mount(tree, target)
            finally:
                os.close(tree)
        except OSError as error:
            raise named(error, f"mount(on {path})") from None

    def write_parameter(self, name: str, value: str) -> None:
        """Write to a file below the container's /proc/sys.

        The file is looked up from the root of a proc file system, without links and mounts: else
        a container that puts something of its own there could choose what is written to.
        """
        path = f"sys/{name}"
        strict = (
            syscalls.RESOLVE_BENEATH
            | syscalls.RESOLVE_NO_XDEV
            | syscalls.RESOLVE_NO_SYMLINKS
            | syscalls.RESOLVE_NO_MAGICLINKS
        )
        try:
            proc = self._inside.open("/proc", os.O_PATH | os.O_DIRECTORY)
            try:
                if syscalls.file_system(proc) != syscalls.PROC_SUPER_MAGIC:
                    raise OSError(errno.EXDEV, "/proc is not a proc file system")
                fd = syscalls.openat2(proc, path, os.O_WRONLY, 0, strict)
            finally:
                os.close(proc)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise named(error, f"write({value} to /proc/{path})") from None

    def open_terminal(self, rows: int, columns: int) -> None:
        """Open a terminal in the container's devpts, and bind it on /dev/console."""
        master = self._inside.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        slave = unlock_terminal(master)
        set_size(master, rows, columns)
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
        tree = syscalls.open_tree(slave, "", flags)
        try:
            self._attach(tree, "terminal", "/dev/console")
        finally:
            os.close(tree)
        self.terminal = (master, slave)

    def copy_host_devices(self) -> None:
        """Make every device node of the host's /dev inside, for a privileged container."""
        skipped = {"pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts"}
        pending = [""]
        while pending:
            prefix = pending.pop()
            for entry in os.scandir(f"/dev/{prefix}"):
                if not prefix and entry.name in skipped:
                    continue
                path = f"{prefix}{entry.name}"
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    pending.append(f"{path}/")
                elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                    major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
                    kind, mode = stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode)
                    if (major, minor) == (5, 2):
                        continue  # ptmx: the container has its own
                    self.make_node(
                        f"/dev/{path}", kind, major, minor, mode, info.st_uid, info.st_gid
                    )

    def pivot_root(self) -> None:
        """Make the root that was entered this process's own, and let go of the host's."""
        os.fchdir(self._inside.root)
        syscalls.pivot_root(".", ".")
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")
        os.close(self._inside.root)
        self._inside.root = -1

    def change_root(self) -> None:
        """Make the root that was entered this process's own, where the host's can't be let go."""
        os.fchdir(self._inside.root)
        os.chroot(".")
        os.close(self._inside.root)
        self._inside.root = -1
