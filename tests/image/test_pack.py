"""Packing programs of this host: the tree is whole, reproducible, and its programs run in it."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tiffin.errors import InvalidParameter, NotFound, TiffinError
from tiffin.image.pack import Packed, pack, write_tar
from tiffin.layer.entry import Kind

Unpack = Callable[[Packed], Path]


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{program} is not installed")
            pytest.skip(f"{program} is not installed")


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    """Writes a packed tree as a tar and extracts it."""

    def unpack(packed: Packed) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        with (tmp_path / "root.tar").open("wb") as output:
            write_tar(packed, output)
        subprocess.run(["tar", "-xpf", tmp_path / "root.tar", "-C", root], check=True)
        os.mknod(root / "dev/null", 0o020666, os.makedev(1, 3))
        return root

    return unpack


def inside(root: Path, *command: str) -> str:
    ran = subprocess.run(
        # /proc is there as in a container: $ORIGIN is read from it.
        [
            *("unshare", "-m", "-p", "-f", "--kill-child", f"--root={root}", "--mount-proc"),
            *command,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout


def tar_of(packed: Packed) -> bytes:
    output = io.BytesIO()
    write_tar(packed, output)
    return output.getvalue()


def paths(packed: Packed) -> set[str]:
    return {"/" + os.fsdecode(entry.path) for entry, _ in packed}


# -- what runs


@pytest.mark.root
def test_shell_make_and_python_run_in_the_tree(unpack: Unpack) -> None:
    need("make", "python3")
    packed = pack(["sh", "ls", "cat", "make", "python"])
    root = unpack(packed)
    (root / "app").mkdir()
    (root / "app/Makefile").write_text("all: ; cat /app/Makefile > /app/made\n")
    (root / "app/app.py").write_text(
        "import ctypes, hashlib, http.server, json, sqlite3, ssl, sys, zlib, zoneinfo\n"
        "assert ssl.create_default_context().cert_store_stats()['x509_ca'] > 10\n"
        "assert zoneinfo.ZoneInfo('Europe/Berlin')\n"
        "import pwd, socket; assert pwd.getpwuid(0).pw_name == 'root'\n"
        "assert socket.gethostbyname('localhost') == '127.0.0.1'\n"
        "print(sys.executable, 'works')\n"
    )
    assert "bin" in inside(root, "ls", "/").split()
    inside(root, "make", "-C", "/app")
    assert (root / "app/made").read_text().startswith("all:")
    assert "works" in inside(root, "sh", "-c", "python /app/app.py | cat")
    assert inside(root, "python3", "-c", "print(1)") == "1\n"
    assert os.readlink(root / "usr/bin/python") == "python3"
    names = {Path(path).name for path in paths(packed)}
    assert not names & {"__pycache__", "idlelib", "tkinter", "ensurepip", "test", "dist-packages"}
    assert packed.changes[0].startswith("ENV PATH=")
    assert packed.changes[-1] == 'CMD ["/bin/sh"]'
    assert packed.warnings == []


@pytest.mark.root
def test_compiler_compiles_in_the_tree(unpack: Unpack) -> None:
    need("gcc", "make")
    root = unpack(pack(["gcc", "make"], timezones=False))
    (root / "a.c").write_text(
        "#include <math.h>\n#include <stdio.h>\n#include <linux/fs.h>\n"
        'int main(int c, char **v) { printf("%.3f\\n", sqrt(c * 2.0)); }\n'
    )
    inside(root, "make", "a", "CFLAGS=-O2", "LDLIBS=-lm")
    assert inside(root, "/a") == "1.414\n"


@pytest.mark.root
def test_perl_runs_with_its_library(unpack: Unpack) -> None:
    need("perl")
    root = unpack(pack(["perl"], timezones=False))
    script = "use POSIX; use Data::Dumper; use Encode; print POSIX::floor(2.5)"
    assert inside(root, "perl", "-e", script) == "2"


@pytest.mark.root
def test_busybox_alone_is_enough(unpack: Unpack) -> None:
    need("busybox")
    packed = pack(["busybox"], timezones=False, certificates=False)
    root = unpack(packed)
    assert inside(root, "sh", "-c", "echo a b | wc -w") == "2\n"
    assert "/usr/bin/dash" not in paths(packed)


# -- the tree


def test_packing_twice_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    first = tar_of(pack(["sh", "ls"]))
    assert tar_of(pack(["ls", "sh"])) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        owners = {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in tar}
    assert owners == {(0, 0, "", "", 0)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with tarfile.open(fileobj=io.BytesIO(tar_of(pack(["sh"])))) as tar:
        assert {each.mtime for each in tar} == {1700000000}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InvalidParameter, match="SOURCE_DATE_EPOCH"):
        pack(["sh"])


def test_tree_is_sorted_and_every_parent_is_there() -> None:
    packed = pack(["sh"])
    order = [entry.path for entry, _ in packed]
    assert order == sorted(set(order))
    seen = {b""}
    for entry, _ in packed:
        assert entry.path.rpartition(b"/")[0] in seen
        if entry.kind is Kind.DIRECTORY:
            seen.add(entry.path)


def test_places_that_programs_expect() -> None:
    packed = pack(["sh"], timezones=False)
    entries = {"/" + os.fsdecode(entry.path): (entry, source) for entry, source in packed}
    modes = {path: entries[path][0].mode for path in ("/tmp", "/var/tmp", "/root", "/home")}
    assert modes == {"/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o700, "/home": 0o755}
    passwd = entries["/etc/passwd"][1]
    assert isinstance(passwd, bytes)
    assert passwd.startswith(b"root:x:0:0:root:/root:/bin/sh\n")
    assert {"/etc/group", "/etc/hosts", "/etc/nsswitch.conf", "/proc", "/sys"} <= entries.keys()
    assert "/usr/share/zoneinfo" not in entries
    for path in ("/bin", "/lib"):
        if os.path.islink(path):
            assert entries[path][0].kind is Kind.SYMLINK
            assert entries[path][0].target == os.fsencode(os.readlink(path))


def test_size_is_that_of_the_contents() -> None:
    packed = pack(["sh"], timezones=False)
    with tarfile.open(fileobj=io.BytesIO(tar_of(packed))) as tar:
        assert packed.size == sum(each.size for each in tar)


# -- finding programs


def test_missing_program_is_named_with_what_to_do() -> None:
    with pytest.raises(NotFound, match="frobnicate: no such program on this host: install"):
        pack(["sh", "frobnicate"])
    with pytest.raises(NotFound, match=r"python3\.999: no such Python on this host"):
        pack(["python3.999"])
    with pytest.raises(NotFound, match="/no/such/thing is not on this host"):
        pack(["sh"], with_files=["/no/such/thing"])
    with pytest.raises(InvalidParameter, match="the kernel's"):
        pack(["sh"], with_files=["/proc/version"])


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_script_brings_its_interpreter(tmp_path: Path) -> None:
    plain = program(tmp_path / "plain", "#!/bin/cat\n")
    through_env = program(tmp_path / "through-env", "#!/usr/bin/env -S X=1 ls -l\n")
    packed = pack([str(plain), str(through_env)], timezones=False)
    assert {"/usr/bin/env", str(plain), str(through_env)} <= paths(packed)
    assert {os.path.realpath("/bin/cat"), os.path.realpath("/bin/ls")} <= paths(packed)
    lost = program(tmp_path / "lost", "#!/usr/bin/env frobnicate\n")
    with pytest.raises(NotFound, match=f"frobnicate, which {lost} needs"):
        pack([str(lost)])


def test_program_outside_the_search_path_is_linked_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = program(tmp_path / "tools/frob", "#!/bin/sh\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/frobnicate").symlink_to("../tools/frob")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    packed = pack(["frobnicate"], timezones=False)
    links = {
        "/" + os.fsdecode(entry.path): os.fsdecode(entry.target)
        for entry, _ in packed
        if entry.kind is Kind.SYMLINK
    }
    assert links["/usr/local/bin/frobnicate"] == f"{tmp_path}/bin/frobnicate"
    assert links[f"{tmp_path}/bin/frobnicate"] == "../tools/frob"
    assert str(tool) in paths(packed)


def test_python_is_the_interpreter_behind_a_shim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("python3")
    real = subprocess.run(
        ["python3", "-I", "-S", "-c", "import os, sys; print(os.path.realpath(sys.executable))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # It has to be told which version it stands for, and must not be told where modules are.
    shim = program(
        tmp_path / "shims/python3",
        f'#!/bin/sh\n[ "$PYENV_VERSION" = 3 ] && [ -z "$PYTHONPATH" ] && exec {real} "$@"\n',
    )
    monkeypatch.setenv("PYENV_VERSION", "3")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    script = program(tmp_path / "app", f"#!{shim}\n")
    packed = pack([str(script)], timezones=False)
    entries = {"/" + os.fsdecode(entry.path): entry for entry, _ in packed}
    assert entries[real].kind is Kind.FILE
    assert entries[str(shim)].kind is Kind.SYMLINK


# -- shared libraries


def compile_library(path: Path, text: str, *options: str) -> Path:
    source = path.with_suffix(".c")
    path.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)
    kind: Sequence[str] = () if path.suffix == "" else ("-shared", "-fPIC")
    subprocess.run(["gcc", *kind, "-o", path, source, *options], check=True)
    source.unlink()
    return path


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a program that needs one library, which needs another one, with a search path."""

    def make(*tags: str) -> Path:
        need("gcc")
        folder = tmp_path / "made"
        two = compile_library(folder / "lib/libtwo.so", "int two(void) { return 2; }")
        compile_library(
            folder / "lib/libone.so",
            "int two(void); int one(void) { return two() - 1; }",
            str(two),
            "-Wl,-soname,libone.so",
        )
        return compile_library(
            folder / "bin/program",
            "int one(void); int main(void) { return one() - 1; }",
            f"-L{folder}/lib",
            "-lone",
            f"-Wl,-rpath-link,{folder}/lib",
            *tags,
        )

    return make


@pytest.mark.root
@pytest.mark.parametrize("origin", ["$ORIGIN", "${ORIGIN}"])
def test_libraries_beside_the_program_are_found(
    made: Callable[..., Path], unpack: Unpack, origin: str
) -> None:
    # An RPATH, unlike a RUNPATH, also counts for the libraries of libraries.
    binary = made("-Wl,--disable-new-dtags", f"-Wl,-rpath,{origin}/../lib")
    packed = pack([str(binary)], timezones=False)
    folder = binary.parent.parent
    assert {f"{folder}/lib/libone.so", f"{folder}/lib/libtwo.so"} <= paths(packed)
    inside(unpack(packed), str(binary))


def test_library_for_another_machine_is_passed_over(made: Callable[..., Path]) -> None:
    binary = made("-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN/../foreign:$ORIGIN/../lib")
    folder = binary.parent.parent
    foreign = bytearray((folder / "lib/libone.so").read_bytes())
    foreign[18:20] = (0xF00F).to_bytes(2, sys.byteorder)  # e_machine
    (folder / "foreign").mkdir()
    (folder / "foreign/libone.so").write_bytes(foreign)
    packed = pack([str(binary)], timezones=False)
    assert f"{folder}/lib/libone.so" in paths(packed)
    assert f"{folder}/foreign/libone.so" not in paths(packed)


def test_library_that_is_nowhere_is_named(made: Callable[..., Path]) -> None:
    binary = made("-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN/../lib")
    (binary.parent.parent / "lib/libone.so").unlink()
    with pytest.raises(NotFound, match=r"libone\.so, which .*/program needs, is not on this host"):
        pack([str(binary)])
    packed = pack(["sh"], with_files=[str(binary.parent)])
    assert any("libone.so" in warning for warning in packed.warnings)


@pytest.mark.root
def test_library_known_to_the_loaders_cache_only_is_linked_where_it_is_found(
    made: Callable[..., Path], unpack: Unpack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = made()
    library = binary.parent.parent / "lib/libone.so"
    two = library.with_name("libtwo.so")
    # libone names libtwo by its path, as it was linked with it, so only libone is looked for.
    real = shutil.which("ldconfig", path="/sbin:/usr/sbin")
    ldconfig = program(
        tmp_path / "ldconfig",
        f"#!/bin/sh\necho '\tlibone.so (libc6,x86-64) => {library}'\n{real} -p\n",
    )
    monkeypatch.setattr("tiffin.image.elf._LDCONFIG", (str(ldconfig),))
    packed = pack([str(binary)], timezones=False)
    assert {str(library), str(two)} <= paths(packed)
    inside(unpack(packed), str(binary))


# -- files of the caller's choice


def test_directory_comes_with_what_its_links_lead_to(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(b"content")
    (folder / "below/link").symlink_to("../../elsewhere")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "one").write_bytes(b"same")
    os.link(folder / "one", folder / "two")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    (folder / os.fsdecode(b"\xff")).write_bytes(b"odd name")
    packed = pack(["sh"], with_files=[str(folder)], timezones=False)
    entries = {
        os.fsdecode(entry.path).removeprefix(str(tmp_path)[1:]): entry for entry, _ in packed
    }
    assert entries["/elsewhere"].size == 7
    assert entries["/data/below/link"].target == b"../../elsewhere"
    assert entries["/data/dangling"].kind is Kind.SYMLINK
    assert entries["/data/one"].kind is Kind.FILE
    assert entries["/data/two"].kind is Kind.HARDLINK
    assert entries["/data/two"].target == entries["/data/one"].path
    assert "/data/fifo" not in entries
    assert "/data/socket" not in entries
    assert os.fsencode(f"{folder}/")[1:] + b"\xff" in {entry.path for entry, _ in packed}
    with tarfile.open(fileobj=io.BytesIO(tar_of(packed))) as tar:
        file = tar.extractfile(f"{str(folder)[1:]}/two")
        assert file is not None
        assert file.read() == b"same"


def test_file_of_the_callers_comes_before_a_made_up_one() -> None:
    packed = pack(["sh"], with_files=["/etc/passwd"], timezones=False)
    (source,) = (source for entry, source in packed if entry.path == b"etc/passwd")
    assert source == "/etc/passwd"


@pytest.mark.root
def test_file_capabilities_are_kept(tmp_path: Path) -> None:
    tool = program(tmp_path / "ping", "#!/bin/sh\n")
    # Version 2, effective, cap_net_raw.
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(tool, "security.capability", value)
    packed = pack([str(tool)], timezones=False)
    (entry,) = (entry for entry, _ in packed if entry.path == os.fsencode(tool)[1:])
    assert entry.xattrs == {"security.capability": value}
    with tarfile.open(fileobj=io.BytesIO(tar_of(packed))) as tar:
        header = tar.getmember(str(tool)[1:]).pax_headers["SCHILY.xattr.security.capability"]
    assert header.encode("utf-8", "surrogateescape") == value


def test_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"before")
    packed = pack(["sh"], with_files=[str(data)], timezones=False)
    data.write_bytes(b"and after")
    with pytest.raises(TiffinError, match="has changed while it was being packed"):
        write_tar(packed, io.BytesIO())
    data.unlink()
    with pytest.raises(NotFound, match="can't be packed"):
        write_tar(packed, io.BytesIO())
