"""How fast storage drivers are on one machine and disk: what ``tiffin storage benchmark`` and
``bench/storage`` measure.

Each figure is of one driver in a folder of its own; the tree of a snapshot is mounted as the engine
mounts it, where nobody sees it. Caches are as a user would find them, but for what a figure says.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tiffin.linux.mounttree import detached_tree
from tiffin.storage.driver import Mount, StorageDriver
from tiffin.storage.mounting import mount_all

Figures = dict[str, float]
"""Name of a figure to its value; the names are those of :data:`FIGURES`."""

FIGURES: tuple[tuple[str, str, str, bool], ...] = (
    ("start", "ms", "prepare, mount and remove a container", False),
    ("copy-up", "ms", "the first write to a large file of the image", False),
    ("small files", "s", "create and delete 20,000 small files", False),
    ("sequential write", "MB/s", "one large new file, synced", True),
    ("sequential read", "MB/s", "the same read, from the page cache", True),
    ("random write", "1000/s", "4 KiB writes at random places, synced at the end", True),
    ("random read", "1000/s", "4 KiB reads at random places, from the page cache", True),
    ("commit", "ms", "a container of 1,000 files becomes a layer", False),
    ("50 containers", "MB", "room that they take on one image", False),
    ("cache shared", "", "how much of a file that one container has read another finds read", True),
)
"""Name, unit, what it is, and whether more is better."""

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "devicemapper": {
        "dm.loopdatasize": "16g",
        "dm.loopmetadatasize": "128m",
        "dm.basesize": "4g",
    },
}
_MEGABYTE = 1 << 20
_WEIGHED = ("start", "copy-up", "small files", "sequential write", "commit", "50 containers")


def measure(
    kind: type[StorageDriver],
    home: Path,
    settings: Mapping[str, str] | None = None,
    *,
    short: bool = False,
) -> Figures:
    """All figures of a driver in the empty folder ``home``; a sixteenth as much with ``short``."""
    driver = kind(home, settings or SETTINGS.get(kind.name))
    try:
        return _Run(driver, home.parent / "mount", 16 if short else 1).all()
    finally:
        driver.close()
        for key in list(driver.keys()):
            driver.remove(key)
        driver.sweep()
        driver.close()


class _Run:
    def __init__(self, driver: StorageDriver, place: Path, part: int) -> None:
        self._driver = driver
        self._place = place
        self._part = part
        self._large = 1024 * _MEGABYTE // part
        place.mkdir(exist_ok=True)

    def all(self) -> Figures:
        """Every figure, in order."""
        self._image()
        return {
            "start": self._start(),
            "copy-up": self._copy_up(),
            "small files": self._small_files(),
            **self._large_file(),
            "commit": self._commit(),
            "50 containers": self._fifty(),
            "cache shared": self._shared(),
        }

    @contextmanager
    def _mounted(self, mounts: list[Mount]) -> Iterator[Path]:
        place = str(self._place)
        fd = detached_tree(place, lambda: mount_all(mounts, place))
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    @contextmanager
    def _container(self, key: str) -> Iterator[Path]:
        self._driver.prepare(key, ("image",) if self._driver.layered else "image")
        with self._mounted(self._driver.mounts(key)) as tree:
            yield tree
        self._driver.release(key)

    def _image(self) -> None:
        """One large file, and 2,000 small ones in 40 directories."""
        self._driver.prepare("draft", () if self._driver.layered else None)
        with self._driver.own_directory("draft") as own:
            block = random.Random(1).randbytes(_MEGABYTE)
            with (own / "large").open("wb") as file:
                for _ in range(self._large // _MEGABYTE):
                    file.write(block)
            for number in range(2000):
                if number % 50 == 0:
                    (own / f"d{number // 50}").mkdir()
                (own / f"d{number // 50}" / f"f{number}").write_bytes(block[:4096])
        self._driver.commit("draft", "image")
        os.sync()

    def _start(self) -> float:
        def once(number: int) -> None:
            with self._container(f"start{number}"):
                pass
            self._driver.remove(f"start{number}")

        once(0)
        return min(_seconds(lambda n=number: once(n)) for number in range(1, 6)) * 1000  # type: ignore[misc]

    def _copy_up(self) -> float:
        with self._container("copyup") as tree:

            def write() -> None:
                with (tree / "large").open("r+b") as file:
                    file.write(b"changed")

            taken = _seconds(write)
        self._driver.remove("copyup")
        return taken * 1000

    def _small_files(self) -> float:
        count = 20_000 // self._part
        with self._container("small") as tree:

            def churn() -> None:
                (tree / "small").mkdir()
                for number in range(count):
                    with (tree / "small" / str(number)).open("wb") as file:
                        file.write(b"x" * 512)
                for number in range(count):
                    (tree / "small" / str(number)).unlink()

            taken = _seconds(churn)
        self._driver.remove("small")
        return taken * self._part

    def _large_file(self) -> Figures:
        block = random.Random(2).randbytes(_MEGABYTE)
        chooser = random.Random(3)
        count = 20_000 // self._part
        offsets = [chooser.randrange(self._large // 4096) * 4096 for _ in range(count)]
        with self._container("large") as tree:
            path = tree / "new"

            def write() -> None:
                with path.open("wb") as file:
                    for _ in range(self._large // _MEGABYTE):
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())

            def read() -> None:
                with path.open("rb", buffering=0) as file:
                    while file.read(_MEGABYTE):
                        pass

            def write_randomly() -> None:
                with path.open("r+b", buffering=0) as file:
                    for offset in offsets:
                        os.pwrite(file.fileno(), block[:4096], offset)
                    os.fsync(file.fileno())

            def read_randomly() -> None:
                with path.open("rb", buffering=0) as file:
                    for offset in offsets:
                        os.pread(file.fileno(), 4096, offset)

            megabytes = self._large / 1e6
            written = megabytes / _seconds(write)
            read()
            found = {
                "sequential write": written,
                "sequential read": megabytes / _seconds(read),
                "random write": count / 1000 / _seconds(write_randomly),
                "random read": count / 1000 / _seconds(read_randomly),
            }
        self._driver.remove("large")
        return found

    def _commit(self) -> float:
        with self._container("commit") as tree:
            (tree / "new").mkdir()
            for number in range(1000):
                (tree / "new" / str(number)).write_bytes(b"x" * 4096)
        taken = _seconds(lambda: self._driver.commit("commit", "committed"))
        self._driver.remove("committed")
        return taken * 1000

    def _fifty(self) -> float:
        count = 50 if self._part == 1 else 5
        os.sync()
        before = self._driver.taken()
        for number in range(count):
            with self._container(f"many{number}") as tree:
                (tree / "own").write_bytes(b"x" * 4096)
        os.sync()
        taken = self._driver.taken() - before
        for number in range(count):
            self._driver.remove(f"many{number}")
        return max(taken, 0) / 1e6 * 50 / count

    def _shared(self) -> float:
        with self._container("first") as tree, self._container("second") as other:
            _forget(other / "large")
            (tree / "large").read_bytes()
            shared = _resident(other / "large")
        self._driver.remove("first")
        self._driver.remove("second")
        return shared


def _forget(path: Path) -> None:
    """Let nothing of a file be in the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _resident(path: Path) -> float:
    """Which part of a file is in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    # By hand: Python gives the address of a writable map alone, and opening the file for writing
    # would copy it up.
    with path.open("rb") as file:
        start = libc.mmap(
            None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0
        )
    if start in (None, ctypes.c_void_p(-1).value):
        return 0.0
    try:
        there = (ctypes.c_ubyte * pages)()
        if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), there):
            return 0.0
        return sum(one & 1 for one in there) / pages
    finally:
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))


def recommend(results: Mapping[str, Figures]) -> str:
    """The driver that is least behind the best of each figure, all in all; empty for none."""
    best, least = "", 0.0
    for name, found in results.items():
        behind = 1.0
        for figure, _, _, more in FIGURES:
            if figure not in _WEIGHED:
                continue
            # Less than this is as good as nothing: a millisecond, a megabyte.
            values = [max(one[figure], 1.0) for one in results.values()]
            mine = max(found[figure], 1.0)
            behind *= max(values) / mine if more else mine / min(values)
        if not best or behind < least:
            best, least = name, behind
    return best


def table(results: Mapping[str, Figures]) -> list[str]:
    """The figures as lines of text, a column each driver."""
    if not results:
        return ["no driver works here"]
    lines = [f"{'':<24}" + "".join(f"{name:>16}" for name in results)]
    for figure, unit, _, _ in FIGURES:
        label = f"{figure} ({unit})" if unit else figure
        values = "".join(
            f"{found[figure]:>16,.{_digits(found[figure])}f}" for found in results.values()
        )
        lines.append(f"{label:<24}{values}")
    return lines


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2
