"""``tiffin image pack``: an image made of programs of the host, with all that they need.

What comes along: each program with the symlinks that lead to it, its shared libraries and their
loader; a script's interpreter; Python's and Perl's standard libraries, a C compiler's parts; always
a shell, accounts, name service, certificates and (unless refused) time zones.

Packing the same host twice gives the same bytes: all belongs to root, has one moment
(SOURCE_DATE_EPOCH, else 1970) and comes in the order of the paths.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from tiffin.errors import InvalidParameter, NotFound, TiffinError
from tiffin.image.pack_programs import SEARCH_PATH, Packer
from tiffin.image.rootfs import Rootfs, Source
from tiffin.layer.entry import Entry, Kind

__all__ = ["Packed", "pack", "write_tar"]

_CHUNK = 1 << 20
_SECOND = 1_000_000_000
_MERGED = ("/bin", "/sbin", "/lib", "/lib64")
_ZONES = "/usr/share/zoneinfo"
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_OPENSSL = ("/usr/lib/ssl", "/etc/pki/tls", "/etc/ssl", "/usr/lib64/ssl")

_PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP = b"""\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
staff:x:50:
users:x:100:
nogroup:x:65534:
"""
_NSSWITCH = b"""\
passwd:   files
group:    files
shadow:   files
hosts:    files dns
networks: files
services: files
"""
_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@dataclass(frozen=True)
class Packed:
    """A root file system, not yet written anywhere."""

    entries: list[tuple[Entry, Source]]
    """Sorted by path, so a directory comes before what is in it; the root itself is left out.
    Contents are not hashed yet."""
    changes: list[str]
    """Instructions for the image's config, as ``import --change`` takes them."""
    warnings: list[str] = field(default_factory=list)
    """What will be missing when somebody looks for it."""

    def __iter__(self) -> Iterator[tuple[Entry, Source]]:
        return iter(self.entries)

    @property
    def size(self) -> int:
        """Bytes of all contents."""
        return sum(entry.size for entry, _ in self.entries)


def pack(
    programs: Iterable[str],
    *,
    with_files: Iterable[str] = (),
    timezones: bool = True,
    certificates: bool = True,
    epoch: int | None = None,
) -> Packed:
    """Puts a root file system together that these programs of the host run in.

    ``programs`` are names, looked for in the system's directories first and then in PATH, or
    absolute paths; ``with_files`` are files and directories to add, with the libraries that ELF
    files among them need; ``epoch`` is the moment of all files in seconds since 1970
    (SOURCE_DATE_EPOCH or 0, if None). Raises NotFound naming what the host lacks.
    """
    rootfs = Rootfs((_epoch() if epoch is None else epoch) * _SECOND)
    for path in _MERGED:
        if os.path.islink(path):
            rootfs.add(path)
    packer = Packer(rootfs)
    for program in programs:
        packer.add_program(program)
    for path in with_files:
        if not path.startswith("/"):
            path = os.path.abspath(path)
        rootfs.add_tree(path)
    packer.add_shell()
    packer.add_libraries()
    _add_base(rootfs)
    if certificates:
        _add_certificates(rootfs)
    if timezones and os.path.isdir(_ZONES):
        # The trees under posix and right are the zones again; localtime is the host's own.
        own = {f"{_ZONES}/{name}" for name in ("posix", "right", "localtime")}
        rootfs.add_tree(_ZONES, own.__contains__)
    environment = [f"PATH={':'.join(SEARCH_PATH)}", *packer.environment]
    changes = [f"ENV {item}" for item in environment] + [f"CMD {json.dumps(['/bin/sh'])}"]
    return Packed(rootfs.entries(), changes, packer.warnings)


def write_tar(packed: Packed, output: BinaryIO) -> None:
    """Writes the root file system as a tar; the same files give the same bytes.

    Raises TiffinError naming the file if one has changed since it was packed, or can't be read.
    """
    for entry, source in packed:
        info = _header(entry)
        if isinstance(source, str):
            _write_host_file(info, source, output)
        else:
            _put(output, info.tobuf(tarfile.PAX_FORMAT) + (source or b""))
            _put(output, bytes(-len(source or b"") % tarfile.BLOCKSIZE))
    _put(output, bytes(2 * tarfile.BLOCKSIZE))
    output.flush()


def _write_host_file(info: tarfile.TarInfo, path: str, output: BinaryIO) -> None:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != info.size:
                raise TiffinError(f"{path} has changed while it was being packed: pack again")
            _put(output, info.tobuf(tarfile.PAX_FORMAT))
            left = info.size
            while left:
                data = file.read(min(_CHUNK, left))
                if not data:
                    raise TiffinError(f"{path} has changed while it was being packed: pack again")
                _put(output, data)
                left -= len(data)
    except (PermissionError, FileNotFoundError) as error:
        raise NotFound(f"{path} can't be packed: {error.strerror}") from error
    _put(output, bytes(-info.size % tarfile.BLOCKSIZE))


def _header(entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(os.fsdecode(entry.path))
    info.mode = entry.mode
    info.uid, info.gid = entry.uid, entry.gid
    seconds, fraction = divmod(entry.mtime_ns, _SECOND)
    info.mtime = seconds
    assert not fraction
    match entry.kind:
        case Kind.DIRECTORY:
            info.type = tarfile.DIRTYPE
        case Kind.SYMLINK | Kind.HARDLINK:
            info.type = tarfile.SYMTYPE if entry.kind is Kind.SYMLINK else tarfile.LNKTYPE
            info.linkname = os.fsdecode(entry.target)
        case _:
            info.size = entry.size
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
        for name, value in (entry.xattrs or {}).items()
    }
    return info


def _put(output: BinaryIO, data: bytes) -> None:
    # A pipe or a socket without a buffer may take a part only.
    view = memoryview(data)
    while view:
        view = view[output.write(view) :]


def _epoch() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not (text.isascii() and text.isdigit()):
        raise InvalidParameter(f"SOURCE_DATE_EPOCH must be a number of seconds, not {text!r}")
    return int(text)


def _add_base(rootfs: Rootfs) -> None:
    """The directories and the files under ``/etc`` that programs expect anywhere."""
    for path in (*SEARCH_PATH, "/etc", "/home"):
        rootfs.ensure_directory(path)
    for path in ("/dev", "/proc", "/run", "/sys"):
        rootfs.make_directory(path, 0o755)
    rootfs.make_directory("/root", 0o700)
    rootfs.make_directory("/tmp", 0o1777)
    rootfs.make_directory("/var/tmp", 0o1777)
    rootfs.make_file("/etc/passwd", _PASSWD)
    rootfs.make_file("/etc/group", _GROUP)
    rootfs.make_file("/etc/nsswitch.conf", _NSSWITCH)
    rootfs.make_file("/etc/hosts", _HOSTS)
    if os.path.isfile("/etc/os-release"):
        rootfs.add("/etc/os-release")


def _add_certificates(rootfs: Rootfs) -> None:
    """The host's bundle, where it is there and where OpenSSL looks for it."""
    bundle = next(filter(os.path.isfile, _BUNDLES), None)
    if bundle is None:
        return
    rootfs.add(bundle)
    for directory in filter(os.path.isdir, _OPENSSL):
        for name in ("certs", "openssl.cnf"):
            if os.path.exists(f"{directory}/{name}"):
                rootfs.add(f"{directory}/{name}")
        if os.path.isfile(f"{directory}/cert.pem"):
            rootfs.add(f"{directory}/cert.pem")
        else:
            rootfs.make_symlink(f"{directory}/cert.pem", bundle)
