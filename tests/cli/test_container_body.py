"""What ``run`` and ``create`` send for each flag: the same as docker's own command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from cli.programs import Docker, ScriptedDaemon, Tiffin

CREATED = {"Id": "0123456789abcdef", "Warnings": []}

CASES = [
    "busybox",
    "-it --name foo busybox sh -c 'echo x'",
    "-i busybox",
    "-t busybox",
    "-a stdin -a STDOUT busybox",
    "-e A=b -e A=x=y -e HOME -e NO_SUCH_VARIABLE busybox",
    "--env-file env --label-file labels -e LAST=1 -l b=c busybox",
    "-w /w -u user:group --entrypoint 'x y' busybox a b",
    "--entrypoint= busybox",
    "-v /a:/b:ro -v vol:/c -v /anonymous busybox",
    "-v ./here:/x -v ~/home:/y:ro,z -v .:/dot busybox",
    "--mount type=bind,src=/s,dst=/t,readonly,bind-propagation=rslave busybox",
    "--mount type=bind,source=.,target=/t,bind-recursive=disabled busybox",
    (
        "--mount type=volume,src=v,dst=/v,volume-nocopy,volume-label=a=b,volume-driver=local,"
        "volume-opt=x=y busybox"
    ),
    "--mount 'type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770' --mount dst=/anonymous busybox",
    "-h host --domainname domain --label a=b --label c busybox",
    "--network none --init --read-only --tmpfs /run:size=4k --tmpfs /tmp busybox",
    "--network host busybox",
    "--network mine --network-alias a --network-alias b --ip 1.2.3.4 --ip6 ::1 busybox",
    "--network mine --link-local-ip 169.254.1.1 busybox",
    "--network name=mine,alias=x,ip=1.2.3.4,driver-opt=a=b --network other busybox",
    "--network mine --mac-address 02:42:ac:11:00:02 --link x:y busybox",
    "-p 80:8080 -p 127.0.0.1:53:53/udp -p 8000-8001:9000-9001 -p 70 -P busybox",
    "-p 1.2.3.4::80 -p [::1]:8:8 -p 9000-9010:7 busybox",
    "--expose 9 --expose 10-12/udp busybox",
    "--cap-add net_admin --cap-add CAP_SYS_TIME --cap-drop all --privileged busybox",
    "-m 512m --memory-swap 2g --memory-reservation 1m --memory-swappiness 3 busybox",
    "--memory-swap -1 --oom-kill-disable --oom-score-adj 4 busybox",
    "--cpus 1.5 -c 3 --cpu-period 1 --cpu-quota 2 --cpuset-cpus 0-1 --cpuset-mems 0 busybox",
    "--cpu-rt-period 1 --cpu-rt-runtime 2 --pids-limit 9 --shm-size 1g busybox",
    "--ulimit nofile=10:20 --ulimit nproc=5 busybox",
    "--sysctl net.ipv4.ip_forward=1 --sysctl kernel.shmmax=5 busybox",
    "--security-opt no-new-privileges --security-opt label=disable busybox",
    "--security-opt seccomp=unconfined --security-opt systempaths=unconfined busybox",
    "--security-opt seccomp=profile.json busybox",
    "--device /dev/null --device /dev/null:/dev/x --device /dev/null:/dev/y:r busybox",
    "--device-cgroup-rule 'c 1:3 rwm' --device-read-bps /dev/x:5m busybox",
    "--device-write-iops /dev/x:7 --blkio-weight 50 --blkio-weight-device /dev/x:50 busybox",
    "--group-add 5 --group-add audio --stop-signal INT --stop-timeout 4 busybox",
    "--restart on-failure:3 --log-driver json-file --log-opt max-size=1m busybox",
    "--restart always busybox",
    "--rm busybox",
    "--add-host a:1.2.3.4 --add-host b=host-gateway --add-host c=[::1] busybox",
    "--dns 1.1.1.1 --dns-search x --dns-option o --dns-opt p busybox",
    "--platform linux/amd64 --ipc host --pid host --uts host --userns host busybox",
    "--cgroupns private --cgroup-parent /x --volumes-from c1:ro --volume-driver d busybox",
    "--ipc container:x --pid container:y --runtime r --storage-opt size=3 busybox",
    "--health-cmd 'x y' --health-interval 3s --health-timeout 4s --health-retries 3 busybox",
    "--health-start-period 1m --health-start-interval 2s busybox",
    "--no-healthcheck busybox",
]

REFUSED = [
    "--foo busybox",
    "-j busybox",
    "--name",
    "",
    "-m 4q busybox",
    "-m x busybox",
    "--cpus x busybox",
    "--cpus 0.00000000001 busybox",
    "--pids-limit x busybox",
    "--mount foo busybox",
    "--mount foo=x busybox",
    "--mount type=bind,src=x busybox",
    "-e =x busybox",
    "-e '' busybox",
    "-l =x busybox",
    "--ulimit foo busybox",
    "--ulimit foo=1 busybox",
    "--ulimit nofile=5:3 busybox",
    "--add-host foo busybox",
    "--dns x busybox",
    "--sysctl foo busybox",
    "-a foo busybox",
    "--health-interval 3 busybox",
    "--blkio-weight-device /dev/x:5 busybox",
    "--rm=maybe busybox",
]

REFUSED_BY_RUN = [
    "--env-file /nosuch busybox",
    "--restart always --rm busybox",
    "--restart x:y busybox",
    "--network '' busybox",
    "--network-alias a busybox",
    "--pid foo busybox",
    "--uts foo busybox",
    "--userns foo busybox",
    "--cgroupns foo busybox",
    "--storage-opt x busybox",
    "--mac-address x busybox",
    "--security-opt foo busybox",
    "--security-opt seccomp=/nosuch busybox",
    "--log-driver none --log-opt x=y busybox",
    "--pull foo busybox",
    "-p abc busybox",
    "--device a:b:c:d:e busybox",
    "--device a busybox",
]


def essence(value: Any) -> Any:
    """A body without what only says the default: empty, zero, false and "no limit" fields."""
    if isinstance(value, dict):
        kept = {name: essence(each) for name, each in value.items() if name != "ConsoleSize"}
        if kept.get("MemorySwappiness") == -1:
            del kept["MemorySwappiness"]
        if kept.get("RestartPolicy") == {"Name": "no"}:
            del kept["RestartPolicy"]
        return {name: each for name, each in kept.items() if each not in (None, "", [], {}, 0)}
    if isinstance(value, list):
        return [essence(each) for each in value]
    return value


def special(body: dict[str, Any]) -> dict[str, Any]:
    """Fields in which an empty list says something else than a missing one."""
    host = body["HostConfig"]
    names = ("MaskedPaths", "ReadonlyPaths")
    return {name: host.get(name) for name in names} | {"Entrypoint": body.get("Entrypoint")}


def normal(body: dict[str, Any]) -> Any:
    """The essence of a create body; lists that are sets are sorted."""
    result = essence(body)
    host = result.get("HostConfig", {})
    # docker keeps these in maps and sends them in no order.
    for lists, name in ((result, "Env"), (host, "Binds")):
        if name in lists:
            lists[name].sort()
    if "Ulimits" in host:
        host["Ulimits"].sort(key=lambda limit: limit["Name"])
    if "NetworkingConfig" in result and set(result["NetworkingConfig"]["EndpointsConfig"]) <= {
        host["NetworkMode"]
    }:
        # Endpoints of which nothing is asked come in docker's body all the same.
        result["NetworkingConfig"]["EndpointsConfig"].setdefault(host["NetworkMode"], {})
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "env").write_text("# comment\nA=1\n\n  B=2\nHOME\nQUOTED='x y'\n")
    (tmp_path / "labels").write_text("L=1\nb=z\nempty\n")
    (tmp_path / "profile.json").write_text('{\n  "defaultAction": "SCMP_ACT_ALLOW"\n}\n')
    return tmp_path


@pytest.mark.peer
@pytest.mark.parametrize("words", CASES)
def test_create_sends_what_docker_sends(
    words: str, daemon: ScriptedDaemon, folder: Path, docker_cli: None
) -> None:
    daemon.answer("POST /containers/create", CREATED, 201)
    arguments = shlex.split(words.replace("~", str(Path.home())))
    theirs = Docker(daemon.host, folder)("create", *arguments)
    ours = Tiffin(daemon.host, folder)("create", *arguments)
    assert (ours.code, ours.out) == (theirs.code, theirs.out), ours.err
    docker_call, tiffin_call = daemon.calls
    assert tiffin_call.path.partition("?")[2] == docker_call.path.partition("?")[2]
    assert normal(tiffin_call.json) == normal(docker_call.json)
    assert special(tiffin_call.json) == special(docker_call.json)


@pytest.mark.peer
@pytest.mark.parametrize("command", ["run", "create"])
@pytest.mark.parametrize("words", REFUSED)
def test_a_wrong_flag_is_refused_in_docker_s_words(
    command: str, words: str, daemon: ScriptedDaemon, folder: Path, docker_cli: None
) -> None:
    theirs = Docker(daemon.host, folder)(command, *shlex.split(words))
    ours = Tiffin(daemon.host, folder)(command, *shlex.split(words))
    expected = theirs.err.replace("docker:", "tiffin:").replace("docker ", "tiffin ")
    assert ours.err == expected.replace("See '", "Run '")
    assert ours.code == theirs.code
    assert not daemon.calls


@pytest.mark.peer
@pytest.mark.parametrize("words", REFUSED_BY_RUN)
def test_what_makes_no_sense_is_refused_before_the_daemon_is_asked(
    words: str, daemon: ScriptedDaemon, folder: Path, docker_cli: None
) -> None:
    theirs = Docker(daemon.host, folder)("run", *shlex.split(words))
    ours = Tiffin(daemon.host, folder)("run", *shlex.split(words))
    assert ours.err == theirs.err.replace("docker", "tiffin")
    assert ours.code == theirs.code == 125
    assert not daemon.calls


def test_every_flag_of_run_is_known_to_docker(docker_cli: None) -> None:
    from tiffin.cli.container_flags import RUN_FLAGS

    known = Docker("unix:///nosuch")("run", "--help").out
    # These docker knows without listing them.
    hidden = {"net", "dns-opt", "health-start-interval"}
    assert not [
        flag.name
        for flag in RUN_FLAGS
        if f"--{flag.name} " not in known and flag.name not in hidden
    ]


def test_a_container_id_file_is_written_and_never_overwritten(
    tiffin: Tiffin, daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    daemon.answer("POST /containers/create", CREATED, 201)
    assert tiffin("create", "--cidfile", "id", "busybox").code == 0
    assert (tmp_path / "id").read_text() == CREATED["Id"]
    again = tiffin("create", "--cidfile", "id", "busybox")
    assert again.code == 1
    assert "container ID file found" in again.err
    assert len(daemon.calls) == 1


def test_an_unknown_image_is_named_with_what_to_do(tiffin: Tiffin, daemon: ScriptedDaemon) -> None:
    daemon.answer("POST /containers/create", {"message": "No such image: nosuch:latest"}, 404)
    outcome = tiffin("run", "nosuch")
    assert outcome.code == 125
    assert outcome.err.startswith("Unable to find image 'nosuch:latest' locally\n")
    assert "tiffin load -i FILE" in outcome.err
    assert "tiffin image pack nosuch PROGRAM" in outcome.err
    never = tiffin("run", "--pull", "never", "nosuch")
    assert never.code == 125
    assert "Unable to find" not in never.err


def test_warnings_of_the_daemon_are_shown(tiffin: Tiffin, daemon: ScriptedDaemon) -> None:
    daemon.answer("POST /containers/create", {"Id": "abc", "Warnings": ["no swap limit"]}, 201)
    outcome = tiffin("create", "busybox")
    assert (outcome.out, outcome.err) == ("abc\n", "WARNING: no swap limit\n")
