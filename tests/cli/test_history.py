"""The steps of an image, as ``history`` shows them."""

from __future__ import annotations

from cli.programs import ScriptedDaemon, Tiffin


def test_a_step_that_has_no_moment_has_no_age(daemon: ScriptedDaemon, tiffin: Tiffin) -> None:
    step = {"Id": "sha256:" + "a" * 64, "Created": 0, "CreatedBy": "x", "Size": 0, "Comment": ""}
    daemon.answer("GET /images/packed/history", [step])
    assert tiffin("history", "packed").out.splitlines()[1].split() == ["a" * 12, "N/A", "x", "0B"]
