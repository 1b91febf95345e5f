"""Log drivers: rotation and compression, and what is said with each line."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from engine.life import PATIENCE, create, eventually, output
from engine.logged import ALL, COUNT, log, run
from tiffin.engine import Engine
from tiffin.errors import InvalidParameter, Unsupported


def folder(engine: Engine, container: str) -> Path:
    return Path(engine.root.container(container))


def test_json_file_rotates_and_compresses(engine: Engine) -> None:
    options = {"max_size": "40k", "max_file": "50", "compress": "true"}
    container = run(engine, COUNT, log("json-file", **options))
    here = folder(engine, container)

    def names() -> set[str]:
        return {path.name.partition("-json.log")[2] for path in here.glob("*-json.log*")}

    eventually(lambda: ".2.gz" in names() and ".2" not in names() and ".3" not in names())
    eventually(lambda: not [name for name in names() if name.endswith(".tmp")])
    assert {"", ".1"} < names()
    assert output(engine, container) == ALL
    assert output(engine, container, tail=1500) == b"".join(ALL.splitlines(True)[-1500:])
    oldest = max(names() - {"", ".1"}, key=lambda name: int(re.sub(r"\D", "", name)))
    text = gzip.decompress((here / f"{container}-json.log{oldest}").read_bytes())
    assert json.loads(text.splitlines()[0])["log"] == "line 0 of all\n"


def test_a_follower_misses_nothing_while_the_log_is_rotated_and_compressed(engine: Engine) -> None:
    options = {"max_size": "20k", "max_file": "100", "compress": "true"}
    container = create(engine, "sh", "-c", f"read x; {COUNT}", OpenStdin=True,
                       host=log("json-file", **options))  # fmt: skip
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            engine.containers.attach(container, theirs, stdin=True)
        engine.containers.start(container)
        _, lines = engine.containers.logs(container, follow=True)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.extend(data for _, data in lines))
        reader.start()
        ours.sendall(b"go\n")
        reader.join(PATIENCE)
    assert b"".join(got) == ALL


def test_old_files_go(engine: Engine) -> None:
    container = run(engine, COUNT, log("json-file", max_size="20k", max_file="3", compress="true"))
    here = folder(engine, container)
    eventually(lambda: len(list(here.glob("*-json.log*"))) == 3)
    assert ALL.endswith(output(engine, container))


def test_local_keeps_a_file_of_its_own(engine: Engine) -> None:
    container = run(engine, "echo out; echo err >&2", log("local", max_size="1m"))
    assert (folder(engine, container) / "local-logs/container.log").exists()
    assert engine.containers.inspect(container)["LogPath"] == ""
    assert sorted(output(engine, container).split()) == [b"err", b"out"]
    assert output(engine, container, stderr=False) == b"out\n"


def test_none_keeps_nothing(engine: Engine) -> None:
    container = run(engine, "echo out", log("none"))
    with pytest.raises(Unsupported, match="configured logging driver does not support reading"):
        output(engine, container)


@pytest.mark.parametrize("kind", ["json-file", "local"])
def test_options_of_the_cache_are_nothing_to_what_needs_none(engine: Engine, kind: str) -> None:
    options = {"cache_disabled": "true", "cache_max_size": "1m", "cache_max_file": "2"}
    container = run(engine, "echo here", log(kind, **options))
    assert output(engine, container) == b"here\n"


@pytest.mark.parametrize("said", ["true", "1", "T"])
def test_without_a_cache_nothing_can_be_read(engine: Engine, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        options = log("syslog", syslog_address=address, cache_disabled=said)
        container = run(engine, "echo here", options)
    with pytest.raises(Unsupported, match="does not support reading"):
        output(engine, container)


def test_details_are_what_the_options_add(engine: Engine) -> None:
    container = run(
        engine,
        "echo hello",
        log("json-file", labels="color,size", env="A", env_regex="^B", tag="{{.Name}}/{{.ID}}"),
        name="box",
        Labels={"color": "dark red", "other": "x"},
        Env=["A=1", "BB=2=3", "C=4"],
    )
    line = output(engine, container, details=True).decode()
    tag = f"box%2F{container[:12]}"
    assert line == f"A=1,BB=2%3D3,color=dark+red,tag={tag} hello\n"
    line = output(engine, container, details=True, timestamps=True).decode()
    assert re.match(r"20\d\d-[-\d]+T[:.\d]+Z A=1,BB", line)
    assert output(engine, container) == b"hello\n"


def test_since_and_until(engine: Engine) -> None:
    container = run(engine, "echo one; sleep 0.3; echo two", log("json-file"))
    (first, second) = output(engine, container, timestamps=True).decode().splitlines()
    stamp = second.split()[0]
    assert output(engine, container, since=stamp) == b"two\n"
    assert output(engine, container, until=first.split()[0]) == b"one\n"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("splunk", {}, 'error looking up logging plugin splunk: plugin "splunk" not found'),
        ("json-file", {"colour": "red"}, "unknown log opt 'colour' for json-file log driver"),
        ("json-file", {"max_size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max_file": "0"}, "max-file must be a number greater than 0"),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than 2"),
        ("json-file", {"mode": "fast"}, "logger: logging mode not supported: fast"),
        ("json-file", {"max_buffer_size": "1m"}, "max-buffer-size option is only supported with"),
        ("json-file", {"tag": "{{.Nonsense}}"}, "the log tag '{{.Nonsense}}' can't be used"),
        ("none", {"max_size": "1m"}, "invalid logging opts for driver none"),
        ("syslog", {"syslog_facility": "lunch"}, "invalid syslog facility: 'lunch'"),
        ("syslog", {"syslog_format": "rfc1"}, "Invalid syslog format: 'rfc1'"),
        ("syslog", {"syslog_address": "carrier://pigeon"}, "invalid syslog address"),
        ("fluentd", {"fluentd_address": "udp://here"}, "invalid fluentd address"),
        ("fluentd", {"fluentd_address": "tcp+tls://a:1"}, "invalid fluentd address"),
        ("fluentd", {"fluentd_request_ack": "maybe"}, "fluentd-request-ack is true or false"),
        ("fluentd", {"fluentd_retry_wait": "soon"}, "fluentd-retry-wait is a duration such as"),
        ("fluentd", {"fluentd_max_retries": "-1"}, "fluentd-max-retries is a number of times"),
        ("syslog", {"syslog_address": "tls://a:1"}, "invalid syslog address"),
    ],
)
def test_drivers_and_options_that_make_no_sense(
    engine: Engine, kind: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(message)):
        create(engine, "true", host=log(kind, **options))


def test_logs_are_whole_although_the_keeper_is_killed(engine: Engine) -> None:
    script = f"for n in 1 2 3 4 5; do {COUNT}; done"
    options = {"max_size": "200k", "max_file": "100", "compress": "true"}
    container = create(engine, "sh", "-c", script, host=log("local", **options))
    waiter = engine.containers.wait_later(container, "next-exit")
    engine.containers.start(container)
    mark = os.fsencode(engine.root.path)
    for _ in range(3):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != str(os.getpid()):
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if mark in command and any(b"keeper/__main__" in word for word in command):
                    os.kill(int(entry.name), signal.SIGKILL)
        # The next one may be killed while it starts, or just after.
        threading.Event().wait(0.1)
    assert waiter.result(PATIENCE) is not None
    assert output(engine, container) == ALL * 5
