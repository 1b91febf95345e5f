"""Fixtures that several rooms need: an engine root, an engine, an image to run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiffin.engine import Engine
from tiffin.linux import syscalls
from tiffin.linux.cgroups import Hierarchy
from tiffin.network import rtnetlink
from tiffin.network.links import Links

APPLETS = (
    "sh ls cat echo sleep true false touch rm mkdir id pwd env hostname dd ps mount umount ln stat "
    "chmod chown mv cp head tail wc grep sed seq yes kill test tty stty printf find du df mknod "
    "ping rmdir readlink od sort uniq tr cut date uname who whoami ip nc httpd wget nslookup"
).split()


def busybox_tar() -> bytes:
    """A root file system of one static busybox with links to it, as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def directory(name: str, mode: int = 0o755) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            tar.addfile(info)

        def file(name: str, content: bytes, mode: int = 0o644) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))

        for name in ("bin", "etc", "root", "home", "var", "usr"):
            directory(name, 0o700 if name == "root" else 0o755)
        directory("tmp", 0o1777)
        file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
        for applet in APPLETS:
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
        file(
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:A user:/home:/bin/sh\n",
        )
        file("etc/group", b"root:x:0:\nusers:x:1000:\nextra:x:2000:user\n")
    return buffer.getvalue()


def leave_host_network() -> None:
    """Put this process into a network namespace of its own, with all that it will start.

    So neither several runs of tests, nor they and whatever networks the machine has, ever meet.
    """
    syscalls.unshare(syscalls.CLONE_NEWNET)
    with rtnetlink.Socket() as kernel:
        kernel.run(rtnetlink.set_up(1))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's job in the background ignores SIGINT, and so would every program started here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_network() -> None:
    """Every test is on a machine of its own, as far as networks go."""
    if os.geteuid() == 0:
        leave_host_network()


def kill_keeper(root: Path) -> None:
    """End the keeper of a root and all that it runs, whatever state they are in."""
    for pid in processes(b"tiffin", os.fsencode(root)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(*words: bytes) -> list[int]:
    """The processes of the machine whose command lines have all of these words."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", name, "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if all(word in command for word in words):
            found.append(int(name))
    return found


@pytest.fixture(scope="session")
def busybox() -> Path:
    """The path of the static busybox that test images are made of."""
    path = Path("/bin/busybox")
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("busybox-static is not installed")
        pytest.skip("busybox-static is not installed")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for an engine root; whatever is left running in it is killed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = tmp_path / "root"
    yield path
    kill_keeper(path)
    shutil.rmtree(path, ignore_errors=True)
    mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    groups = Hierarchy.detect()
    groups.kill(f"tiffin/{mark}")
    groups.delete(f"tiffin/{mark}")
    # The bridges of a killed engine take subnets that the next test's would have.
    with contextlib.closing(Links(mark)) as links:
        links.clear()


@pytest.fixture
def engine(root: Path, busybox: Path) -> Iterator[Engine]:
    """An engine with the image ``busybox``; its containers are removed at the end."""
    with Engine(root) as opened:
        opened.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        yield opened
        for row in opened.containers.list(all=True):
            opened.containers.remove(row["Id"], force=True, volumes=True)
        opened.shutdown_keeper()
