"""Tars made for tests, layers unpacked from them, and trees told as plain data."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

from tiffin.layer.assemble import write_tar
from tiffin.layer.lower import Lower
from tiffin.layer.unpack import Unpacked, unpack
from tiffin.storage.driver import Whiteouts


class Layer:
    """A tar unpacked, and checked to come back byte for byte."""

    def __init__(
        self,
        home: Path,
        tar: bytes,
        whiteouts: Whiteouts = Whiteouts.OVERLAY,
        lower: Lower | None = None,
    ) -> None:
        self.directory = home / "own"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        self.stash = home / "stash"
        self.whiteouts = whiteouts
        self.unpacked: Unpacked = unpack(
            io.BytesIO(tar), self.directory, whiteouts, lower=lower, stash=self.stash
        )
        self.index = self.unpacked.index
        assert self.index.diff_id == "sha256:" + hashlib.sha256(tar).hexdigest()
        assert self.tar() == tar

    def tar(self) -> bytes:
        output = io.BytesIO()
        write_tar(self.index, self.directory, self.stash, output)
        return output.getvalue()

    def tree(self) -> dict[bytes, tuple[object, ...]]:
        return tree(self.directory)


def tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below ``root``: type, mode, owner, time, content or target, attributes, and which
    paths are the same file."""
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[int, bytes] = {}
    top = os.fsencode(root)
    for directory, folders, files in os.walk(top):
        for name in sorted(folders) + sorted(files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = status.st_rdev
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            relative = os.path.relpath(path, top)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            found[relative] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                content,
                xattrs,
            )
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                known = first.setdefault(status.st_ino, relative)
                found[relative] += (min(known, relative),)
    return found


def make_tar(
    *members: tuple[str, str, object], form: int = tarfile.PAX_FORMAT, **common: object
) -> bytes:
    """A tar of (name, kind, content): ``f`` bytes, ``d``, ``l`` and ``h`` targets, ``c`` numbers,
    ``p``."""
    kinds = {
        "f": tarfile.REGTYPE,
        "d": tarfile.DIRTYPE,
        "l": tarfile.SYMTYPE,
        "h": tarfile.LNKTYPE,
        "c": tarfile.CHRTYPE,
        "p": tarfile.FIFOTYPE,
    }
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kinds[kind]
            info.mode = 0o755 if kind == "d" else 0o644
            info.mtime = 1_500_000_000
            for key, value in common.items():
                setattr(info, key, value)
            data = b""
            if kind == "f":
                data = content if isinstance(content, bytes) else str(content).encode()
                info.size = len(data)
            elif kind in "lh":
                info.linkname = str(content)
            elif kind == "c":
                assert isinstance(content, tuple)
                info.devmajor, info.devminor = content
            tar.addfile(info, io.BytesIO(data))
    return output.getvalue()
