"""COPY and ADD: what is taken, where it goes, and whose it is."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tiffin.build.copying import destination
from tiffin.errors import BuildFailure, CorruptArchive, TiffinError
from tiffin.layer.entry import Kind

if TYPE_CHECKING:
    from build.conftest import Kitchen

pytestmark = pytest.mark.root

TREE = {
    "a.txt": "a",
    "b.txt": "b",
    "star*.txt": "star",
    "dir/c.txt": "c",
    "dir/sub/d.txt": "d",
    "other/e.txt": "e",
}


@pytest.fixture
def tree(context: Path) -> Path:
    for name, content in TREE.items():
        path = context / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, ns=(0, 1_500_000_000_123_456_789))
    (context / ".dockerignore").write_text("Dockerfile\n.dockerignore\n")
    return context


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        # one file
        ("COPY a.txt /x", {"x": "a"}),
        ("COPY a.txt /x/", {"x/a.txt": "a"}),
        ("COPY a.txt /new/x", {"new/x": "a"}),
        ("COPY a.txt /", {"a.txt": "a"}),
        ("COPY a.txt .", {"work/a.txt": "a"}),
        ("COPY a.txt ./", {"work/a.txt": "a"}),
        ("COPY a.txt x", {"work/x": "a"}),
        ("COPY a.txt ../x", {"x": "a"}),
        ("COPY /a.txt /x", {"x": "a"}),
        ("COPY ./dir/../a.txt /x", {"x": "a"}),
        ("COPY dir/c.txt /x/", {"x/c.txt": "c"}),
        ("COPY a.txt /usr", {"usr/a.txt": "a"}),
        # what is inside a directory, not the directory
        ("COPY dir /x", {"x/c.txt": "c", "x/sub/d.txt": "d"}),
        ("COPY dir/ /x/", {"x/c.txt": "c", "x/sub/d.txt": "d"}),
        ("COPY dir /usr/bin", {"usr/bin/c.txt": "c", "usr/bin/sub/d.txt": "d"}),
        ("COPY dir/sub .", {"work/d.txt": "d"}),
        # several sources
        ("COPY a.txt b.txt /x/", {"x/a.txt": "a", "x/b.txt": "b"}),
        ("COPY b.txt a.txt ./", {"work/a.txt": "a", "work/b.txt": "b"}),
        ("COPY a.txt dir /x/", {"x/a.txt": "a", "x/c.txt": "c", "x/sub/d.txt": "d"}),
        ('COPY ["a.txt", "b.txt", "/a b/"]', {"a b/a.txt": "a", "a b/b.txt": "b"}),
        # wildcards
        ("COPY ?.txt /x/", {"x/a.txt": "a", "x/b.txt": "b"}),
        ("COPY [a-b].txt /x/", {"x/a.txt": "a", "x/b.txt": "b"}),
        ("COPY d* /x/", {"x/c.txt": "c", "x/sub/d.txt": "d"}),
        ("COPY */*.txt /x/", {"x/c.txt": "c", "x/e.txt": "e"}),
        ("COPY dir/*.txt /x", {"x": "c"}),
        ("COPY star[*].txt /x", {"x": "star"}),
        # the image's symlinks
        ("COPY a.txt /link/x", {"usr/x": "a"}),
        ("COPY dir /link/new", {"usr/new/c.txt": "c", "usr/new/sub/d.txt": "d"}),
        ("COPY a.txt /outside/x", {"etc/x": "a"}),
        ("COPY a.txt /filelink", {"usr/file": "a"}),
        ("COPY a.txt /dangling", {"usr/later": "a"}),
        ("COPY a.txt /link", {"usr/a.txt": "a"}),
        # --exclude: relative to each source
        (
            "COPY --exclude=*.txt . /x/",
            {"x/dir/c.txt": "c", "x/dir/sub/d.txt": "d", "x/other/e.txt": "e"},
        ),
        ("COPY --exclude=**/*.txt . /x/", {}),
        ("COPY --exclude=sub dir /x/", {"x/c.txt": "c"}),
        ("COPY --exclude=c.txt d* o* /x/", {"x/sub/d.txt": "d", "x/e.txt": "e"}),
        ("COPY --exclude=a* ?.txt /x/", {"x/b.txt": "b"}),
        ("COPY --exclude=sub --exclude=!sub/d.txt dir /x/", {"x/c.txt": "c", "x/sub/d.txt": "d"}),
        # --parents
        ("COPY --parents dir/c.txt other/e.txt /x/", {"x/dir/c.txt": "c", "x/other/e.txt": "e"}),
        ("COPY --parents dir/sub /x", {"x/dir/sub/d.txt": "d"}),
        ("COPY --parents dir/./sub/d.txt /x/", {"x/sub/d.txt": "d"}),
        (
            "COPY --parents **/*.txt /x/",
            {
                "x/a.txt": "a",
                "x/b.txt": "b",
                "x/star*.txt": "star",
                "x/dir/c.txt": "c",
                "x/dir/sub/d.txt": "d",
                "x/other/e.txt": "e",
            },
        ),
        ("COPY --parents ./dir/**/d.txt /x/", {"x/dir/sub/d.txt": "d"}),
        ("COPY --parents dir/./**/*.txt /x/", {"x/c.txt": "c", "x/sub/d.txt": "d"}),
        # --link takes no notice of the image's symlinks
        ("COPY --link a.txt /link2/x", {"link2/x": "a"}),
        # ADD of what is no tar
        ("ADD a.txt /x/", {"x/a.txt": "a"}),
        ("ADD dir /x", {"x/c.txt": "c", "x/sub/d.txt": "d"}),
    ],
)
def test_where_files_go(
    kitchen: Kitchen, tree: Path, instruction: str, expected: dict[str, str]
) -> None:
    kitchen.base(
        files={
            "usr/bin/tool": "tool",
            "usr/file": "old",
            "link": "->usr",
            "outside": "->/../../etc",
            "filelink": "->usr/file",
            "link2": "->usr",
            "dangling": "->usr/later",
            "work": None,
        },
        WorkingDir="/work",
    )
    before = kitchen.listing(kitchen.images["base:latest"])
    after = kitchen.listing(kitchen.build(tree, f"FROM base\n{instruction}\n"))
    changed = {path: text for path, text in after.items() if before.get(path) != text}
    assert {path: text for path, text in changed.items() if text != "/"} == expected
    assert set(before) <= set(after)


@pytest.mark.parametrize(
    ("chmod", "file", "directory"),
    [
        ("600", 0o600, 0o600),
        ("4755", 0o4755, 0o4755),
        ("u+x", 0o754, 0o755),
        ("go=", 0o600, 0o700),
        ("a=rX", 0o444, 0o555),
        ("u=rwX,g=u,o-r", 0o660, 0o771),
        ("+t,g+s", 0o3654, 0o3755),
        ("o=g", 0o644, 0o755),
    ],
)
def test_chmod(kitchen: Kitchen, tree: Path, chmod: str, file: int, directory: int) -> None:
    kitchen.base()
    (tree / "dir" / "c.txt").chmod(0o654 if "+" in chmod else 0o644)
    image = kitchen.build(tree, f"FROM base\nCOPY --chmod={chmod} dir /x\n")
    assert kitchen.entry(image, "x/c.txt").mode == file
    assert kitchen.entry(image, "x/sub").mode == directory


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (
            "COPY nope /x",
            (
                "COPY failed: file not found in build context or excluded by .dockerignore: "
                "stat nope: file does not exist"
            ),
        ),
        ("ADD dir/nope /x", "ADD failed: file not found in build context or excluded by"),
        ("COPY Dockerfile /x", "excluded by .dockerignore: stat Dockerfile: file does not exist"),
        ("COPY ../secret /x", "COPY failed: forbidden path outside the build context: ../secret"),
        ("COPY no* /x/", "COPY failed: no source files were specified"),
        (
            "COPY a.txt b.txt /x",
            (
                "When using COPY with more than one source file, the destination must be a "
                "directory and end with a /"
            ),
        ),
        ("COPY ?.txt /x", "When using COPY with more than one source file"),
        ("COPY a.txt /etc/passwd/x", "cannot copy to non-directory: /etc/passwd"),
        ("COPY dir /etc/passwd", "cannot copy to non-directory: /etc/passwd"),
        ("COPY escape /x", "COPY failed: file not found in build context"),
        ("COPY loop /x", "loop: too many levels of symbolic links"),
        ("COPY --from=base /nope /x", "COPY failed: stat nope: file does not exist"),
    ],
)
def test_what_can_not_be_copied(
    kitchen: Kitchen, tree: Path, instruction: str, message: str
) -> None:
    kitchen.base()
    (tree / "escape").symlink_to("/etc/hostname")
    (tree / "loop").symlink_to("loop")
    (tree.parent / "secret").write_text("secret")
    with pytest.raises(TiffinError) as caught:
        kitchen.build(tree, f"FROM base\n{instruction}\n")
    assert message in caught.value.message
    assert caught.value.message.endswith(f"(Dockerfile line 2: {instruction})")


def test_a_file_does_not_replace_a_directory(kitchen: Kitchen, tree: Path) -> None:
    kitchen.base(files={"x/c.txt": None})
    with pytest.raises(BuildFailure, match=r"cannot replace to directory /x/c\.txt with file"):
        kitchen.build(tree, "FROM base\nCOPY dir /x\n")


def test_a_symlink_below_the_destination_is_replaced(kitchen: Kitchen, tree: Path) -> None:
    kitchen.base(files={"x/c.txt": "->/etc/passwd", "x/a.txt": "->/etc/passwd"})
    image = kitchen.build(tree, "FROM base\nCOPY dir /x\nCOPY a.txt /x/\n")
    assert kitchen.listing(image, "x")["x/c.txt"] == "c"
    assert kitchen.listing(image, "x")["x/a.txt"] == "a"
    assert kitchen.listing(image, "etc") == kitchen.listing(kitchen.images["base:latest"], "etc")


def test_modes_and_times_stay_and_owners_do_not(kitchen: Kitchen, tree: Path) -> None:
    kitchen.base(files={"kept/sub": None})
    os.chown(tree / "a.txt", 5, 6)
    (tree / "a.txt").chmod(0o4711)
    (tree / "dir").chmod(0o700)
    (tree / "dir" / "sub").chmod(0o1777)
    os.utime(tree / "dir" / "sub", ns=(0, 77))
    image = kitchen.build(tree, "FROM base\nCOPY . /x/\nCOPY dir /kept\n")
    entry = kitchen.entry(image, "x/a.txt")
    assert (entry.mode, entry.uid, entry.gid) == (0o4711, 0, 0)
    assert entry.mtime_ns == 1_500_000_000_123_456_789
    assert kitchen.entry(image, "x").mode == 0o755
    assert kitchen.entry(image, "x/dir").mode == 0o700
    assert kitchen.entry(image, "x/dir/sub").mode == 0o1777
    assert kitchen.entry(image, "x/dir/sub").mtime_ns == 77
    assert kitchen.entry(image, "kept").mode == 0o755, "the destination stays as it is"
    assert kitchen.entry(image, "kept/sub").mode == 0o1777


@pytest.mark.parametrize(
    ("flags", "owner", "mode"),
    [
        ("--chown=5", (5, 5), 0o644),
        ("--chown=5:6", (5, 6), 0o644),
        ("--chown=me", (1000, 1001), 0o644),
        ("--chown=me:us", (1000, 2000), 0o644),
        ("--chown=me:7", (1000, 7), 0o644),
        ("--chmod=600", (0, 0), 0o600),
        ("--chmod=0755 --chown=$who:us", (1000, 2000), 0o755),
    ],
)
def test_chown_and_chmod(
    kitchen: Kitchen, tree: Path, flags: str, owner: tuple[int, int], mode: int
) -> None:
    kitchen.base()
    (tree / "a.txt").chmod(0o644)
    image = kitchen.build(tree, f"FROM base\nARG who=me\nCOPY {flags} a.txt /new/dir/\n")
    for path in ("new/dir/a.txt", "new/dir", "new"):
        entry = kitchen.entry(image, path)
        assert (entry.uid, entry.gid) == owner
        assert entry.mode == (mode if path.endswith("txt") else 0o755)


def test_symlinks_are_copied_and_named_ones_followed(kitchen: Kitchen, tree: Path) -> None:
    (tree / "dir" / "link").symlink_to("sub/d.txt")
    (tree / "out").symlink_to("/etc/passwd")
    (tree / "dirlink").symlink_to("dir/sub")
    image = kitchen.build(
        tree,
        "FROM scratch\nCOPY . /all/\nCOPY dir/link /d\nCOPY dirlink /sub/\nCOPY dirlink/d.txt /e\n",
    )
    listing = kitchen.listing(image)
    assert listing["all/dir/link"] == "->sub/d.txt"
    assert listing["all/out"] == "->/etc/passwd"
    assert listing["all/dirlink"] == "->dir/sub"
    assert (listing["d"], listing["sub/d.txt"], listing["e"]) == ("d", "d", "d")


def test_the_name_that_a_symlink_gives_counts_for_the_cache(kitchen: Kitchen, tree: Path) -> None:
    (tree / "link1").symlink_to("a.txt")
    kitchen.build(tree, "FROM scratch\nCOPY link* /x/\n")
    (tree / "link1").rename(tree / "link2")
    assert "x/link2" in kitchen.listing(kitchen.build(tree))


def test_special_files(kitchen: Kitchen, tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    (tree / "empty").mkdir()
    (tree / "nothing").touch()
    subprocess.run(["setcap", "cap_net_raw=ep", tree / "a.txt"], check=True)
    image = kitchen.build(tree, "FROM scratch\nCOPY . /x/\n")
    assert kitchen.entry(image, "x/fifo").kind is Kind.FIFO
    assert kitchen.entry(image, "x/empty").kind is Kind.DIRECTORY
    assert kitchen.entry(image, "x/nothing").size == 0
    assert "security.capability" in (kitchen.entry(image, "x/a.txt").xattrs or {})
    assert kitchen.build(tree).id == image.id


def tar_file(path: Path, mode: str = "w", **names: str) -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in names.items():
            member = tarfile.TarInfo(name.replace("_", "/"))
            member.uid, member.gid, member.mtime, member.mode = 3, 4, 99, 0o640
            data = content.encode()
            if content.startswith("->"):
                member.type, member.linkname = tarfile.SYMTYPE, content[2:]
            elif content.startswith("=>"):
                member.type, member.linkname = tarfile.LNKTYPE, content[2:]
            elif content == "/":
                member.type, member.mode = tarfile.DIRTYPE, 0o700
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data) if member.isfile() else None)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_add_unpacks_a_tar(kitchen: Kitchen, tree: Path, mode: str) -> None:
    tar_file(tree / "x.tar", mode, d="/", d_f="file", l="->d/f", h="=>d/f", big="x" * 3_000_000)
    kitchen.base(files={"into/kept": "kept"})
    image = kitchen.build(tree, "FROM base\nADD x.tar /into\nADD --chown=8:9 x.tar /own/\n")
    listing = kitchen.listing(image, "into")
    assert listing["into/big"] == "x" * 3_000_000
    del listing["into/big"]
    assert listing == {
        "into/d": "/",
        "into/d/f": "file",
        "into/h": "file",
        "into/kept": "kept",
        "into/l": "->d/f",
    }
    entry = kitchen.entry(image, "into/d/f")
    assert (entry.uid, entry.gid, entry.mtime_ns, entry.mode) == (3, 4, 99 * 10**9, 0o640)
    assert kitchen.entry(image, "into/d").mode == 0o700
    assert (kitchen.entry(image, "own").uid, kitchen.entry(image, "own/d/f").uid) == (8, 3)
    assert kitchen.build(tree).id == image.id and kitchen.cached() == 2
    copied = kitchen.build(tree, "FROM base\nCOPY x.tar /into\n")
    assert "into/x.tar" in kitchen.listing(copied, "into")


def test_add_keeps_an_archive_inside(kitchen: Kitchen, tree: Path) -> None:
    tar_file(tree / "x.tar", **{"..__..__etc__x".replace("__", "/"): "x"})
    with pytest.raises(CorruptArchive, match=r"'\.\./\.\./etc/x' would leave its root"):
        kitchen.build(tree, "FROM scratch\nADD x.tar /d/\n")
    tar_file(tree / "x.tar", d="->/etc", d_x="inside")
    image = kitchen.build(tree, "FROM scratch\nADD x.tar /d/\n")
    assert kitchen.listing(image)["etc/x"] == "inside"


def test_a_source_that_changes_under_the_build_is_an_error(
    kitchen: Kitchen, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiffin.layer.writer import LayerWriter

    add = LayerWriter.add

    def slow(self: LayerWriter, *arguments: object) -> object:
        result = add(self, *arguments)  # type: ignore[arg-type]
        (tree / "a.txt").write_text("changed")
        return result

    monkeypatch.setattr(LayerWriter, "add", slow)
    with pytest.raises(BuildFailure, match=r"a\.txt changed while the build was reading it"):
        kitchen.build(tree, "FROM scratch\nCOPY a.txt /x\n")
    monkeypatch.undo()
    image = kitchen.build(tree)
    assert kitchen.listing(image) == {"x": "changed"}


@pytest.mark.parametrize(
    ("directory", "text", "path", "is_directory"),
    [
        ("/w", "a", b"w/a", False),
        ("/w", "a/", b"w/a", True),
        ("/w", ".", b"w", True),
        ("/w", "/", b"", True),
        ("", "a/../../b", b"b", False),
        ("/w/x", "..", b"w", True),
        ("/w", "./a/.", b"w/a", True),
    ],
)
def test_destinations(directory: str, text: str, path: bytes, is_directory: bool) -> None:
    found = destination(directory, text)
    assert (found.path, found.is_directory) == (path, is_directory)


def test_a_linked_copy_is_made_once_for_all_bases(kitchen: Kitchen, tree: Path) -> None:
    kitchen.base()
    first = kitchen.build(tree, "FROM base\nENV A=1\nCOPY --link dir /x/y\n")
    second = kitchen.build(tree, "FROM base\nENV A=2\nCOPY --link dir /x/y\n")
    assert second.diff_ids == first.diff_ids
    assert kitchen.listing(second, "x/y") == {
        "x/y/c.txt": "c",
        "x/y/sub": "/",
        "x/y/sub/d.txt": "d",
    }


def test_named_contexts(kitchen: Kitchen, tree: Path, tmp_path: Path) -> None:
    kitchen.base()
    other = tmp_path / "other"
    other.mkdir()
    (other / "o").write_text("from other")
    (other / "no").write_text("ignored")
    (other / ".dockerignore").write_text("no\n.dockerignore\n")
    contexts = {"Other": str(other), "renamed": "docker-image://base"}
    image = kitchen.build(
        tree,
        "FROM renamed\nCOPY --from=other o /o\nCOPY --from=renamed /etc/group /g\n"
        "COPY --from=other . /all/\n",
        contexts=contexts,
    )
    assert kitchen.listing(image)["o"] == "from other"
    assert set(kitchen.listing(image, "all")) == {"all/o"}
    image = kitchen.build(tree, "FROM other\nENV a=b\n", contexts=contexts)
    assert kitchen.listing(image) == {"o": "from other"}
