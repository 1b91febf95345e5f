"""Containers through the library: what a user sees of their life, files and sizes."""

from __future__ import annotations

import gc
import io
import os
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tiffin.engine import Engine
from tiffin.errors import (
    Conflict,
    InvalidParameter,
    NotFound,
    NotModified,
    StartFailure,
    Unsupported,
)


def create(engine: Engine, *command: str, **fields: Any) -> str:
    host = fields.pop("host", {})
    name = fields.pop("name", None)
    body = {"Image": "busybox", "Cmd": list(command) or None, "HostConfig": host, **fields}
    return str(engine.containers.create(body, name)["Id"])


def finished(engine: Engine, *command: str, **fields: Any) -> str:
    """A container that has run to its end."""
    container = create(engine, *command, **fields)
    waiter = engine.containers.wait_later(container, "next-exit")
    engine.containers.start(container)
    assert waiter.result(20) is not None
    return container


def output(engine: Engine, container: str) -> bytes:
    _, lines = engine.containers.logs(container)
    return b"".join(data for _, data in lines)


def test_a_command_runs_to_its_end(engine: Engine) -> None:
    result = engine.run("busybox", ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert engine.containers.list(all=True) == []


def test_stdin_reaches_the_command_and_ends(engine: Engine) -> None:
    assert engine.run("busybox", ["cat"], stdin=b"x" * 300_000).stdout == b"x" * 300_000


def test_the_image_command_is_run_when_none_is_given(engine: Engine) -> None:
    assert engine.run("busybox", stdin=b"echo from $0\n").stdout.startswith(b"from ")


def test_a_log_asked_for_at_once_has_what_a_short_command_says(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiffin.engine import containers

    monkeypatch.setattr(containers, "_SHORT_COMMAND", 60)
    body = {"Image": "busybox", "Cmd": ["sh", "-c", "sleep 0.1; echo said"]}
    key = engine.containers.create(body)["Id"]
    engine.containers.start(key)
    _, output = engine.containers.logs(key)
    assert list(output) == [("stdout", b"said\n")]


def test_isolation_is_what_a_container_sees(engine: Engine) -> None:
    script = "echo $$; hostname; ls /proc | grep -c '^[0-9]'; cat /proc/net/dev | wc -l; id -u; pwd"
    lines = engine.run("busybox", ["sh", "-c", script]).stdout.decode().split()
    assert lines[0] == "1"
    assert len(lines[1]) == 12
    assert int(lines[2]) < 10
    assert lines[3:] == ["4", "0", "/"]


def test_user_environment_and_working_directory(engine: Engine) -> None:
    result = engine.run(
        "busybox",
        ["sh", "-c", "id -u; id -g; echo $HOME $A; pwd"],
        user="user",
        environment={"A": "b c"},
        working_dir="/made/for/me",
    )
    assert result.stdout.decode().splitlines() == ["1000", "1000", "/home b c", "/made/for/me"]


def test_exit_codes_of_programs_that_do_not_start(engine: Engine) -> None:
    with pytest.raises(StartFailure, match="executable file not found") as missing:
        engine.run("busybox", ["nonesuch"])
    assert missing.value.exit_code == 127
    with pytest.raises(StartFailure, match="permission denied") as denied:
        engine.run("busybox", ["/etc/passwd"])
    assert denied.value.exit_code == 126


def test_the_image_never_changes_and_containers_never_see_each_other(engine: Engine) -> None:
    write = "echo changed > /etc/passwd; rm /etc/group; mkdir /new; echo 1 > /new/file"
    first = finished(engine, "sh", "-c", write)
    second = engine.run("busybox", ["sh", "-c", "cat /etc/passwd /etc/group; ls /new"])
    assert b"root:x:0" in second.stdout
    assert second.exit_code == 1
    changes = {change["Path"]: change["Kind"] for change in engine.containers.changes(first)}
    assert changes == {
        "/etc": 0, "/etc/passwd": 0, "/etc/group": 2, "/new": 1, "/new/file": 1,
    }  # fmt: skip


def test_what_was_written_is_there_after_a_restart(engine: Engine) -> None:
    container = create(engine, "sh", "-c", "echo x >> /log; cat /log")
    for times in (1, 2, 3):
        waiter = engine.containers.wait_later(container, "next-exit")
        engine.containers.start(container)
        assert waiter.result(20) == {"StatusCode": 0, "Error": None}
        assert output(engine, container).count(b"x") == sum(range(times + 1))


def test_removal_takes_the_container_layer_away(engine: Engine) -> None:
    container = finished(engine, "sh", "-c", "echo hello > /file")
    before = {path for path in (engine.root.path / "storage").rglob("*") if path.name == "file"}
    assert before
    engine.containers.remove(container)
    assert not [path for path in (engine.root.path / "storage").rglob("*") if path.name == "file"]
    with pytest.raises(NotFound, match="No such container"):
        engine.containers.inspect(container)


def test_stop_sends_the_stop_signal_and_then_kills(engine: Engine) -> None:
    polite = create(
        engine, "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    )
    engine.containers.start(polite)
    wait_for(lambda: b"ready" in output(engine, polite))
    engine.containers.stop(polite, timeout=10)
    assert engine.containers.inspect(polite)["State"]["ExitCode"] == 7
    deaf = create(engine, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    engine.containers.start(deaf)
    wait_for(lambda: b"ready" in output(engine, deaf))
    engine.containers.stop(deaf, timeout=0.2)
    assert engine.containers.inspect(deaf)["State"]["ExitCode"] == 137
    with pytest.raises(NotModified):
        engine.containers.stop(deaf)


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_pause_stops_time_and_unpause_goes_on(engine: Engine) -> None:
    container = create(engine, "sh", "-c", "while :; do echo tick; sleep 0.01; done")
    engine.containers.start(container)
    wait_for(lambda: output(engine, container).count(b"tick") > 3)
    engine.containers.pause(container)
    assert engine.containers.inspect(container)["State"]["Status"] == "paused"
    with pytest.raises(Conflict, match="is paused"):
        engine.containers.exec_create(container, {"Cmd": ["true"]})
    ticks = output(engine, container).count(b"tick")
    engine.containers.unpause(container)
    wait_for(lambda: output(engine, container).count(b"tick") > ticks + 3)


def test_exec_runs_beside_the_first_process(engine: Engine) -> None:
    container = create(engine, "sleep", "600")
    engine.containers.start(container)
    body = {"Cmd": ["sh", "-c", "echo $$; exit 5"], "AttachStdout": True, "AttachStderr": True}
    exec_id = engine.containers.exec_create(container, body)["Id"]
    code, stdout, _ = engine.containers.exec_output(exec_id)
    assert code == 5
    assert int(stdout) > 1
    assert engine.containers.exec_inspect(exec_id)["ExitCode"] == 5
    with pytest.raises(Conflict, match="already run"):
        engine.containers.exec_start(exec_id)


def test_names_are_unique_and_found_by_prefix(engine: Engine) -> None:
    container = create(engine, "true", name="one")
    with pytest.raises(Conflict, match="already in use by container"):
        create(engine, "true", name="one")
    assert engine.containers.inspect("one")["Id"] == container
    assert engine.containers.inspect(container[:6])["Name"] == "/one"
    engine.containers.rename("one", "two")
    with pytest.raises(NotFound):
        engine.containers.inspect("one")
    with pytest.raises(InvalidParameter, match="Invalid container name"):
        create(engine, "true", name="a/b")


def test_a_name_that_nobody_chose_gives_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiffin.engine.creation.random_name", lambda: "always_this")
    names = {engine.containers.inspect(create(engine, "true"))["Name"] for _ in range(3)}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("Cgroup", "x")],
)
def test_what_is_not_done_yet_is_refused_by_name(engine: Engine, field: str, value: Any) -> None:
    with pytest.raises(Unsupported, match=field):
        create(engine, "true", host={field: value})
    assert engine.containers.list(all=True) == []


def test_annotations_are_for_the_runtime(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiffin.engine import isolation
    from tiffin.runtime.oci import oci_config
    from tiffin.runtime.settings import ContainerSettings

    made: list[ContainerSettings] = []

    def settings(**members: Any) -> ContainerSettings:
        made.append(ContainerSettings(**members))
        return made[-1]

    monkeypatch.setattr(isolation, "ContainerSettings", settings)
    host = {"Annotations": {"org.example.note": "said"}}
    body = {"Image": "busybox", "Cmd": ["true"], "HostConfig": host}
    key = engine.containers.create(body)["Id"]
    engine.containers.start(key)
    engine.containers.wait(key)
    assert engine.containers.inspect(key)["HostConfig"]["Annotations"] == host["Annotations"]
    assert oci_config(made[0])["annotations"]["org.example.note"] == "said"


def test_a_named_volume_keeps_data_and_starts_with_the_images(engine: Engine) -> None:
    host = {"Binds": ["data:/etc"]}
    finished(engine, "sh", "-c", "echo kept > /etc/kept", host=host)
    again = engine.run("busybox", ["sh", "-c", "cat /etc/kept /etc/passwd"], volumes=["data:/etc"])
    assert again.stdout.startswith(b"kept\nroot:x:0")
    with pytest.raises(Conflict, match="volume is in use"):
        engine.volumes.remove("data")


def test_bind_mounts_and_read_only_ones(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    script = ["sh", "-c", "echo hi > /mnt/file"]
    assert engine.run("busybox", script, volumes=[f"{tmp_path}/here:/mnt"]).exit_code == 0
    assert (tmp_path / "here" / "file").read_text() == "hi\n"
    result = engine.run("busybox", script, volumes=[f"{tmp_path}/here:/mnt:ro"])
    assert b"Read-only file system" in result.stderr


def test_anonymous_volumes_go_with_their_container(engine: Engine) -> None:
    container = finished(engine, "touch", "/data/x", Volumes={"/data": {}})
    assert len(engine.volumes.list({})) == 1
    engine.containers.remove(container, volumes=True)
    assert engine.volumes.list({}) == []


def test_files_go_in_and_out_whether_it_runs_or_not(engine: Engine) -> None:
    container = create(engine, "sleep", "600")
    for content in (b"while stopped", b"while running"):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            info = tarfile.TarInfo("dir/file")
            info.size, info.mode = len(content), 0o640
            archive.addfile(info, io.BytesIO(content))
        engine.containers.archive_put(container, "/tmp", io.BytesIO(tar.getvalue()))
        assert engine.containers.archive_stat(container, "/tmp/dir/file")["size"] == len(content)
        out = io.BytesIO()
        engine.containers.archive_get(container, "/tmp/dir", out)
        out.seek(0)
        with tarfile.open(fileobj=out) as archive:
            member = archive.extractfile("dir/file")
            assert member is not None and member.read() == content
        if content == b"while stopped":
            engine.containers.start(container)
    with pytest.raises(NotFound, match="Could not find the file"):
        engine.containers.archive_stat(container, "/nonesuch")


def test_a_symlink_in_a_container_never_leads_out(engine: Engine, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    container = finished(engine, "sh", "-c", f"ln -s {tmp_path} /out; ln -s {secret} /file")
    with pytest.raises(NotFound):
        engine.containers.archive_get(container, "/out/secret", io.BytesIO())
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo("out/planted")
        archive.addfile(info)
    tar.seek(0)
    try:
        engine.containers.archive_put(container, "/", tar)
    except (NotFound, InvalidParameter):
        pass
    assert not (tmp_path / "planted").exists()


def test_export_is_the_whole_tree(engine: Engine) -> None:
    container = finished(engine, "sh", "-c", "echo new > /new; rm /etc/group")
    out = io.BytesIO()
    engine.containers.export(container, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        names = archive.getnames()
    assert "new" in names and "bin/busybox" in names and "etc/group" not in names


def test_export_of_a_running_container_leaves_out_what_is_mounted(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "of-the-host").write_text("x")
    container = create(engine, "sleep", "600", host={"Binds": [f"{tmp_path}:/mnt"]})
    engine.containers.start(container)
    out = io.BytesIO()
    engine.containers.export(container, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        names = archive.getnames()
    assert "bin/busybox" in names and "mnt" in names
    assert "dev/null" not in names
    assert not [name for name in names if name.startswith(("mnt/", "proc/", "sys/"))]


def test_commit_moves_the_layer_and_the_container_lives_on(engine: Engine) -> None:
    container = finished(engine, "sh", "-c", "echo one > /one; rm /etc/group")
    before = engine.containers.changes(container)
    first = engine.containers.commit(container, "made", "1")["Id"]
    assert engine.containers.changes(container) == before
    assert engine.run("made:1", ["sh", "-c", "cat /one; ls /etc/group"]).stdout == b"one\n"
    assert engine.images.inspect("made:1")["Id"] == first
    waiter = engine.containers.wait_later(container, "next-exit")
    engine.containers.start(container)
    assert waiter.result(20) == {"StatusCode": 1, "Error": None}
    assert engine.run("made:1", ["cat", "/one"]).stdout == b"one\n"


def test_commit_of_a_running_container(engine: Engine) -> None:
    container = create(engine, "sh", "-c", "echo one > /one; echo ready; sleep 600")
    engine.containers.start(container)
    wait_for(lambda: b"ready" in output(engine, container))
    engine.containers.commit(container, "made", changes=["CMD cat /one", "ENV A=b"])
    assert engine.run("made").stdout == b"one\n"
    assert engine.containers.inspect(container)["State"]["Running"]


def test_a_commit_holds_up_nobody_and_its_pause_is_not_written_down(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = create(engine, "sleep", "600")
    engine.containers.start(container)
    rest = engine._layers.commit_copy
    seen: list[tuple[str, bool]] = []

    def slowly(*arguments: Any) -> Any:
        status = engine.containers.inspect(container)["State"]["Status"]
        (row,) = engine._database.all("SELECT state FROM containers WHERE id = ?", (container,))
        seen.append((status, b"paused" in bytes(row["state"])))
        # The ends of all containers come one after the other.
        if status == "running":
            waiter = engine.containers.wait_later(container, "not-running")
            engine.containers.kill(container)
            assert waiter.result(20) is not None
        return rest(*arguments)

    monkeypatch.setattr(engine._layers, "commit_copy", slowly)
    engine.containers.commit(container, "paused")
    assert engine.containers.inspect(container)["State"]["Status"] == "running"
    engine.containers.commit(container, "running", pause=False)
    assert seen == [("paused", False), ("running", False)]


def test_what_ends_in_the_moment_of_a_pause_is_committed_as_it_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = create(engine, "sh", "-c", "echo one > /one; echo ready; sleep 600")
    engine.containers.start(container)
    wait_for(lambda: b"ready" in output(engine, container))
    cgroups = engine._lifecycle._cgroups
    rest = cgroups.freeze

    def late(name: str) -> None:
        cgroups.kill(name)
        wait_for(lambda: not cgroups.exists(name))
        rest(name)

    monkeypatch.setattr(cgroups, "freeze", late)
    engine.containers.commit(container, "made", changes=["CMD cat /one"])
    assert engine.run("made").stdout == b"one\n"
    assert not engine.containers.inspect(container)["State"]["Running"]
    monkeypatch.undo()
    again = create(engine, "sleep", "600")
    engine.containers.start(again)
    monkeypatch.setattr(cgroups, "freeze", late)
    with pytest.raises(Conflict, match="is not running"):
        engine.containers.pause(again)


def test_sizes_are_right_to_the_byte(engine: Engine) -> None:
    container = finished(engine, "sh", "-c", "dd if=/dev/zero of=/big bs=1000 count=77 2>/dev/null")
    row = engine.containers.list(all=True, size=True)[0]
    image = engine.images.inspect("busybox")["Size"]
    assert row["SizeRw"] == 77_000
    assert row["SizeRootFs"] == 77_000 + image
    assert engine.containers.inspect(container, size=True)["SizeRw"] == 77_000


def test_a_second_process_is_told_who_owns_the_root(engine: Engine) -> None:
    from tiffin.errors import RootInUse

    with pytest.raises(RootInUse, match=f"process {os.getpid()}"):
        Engine(engine.root.path)


def test_wait_for_removal(engine: Engine) -> None:
    container = create(engine, "true", host={"AutoRemove": True})
    waiter = engine.containers.wait_later(container, "removed")
    engine.containers.start(container)
    assert waiter.result(20) == {"StatusCode": 0, "Error": None}
    assert engine.containers.list(all=True) == []


def test_many_at_once(engine: Engine) -> None:
    results: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            code = engine.run(
                "busybox", ["sh", "-c", f"echo {number} > /x; exit {number}"]
            ).exit_code
            results.append(code - number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 40


def test_an_export_that_nobody_reads_ends_there(engine: Engine, tmp_path: Path) -> None:
    class Gone(io.RawIOBase):
        written = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.written += 1
            raise BrokenPipeError

    gone = Gone()
    container = create(engine)
    with pytest.raises(BrokenPipeError):
        engine.containers.export(container, gone)  # type: ignore[arg-type]
    gc.collect()
    assert gone.written == 1
