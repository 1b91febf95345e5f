"""Bodies that the daemon reads in place instead of over the socket (tiffin's own side door).

Why: ``tiffin build .``, ``load -i`` and ``import`` name a folder or file that the daemon can
usually read itself. Sending it would mean making a tar of it, copying each byte through a socket
and unpacking it again, only to read what already lies on the same disk. So the client sends, in
place of the body, the header ``X-Tiffin-Source: {"path": …, "dev": …, "ino": …}``.

The device and inode numbers prove that client and daemon mean the same file: a client in another
mount namespace, or on another machine behind a forwarded socket, gets ``Conflict`` (409) and sends
the body after all. The header gives no new right: who may use the socket is root already.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from tiffin.api import documents
from tiffin.api.exchange import Request
from tiffin.errors import Conflict, InvalidParameter

HEADER = "x-tiffin-source"


class _Source(msgspec.Struct):
    path: str
    dev: int
    ino: int


def source(request: Request, *, folders: bool = False) -> Path | None:
    """The file (or folder, if ``folders``) to read in place of the body; None without the header.

    Raises InvalidParameter for a malformed header, Conflict if the path is not what the client
    sees there.
    """
    header = request.headers.get(HEADER)
    if header is None:
        return None
    # Header values are bytes, and a path may hold any byte but 0: JSON brings it as UTF-8.
    wanted: _Source = documents.decode(header.encode("latin-1"), f"the header {HEADER}", _Source)
    if not wanted.path.startswith("/") or "\0" in wanted.path:
        raise InvalidParameter(f"malformed {HEADER} header: {wanted.path!r} is not absolute")
    try:
        status = os.stat(wanted.path)
    except OSError as error:
        raise Conflict(f"the daemon cannot read {wanted.path}: {error.strerror}") from None
    if (status.st_dev, status.st_ino) != (wanted.dev, wanted.ino):
        raise Conflict(f"{wanted.path} is another file to the daemon: send its content instead")
    kinds = (stat.S_ISREG, stat.S_ISDIR) if folders else (stat.S_ISREG,)
    if not any(kind(status.st_mode) for kind in kinds):
        raise Conflict(f"{wanted.path} cannot be read in place: send its content instead")
    return Path(wanted.path)
