"""The API in front of a real engine: answers, statuses and messages that clients rely on."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from api_schema import api_schema
from tiffin.engine import Engine

pytestmark = pytest.mark.root

HOST = {"HostConfig": {"NetworkMode": "none"}}


@pytest.fixture
def docker(engine: Engine, api: Callable[[Any], Any]) -> Any:
    """A server in front of an engine that has the image ``busybox``."""
    return api(engine)


def create(docker: Any, *command: str, **config: Any) -> str:
    body = {"Image": "busybox", "Cmd": list(command), **HOST, **config}
    answer = docker.request("POST", "/v1.50/containers/create", body)
    assert answer.status == 201, answer.body
    api_schema().check("POST", "/containers/create", 201, answer.json())
    identity: str = answer.json()["Id"]
    return identity


def run(docker: Any, *command: str, **config: Any) -> str:
    """Run to the end."""
    identity = create(docker, *command, **config)
    waiting = docker.client()
    waiting.send(
        f"POST /containers/{identity}/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\n\r\n".encode()
    )
    waiting.head()
    assert docker.request("POST", f"/containers/{identity}/start").status == 204
    waiting.chunk()
    return identity


def frames(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        size = int.from_bytes(data[4:8], "big")
        found.append((data[0], data[8 : 8 + size]))
        data = data[8 + size :]
    return found


def output(data: bytes, stream: int = 1) -> bytes:
    return b"".join(piece for number, piece in frames(data) if number == stream)


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("GET", "/containers/json", "/containers/json?all=1"),
        ("GET", "/containers/json", "/containers/json?all=true&size=1&limit=5"),
        ("GET", "/containers/{id}/json", "/containers/{id}/json?size=1"),
        ("GET", "/containers/{id}/changes", "/containers/{id}/changes"),
        ("GET", "/containers/{id}/top", "/containers/{id}/top?ps_args=-ef"),
        ("GET", "/images/json", "/images/json?shared-size=1"),
        ("GET", "/images/{name}/json", "/images/busybox/json"),
        ("GET", "/images/{name}/history", "/images/busybox:latest/history"),
        ("GET", "/info", "/info"),
        ("GET", "/version", "/version"),
        ("GET", "/system/df", "/system/df"),
        ("GET", "/volumes", "/volumes"),
        ("GET", "/volumes/{name}", "/volumes/data"),
        ("GET", "/networks", "/networks"),
        ("GET", "/networks/{id}", "/networks/none"),
    ],
)
def test_answers_are_as_described(docker: Any, method: str, path: str, target: str) -> None:
    identity = create(
        docker, "sh", "-c", "touch /made; sleep 1000", Volumes={"/v": {}}, Labels={"a": "b"}
    )
    assert docker.request("POST", f"/containers/{identity}/start").status == 204
    assert docker.request("POST", "/volumes/create", {"Name": "data"}).status == 201
    answer = docker.request(method, target.replace("{id}", identity))
    assert answer.status == 200, answer.body
    value = answer.json()
    if value is not None:
        api_schema().check(method, path, 200, value)


@pytest.mark.parametrize(
    ("method", "path", "target", "body"),
    [
        ("POST", "/containers/prune", "/containers/prune", None),
        ("POST", "/images/prune", "/images/prune", None),
        ("POST", "/volumes/prune", "/volumes/prune", None),
        ("POST", "/build/prune", "/build/prune?all=1", None),
        ("POST", "/containers/{id}/update", "/containers/{id}/update", {"Memory": 64 << 20}),
        ("DELETE", "/images/{name}", "/images/busybox:other", None),
    ],
)
def test_changes_answer_as_described(
    docker: Any, method: str, path: str, target: str, body: Any
) -> None:
    identity = create(docker, "true")
    assert docker.request("POST", "/images/busybox/tag?repo=busybox&tag=other").status == 201
    answer = docker.request(method, target.replace("{id}", identity), body)
    assert answer.status == 200, answer.body
    api_schema().check(method, path, 200, answer.json())


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "message"),
    [
        ("GET", "/containers/nope/json", None, 404, "No such container: nope"),
        ("POST", "/containers/nope/start", None, 404, "No such container: nope"),
        ("POST", "/containers/nope/attach?stream=1", None, 404, "No such container: nope"),
        ("POST", "/containers/nope/wait", None, 404, "No such container: nope"),
        ("GET", "/containers/nope/export", None, 404, "No such container: nope"),
        ("DELETE", "/containers/nope", None, 404, "No such container: nope"),
        ("GET", "/images/nope/json", None, 404, "No such image: nope:latest"),
        ("GET", "/images/nope/get", None, 404, "No such image: nope:latest"),
        ("POST", "/containers/create", {"Image": "nope"}, 404, "No such image: nope:latest"),
        ("POST", "/containers/create", "{", 400, "invalid JSON"),
        ("POST", "/containers/create", b"{}", 400, "unsupported Content-Type header ()"),
        ("POST", "/containers/create", None, 400, "invalid JSON: got EOF"),
        ("POST", "/exec/nope/start", {"Detach": False}, 404, "No such exec instance: nope"),
        ("GET", "/containers/json?filters=%7B", None, 400, "invalid JSON in filters"),
        ("GET", "/containers/json?filters={%22color%22:[%22red%22]}", None, 400, "invalid filter"),
        ("GET", "/containers/json?limit=x", None, 400, "invalid value 'x' for limit"),
        ("GET", "/volumes/nope", None, 404, "no such volume"),
        ("GET", "/networks/nope", None, 404, "network nope not found"),
        ("POST", "/images/create?fromImage=127.0.0.1:1/nope&tag=x", None, 500, "can't be reached"),
        ("GET", "/nodes", None, 503, "This node is not a swarm manager."),
        ("POST", "/services/create", {}, 503, "This node is not a swarm manager."),
        ("POST", "/session", None, 501, "DOCKER_BUILDKIT=0"),
        ("POST", "/build?version=2", None, 501, "DOCKER_BUILDKIT=0"),
        ("GET", "/nowhere", None, 404, "page not found"),
        ("PUT", "/containers/json", None, 404, "page not found"),
        ("GET", "/v1.99/info", None, 400, "client version 1.99 is too new. Maximum supported API"),
        ("GET", "/v1.20/info", None, 400, "client version 1.20 is too old. Minimum supported API"),
    ],
)
def test_refusals_have_dockers_status_and_words(
    docker: Any, method: str, target: str, body: Any, status: int, message: str
) -> None:
    answer = docker.request(method, target, body)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert message in answer.json()["message"]


def test_ping_tells_what_clients_negotiate_with(docker: Any) -> None:
    for method in ("GET", "HEAD"):
        answer = docker.request(method, "/_ping")
        assert answer.headers["api-version"] == "1.50"
        assert answer.headers["builder-version"] == "1"
        assert answer.headers["ostype"] == "linux"
        assert answer.headers["docker-experimental"] == "false"
        assert answer.headers["server"].startswith("tiffin/")


def test_the_version_tells_when_it_was_put_there(docker: Any) -> None:
    version = docker.request("GET", "/version").json()
    assert version["BuildTime"] > "2020"  # the docker client shows year 1 without it
    assert version["BuildTime"] == version["Components"][0]["Details"]["BuildTime"]


def test_a_network_may_be_switched_off(docker: Any) -> None:
    made = run(docker, "ls", "/sys/class/net", NetworkDisabled=True, HostConfig={})
    logs = docker.request("GET", f"/containers/{made}/logs?stdout=1").body
    assert output(logs) == b"lo\n"


def test_a_volume_of_a_cluster_needs_one(docker: Any) -> None:
    answer = docker.request("POST", "/volumes/create", {"Name": "cv", "ClusterVolumeSpec": {}})
    assert answer.status == 503
    assert "not a swarm manager" in answer.json()["message"]


def test_starting_twice_is_not_modified(docker: Any) -> None:
    identity = create(docker, "sleep", "1000")
    start = f"/containers/{identity}/start"
    assert [docker.request("POST", start).status for _ in range(2)] == [204, 304]
    stop = f"/containers/{identity}/stop?t=0"
    assert [docker.request("POST", stop).status for _ in range(2)] == [204, 304]


def test_wait_answers_its_head_at_once_and_the_code_at_the_end(docker: Any) -> None:
    identity = create(docker, "sh", "-c", "exit 7")
    client = docker.client()
    client.send(
        f"POST /containers/{identity}/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\n\r\n".encode()
    )
    assert client.head().status == 200
    docker.request("POST", f"/containers/{identity}/start")
    value = json.loads(client.chunk())
    assert value == {"StatusCode": 7}
    api_schema().check("POST", "/containers/{id}/wait", 200, value)


def test_wait_ends_when_its_client_vanishes(docker: Any) -> None:
    identity = create(docker, "true")
    client = docker.client()
    client.send(
        f"POST /containers/{identity}/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\n\r\n".encode()
    )
    assert client.head().status == 200
    client.close()
    while docker.server.active:
        pass


@pytest.fixture
def attached(docker: Any) -> Callable[..., Any]:
    def attach(identity: str, *, upgrade: bool = True, early: bytes = b"", query: str = "") -> Any:
        client = docker.client()
        path = f"/v1.50/containers/{identity}/attach?stream=1&stdin=1&stdout=1&stderr=1{query}"
        lines = [f"POST {path} HTTP/1.1", "Host: d"]
        if upgrade:
            lines += ["Connection: Upgrade", "Upgrade: tcp"]
        client.send("\r\n".join([*lines, "", ""]).encode() + early)
        answer = client.head()
        assert answer.status == (101 if upgrade else 200), answer
        client.type = answer.headers["content-type"]
        return client

    return attach


@pytest.mark.parametrize("upgrade", [True, False])
def test_attach_before_the_start_misses_nothing(
    docker: Any, attached: Callable[..., Any], upgrade: bool
) -> None:
    identity = create(docker, "sh", "-c", "echo out; echo err >&2; cat", OpenStdin=True)
    client = attached(identity, upgrade=upgrade, early=b"early ")
    assert client.type == "application/vnd.docker.multiplexed-stream"
    assert docker.request("POST", f"/containers/{identity}/start").status == 204
    client.send(b"late\n")
    # cat sees the end of its input because the container's is open for one client only.
    client.socket.shutdown(socket.SHUT_WR)
    docker.request("POST", f"/containers/{identity}/stop?t=1")
    data = client.to_end()
    assert output(data) == b"out\nearly late\n"
    assert output(data, 2) == b"err\n"


def test_a_terminal_is_a_raw_stream(docker: Any, attached: Callable[..., Any]) -> None:
    identity = create(docker, "echo", "hi", Tty=True)
    client = attached(identity)
    assert client.type == "application/vnd.docker.raw-stream"
    docker.request("POST", f"/containers/{identity}/start")
    assert client.to_end() == b"hi\r\n"


def start_exec(docker: Any, exec_id: str, body: dict[str, Any], early: bytes = b"") -> Any:
    client = docker.client()
    data = json.dumps(body).encode()
    client.send(
        f"POST /v1.50/exec/{exec_id}/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json"
        f"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
        + early
    )
    return client


def test_exec_speaks_on_its_connection_and_tells_its_code(docker: Any) -> None:
    identity = create(docker, "sleep", "1000")
    docker.request("POST", f"/containers/{identity}/start")
    for _ in range(10):
        made = docker.request(
            "POST",
            f"/containers/{identity}/exec",
            {
                "Cmd": ["sh", "-c", "cat; echo err >&2; exit 5"],
                **{f"Attach{stream}": True for stream in ("Stdin", "Stdout", "Stderr")},
            },
        )
        assert made.status == 201
        exec_id = made.json()["Id"]
        client = start_exec(docker, exec_id, {"Detach": False, "Tty": False}, b"early ")
        assert client.head().status == 101
        client.send(b"late")
        client.socket.shutdown(socket.SHUT_WR)
        data = client.to_end()
        assert output(data) == b"early late"
        assert output(data, 2) == b"err\n"
        view = docker.request("GET", f"/exec/{exec_id}/json").json()
        api_schema().check("GET", "/exec/{id}/json", 200, view)
        assert (view["Running"], view["ExitCode"]) == (False, 5)


def test_an_exec_that_cannot_start_says_so_in_the_stream(docker: Any) -> None:
    identity = create(docker, "sleep", "1000")
    docker.request("POST", f"/containers/{identity}/start")
    made = docker.request(
        "POST", f"/containers/{identity}/exec", {"Cmd": ["nosuch"], "AttachStdout": True}
    )
    exec_id = made.json()["Id"]
    client = start_exec(docker, exec_id, {"Detach": False})
    assert client.head().status == 101
    assert b'"nosuch": executable file not found' in output(client.to_end())
    assert docker.request("GET", f"/exec/{exec_id}/json").json()["ExitCode"] == 127


def test_logs_come_multiplexed_or_raw(docker: Any) -> None:
    identity = run(docker, "sh", "-c", "echo out; echo err >&2")
    answer = docker.request("GET", f"/v1.50/containers/{identity}/logs?stdout=1&stderr=1")
    assert answer.headers["content-type"] == "application/vnd.docker.multiplexed-stream"
    assert sorted(frames(answer.body)) == [(1, b"out\n"), (2, b"err\n")]
    answer = docker.request("GET", f"/v1.41/containers/{identity}/logs?stdout=1")
    assert answer.headers["content-type"] == "application/vnd.docker.raw-stream"
    assert frames(answer.body) == [(1, b"out\n")]
    answer = docker.request("GET", f"/containers/{identity}/logs")
    assert answer.status == 400
    identity = run(docker, "echo", "hi", Tty=True)
    answer = docker.request("GET", f"/containers/{identity}/logs?stdout=1&stderr=1")
    assert answer.headers["content-type"] == "application/vnd.docker.raw-stream"
    assert answer.body == b"hi\r\n"


def test_files_go_in_and_out(docker: Any) -> None:
    identity = create(docker, "true")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    path = f"/containers/{identity}/archive?path="
    assert docker.request("PUT", f"{path}/root", buffer.getvalue()).status == 200
    head = docker.request("HEAD", f"{path}/root/file")
    stat = json.loads(base64.b64decode(head.headers["x-docker-container-path-stat"]))
    assert (stat["name"], stat["size"]) == ("file", 5)
    answer = docker.request("GET", f"{path}/root/file")
    assert answer.headers["x-docker-container-path-stat"]
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        member = tar.extractfile("file")
        assert member is not None
        assert member.read() == b"hello"
    assert docker.request("HEAD", f"{path}/nope").status == 404
    assert docker.request("GET", f"{path}/nope").status == 404
    assert docker.request("GET", path).status == 400
    exported = docker.request("GET", f"/containers/{identity}/export")
    with tarfile.open(fileobj=io.BytesIO(exported.body)) as tar:
        assert "root/file" in tar.getnames()


def test_images_leave_and_come_back(docker: Any) -> None:
    before = docker.request("GET", "/images/busybox/json").json()["Id"]
    saved = docker.request("GET", "/images/get?names=busybox").body
    assert docker.request("DELETE", "/images/busybox").status == 200
    answer = docker.request("POST", "/images/load?quiet=1", saved)
    assert answer.status == 200
    assert [json.loads(line) for line in answer.body.splitlines()] == [
        {"stream": "Loaded image: busybox:latest\n"}
    ]
    assert docker.request("GET", "/images/busybox/json").json()["Id"] == before
    broken = docker.request("POST", "/images/load", saved[: len(saved) // 2])
    # As in Docker, and as docker-py expects it: the error is the stream's last message.
    assert broken.status == 200
    assert json.loads(broken.body.splitlines()[-1])["errorDetail"]["message"]


def test_older_clients_get_what_they_know(docker: Any, engine: Engine) -> None:
    docker.request("POST", "/images/busybox/tag?repo=busybox&tag=other")
    row = docker.request("GET", "/v1.42/images/json").json()[0]
    assert row["VirtualSize"] == row["Size"]
    assert "VirtualSize" not in docker.request("GET", "/v1.50/images/json").json()[0]


def test_image_names_may_have_slashes(docker: Any) -> None:
    assert docker.request("POST", "/images/busybox/tag?repo=host:5000/a/b&tag=1").status == 201
    for name in ("host:5000/a/b:1", quote("host:5000/a/b:1", safe="")):
        view = docker.request("GET", f"/v1.50/images/{name}/json")
        assert view.status == 200, view.body
        assert "host:5000/a/b:1" in view.json()["RepoTags"]
    assert docker.request("GET", "/images/host:5000/a/b:1/history").status == 200
    assert docker.request("DELETE", "/images/host:5000/a/b:1").status == 200


def test_filters_may_be_lists_or_maps(docker: Any) -> None:
    create(docker, "true", Labels={"color": "red"})
    create(docker, "true", Labels={"color": "blue"})
    for filters in ({"label": ["color=red"]}, {"label": {"color=red": True}}):
        rows = docker.request(
            "GET", f"/containers/json?all=1&filters={quote(json.dumps(filters))}"
        ).json()
        assert [row["Labels"]["color"] for row in rows] == ["red"]


def source(path: Path, **changes: int) -> dict[str, str]:
    status = path.stat()
    value = {"path": str(path), "dev": status.st_dev, "ino": status.st_ino, **changes}
    return {"X-Tiffin-Source": json.dumps(value)}


def test_a_file_is_read_in_place_if_both_see_the_same_one(docker: Any, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    archive.write_bytes(docker.request("GET", "/images/busybox/get").body)
    loaded = docker.request("POST", "/images/load", headers=source(archive))
    assert b"Loaded image: busybox:latest" in loaded.body
    other = docker.request("POST", "/images/load", headers=source(archive, ino=1))
    assert other.status == 409
    assert "another file to the daemon" in other.json()["message"]
    imported = docker.request(
        "POST", "/images/create?fromSrc=-&repo=again", headers=source(archive)
    )
    assert imported.json()["status"].startswith("sha256:")
    folder = docker.request("POST", "/images/load", headers=source(tmp_path))
    assert folder.status == 409
    (tmp_path / "ctx").mkdir()
    (tmp_path / "ctx" / "Dockerfile").write_text("FROM busybox\nLABEL a=b\n")
    built = docker.request("POST", "/build?t=built", headers=source(tmp_path / "ctx"))
    assert b"Successfully tagged built:latest" in built.body


@pytest.mark.parametrize("value", ["{}", "x", '{"path":"rel","dev":1,"ino":1}'])
def test_a_malformed_source_is_refused(docker: Any, value: str) -> None:
    answer = docker.request("POST", "/images/load", headers={"X-Tiffin-Source": value})
    assert answer.status == 400


def test_a_build_tells_its_steps_and_its_failure(docker: Any) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        text = b"FROM busybox\nRUN echo said && exit 9\n"
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    answer = docker.request("POST", "/v1.50/build?t=x", buffer.getvalue())
    assert answer.status == 200
    messages = [json.loads(line) for line in answer.body.splitlines()]
    assert {"stream": "said\n"} in messages
    assert messages[-1]["errorDetail"]["code"] == 9
    assert "returned a non-zero code: 9" in messages[-1]["error"]
    answer = docker.request("POST", "/v1.50/build?t=x", b"BOGUS\n")
    assert answer.status == 400


def test_events_are_told_and_filtered(docker: Any) -> None:
    client = docker.client()
    filters = quote(json.dumps({"type": ["container"], "event": ["create", "destroy"]}))
    client.send(f"GET /events?filters={filters} HTTP/1.1\r\nHost: d\r\n\r\n".encode())
    assert client.head().status == 200
    identity = run(docker, "true")
    docker.request("DELETE", f"/containers/{identity}")
    events = [json.loads(client.chunk()) for _ in range(2)]
    assert [(event["Action"], event["Actor"]["ID"]) for event in events] == [
        ("create", identity),
        ("destroy", identity),
    ]
    past = docker.request("GET", "/events?since=1&until=2").body
    assert past == b""


def test_stats_have_what_clients_compute_with(docker: Any) -> None:
    identity = create(docker, "sleep", "1000")
    docker.request("POST", f"/containers/{identity}/start")
    answer = docker.request("GET", f"/containers/{identity}/stats?stream=0&one-shot=1")
    reading = answer.json()
    assert reading["memory_stats"]["usage"] > 0
    assert reading["cpu_stats"]["cpu_usage"]["total_usage"] > 0


def test_shutdown_is_passed_on(engine: Engine, api: Callable[..., Any]) -> None:
    told: list[bool] = []
    docker = api(engine, told.append)
    assert docker.request("POST", "/tiffin/shutdown").status == 204
    assert docker.request("POST", "/tiffin/shutdown?keeper=0").status == 204
    assert told == [True, False]
    running = create(docker, "sleep", "1000")
    docker.request("POST", f"/containers/{running}/start")
    assert docker.request("POST", "/tiffin/shutdown?force=1&t=0").status == 204
    assert docker.request("GET", "/containers/json").json() == []


@pytest.fixture(autouse=True)
def no_descriptors_leak() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 40
