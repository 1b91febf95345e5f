"""Every path of the API's description is answered, as Docker answers where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from api_schema import api_schema
from tiffin.engine import Engine

pytestmark = pytest.mark.root

ALSO = {400, 404, 501, 503}
"""What makes no sense is refused, also where that is not described; so is what
is not done yet; a registry may be out of reach."""
UPLOADS = {"/images/load", "/build", "/containers/{id}/archive"}
LASTING = {"/events"}


@pytest.fixture
def docker(engine: Engine, api: Callable[[Any], Any]) -> Any:
    return api(engine)


@pytest.mark.parametrize(("method", "path"), api_schema().operations())
def test_every_path_is_answered(docker: Any, method: str, path: str) -> None:
    name = "127.0.0.1:1/nothing:1" if path.startswith("/distribution") else "nothing"
    target = path.replace("{id}", name).replace("{name}", name)
    if path in LASTING:
        target += "?until=1"
    if path.endswith(("/archive", "/archive/")):
        target += "?path=/etc"
    if path == "/images/get":
        target += "?names=busybox"
    body = None if method == "GET" or path in UPLOADS else b"{}"
    answer = docker.request(method, target, body)
    assert answer.status in {*api_schema().statuses(method, path), *ALSO}, answer.body
    if answer.status >= 400 and method != "HEAD":
        assert answer.headers["content-type"] == "application/json"
        api_schema().check_definition("ErrorResponse", answer.json())
        assert answer.json()["message"] != "page not found"
    elif "application/json" in answer.headers.get("content-type", "") and answer.body:
        lasting = answer.body.count(b"\n") > 1 or path in {*LASTING, *UPLOADS}
        if not lasting and api_schema().describes(method, path, answer.status):
            api_schema().check(method, path, answer.status, answer.json())


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.40", "1.41", "1.44", "1.50"])
def test_every_version_is_spoken(docker: Any, version: str) -> None:
    for path in ("_ping", "version", "info", "images/json", "containers/json?all=1", "volumes"):
        assert docker.request("GET", f"/v{version}/{path}").status == 200


def test_older_versions_get_the_fields_that_they_had(docker: Any) -> None:
    def image(version: str) -> Any:
        return docker.request("GET", f"/v{version}/images/json").json()[0]

    assert image("1.43")["VirtualSize"] == image("1.43")["Size"]
    assert "VirtualSize" not in image("1.44")

    def inspected(version: str) -> Any:
        return docker.request("GET", f"/v{version}/images/busybox/json").json()

    assert inspected("1.43")["VirtualSize"] == inspected("1.43")["Size"]
    assert {"Container", "ContainerConfig"} <= inspected("1.44").keys()
    assert not {"Container", "ContainerConfig"} & inspected("1.45").keys()
    assert "Hostname" in inspected("1.49")["Config"]
    assert "Hostname" not in inspected("1.50")["Config"]
    assert "BuilderSize" in docker.request("GET", "/v1.41/system/df").json()
    assert "BuilderSize" not in docker.request("GET", "/v1.42/system/df").json()
    assert docker.request("GET", "/v1.41/info").json()["KernelMemory"] is False
    assert "KernelMemory" not in docker.request("GET", "/v1.42/info").json()


@pytest.mark.parametrize(
    ("method", "target", "status", "message"),
    [
        ("GET", "/swarm", 503, 'Use "docker swarm init" or "docker swarm join"'),
        ("GET", "/services/x/logs?stdout=1", 503, "This node is not a swarm manager."),
        ("GET", "/tasks", 503, "This node is not a swarm manager."),
        ("POST", "/secrets/create", 503, "This node is not a swarm manager."),
        ("DELETE", "/configs/x", 503, "This node is not a swarm manager."),
        ("POST", "/swarm/leave", 503, "This node is not part of a swarm"),
        ("GET", "/plugins/x/json", 404, 'plugin "x" not found'),
        ("POST", "/plugins/x/y/enable", 404, 'plugin "x/y" not found'),
        ("DELETE", "/plugins/x", 404, 'plugin "x" not found'),
    ],
)
def test_what_a_docker_engine_outside_a_swarm_says(
    docker: Any, method: str, target: str, status: int, message: str
) -> None:
    answer = docker.request(method, target, b"{}" if method == "POST" else None)
    assert answer.status == status
    assert message in answer.json()["message"]
