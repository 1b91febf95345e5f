"""AppArmor's profile and SELinux's labels, on a host that has them: files in their places."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tiffin.engine import apparmor, security, selinux
from tiffin.errors import Conflict, InvalidParameter
from tiffin.runtime import process


@pytest.fixture
def enforcing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with SELinux, whose policy names types of its own."""
    folder = tmp_path / "selinux/kitchen/contexts"
    folder.mkdir(parents=True)
    (tmp_path / "enforce").write_text("1")
    (tmp_path / "selinux/config").write_text("# comment\nSELINUX=enforcing\nSELINUXTYPE=kitchen\n")
    (folder / "lxc_contexts").write_text(
        'process = "system_u:system_r:pot_t:s0"\nfile = "system_u:object_r:soup_t:s0"\n'
    )
    monkeypatch.setattr(selinux, "_ENFORCE", str(tmp_path / "enforce"))
    monkeypatch.setattr(selinux, "_CONFIG", str(tmp_path / "selinux"))
    return tmp_path


def test_labels_are_the_policys_with_categories_of_ones_own(enforcing: Path) -> None:
    own, files = selinux.labels((), "one")
    assert own.startswith("system_u:system_r:pot_t:s0:c")
    assert files.startswith("system_u:object_r:soup_t:s0:c")
    level = own.split(":", 3)[3]
    assert files.endswith(level) and selinux.labels((), "one") == (own, files)
    assert selinux.labels((), "two")[0] != own
    first, second = (int(part[1:]) for part in level.partition(":")[2].split(","))
    assert 0 <= first < second < 1024


def test_options_change_a_part(enforcing: Path) -> None:
    options = ["user:u", "role:r", "type:t", "level:s0:c7", "filetype:f"]
    assert selinux.labels(options, "x") == ("u:r:t:s0:c7", "system_u:object_r:f:s0:c7")
    assert selinux.labels(["disable"], "x") == ("", "")
    for text in ("nonsense", "type:", "colour:red"):
        with pytest.raises(InvalidParameter, match="label="):
            selinux.labels([text], "x")


def test_what_sees_the_hosts_processes_has_no_label(enforcing: Path) -> None:
    assert security.labels({"PidMode": "host"}, "x") == ("", "")
    assert security.labels({"Privileged": True}, "x") == ("", "")
    asked = {"Privileged": True, "SecurityOpt": ["label=type:t"]}
    assert security.labels(asked, "x")[0].split(":")[2] == "t"


def test_a_host_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "_ENFORCE", "/no/such")
    assert selinux.labels(["type:t"], "x") == ("", "")
    assert any("type:t" in text for text in security.warnings({"SecurityOpt": ["label=type:t"]}))
    with pytest.raises(InvalidParameter):
        security.check({"SecurityOpt": ["label=nonsense"]})


@pytest.mark.root
def test_volumes_are_labelled_anew(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("")
    (tmp_path / "link").symlink_to("/etc")
    before = "security.selinux" in os.listxattr("/etc")
    try:
        selinux.relabel(str(tmp_path), "u:r:t:s0:c1,c2", shared=False)
    except OSError as error:
        pytest.skip(f"no such attributes here: {error}")
    assert os.getxattr(tmp_path / "folder/file", "security.selinux") == b"u:r:t:s0:c1,c2\0"
    selinux.relabel(str(tmp_path), "u:r:t:s0:c1,c2", shared=True)
    assert os.getxattr(tmp_path / "folder", "security.selinux") == b"u:r:t:s0\0"
    assert ("security.selinux" in os.listxattr("/etc")) is before
    for place in ("/", "/etc/", "/usr/../usr"):
        with pytest.raises(InvalidParameter, match="not allowed"):
            selinux.relabel(place, "u:r:t:s0", shared=True)


@pytest.fixture
def armoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with AppArmor, whose parser notes what it is given."""
    program = tmp_path / "apparmor_parser"
    program.write_text(
        f"#!/bin/sh\ncat > {tmp_path}/given\n"
        f'echo "tiffin-default (enforce)" > {tmp_path}/profiles\n'
    )
    program.chmod(0o755)
    (tmp_path / "profiles").write_text("other (enforce)\n")
    monkeypatch.setattr(apparmor, "enabled", lambda: True)
    monkeypatch.setattr(apparmor, "parser", lambda: str(program))
    monkeypatch.setattr(apparmor, "_LOADED", str(tmp_path / "profiles"))
    return tmp_path


def test_the_default_profile_is_loaded_once(armoured: Path) -> None:
    assert security.apparmor_profile({}) == "tiffin-default"
    assert "profile tiffin-default" in (armoured / "given").read_text()
    (armoured / "given").unlink()
    assert security.apparmor_profile({}) == "tiffin-default"
    assert not (armoured / "given").exists()


def test_which_profile_a_container_has(armoured: Path) -> None:
    def named(**host: Any) -> tuple[str | None, str]:
        return security.apparmor_profile(host), security.apparmor_name(host)

    assert named(SecurityOpt=["apparmor=kitchen"]) == ("kitchen", "kitchen")
    assert named(SecurityOpt=["apparmor=unconfined"]) == (None, "unconfined")
    assert named(Privileged=True) == (None, "unconfined")
    assert named(Privileged=True, SecurityOpt=["apparmor=k"]) == ("k", "k")


def test_a_parser_that_is_missing_or_refuses(
    armoured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (armoured / "apparmor_parser").write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(Conflict, match="broken"):
        security.apparmor_profile({})
    monkeypatch.setattr(apparmor, "parser", lambda: None)
    assert security.apparmor_profile({}) is None
    assert any("apparmor_parser" in text for text in security.warnings({}))


def test_how_a_process_is_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel wants it: AppArmor's own folder first, then the one of older kernels."""
    written: list[tuple[str, bytes]] = []
    there: set[str] = set()
    real = os.open

    def open_(path: str, flags: int) -> int:
        if path not in there:
            raise FileNotFoundError(2, "not there", path)
        written.append((path, b""))
        return real("/dev/null", flags)

    def write(fd: int, data: bytes) -> int:
        written[-1] = (written[-1][0], data)
        return len(data)

    monkeypatch.setattr(process.os, "open", open_)
    monkeypatch.setattr(process.os, "write", write)
    own, old = "/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"
    with pytest.raises(process.Refusal, match="no apparmor"):
        process.set_attribute("apparmor", "exec", "exec kitchen")
    there.add(old)
    process.set_attribute("apparmor", "exec", "exec kitchen")
    there.add(own)
    process.set_attribute("apparmor", "exec", "exec kitchen")
    process.set_attribute("selinux", "exec", "a:b:c:s0")
    assert written == [(old, b"exec kitchen"), (own, b"exec kitchen"), (old, b"a:b:c:s0")]
