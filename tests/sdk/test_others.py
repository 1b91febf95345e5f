"""Images, networks, volumes and the engine as a whole by the SDK."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import tiffin
from registry.test_client import htpasswd
from tiffin import types
from tiffin.errors import (
    BuildFailure,
    Conflict,
    CorruptArchive,
    ImageNotFound,
    InvalidParameter,
    NotFound,
    RootInUse,
    Unauthorized,
)
from tiffin.registry.access import Passwords
from tiffin.registry.protocol import Policy
from tiffin.registry.server import RegistryServer

pytestmark = pytest.mark.root


def test_images_are_listed_named_and_removed(client: tiffin.Client) -> None:
    image = client.images.get("busybox")
    assert image.tags == ["busybox:latest"]
    assert image.short_id == image.id[:19] and repr(image) == "<Image: busybox:latest>"
    assert image.tag("other", "1")
    image.reload()
    assert sorted(image.tags) == ["busybox:latest", "other:1"]
    assert [each.id for each in client.images.list("other")] == [image.id]
    assert client.images.list("nothing") == []
    assert len(image.history()) == 1
    assert client.images.remove("other:1") == [{"Untagged": "other:1"}]
    with pytest.raises(ImageNotFound):
        client.images.get("other:1")
    assert client.images.prune()["SpaceReclaimed"] == 0


def test_save_and_load(client: tiffin.Client, tmp_path: Path) -> None:
    image = client.images.get("busybox")
    image.tag("kept")
    image.reload()
    with image.save(named="kept:latest") as pieces:
        archive = b"".join(pieces)
    client.images.remove("kept")
    (loaded,) = client.images.load(archive)
    assert loaded.id == image.id and "kept:latest" in loaded.tags
    (tmp_path / "a.tar").write_bytes(archive)
    with open(tmp_path / "a.tar", "rb") as file:
        assert client.images.load(file) == [image]
    with pytest.raises((CorruptArchive, InvalidParameter)):
        client.images.load(b"no archive")
    with pytest.raises(InvalidParameter, match="not a tag"):
        image.save(named="nosuch")


def test_builds(client: tiffin.Client, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox AS one\nARG A=0\nCOPY f /f\nLABEL x=y\nRUN echo $A >> /f\nCMD cat /f\n"
        "FROM one\nRUN echo two >> /f\n"
    )
    (tmp_path / "f").write_text("file\n")
    (tmp_path / "left-out").write_text("x")
    (tmp_path / ".dockerignore").write_text("left-*\n")
    image, log = client.images.build(
        path=tmp_path, tag="built:1", buildargs={"A": "arg"}, labels={"l": "1"}
    )
    assert image.tags == ["built:1"] and image.labels == {"x": "y", "l": "1"}
    assert any("Step 2/" in message.get("stream", "") for message in log)
    assert client.containers.run(image, remove=True) == b"file\narg\ntwo\n"
    one, _ = client.images.build(path=str(tmp_path), target="one")
    assert client.containers.run(one, remove=True) == b"file\n0\n"
    alone, _ = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nCMD echo alone\n"))
    assert client.containers.run(alone, remove=True) == b"alone\n"
    with pytest.raises(BuildFailure, match="non-zero code: 3") as failed:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 3\n"))
    assert failed.value.build_log and failed.value.exit_code == 3
    with pytest.raises(InvalidParameter, match="no folder"):
        client.images.build(path=tmp_path / "nosuch")
    with pytest.raises(TypeError):
        client.images.build()


def test_builds_as_dockers_builder_does_them(client: tiffin.Client) -> None:
    lines = b"FROM busybox\nENV A=b\nRUN echo oops >&2\nRUN touch /f\n"

    def build(**options: Any) -> list[str]:
        _, log = client.images.build(fileobj=io.BytesIO(lines), **options)
        return [message.get("stream", "") for message in log]

    assert "\x1b[91moops\n\x1b[0m" in build(tag="first")
    assert build(cache_from=["first"]).count(" ---> Using cache\n") == 3
    assert build(cache_from=["nosuchtag"]).count(" ---> Using cache\n") == 0
    asks = io.BytesIO(b"FROM busybox\nRUN nslookup target.lan\n")
    with client.networks.create("buildnet") as network, client.containers.create(
        "busybox", "sleep 600"
    ) as container:  # fmt: skip
        network.connect(container, aliases=["target.lan"])
        container.start()
        client.images.build(fileobj=asks, network_mode=network.id)
    asks.seek(0)
    with pytest.raises(BuildFailure):
        client.images.build(fileobj=asks, network_mode="none", nocache=True)


def test_a_context_that_the_engine_cannot_read_is_sent(
    client: tiffin.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY . /c\nCMD ls -A /c\n")
    (tmp_path / "left-out").write_text("x")
    (tmp_path / "sent").write_text("x")
    (tmp_path / ".dockerignore").write_text("left-*\n")
    monkeypatch.setattr(client.transport, "_local", False)
    image, _ = client.images.build(path=tmp_path)
    listed = client.containers.run(image, remove=True).split()
    assert listed == [b".dockerignore", b"Dockerfile", b"sent"]


def test_a_pull_without_a_registry_fails_by_name(client: tiffin.Client) -> None:
    with pytest.raises(tiffin.errors.TiffinError, match=r"127\.0\.0\.1:1"):
        client.images.pull("127.0.0.1:1/nothing")
    with pytest.raises(tiffin.errors.TiffinError, match=r"127\.0\.0\.1:1"):
        client.containers.run("127.0.0.1:1/nothing")
    with pytest.raises(tiffin.errors.TiffinError, match=r"127\.0\.0\.1:1"):
        client.login("user", "secret", registry="127.0.0.1:1")


def test_push_and_pull(client: tiffin.Client, tmp_path: Path) -> None:
    with RegistryServer(tmp_path / "registry") as server:
        name = f"{server.address}/box"
        image = client.images.get("busybox")
        for tag in ("1", "2"):
            image.tag(name, tag)
            assert "digest" in client.images.push(name, tag)
            client.images.remove(f"{name}:{tag}")
        assert client.images.pull(name, tag="1").id == image.id
        assert client.images.pull(name, all_tags=True) == [image]
        data = client.images.get_registry_data(f"{name}:1")
        assert data.pull() == image
        assert data.has_platform(f"linux/{client.version()['Arch']}")
        assert not data.has_platform("plan9/z80")
        with client.images.push(name, "1", stream=True, decode=True) as said:
            assert not [message for message in said if "error" in message]
        with pytest.raises(tiffin.errors.TiffinError):
            client.images.push(f"{name}:nosuch")
        with pytest.raises(ImageNotFound):
            client.images.pull(f"{name}:nosuch")
        client.containers.run(f"{name}:2", "true", remove=True)
        client.images.remove(f"{name}:1")
        client.images.remove(f"{name}:2")


def test_login(client: tiffin.Client, tmp_path: Path) -> None:
    policy = Policy(Passwords(htpasswd(tmp_path)))
    with RegistryServer(tmp_path / "registry", policy=policy) as server:
        with pytest.raises(Unauthorized):
            client.login("user", "wrong", registry=server.address)
        assert "Succeeded" in client.login("user", "secret", registry=server.address)["Status"]
        image = client.images.get("busybox")
        image.tag(f"{server.address}/box")
        assert "digest" in client.images.push(f"{server.address}/box")
        client.credentials.clear()
        with pytest.raises(tiffin.errors.TiffinError):
            client.images.push(f"{server.address}/box")
        mine = {"username": "user", "password": "secret"}
        client.images.pull(f"{server.address}/box", auth_config=mine)


def test_networks(client: tiffin.Client) -> None:
    ipam = types.IPAMConfig(pool_configs=[types.IPAMPool(subnet="10.81.0.0/24")])
    with client.networks.create("lan", labels={"a": "b"}, ipam=ipam, internal=True) as network:
        assert network.name == "lan" and network.attrs["Internal"]
        assert [one.id for one in client.networks.list(names=["lan"])] == [network.id]
        with pytest.raises(Conflict):
            client.networks.create("lan")
        with client.containers.run("busybox", "sleep 600", detach=True, network="lan") as first:
            second = client.containers.create("busybox", "sleep 600")
            network.connect(second, aliases=["other"])
            second.start()
            (listed,) = client.networks.list(ids=[network.id], greedy=True)
            assert {each.id for each in listed.containers} == {first.id, second.id}
            network.disconnect(second)
            network.reload()
            assert network.containers == [first]
    with pytest.raises(NotFound):
        client.networks.get("lan")
    client.networks.create("unused")
    assert client.networks.prune()["NetworksDeleted"] == ["unused"]


def test_volumes(client: tiffin.Client) -> None:
    with client.volumes.create("data", labels={"a": "b"}) as volume:
        assert (volume.id, volume.name) == ("data", "data")
        client.containers.run(
            "busybox", "sh -c 'echo kept > /d/f'", remove=True, volumes=["data:/d"]
        )
        got = client.containers.run(
            "busybox", "cat /d/f", volumes={"data": {"bind": "/d"}}, remove=True
        )
        assert got == b"kept\n"
        assert client.volumes.list(filters={"label": "a=b"}) == [volume]
        volume.reload()
        assert volume.attrs["Labels"] == {"a": "b"}
    assert client.volumes.list() == []
    client.volumes.create()
    assert len(client.volumes.prune()["VolumesDeleted"]) == 1


def test_the_engine_as_a_whole(client: tiffin.Client) -> None:
    assert client.ping() is True
    assert client.version()["ApiVersion"] == "1.50"
    assert client.info()["Driver"] in ("overlay2", "vfs")
    assert {"Images", "Containers", "Volumes"} <= set(client.df())


def test_events(client: tiffin.Client) -> None:
    start = time.time()
    container = client.containers.run("busybox", "true", detach=True)
    container.wait()
    container.remove()
    with client.events(since=start, until=time.time(), decode=True) as past:
        actions = [e["Action"] for e in past if e["Actor"]["ID"] == container.id]
    assert [each for each in actions if each in ("create", "start", "die", "destroy")] == [
        "create", "start", "die", "destroy",
    ]  # fmt: skip
    seen: list[str] = []
    with client.events(filters={"type": "volume"}, decode=True) as coming:
        reader = threading.Thread(target=lambda: seen.append(next(coming)["Action"]))
        reader.start()
        client.volumes.create("vol")
        reader.join(60)
    assert seen == ["create"]


def test_one_process_has_a_root(engine_client: tiffin.Engine, sdk_roots: Path) -> None:
    with pytest.raises(RootInUse):
        tiffin.Engine(sdk_roots / "engine")
    with pytest.raises(tiffin.errors.Unsupported, match="close"):
        engine_client.transport.call("POST", "/tiffin/shutdown")
    assert engine_client.core.containers.list(all=True) == []
