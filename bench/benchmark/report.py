"""What was measured, as a Markdown table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmark.measurement import Measure, Outcome, Result, Role, Target

_SCALES = {
    "s": (1.0, "s"),
    "ms": (1e3, "ms"),
    "µs": (1e6, "µs"),
    "MB": (1e-6, "MB"),
    "MiB": (1 / (1 << 20), "MiB"),
    "×": (1.0, "×"),
}


def _number(value: float, unit: str) -> str:
    scale, name = _SCALES[unit]
    value *= scale
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {name}"


def _target(measure: Measure, role: Role) -> Target | None:
    for target in measure.targets:
        if target.role is role:
            return target
    return None


def _peers(outcomes: Sequence[Outcome]) -> list[str]:
    names: dict[str, None] = {}
    for outcome in outcomes:
        names.update((result.side, None) for result in outcome.results if _compared(result))
    return list(names)


def _compared(result: Result) -> bool:
    return result.role is Role.PEER


def met(target: Target, result: Result, peers: Sequence[Result]) -> bool | None:
    """Whether the target is met; None where no peer is there to say."""
    if target.limit is not None:
        return result.median <= target.limit
    if target.ratio is None or not peers:
        return None
    return all(result.median <= target.ratio * peer.median for peer in peers)


def markdown(facts: dict[str, str], versions: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """The whole report."""
    lines = [f"- {key}: {value}" for key, value in {**facts, **versions}.items()]
    peers = _peers(outcomes)
    head = ["what", "by", "median", "min … max", *(f"/ {peer}" for peer in peers), "target", ""]
    lines += ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for outcome in outcomes:
        measure = outcome.measure
        title = measure.title
        known = {result.side: result for result in outcome.results if _compared(result)}
        for result in outcome.results:
            ratios = []
            for peer in peers:
                ratio = peer in known and result.role is not Role.PEER and known[peer].median > 0
                ratios.append(f"{result.median / known[peer].median:.2f}" if ratio else "")
            target = _target(measure, result.role)
            verdict = None if target is None else met(target, result, list(known.values()))
            values = (_number(value, measure.unit) for value in _ends(result))
            cells = [
                title,
                result.side,
                f"**{_number(result.median, measure.unit)}**",
                " … ".join(values),
                *ratios,
                "" if target is None else target.text,
                {None: "", True: "✓", False: "✗"}[verdict],
            ]
            lines.append(f"| {' | '.join(cells)} |")
            title = ""
    return "\n".join(lines) + "\n"


def _ends(result: Result) -> tuple[float, float]:
    return min(result.values), max(result.values)


def as_json(facts: dict[str, str], versions: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """The same for programs; numbers are in seconds and bytes, each round's one is there."""
    document: dict[str, Any] = {"machine": facts, "versions": versions, "measures": []}
    for outcome in outcomes:
        known = [result for result in outcome.results if _compared(result)]
        sides = []
        for result in outcome.results:
            target = _target(outcome.measure, result.role)
            side: dict[str, Any] = {
                "side": result.side,
                "role": result.role.name.lower(),
                "median": result.median,
                "values": result.values,
            }
            if not _compared(result):
                side["ratios"] = {
                    peer.side: result.median / peer.median for peer in known if peer.median > 0
                }
            if target is not None:
                side["target"] = {"ratio": target.ratio, "limit": target.limit}
                side["met"] = met(target, result, known)
            sides.append(side)
        document["measures"].append(
            {
                "case": outcome.case,
                "measure": outcome.measure.name,
                "title": outcome.measure.title,
                "sides": sides,
            }
        )
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
