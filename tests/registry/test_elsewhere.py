"""Layers that registries must not be given: they come from URLs of their own, and stay there."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.conftest import HASTY, Connect, MadeImage, Start, digest_of, layer_tar
from registry.test_certificates import Asking, Authority, context
from tiffin.engine import Engine
from tiffin.errors import NotFound
from tiffin.image.manifest import DOCKER_MANIFEST, OCI_FOREIGN
from tiffin.registry.client import Registry
from tiffin.registry.server import RegistryServer
from tiffin.registry.sharing import measure

pytestmark = pytest.mark.root

IMAGE = MadeImage([layer_tar({"base": b"b" * 90_000}), layer_tar({"top": b"t"})])
FOREIGN = IMAGE.layers[0].digest


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    with Engine(root, what="a test") as made:
        made.registries.patience = HASTY
        yield made


@pytest.fixture
def place(
    start_registry: Start, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Asking]:
    """Where the foreign layer is: a server with a certificate that the system trusts."""
    authority = Authority(tmp_path, "tests")
    authority.sign("server")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    vendor = start_registry()
    connect(vendor).put_blob("vendor", IMAGE.blobs[0])
    with Asking(vendor.address, context(authority, ssl.CERT_NONE)) as made:
        yield made


def publish(registry: Registry, *urls: str) -> str:
    """The image whose first layer is foreign, as ``app:v1``; its digest."""
    document = json.loads(IMAGE.manifest)
    document["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    document["layers"][0]["urls"] = list(urls)
    raw = json.dumps(document).encode()
    registry.put_blob("app", IMAGE.blobs[1])
    registry.put_blob("app", IMAGE.config)
    registry.put_manifest("app", "v1", raw, DOCKER_MANIFEST)
    return digest_of(raw)


def test_a_foreign_layer_is_fetched_and_not_given_away(
    engine: Engine, registry: Registry, place: Asking, start_registry: Start, connect: Connect
) -> None:
    urls = [
        f"http://{place.address}/plain",
        "https://localhost:9/nobody",
        f"https://{place.address}/v2/vendor/blobs/{FOREIGN}",
    ]
    digest = publish(registry, *urls)
    place.kind, place.at = "cut", 0
    (pulled,) = engine.registries.pull(f"{registry.host}/app:v1")
    assert pulled.image.id == IMAGE.id
    # It was taken up where it broke, and nobody's credentials went there.
    assert len(place.ranges) == 1
    assert place.authorizations == [None, None]
    # Where its other layers are, the manifest stays what it was.
    engine.images.tag(pulled.image.id, f"{registry.host}/copy:v1")
    (pushed,) = engine.registries.push(f"{registry.host}/copy:v1")
    assert pushed["Digest"] == digest
    assert registry.find_blob("copy", FOREIGN) is None
    # Elsewhere its other layers are packed anew.
    other = connect(start_registry())
    name = f"{other.host}/copy:v1"
    engine.images.tag(pulled.image.id, name)
    said: list[dict[str, Any]] = []
    (pushed,) = engine.registries.push(name, progress=said.append)
    assert "Skipped foreign layer" in [message.get("status") for message in said]
    assert other.find_blob("copy", FOREIGN) is None
    assert other.manifest("copy", "v1").digest == pushed["Digest"]
    foreign, own = json.loads(other.manifest("copy", "v1").raw)["layers"]
    assert foreign["mediaType"] == f"{OCI_FOREIGN}+gzip"
    assert foreign["urls"] == urls
    assert other.find_blob("copy", own["digest"]) == own["size"]
    # And the image comes back from the other registry.
    engine.images.remove(pulled.image.id, force=True)
    (again,) = engine.registries.pull(name)
    assert again.image.id == IMAGE.id


def test_what_is_elsewhere_is_not_counted(registry: Registry, server: RegistryServer) -> None:
    publish(registry, "https://vendor.test/layer")
    report = measure(server.storage)
    assert report.referenced == report.stored == IMAGE.layers[1].size + len(IMAGE.config)
    assert [layer.digest for layer in report.layers] == [IMAGE.layers[1].digest]


def test_a_foreign_layer_without_tls_is_not_fetched(
    engine: Engine, registry: Registry, place: Asking
) -> None:
    publish(registry, f"http://{place.address}/v2/vendor/blobs/{FOREIGN}")
    with pytest.raises(NotFound, match=f"{FOREIGN} is nowhere with TLS"):
        engine.registries.pull(f"{registry.host}/app:v1")
    assert place.requests == []


def test_a_foreign_layer_that_its_place_does_not_have(
    engine: Engine, registry: Registry, place: Asking
) -> None:
    publish(registry, f"https://{place.address}/v2/vendor/blobs/{digest_of(b'none')}")
    with pytest.raises(Exception, match=f"{place.address} answers 404"):
        engine.registries.pull(f"{registry.host}/app:v1")
