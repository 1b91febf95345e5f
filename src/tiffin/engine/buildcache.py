"""The build cache as a whole: what it holds, pruning by hand, and garbage collection after builds.

What goes and why is planned by :mod:`tiffin.build.collection`; here it is carried out and told.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiffin.build import collection
from tiffin.build.cache import BuildCache, Record, identifier
from tiffin.build.collection import Plan, Policy
from tiffin.build.folders import CacheFolders
from tiffin.engine import filters as filtering
from tiffin.engine import timestamps
from tiffin.errors import InvalidParameter
from tiffin.units import human_size

JSON = dict[str, Any]

logger = logging.getLogger("tiffin")

_SYSTEM = Path("/etc/tiffin")
_FILTERS = (
    "until", "unused-for", "id", "parents", "parent", "description", "inuse", "mutable",
    "immutable", "shared", "private", "type",
)  # fmt: skip
_TRUTHS = ("inuse", "mutable", "immutable", "shared", "private")
_SHOWN = 10
"""So many records are named in a build's output; all of them are in the daemon's log."""


class Cache:
    """The records of one engine, and who uses them."""

    def __init__(
        self,
        records: BuildCache,
        folders: CacheFolders,
        root: Path,
        collect_layers: Callable[[], object],
    ) -> None:
        """``collect_layers`` frees the layers that nothing needs any more."""
        self._records = records
        self._folders = folders
        self._root = root
        self._collect_layers = collect_layers
        self._running: list[list[str]] = []
        self._collecting = threading.Lock()

    @contextmanager
    def used_by_build(self) -> Iterator[list[str]]:
        """Inside the block, what is put into the list is in use."""
        keys: list[str] = []
        self._running.append(keys)
        try:
            yield keys
        finally:
            # By identity: two builds may use the very same records.
            self._running = [each for each in self._running if each is not keys]

    def _in_use(self) -> set[str]:
        return self._folders.in_use().union(*[list(each) for each in self._running])

    def list(self) -> list[JSON]:
        """Docker's view of the records."""
        self._folders.measure()
        in_use = self._in_use()
        return [_view(record, in_use) for record in self._records.records()]

    def prune(
        self,
        *,
        everything: bool = False,
        filters: filtering.Filters | None = None,
        reserved: int = 0,
        most: int = 0,
        free: int = 0,
        dry: bool = False,
    ) -> JSON:
        """Remove records, and the layers that nothing else needs.

        What is ``reserved`` stays in any case; with ``most`` the cache is brought down to it, with
        ``free`` as far as it takes to have so much of the disk free. ``dry`` only says what would
        go. Raises InvalidParameter.
        """
        filters = filters or {}
        until, fits = _filter(filters)
        self._folders.measure()
        with self._collecting:
            records, stacks = self._records.records(), self._records.stacks()
            in_use = self._in_use()
            total = collection.Holdings(records, stacks).total
            keep = reserved
            if most or free:
                keep = most or total
                if free:
                    keep = min(keep, total - max(0, free - _disk(self._root)[1]))
                keep = max(keep, reserved, 1)
            plan = collection.prune(
                records,
                stacks,
                everything=everything,
                unused_since=until,
                keep=keep,
                spared=in_use,
                wanted=lambda record: fits(record, in_use),
            )
            if not dry:
                self._carry_out(plan)
        return _answer(plan, reasons=dry)

    def collect(self, *, dry: bool = False) -> JSON:
        """Garbage collection by the policy; ``dry`` only says what would go."""
        policy = self._policy()
        self._folders.measure()
        with self._collecting:
            plan = self._planned(policy)
            if not dry:
                self._carry_out(plan)
        answer = _answer(plan, reasons=True)
        return {**answer, "Limit": plan.limit, "Total": plan.before, "Note": plan.note}

    def after_build(self, say: Callable[[str], None]) -> None:
        """Garbage collection after a build; what it did is told line by line, and logged."""
        policy = self._policy()
        if not policy.enabled:
            return
        self._folders.measure()
        # One at a time is enough: who comes meanwhile would find nothing left to do.
        if not self._collecting.acquire(blocking=False):
            return
        try:
            plan = self._planned(policy)
            self._carry_out(plan)
        finally:
            self._collecting.release()
        if not plan.removals:
            return
        say(
            f"Garbage collection: removed {len(plan.removals)} records of the build cache, "
            f"{human_size(plan.frees, 3)} of {human_size(plan.before, 3)}"
        )
        for each in plan.removals[:_SHOWN]:
            say(f" - {_line(each)}")
        if len(plan.removals) > _SHOWN:
            say(f" - and {len(plan.removals) - _SHOWN} more: the daemon's log has them")
        if plan.note:
            say(f"   {plan.note}")

    def _policy(self) -> Policy:
        return Policy.read((self._root, _SYSTEM), _disk(self._root)[0])

    def _planned(self, policy: Policy) -> Plan:
        return collection.collect(
            self._records.records(),
            self._records.stacks(),
            policy,
            now=time.time_ns(),
            free=_disk(self._root)[1],
            last_builds=self._records.last_builds(policy.keep_builds),
            spared=self._in_use(),
        )

    def _carry_out(self, plan: Plan) -> None:
        if not plan.removals:
            return
        records = [each.record for each in plan.removals]
        self._records.remove(record.key for record in records)
        self._folders.removed(records)
        self._collect_layers()
        for each in plan.removals:
            logger.info("build cache: removed %s", _line(each))


def _disk(path: Path) -> tuple[int, int]:
    """The size of the disk, and what is free."""
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _view(record: Record, in_use: Collection[str]) -> JSON:
    return {
        "ID": record.identifier,
        "Parents": [identifier(record.parent)] if record.parent else None,
        "Type": record.type,
        "Description": record.step,
        "InUse": record.key in in_use,
        "Shared": record.shared,
        "Size": max(record.size, 0),
        "CreatedAt": timestamps.rfc3339(record.created),
        "LastUsedAt": timestamps.rfc3339(record.used),
        "UsageCount": record.uses,
    }


def _line(removal: collection.Removal) -> str:
    record = removal.record
    text = " ".join(record.step.split())
    text = text if len(text) <= 60 else f"{text[:59]}…"
    return f"{record.identifier[:12]} {text} ({human_size(removal.frees, 3)}): {removal.reason}"


def _answer(plan: Plan, *, reasons: bool) -> JSON:
    answer: JSON = {
        "CachesDeleted": [each.record.identifier for each in plan.removals],
        "SpaceReclaimed": plan.frees,
    }
    if reasons:
        answer["Removals"] = [
            {**_view(each.record, ()), "Frees": each.frees, "Reason": each.reason}
            for each in plan.removals
        ]
    return answer


def _filter(
    filters: filtering.Filters,
) -> tuple[int | None, Callable[[Record, Collection[str]], bool]]:
    """The moment of ``until``, and whether a record is what all other filters name.

    A filter is ``name=value`` or ``name==value``; ``name~=value`` takes a regular expression, and
    ``name!=value`` what is not so; a truth (``shared``) may stand alone.
    """
    moments: list[int] = []
    tests: list[Callable[[Record, Collection[str]], bool]] = []
    for written, values in filters.items():
        name = written.rstrip("~!=")
        sign = written[len(name) :]
        if name not in _FILTERS:
            raise InvalidParameter(f"invalid filter '{written}': one of {', '.join(_FILTERS)}")
        if name in ("until", "unused-for"):
            moments += [timestamps.parse(value) for value in values]
        elif values:
            tests.append(_test(name, sign, values))
    until = min(moments) if moments else None
    return until, lambda record, in_use: all(test(record, in_use) for test in tests)


def _test(
    name: str, sign: str, values: Collection[str]
) -> Callable[[Record, Collection[str]], bool]:
    if name in _TRUTHS:
        truths = {_truth(name, value.removeprefix("=")) != (sign == "!") for value in values}
        return lambda record, in_use: _is(record, name, in_use) in truths
    wanted = [value.removeprefix("=") for value in values]
    if sign == "~":
        try:
            patterns = [re.compile(value) for value in wanted]
        except re.error as error:
            raise InvalidParameter(f"invalid filter '{name}~={wanted[0]}': {error}") from error
        return lambda record, in_use: any(
            pattern.search(text) for pattern in patterns for text in _texts(record, name)
        )
    if sign == "!":
        return lambda record, in_use: not any(text in wanted for text in _texts(record, name))

    def test(record: Record, in_use: Collection[str]) -> bool:
        texts = _texts(record, name)
        if name in ("id", "parent", "parents"):
            return any(text.startswith(value) for value in wanted for text in texts)
        if name == "description":
            return any(value in text for value in wanted for text in texts)
        return any(text in wanted for text in texts)

    return test


def _texts(record: Record, name: str) -> list[str]:
    if name == "id":
        return [record.identifier]
    if name in ("parent", "parents"):
        return [identifier(record.parent)] if record.parent else []
    return [record.type if name == "type" else record.step]


def _is(record: Record, name: str, in_use: Collection[str]) -> bool:
    match name:
        case "inuse":
            return record.key in in_use
        case "mutable" | "immutable":
            return record.mutable is (name == "mutable")
        case _:
            return record.shared is (name == "shared")


def _truth(name: str, value: str) -> bool:
    if value.lower() in ("", "1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise InvalidParameter(f"invalid filter '{name}={value}': true or false")
