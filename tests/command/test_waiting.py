"""``wait`` and its conditions."""

from __future__ import annotations

from command.conftest import Command


def test_wait_for_the_end_for_the_next_one_and_for_the_removal(tiffin: Command) -> None:
    tiffin("run", "--name", "over", "--network", "none", "busybox", "sh", "-c", "exit 3", code=3)
    assert tiffin("wait", "over") == "3\n"
    waiting = tiffin.start("wait", "--condition", "next-exit", "over", stdout=-1)
    for _ in range(100):
        # Until it has come to wait, and has seen an end.
        if waiting.poll() is None:
            tiffin("start", "-a", "over", code=3)
    assert waiting.communicate(timeout=60)[0] == b"3\n"
    name = tiffin("run", "-d", "--rm", "--network", "none", "busybox", "sleep", "1").strip()
    assert tiffin("wait", "--condition", "removed", name) == "0\n"
    assert tiffin("ps", "-aq", "--filter", f"id={name}") == ""
    done = tiffin.result("wait", "--condition", "boredom", "over")
    assert done.returncode and b'invalid condition: "boredom"' in done.stderr
