"""Images for other machines: kept and copied like others, and run where the kernel can."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from command.conftest import Command
from conftest import busybox_tar, kill_keeper
from registry.conftest import MadeImage, layer_tar
from tiffin.image.manifest import DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Index, Platform
from tiffin.linux import binfmt
from tiffin.registry.client import Registry

pytestmark = pytest.mark.root

WORD = b"from afar\n"


def arm64_program() -> bytes:
    """A program for arm64 that writes a word and ends with 0."""
    instructions = (
        0xD2800020,  # mov x0, 1
        0x100000E1,  # adr x1, 28 bytes on
        0xD2800002 | len(WORD) << 5,  # mov x2, length
        0xD2800808,  # mov x8, write
        0xD4000001,  # svc 0
        0xD2800000,  # mov x0, 0
        0xD2800BA8,  # mov x8, exit
        0xD4000001,  # svc 0
    )
    code = struct.pack("<8I", *instructions) + WORD
    base, start = 0x400000, 64 + 56
    size = start + len(code)
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


def foreign(architecture: str, program: bytes = b"") -> MadeImage:
    tar = layer_tar({"bin/word": program}, mode=0o755)
    return MadeImage([tar], architecture=architecture)


@pytest.fixture
def tiffin(root: Path, busybox: Path, tmp_path: Path) -> Iterator[Command]:
    """The command with a daemon that is in a mount namespace of its own."""
    command = Command(root)
    command.environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
    yield command
    command.result("system", "shutdown", "--force")
    kill_keeper(root)


def test_an_image_for_nobody_says_why(tiffin: Command, registry: Registry) -> None:
    image = foreign("sparc64")
    image.push(registry, "app", "1")
    name = f"{registry.host}/app:1"
    tiffin("pull", name)
    assert tiffin.inspect(name)["Architecture"] == "sparc64"
    refused = tiffin.result("run", "--rm", "--network", "none", name, "/bin/word")
    assert refused.returncode == 125
    assert b"is for linux/sparc64, this machine is linux/" in refused.stderr
    assert b"binfmt_misc has no handler" in refused.stderr
    assert tiffin("ps", "-aq") == ""
    # It goes on its way as it came.
    tiffin("tag", name, f"{registry.host}/other:1")
    tiffin("push", f"{registry.host}/other:1")
    assert registry.manifest("other", "1").digest == image.digest


def test_another_platform_than_the_one_that_is_here(tiffin: Command, registry: Registry) -> None:
    here = Platform.of_host().architecture
    native = MadeImage([busybox_tar()], architecture=here)
    other = foreign("sparc64")
    entries = []
    for image, architecture in ((native, here), (other, "sparc64")):
        image.push(registry, "app", f"only-{architecture}")
        platform = Platform("linux", architecture)
        entries.append(Descriptor(DOCKER_MANIFEST, image.digest, len(image.manifest), {}, platform))
    index = Index.make(entries, media_type=DOCKER_INDEX)
    registry.put_manifest("app", "1", index.raw, DOCKER_INDEX)
    name = f"{registry.host}/app:1"
    once = ("run", "--rm", "--network", "none")
    tiffin("pull", "--platform", "linux/sparc64", name)
    done = tiffin.result(*once, "--platform", f"linux/{here}", name, "echo", "here")
    assert done.stdout == b"here\n", done.stderr
    assert f"Unable to find image '{name}' locally".encode() in done.stderr
    # Now this one is here.
    never = tiffin.result(*once, "--pull", "never", "--platform", "linux/sparc64", name, "true")
    assert never.returncode == 125
    assert b"does not match the specified platform: wanted linux/sparc64" in never.stderr


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def test_under_an_interpreter_of_the_kernel(
    tiffin: Command, registry: Registry, tmp_path: Path
) -> None:
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        if os.environ.get("CI") == "true":
            pytest.fail("qemu-user-static is not installed")
        pytest.skip("qemu-user-static is not installed")
    if "binfmt_misc" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no binfmt_misc")
    assert Platform.of_host().architecture != "arm64", "this test is for other machines"
    image = foreign("arm64", arm64_program())
    image.push(registry, "app", "1")
    name = f"{registry.host}/app:1"
    once = ("run", "--rm", "--network", "none")
    known = binfmt.handler_of("arm64")
    handler = f"tiffin-{os.getpid()}"
    words = tiffin.words
    if known is None:
        refused = tiffin.result("run", "--rm", name, "/bin/word")
        assert b"binfmt_misc has no handler" in refused.stderr
        tiffin("system", "shutdown", "--force")
        # Mounted for the daemon alone; what is registered there goes with the mount.
        magic = _escaped(b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xb7\0")
        mask = _escaped(b"\xff" * 7 + b"\0" + b"\xff" * 8 + b"\xfe\xff\xff\xff")
        entry = tmp_path / "entry"
        entry.write_text(f":{handler}:M::{magic}:{mask}:{emulator}:F")
        script = (
            f"mount -t binfmt_misc none {binfmt.FOLDER} && cat {entry} > {binfmt.FOLDER}/register"
            ' && exec "$@"'
        )
        tiffin.words = ["unshare", "-m", "sh", "-c", script, "-", *words]
    try:
        done = tiffin.result(*once, name, "/bin/word")
        tiffin.words = words
        assert done.stdout == WORD, done.stderr
        assert b"WARNING: The requested image's platform (linux/arm64) does not" in done.stderr
        asked = tiffin.result(*once, "--platform", "linux/arm64", name, "/bin/word")
        assert asked.stdout == WORD, asked.stderr
        assert b"WARNING" not in asked.stderr
    finally:
        tiffin.words = words
        # Older kernels keep what was registered when nothing has it mounted any more.
        daemon = tiffin.daemon() if (tiffin.root / "lock").exists() else 0
        place = Path(f"/proc/{daemon}/root{binfmt.FOLDER}/{handler}")
        if place.exists():
            place.write_text("-1")
