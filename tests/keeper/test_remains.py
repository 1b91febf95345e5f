"""What ended containers leave, removed in several tries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiffin.keeper.loop import Loop
from tiffin.keeper.remains import Remains

GROUP = "tiffin-test/one"


class SlowLauncher:
    """One whose cgroups are empty after some tries only."""

    def __init__(self, tries: int) -> None:
        self.left = tries
        self.killed: list[str] = []

    def remove(self, cgroup: str) -> bool:
        self.killed.append(cgroup)
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("again", [False, True])
def test_a_container_that_is_started_again_is_not_killed_with_what_its_last_run_left(
    tmp_path: Path, again: bool
) -> None:
    launcher = SlowLauncher(tries=4)
    started: set[str] = set()
    loop = Loop()
    remains = Remains(
        loop,
        str(tmp_path),
        launcher,  # type: ignore[arg-type]  # all that it needs
        known=lambda id: False,
        used=started.__contains__,
    )
    remains.cgroup(GROUP)
    if again:
        started.add(GROUP)
        # The second try, which was planned before that.
        loop.turn()
        assert launcher.killed == [GROUP]
    else:
        while launcher.left > 0:
            loop.turn()
    loop.close()
