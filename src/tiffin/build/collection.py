"""What of the build cache goes, and why: pruning by hand, and garbage collection by a policy.

Words: a record *frees* what goes with it: a cache folder's files, or the layers that no other
record, no image and no container stands on. So removing a record may free nothing, and the last of
several frees them all. *Garbage collection* happens after a build, when the cache takes more than
its limit.

Rules of the policy: what a running build uses stays, and so does what the last builds used
(``keep-builds``), and what was used lately (``keep-for``); what an image or a container is made of
stays, since removing it frees nothing. Of the rest goes first what was not used for long, then
cache folders that rest, then the longest unused, until the cache fits.

Nothing here changes anything: a plan is made, shown, and carried out by the engine. The policy is
read from ``builds.toml`` in the engine root, then in ``/etc/tiffin``; the first file counts::

    [gc]
    enabled = true
    limit = "10%"          # of the disk that the engine root is on, or a size as "20GB"
    free = "5%"            # with less free on the disk, the limit falls by what is missing
    keep-builds = 3        # what the last three builds used stays
    keep-for = "1h"        # what was used within an hour stays
    unused-for = "1440h"   # beyond the limit, what was not used for 60 days goes first
    folders-unused-for = "48h"  # then cache folders that were not used for two days
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiffin.build.cache import Record, Stacks
from tiffin.errors import InvalidParameter
from tiffin.units import human_size

FILE = "builds.toml"
_SECOND = 10**9
_HOUR = 3600 * _SECOND
_DAY = 24 * _HOUR
_LEAST_LIMIT = 2 * 10**9
"""The default limit is no lower than this, unless the disk is."""
_KEYS = ("enabled", "limit", "free", "keep-builds", "keep-for", "unused-for", "folders-unused-for")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_UNITS = {"s": _SECOND, "m": 60 * _SECOND, "h": _HOUR, "d": _DAY}


@dataclass(frozen=True, slots=True)
class Policy:
    """See the module's text; times in nanoseconds, sizes in bytes."""

    limit: int
    free: int = 0
    enabled: bool = True
    keep_builds: int = 3
    keep_for: int = _HOUR
    unused_for: int = 60 * _DAY
    folders_unused_for: int = 48 * _HOUR

    @classmethod
    def default(cls, disk: int) -> Policy:
        """For a disk of that size: a tenth of it, at least 2 GB (or half of a small one)."""
        return cls(max(disk // 10, min(_LEAST_LIMIT, disk // 2)), disk // 20)

    @classmethod
    def read(cls, folders: Iterable[Path], disk: int) -> Policy:
        """What the first ``builds.toml`` in these folders says; raises InvalidParameter."""
        for folder in folders:
            path = folder / FILE
            try:
                document = tomllib.loads(path.read_text())
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                raise InvalidParameter(f"{path} can't be read: {error}") from error
            table = document.get("gc", {})
            if not isinstance(table, dict) or set(table) - set(_KEYS):
                raise InvalidParameter(f"{path}: [gc] may have {', '.join(_KEYS)}")
            try:
                return cls._of(table, disk)
            except (ValueError, TypeError) as error:
                raise InvalidParameter(f"{path}: {error}") from error
        return cls.default(disk)

    @classmethod
    def _of(cls, table: dict[str, Any], disk: int) -> Policy:
        given = cls.default(disk)
        return cls(
            _size(table["limit"], disk) if "limit" in table else given.limit,
            _size(table["free"], disk) if "free" in table else given.free,
            bool(table.get("enabled", True)),
            int(table.get("keep-builds", given.keep_builds)),
            _duration(table["keep-for"]) if "keep-for" in table else given.keep_for,
            _duration(table["unused-for"]) if "unused-for" in table else given.unused_for,
            _duration(table["folders-unused-for"])
            if "folders-unused-for" in table
            else given.folders_unused_for,
        )


def _size(value: Any, disk: int) -> int:
    text = str(value).strip()
    if text.endswith("%"):
        return int(disk * float(text[:-1]) / 100)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid size {text!r}: write it as 20GB or 10%")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgtp".index(match[2].lower() or " "))


def _duration(value: Any) -> int:
    match = _DURATION.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"invalid duration {value!r}: write it as 48h or 60d")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True, slots=True)
class Removal:
    """A record that goes."""

    record: Record
    frees: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes, in this order, and what the cache takes before and after."""

    removals: Sequence[Removal]
    before: int
    limit: int | None = None
    note: str = ""
    """What is to be said of the whole."""

    @property
    def frees(self) -> int:
        """How much less the cache takes afterwards."""
        return sum(each.frees for each in self.removals)


class Holdings:
    """What the records hold, and what comes free when one after the other goes."""

    def __init__(self, records: Iterable[Record], stacks: Stacks) -> None:
        self._stacks = stacks
        self._holders: Counter[str] = Counter()
        self.total = 0
        for record in records:
            if record.mutable:
                self.total += max(record.size, 0)
            self._hold(record.top)

    def _hold(self, chain: str | None) -> None:
        while chain is not None and chain not in self._stacks.pinned:
            self._holders[chain] += 1
            below, size = self._stacks.layers.get(chain, (None, 0))
            if self._holders[chain] > 1:
                return
            self.total += size
            chain = below

    def release(self, record: Record) -> int:
        """What comes free when the record goes too."""
        freed = max(record.size, 0) if record.mutable else 0
        chain = record.top
        while chain is not None and self._holders[chain]:
            self._holders[chain] -= 1
            if self._holders[chain]:
                break
            chain, size = self._stacks.layers.get(chain, (None, 0))
            freed += size
        self.total -= freed
        return freed


def oldest_first(records: Iterable[Record]) -> list[Record]:
    """The longest unused first; of those of one build the last one, which stands on the others."""
    return sorted(records, key=lambda each: (each.used, -each.created, each.key))


def prune(
    records: Sequence[Record],
    stacks: Stacks,
    *,
    everything: bool = False,
    unused_since: int | None = None,
    keep: int = 0,
    spared: Collection[str] = (),
    wanted: Callable[[Record], bool] = lambda record: True,
) -> Plan:
    """What a prune by hand removes.

    A shared record is kept unless ``everything`` goes; one that was used at ``unused_since``
    (nanoseconds) or later always is, and so are those whose key is ``spared`` and those that are
    not ``wanted`` gone. Once the cache takes no more than ``keep``, the rest stays.
    """
    holdings = Holdings(records, stacks)
    before = holdings.total
    removals: list[Removal] = []
    for record in oldest_first(records):
        if keep and holdings.total <= keep:
            break
        if unused_since is not None and record.used >= unused_since:
            continue
        if record.key in spared or (record.shared and not everything) or not wanted(record):
            continue
        reason = "no image or container is made of it"
        if record.shared:
            reason = "all of the cache was asked for"
        if unused_since is not None:
            reason = "it was not used since then"
        if keep:
            reason = (
                f"the longest unused of {human_size(holdings.total, 3)}, {human_size(keep, 3)} stay"
            )
        removals.append(Removal(record, holdings.release(record), reason))
    return Plan(removals, before)


def collect(
    records: Sequence[Record],
    stacks: Stacks,
    policy: Policy,
    *,
    now: int,
    free: int,
    last_builds: int,
    spared: Collection[str] = (),
) -> Plan:
    """What garbage collection removes.

    ``free`` is what is free on the disk, ``last_builds`` when the earliest build ended whose
    records stay, ``spared`` are the keys that running builds use.
    """
    holdings = Holdings(records, stacks)
    before = holdings.total
    limit = policy.limit
    why = f"over the limit of {human_size(limit, 3)}"
    if free < policy.free and before - (policy.free - free) < limit:
        limit = max(0, before - (policy.free - free))
        why = f"only {human_size(free, 3)} of the disk free, {human_size(policy.free, 3)} wanted"
    if before <= limit:
        return Plan((), before, limit)
    since = min(last_builds, now - policy.keep_for)
    candidates = [
        record
        for record in oldest_first(records)
        if not record.shared and record.used < since and record.key not in spared
    ]

    def unused(record: Record) -> bool:
        return now - record.used > policy.unused_for

    def resting(record: Record) -> bool:
        return record.mutable and now - record.used > policy.folders_unused_for

    order: list[tuple[Record, str]] = []
    seen: set[str] = set()
    for applies, reason in (
        (unused, f"not used for {_age(policy.unused_for)}"),
        (resting, f"a cache folder not used for {_age(policy.folders_unused_for)}"),
        (lambda record: True, "the longest unused"),
    ):
        for record in candidates:
            if record.key not in seen and applies(record):
                seen.add(record.key)
                order.append((record, reason))
    removals: list[Removal] = []
    for record, reason in order:
        if holdings.total <= limit:
            break
        over = human_size(holdings.total - limit, 3) if limit == policy.limit else ""
        said = f"{reason}; {over} {why}" if over else f"{reason}; {why}"
        removals.append(Removal(record, holdings.release(record), said))
    note = ""
    if holdings.total > limit:
        note = (
            f"{human_size(holdings.total, 3)} stay, {human_size(holdings.total - limit, 3)}"
            " over the limit: the last builds use them"
        )
    return Plan(removals, before, limit, note)


def _age(duration: int) -> str:
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (60 * _SECOND, "minute")):
        if duration >= 2 * unit or duration == unit:
            count = duration // unit
            return f"{count} {name}{'s' if count != 1 else ''}"
    return f"{duration // _SECOND} seconds"
