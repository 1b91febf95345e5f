"""What is put into the engines: images, archives and build contexts, all made on this machine.

They are made once and kept in a folder, since the Debian root takes minutes; each is a method that
makes what is missing and returns its path.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from benchmark import packed

BUSYBOX = Path("/bin/busybox")
APPLETS = "cat cp dd echo httpd ls mkdir nslookup rm sh sleep tar touch true wget".split()
SMALL_FILES = 20_000
LARGE_FILE = 1 << 30
SUITE = "bookworm"
PACKAGES = "python3,make,gcc,libc6-dev"

DOCKERFILE = """\
FROM ubuntu:18.04
COPY . /app
RUN make /app
CMD python /app/app.py
"""

TWELVE = """\
FROM busybox
ENV LANG=C.UTF-8
ARG VERSION=1
LABEL version=$VERSION
WORKDIR /app
COPY setup /app/
RUN sh /app/setup
COPY . /app
RUN echo $VERSION > /app/version
RUN mkdir /app/data && touch /app/data/empty
EXPOSE 8080
CMD ["sleep", "600"]
"""

COPY_ALL = """\
FROM busybox
COPY . /files
CMD ["sleep", "600"]
"""

# Some 1.3 s of one core in each stage, and files to write.
_WORK = (
    "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; "
    "mkdir /out && dd if=/dev/zero of=/out/{0} bs=1M count=20"
)
TWO_STAGES = f"""\
FROM busybox AS first
RUN {_WORK.format("first")}
RUN echo done > /out/first.done

FROM busybox AS second
RUN {_WORK.format("second")}
RUN echo done > /out/second.done

FROM busybox
COPY --from=first /out /first
COPY --from=second /out /second
"""


class Materials:
    """The folder with everything that is put in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file ``name``; ``make`` writes it under another name first."""
        path = self._folder / name
        if not path.exists():
            unfinished = path.with_name(f".{path.name}")
            make(unfinished)
            unfinished.rename(path)
        return path

    def busybox(self) -> Path:
        """A tar of one static busybox with links to it."""
        return self._made("busybox-2.tar", _busybox)

    def debian(self) -> Path:
        """A tar of a small Debian with Python, make and gcc."""

        def make(target: Path) -> None:
            root = self._folder / "debian"
            if not (root / "usr/bin/gcc").exists():
                _checked("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, root)
            without = ("./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*", "./dev/*")
            excluded = [f"--exclude={pattern}" for pattern in without]
            options = ("--sort=name", "--numeric-owner", "--xattrs", *excluded)
            _checked("tar", "-C", root, *options, "-cf", target, ".")

        return self._made("debian.tar", make)

    def archive(self) -> Path:
        """The same as an archive of ``docker save``'s old form, uncompressed, as ``archived:1``.

        Written here and not by an engine, so that it is nobody's own.
        """
        return self._made("archive.tar", lambda target: _archive(self.debian(), target))

    def packed(self, layers: int) -> Path:
        """An OCI layout of an image of the Debian root, in so many layers."""
        return self._made(
            f"packed-{layers}",
            lambda target: packed.layout(target, packed.parts_of(self.debian(), layers)),
        )

    def packed_large(self) -> Path:
        """An OCI layout of an image with a layer of 4 GiB, which packs to about an eighth."""
        return self._made(
            "packed-large", lambda target: packed.layout(target, [packed.large], level=1)
        )

    def files(self) -> Path:
        """A folder to mount into containers: one large file, and a tar of many small ones."""
        folder = self._folder / "files"
        folder.mkdir(exist_ok=True)
        self._made("files/large", _large)
        self._made("files/small.tar", _small)
        return folder

    def lines(self) -> Path:
        """A file of 1 GiB, in lines of 100 bytes."""
        return self._made("lines", _lines)

    def application(self) -> Path:
        """The build context of the Dockerfile that the README starts with."""
        folder = self._folder / "application"
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text(DOCKERFILE)
        (folder / "app.py").write_text('print("hello")\n')
        return folder

    def steps(self) -> Path:
        """The build context of a Dockerfile of twelve steps: a few dozen files."""

        def make(target: Path) -> None:
            for number in range(40):
                folder = target / f"package{number // 10}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"module{number}.py").write_text(f"number = {number}\n" * 50)
            (target / "setup").write_text("echo made > /made\n")

        context = self._made("steps", make)
        (context / "Dockerfile").write_text(TWELVE)
        return context

    def two_stages(self) -> Path:
        """A build context of a Dockerfile alone, whose stages have work to do."""
        folder = self._folder / "two-stages"
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text(TWO_STAGES)
        return folder

    def many(self, dockerfile: str = COPY_ALL) -> Path:
        """A build context of 20,000 small files in a hundred folders."""

        def make(target: Path) -> None:
            target.mkdir()
            _checked("tar", "-C", target, "-xf", self.files() / "small.tar")

        context = self._made("many", make)
        (context / "Dockerfile").write_text(dockerfile)
        return context

    def one_large(self) -> Path:
        """A build context of one file of 1 GiB."""
        context = self._folder / "one-large"
        context.mkdir(exist_ok=True)
        self._made("one-large/large", _large)
        (context / "Dockerfile").write_text(COPY_ALL)
        return context

    def application_tar(self) -> bytes:
        """The same context as a client sends it."""
        buffer = io.BytesIO()
        folder = self.application()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in sorted(os.listdir(folder)):
                tar.add(folder / name, name)
        return buffer.getvalue()


def _checked(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def _busybox(target: Path) -> None:
    with tarfile.open(target, "w") as tar:
        for name in ("bin", "etc", "root", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        program = tarfile.TarInfo("bin/busybox")
        content = BUSYBOX.read_bytes()
        program.size, program.mode = len(content), 0o755
        tar.addfile(program, io.BytesIO(content))
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        users = b"root:x:0:0:root:/root:/bin/sh\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(users)
        tar.addfile(passwd, io.BytesIO(users))


def _archive(layer: Path, target: Path) -> None:
    digest = hashlib.sha256()
    with layer.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2025-01-01T00:00:00Z",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]},
        "history": [{"created": "2025-01-01T00:00:00Z", "created_by": "debootstrap"}],
    }
    text = json.dumps(config).encode()
    name = hashlib.sha256(text).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": ["archived:1"], "Layers": ["layer/layer.tar"]}]
    with tarfile.open(target, "w") as tar:
        for path, data in ((name, text), ("manifest.json", json.dumps(manifest).encode())):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        tar.add(layer, "layer/layer.tar")


def _large(target: Path) -> None:
    with target.open("wb") as file:
        for _ in range(LARGE_FILE >> 20):
            file.write(os.urandom(1 << 20))


def _lines(target: Path) -> None:
    line = "a tiffin is a stack of lunch boxes, and each of them holds what has just been cooked: "
    block = b"".join(f"{line}{number:013}\n".encode() for number in range(10_000))
    with target.open("wb") as file:
        for _ in range((1 << 30) // len(block)):
            file.write(block)
        file.write(block[: (1 << 30) % len(block)])


def _small(target: Path) -> None:
    numbers = random.Random(1)
    with tarfile.open(target, "w") as tar:
        for number in range(SMALL_FILES):
            content = numbers.randbytes(numbers.randrange(3000))
            file = tarfile.TarInfo(f"folder{number // 200}/file{number}")
            file.size = len(content)
            tar.addfile(file, io.BytesIO(content))
