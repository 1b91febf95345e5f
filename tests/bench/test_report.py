"""The benchmark's own arithmetic: in what order sides are measured, and what the table says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark import measurement, report
from benchmark.measurement import Comparison, Measure, Outcome, Result, Role, Side, Target

RUN = Path(__file__).parents[2] / "bench" / "run"


def outcome(ours: list[float], *peers: list[float]) -> Outcome:
    target = Target(Role.TIFFIN, ratio=1 / 2, text="≤ 1/2")
    results = [Result("tiffin", Role.TIFFIN, ours)]
    results += [Result(f"docker {n}", Role.PEER, values) for n, values in enumerate(peers)]
    return Outcome("case", Measure("time", "a thing", "ms", (target,)), results)


def test_sides_take_turns_after_a_round_that_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measurement, "settle", lambda: None)
    order: list[str] = []
    numbers = iter(range(100))

    def side(name: str) -> Side:
        def measure() -> dict[str, float]:
            order.append(name)
            return {"time": float(next(numbers))}

        return Side(
            name,
            Role.PEER,
            measure,
            before=lambda: order.append(f"before {name}"),
            after=lambda: order.append(f"after {name}"),
        )

    comparison = Comparison((Measure("time", "it", "s"),), [side("a"), side("b")])
    [found] = measurement.alternate("case", comparison, 2, lambda text: None)
    once = ["before a", "a", "after a", "before b", "b", "after b"]
    assert order == once * 3
    assert [result.values for result in found.results] == [[2, 4], [3, 5]]


def test_a_side_that_fails_is_cleaned_up_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "settle", lambda: None)
    cleaned: list[str] = []

    def fail() -> dict[str, float]:
        raise RuntimeError("no")

    broken = Side("a", Role.PEER, fail, after=lambda: cleaned.append("a"))
    comparison = Comparison((Measure("time", "it", "s"),), [broken])
    with pytest.raises(RuntimeError):
        list(measurement.alternate("case", comparison, 2, lambda text: None))
    assert cleaned == ["a"]


@pytest.mark.parametrize(
    ("peers", "verdict"),
    [([[0.3, 0.4, 0.5]], "✓"), ([[0.3, 0.4, 0.5], [0.1, 0.1, 0.1]], "✗"), ([], "")],
)
def test_a_target_is_met_if_it_is_against_each_peer(peers: list[list[float]], verdict: str) -> None:
    table = report.markdown({"kernel": "x"}, {}, [outcome([0.1, 0.2, 0.15], *peers)])
    row = next(line for line in table.splitlines() if "| tiffin |" in line)
    assert row.endswith(f"| ≤ 1/2 | {verdict} |")
    assert "**150 ms** | 100 ms … 200 ms" in row


def test_programs_get_every_number() -> None:
    text = report.as_json({}, {"tiffin": "1"}, [outcome([0.1, 0.2], [0.4, 0.8])])
    [measure] = json.loads(text)["measures"]
    ours, peer = measure["sides"]
    assert ours["values"] == [0.1, 0.2] and ours["met"] is True
    assert ours["ratios"] == {"docker 0": pytest.approx(0.25)}
    assert peer["median"] == pytest.approx(0.6)


@pytest.mark.root
def test_a_run_leaves_nothing_behind(tmp_path: Path, busybox: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(RUN), "--only", "run", "--runs", "1", "--work", str(tmp_path)),
            *("--no-docker", "--no-podman", "--file-system", "none", "--json", tmp_path / "j"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| library |" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["busybox-2.tar", "j"]
