"""What older clients send and get, version by version."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from api_schema import api_schema
from tiffin.engine import Engine
from tiffin.engine.blobs import BlobMemory
from tiffin.image.manifest import OCI_CONFIG, Descriptor, Manifest

pytestmark = pytest.mark.root


@pytest.fixture
def docker(engine: Engine, api: Callable[[Any], Any]) -> Any:
    return api(engine)


def created(docker: Any, version: str, host: Any = None, **config: Any) -> Any:
    body = {"Image": "busybox", "HostConfig": {"NetworkMode": "none", **(host or {})}, **config}
    return docker.request("POST", f"/v{version}/containers/create", body)


def inspected(docker: Any, version: str, answer: Any) -> Any:
    assert answer.status == 201, answer.body
    return docker.request("GET", f"/v{version}/containers/{answer.json()['Id']}/json").json()


def test_what_older_versions_of_create_mean(docker: Any, tmp_path: Path) -> None:
    for version, mode in (("1.39", "shareable"), ("1.40", "private")):
        view = inspected(docker, version, created(docker, version))
        assert view["HostConfig"]["IpcMode"] == mode
    host = {"AutoRemove": True, "Annotations": {"a": "b"}, "ConsoleSize": [10, 20]}
    view = inspected(docker, "1.24", created(docker, "1.24", host))["HostConfig"]
    assert (view["AutoRemove"], view["ConsoleSize"]) == (False, [0, 0])
    assert not view.get("Annotations")
    check = {"Test": ["CMD", "true"], "StartInterval": 10**9}
    for version, kept in (("1.43", False), ("1.44", True)):
        view = inspected(docker, version, created(docker, version, Healthcheck=check))
        assert ("StartInterval" in view["Config"]["Healthcheck"]) == kept


@pytest.mark.parametrize(
    ("version", "mount", "message"),
    [
        ("1.42", {"Type": "tmpfs", "BindOptions": {}}, "BindOptions must not be specified on"),
        ("1.41", {"Type": "tmpfs", "BindOptions": {}}, ""),
        ("1.43", {"Type": "bind", "BindOptions": {"ReadOnlyForceRecursive": True}}, "v1.44"),
        ("1.44", {"Type": "volume", "VolumeOptions": {"Subpath": "a"}}, "needs API v1.45 or newer"),
        ("1.47", {"Type": "image"}, "needs API v1.48 or newer"),
        ("1.41", {"Type": "bind", "BindOptions": {"CreateMountpoint": True}}, "does not exist"),
    ],
)
def test_mounts_that_a_version_has_not(
    docker: Any, version: str, mount: dict[str, Any], message: str
) -> None:
    mount = {"Target": "/x", **mount}
    if mount["Type"] != "tmpfs":
        mount["Source"] = "/absent/folder" if mount["Type"] == "bind" else "one"
    answer = created(docker, version, {"Mounts": [mount]})
    if not message:
        assert answer.status == 201
        return
    assert answer.status == 400
    assert message in answer.json()["message"]


def test_one_network_at_a_time_before_1_44(docker: Any) -> None:
    networks = {"NetworkingConfig": {"EndpointsConfig": {"one": {}, "two": {}}}}
    for name in ("one", "two"):
        docker.request("POST", "/networks/create", {"Name": name})
    answer = created(docker, "1.43", {"NetworkMode": "one"}, **networks)
    assert answer.status == 400
    assert "cannot be created with multiple network endpoints" in answer.json()["message"]
    view = inspected(docker, "1.43", created(docker, "1.44", {"NetworkMode": "one"}, **networks))
    short = view["Id"][:12]
    assert view["NetworkSettings"]["Networks"]["two"]["Aliases"] == [short]
    newest = docker.request("GET", f"/v1.45/containers/{view['Id']}/json").json()
    assert newest["NetworkSettings"]["Networks"]["two"]["Aliases"] is None
    listed = docker.request("GET", "/v1.27/networks").json()
    assert all("Containers" in row for row in listed)
    listed = docker.request("GET", "/v1.28/networks").json()
    assert not any(row.get("Containers") for row in listed)


def test_read_only_binds_of_older_versions_are_so_at_their_top(
    docker: Any, engine: Engine, tmp_path: Path
) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    outer.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "outer", outer], check=True)
    try:
        inner.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "inner", inner], check=True)
        for version, code in (("1.43", 0), ("1.44", 1)):
            host = {"Binds": [f"{outer}:/x:ro"]}
            key = created(docker, version, host, Cmd=["touch", "/x/inner/file"]).json()["Id"]
            engine.containers.start(key)
            answer = engine.containers.wait(key)
            assert answer is not None
            assert answer["StatusCode"] == code
    finally:
        subprocess.run(["umount", "-R", outer], check=True)


def test_the_platform_that_is_asked_for(docker: Any) -> None:
    here = docker.request("GET", "/images/busybox/json").json()["Architecture"]
    other = "arm64" if here != "arm64" else "amd64"
    good, bad = (quote(json.dumps({"os": "linux", "architecture": one})) for one in (here, other))
    body = {"Image": "busybox", "HostConfig": {"NetworkMode": "none"}}
    for path, since in (("json", "1.49"), ("history", "1.48"), ("get", "1.48")):
        target = f"images/busybox/{path}?platform="
        assert docker.request("GET", f"/v{since}/{target}{good}").status == 200
        refused = docker.request("GET", f"/v{since}/{target}{bad}")
        assert refused.status == 404
        assert "does not match the specified platform" in refused.json()["message"]
        assert docker.request("GET", f"/v1.47/{target}{bad}").status == 200
        assert docker.request("GET", f"/v{since}/{target}%7B%22os%22:1%7D").status == 400
    for version, platform, status in (
        ("1.41", f"linux/{here}", 201),
        ("1.41", f"linux/{other}", 404),
        ("1.40", f"linux/{other}", 201),
    ):
        path = f"/v{version}/containers/create?platform={quote(platform)}"
        assert docker.request("POST", path, body).status == status


def test_manifests_of_an_image(docker: Any, engine: Engine) -> None:
    image = engine.images.find("busybox")
    config = Descriptor.of(b"{}", OCI_CONFIG)
    manifest = Manifest.make(config, [])
    for path in ("/v1.47/images/json?manifests=1", "/v1.48/images/busybox/json?manifests=1"):
        answer = docker.request("GET", path).json()
        # It was neither pulled nor pushed.
        assert (answer[0] if isinstance(answer, list) else answer)["Manifests"] == []
    BlobMemory(engine._database).remember_manifest(image.id, manifest)
    user = created(docker, "1.50").json()["Id"]
    (row,) = docker.request("GET", "/v1.47/images/json?manifests=1").json()
    view = docker.request("GET", "/v1.48/images/busybox/json?manifests=1").json()
    assert row["Manifests"] == view["Manifests"]
    (shown,) = view["Manifests"]
    assert (shown["ID"], shown["Kind"]) == (manifest.digest, "image")
    # The description wants a member here that it does not have itself.
    assert shown.pop("ImageData")["Containers"] == [user]
    newest = docker.request("GET", "/v1.50/images/busybox/json?manifests=1").json()
    newest["Manifests"] = [shown]
    api_schema().check("GET", "/images/{name}/json", 200, newest)
    row["Manifests"] = [shown]
    api_schema().check("GET", "/images/json", 200, [row])
    assert shown["Size"]["Total"] == shown["Size"]["Content"] + image.size
    for path in ("/v1.46/images/json?manifests=1", "/v1.47/images/busybox/json?manifests=1"):
        assert b"Manifests" not in docker.request("GET", path).body
    platform = quote(json.dumps({"os": "linux", "architecture": "amd64"}))
    both = f"/v1.49/images/busybox/json?manifests=1&platform={platform}"
    assert docker.request("GET", both).status == 400


def test_the_filter_of_images_before_1_41(docker: Any) -> None:
    for version, count in (("1.40", 0), ("1.41", 1)):
        assert len(docker.request("GET", f"/v{version}/images/json?filter=no*").json()) == count


def test_what_info_said_once(docker: Any) -> None:
    for version, known in (("1.49", True), ("1.50", False)):
        assert ("BridgeNfIptables" in docker.request("GET", f"/v{version}/info").json()) == known
    for version, known in (("1.48", True), ("1.49", False)):
        view = docker.request("GET", f"/v{version}/info").json()
        assert ("Expected" in view["RuncCommit"]) == known
