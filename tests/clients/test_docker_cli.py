"""The docker command line, unmodified: what it does with dockerd, it does with tiffin.

``cases/*.txt`` hold the checks. ``### name`` begins one; each of its lines is a line of shell, run
in a folder of its own, where ``docker`` speaks to one engine. Of each line the exit code, stdout
and stderr must be the same with both engines, after what differs by nature (IDs, times, folders,
column widths) has been evened out. ``#~ regex ==> text`` evens out something else for one check, or
at a file's beginning for all of the file; ``#`` before it says why. ``#! 1.45`` in a check: older
dockerds than of that version of the API do not know what it asks for.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clients import peers
from clients.conftest import need

pytestmark = [pytest.mark.peer, pytest.mark.root]

CASES = Path(__file__).parent / "cases"


@dataclass
class Case:
    """One check."""

    name: str
    lines: list[str] = field(default_factory=list)
    evened: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    since: str = ""


def cases() -> Iterator[Case]:
    for path in sorted(CASES.glob("*.txt")):
        case, everywhere = None, []
        for line in path.read_text().splitlines():
            if line.startswith("### "):
                if case:
                    yield case
                case = Case(f"{path.stem}: {line[4:]}", evened=list(everywhere))
            elif line.startswith("#~ "):
                pattern, _, text = line[3:].partition(" ==>")
                rule = re.compile(pattern, re.MULTILINE), text.removeprefix(" ")
                (case.evened if case else everywhere).append(rule)
            elif line.startswith("#! ") and case:
                case.since = line[3:]
            elif line and not line.startswith("#") and case:
                case.lines.append(line)
        if case:
            yield case


NETWORKED = [case for case in cases() if case.name.startswith("networks: ")]
"""Those that need the default network."""
ALL = [case for case in cases() if not case.name.startswith("networks: ")]

_EVENED = [
    (re.compile(pattern, re.MULTILINE), text)
    for pattern, text in (
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "TIME"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \+0000 UTC", "TIME"),
        # The client says so if the answer comes before it has sent everything.
        (r"^time=\S+ level=error msg=\"Can't (add file|close tar writer).*\n", ""),
        # What runc and containerd put around the sentence that says what happened.
        (r"(failed to create \S* ?\w+: )*OCI runtime \w+ failed: (runc create|exec) failed: ", ""),
        (r"unable to start container process: ", ""),
        (r"(exec: .*|chdir .*): unknown$", r"\1"),
        (r"\b(Less than a second|About a minute|\d+ (second|minute)s?)\b", "A WHILE"),
        (r" {2,}", "  "),
        (r" +$", ""),
    )
]
_ID = re.compile(r"\b(sha256:)?([0-9a-f]{64}|[0-9a-f]{12})\b")


def run(case: Case, peer: Any) -> list[str]:
    """What came out of each line, evened out."""
    folder = peer.home / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    results = peer.home / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    script = [f"cd {folder}"]
    for number, line in enumerate(case.lines):
        at = results / str(number)
        script += ["{ " + line, f"}} >{at}.out 2>{at}.err </dev/null; echo $? >{at}.code"]
    try:
        subprocess.run(
            ["bash", "-c", "\n".join(script)], env=peer.environment, timeout=60, check=False
        )
    finally:
        peer.reset()
    known: dict[str, str] = {}

    def even(text: str) -> str:
        def number(match: re.Match[str]) -> str:
            return (match[1] or "") + known.setdefault(match[2][:12], f"ID{len(known) + 1}")

        text = text.replace(str(folder), "DIR").replace(str(peer.home), "HOME")
        for pattern, replacement in case.evened:
            text = pattern.sub(replacement, text)
        text = _ID.sub(number, text)
        for pattern, replacement in _EVENED:
            text = pattern.sub(replacement, text)
        return text

    found = []
    for number, line in enumerate(case.lines):
        parts = [
            even((results / f"{number}.{part}").read_text(errors="backslashreplace"))
            for part in ("code", "out", "err")
        ]
        code, out, err = parts
        found.append(f"$ {line}\n{out}{'--stderr--' if err else ''}\n{err}=> {code}")
    return found


def agreed(theirs: list[str], ours: list[str]) -> list[str]:
    """Our lines; where one only differs from theirs as it may, theirs.

    The sentences of errors changed their capitals between versions of Docker; and where tiffin says
    more (what to do about it), it says so after Docker's own sentence.
    """
    if len(theirs) != len(ours):
        return ours
    result = []
    for their, our in zip(theirs, ours, strict=True):
        small, low = their.lower(), our.lower()
        longer = len(their) > 20 and low.startswith((f"{small}: ", f"{small} ("))
        same = longer or ("error response" in low and small == low)
        result.append(their if same else our)
    return result


@pytest.fixture(scope="module")
def networked(busybox: Path) -> Iterator[tuple[Any, Any]]:
    """Both engines, each with a default network on a machine of its own."""
    need("docker", "dockerd", "unshare")
    with peers.dockerd(own_network=True) as one, peers.tiffin(own_network=True) as other:
        yield one, other


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_docker_does_the_same_with_both(case: Case, dockerd: Any, tiffin: Any) -> None:
    compare(case, dockerd, tiffin)


@pytest.mark.parametrize("case", NETWORKED, ids=lambda case: case.name)
def test_docker_does_the_same_on_networks(case: Case, networked: tuple[Any, Any]) -> None:
    compare(case, *networked)


def compare(case: Case, dockerd: Any, tiffin: Any) -> None:
    if case.since:
        known = dockerd.request("GET", "/version")["ApiVersion"]
        if [*map(int, known.split("."))] < [*map(int, case.since.split("."))]:
            pytest.skip(f"dockerd here knows the API {known}, and this needs {case.since}")
    with ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.map(lambda peer: run(case, peer), (dockerd, tiffin))
    left, right = "\n".join(theirs).split("\n"), "\n".join(ours).split("\n")
    right = agreed(left, right)
    difference = "\n".join(difflib.unified_diff(left, right, "dockerd", "tiffin", "", "", 2, ""))
    if difference:
        pytest.fail(difference, pytrace=False)


def test_there_are_enough_checks() -> None:
    assert len(ALL) >= 150
    assert len({case.name for case in ALL}) == len(ALL)
