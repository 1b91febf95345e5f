"""Several processes build, run and delete at once, and never damage each other."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from command.conftest import Command


def test_builds_runs_and_removals_at_once(tiffin: Command, tmp_path: Path) -> None:
    failures: list[str] = []

    def check(done: object, allowed: tuple[str, ...] = ()) -> None:
        code, error = done.returncode, done.stderr.decode()  # type: ignore[attr-defined]
        if code and not any(sentence in error for sentence in allowed):
            failures.append(f"{done.args}: {code} {error}")  # type: ignore[attr-defined]

    def work(number: int) -> None:
        chance = random.Random(number)
        folder = tmp_path / f"context{number}"
        folder.mkdir()
        for turn in range(4):
            (folder / "file").write_text(f"{number} {turn}")
            (folder / "Dockerfile").write_text(
                "FROM busybox\nCOPY file /file\nRUN echo shared > /shared\n"
                f"RUN cat /file > /copy{chance.randrange(2)}\n"
            )
            name = f"image{chance.randrange(3)}"
            check(tiffin.result("build", "-q", "-t", name, str(folder)))
            check(tiffin.result("run", "--rm", "busybox", "sh", "-c", "echo x > /x; cat /x"))
            # Another thread may have given the name to its image, or taken both away.
            check(
                tiffin.result("run", "--rm", name, "cat", "/shared"),
                ("No such image", "Unable to find"),
            )
            check(tiffin.result("rmi", "-f", name), ("No such image", "is using", "being used"))
            check(tiffin.result("image", "prune", "-f"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert tiffin("run", "--rm", "busybox", "cat", "/etc/passwd").startswith("root:x:0:0")
    assert tiffin("ps", "-aq") == ""
    tiffin("system", "prune", "-af")
    tiffin("builder", "prune", "-af")
    tiffin("system", "shutdown")
    left = list((tiffin.root / "layers").iterdir())
    assert left == []
    assert not list((tiffin.root / "storage" / "overlay2" / "d").iterdir())
