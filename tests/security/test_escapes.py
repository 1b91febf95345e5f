"""Attempts to get out, each of which works once its protection is taken out.

``docs/security.md`` has the table. None of them does harm if it works: what must not be written to
is opened for writing, no more.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiffin.errors import StartFailure

pytestmark = pytest.mark.root

OPEN = "say({p: (attempt(os.open, p, os.O_WRONLY) if os.path.exists(p) else 'ENOENT') for p in %r})"


def mounts(prison: Any, targets: list[str], *, volume: str) -> list[list[str]]:
    """The mounts of a container with a volume at /v and tmpfs at some targets: (place, type)."""
    host = {"Binds": [f"{volume}:/v"], "Tmpfs": dict.fromkeys(targets, "size=64k")}
    script = """
rows = [line.split(" ") for line in open("/proc/self/mountinfo")]
say([[row[4], row[row.index("-") + 1]] for row in rows if "size=64k" in row[-1]])
"""
    found: list[list[str]] = prison.attempt(script, host=host)
    return found


def test_a_link_in_a_volume_leads_a_mount_nowhere_else(prison: Any, tmp_path: Path) -> None:
    """CVE-2021-30465, as it is at rest: absolute links and dots end at the container's root."""
    (tmp_path / "absolute").symlink_to("/")
    (tmp_path / "dots").symlink_to("../" * 20)
    targets = ["/v/absolute/escaped-tiffin-1", "/v/dots/escaped-tiffin-2"]
    found = mounts(prison, targets, volume=str(tmp_path))
    assert sorted(place for place, _ in found) == ["/escaped-tiffin-1", "/escaped-tiffin-2"]
    assert not Path("/escaped-tiffin-1").exists() and not Path("/escaped-tiffin-2").exists()


def test_a_link_that_changes_under_a_mount_leads_nowhere_else(prison: Any, tmp_path: Path) -> None:
    """CVE-2021-30465: another container swaps a folder and a link while the mount is made."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("/")
    stop = threading.Event()

    library = ctypes.CDLL(None)
    first, second, exchange = bytes(tmp_path / "a"), bytes(tmp_path / "b"), 2

    def swap() -> None:
        while not stop.is_set():
            assert library.renameat2(-100, first, -100, second, exchange) == 0

    swapper = threading.Thread(target=swap)
    swapper.start()
    places = set()
    try:
        for _ in range(12):
            try:
                found = mounts(prison, ["/v/a/escaped-tiffin-3"], volume=str(tmp_path))
            except StartFailure:
                continue  # the folder was gone just then
            assert len(found) == 1, "a mount landed where the container can't see it"
            places.add(found[0][0])
    finally:
        stop.set()
        swapper.join()
    assert places <= {"/v/a/escaped-tiffin-3", "/v/b/escaped-tiffin-3", "/escaped-tiffin-3"}
    assert not Path("/escaped-tiffin-3").exists()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_masks_are_made_of_the_null_device_only(prison: Any, tmp_path: Path, kind: str) -> None:
    """CVE-2025-31133: /dev/null of the container is a link to what shall be bound elsewhere."""
    for name in ("pts", "shm", "mqueue"):
        (tmp_path / name).mkdir()
    if kind == "link":
        (tmp_path / "null").symlink_to("/proc/sys/kernel/core_pattern")
    else:
        (tmp_path / "null").write_text("")
    with pytest.raises(StartFailure, match="null device"):
        prison.attempt("say(1)", host={"Binds": [f"{tmp_path}:/dev"]})


@pytest.mark.parametrize(
    ("target", "link"),
    [("/proc/self/attr", None), ("/proc/sys", None), ("/l/sys/net", "/proc"), ("/l", "/proc/1")],
)
def test_nothing_can_be_mounted_inside_proc(
    prison: Any, tmp_path: Path, target: str, link: str | None
) -> None:
    """CVE-2025-52881: what the engine writes to in /proc is led elsewhere by a mount there."""
    container = prison.create("true", host={"Tmpfs": {target: ""}})
    if link is not None:
        own = prison.engine.containers
        made = prison.engine.run("busybox", ["ln", "-s", link, "/l"], remove=False, name="linked")
        assert made.exit_code == 0
        own.commit("linked", "linked")
        container = own.create(
            {"Image": "linked", "Cmd": ["true"], "HostConfig": {"Tmpfs": {target: ""}}}
        )["Id"]
    with pytest.raises(StartFailure, match="inside /proc"):
        prison.engine.containers.start(container)


def test_harmless_files_of_proc_may_be_hidden(prison: Any, tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("1 1\n")
    host = {"Binds": [f"{tmp_path}/uptime:/proc/uptime"]}
    assert prison.attempt("say(open('/proc/uptime').read())", host=host) == "1 1\n"


def test_parameters_are_written_below_a_real_proc_only(prison: Any, tmp_path: Path) -> None:
    """CVE-2025-52881: a folder in the place of /proc."""
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    target = tmp_path / "sys/net/ipv4/ip_forward"
    for name in ("ip_forward", "ip_unprivileged_port_start", "ping_group_range"):
        target.with_name(name).write_text("kept")
    host = {"Binds": [f"{tmp_path}:/proc"], "Sysctls": {"net.ipv4.ip_forward": "1"}}
    with pytest.raises(StartFailure):
        prison.attempt("say(1)", host=host)
    assert target.read_text() == "kept"


MASKED = """
found = {}
for path in %r:
    if os.path.isdir(path):
        found[path] = os.listdir(path)
    elif os.path.exists(path):
        info = os.stat(path)
        found[path] = [info.st_rdev] if stat.S_ISCHR(info.st_mode) else ["a file"]
say([found, call(%d, "/proc/keys", 0), call(%d, "/sys/firmware", 0)])
"""


def test_masked_paths_show_nothing_and_stay(prison: Any) -> None:
    from tiffin.engine.security import masked_paths

    umount = {"x86_64": 166}.get(os.uname().machine, 39)
    found, *said = prison.attempt(MASKED % (list(masked_paths()), umount, umount))
    assert "/proc/keys" in found and "/proc/timer_list" in found
    assert set(map(str, found.values())) <= {"[]", str([os.makedev(1, 3)])}
    assert said == ["EPERM", "EPERM"]


def test_the_kernels_parameters_can_not_be_written(prison: Any) -> None:
    paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/class/net/lo/mtu",
    ]
    found = prison.attempt(OPEN % paths)
    assert set(found.values()) <= {"EROFS", "ENOENT", "EACCES"}
    assert found["/proc/sys/kernel/core_pattern"] == "EROFS"
    assert found["/proc/sysrq-trigger"] == "EROFS" or not os.path.exists("/proc/sysrq-trigger")


def test_disks_and_memory_can_be_made_but_not_opened(prison: Any) -> None:
    disk = os.stat("/").st_dev
    script = f"""
found = []
for kind, number in ((stat.S_IFBLK, {disk}), (stat.S_IFCHR, os.makedev(1, 1)),
                     (stat.S_IFCHR, os.makedev(1, 11)), (stat.S_IFCHR, os.makedev(10, 229))):
    os.mknod("/node", kind | 0o600, number)
    found.append(attempt(os.open, "/node", os.O_RDONLY))
    os.unlink("/node")
say([found, sorted(os.listdir("/dev"))])
"""
    container = prison.background()
    for found, names in (prison.attempt(script), prison.attempt_in(container, script)):
        assert found == ["EPERM"] * 4
        assert set(names) == {
            "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
            "stdin", "stdout", "tty", "urandom", "zero",
        }  # fmt: skip


KEYRING = """
import platform
keyctl, add = {"x86_64": (250, 248), "aarch64": (219, 217)}[platform.machine()]
data = b"secret"
say([call(add, "user", "tiffin-test", data, len(data), -3), call(keyctl, 0, -3, 0)])
"""


def test_keyrings_of_containers_are_not_the_hosts_nor_one_anothers(prison: Any) -> None:
    """Even without a filter, each has a session keyring of its own."""
    library, keyctl = ctypes.CDLL(None), {"x86_64": 250}.get(os.uname().machine, 219)
    # One for the keeper to inherit, as from a daemon that a service manager or a login started.
    assert library.syscall(keyctl, 1, b"tiffin-test") > 0
    assert prison.attempt(KEYRING) == ["EPERM", "EPERM"]
    open_ = {"SecurityOpt": ["seccomp=unconfined"]}
    first, second = (prison.attempt(KEYRING, host=open_) for _ in range(2))
    own = library.syscall(keyctl, 0, -3, 0)
    assert first[0] != second[0] and len({first[1], second[1], own}) == 3


def test_a_setuid_program_in_a_volume_gives_nothing(prison: Any, tmp_path: Path) -> None:
    program = tmp_path / "id"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    tmp_path.chmod(0o755)
    script = """
import subprocess
say(subprocess.run(["/v/id", "-u"], capture_output=True).stdout.decode())
"""
    host: dict[str, Any] = {"Binds": [f"{tmp_path}:/v"]}
    assert prison.attempt(script, host=host, User="1000") == "0\n"
    host["SecurityOpt"] = ["no-new-privileges"]
    assert prison.attempt(script, host=host, User="1000") == "1000\n"
    container = prison.background(host=host)
    assert prison.attempt_in(container, script, User="1000") == "1000\n"


PTRACE = """
import platform
ptrace = {"x86_64": 101, "aarch64": 117}[platform.machine()]
pid = %d
say([call(ptrace, 0x4206, pid, 0, 0), attempt(os.readlink, f"/proc/{pid}/exe"),
     attempt(os.readlink, f"/proc/{pid}/fd/0"), attempt(os.listdir, f"/proc/{pid}/root/root")])
"""


def test_processes_of_the_host_can_not_be_traced(
    prison: Any, keeper_pid: Callable[[], int]
) -> None:
    prison.background()
    pid = keeper_pid()
    assert prison.attempt(PTRACE % pid) == ["ESRCH", "ENOENT", "ENOENT", "ENOENT"]
    # Seen with the host's process IDs, they still can't be.
    found = prison.attempt(PTRACE % pid, host={"PidMode": "host"})
    assert found[0] == "EPERM"
    assert found[1:] == ["EACCES"] * 3, found
    # The test itself runs as root, like the container, but holds more capabilities.
    found = prison.attempt(PTRACE % os.getpid(), host={"PidMode": "host"})
    assert found[0] == "EPERM"


def test_no_program_of_the_container_becomes_the_hosts_release_agent(prison: Any) -> None:
    paths = [f"/sys/fs/cgroup/{name}/release_agent" for name in os.listdir("/sys/fs/cgroup")]
    paths += [f"/sys/fs/cgroup/{name}/notify_on_release" for name in os.listdir("/sys/fs/cgroup")]
    paths += ["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/devices/devices.allow"]
    paths += ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"]
    found = prison.attempt(OPEN % paths)
    assert set(found.values()) <= {"EROFS", "ENOENT"} and "EROFS" in found.values()
    mount = {"x86_64": 165}.get(os.uname().machine, 40)
    script = f"os.mkdir('/g'); say(call({mount}, 'cgroup', '/g', 'cgroup', 0, 'rdma'))"
    assert prison.attempt(script) == "EPERM"


def test_the_daemons_sockets_are_nowhere(prison: Any, root: Path) -> None:
    name = f"\0tiffin-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        script = f"""
import socket
found = [attempt(socket.socket(socket.AF_UNIX).connect, {name!r})]
for folder, names, files in os.walk("/"):
    names[:] = [n for n in names if os.path.join(folder, n) not in ("/proc", "/usr", "/lib")]
    found += [f for f in files if stat.S_ISSOCK(os.lstat(os.path.join(folder, f)).st_mode)]
say(found + [os.path.exists({str(root)!r})])
"""
        assert prison.attempt(script) == ["ECONNREFUSED", False]


TERMINAL = r"""
import fcntl, termios
tty = os.open("/dev/tty", os.O_RDWR)
names = [os.ttyname(fd) for fd in (0, 1, 2)]
pushed = attempt(fcntl.ioctl, tty, termios.TIOCSTI, b"\n")
if pushed == b"\n":
    pushed = os.read(0, 10).decode()
say([names, os.stat("/dev/console").st_rdev == os.fstat(0).st_rdev, os.getsid(0) == os.getpid(),
     sorted(os.listdir("/dev/pts")), pushed])
"""


def test_a_terminal_is_the_containers_own(prison: Any) -> None:
    """TIOCSTI: whatever is pushed into it is read by the container, not by a shell of the host."""
    container = prison.create(
        "/usr/bin/python3", "-I", "-S", "-c", prison.script(TERMINAL), Tty=True, OpenStdin=True
    )
    found = prison.output(container)
    assert found == [["/dev/pts/0"] * 3, True, True, ["0", "ptmx"], found[-1]]
    assert found[-1] in ("\n", "EIO")


def test_without_a_terminal_there_is_none_to_push_into(prison: Any) -> None:
    assert prison.attempt("say(attempt(os.open, '/dev/tty', os.O_RDWR))") == "ENXIO"
    container = prison.background()
    assert prison.attempt_in(container, "say(attempt(os.open, '/dev/tty', os.O_RDWR))") == "ENXIO"


def test_a_file_handle_opens_nothing_of_the_host(prison: Any) -> None:
    """The "shocker": open_by_handle_at on a guessed inode of the host's file system."""
    script = """
import platform
number = {"x86_64": 304, "aarch64": 265}[platform.machine()]
handle = struct.pack("IiQ", 8, 1, 2)
say(call(number, os.open("/etc/hosts", os.O_RDONLY), handle, 0))
"""
    assert prison.attempt(script) == "EPERM"


def test_the_hosts_root_is_not_left_below_the_containers(prison: Any) -> None:
    script = """
os.mkdir("/jail")
os.chroot("/jail")
for _ in range(64):
    os.chdir("..")
os.chroot(".")
say([os.path.exists("/etc/passwd"), os.path.exists("/boot"), os.stat("/").st_ino])
"""
    passwd, boot, _ = prison.attempt(script)
    assert passwd and not boot
    rows = prison.attempt("say([l.split()[3:5] for l in open('/proc/self/mountinfo')])")
    assert [row for row in rows if row[1].startswith("/..") or row[1] == "/old"] == []
    assert [row[1] for row in rows].count("/") == 1
