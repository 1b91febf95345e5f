"""``(did you mean FROM?)``: the known name nearest to one that isn't known."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)``, in the case that ``name`` has, or nothing when none is near.

    Near means at most two letters added, left out, changed, or swapped with a neighbour.
    """
    best, least = "", 3
    for candidate in known:
        distance = _distance(name.lower(), candidate.lower())
        if 0 < distance < least:
            best, least = candidate, distance
    if not best:
        return ""
    return f" (did you mean {best.lower() if name.islower() else best}?)"


def _distance(first: str, second: str) -> int:
    rows = [list(range(len(second) + 1))]
    for i, a in enumerate(first, 1):
        row = [i]
        for j, b in enumerate(second, 1):
            cost = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]
