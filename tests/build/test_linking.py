"""A COPY of files of which most are as they were: they are linked from the layer before."""

from __future__ import annotations

import io
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from conftest import busybox_tar
from tiffin.engine import Engine
from tiffin.engine.builds import BuildOptions
from tiffin.errors import NotFound
from tiffin.storage.tree import delete

pytestmark = pytest.mark.root

DOCKERFILE = "FROM busybox\nCOPY . /files\n"
LARGE = os.urandom(200_000)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """Files of all sorts."""
    folder = tmp_path / "context"
    for number in range(60):
        path = folder / f"folder{number % 7}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content {number}\n" * number)
        path.chmod(0o755 if number % 3 else 0o640)
    (folder / "link").symlink_to("folder0/file0")
    (folder / "large").write_bytes(LARGE)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    return folder


def build(engine: Engine, context: Path, **options: Any) -> str:
    return engine.builds.build(BuildOptions(network_mode="none", **options), context)


def change(context: Path, text: str = "changed") -> None:
    (context / "folder3" / "file3").write_text(text)


def layer(engine: Engine, image: str) -> str:
    found: str = engine.images.inspect(image)["RootFS"]["Layers"][-1]
    return found


def listing(engine: Engine, image: str) -> bytes:
    """Everything that the image's tree is, as its tar."""
    output = io.BytesIO()
    engine.builds.rootfs(image, output)
    return output.getvalue()


def on_disk(engine: Engine, image: str) -> dict[str, os.stat_result]:
    """The files of the top layer's own directory."""
    store = engine.builds.layers
    top = engine.images.find(image).top
    assert top is not None
    with store.own_directory(store.get(top).snapshot) as place:
        return {
            str(path.relative_to(place)): status
            for path in place.rglob("*")
            if stat.S_ISREG((status := path.lstat()).st_mode)
        }


def test_the_image_is_that_of_a_build_from_scratch(
    engine: Engine, context: Path, tmp_path: Path
) -> None:
    first = build(engine, context)
    change(context)
    (context / "folder2" / "file9").unlink()
    (context / "folder2" / "new").write_text("new")
    (context / "folder1" / "file1").chmod(0o600)
    second = build(engine, context)
    one, two = on_disk(engine, first), on_disk(engine, second)
    shared = {path for path in two if path in one and one[path].st_ino == two[path].st_ino}
    changed = {f"files/folder{each}" for each in ("3/file3", "1/file1", "2/new")}
    assert shared == two.keys() - changed
    again = build(engine, context, no_cache=True)
    assert layer(engine, again) == layer(engine, second)
    with Engine(tmp_path / "other") as other:
        other.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        third = build(other, context)
        assert layer(other, third) == layer(engine, second)
        assert listing(other, third) == listing(engine, second)
        assert all(status.st_nlink == 1 for status in on_disk(other, third).values())
        other.shutdown_keeper()
    delete(tmp_path / "other")


def test_verifying_finds_the_same_with_links_and_without(engine: Engine, context: Path) -> None:
    build(engine, context)
    change(context)
    options = {"build_args": {"SOURCE_DATE_EPOCH": "1600000000"}}
    image = build(engine, context, **options)
    again = BuildOptions(network_mode="none", **options)  # type: ignore[arg-type]
    assert engine.builds.verify(again, context, image) == ""


def test_times_are_as_the_source_date_epoch_says(engine: Engine, context: Path) -> None:
    options = {"build_args": {"SOURCE_DATE_EPOCH": "1600000000"}}
    first = build(engine, context, **options)
    change(context)
    second = build(engine, context, **options)
    one, two = on_disk(engine, first), on_disk(engine, second)
    assert one["files/large"].st_ino == two["files/large"].st_ino
    assert {status.st_mtime for status in two.values()} == {1600000000}
    # Without the date the files are not the same any more.
    third = build(engine, context)
    assert on_disk(engine, third)["files/large"].st_mtime > 1600000000
    assert {status.st_mtime for status in on_disk(engine, second).values()} == {1600000000}


def test_an_image_outlives_the_one_that_its_files_are_linked_from(
    engine: Engine, context: Path
) -> None:
    first = build(engine, context)
    change(context)
    second = build(engine, context)
    before = listing(engine, second)
    engine.images.remove(first, force=True)
    engine.builds.records.prune(everything=True)
    with pytest.raises(NotFound):
        engine.images.inspect(first)
    assert listing(engine, second) == before
    found = engine.run(second, ["cat", "/files/folder3/file3", "/files/folder4/file4"])
    assert found.stdout == b"changed" + b"content 4\n" * 4
    assert {status.st_nlink for status in on_disk(engine, second).values()} == {1}


def test_no_container_changes_another_image(engine: Engine, context: Path) -> None:
    first = build(engine, context)
    change(context)
    second = build(engine, context)
    before = listing(engine, first), listing(engine, second)
    script = (
        "cd /files && echo more >> folder4/file4 && chmod 777 folder5/file5 && chown 3:4 large && "
        "touch -t 200001010000 folder6/file6 && rm folder0/file7 && mv folder1/file8 moved && "
        "ln folder2/file2 hard && echo x > folder2/file2 && : > folder3/file10"
    )
    for image in (first, second):
        done = engine.run(image, ["sh", "-c", script])
        assert (done.exit_code, done.stderr) == (0, b"")
    (context / "Dockerfile").write_text(DOCKERFILE + f"RUN {script}\n")
    build(engine, context)
    assert (listing(engine, first), listing(engine, second)) == before


def test_sizes_count_each_image_as_if_it_were_alone(engine: Engine, context: Path) -> None:
    first = build(engine, context)
    size = engine.images.inspect(first)["Size"]
    change(context, "content 3\n" * 3)  # as long as it was
    os.utime(context / "folder3" / "file3", (1, 1))
    (context / "folder4" / "file4").write_text("another 4\n" * 4)
    second = build(engine, context)
    assert layer(engine, second) != layer(engine, first)
    assert engine.images.inspect(second)["Size"] == size


def test_a_build_that_is_killed_leaves_nothing_broken(
    root: Path, busybox: Path, context: Path
) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        first = build(engine, context)
        before = listing(engine, first)
        engine.shutdown_keeper()
    change(context)
    pid = os.fork()
    if pid == 0:
        links = 0
        link = os.link

        def deadly(*arguments: Any, **keywords: Any) -> None:
            nonlocal links
            links += 1
            if links == 30:
                os.kill(os.getpid(), signal.SIGKILL)
            link(*arguments, **keywords)

        try:
            os.link = deadly
            build(Engine(root), context)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    with Engine(root) as engine:
        assert listing(engine, first) == before
        assert {status.st_nlink for status in on_disk(engine, first).values()} == {1}
        second = build(engine, context)
        again = build(engine, context, no_cache=True)
        assert layer(engine, second) == layer(engine, again)
        engine.shutdown_keeper()
