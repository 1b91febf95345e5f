"""Log drivers that speak on sockets: syslog, fluentd, the journal; also where nobody reads."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.life import PATIENCE, create, eventually, output, state
from engine.logged import ALL, COUNT, log, run
from tiffin.engine import Engine, logdrivers
from tiffin.errors import StartFailure, Unsupported


@contextmanager
def datagrams(address: Any, family: int = socket.AF_UNIX) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(address)
        yield sock


@contextmanager
def listener(address: Any, family: int = socket.AF_INET) -> Iterator[socket.socket]:
    with socket.socket(family) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(address)
        sock.listen()
        yield sock


def accepted(sock: socket.socket) -> socket.socket:
    """The connection that speaks: the engine tries the address before the keeper connects."""
    while True:
        connection, _ = sock.accept()
        connection.settimeout(PATIENCE)
        if connection.recv(1, socket.MSG_PEEK):
            return connection
        connection.close()


def test_syslog_by_datagrams(engine: Engine, tmp_path: Path) -> None:
    with datagrams(str(tmp_path / "log")) as sock:
        options = {
            "syslog_address": f"unixgram://{tmp_path}/log", "tag": "lunch", "syslog_format": "",
        }  # fmt: skip
        container = run(engine, "echo out; sleep 0.1; echo err >&2", log("syslog", **options))
        first, second = sock.recv(4096).decode(), sock.recv(4096).decode()
    # daemon is 3: 3 * 8 + 6 and + 3.
    assert re.fullmatch(r"<30>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d lunch\[\d+\]: out\n", first)
    assert second.startswith("<27>")
    assert second.endswith(": err\n")
    # And it can be read here.
    assert output(engine, container) == b"out\nerr\n"


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("rfc3164", r"<14>\w{3} [ \d]\d [:\d]+ [^ ]+ \w{12}\[\d+\]: hello\n"),
        ("rfc5424", r"<14>1 [-\d]+T[:\d]+Z [^ ]+ (\w{12}) \d+ \1 - hello\n"),
        ("rfc5424micro", r"<14>1 [-\d]+T[:\d]+\.\d{6}Z [^ ]+ (\w{12}) \d+ \1 - hello\n"),
    ],
)
def test_syslog_by_udp(engine: Engine, form: str, pattern: str) -> None:
    with datagrams(("127.0.0.1", 0), socket.AF_INET) as sock:
        address = f"udp://127.0.0.1:{sock.getsockname()[1]}"
        options = {"syslog_facility": "user", "syslog_format": form, "cache_disabled": "true"}
        container = run(engine, "echo hello", log("syslog", syslog_address=address, **options))
        assert re.fullmatch(pattern, sock.recv(4096).decode())
    with pytest.raises(Unsupported, match="does not support reading"):
        output(engine, container)


def test_syslog_by_tcp_keeps_every_line(engine: Engine) -> None:
    with listener(("127.0.0.1", 0)) as sock:
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        run(engine, COUNT, log("syslog", syslog_address=address))
        data = b""
        with accepted(sock) as connection:
            while part := connection.recv(1 << 16):
                data += part
    assert [line.partition(b": ")[2] for line in data.splitlines()] == ALL.splitlines()


def test_a_connection_that_breaks_is_made_again(engine: Engine, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    script = "echo one; read x; echo two; read x"
    with listener(path, socket.AF_UNIX) as sock:
        container = create(engine, "sh", "-c", script, OpenStdin=True,
                           host=log("syslog", syslog_address=f"unix://{path}"))  # fmt: skip
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                engine.containers.attach(container, theirs, stdin=True)
            engine.containers.start(container)
            with accepted(sock) as first:
                assert first.recv(4096).endswith(b": one\n")
            ours.sendall(b"go\n")
            with accepted(sock) as second:
                assert second.recv(4096).endswith(b": two\n")
            ours.sendall(b"go\n")
            engine.containers.wait(container)


def test_a_driver_that_does_not_answer_stops_the_start(engine: Engine, tmp_path: Path) -> None:
    for kind, options in (
        ("syslog", {"syslog_address": f"unix://{tmp_path}/nobody"}),
        ("fluentd", {"fluentd_address": "127.0.0.1:1"}),
    ):
        container = create(engine, "true", host=log(kind, **options))
        with pytest.raises(StartFailure, match=f"failed to initialize logging driver: dial {kind}"):
            engine.containers.start(container)
    # Unless that was said to be all right.
    run(engine, "echo x", log("fluentd", fluentd_address="127.0.0.1:1", fluentd_async="true"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ca.pem``, and ``server`` and ``client`` (``.pem``, ``.key``) that it has signed."""
    if shutil.which("openssl") is None:
        assert os.environ.get("CI") != "true", "openssl is not installed"
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("keys")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name in ("server", "client"):
        extra = ("-addext", "subjectAltName=IP:127.0.0.1", "-CA", "ca.pem", "-CAkey", "ca.key")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *new, *files, "-subj", f"/CN={name}", *extra)
    return folder


@contextmanager
def encrypted(
    keys: Path, *, anybody: bool = False
) -> Iterator[tuple[str, Callable[[], list[bytes]]]]:
    """The address of a server that wants a client's certificate, unless it takes ``anybody``, and
    what each connection said."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(keys / "ca.pem"))
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    context.verify_mode = ssl.CERT_NONE if anybody else ssl.CERT_REQUIRED
    said: list[bytes] = []

    def read(connection: socket.socket) -> None:
        # What breaks a connection here is what the client has to say.
        with connection, suppress(OSError), context.wrap_socket(connection, True) as stream:
            data = b""
            while part := stream.recv(1 << 16):
                data += part
            said.append(data)

    def serve(sock: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = sock.accept()
                connection.settimeout(PATIENCE)
                read(connection)

    with listener(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=serve, args=(sock,))
        thread.start()
        try:
            yield f"127.0.0.1:{sock.getsockname()[1]}", lambda: [data for data in said if data]
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()


def certificates(keys: Path) -> dict[str, str]:
    return {
        "syslog_tls_ca_cert": f"{keys}/ca.pem",
        "syslog_tls_cert": f"{keys}/client.pem",
        "syslog_tls_key": f"{keys}/client.key",
    }


def test_syslog_by_tls(engine: Engine, keys: Path) -> None:
    with encrypted(keys) as (address, said):
        options = {"syslog_address": f"tcp+tls://{address}", **certificates(keys)}
        run(engine, COUNT, log("syslog", **options))
        eventually(lambda: bool(said()))
        assert [line.partition(b": ")[2] for line in said()[0].splitlines()] == ALL.splitlines()
        # RFC 5425: each message of RFC 5424 has its length before it.
        run(engine, "echo one; echo two", log("syslog", syslog_format="rfc5424", **options))
        eventually(lambda: len(said()) == 2)
    data = said()[1]
    for word in (b"one", b"two"):
        length, _, data = data.partition(b" ")
        message, data = data[: int(length)], data[int(length) :]
        assert message.startswith(b"<30>1 ") and message.endswith(b" - %b\n" % word)
    assert data == b""


def test_a_syslog_that_is_not_trusted_stops_the_start(engine: Engine, keys: Path) -> None:
    with encrypted(keys) as (address, said):
        given = certificates(keys)
        del given["syslog_tls_ca_cert"]
        options = {"syslog_address": f"tcp+tls://{address}", **given}
        container = create(engine, "true", host=log("syslog", **options))
        with pytest.raises(
            StartFailure, match=r"failed to initialize logging driver: .*certificat"
        ):
            engine.containers.start(container)
        # Unless one wants to trust it.
        run(engine, "echo x", log("syslog", syslog_tls_skip_verify="true", **options))
        eventually(lambda: bool(said()))
        missing = {**options, "syslog_tls_ca_cert": f"{keys}/nonesuch.pem"}
        container = create(engine, "true", host=log("syslog", **missing))
        with pytest.raises(StartFailure, match="no such file or directory"):
            engine.containers.start(container)


def test_what_fluentd_has_not_acknowledged_is_sent_again(engine: Engine) -> None:
    with listener(("127.0.0.1", 0)) as sock:
        options = {"fluentd_address": f"127.0.0.1:{sock.getsockname()[1]}",
                   "fluentd_request_ack": "true", "fluentd_retry_wait": "50ms"}  # fmt: skip
        script = "echo one; echo two; echo three; sleep 600"
        container = create(engine, "sh", "-c", script, host=log("fluentd", **options))
        engine.containers.start(container)
        with accepted(sock) as first:
            received = messages(first, 3)
            assert [record["log"] for _, _, record, _ in received] == ["one", "two", "three"]
            chunk = received[0][3]["chunk"]
            assert len(base64.b64decode(chunk)) == 16
            first.sendall(msgspec.msgpack.encode({"ack": chunk}))
            # The answer is read before the end of the connection.
        with accepted(sock) as second:
            again = messages(second, 2)
            assert [record["log"] for _, _, record, _ in again] == ["two", "three"]
            engine.containers.kill(container)
            for _, _, _, more in again:
                second.sendall(msgspec.msgpack.encode({"ack": more["chunk"]}))
            # With all acknowledged, nothing keeps it from leaving.
            assert second.recv(1) == b""


def test_fluentd_is_connected_with_anew_where_that_is_wanted(engine: Engine) -> None:
    with listener(("127.0.0.1", 0)) as sock:
        options = {"fluentd_address": f"127.0.0.1:{sock.getsockname()[1]}", "fluentd_async": "true",
                   "fluentd_async_reconnect_interval": "100ms"}  # fmt: skip
        script = "echo one; sleep 1; echo two; sleep 600"
        container = create(engine, "sh", "-c", script, host=log("fluentd", **options))
        engine.containers.start(container)
        with accepted(sock) as first:
            assert b"one" in first.recv(4096)
            with accepted(sock) as second:
                assert b"two" in second.recv(4096)
            assert first.recv(4096) == b""
        engine.containers.kill(container)


def test_a_fluentd_that_takes_nothing_for_too_long_is_left(engine: Engine) -> None:
    with listener(("127.0.0.1", 0)) as sock:
        options = {"fluentd_address": f"127.0.0.1:{sock.getsockname()[1]}",
                   "fluentd_write_timeout": "200ms", "fluentd_retry_wait": "50ms"}  # fmt: skip
        script = f"yes {'x' * 100} | head -c 30000000; sleep 600"
        container = create(engine, "sh", "-c", script, host=log("fluentd", **options))
        engine.containers.start(container)
        with accepted(sock), accepted(sock):
            # The second one is there although the first is not closed.
            engine.containers.kill(container)


def messages(connection: socket.socket, count: int) -> list[Any]:
    """So many of fluentd's messages, which end in ``{"chunk": …}``."""
    data = b""
    while data.count(b"\xa5chunk") < count or not data.endswith(b"=="):
        part = connection.recv(1 << 16)
        assert part, data
        data += part
    found: list[Any] = msgspec.msgpack.decode(b"\xdd" + count.to_bytes(4, "big") + data)
    return found


def test_fluentd_is_given_up_after_some_tries(engine: Engine) -> None:
    options = {"fluentd_address": "127.0.0.1:1", "fluentd_async": "true",
               "fluentd_retry_wait": "10ms", "fluentd_max_retries": "2"}  # fmt: skip
    container = run(engine, "echo hello", log("fluentd", **options))
    # What can't be sent is in the copy that is kept here.
    assert output(engine, container) == b"hello\n"


def test_fluentd_gets_records(engine: Engine) -> None:
    with listener(("127.0.0.1", 0)) as sock:
        options = {"fluentd_address": f"127.0.0.1:{sock.getsockname()[1]}", "labels": "color"}
        container = run(
            engine, "echo hello; head -c 20000 /dev/zero | tr '\\0' x",
            log("fluentd", tag="lunch.{{.Name}}", **options), name="box", Labels={"color": "red"},
        )  # fmt: skip
        data = b""
        with accepted(sock) as connection:
            while part := connection.recv(1 << 16):
                data += part
    messages = unpacked(data)
    tag, moment, record = messages[0]
    assert tag == "lunch.box"
    assert 1_600_000_000 < moment < 1 << 32
    assert record == {
        "container_id": container, "container_name": "/box", "color": "red",
        "source": "stdout", "log": "hello",
    }  # fmt: skip
    assert messages[1][2]["partial_message"] == "true"
    assert "".join(message[2]["log"] for message in messages[1:]) == "x" * 20000


def test_fluentd_by_tls_is_trusted_as_the_system_trusts(
    engine: Engine, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with encrypted(keys, anybody=True) as (address, said):
        host = log("fluentd", fluentd_address=f"tls://{address}")
        container = create(engine, "true", host=host)
        with pytest.raises(StartFailure, match=r"initialize logging driver: .*certificat"):
            engine.containers.start(container)
        monkeypatch.setenv("SSL_CERT_FILE", f"{keys}/ca.pem")
        run(engine, "echo hello", host)
        eventually(lambda: bool(said()))
    ((_, _, record),) = unpacked(said()[0])
    assert record["log"] == "hello"


def test_fluentd_may_have_precise_times(engine: Engine, tmp_path: Path) -> None:
    path = f"{tmp_path}/fluent"
    with listener(path, socket.AF_UNIX) as sock:
        options = {"fluentd_address": f"unix://{path}", "fluentd_sub_second_precision": "true"}
        run(engine, "echo hello", log("fluentd", **options))
        with accepted(sock) as connection:
            ((_, moment, _),) = unpacked(connection.recv(1 << 16))
    assert (moment.code, len(moment.data)) == (0, 8)


def unpacked(data: bytes) -> list[Any]:
    """The msgpack values that follow each other: as one array of them all."""
    count = len(re.findall(rb"\x93[\xa0-\xbf\xd9]", data))
    while count:
        try:
            found: list[Any] = msgspec.msgpack.decode(b"\xdd" + count.to_bytes(4, "big") + data)
            return found
        except msgspec.DecodeError:
            # Some of these bytes were in the middle of a message.
            count -= 1
    return []


def test_the_journal_gets_fields(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "journal")
    monkeypatch.setattr(logdrivers, "JOURNAL", path)
    with datagrams(path) as sock:
        container = run(
            engine, "echo err >&2", log("journald", labels="com.color"), name="box",
            Labels={"com.color": "red"},
        )  # fmt: skip
        fields = dict(line.split("=", 1) for line in sock.recv(1 << 16).decode().splitlines())
    del fields["SYSLOG_TIMESTAMP"]
    assert fields == {
        "MESSAGE": "err", "PRIORITY": "3", "CONTAINER_ID": container[:12],
        "CONTAINER_ID_FULL": container, "CONTAINER_NAME": "box", "CONTAINER_TAG": container[:12],
        "SYSLOG_IDENTIFIER": container[:12], "IMAGE_NAME": "busybox", "COM_COLOR": "red",
    }  # fmt: skip


def test_a_real_journal_takes_them(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path("/lib/systemd/systemd-journald")
    if not program.exists():
        assert os.environ.get("CI") != "true", "systemd is not installed"
        pytest.skip("systemd is not installed")
    for name in ("run/journal", "log/journal"):
        (tmp_path / name).mkdir(parents=True)
    script = (
        f"mount --bind {tmp_path}/run /run/systemd && mount --bind {tmp_path}/log /run/log && "
        f"exec {program}"
    )
    for place in ("/run/systemd", "/run/log"):
        os.makedirs(place, exist_ok=True)
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as journal:
        try:
            path = tmp_path / "run/journal/socket"
            eventually(path.exists)
            monkeypatch.setattr(logdrivers, "JOURNAL", str(path))
            options = log("journald", tag="lunch", labels="com.color")
            run(engine, "echo out; echo err >&2", options, name="box", Labels={"com.color": "red"})
            read = [
                "journalctl",
                "-D",
                tmp_path / "log/journal",
                "CONTAINER_NAME=box",
                "-o",
                "json",
            ]

            def entries() -> dict[str, dict[str, str]]:
                done = subprocess.run(read, capture_output=True, check=False)
                found = [json.loads(line) for line in done.stdout.splitlines()]
                return {entry["MESSAGE"]: entry for entry in found}

            eventually(lambda: entries().keys() == {"out", "err"})
            out, err = entries()["out"], entries()["err"]
            assert (out["PRIORITY"], err["PRIORITY"]) == ("6", "3")
            assert (out["SYSLOG_IDENTIFIER"], out["COM_COLOR"]) == ("lunch", "red")
        finally:
            journal.kill()


def test_a_driver_that_reads_nothing_holds_up_a_container_that_must_not_lose(
    engine: Engine,
) -> None:
    script = f"yes {'x' * 100} | head -c 30000000; echo over >&2"
    with listener(("127.0.0.1", 0)) as sock:
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        blocking = create(engine, "sh", "-c", script, host=log("syslog", syslog_address=address))
        engine.containers.start(blocking)
        # It waits until somebody reads.
        assert engine.containers.wait_later(blocking).result(1) is None
        assert state(engine, blocking)["Status"] == "running"
        engine.containers.kill(blocking)
        engine.containers.wait(blocking)
        free = log(
            "syslog", syslog_address=address, mode="non-blocking", max_buffer_size="64k",
            cache_disabled="true",
        )  # fmt: skip
        run(engine, script, free)
