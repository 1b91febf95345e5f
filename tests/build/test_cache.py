"""The build cache: keys, explanations, records and pruning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.build.cache import BuildCache
from tiffin.build.explanation import explain
from tiffin.build.parts import Parts
from tiffin.layer.entry import Entry, Kind
from tiffin.store.database import Database

FILE = Entry(b"app/config.py", Kind.FILE, 0o644, size=3, mtime_ns=5, digest=b"1" * 32)
OTHER = Entry(b"app/main.py", Kind.FILE, 0o644, size=3, mtime_ns=5, digest=b"2" * 32)
LINK = Entry(b"link", Kind.SYMLINK, 0o777, target=b"a")


def parts(*files: Entry, parent: str = "p", step: str = "COPY . /app", **named: str) -> Parts:
    made = Parts(step)
    made.add("parent", parent)
    made.add("instruction", step)
    for name, value in named.items():
        made.add(name.replace("_", " "), value)
    made.add_files(files)
    return made


@pytest.mark.parametrize(
    "changed",
    [
        replace(FILE, path=b"x"),
        replace(FILE, kind=Kind.FIFO),
        replace(FILE, mode=0o600),
        replace(FILE, uid=1),
        replace(FILE, gid=1),
        replace(FILE, digest=b"3" * 32),
        replace(FILE, xattrs={"security.capability": b"x"}),
    ],
)
def test_the_key_depends_on_every_part_of_a_file(changed: Entry) -> None:
    assert parts(changed).key != parts(FILE).key


def test_the_key_depends_on_nothing_else() -> None:
    assert parts(replace(FILE, mtime_ns=7)).key == parts(FILE).key
    assert parts(FILE, parent="q").key != parts(FILE).key
    assert parts(FILE, step="COPY . /b").key != parts(FILE).key
    assert parts(FILE, argument_A="1").key != parts(FILE, argument_A="2").key
    assert parts(FILE, OTHER).key != parts(OTHER, FILE).key
    assert parts(LINK).key != parts(replace(LINK, target=b"b")).key


@given(st.lists(st.tuples(st.text(), st.text())), st.lists(st.tuples(st.text(), st.text())))
def test_different_parts_have_different_keys(
    one: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    assert (Parts("s", one).key == Parts("s", other).key) is (one == other)


@pytest.mark.parametrize(
    ("missed", "why"),
    [
        (parts(replace(FILE, digest=b"9" * 32), LINK), "app/config.py changed (content)"),
        (parts(replace(FILE, mode=0o755), LINK), "app/config.py changed (mode 0644 to 0755)"),
        (parts(replace(FILE, uid=4), LINK), "app/config.py changed (owner)"),
        (parts(replace(FILE, kind=Kind.FIFO), LINK), "app/config.py changed (type)"),
        (
            parts(replace(FILE, xattrs={"a": b""}), LINK),
            "app/config.py changed (extended attributes)",
        ),
        (parts(FILE, replace(LINK, target=b"b")), "link changed (link target)"),
        (parts(FILE, OTHER, LINK), "app/main.py is new"),
        (parts(LINK), "app/config.py is gone"),
        (parts(OTHER), "app/main.py is new, and 2 more (2 gone)"),
        (parts(LINK, FILE), "the order of its sources changed"),
        (parts(FILE, LINK, parent="q"), "the step before it changed"),
        (parts(FILE, LINK, argument_A="1"), "argument A is new"),
    ],
)
def test_explanations(missed: Parts, why: str) -> None:
    assert explain(missed, parts(FILE, LINK)) == f"COPY . /app: {why}"


def test_explanations_of_named_parts() -> None:
    old = parts(step="RUN make", argument_A="1")
    assert explain(parts(step="RUN make", argument_A="2"), old) == "RUN make: argument A changed"
    said = explain(parts(step="RUN |1 A=2 make", argument_A="2"), old)
    assert said == "RUN |1 A=2 make: argument A changed (2, it was 1)"
    said = explain(parts(FILE), parts(FILE, OTHER), excluded=lambda path: path == "app/main.py")
    assert said == "COPY . /app: app/main.py is gone (.dockerignore excludes it)"
    assert explain(parts(step="RUN make"), old) == "RUN make: argument A is gone"
    assert explain(parts(step="RUN all"), parts(step="RUN make")) == (
        "RUN all: the instruction changed (it was: RUN make)"
    )


class Clock:
    now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "tiffin.db")
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def cache(database: Database) -> BuildCache:
    return BuildCache(database, Clock())


def test_what_is_stored_is_found(cache: BuildCache) -> None:
    made = parts(FILE)
    assert cache.find(made.key) is None
    assert not cache.may_have("p", "COPY")
    record = cache.store(made, b"{}", None, 7)
    assert cache.find(made.key) == record
    assert (record.parent, record.step, record.config, record.size) == (
        "p",
        "COPY . /app",
        b"{}",
        7,
    )
    assert cache.may_have("p", "COPY") and not cache.may_have("p", "RUN")
    assert not cache.may_have("q", "COPY")
    cache.finish([made.key], [made.key], 0)
    found = cache.find(made.key)
    assert found is not None and found.uses == 2 and found.used > record.used


def test_the_first_of_two_equal_steps_stays_unless_it_is_to_be_replaced(cache: BuildCache) -> None:
    cache.store(parts(), b"first", None, 0)
    assert cache.store(parts(), b"second", None, 0).config == b"first"
    assert cache.store(parts(), b"third", None, 0, replace=True).config == b"third"


def test_why_looks_at_the_nearest(cache: BuildCache) -> None:
    assert cache.why(parts(FILE)) == ""
    cache.store(parts(replace(FILE, mode=0o600), replace(OTHER, mode=0o600)), b"", None, 0)
    cache.store(parts(replace(FILE, mode=0o600), OTHER), b"", None, 0)
    cache.store(parts(FILE, OTHER, step="COPY . /other"), b"", None, 0)
    assert cache.why(parts(FILE, OTHER)).endswith("app/config.py changed (mode 0600 to 0644)")
    assert cache.why(parts(FILE, OTHER, parent="q")).endswith("the step before it changed")
    assert "it was: COPY . /" in cache.why(parts(FILE, OTHER, step="COPY x /other"))
    assert cache.why(parts(step="RUN x")) == ""


@pytest.fixture
def layers(database: Database) -> list[str]:
    chains = [f"sha256:{number:064x}" for number in range(4)]
    for chain, parent in zip(chains, [None, *chains], strict=False):
        database.execute(
            "INSERT INTO layers VALUES (?, ?, ?, ?, 'd', 1, 100, 0)", (chain, chain, parent, chain)
        )
    return chains


def test_records_say_what_they_hold(
    cache: BuildCache, database: Database, layers: list[str]
) -> None:
    steps = [parts(parent=str(number)) for number in range(4)]
    for step, layer in zip(steps, layers, strict=True):
        cache.store(step, b"", layer, 100)
    database.execute("INSERT INTO images VALUES ('i', x'', ?, 200, 0, NULL)", (layers[1],))
    assert [record.shared for record in cache.records()] == [True, True, False, False]
    assert cache.layers() == set(layers)
    stacks = cache.stacks()
    assert stacks.pinned == set(layers[:2]) and stacks.layers[layers[3]] == (layers[2], 100)
    cache.remove([steps[0].key, steps[3].key])
    assert [record.top for record in cache.records()] == layers[1:3]


def test_builds_are_told_apart_by_when_they_ended(cache: BuildCache) -> None:
    steps = [parts(parent=str(number)) for number in range(3)]
    for step in steps:
        cache.store(step, b"", None, 0)
        cache.finish([step.key], [], 0)
    ends = [record.used for record in cache.records()]
    assert cache.last_builds(1) == ends[2]
    assert cache.last_builds(2) == ends[1]
    assert cache.last_builds(4) == 0
