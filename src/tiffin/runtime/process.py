"""Becoming the container's program: what the child does last, inside its new root.

The order is deliberate. The streams come first, then every other descriptor is closed, so that no
path of the container (a working directory of ``/proc/self/fd/7``, say) can lead back to the host.
Then the user is resolved from the container's own files, limits and credentials are taken on, the
working directory is entered, the program looked up, the seccomp filter loaded, and the program
executed.

A failure is a :class:`Refusal`: a sentence in Docker's words with the exit code that a command
line ends with. Nothing here may import anything late: once the root is the container's, an import
would load the container's files.

This module is part of the keeper: it imports next to nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal, without the enums
import binascii
import errno
import fcntl
import os
import resource
import stat

from tiffin.errors import InvalidParameter
from tiffin.linux import accounts, capabilities, syscalls

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_TIOCSCTTY = 0x540E
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LARGEST_ACCOUNTS_FILE = 4 << 20
_LOADER = 1 << capabilities.NUMBERS["SYS_ADMIN"]
CHANNEL = 3
"""The descriptor that the channel to the keeper has once the others are closed."""


class Refusal(Exception):
    """Why the program can't be started; ``code`` is the exit code it means."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def _reason(error: OSError) -> str:
    """The system's sentence for an error, with the small initial that Docker's has."""
    text = os.strerror(error.errno or 0)
    return text[:1].lower() + text[1:]


def _code(error: OSError) -> int:
    return 127 if error.errno == errno.ENOENT else 126


def reset_signals() -> None:
    """Every signal at its default: exec resets handlers by itself, but keeps what is ignored."""
    for number in range(1, 65):
        if number not in (9, 19, 32, 33):
            _signal.signal(number, _signal.SIG_DFL)


def set_attribute(module: str, name: str, value: str) -> None:
    """Tell a security module what this process shall be, or make. Raises Refusal.

    Kernels before 5.8 have one folder of attributes for whichever module is the main one; it is
    SELinux's on all.
    """
    places = [f"/proc/self/attr/{name}"]
    if module == "apparmor":
        places.insert(0, f"/proc/self/attr/apparmor/{name}")
    for place in places:
        try:
            fd = os.open(place, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.write(fd, value.encode())
        except OSError as error:
            raise Refusal(f"{module}: {value!r} can't be applied: {_reason(error)}", 125) from None
        finally:
            os.close(fd)
        return
    raise Refusal(f"{module}: {value!r} can't be applied: this kernel has no {module}", 125)


def take_streams(fds: tuple[int, int, int], channel: int) -> None:
    """Make ``fds`` descriptors 0, 1 and 2, and ``channel`` :data:`CHANNEL`; close all others."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (*fds, channel)]
    for number in range(3):
        os.dup2(high[number], number, inheritable=True)
    os.dup2(high[3], CHANNEL, inheritable=False)
    syscalls.close_range(CHANNEL + 1)


def set_limits(rlimits: list[list[Any]], warn: Callable[[str], None]) -> None:
    """Set (number, soft, hard, name) limits; what the kernel refuses is lowered, with a warning."""
    for number, soft, hard, name in rlimits:
        try:
            resource.setrlimit(number, (soft, hard))
        except (ValueError, OSError):
            highest = resource.getrlimit(number)[1]
            lowered_hard = _lower(hard, highest)
            lowered_soft = _lower(soft, lowered_hard)
            resource.setrlimit(number, (lowered_soft, lowered_hard))
            warn(
                f"ulimit {name}={soft}:{hard} is more than this host allows to raise; "
                f"it is {lowered_soft}:{lowered_hard}"
            )


def _lower(value: int, highest: int) -> int:
    if highest < 0:
        return value
    return highest if value < 0 else min(value, highest)


def _read_accounts(path: str) -> bytes:
    """A passwd or group file: empty if missing, or if it is no regular file of a sane size."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        chunks = []
        left = _LARGEST_ACCOUNTS_FILE
        while left > 0 and (chunk := os.read(fd, min(left, 65536))):
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def home_of(uid: int) -> str:
    """The home that the container's own passwd names for a uid, else ``/``."""
    return accounts.resolve(str(uid), _read_accounts("/etc/passwd"), b"", []).home


def resolve_account(user: str, groups: list[str]) -> accounts.Account:
    """The account of the container's user string, from the container's own files."""
    try:
        passwd, group = _read_accounts("/etc/passwd"), _read_accounts("/etc/group")
        return accounts.resolve(user, passwd, group, groups)
    except InvalidParameter as error:
        raise Refusal(error.message, 125) from None


def _give_streams(uid: int) -> None:
    """Let the user reopen its streams (/dev/stdout): they belong to whoever made them."""
    for fd in range(3):
        info = os.fstat(fd)
        if info.st_uid == uid or (stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise


Sets = tuple[int, int, int]
"""Effective, permitted and inheritable capabilities."""


def take_credentials(
    account: accounts.Account,
    bits: int,
    no_new_privileges: bool,
    filtered: bool,
    sets: dict[str, int] | None = None,
) -> Sets:
    """Become the user, with these capabilities (-1: all that there are); returns the final sets.

    Where a seccomp filter is still to be loaded, the right to do so is kept until then. ``sets``
    has effective, permitted, inheritable and ambient ones where they are not all the same.
    """
    held = capabilities.permitted()
    bits &= held
    final = (bits, bits, 0) if account.uid == 0 else (0, 0, 0)
    ambient = 0
    if sets is not None:
        permitted = sets["permitted"] & held
        final = (sets["effective"] & permitted, permitted, sets["inheritable"] & held)
        ambient = sets["ambient"] & final[1] & final[2]
    more = _LOADER if filtered and not no_new_privileges else 0
    now = (final[0] | more, final[1] | more, final[2])
    capabilities.drop_bounding(bits)
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    if now[1]:
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setresuid(account.uid, account.uid, account.uid)
    capabilities.take(*now)
    capabilities.raise_ambient(ambient)
    if no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    return final


def load_filter(seccomp: list[Any] | None, final: Sets, no_new_privileges: bool) -> None:
    """Load the filter, and let go of the right to; nothing but exec may follow."""
    if seccomp is None:
        return
    program = binascii.a2b_base64(seccomp[0])
    try:
        syscalls.seccomp_filter(program, seccomp[1])
        if not no_new_privileges:
            syscalls.capset(*final)
    except OSError as error:
        raise Refusal(f"failed to load the seccomp filter: {_reason(error)}", 125) from None


def _enter_directory(path: str) -> None:
    os.chdir(path)
    # Fails if the directory is not below the root: it was reached over a leaked descriptor.
    os.getcwd()


def _executable(path: str) -> None:
    """Raise OSError unless the path can be executed."""
    info = os.stat(path)
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not info.st_mode & 0o111 or not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def find_program(name: str, search: str) -> str:
    """The path of a program by its name. Raises Refusal."""
    if "/" in name:
        try:
            _executable(name)
        except OSError as error:
            known = error.errno in (errno.EACCES, errno.EISDIR)
            reason = _reason(error) if known else f"stat {name}: {_reason(error)}"
            raise Refusal(f'exec: "{name}": {reason}', _code(error)) from None
        return name
    for directory in search.split(":"):
        path = f"{directory or '.'}/{name}"
        try:
            _executable(path)
        except OSError:
            # A later directory may have one that can be executed.
            continue
        return path
    raise Refusal(f'exec: "{name}": executable file not found in $PATH', 127)


def become(
    process: dict[str, Any],
    init: bool,
    terminal: bool,
    warn: Callable[[str], None],
    gate: Callable[[], None] | None = None,
) -> None:
    """Turn this process, whose streams and root are the container's, into its program.

    Never returns, unless by raising Refusal or OSError. With ``init``, this process stays as the
    program's parent, and ends with its status. ``gate`` is called when all is checked and made;
    the program is executed once it returns.
    """
    set_limits(process["rlimits"], warn)
    if process.get("account") is not None:
        uid, gid, groups = process["account"]
        account = accounts.Account(uid, gid, list(groups), home_of(uid))
    else:
        account = resolve_account(process["user"], process["groups"])
    _give_streams(account.uid)
    environment = {}
    for item in process["env"]:
        name, equals, value = item.partition("=")
        if equals and name:
            environment[name] = value
    environment.setdefault("HOME", account.home)
    cwd = process["cwd"]
    late: OSError | None = None
    try:
        _enter_directory(cwd)
    except OSError as error:
        late = error
    seccomp, no_new_privileges = process["seccomp"], process["no_new_privileges"]
    final = take_credentials(
        account,
        process["capabilities"],
        no_new_privileges,
        seccomp is not None,
        process.get("sets"),
    )
    if late is not None:
        try:
            _enter_directory(cwd)
        except OSError as error:
            raise Refusal(
                f'chdir to cwd ("{cwd}") failed: {_reason(error)}', _code(error)
            ) from None
    args = process["args"]
    path = find_program(args[0], environment.get("PATH", DEFAULT_PATH))
    os.umask(process.get("umask", 0o022))
    if init:
        os.setsid()
        child = syscalls.clone(0)
        if child:
            # The init is of the container like the program, and filtered like it.
            load_filter(seccomp, final, no_new_privileges)
            _be_init(child, args)
    os.setsid()
    if terminal:
        fcntl.ioctl(0, _TIOCSCTTY, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)
    if gate is not None:
        gate()
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    load_filter(seccomp, final, no_new_privileges)
    try:
        os.execve(path, args, environment)
    except OSError as error:
        raise Refusal(f"exec {path}: {_reason(error)}", _code(error)) from None


def _be_init(child: int, args: list[str]) -> None:
    """The life of the small init: forward signals, reap, end with the child's status."""
    status = 255
    try:
        if os.getpid() != 1:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.prctl_name(b"docker-init")
        _rename([b"/sbin/docker-init", b"--", *[os.fsencode(arg) for arg in args]])
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)
        syscalls.close_range(CHANNEL)
        _leave_streams()
        everything = _signal.valid_signals()
        while True:
            number = _signal.sigwaitinfo(everything).si_signo
            if number != _signal.SIGCHLD:
                try:
                    os.kill(child, number)
                except (ProcessLookupError, PermissionError):
                    # It has ended, or has become another user's.
                    pass
                continue
            while True:
                try:
                    pid, result = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                if pid == child:
                    status = os.waitstatus_to_exitcode(result)
                    os._exit(status if status >= 0 else 128 - status)
    finally:
        os._exit(status)


def _leave_streams() -> None:
    """Hold no stream open that is the program's: nobody would see its end."""
    try:
        fd = os.open("/dev/null", os.O_RDWR)
    except OSError:
        syscalls.close_range(0, 2)
        return
    for number in range(3):
        os.dup2(fd, number)
    if fd > 2:
        os.close(fd)


def _rename(args: list[bytes]) -> None:
    """Show ``args`` as this process's command line, and nothing as its environment."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    # Fields 48 to 51 of proc_pid_stat(5); the first one here is field 3.
    start, end, env_start, env_end = (int(field) for field in fields[45:49])
    if not 0 < start < end:
        return
    room = end - start
    title = b"\0".join(args)[: room - 1]
    syscalls.write_memory(start, title + b"\0" * (room - len(title)))
    if 0 < env_start < env_end:
        syscalls.write_memory(env_start, b"\0" * (env_end - env_start))
