"""Which programs for other machines the kernel runs, by what its files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiffin.linux.binfmt import handler_of, handlers

ARM64 = """\
enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POCF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""
S390X = """\
enabled
interpreter /usr/bin/qemu-s390x-static
flags: OC
offset 0
magic 7f454c4602020100000000000000000000020016
mask ffffffffffffff00fffffffffffffffffffeffff
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "register").touch()
    (tmp_path / "qemu-aarch64").write_text(ARM64)
    (tmp_path / "qemu-s390x").write_text(S390X)
    (tmp_path / "by-name").write_text("enabled\ninterpreter /bin/x\nflags: \nextension .exe\n")
    return tmp_path


def test_a_handler_is_found_by_the_head_of_programs(folder: Path) -> None:
    arm64 = handler_of("arm64", folder)
    assert arm64 is not None
    assert (arm64.name, arm64.fixed) == ("qemu-aarch64", True)
    s390x = handler_of("s390x", folder)
    assert s390x is not None
    assert (s390x.interpreter, s390x.fixed) == ("/usr/bin/qemu-s390x-static", False)
    for other in ("arm", "riscv64", "ppc64le", "mips64le", "unheard-of"):
        assert handler_of(other, folder) is None
    assert [handler.name for handler in handlers(folder)] == ["qemu-aarch64", "qemu-s390x"]


def test_what_is_switched_off_does_not_count(folder: Path) -> None:
    (folder / "qemu-aarch64").write_text(ARM64.replace("enabled", "disabled"))
    assert handler_of("arm64", folder) is None
    (folder / "status").write_text("disabled\n")
    assert handler_of("s390x", folder) is None


def test_a_kernel_without_it(tmp_path: Path) -> None:
    assert handler_of("arm64", tmp_path) is None
    assert handler_of("arm64", tmp_path / "missing") is None
