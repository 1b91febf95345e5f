"""`tiffin image pack`: an image out of this machine's own programs."""

from __future__ import annotations

from command.conftest import Command


def test_packed_programs_run_and_packing_again_gives_the_same_image(tiffin: Command) -> None:
    first = tiffin("image", "pack", "tools", "sh", "cat", "head", "id", "python")
    assert tiffin("run", "--rm", "tools", "python", "-c", "print(6 * 7)") == "42\n"
    assert tiffin("run", "--rm", "tools", "sh", "-c", "cat /etc/passwd | head -1; id") != ""
    assert tiffin("image", "pack", "tools:again", "sh", "cat", "head", "id", "python") == first
    assert tiffin("images", "-q", "tools").split() == [first.strip()[7:19]] * 2
