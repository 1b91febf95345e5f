"""A small engine for the builder: real layers, real mounts, and commands in a chroot."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tiffin.build.backend import CacheSource, Cancelled, Output, RunResult, RunStep
from tiffin.build.builder import build
from tiffin.build.context import BuildContext, from_folder
from tiffin.build.digests import DigestCache
from tiffin.build.options import BuildOptions
from tiffin.build.turns import Turns
from tiffin.errors import NotFound, StartFailure
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.store import LayerStore
from tiffin.linux import syscalls
from tiffin.storage import drivers
from tiffin.store.database import Database

BUSYBOX = Path("/bin/busybox")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001:Me:/home/me:/bin/sh\n"
GROUP = b"root:x:0:\nme:x:1001:\nus:x:2000:me\n"

Files = dict[str, Any]
"""Path to text, bytes, None (a directory), or a target after ``->``."""

_mounting = threading.Lock()


class Kitchen:
    """An engine root, and what tests do with it."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.database = Database(root / "tiffin.db")
        driver = drivers.choose(root)
        self.layers = LayerStore(self.database, driver, root)
        self.layers.sweep()
        self.digests = DigestCache()
        self.images: dict[str, ImageConfig] = {}
        self.messages: list[dict[str, Any]] = []
        self.ran: list[RunStep] = []
        self.before_run: Callable[[], None] = lambda: None
        self.turns = Turns()
        self.pulled: list[str] = []
        self.work = root / "work"

    def close(self) -> None:
        self.database.close()

    # -- Backend

    def context(self, where: str) -> BuildContext:
        return from_folder(Path(where), self.digests, content=b"FROM scratch")

    def cache_sources(self) -> list[CacheSource]:
        return []

    def inline_cache(self, config: ImageConfig, keys: list[str]) -> ImageConfig:
        return config

    def export_cache(self, keys: list[str], final: list[str], bases: set[str]) -> None:
        self.exported = (keys, final)

    def image(self, reference: str, platform: str, *, pull: bool = False) -> ImageConfig:
        if pull:
            self.pulled.append(reference)
        for name in (reference, f"{reference}:latest"):
            if name in self.images:
                return self.images[name]
        for config in self.images.values():
            if config.id in (reference, f"sha256:{reference}"):
                return config
        raise NotFound(f"no such image: {reference}")

    def known(self, reference: str) -> ImageConfig | None:
        try:
            return self.image(reference, "")
        except NotFound:
            return None

    def save_image(self, config: ImageConfig, top: str | None, tags: list[str]) -> str:
        self.database.execute(
            "INSERT OR IGNORE INTO images (id, config, top, size, created) VALUES (?, ?, ?, ?, 0)",
            (config.id, config.to_bytes(), top, self.layers.size(top)),
        )
        for name in [config.id, *tags]:
            self.images[name] = config
        return config.id

    def run_step(self, step: RunStep, output: Output, cancelled: Cancelled) -> RunResult:
        self.ran.append(step)
        self.before_run()
        key = f"run-{step.container_id[:12]}"
        self.layers.prepare(key, step.top)
        try:
            with self.mounted(self.layers.mounts(key)) as tree:
                code = self._execute(step, tree, output)
            if code:
                return RunResult(code, None)
            return RunResult(0, self.layers.commit(key, step.top))
        finally:
            self.layers.remove_snapshot(key)

    def _execute(self, step: RunStep, tree: Path, output: Output) -> int:
        uid, _, gid = step.user.partition(":")

        def enter() -> None:
            os.chroot(tree)
            os.makedirs(step.working_directory, exist_ok=True)
            os.chdir(step.working_directory)
            if uid.isdecimal():
                os.setgid(int(gid or uid))
                os.setuid(int(uid))

        program = step.args[0]
        if not os.path.lexists(f"{tree}/{program}"):
            raise StartFailure(f'exec: "{program}": executable file not found in $PATH', 127)
        env = dict(pair.split("=", 1) for pair in step.env)
        result = subprocess.run(
            step.args,
            env={"PATH": "/bin", **env},
            preexec_fn=enter,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output(result.stdout, False)
        return result.returncode

    @contextmanager
    def mounted(self, mounts: list[Any]) -> Iterator[Path]:
        """Mount on a folder as the runtime does."""
        target = self.root / f"mount-{threading.get_ident()}"
        target.mkdir(exist_ok=True)
        flags = {"ro": syscalls.MS_RDONLY, "bind": syscalls.MS_BIND}
        with _mounting:
            before = os.getcwd()
            for mount in mounts:
                os.chdir(mount.directory or before)
                flag = 0
                for option in mount.options:
                    flag |= flags.get(option, 0)
                data = ",".join(option for option in mount.options if option not in flags)
                syscalls.mount(mount.source, str(target), mount.fstype, flag, data or None)
                os.chdir(before)
        try:
            yield target
        finally:
            for _ in mounts:
                syscalls.umount(str(target), syscalls.MNT_DETACH)

    # -- what tests use

    def base(self, name: str = "base:latest", files: Files | None = None, **members: Any) -> str:
        """Make an image: busybox, accounts, and more files; ``members`` go into its config."""
        everything: Files = {
            "bin/busybox": BUSYBOX.read_bytes() if BUSYBOX.exists() else b"",
            "bin/sh": "->busybox",
            "etc/passwd": PASSWD,
            "etc/group": GROUP,
            "tmp": None,
            **(files or {}),
        }

        def fill(writer: Any) -> None:
            for path, content in sorted(everything.items()):
                where = os.fsencode(path)
                if content is None:
                    writer.add(Entry(where, Kind.DIRECTORY, 0o755))
                elif isinstance(content, str) and content.startswith("->"):
                    writer.add(Entry(where, Kind.SYMLINK, 0o777, target=content[2:].encode()))
                else:
                    data = content.encode() if isinstance(content, str) else content
                    mode = 0o755 if path.startswith("bin/") else 0o644
                    writer.add(Entry(where, Kind.FILE, mode), data)

        layer = self.layers.write(None, fill)
        config = (
            ImageConfig.scratch()
            .with_config(members)
            .with_created(10**18)
            .with_layer(layer.diff_id, HistoryEntry(created_by="base"))
        )
        return self.save_image(config, layer.chain_id, [name])

    def build(
        self, context: Path | BuildContext, dockerfile: str | None = None, **options: Any
    ) -> ImageConfig:
        """Build, and give the image's config; the messages are in ``messages``."""
        self.messages = []
        if isinstance(context, Path):
            if dockerfile is not None:
                (context / "Dockerfile").write_text(dockerfile)
            context = from_folder(context, self.digests)
        cancelled = options.pop("cancelled", lambda: False)
        with context:
            image = build(
                self, BuildOptions(**options), context, self.messages.append, cancelled=cancelled
            )
        return self.images[image]

    def text(self) -> str:
        """What the last build printed."""
        return "".join(message.get("stream", "") for message in self.messages)

    def cached(self) -> int:
        """How many steps of the last build came from the cache."""
        return self.text().count(" ---> Using cache\n")

    def lower(self, config: ImageConfig) -> Any:
        """The files of an image."""
        return self.layers.lower(config.chain_id)

    def listing(self, config: ImageConfig, top: str = "") -> dict[str, str]:
        """Path to content, ``->target`` or ``/`` of everything in an image below ``top``."""
        lower = self.lower(config)
        found: dict[str, str] = {}

        def visit(path: bytes) -> None:
            for entry in lower.children(path):
                shown = os.fsdecode(entry.path)
                if entry.kind is Kind.DIRECTORY:
                    found[shown] = "/"
                    visit(entry.path)
                elif entry.kind is Kind.SYMLINK:
                    found[shown] = "->" + os.fsdecode(entry.target)
                else:
                    with open(lower.open(entry.path), "rb") as file:
                        found[shown] = file.read().decode("utf-8", "replace")

        visit(top.encode())
        return found

    def entry(self, config: ImageConfig, path: str) -> Entry:
        """One entry of an image."""
        entry = self.lower(config).entry(path.encode())
        assert entry is not None, f"{path} is not in the image"
        return entry


@pytest.fixture
def kitchen(tmp_path: Path) -> Iterator[Kitchen]:
    """An empty engine."""
    kitchen = Kitchen(tmp_path / "root")
    try:
        yield kitchen
    finally:
        kitchen.close()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """An empty folder to build."""
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


@pytest.fixture
def busybox() -> None:
    """For tests that run commands in the image."""
    if not BUSYBOX.exists():
        assert os.environ.get("CI") != "true", "busybox-static is missing"
        pytest.skip("busybox-static is missing")
