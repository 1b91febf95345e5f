"""The engine root: where everything lies, and the lock that makes one process its owner."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path

from tiffin.errors import Forbidden, RootInUse

DEFAULT_ROOT = "/var/lib/tiffin"
DEFAULT_SOCKET = "/run/tiffin/tiffin.sock"


class Root:
    """The folders of one engine root, owned by this process until :meth:`release`.

    ``what`` says in one line who the owner is, for whoever comes second. Raises RootInUse with the
    owner's own line, Forbidden where the folder can't be made or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, what: str) -> None:
        self.path = Path(path or os.environ.get("TIFFIN_ROOT") or DEFAULT_ROOT).absolute()
        if os.geteuid() != 0:
            raise Forbidden(
                "containers need root's rights, and this process has not got them: run it as root "
                "(sudo), or name a daemon that root runs with -H or TIFFIN_HOST"
            )
        try:
            # Closed to others: what is set-user-ID in a volume is no program for this machine's.
            self.path.mkdir(parents=True, exist_ok=True, mode=0o710)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise Forbidden(
                f"the engine root {self.path} can't be used ({error.strerror}): choose another "
                "folder with --root or TIFFIN_ROOT"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = self._owner()
            os.close(self._lock)
            raise RootInUse(
                f"the engine root {self.path} is in use by {owner}: talk to it, stop it "
                "(tiffin system shutdown), or choose another --root"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps({"pid": os.getpid(), "what": what}).encode(), 0)
        for folder in (
            self.containers,
            self.volumes,
            self.work,
            self.keeper,
            self.keeper / "rootfs",
        ):
            folder.mkdir(exist_ok=True, mode=0o710)

    def _owner(self) -> str:
        try:
            owner = json.loads(os.pread(self._lock, 4096, 0))
            return f"{owner['what']} (process {owner['pid']})"
        except (ValueError, KeyError, TypeError):
            return "another process that is just starting"

    @property
    def mark(self) -> str:
        """Eight digits for what lies outside of the root (cgroups, firewall tables): two roots of
        one machine must not meet there."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8]

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.path / "tiffin.db"

    @property
    def containers(self) -> Path:
        """A folder a container: its logs and the files that are mounted over its /etc."""
        return self.path / "containers"

    @property
    def volumes(self) -> Path:
        """A folder a volume, with the data in ``_data``."""
        return self.path / "volumes"

    @property
    def work(self) -> Path:
        """Temporary files; whatever is here when an engine opens the root is a leftover."""
        return self.path / "work"

    @property
    def keeper(self) -> Path:
        """The keeper's folder."""
        return self.path / "keeper"

    def container(self, container_id: str) -> Path:
        """The folder of one container."""
        return self.containers / container_id

    def release(self) -> None:
        """Give the root back."""
        os.close(self._lock)
