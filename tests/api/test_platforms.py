"""Images of several platforms: which of them a client loads, removes or pushes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tiffin.engine import Engine

pytestmark = pytest.mark.root

ARM = quote('{"os": "linux", "architecture": "arm", "variant": "v7"}')
S390X = quote(json.dumps({"os": "linux", "architecture": "s390x"}))


@pytest.fixture
def docker(engine: Engine, api: Callable[[Any], Any]) -> Any:
    """An engine with two images, each for another machine."""
    for name, platform in (("one", "linux/arm/v7"), ("two", "linux/s390x")):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(name))
        file.seek(0)
        engine.images.import_(file, name, platform=platform)
    return api(engine)


def names(docker: Any) -> set[str]:
    rows = docker.request("GET", "/images/json").json()
    return {tag for row in rows for tag in row["RepoTags"]}


def archive(docker: Any) -> bytes:
    """Both images, saved and removed."""
    saved: bytes = docker.request("GET", "/images/get?names=one&names=two").body
    for name in ("one", "two"):
        assert docker.request("DELETE", f"/images/{name}").status == 200
    return saved


def without_manifest(saved: bytes) -> bytes:
    """The archive as an OCI layout alone."""
    file = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(saved)) as source,
        tarfile.open(fileobj=file, mode="w") as tar,
    ):
        for member in source:
            if member.name != "manifest.json":
                tar.addfile(member, source.extractfile(member) if member.isreg() else None)
    return file.getvalue()


@pytest.mark.parametrize("form", [bytes, without_manifest])
def test_only_images_for_the_platform_are_loaded(
    docker: Any, form: Callable[[bytes], bytes]
) -> None:
    answer = docker.request("POST", f"/images/load?platform={ARM}", form(archive(docker)))
    assert b"Loaded image: one:latest" in answer.body
    assert b"two" not in answer.body
    assert names(docker) == {"busybox:latest", "one:latest"}


@pytest.mark.parametrize("form", [bytes, without_manifest])
def test_an_archive_without_the_platform_is_refused(
    docker: Any, form: Callable[[bytes], bytes]
) -> None:
    other = quote('{"os": "linux", "architecture": "mips"}')
    answer = docker.request("POST", f"/images/load?platform={other}", form(archive(docker)))
    assert "no image for the platform linux/mips" in answer.json()["error"]
    assert names(docker) == {"busybox:latest"}


def test_without_a_platform_all_are_loaded(docker: Any) -> None:
    saved = archive(docker)
    older = docker.request("POST", f"/v1.47/images/load?platform={ARM}", saved)
    assert b"two:latest" in older.body  # 1.48 brought the parameter
    assert names(docker) == {"busybox:latest", "one:latest", "two:latest"}


def test_an_image_for_another_platform_is_not_removed(docker: Any) -> None:
    refused = docker.request("DELETE", f"/images/one?platforms={S390X}")
    assert refused.status == 404
    assert "does not match the specified platform" in refused.json()["message"]
    assert docker.request("DELETE", f"/images/one?platforms={ARM}").status == 200
    assert docker.request("DELETE", f"/v1.49/images/two?platforms={ARM}").status == 200


def test_an_image_for_another_platform_is_not_pushed(docker: Any) -> None:
    refused = docker.request("POST", f"/images/one/push?platform={S390X}", headers={})
    assert refused.status == 404
    assert "does not match the specified platform" in refused.json()["message"]


@pytest.mark.parametrize("target", ["/images/load?{}", "/images/one/push?{}"])
def test_several_platforms_are_refused_by_name(docker: Any, target: str) -> None:
    query = f"platform={ARM}&platform={S390X}"
    answer = docker.request("POST", target.format(query), b"")
    assert answer.status == 400
    assert "multiple" in answer.json()["message"]


def test_a_network_has_one_scope_and_no_services(docker: Any) -> None:
    assert docker.request("GET", "/networks/bridge?scope=local&verbose=true").status == 200
    swarm = docker.request("GET", "/networks/bridge?scope=swarm")
    assert (swarm.status, swarm.json()["message"]) == (404, "network bridge not found")
    assert docker.request("GET", "/networks/bridge?verbose=maybe").status == 400
