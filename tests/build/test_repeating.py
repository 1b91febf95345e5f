"""The same inputs give the same image: with another driver, on another day, in another order."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import busybox_tar, kill_keeper
from tiffin.engine import Engine
from tiffin.engine.builds import BuildOptions
from tiffin.image.reference import Reference

pytestmark = pytest.mark.root

EPOCH = "1600000000"
DOCKERFILE = """\
FROM busybox AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/x mkdir -p /out/deep && \\
    for name in b a c; do echo $name > /out/$name; done && cp a.txt /out/deep/ && \\
    touch /bin/new && rm /home -r && chmod 700 /tmp && mkdir /src/dir/more
RUN echo again >> /out/a && ln -s a /out/link && ln /out/a /out/hard
FROM busybox
COPY --from=build --chown=1000:1000 /out /app
COPY <<EOF /etc/app.conf
made=in place
EOF
ADD archive.tar /archive
RUN mkdir /var/log && echo x > /var/log/x
ENV A=b
"""


@contextmanager
def opened(root: Path, driver: str) -> Iterator[Engine]:
    try:
        with Engine(root, storage_driver=driver) as engine:
            yield engine
            engine.shutdown_keeper()
    finally:
        kill_keeper(root)
        shutil.rmtree(root, ignore_errors=True)


def context(folder: Path, names: list[str], moment: int) -> Path:
    """A context whose files are made in this order, at this moment."""
    folder.mkdir(parents=True)
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"content of {name}\n")
        path.chmod(0o644)
    inside = folder / "inside"
    inside.write_text("in the archive\n")
    os.utime(inside, (moment, moment))
    subprocess.run(
        ["tar", "-C", folder, "--mtime=@1700000000", "-cf", folder / "archive.tar", "inside"],
        check=True,
    )
    (folder / "Dockerfile").write_text(DOCKERFILE)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (moment, moment))
    return folder


def test_the_same_inputs_give_the_same_image(tmp_path: Path, busybox: Path) -> None:
    names = ["a.txt", "dir/b.txt", "dir/c.txt", "z.txt"]
    base = busybox_tar()
    images: list[str] = []
    first: list[str] = []
    for number, (driver, order, moment) in enumerate(
        [("overlay2", names, 1_700_000_000), ("vfs", names[::-1], 1_750_000_000)]
    ):
        place = context(tmp_path / f"place{number}" / "here", order, moment)
        with opened(tmp_path / f"root{number}", driver) as engine:
            engine.images.import_(io.BytesIO(base), "busybox")
            imported = engine.images.find("busybox")
            # An import is dated; the same base on both sides is not.
            base_config = imported.config.with_created(0).with_field(
                "history", [{"created_by": "import"}]
            )
            name = Reference.parse("busybox").with_default_tag()
            top = engine.images.add(base_config, imported.top, [name]).top
            for turn in range(2):
                options = BuildOptions(build_args={"SOURCE_DATE_EPOCH": EPOCH}, no_cache=bool(turn))
                image = engine.builds.build(options, place)
                images.append(image)
            layers = list(engine.images.find(image).config.diff_ids)
            if first:
                for position, (mine, theirs) in enumerate(zip(first, layers, strict=True)):
                    assert mine == theirs, (
                        f"layer {position}: "
                        f"{engine.images.find(image).config.history[position].created_by}"
                    )
            first = layers
            store = engine._layers
            for layer in store.chain(engine.images.find(image).top)[len(store.chain(top)) :]:
                for entry in store.index(layer).entries:
                    assert entry.mtime_ns <= int(EPOCH) * 10**9, entry
    assert len(set(images)) == 1
