"""Volumes and mounts as containers meet them."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import busybox_tar, kill_keeper
from tiffin.engine import Engine
from tiffin.errors import Conflict, InvalidParameter, NotFound, TiffinError


def shell(
    engine: Engine, command: str, binds: list[str] | None = None, **host: Any
) -> tuple[int, str]:
    """Run a shell command in a new container; exit code and output."""
    container = engine.containers.create(
        {
            "Image": "busybox",
            "Cmd": ["sh", "-c", command],
            "HostConfig": {"NetworkMode": "none", "Binds": binds, **host},
        }
    )["Id"]
    try:
        engine.containers.start(container)
        code = engine.containers.wait(container)["StatusCode"]  # type: ignore[index]
        _, lines = engine.containers.logs(container, stdout=True, stderr=True)
        return code, b"".join(data for _, data in lines).decode()
    finally:
        engine.containers.remove(container, force=True, volumes=True)


def mount(kind: str, target: str, source: str = "", **fields: Any) -> dict[str, Any]:
    return {"Type": kind, "Target": target, "Source": source, **fields}


def test_a_new_volume_is_filled_from_the_image_with_owners_and_modes(engine: Engine) -> None:
    script = (
        "mkdir /data && echo one >/data/f && chown 1000:5 /data/f && chmod 640 /data/f && "
        "chmod 750 /data"
    )
    made = engine.containers.create(
        {
            "Image": "busybox",
            "Cmd": ["sh", "-c", script],
            "HostConfig": {"NetworkMode": "none"},
        }
    )["Id"]
    engine.containers.start(made)
    engine.containers.wait(made)
    engine.containers.commit(made, "filled")
    container = engine.containers.create(
        {"Image": "filled", "Cmd": ["true"], "HostConfig": {"Binds": ["vol:/data"]}}
    )["Id"]
    folder = Path(engine.volumes.inspect("vol")["Mountpoint"])
    status = os.stat(folder / "f")
    assert (folder / "f").read_text() == "one\n"
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1000, 5, 0o640)
    assert os.stat(folder).st_mode & 0o777 == 0o750
    engine.containers.remove(container)
    (folder / "f").write_text("changed")
    engine.containers.create(
        {"Image": "filled", "Cmd": ["true"], "HostConfig": {"Binds": ["vol:/data"]}}
    )
    assert (folder / "f").read_text() == "changed"
    engine.containers.create(
        {
            "Image": "filled",
            "Cmd": ["true"],
            "HostConfig": {
                "Mounts": [mount("volume", "/data", "empty", VolumeOptions={"NoCopy": True})]
            },
        }
    )
    assert not os.listdir(engine.volumes.inspect("empty")["Mountpoint"])


def test_a_volume_in_use_says_by_whom(engine: Engine) -> None:
    container = engine.containers.create({"Image": "busybox", "HostConfig": {"Binds": ["vol:/v"]}})[
        "Id"
    ]
    with pytest.raises(Conflict, match=rf"remove vol: volume is in use - \[{container}\]"):
        engine.volumes.remove("vol")


def test_anonymous_volumes_go_with_rm_v_and_named_ones_stay(engine: Engine) -> None:
    container = engine.containers.create(
        {"Image": "busybox", "Volumes": {"/anon": {}}, "HostConfig": {"Binds": ["named:/n"]}}
    )["Id"]
    assert len(engine.volumes.list({})) == 2
    engine.containers.remove(container, volumes=True)
    assert [row["Name"] for row in engine.volumes.list({})] == ["named"]


def test_several_containers_write_to_one_volume_at_once(engine: Engine) -> None:
    def write(number: int) -> None:
        code, _ = shell(
            engine, f"for i in $(seq 50); do echo {number} >> /v/log; done", ["shared:/v"]
        )
        assert code == 0

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shell(engine, "sort /v/log | uniq -c | wc -l; wc -l < /v/log", ["shared:/v"]) == (
        0,
        "3\n150\n",
    )


def test_read_only_mounts_can_not_be_written(engine: Engine, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        for binds, mounts in (
            ([f"{tmp_path}:/m:ro"], []),
            (["vol:/m:ro"], []),
            ([], [mount("bind", "/m", str(tmp_path), ReadOnly=True)]),
        ):
            code, output = shell(engine, "touch /m/x", binds, Mounts=mounts)
            assert (code, "Read-only file system" in output) == (1, True)
        # What is mounted below is read-only too, unless that was asked for.
        assert shell(engine, "touch /m/below/x", [f"{tmp_path}:/m:ro"])[0] == 1
        loose = mount(
            "bind", "/m", str(tmp_path), ReadOnly=True, BindOptions={"ReadOnlyNonRecursive": True}
        )
        assert shell(engine, "touch /m/below/x", Mounts=[loose])[0] == 0
        bare = mount("bind", "/m", str(tmp_path), BindOptions={"NonRecursive": True})
        assert shell(engine, "ls /m/below", Mounts=[bare]) == (0, "")
    finally:
        subprocess.run(["umount", below], check=True)


def test_a_mount_propagates_as_asked(engine: Engine, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "--make-shared", place], check=True)
    (place / "inner").mkdir()
    try:
        shared = mount("bind", "/m", str(place), BindOptions={"Propagation": "rshared"})
        script = "mount -t tmpfs x /m/inner && echo seen > /m/inner/file"
        assert shell(engine, script, Mounts=[shared], Privileged=True)[0] == 0
        assert (place / "inner" / "file").read_text() == "seen\n"
        subprocess.run(["umount", place / "inner"], check=True)
        private = mount("bind", "/m", str(place))
        assert shell(engine, script, Mounts=[private], Privileged=True)[0] == 0
        assert not (place / "inner" / "file").exists()
    finally:
        subprocess.run(["umount", "-R", place], check=True)


def test_a_subpath_stays_in_its_volume(engine: Engine) -> None:
    shell(
        engine, "mkdir -p /v/a/b; echo deep > /v/a/b/f; ln -s / /v/out; ln -s a /v/in", ["vol:/v"]
    )

    def sub(path: str) -> dict[str, Any]:
        return mount("volume", "/s", "vol", VolumeOptions={"Subpath": path})

    assert shell(engine, "cat /s/f", Mounts=[sub("a/b")]) == (0, "deep\n")
    assert shell(engine, "cat /s/b/f", Mounts=[sub("in")]) == (0, "deep\n")
    for wrong, error in (("../x", InvalidParameter), ("out", InvalidParameter), ("no", NotFound)):
        with pytest.raises(error):
            shell(engine, "true", Mounts=[sub(wrong)])
    # A file is mounted as one.
    assert shell(engine, "cat /s", Mounts=[sub("a/b/f")]) == (0, "deep\n")


def test_a_tmpfs_has_the_size_and_mode_asked_for(engine: Engine) -> None:
    code, output = shell(
        engine,
        "stat -c %a /t; df -k /t | tail -1; echo x > /t/f",
        Mounts=[mount("tmpfs", "/t", TmpfsOptions={"SizeBytes": 1 << 20, "Mode": 0o700})],
    )
    assert (code, output.split()[0], output.split()[2]) == (0, "700", "1024")


def test_an_image_is_mounted_and_kept(engine: Engine) -> None:
    container = engine.containers.create(
        {
            "Image": "busybox",
            "Cmd": ["sh", "-c", "cat /other/etc/passwd | head -1; touch /other/x"],
            "HostConfig": {"NetworkMode": "none", "Mounts": [mount("image", "/other", "second")]},
        }
    ) if engine.images.import_(io.BytesIO(busybox_tar()), "second") else {}  # fmt: skip
    key = container["Id"]
    engine.images.remove("second", force=True)
    engine.images.prune()
    engine.containers.start(key)
    assert engine.containers.wait(key)["StatusCode"] == 1  # type: ignore[index]
    _, lines = engine.containers.logs(key, stdout=True, stderr=True)
    output = b"".join(data for _, data in lines)
    assert output.startswith(b"root:x:0:0")
    assert b"Read-only file system" in output
    (view,) = engine.containers.inspect(key)["Mounts"]
    assert (view["Type"], view["Source"], view["RW"]) == ("image", "second", False)


def test_a_folder_of_an_image_is_mounted(engine: Engine) -> None:
    engine.images.import_(io.BytesIO(busybox_tar()), "second")

    def with_subpath(subpath: str, command: str) -> tuple[int, str]:
        options = {"Subpath": subpath}
        return shell(
            engine, command, Mounts=[mount("image", "/etc2", "second", ImageOptions=options)]
        )

    assert with_subpath("etc", "ls /etc2; touch /etc2/x 2>/dev/null || echo no") == (
        0,
        "group\npasswd\nno\n",
    )
    for missing in ("nowhere", "etc/passwd"):
        with pytest.raises(TiffinError, match=missing):
            with_subpath(missing, "true")
    with pytest.raises(InvalidParameter, match="subpath must be a relative path within the image"):
        with_subpath("../etc", "true")


def test_volumes_from_another_container(engine: Engine) -> None:
    first = engine.containers.create(
        {"Image": "busybox", "Volumes": {"/anon": {}}, "HostConfig": {"Binds": ["named:/n"]}},
        "first",
    )["Id"]
    assert shell(engine, "echo x > /n/f && echo y > /anon/f", VolumesFrom=["first"])[0] == 0
    assert shell(engine, "cat /n/f /anon/f", VolumesFrom=["first:ro"]) == (0, "x\ny\n")
    assert shell(engine, "touch /n/g", VolumesFrom=[f"{first}:ro"])[0] == 1
    with pytest.raises(InvalidParameter, match="invalid mode"):
        shell(engine, "true", VolumesFrom=["first:what"])
    with pytest.raises(InvalidParameter, match="No such container: nobody"):
        shell(engine, "true", VolumesFrom=["nobody"])


def is_mounted(engine: Engine, name: str) -> bool:
    return os.path.ismount(engine.volumes.inspect(name)["Mountpoint"])


def test_a_volume_with_options_is_mounted_while_it_is_used(engine: Engine, tmp_path: Path) -> None:
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=2m,uid=1000"}
    engine.volumes.create("ram", options=options)
    assert engine.volumes.inspect("ram")["Options"] == options
    body = {
        "Image": "busybox",
        "Cmd": ["sleep", "100"],
        "HostConfig": {"NetworkMode": "none", "Binds": ["ram:/r"]},
    }
    first, second = (engine.containers.create(body)["Id"] for _ in range(2))
    for container in (first, second):
        engine.containers.start(container)
    assert is_mounted(engine, "ram")
    # Both have the same one.
    execution = engine.containers.exec_create(
        first, {"Cmd": ["sh", "-c", "echo hi > /r/f; stat -c %u /r"], "AttachStdout": True}
    )
    assert engine.containers.exec_output(execution["Id"])[1] == b"1000\n"
    execution = engine.containers.exec_create(
        second, {"Cmd": ["cat", "/r/f"], "AttachStdout": True}
    )
    assert engine.containers.exec_output(execution["Id"])[1] == b"hi\n"
    engine.containers.remove(first, force=True)
    assert is_mounted(engine, "ram")
    engine.containers.remove(second, force=True)
    assert not is_mounted(engine, "ram")


def test_a_bind_volume_is_never_deleted_with_its_volume(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    engine.volumes.create("bound", options={"type": "none", "o": "bind", "device": str(tmp_path)})
    container = engine.containers.create(
        {
            "Image": "busybox",
            "Cmd": ["cat", "/b/precious"],
            "HostConfig": {"NetworkMode": "none", "Binds": ["bound:/b"]},
        }
    )["Id"]
    engine.containers.start(container)
    engine.containers.wait(container)
    engine.containers.remove(container)
    engine.volumes.remove("bound")
    assert (tmp_path / "precious").read_text() == "data"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"what": "x"}, InvalidParameter),
        ({"type": "tmpfs"}, InvalidParameter),
        ({"device": "/x"}, InvalidParameter),
        ({"size": "much"}, InvalidParameter),
        ({"size": "1m", "type": "tmpfs"}, InvalidParameter),
    ],
)
def test_options_that_make_no_sense(
    engine: Engine, options: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.volumes.create("vol", options=options)


def test_a_device_that_can_not_be_mounted_stops_the_start(engine: Engine) -> None:
    engine.volumes.create("bad", options={"type": "ext4", "device": "/dev/null"})
    with pytest.raises(InvalidParameter, match="failed to mount local storage"):
        engine.containers.create(
            {"Image": "busybox", "HostConfig": {"NetworkMode": "none", "Binds": ["bad:/b"]}}
        )


def test_filters_and_labels(engine: Engine) -> None:
    engine.volumes.create("one", labels={"a": "1"})
    engine.volumes.create("two", labels={"a": "2"})
    engine.containers.create({"Image": "busybox", "HostConfig": {"Binds": ["one:/v"]}})

    def names(**filters: list[str]) -> list[str]:
        return [row["Name"] for row in engine.volumes.list(filters)]

    assert names(label=["a=1"]) == ["one"]
    assert names(dangling=["true"]) == ["two"]
    assert names(name=["tw"]) == ["two"]
    assert names(driver=["other"]) == []
    assert engine.volumes.prune({"all": ["true"], "label": ["a=2"]})["VolumesDeleted"] == ["two"]


def test_usage_is_in_df(engine: Engine) -> None:
    shell(engine, "head -c 5000 /dev/zero > /v/f", ["vol:/v"])
    engine.containers.create({"Image": "busybox", "HostConfig": {"Binds": ["vol:/v"]}})
    (row,) = engine.system.df()["Volumes"]
    assert row["UsageData"] == {"Size": 5000, "RefCount": 1}


def test_data_survives_moving_the_root(root: Path, tmp_path: Path, busybox: Path) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
        container = engine.containers.create(
            {
                "Image": "busybox",
                "Cmd": ["sh", "-c", "cat /v/f; echo data > /v/f"],
                "HostConfig": {"Binds": ["vol:/v"]},
            },
            "job",
        )["Id"]
        engine.containers.start(container)
        engine.containers.wait(container)
        engine.shutdown_keeper()
    moved = tmp_path / "elsewhere"
    shutil.move(root, moved)
    try:
        with Engine(moved) as engine:
            engine.containers.start("job")
            engine.containers.wait("job")
            _, lines = engine.containers.logs("job", stdout=True, stderr=True)
            assert b"".join(data for _, data in lines).endswith(b"data\n")
            (view,) = engine.containers.inspect("job")["Mounts"]
            assert view["Source"] == str(moved / "volumes" / "vol" / "_data")
            engine.shutdown_keeper()
    finally:
        kill_keeper(moved)


def test_a_killed_engine_leaves_no_mount(root: Path, busybox: Path) -> None:
    with Engine(root) as engine:
        engine.volumes.create("ram", options={"type": "tmpfs", "device": "tmpfs"})
    pid = os.fork()
    if pid == 0:
        try:
            child = Engine(root)
            held = child.volumes.mounted("ram")
            held.__enter__()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert os.path.ismount(root / "volumes" / "ram" / "_data")
    with Engine(root) as engine:
        assert not is_mounted(engine, "ram")
