"""The stat cache: unchanged files are not read again, changed ones always are."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from tiffin.build.context import from_folder
from tiffin.build.digests import DigestCache, Known, Stamp
from tiffin.engine.builds import BuildOptions
from tiffin.engine.engine import Engine

SECOND = 1_000_000_000
STAMP: Stamp = (1, 2, 3, 100 * SECOND + 1, 100 * SECOND + 1)
KNOWN = Known(b"d" * 32, {"security.capability": b"x"})


def test_what_is_remembered_is_found_by_the_whole_stamp() -> None:
    cache = DigestCache()
    cache.remember(STAMP, KNOWN, 200 * SECOND)
    assert cache.find(STAMP) == KNOWN
    for position in range(5):
        changed = list(STAMP)
        changed[position] += 1
        assert cache.find(tuple(changed)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "read", "kept"),
    [
        (100 * SECOND + 1, 100 * SECOND + 2, False),
        (100 * SECOND + 1, 100 * SECOND + 10_000_000, False),
        (100 * SECOND + 1, 100 * SECOND + 30_000_000, True),
        (100 * SECOND + 1, 99 * SECOND, False),
        # a file system that keeps whole seconds
        (100 * SECOND, 101 * SECOND, False),
        (100 * SECOND, 103 * SECOND, True),
    ],
)
def test_a_file_changed_just_now_is_not_trusted(changed: int, read: int, kept: bool) -> None:
    cache = DigestCache()
    stamp: Stamp = (1, 2, 3, 50 * SECOND + 1, changed)
    cache.remember(stamp, KNOWN, read)
    assert (cache.find(stamp) is not None) is kept


def test_a_change_within_the_same_tick_is_seen(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x")
    path = tmp_path / "file"
    cache = DigestCache()

    def digest() -> bytes:
        with from_folder(tmp_path, cache) as context:
            entry = context.source.entry(b"file")
            assert entry is not None
            return context.source.identify(entry).digest

    for attempt in range(50):
        path.write_bytes(b"a%d" % attempt)
        times = path.stat()
        first = digest()
        path.write_bytes(b"b%d" % attempt)
        # What a tool that preserves times does; the time of change can't be set.
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert digest() != first


def test_an_old_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x")
    (tmp_path / "file").write_text("content")
    later = time.time_ns() + SECOND
    cache = DigestCache(clock=lambda: later)
    with from_folder(tmp_path, cache) as context:
        entry = context.source.entry(b"file")
        assert entry is not None
        digest = context.source.identify(entry).digest
    monkeypatch.setattr("hashlib.file_digest", None)
    with from_folder(tmp_path, cache) as context:
        entry = context.source.entry(b"file")
        assert entry is not None
        assert context.source.identify(entry).digest == digest


def test_memory_is_bounded() -> None:
    cache = DigestCache(limit=100)
    for inode in range(1000):
        cache.remember((1, inode, 3, 4, 5), KNOWN, 200 * SECOND)
        assert cache.find((1, 0, 3, 4, 5)) == KNOWN, "what is asked for stays"
    assert len(cache) <= 101


def test_it_survives_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    cache = DigestCache(path=path)
    assert cache.find(STAMP) is None
    cache.save(all=True)
    assert not path.exists(), "there is nothing to keep"
    cache.remember(STAMP, KNOWN, 200 * SECOND)
    cache.save()
    assert not path.exists(), "it is not worth it"
    cache.save(all=True)
    again = DigestCache(path=path)
    assert again.find(STAMP) == KNOWN
    again.remember((1, 99, 3, 4, 5), KNOWN, 200 * SECOND)
    again.save(all=True)
    assert DigestCache(path=path).find(STAMP) == KNOWN
    path.write_bytes(b"broken")
    assert DigestCache(path=path).find(STAMP) is None


def test_much_that_is_new_is_kept_at_once(tmp_path: Path) -> None:
    for name, count, size in (("many", 500, 10), ("large", 1, 1 << 30)):
        path = tmp_path / name
        cache = DigestCache(path=path)
        for inode in range(count):
            cache.remember((1, inode, size, 4, 5), KNOWN, 200 * SECOND)
        cache.save()
        assert DigestCache(path=path).find((1, 0, size, 4, 5)) == KNOWN


def test_what_is_kept_counts_until_the_machine_boots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "digests"
    cache = DigestCache(path=path)
    cache.remember(STAMP, KNOWN, 200 * SECOND)
    cache.save(all=True)
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr("tiffin.build.digests._BOOT", tmp_path / "boot")
    assert DigestCache(path=path).find(STAMP) is None


def test_a_new_engine_knows_the_files_that_an_earlier_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_text("content")
    # The file is as good as old.
    monkeypatch.setattr("tiffin.build.digests._TICK_NS", -60 * SECOND)
    monkeypatch.setattr("tiffin.build.digests._COARSE_TICK_NS", -60 * SECOND)
    images = []
    for number in range(2):
        with Engine(tmp_path / "root", storage_driver="vfs") as engine:
            (context / "Dockerfile").write_text(f"FROM scratch\nCOPY file /{number}\n")
            images.append(engine.builds.build(BuildOptions(), context))
            engine.shutdown_keeper()
        # The step before is not the same, so nothing but the stamp says what the file holds.
        if number == 0:
            monkeypatch.setattr("hashlib.file_digest", None)
    assert images[0] != images[1]


def test_a_large_file_that_is_known_is_hashed_for_the_tar_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(3_000_000)
    context = tmp_path / "context"
    context.mkdir()
    (context / "large").write_bytes(content)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY large /\n")
    options = BuildOptions(no_cache=True)
    digest = hashlib.sha256(content).digest()
    with Engine(tmp_path / "root", storage_driver="vfs") as engine:

        def built() -> tuple[str, bytes]:
            image = engine.images.find(engine.builds.build(options, context))
            entry = engine.builds.layers.lookup(image.top, b"large")
            assert entry is not None
            return image.config.diff_ids[0], entry.digest

        with monkeypatch.context() as patched:
            patched.setattr("tiffin.build.digests._TICK_NS", -60 * SECOND)
            patched.setattr("tiffin.build.digests._COARSE_TICK_NS", -60 * SECOND)
            first = built()
        assert first[1] == digest
        with monkeypatch.context() as patched:
            patched.setattr("tiffin.layer.pipeline._digest", _refuse)
            assert built() == first
        content = content[:-1] + b"x"
        (context / "large").write_bytes(content)
        changed = built()
        assert changed[0] != first[0]
        assert changed[1] == hashlib.sha256(content).digest()
        engine.shutdown_keeper()


def _refuse(jobs: list[object]) -> None:
    assert not jobs, "its digest is known"
