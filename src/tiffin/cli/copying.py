"""``cp``: files between a container and this machine, as tar streams.

Where things land follows docker's rules, which are those of cp(1) but for two: ``SRC/.`` means the
contents of a folder, and a destination that does not exist becomes the copy of a folder, never a
parent of it.
"""

from __future__ import annotations

import errno
import os

from tiffin.cli.command import Command, CommandError, Invocation, report
from tiffin.cli.flags import BOOL, Flag
from tiffin.cli.terminal import is_terminal
from tiffin.client.connection import DaemonError, escape
from tiffin.client.sources import piped
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from collections.abc import Callable
    from typing import Any, BinaryIO

    from tiffin.client.connection import Client

_ATTRIBUTE = "SCHILY.xattr."
_CAPABILITY = "security.capability"
_GO_DIRECTORY = 1 << 31
_GO_SYMLINK = 1 << 27
_HOPS = 40
"""Symlinks that are followed before it counts as a loop, as the kernel does."""


def split(argument: str) -> tuple[str, str]:
    """Container and path of ``CONTAINER:PATH``; the container is empty for a path of here."""
    container, colon, path = argument.partition(":")
    if not colon or os.path.isabs(argument) or container.startswith("."):
        return "", argument
    return container, path


def copy(call: Invocation) -> int:
    """Copies to or from a container."""
    source_container, source = split(call.arguments[0])
    container, target = split(call.arguments[1])
    if source_container and container:
        raise CommandError("copying between containers is not supported")
    if source_container:
        size = _from_container(call, source_container, source, target)
        where = target if target == "-" else os.path.abspath(target)
    elif container:
        size = _to_container(call, source, container, target)
        where = f"{container}:{target}"
    else:
        raise CommandError("must specify at least one container source")
    if not call.options["quiet"] and where != "-" and is_terminal(2):
        report(f"Successfully copied {human_size(size, 3)} to {where}")
    return 0


def stat(client: Client, container: str, path: str) -> dict[str, Any] | None:
    """What lies at a path in a container (name, size, mode, linkTarget); None for nothing."""
    from base64 import b64decode
    from json import loads

    try:
        response = client.call("HEAD", f"/containers/{escape(container)}/archive", {"path": path})
    except DaemonError as error:
        if error.http_status != 404:
            raise
        return None
    response.read()
    found: dict[str, Any] = loads(b64decode(response.headers["x-docker-container-path-stat"]))
    return found


def _followed(client: Client, container: str, path: str) -> tuple[str, dict[str, Any] | None]:
    """A path in a container with the symlink at its end followed, and what lies there."""
    found = stat(client, container, path)
    for _ in range(_HOPS):
        if found is None or not found["mode"] & _GO_SYMLINK:
            return path, found
        path = os.path.join(os.path.dirname(path.rstrip("/")), found["linkTarget"])
        found = stat(client, container, path)
    raise CommandError(f"{container}:{path}: too many symbolic links")


def _is_contents(path: str) -> bool:
    """Whether a source means the contents of a folder rather than the folder."""
    return path == "." or path.endswith("/.")


def _from_container(call: Invocation, container: str, source: str, target: str) -> int:
    client = call.client
    link_name = ""
    if call.options["follow-link"]:
        followed, found = _followed(client, container, source)
        if found is not None and followed != source:
            # What the link leads to is copied under the link's name.
            link_name = os.path.basename(source.rstrip("/"))
            source = followed
    response = client.call("GET", f"/containers/{escape(container)}/archive", {"path": source})
    if target == "-":
        if is_terminal(1):
            raise CommandError("cowardly refusing to write a tar to a terminal; redirect stdout")
        return response.copy_to(1)
    from base64 import b64decode
    from json import loads

    found = loads(b64decode(response.headers["x-docker-container-path-stat"]))
    folder = bool(found["mode"] & _GO_DIRECTORY)
    base = _landing(target, folder, _is_contents(source), link_name or found["name"])
    reader = _Reader(iter(response.parts()))
    # The tar of a whole root file system has no common root: "/" is no name.
    strip = 0 if found["name"].strip("/") == "" and not _is_contents(source) else 1
    _unpack(reader, base, strip, owners=call.options["archive"])
    return reader.size


def _landing(target: str, folder: bool, contents: bool, name: str) -> str:
    """The path on this machine that the root of a copied tree gets."""
    path = os.path.abspath(target)
    if os.path.isdir(path):
        return path if contents else os.path.join(path, name.strip("/"))
    if os.path.lexists(path):
        if folder:
            raise CommandError("cannot copy directory")
        if target.endswith("/"):
            raise CommandError("not a directory")
        return path
    if not os.path.isdir(os.path.dirname(path)):
        raise CommandError(
            f'invalid output path: directory "{os.path.dirname(path)}" does not exist'
        )
    if not folder and target.endswith("/"):
        raise CommandError("no such directory")
    return path


class _Reader:
    """The parts of an answer as a file to read."""

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self._rest = b""
        self.size = 0

    def read(self, size: int) -> bytes:
        out = [self._rest[:size]]
        have = len(out[0])
        self._rest = self._rest[size:]
        while have < size:
            part = next(self._parts, None)
            if part is None:
                break
            data = bytes(part)
            out.append(data[: size - have])
            have += len(out[-1])
            self._rest = data[len(out[-1]) :]
        self.size += have
        return b"".join(out)


def _unpack(reader: _Reader, base: str, strip: int, *, owners: bool) -> None:
    """Unpacks a tar below ``base``, without the first ``strip`` parts of each name."""
    import tarfile

    folders: list[tuple[str, tarfile.TarInfo]] = []
    checked: set[str] = set()
    with tarfile.open(fileobj=reader, mode="r|") as tar:  # type: ignore[call-overload]
        for entry in tar:
            path = _below(base, entry.name, strip)
            _check_parents(base, path, checked)
            _place(tar, entry, path, lambda name: _below(base, name, strip))
            if entry.isdir():
                folders.append((path, entry))
                checked.discard(path)
            if owners:
                os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
            if not entry.issym() and not entry.islnk():
                os.chmod(path, entry.mode)
                _keep_attributes(entry, path)
            if not entry.isdir() and not entry.islnk():
                os.utime(path, (entry.mtime, entry.mtime), follow_symlinks=False)
        # The archive's end: what follows the last entry is read too, so that the answer is whole.
        while reader.read(1 << 16):
            continue
    for path, entry in reversed(folders):
        os.utime(path, (entry.mtime, entry.mtime))


def _keep_attributes(entry: tarfile.TarInfo, path: str) -> None:
    """Gives a file its extended attributes, after its owner, who would take them away."""
    for key, value in entry.pax_headers.items():
        if key.startswith(_ATTRIBUTE):
            raw = value.encode("utf-8", "surrogateescape")
            try:
                os.setxattr(path, key.removeprefix(_ATTRIBUTE), raw)
            except OSError as error:
                # Whoever may not give them, or can't keep them here, gets the file without, as
                # from docker.
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise


def _below(base: str, name: str, strip: int) -> str:
    """Where an entry lands: the first parts of its name are replaced by ``base``."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.lstrip("/").startswith("./") or name == ".":
        parts.insert(0, ".")
    if ".." in parts:
        raise CommandError(f"the archive has an entry that would leave its folder: {name}")
    return os.path.join(base, *parts[strip:])


def _check_parents(base: str, path: str, checked: set[str]) -> None:
    """Refuses an entry whose parent is a symlink: it would be written somewhere else."""
    parent = os.path.dirname(path)
    while len(parent) > len(base) and parent not in checked:
        if os.path.islink(parent):
            raise CommandError(f"the archive has an entry below a symbolic link: {path}")
        checked.add(parent)
        parent = os.path.dirname(parent)


def _place(
    tar: tarfile.TarFile, entry: tarfile.TarInfo, path: str, landing: Callable[[str], str]
) -> None:
    if entry.isdir():
        if os.path.islink(path) or (os.path.lexists(path) and not os.path.isdir(path)):
            raise CommandError(f"cannot overwrite non-directory {path} with directory")
        os.makedirs(path, exist_ok=True)
        return
    if os.path.isdir(path) and not os.path.islink(path):
        raise CommandError(f"cannot overwrite directory {path} with non-directory")
    if os.path.lexists(path):
        os.unlink(path)
    if entry.issym():
        os.symlink(entry.linkname, path)
    elif entry.islnk():
        os.link(landing(entry.linkname), path, follow_symlinks=False)
    elif entry.isreg():
        tar.makefile(entry, path)
    elif entry.isfifo():
        os.mkfifo(path)
    elif entry.ischr() or entry.isblk():
        tar.makedev(entry, path)
    else:
        raise CommandError(f"the archive has an entry of an unknown type: {entry.name}")


def _to_container(call: Invocation, source: str, container: str, target: str) -> int:
    client, options = call.client, call.options
    if not target:
        raise CommandError("no such directory")
    path, found = _followed(client, container, target)
    folder = found is not None and bool(found["mode"] & _GO_DIRECTORY)
    query: dict[str, Any] = {
        "path": path,
        "noOverwriteDirNonDir": "true",
        "copyUIDGID": "true" if options["archive"] else None,
    }
    where = f"/containers/{escape(container)}/archive"
    if source == "-":
        if not folder:
            raise CommandError(f'destination "{container}:{target}" must be a directory')
        client.upload("PUT", where, query, 0).read()
        return 0
    plain = source.rstrip("/") or "/"
    if not os.path.lexists(plain):
        raise CommandError(f"lstat {os.path.abspath(source)}: no such file or directory")
    follow = options["follow-link"] or source.endswith(("/", "/."))
    is_folder = os.path.isdir(plain) and (follow or not os.path.islink(plain))
    if source.endswith(("/", "/.")) and not os.path.isdir(plain):
        raise CommandError("not a directory")
    if folder:
        name = "." if _is_contents(source) else os.path.basename(os.path.abspath(plain))
    else:
        if found is not None and is_folder:
            raise CommandError("cannot copy directory")
        if not is_folder and path.endswith("/"):
            raise CommandError("no such directory")
        query["path"] = os.path.dirname(path.rstrip("/")) or "/"
        name = os.path.basename(path.rstrip("/"))
    if follow or is_folder:
        plain = os.path.realpath(plain)
    size = 0

    def write(sink: BinaryIO) -> None:
        nonlocal size
        size = _pack(sink, plain, name)

    client.upload("PUT", where, query, piped(write)).read()
    return size


def _pack(sink: BinaryIO, path: str, name: str) -> int:
    """Writes a file or tree as a tar with ``name`` as its root; returns the size of the tar."""
    import tarfile

    class Packer(tarfile.TarFile):
        """Takes along what a program may do without being root; docker takes no more either."""

        def gettarinfo(self, name: Any = None, arcname: Any = None, fileobj: Any = None) -> Any:
            info = super().gettarinfo(name, arcname, fileobj)
            if info is not None and info.isreg():
                try:
                    value = os.getxattr(name, _CAPABILITY, follow_symlinks=False)
                except OSError as error:
                    if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                        raise
                else:
                    text = value.decode("utf-8", "surrogateescape")
                    info.pax_headers = {f"{_ATTRIBUTE}{_CAPABILITY}": text}
            return info

    with Packer.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.add(path, name)
        return int(tar.offset)


CP = Command(
    copy,
    "Copy files between a container and this machine",
    "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n"
    "        tiffin cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
    (
        Flag("archive", BOOL, "Keep the owners of files", short="a"),
        Flag("follow-link", BOOL, "Copy what a symbolic link at SRC_PATH leads to", short="L"),
        Flag("quiet", BOOL, "Do not say what was copied", short="q"),
    ),
    minimum=2,
    maximum=2,
    notes=(
        "With '-' as the source, a tar is read from stdin and unpacked into a folder of the\n"
        "container; with '-' as the destination, a tar is written to stdout."
    ),
)
