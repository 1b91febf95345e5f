"""Build contexts: a folder in place, a tar stream, a lone Dockerfile."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tiffin.build.context import BuildContext, from_folder, from_stream
from tiffin.build.digests import DigestCache
from tiffin.build.tree import Source
from tiffin.errors import BuildFailure, CorruptArchive, InvalidParameter, NotFound
from tiffin.layer.entry import Kind

if TYPE_CHECKING:
    from build.conftest import Kitchen

pytestmark = pytest.mark.root


def paths(source: Source, directory: bytes = b"") -> list[str]:
    found: list[str] = []
    for entry in source.children(directory):
        found.append(os.fsdecode(entry.path) + ("/" if entry.kind is Kind.DIRECTORY else ""))
        if entry.kind is Kind.DIRECTORY:
            found += paths(source, entry.path)
    return found


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")


def folder(path: Path, **arguments: object) -> BuildContext:
    return from_folder(path, DigestCache(), **arguments)  # type: ignore[arg-type]


def tar_of(files: dict[str, str], **attributes: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return buffer.getvalue()


def test_a_folder_without_what_is_ignored(context: Path) -> None:
    write(context, "a/b/c", "a/b/keep", "a/d", "e.md", "x/e.md", "Dockerfile", "n/o", "p/q/r")
    (context / ".dockerignore").write_text("a\n!a/b/keep\n*.md\nn\nDockerfile\np/q\n!p/q/none\n")
    with folder(context) as found:
        assert found.dockerfile == b"content of Dockerfile"
        assert paths(found.source) == [
            ".dockerignore",
            "a/",
            "a/b/",
            "a/b/keep",
            "p/",
            "x/",
            "x/e.md",
        ]
        assert found.source.entry(b"a/d") is None
        assert found.source.entry(b"a/b/c") is None
        assert found.source.entry(b"n/o") is None
        assert found.source.entry(b"x/e.md/z") is None


def test_only_what_is_asked_for_is_listed(context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(context, "a/1", "b/c/2", "Dockerfile")
    listed: list[int] = []
    scandir = os.scandir
    with folder(context) as found:
        monkeypatch.setattr(os, "scandir", lambda fd: listed.append(fd) or scandir(fd))
        assert found.source.entry(b"b/c/2") is not None
        assert len(listed) == 3
        assert [entry.path for entry in found.source.children(b"b")] == [b"b/c"]
        assert len(listed) == 3


def test_nothing_outside_is_opened_through_a_symlink(context: Path) -> None:
    outside = context.parent / "outside"
    write(outside, "secret", "Dockerfile")
    (context / "link").symlink_to(outside)
    write(context, "dir/file", "Dockerfile")
    with folder(context) as found:
        entry = found.source.entry(b"link")
        assert entry is not None and entry.kind is Kind.SYMLINK
        assert found.source.entry(b"link/secret") is None
        assert found.source.children(b"link") == []
        # a directory that becomes a symlink after it was listed
        entry = found.source.entry(b"dir/file")
        assert entry is not None
        (context / "dir").rename(context / "moved")
        (context / "dir").symlink_to(outside)
        (outside / "file").write_text("secret")
        with pytest.raises(BuildFailure):
            found.source.identify(entry)
    (context / "Dockerfile").unlink()
    (context / "Dockerfile").symlink_to(outside / "Dockerfile")
    with pytest.raises(InvalidParameter, match="forbidden path outside the build context"):
        folder(context)


def test_the_dockerfile_may_be_elsewhere(context: Path, tmp_path: Path) -> None:
    write(tmp_path, "other/My.file", "other/My.file.dockerignore")
    write(context, "docker/file", "docker/file.dockerignore", "x", "dockerfile")
    (context / "docker/file.dockerignore").write_text("x")
    with folder(context, dockerfile="docker/file") as found:
        assert found.dockerfile == b"content of docker/file"
        assert "x" not in paths(found.source)
    with folder(context) as found:
        assert found.dockerfile == b"content of dockerfile", "the name in lower case will do"
    with folder(context, dockerfile=str(tmp_path / "other" / "My.file")) as found:
        assert found.dockerfile == b"content of other/My.file"
    with folder(context, dockerfile=str(context / "x")) as found:
        assert found.dockerfile == b"content of x"
    with folder(context, content=b"FROM x") as found:
        assert found.dockerfile == b"FROM x"
    with pytest.raises(NotFound, match=r"Cannot locate specified Dockerfile: \.\./x"):
        folder(context, dockerfile="../x")
    with pytest.raises(NotFound, match="Cannot locate specified Dockerfile: nope"):
        folder(context, dockerfile="nope")
    with pytest.raises(NotFound, match="unable to prepare context"):
        folder(context / "nope")
    with pytest.raises(InvalidParameter, match=r"the Dockerfile \(Dockerfile\) cannot be empty"):
        folder(context, content=b" \n")


def test_a_file_deleted_or_changed_after_it_was_listed(context: Path) -> None:
    write(context, "a", "b", "Dockerfile")
    with folder(context) as found:
        first, second = found.source.entry(b"a"), found.source.entry(b"b")
        assert first is not None and second is not None
        (context / "a").unlink()
        (context / "b").write_text("changed")
        for entry in (first, second):
            with pytest.raises(BuildFailure, match="changed while the build was reading it"):
                found.source.identify(entry)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_tar_stream(kitchen: Kitchen, compress: type[bytes], tmp_path: Path) -> None:
    big = "x" * 20_000_000
    dockerfile = "FROM scratch\nCOPY . /\n"
    tar = tar_of(
        {
            "./sub/Dockerfile": dockerfile,
            ".dockerignore": "sub/Dockerfile\n.dockerignore\nignored-by-the-client\n",
            "a/b/c": "text",
            "ignored-by-the-client": "here all the same",
            "/big": big,
            "d": "old",
            "./d": "new",
        }
    )
    stream = io.BytesIO(compress(tar))
    image = kitchen.build(from_stream(stream, tmp_path, dockerfile="sub/Dockerfile"))
    assert kitchen.listing(image) == {
        "a": "/",
        "a/b": "/",
        "a/b/c": "text",
        "big": big,
        "d": "new",
        "ignored-by-the-client": "here all the same",
        "sub": "/",
    }
    assert os.listdir(tmp_path) == ["root"], "nothing with a name is left, or ever was"


def test_links_and_holes_in_a_tar(kitchen: Kitchen, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    with (folder / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
        file.truncate(6_000_000)
    (folder / "hard").hardlink_to(folder / "sparse")
    (folder / "link").symlink_to("sparse")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\nCOPY link /followed\n")
    command = ["tar", "-C", folder, "--sparse", "-c", "."]
    data = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    image = kitchen.build(from_stream(io.BytesIO(data)))
    content = b"\0" * 5_000_000 + b"end" + b"\0" * 999_997
    listing = kitchen.listing(image)
    assert listing["link"] == "->sparse"
    assert listing["sparse"] == listing["hard"] == listing["followed"] == content.decode()


def test_a_tar_and_the_folder_that_it_is_of_share_the_cache(
    kitchen: Kitchen, context: Path
) -> None:
    write(context, "a/b", "c")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY a /a/\nCOPY c /c\n")
    image = kitchen.build(context)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(context, arcname=".")
    again = kitchen.build(from_stream(io.BytesIO(buffer.getvalue())))
    assert again.id == image.id and kitchen.cached() == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../x"], r"'\.\./x' would leave the context"),
        (["a/../../x"], "would leave the context"),
    ],
)
def test_a_tar_that_leaves_the_context_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(CorruptArchive, match=message):
        from_stream(io.BytesIO(tar_of(dict.fromkeys(["Dockerfile", *names], "x"))))


def test_what_is_no_context(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="Cannot locate specified Dockerfile: Dockerfile"):
        from_stream(io.BytesIO(tar_of({"a": "b"})))
    with pytest.raises(CorruptArchive):
        from_stream(io.BytesIO(tar_of({"Dockerfile": "FROM x", "a": "x" * 5000})[:3000]))
    with pytest.raises(InvalidParameter, match="cannot be empty"):
        from_stream(io.BytesIO(b""))


def test_a_lone_dockerfile(kitchen: Kitchen) -> None:
    kitchen.base()
    image = kitchen.build(from_stream(io.BytesIO(b"FROM base\nENV A=1\n")))
    assert image.env[-1] == "A=1"
    with pytest.raises(BuildFailure, match="file not found in build context"):
        kitchen.build(from_stream(io.BytesIO(b"FROM base\nCOPY a /\n")))
