"""What of the build cache goes, and why: pruning, and garbage collection by the policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.build.cache import MOUNT, Record, Stacks
from tiffin.build.collection import Holdings, Plan, Policy, collect, prune
from tiffin.errors import InvalidParameter

HOUR = 3600 * 10**9
NOW = 10**6 * HOUR


def record(
    key: str, top: str | None = None, *, used: int = 0, size: int = 100, **more: object
) -> Record:
    values = {"parent": None, "step": f"RUN {key}", "created": used, "uses": 1, **more}
    return Record(key=key, config=b"", top=top, size=size, used=used, **values)  # type: ignore[arg-type]


def chain(*names: str, pinned: tuple[str, ...] = ()) -> Stacks:
    """Layers of 100 bytes on each other."""
    below = [None, *names]
    return Stacks({name: (low, 100) for name, low in zip(names, below, strict=False)}, set(pinned))


def gone(plan: Plan) -> list[str]:
    return [each.record.key for each in plan.removals]


def test_a_record_frees_what_nothing_else_stands_on() -> None:
    stacks = chain("a", "b", "c", pinned=("a",))
    records = [record("1", "a"), record("2", "b"), record("3", "c"), record("4", "c")]
    holdings = Holdings(records, stacks)
    assert holdings.total == 200, "what an image has is not the cache's"
    assert [holdings.release(each) for each in records] == [0, 0, 0, 200]
    assert holdings.total == 0


def test_pruning_leaves_what_is_shared_new_in_use_or_not_meant() -> None:
    stacks = chain("a", "b", "c", "d")
    records = [
        record("1", "a", used=1, shared=True),
        record("2", "b", used=2),
        record("3", "c", used=3),
        record("4", "d", used=4),
    ]
    assert gone(prune(records, stacks)) == ["2", "3", "4"]
    assert gone(prune(records, stacks, everything=True)) == ["1", "2", "3", "4"]
    assert gone(prune(records, stacks, unused_since=3)) == ["2"]
    assert gone(prune(records, stacks, spared=["2"])) == ["3", "4"]
    assert gone(prune(records, stacks, wanted=lambda each: each.key == "3")) == ["3"]


def test_what_is_kept_is_what_was_used_last() -> None:
    stacks = Stacks(dict.fromkeys("abc", (None, 100)), set())
    records = [record("1", "a", used=3), record("2", "b", used=1), record("3", "c", used=2)]
    plan = prune(records, stacks, keep=150)
    assert gone(plan) == ["2", "3"] and plan.frees == 200
    assert gone(prune(records, stacks, keep=300)) == []


def test_nothing_is_collected_below_the_limit() -> None:
    records = [record("1", "a")]
    plan = collect(records, chain("a"), Policy(100), now=NOW, free=0, last_builds=0)
    assert plan.removals == ()


def test_the_longest_unused_go_first_and_say_why() -> None:
    stacks = Stacks(dict.fromkeys("abcd", (None, 100)), set())
    records = [
        record("old", "a", used=NOW - 3 * 24 * HOUR),
        record("ancient", "b", used=NOW - 100 * 24 * HOUR),
        record(f"{MOUNT}pip", used=NOW - 50 * HOUR),
        record("new", "d", used=NOW - HOUR // 2),
    ]
    plan = collect(records, stacks, Policy(120), now=NOW, free=0, last_builds=NOW)
    assert gone(plan) == ["ancient", f"{MOUNT}pip", "old"]
    reasons = [each.reason for each in plan.removals]
    assert reasons[0].startswith("not used for 60 days; 280B over the limit of 120B")
    assert reasons[1].startswith("a cache folder not used for 2 days; 180B over")
    assert reasons[2].startswith("the longest unused; 80B over")


def test_the_last_of_a_build_goes_before_what_it_stands_on() -> None:
    used = NOW - 5 * HOUR
    records = [record(name, name, used=used, created=number) for number, name in enumerate("abc")]
    plan = collect(records, chain("a", "b", "c"), Policy(200), now=NOW, free=0, last_builds=NOW)
    assert gone(plan) == ["c"]


def test_little_room_on_the_disk_lowers_the_limit() -> None:
    stacks = Stacks(dict.fromkeys("ab", (None, 100)), set())
    records = [record("1", "a", used=NOW - 9 * HOUR), record("2", "b", used=NOW - 8 * HOUR)]
    policy = Policy(10**6, free=500)
    plan = collect(records, stacks, policy, now=NOW, free=450, last_builds=NOW)
    assert gone(plan) == ["1"]
    assert plan.removals[0].reason == "the longest unused; only 450B of the disk free, 500B wanted"


@given(
    st.lists(st.tuples(st.integers(0, 200), st.booleans(), st.integers(0, 5)), max_size=12),
    st.integers(0, 800),
    st.integers(0, 200),
)
def test_what_the_last_builds_used_is_never_collected(
    given: list[tuple[int, bool, int]], limit: int, last: int
) -> None:
    names = [f"layer{number}" for number in range(6)]
    stacks = chain(*names, pinned=("layer0",))
    records = [
        record(
            f"{MOUNT if mount else ''}{number}",
            None if mount else names[place],
            used=NOW - hours * HOUR,
            shared=not mount and place == 0,
        )
        for number, (hours, mount, place) in enumerate(given)
    ]
    since = NOW - last * HOUR
    plan = collect(records, stacks, Policy(limit), now=NOW, free=0, last_builds=since)
    before = Holdings(records, stacks).total
    for each in plan.removals:
        assert each.record.used < since and not each.record.shared and each.reason
    left = [each for each in records if each.key not in gone(plan)]
    assert Holdings(left, stacks).total == before - plan.frees
    assert before - plan.frees <= limit or plan.note or before <= limit


def test_the_policy_is_read_from_the_first_file(tmp_path: Path) -> None:
    disk = 100 * 10**9
    assert Policy.read([tmp_path], disk) == Policy(10 * 10**9, 5 * 10**9)
    assert Policy.default(10**9).limit == 5 * 10**8
    (tmp_path / "builds.toml").write_text(
        '[gc]\nlimit = "20%"\nfree = "1GiB"\nkeep-builds = 5\nkeep-for = "2h"\n'
        'unused-for = "30d"\nfolders-unused-for = "90m"\nenabled = false\n'
    )
    read = Policy.read([tmp_path / "none", tmp_path], disk)
    assert read == Policy(20 * 10**9, 1 << 30, False, 5, 2 * HOUR, 720 * HOUR, HOUR + HOUR // 2)


@pytest.mark.parametrize(
    "text", ["[gc]\nlimits = 1", "gc = 1", '[gc]\nlimit = "much"', '[gc]\nkeep-for = "1"', "["]
)
def test_a_policy_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "builds.toml").write_text(text)
    with pytest.raises(InvalidParameter, match=r"builds\.toml"):
        Policy.read([tmp_path], 10**12)
