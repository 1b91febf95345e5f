"""Namespaces: a container's own, the host's, or another container's."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tiffin.errors import Conflict, InvalidParameter, NotFound

pytestmark = pytest.mark.root

NAMESPACES = (
    "say({name: os.readlink(f'/proc/self/ns/{name}') for name in os.listdir('/proc/self/ns')})"
)


def of_process(pid: int | str, name: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{name}")


def test_everything_is_its_own_by_default(prison: Any) -> None:
    found = prison.attempt(NAMESPACES)
    for name in ("pid", "mnt", "uts", "ipc", "net", "cgroup"):
        assert found[name] != of_process("self", name)
    assert found["user"] == of_process("self", "user")


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("PidMode", "pid"),
        ("IpcMode", "ipc"),
        ("UTSMode", "uts"),
        ("CgroupnsMode", "cgroup"),
        ("NetworkMode", "net"),
    ],
)
def test_the_hosts_where_asked(prison: Any, field: str, name: str) -> None:
    assert prison.attempt(NAMESPACES, host={field: "host"})[name] == of_process("self", name)


def test_the_processes_of_another_container(prison: Any) -> None:
    first = prison.background()
    script = NAMESPACES.replace("say(", "say([os.getpid(), ").replace(")})", ")}])")
    number, found = prison.attempt(script, host={"PidMode": f"container:{first[:12]}"})
    assert number > 1
    assert found["pid"] == of_process(prison.pid(first), "pid")
    assert found["mnt"] != of_process(prison.pid(first), "mnt")


def test_the_ipc_and_shared_memory_of_another_container(prison: Any) -> None:
    private = prison.background()
    with pytest.raises(Conflict, match="non-shareable"):
        prison.attempt("say(1)", host={"IpcMode": f"container:{private}"})
    donor = prison.background(host={"IpcMode": "shareable", "ShmSize": 1 << 20})
    prison.run(donor, "sh", "-c", "echo soup > /dev/shm/pot")
    script = """
free = os.statvfs("/dev/shm")
say([open("/dev/shm/pot").read(), free.f_blocks * free.f_frsize, os.readlink("/proc/self/ns/ipc")])
"""
    text, size, namespace = prison.attempt(script, host={"IpcMode": f"container:{donor}"})
    assert (text, size) == ("soup\n", 1 << 20)
    assert namespace == of_process(prison.pid(donor), "ipc")


def test_shared_memory_is_taken_from_nowhere_else(prison: Any) -> None:
    """A donor that puts a link at /dev/shm gives what is there for itself, nothing of the host."""
    donor = prison.background(host={"IpcMode": "shareable", "CapAdd": ["SYS_ADMIN"]})
    code, _, said = prison.run(
        donor, "sh", "-c", "umount /dev/shm && rmdir /dev/shm && ln -s /etc /dev/shm"
    )
    assert code == 0, said
    script = "say(os.path.exists('/dev/shm/shadow'))"
    assert prison.attempt(script, host={"IpcMode": f"container:{donor}"}) is False


def test_no_shared_memory_at_all(prison: Any) -> None:
    script = "say([os.path.ismount('/dev/shm'), os.readlink('/proc/self/ns/ipc')])"
    mounted, namespace = prison.attempt(script, host={"IpcMode": "none"})
    assert not mounted
    assert namespace != of_process("self", "ipc")


def test_the_hosts_shared_memory(prison: Any) -> None:
    script = "say(os.stat('/dev/shm').st_dev)"
    assert prison.attempt(script, host={"IpcMode": "host"}) == os.stat("/dev/shm").st_dev


def test_the_size_of_shared_memory(prison: Any) -> None:
    script = "s = os.statvfs('/dev/shm'); say(s.f_blocks * s.f_frsize)"
    assert prison.attempt(script) == 64 << 20
    assert prison.attempt(script, host={"ShmSize": 3 << 20}) == 3 << 20


def test_a_container_to_join_must_run(prison: Any) -> None:
    stopped = prison.create("true")
    for host in ({"PidMode": f"container:{stopped}"}, {"IpcMode": f"container:{stopped}"}):
        with pytest.raises(Conflict, match="not running"):
            prison.attempt("say(1)", host=host)
    with pytest.raises(NotFound):
        prison.attempt("say(1)", host={"PidMode": "container:nobody"})


@pytest.mark.parametrize(
    "host",
    [
        {"IpcMode": "nonsense"},
        {"IpcMode": "container:"},
        {"PidMode": "private"},
        {"UTSMode": "container:x"},
        {"CgroupnsMode": "container:x"},
        {"UsernsMode": "container:x"},
        {"UsernsMode": "private", "Privileged": True},
        {"UsernsMode": "private", "NetworkMode": "host"},
        {"UsernsMode": "private", "PidMode": "host"},
        {"UsernsMode": "private", "IpcMode": "host"},
        {"DeviceCgroupRules": ["c 1 rwm"]},
        {"DeviceCgroupRules": ["c 1:3 rwm\nb 8:0 rwm"]},
        {"OomScoreAdj": 1001},
    ],
)
def test_what_makes_no_sense_is_refused(prison: Any, host: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        prison.create("true", host=host)


def test_the_hosts_name_can_not_be_changed(prison: Any) -> None:
    with pytest.raises(InvalidParameter, match="hostname and the UTS mode"):
        prison.create("true", host={"UTSMode": "host"}, Hostname="kitchen")


USERS = """
say({
    "ids": os.getresuid(),
    "map": open("/proc/self/uid_map").read().split(),
    "root": os.stat("/").st_uid,
    "hosts": os.stat("/etc/hosts").st_uid,
    "volume": os.stat("/v").st_uid,
    "bind": os.stat("/b").st_uid,
    "made": [open("/v/made", "w").close(), open("/made", "w").close()] and os.stat("/made").st_uid,
    "seccomp": [l for l in open("/proc/self/status") if l.startswith("Seccomp:")][0].split()[1],
})
"""


def test_a_user_namespace_of_its_own(prison: Any, tmp_path: Any) -> None:
    binds = ["kitchen:/v", f"{tmp_path}:/b"]
    host = {"UsernsMode": "private", "Binds": binds}
    for script in (USERS, USERS):
        found = prison.attempt(script, host=host)
        assert found["ids"] == [0, 0, 0]
        assert found["map"][0] == "0" and int(found["map"][1]) >= 1 << 30
        assert (found["root"], found["hosts"], found["volume"], found["made"]) == (0, 0, 0, 0)
        assert (found["bind"], found["seccomp"]) == (65534, "2")
    place = prison.engine.volumes.inspect("kitchen")["Mountpoint"]
    assert os.stat(f"{place}/made").st_uid == 0


def test_two_containers_have_nobodys_ids_in_common(prison: Any) -> None:
    first, second = (prison.background(host={"UsernsMode": "private"}) for _ in range(2))
    owners = {os.stat(f"/proc/{prison.pid(one)}").st_uid for one in (first, second)}
    assert len(owners) == 2 and 0 not in owners
    assert prison.attempt_in(first, "say([os.getuid(), os.stat('/').st_uid])") == [0, 0]
    code, out, _ = prison.run(first, "sh", "-c", "id -u; id -g; echo x > /tmp/y", User="user")
    assert (code, out.split()) == (0, [b"1000", b"1000"])


def test_a_layer_written_in_a_user_namespace_is_an_image_like_others(prison: Any) -> None:
    engine = prison.engine
    made = prison.create(
        "sh", "-c", "echo soup > /pot; chown 1000 /pot", host={"UsernsMode": "private"}
    )
    engine.containers.start(made)
    engine.containers.wait(made)
    assert {"Path": "/pot", "Kind": 1} in engine.containers.changes(made)
    engine.containers.commit(made, "kept")
    body = {"Image": "kept", "Cmd": ["stat", "-c", "%u", "/pot"], "HostConfig": {}}
    again = engine.containers.create(body)["Id"]
    engine.containers.start(again)
    engine.containers.wait(again)
    assert b"".join(data for _, data in engine.containers.logs(again)[1]) == b"1000\n"
