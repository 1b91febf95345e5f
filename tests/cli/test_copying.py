"""``cp`` lands files where docker's does, and never outside."""

from __future__ import annotations

import io
import os
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.programs import Docker, Pair, renamed
from tiffin.cli.command import CommandError
from tiffin.cli.copying import _Reader, _unpack, split


@pytest.fixture(scope="module")
def container(dockerd: str) -> Iterator[str]:
    docker = Docker(dockerd)
    docker("run", "-d", "--name", "copies", "--network", "none", "busybox", "sleep", "10000")
    docker("exec", "copies", "sh", "-c",
           "mkdir -p /d/x/y; echo 1 > /d/x/a; ln -s a /d/x/l; ln -s x /d/lx; echo q > /d/q; "
           "ln -s q /d/lq; ln /d/x/a /d/x/h; chmod 640 /d/q")  # fmt: skip
    yield "copies"
    docker("rm", "-f", "copies")


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            content = path.read_text(errors="replace")
        name = str(path.relative_to(folder))
        found[name] = (oct(status.st_mode), content, status.st_nlink if content else 0)
    return found


FROM = [
    "copies:/d/x exist",
    "copies:/d/x new",
    "copies:/d/x/. exist",
    "copies:/d/x/. new",
    "copies:/d/x/ exist",
    "copies:/d/x file",
    "copies:/d/q exist",
    "copies:/d/q file",
    "copies:/d/q new",
    "copies:/d/q new/",
    "copies:/d/q nosuch/new",
    "copies:/d/lx exist",
    "copies:/d/lx/ exist",
    "copies:/d/lx/. exist",
    "copies:/d/lq new",
    "-L copies:/d/lx exist",
    "-L copies:/d/lx new",
    "-L copies:/d/lq new",
    "copies:/nosuch new",
    "copies:d/x new",
    "copies:/ new",
    "copies:/d/. .",
]


@pytest.mark.peer
@pytest.mark.parametrize("words", FROM)
def test_what_comes_out_of_a_container_lands_where_docker_puts_it(
    words: str, pair: Pair, container: str, tmp_path: Path
) -> None:
    results = []
    for name, program in (("theirs", pair.docker), ("ours", pair.tiffin)):
        folder = tmp_path / name
        (folder / "exist").mkdir(parents=True)
        (folder / "file").write_text("old")
        program.cwd = folder
        outcome = program("cp", *shlex.split(words))
        results.append((outcome.code, renamed(outcome.err.replace(name, "X")), snapshot(folder)))
    assert results[1] == results[0]


INTO = [
    "src copies:/t/exist",
    "src copies:/t/new",
    "src/. copies:/t/exist",
    "src/. copies:/t/new",
    "src/ copies:/t/exist",
    "src copies:/t/file",
    "file copies:/t/exist",
    "file copies:/t/file",
    "file copies:/t/new",
    "file copies:/t/nosuch/new",
    "file/ copies:/t/new",
    "dl copies:/t/exist",
    "dl/ copies:/t/exist",
    "dl/. copies:/t/exist",
    "-L dl copies:/t/exist",
    "-L dl copies:/t/new",
    "fl copies:/t/new",
    "-L fl copies:/t/new",
    "nosuch copies:/t",
    "file copies:/t/le",
    "file copies:/t/lf",
    "src copies:/t/le",
    "-a src copies:/t/new",
    "file copies:",
    "file copies:/",
    "- copies:/t",
    "- copies:/t/file",
]


@pytest.mark.peer
@pytest.mark.parametrize("words", INTO)
def test_what_goes_into_a_container_lands_where_docker_puts_it(
    words: str, pair: Pair, container: str, tmp_path: Path
) -> None:
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "f").write_text("a")
    (source / "l").symlink_to("f")
    os.link(source / "f", source / "h")
    (source / "sub" / "g").write_text("b")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dl").symlink_to("src")
    (tmp_path / "fl").symlink_to("file")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(source, "from-tar")
    stdin = buffer.getvalue() if words.startswith("-") and words[1] == " " else b""
    results = []
    for program in (pair.docker, pair.tiffin):
        pair.docker("exec", container, "sh", "-c",
                    "rm -rf /t; mkdir -p /t/exist; echo old > /t/file; ln -s exist /t/le; "
                    "ln -s file /t/lf")  # fmt: skip
        outcome = program("cp", *shlex.split(words), stdin=stdin)
        seen = pair.docker("exec", container, "sh", "-c",
                           "cd /t; find . | sort | xargs stat -c '%n %F %a %s %u %N'")  # fmt: skip
        # docker's client also logs that its own tar was cut short.
        err = [line for line in outcome.err.splitlines() if not line.startswith("time=")]
        results.append((outcome.code, err, seen.out))
    assert results[1] == results[0]


@pytest.mark.peer
def test_a_tar_goes_to_stdout(pair: Pair, container: str) -> None:
    import subprocess

    from cli.programs import command_line, environment

    done = subprocess.run(
        command_line("cp", "copies:/d/x", "-"),
        capture_output=True,
        env=environment(TIFFIN_HOST=pair.tiffin.host),
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert {"x", "x/a", "x/y", "x/l"} <= set(tar.getnames())


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("c:/x", ("c", "/x")),
        ("c:x:y", ("c", "x:y")),
        ("/c:x", ("", "/c:x")),
        ("./c:x", ("", "./c:x")),
        ("x", ("", "x")),
        ("-", ("", "-")),
    ],
)
def test_a_container_is_told_from_a_path(argument: str, parts: tuple[str, str]) -> None:
    assert split(argument) == parts


def archive(*entries: tarfile.TarInfo) -> _Reader:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    return _Reader(iter([memoryview(buffer.getvalue())]))


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "entries",
    [
        [entry("r", tarfile.DIRTYPE), entry("r/../../evil")],
        [
            entry("r", tarfile.DIRTYPE),
            entry("r/l", tarfile.SYMTYPE, "/tmp"),
            entry("r/l/evil"),
        ],
        [entry("r", tarfile.DIRTYPE), entry("r/l", tarfile.LNKTYPE, "r/../../secret")],
    ],
)
def test_an_archive_cannot_write_outside_its_folder(
    entries: list[tarfile.TarInfo], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("")
    base = tmp_path / "inside" / "base"
    base.parent.mkdir()
    with pytest.raises(CommandError, match="the archive has an entry"):
        _unpack(archive(*entries), str(base), 1, owners=False)
    assert not Path("/tmp/evil").exists()
    assert not (tmp_path / "evil").exists()
