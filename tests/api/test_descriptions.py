"""Every JSON answer that the API describes is held against its description somewhere."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_schema import api_schema
from tiffin.engine import Engine
from tiffin.registry.server import RegistryServer

pytestmark = pytest.mark.root

# What an engine that is no swarm manager, and has no plugins, never says.
ABSENT = ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs", "/plugins/")
# Archives, streams of bytes, and texts.
NO_JSON = {
    "/_ping", "/containers/{id}/logs", "/images/{name}/get", "/images/get",
    "/containers/{id}/export", "/containers/{id}/archive",
}  # fmt: skip
# Docker Hub alone answers it: `tests/registry` asks a registry that plays its part.
ELSEWHERE = {"/images/search"}


@pytest.fixture
def docker(engine: Engine, api: Callable[[Any], Any]) -> Any:
    return api(engine)


def test_no_answer_is_forgotten() -> None:
    texts = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py")))
    forgotten = []
    for method, path in api_schema().operations():
        if path.startswith(ABSENT) or path in NO_JSON | ELSEWHERE:
            continue
        for status in api_schema().statuses(method, path):
            named = re.search(rf'"{method}",\s*"{re.escape(path)}"', texts) or (
                method == "POST" and f'post("{path}"' in texts
            )
            if int(status) < 300 and api_schema().describes(method, path, status) and not named:
                forgotten.append((method, path, status))
    assert not forgotten


def test_answers_of_verbs(docker: Any) -> None:
    def post(path: str, target: str, body: Any, status: int) -> Any:
        answer = docker.request("POST", target, body)
        assert answer.status == status, answer.body
        api_schema().check("POST", path, status, answer.json())
        return answer.json()

    config = {"Image": "busybox", "Cmd": ["sleep", "1000"]}
    config["HostConfig"] = {"NetworkMode": "none"}  # type: ignore[assignment]
    post("/containers/create", "/containers/create?name=box", config, 201)
    assert docker.request("POST", "/containers/box/start").status == 204
    run = post("/containers/{id}/exec", "/containers/box/exec", {"Cmd": ["true"]}, 201)["Id"]
    assert docker.request("POST", f"/exec/{run}/start", {"Detach": True}).status == 200
    deadline = time.monotonic() + 60
    while (answer := docker.request("GET", f"/exec/{run}/json")).json()["Running"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    api_schema().check("GET", "/exec/{id}/json", 200, answer.json())
    answer = docker.request("GET", "/containers/box/stats?stream=0")
    api_schema().check("GET", "/containers/{id}/stats", 200, answer.json())
    assert docker.request("POST", "/containers/box/kill").status == 204
    post("/containers/{id}/wait", "/containers/box/wait", None, 200)
    post("/commit", "/commit?container=box&repo=made", None, 201)
    post("/networks/create", "/networks/create", {"Name": "lan"}, 201)
    post("/networks/prune", "/networks/prune", None, 200)
    post("/volumes/create", "/volumes/create", {"Name": "data"}, 201)
    answer = docker.request("GET", "/plugins")
    api_schema().check("GET", "/plugins", 200, answer.json())
    answer = docker.request("GET", "/events?since=1&until=1")
    assert answer.body == b""


def _only(container: str) -> str:
    return json.dumps({"container": [container]}).replace('"', "%22").replace(" ", "")


def test_events_of_the_past_are_as_described(docker: Any) -> None:
    made = docker.request("POST", "/containers/create?name=box", {"Image": "busybox"}).json()["Id"]
    assert docker.request("DELETE", "/containers/box").status == 204
    now = docker.request("GET", "/info").json()["SystemTime"]
    answer = docker.request("GET", f"/events?since=0&until={now}&filters={_only(made)}")
    messages = [json.loads(line) for line in answer.body.splitlines()]
    assert [message["Action"] for message in messages] == ["create", "destroy"]
    for message in messages:
        # Docker still tells them, and no longer describes them.
        old = {name: message.pop(name) for name in ("status", "id", "from")}
        assert old == {"status": message["Action"], "id": made, "from": "busybox"}
        api_schema().check("GET", "/events", 200, message)


def test_answers_of_registries(docker: Any, tmp_path: Path) -> None:
    with RegistryServer(tmp_path / "registry") as server:
        name = f"{server.address}/box"
        assert docker.request("POST", f"/images/busybox/tag?repo={name}&tag=1").status == 201
        assert docker.request("POST", f"/images/{name}/push?tag=1").status == 200
        answer = docker.request("GET", f"/distribution/{name}:1/json")
        api_schema().check("GET", "/distribution/{name}/json", 200, answer.json())
        body = {"username": "a", "password": "b", "serveraddress": server.address}
        answer = docker.request("POST", "/auth", body)
        api_schema().check("POST", "/auth", 200, answer.json())
