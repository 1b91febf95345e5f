"""The keeper's program: ``python -I -S …/tiffin/keeper/__main__.py ROOT [IDLE [READY_FD]]``.

IDLE is how many seconds it stays without containers and connections. It goes into the background;
``ok``, ``busy`` (another keeper has the root), or what went wrong is written to READY_FD.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> None:
    """Become the keeper of a root."""
    root = os.path.abspath(arguments[0])
    idle = float(arguments[1]) if len(arguments) > 1 else 10.0
    ready = int(arguments[2]) if len(arguments) > 2 else 1
    # Libraries of whoever starts this may have sockets that are inherited (libnftables has): they
    # would hold containers' networks.
    os.closerange(max(3, ready + 1), 1 << 20)
    if os.fork():
        os._exit(0)
    # The first folder of the path would be this file's own, which hides the standard library's
    # modules behind the keeper's.
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(0, os.path.dirname(package))
    from tiffin.keeper.process import become_keeper

    become_keeper(root, idle, ready)


if __name__ == "__main__":
    main(sys.argv[1:])
