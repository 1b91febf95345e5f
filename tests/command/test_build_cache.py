"""`tiffin builder`: the cache of builds, what of it goes, and what is said of that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command.conftest import Command

pytestmark = pytest.mark.root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def build(tiffin: Command, folder: Path, number: int) -> str:
    (folder / "Dockerfile").write_text(
        f"FROM busybox\nRUN dd if=/dev/zero of=/f bs=1000 count={number}\n"
    )
    return tiffin("build", "-t", "x", str(folder))


def test_collection_says_what_it_removes_and_spares_the_last_builds(
    tiffin: Command, folder: Path, root: Path
) -> None:
    build(tiffin, folder, 51)
    (root / "builds.toml").write_text('[gc]\nlimit = "1kB"\nkeep-builds = 1\nkeep-for = "0s"\n')
    tiffin("rmi", "x")
    shown = tiffin("builder", "gc", "--dry-run")
    assert "takes 51kB; its limit is 1kB" in shown
    assert "51kB stay, 50kB over the limit: the last builds use them" in shown
    output = build(tiffin, folder, 52)
    assert "Garbage collection: removed 1 records of the build cache, 51kB of 51kB\n" in output
    line = next(line for line in output.splitlines() if line.startswith(" - "))
    assert "count=51 (51kB): the longest unused; 50kB over the limit of 1kB" in line
    assert "count=51" in (root / "daemon.log").read_text()
    assert "Using cache" in build(tiffin, folder, 52)
    assert "Using cache" not in build(tiffin, folder, 51)


def test_a_prune_can_be_looked_at_first(tiffin: Command, folder: Path) -> None:
    build(tiffin, folder, 60)
    tiffin("rmi", "x")
    shown = tiffin("builder", "prune", "--dry-run")
    assert "dd if=" in shown and "no image or container is made of it" in shown
    assert shown.endswith("Would be reclaimed: 60kB\n")
    for unwanted in ("type=exec.cachemount", "mutable=true", "shared=true", "inuse=true"):
        assert "reclaimed: 0B" in tiffin("builder", "prune", "--dry-run", "--filter", unwanted)
    for wanted in (
        "type=regular", "type==regular", "immutable=true", "private=true", "description~=RUN.*dd",
        "description=dd if", "description!=x", "inuse=0", "until=1ms",
    ):  # fmt: skip
        assert "60kB" in tiffin("builder", "prune", "--dry-run", "--filter", wanted), wanted
    for kept in ("--keep-storage=60k", "--max-used-space=60k", "--filter=until=1h"):
        assert "reclaimed: 0B" in tiffin("builder", "prune", "--dry-run", kept), kept
    assert (
        "invalid filter"
        in tiffin.result("builder", "prune", "--dry-run", "--filter", "size=1").stderr.decode()
    )
    assert "60kB" in tiffin("builder", "prune", "-f", "--max-used-space", "10k")
    assert "Nothing has to go." in tiffin("builder", "gc")
