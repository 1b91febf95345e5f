"""Containers under a real keeper: their output, input, exit, and what is left of them."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import pytest

from keeper.lab import PATIENCE, Lab, eventually, process, read_all, read_until
from tiffin.errors import Conflict, InvalidParameter, NotFound, StartFailure
from tiffin.runtime.native import process_plan

pytestmark = pytest.mark.root


def lines(lab: Lab, name: str, stream: str = "stdout") -> list[str]:
    rows = [json.loads(line) for line in lab.log(name).read_text().splitlines()]
    return [row["log"] for row in rows if row["stream"] == stream]


def frames(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        size = int.from_bytes(data[4:8], "big")
        assert data[1:4] == bytes(3)
        found.append((data[0], data[8 : 8 + size]))
        data = data[8 + size :]
    return found


def test_output_goes_to_the_log_before_the_exit_is_told(lab: Lab) -> None:
    lab.sh("one", "echo hello; echo oh >&2; printf end; exit 7")
    assert lab.exit("one") == 7
    assert lines(lab, "one") == ["hello\n", "end"]
    assert lines(lab, "one", "stderr") == ["oh\n"]


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 255", 255), ("kill -9 $$; kill -TERM $$; exit 3", 3)],
)
def test_exit_codes(lab: Lab, script: str, code: int) -> None:
    lab.sh("one", script)
    assert lab.exit("one") == code


def test_a_signal_kills_and_the_code_says_which(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    lab.client.signal("one", signal.SIGKILL)
    assert lab.exit("one") == 137
    with pytest.raises(NotFound, match="one is not running"):
        lab.client.signal("one", signal.SIGTERM)


def test_a_program_that_is_missing_leaves_nothing(lab: Lab) -> None:
    waiting = lab.attach("one")
    with pytest.raises(StartFailure, match='exec: "nosuch": executable file not found') as caught:
        lab.start("one", "nosuch")
    assert caught.value.exit_code == 127
    assert read_all(waiting) == b""
    assert lab.client.list() == []
    assert not (lab.root / "keeper/one").exists()


def test_a_container_is_listed_until_it_is_forgotten(lab: Lab) -> None:
    pid = lab.sh("one", "cat", open_stdin=True, stdin_once=True)
    (row,) = lab.client.list()
    assert (row["id"], row["status"], row["pid"]) == ("one", "running", pid)
    with pytest.raises(Conflict, match="running"):
        lab.client.forget("one")
    with pytest.raises(Conflict, match="running already"):
        lab.start("one", "true")
    with pytest.raises(Conflict, match="1 containers are running"):
        lab.client.shutdown()
    lab.attach("one", stdin=True).close()
    assert lab.exit("one") == 0
    (row,) = lab.client.list()
    assert (row["status"], row["code"], row["oom"]) == ("exited", 0, False)
    lab.client.forget("one")
    assert lab.client.list() == []
    assert not (lab.root / "keeper/one").exists()
    lab.client.forget("one")


def test_names_cannot_leave_the_folder(lab: Lab) -> None:
    with pytest.raises(InvalidParameter):
        lab.client.start("../one", lab.plan("one", "true"))


def test_a_client_gets_every_byte_in_frames(lab: Lab) -> None:
    client = lab.attach("one")
    lab.sh("one", "echo out; echo err >&2; sleep 0.01; echo again")
    found = frames(read_all(client))
    assert [data for stream, data in found if stream == 2] == [b"err\n"]
    assert b"".join(data for stream, data in found if stream == 1) == b"out\nagain\n"


def test_a_client_gets_only_the_stream_it_wants(lab: Lab) -> None:
    out = lab.attach("one", stderr=False, multiplexed=False)
    err = lab.attach("one", stdout=False, multiplexed=False)
    lab.sh("one", "echo out; echo err >&2")
    assert read_all(out) == b"out\n"
    assert read_all(err) == b"err\n"


def test_the_same_output_to_many_clients_and_the_log(lab: Lab) -> None:
    clients = [lab.attach("one", multiplexed=False) for _ in range(5)]
    lab.start("one", "seq", "20000")
    expected = b"".join(b"%d\n" % number for number in range(1, 20001))
    assert [read_all(client) for client in clients] == [expected] * 5
    lab.exit("one")
    assert "".join(lines(lab, "one")).encode() == expected


def test_half_close_is_the_end_of_stdin_and_output_still_comes(lab: Lab) -> None:
    client = lab.attach("one", stdin=True, multiplexed=False, initial=b"first ")
    lab.sh("one", "cat; echo done", open_stdin=True, stdin_once=True)
    client.sendall(b"second")
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"first seconddone\n"
    assert lab.exit("one") == 0


def test_without_stdin_once_the_input_has_no_end(lab: Lab) -> None:
    lab.sh("one", "read a; read b; echo $a $b", open_stdin=True)
    for word in (b"one\n", b"two\n"):
        client = lab.attach("one", stdin=True)
        client.sendall(word)
        client.close()
    assert lab.exit("one") == 0
    assert sorted(lines(lab, "one")[0].split()) == ["one", "two"]


def test_without_open_stdin_the_input_is_empty(lab: Lab) -> None:
    lab.sh("one", "cat; echo end")
    assert lab.exit("one") == 0
    assert lines(lab, "one") == ["end\n"]


def test_input_that_nobody_reads_is_no_reset(lab: Lab) -> None:
    client = lab.attach("one", stdin=True, multiplexed=False)
    client.sendall(b"x" * 1000)
    lab.sh("one", "echo hello", open_stdin=True, stdin_once=True)
    assert read_all(client) == b"hello\n"


def test_much_input_waits_for_a_slow_reader(lab: Lab) -> None:
    client = lab.attach("one", stdin=True, multiplexed=False)
    lab.sh("one", "sleep 0.2; wc -c", open_stdin=True, stdin_once=True)
    client.sendall(b"x" * 3_000_000)
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"3000000\n"


def test_a_client_that_does_not_read_holds_the_container_up(lab: Lab) -> None:
    client = lab.attach("one", multiplexed=False)
    lab.sh("one", "head -c 8000000 /dev/zero | tr '\\0' x; echo finished >&2", log=None)
    witness = lab.attach("one", stdout=False, multiplexed=False)
    witness.settimeout(0.3)
    with pytest.raises(TimeoutError):
        witness.recv(100)
    witness.settimeout(PATIENCE)
    assert read_all(client).replace(b"finished\n", b"") == b"x" * 8_000_000
    assert read_all(witness) == b"finished\n"
    lab.exit("one")


def test_a_client_that_vanishes_holds_nothing_up(lab: Lab) -> None:
    client = lab.attach("one", multiplexed=False)
    lab.sh("one", "head -c 8000000 /dev/zero", log=None)
    client.recv(1)
    client.close()
    assert lab.exit("one") == 0


def test_the_rest_is_delivered_after_the_exit(lab: Lab) -> None:
    client = lab.attach("one", multiplexed=False)
    lab.sh("one", "head -c 900000 /dev/zero")
    assert lab.exit("one") == 0
    assert len(read_all(client)) == 900000


def test_stdout_can_be_opened_again_by_any_user(lab: Lab) -> None:
    client = lab.attach("one", multiplexed=False)
    made = lab.plan("one", "sh", "-c", "echo a >/dev/stdout; echo b >/proc/self/fd/2", user="1234")
    lab.client.start("one", made)
    assert read_all(client) == b"a\nb\n"


def test_a_container_that_closes_its_output_costs_nothing(lab: Lab) -> None:
    lab.sh("one", "exec >&- 2>&-; sleep 1000")
    eventually(lambda: lab.client.list())
    (pid,) = lab.keeper_pids()

    def switches() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "_ctxt_sw" in line)

    started, before = time.monotonic(), switches()
    eventually(lambda: time.monotonic() - started > 0.3)
    assert switches() - before < 20
    lab.client.signal("one", signal.SIGKILL)
    assert lab.exit("one") == 137


def test_rotation_keeps_so_many_files(lab: Lab) -> None:
    log = {"path": str(lab.log("one")), "max_size": 10_000, "max_file": 3}
    lab.start("one", "seq", "1000", log=log)
    assert lab.exit("one") == 0
    files = [lab.log("one"), *(lab.root / f"one.log.{number}" for number in (1, 2))]
    assert all(file.exists() for file in files)
    assert not (lab.root / "one.log.3").exists()
    numbers = [
        int(json.loads(line)["log"])
        for file in reversed(files)
        for line in file.read_text().splitlines()
    ]
    assert numbers == list(range(numbers[0], 1001))
    assert all(10_000 <= file.stat().st_size < 10_200 for file in files[1:])


def test_terminal(lab: Lab) -> None:
    client = lab.attach("one", stdin=True, multiplexed=False)
    lab.sh("one", "stty size; read a; stty size; echo got $a", terminal=True, size=(40, 100))
    read_until(client, b"40 100\r\n")
    lab.client.resize("one", 30, 90)
    client.sendall(b"word\r")
    assert read_all(client).endswith(b"word\r\n30 90\r\ngot word\r\n")
    assert lab.exit("one") == 0
    assert "".join(lines(lab, "one")).startswith("40 100\r\n")


def test_detach_keys_leave_the_container_running(lab: Lab) -> None:
    client = lab.attach("one", stdin=True, multiplexed=False)
    lab.sh("one", "echo ready; read a; echo got $a", terminal=True)
    read_until(client, b"ready")
    client.sendall(b"a\x10")
    client.sendall(b"\x11ignored")
    read_all(client)
    assert lab.event("detached", "one")["exec"] is False
    second = lab.attach("one", stdin=True, multiplexed=False, detach_keys="x,ctrl-a")
    second.sendall(b"x\r")
    assert read_all(second).endswith(b"got ax\r\n")


def test_detach_keys_are_only_a_terminals(lab: Lab) -> None:
    client = lab.attach("one", stdin=True, multiplexed=False)
    lab.sh("one", "wc -c", open_stdin=True, stdin_once=True)
    client.sendall(b"a\x10\x11b")
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"4\n"


def test_wrong_detach_keys_are_refused(lab: Lab) -> None:
    with pytest.raises(InvalidParameter, match="Invalid detach keys"):
        lab.attach("one", detach_keys="ctrl-ö")


def test_resize_needs_a_terminal(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    with pytest.raises(Conflict, match="no terminal"):
        lab.client.resize("one", 10, 10)


def test_exec_has_its_own_streams_and_exit(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    client = lab.exec("run", "one", "sh", "-c", "cat; echo bad >&2; exit 5")
    client.sendall(b"some input\n")
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"some input\nbad\n"
    assert lab.event("exited", "run") | {"started": 0, "at": 0} == {
        "event": "exited",
        "id": "run",
        "exec": True,
        "code": 5,
        "started": 0,
        "at": 0,
        "oom": False,
    }
    assert [row["id"] for row in lab.client.list()] == ["one"]


def test_exec_ends_though_a_grandchild_keeps_its_pipes(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    client = lab.exec("run", "one", "sh", "-c", "sleep 1000 & echo started")
    assert read_all(client) == b"started\n"
    assert lab.event("exited", "run")["code"] == 0


def test_exec_with_a_terminal(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    client = lab.exec(
        "run", "one", "sh", "-c", "stty size; read a; echo got $a", terminal=True, size=(11, 22)
    )
    read_until(client, b"11 22\r\n")
    client.sendall(b"x\r")
    assert read_all(client).endswith(b"got x\r\n")


def test_exec_without_a_client(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    made = process_plan(process("sh", "-c", "echo nobody hears; exit 4"))
    lab.client.exec("run", "one", made)
    assert lab.event("exited", "run")["code"] == 4


def test_exec_of_nothing(lab: Lab) -> None:
    with pytest.raises(NotFound, match="not running"):
        lab.client.exec("run", "none", {})
    lab.start("one", "sleep", "1000")
    with pytest.raises(StartFailure, match="not found") as caught:
        lab.client.exec("run", "one", process_plan(process("nosuch")))
    assert caught.value.exit_code == 127


def test_execs_end_with_their_container(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    client = lab.exec("run", "one", "sleep", "1000")
    lab.client.signal("one", signal.SIGKILL)
    assert read_all(client) == b""
    assert lab.event("exited", "run")["code"] == 137
