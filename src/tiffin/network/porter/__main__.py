"""The porter's program: ``python -I -S …/tiffin/network/porter/__main__.py ROOT READY_FD``.

It goes into the background; ``ok``, ``busy`` (another porter has the root) or what went wrong is
written to READY_FD.
"""

from __future__ import annotations

import os
import sys

_PATIENCE = 10.0


def main(root: str, ready: int) -> None:
    """Become the porter of a root."""
    # The daemon's libnftables has sockets that are inherited: they would hold containers' networks.
    os.closerange(max(3, ready + 1), 1 << 20)
    if os.fork():
        os._exit(0)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # The first folder of the path would be this file's own.
    sys.path[0] = os.path.dirname(package)
    import fcntl
    import resource

    from tiffin.network.porter.server import Server

    os.chdir("/")
    directory = f"{root}/network"
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lock = os.open(f"{directory}/porter.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(ready, b"busy")
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def tell() -> None:
        os.write(ready, b"ok")
        os.close(ready)

    try:
        Server(f"{directory}/porter.sock").run(tell, _PATIENCE)
    except OSError as error:
        print(f"the porter of {root} cannot go on: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), int(sys.argv[2]))
