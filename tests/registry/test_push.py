"""Images go out: what is there is not sent, and digests stay where the bytes can be given back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.conftest import HASTY, Connect, MadeImage, Start, digest_of, layer_tar
from registry.faulty import UPLOAD_KINDS, FaultyProxy
from tiffin.engine import Engine
from tiffin.errors import InvalidParameter, NotFound, TiffinError, Unauthorized
from tiffin.image.manifest import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Manifest
from tiffin.registry.client import Registry
from tiffin.registry.packing import Compression

pytestmark = pytest.mark.root

BASE = layer_tar({"etc/base": b"base" * 20_000, "bin/sh": bytes(range(256)) * 900})
TOP = layer_tar({"opt/top": b"top"})


@pytest.fixture
def holding(root: Path) -> Iterator[Engine]:
    """An engine with the image ``app``."""
    with Engine(root, what="a test") as engine:
        engine.registries.patience = HASTY
        engine.images.import_(io.BytesIO(BASE), "app")
        yield engine


def push(engine: Engine, name: str, source: str = "app", **options: Any) -> dict[str, Any]:
    engine.images.tag(source, name)
    (pushed,) = engine.registries.push(name, **options)
    return pushed


def test_an_image_is_pushed(holding: Engine, registry: Registry) -> None:
    said: list[dict[str, Any]] = []
    name = f"{registry.host}/team/app:v1"
    pushed = push(holding, name, progress=said.append)
    found = registry.manifest("team/app", "v1")
    assert isinstance(found, Manifest)
    assert pushed == {"Tag": "v1", "Digest": found.digest, "Size": len(found.raw)}
    image = holding.images.find("app")
    assert registry.read_blob("team/app", found.config) == image.config.to_bytes()
    assert [layer.media_type for layer in found.layers] == [OCI_LAYER_GZIP]
    repository = f"{registry.host}/team/app"
    assert said[0] == {"status": f"The push refers to repository [{repository}]"}
    layer = digest_of(BASE)[7:19]
    assert [m["status"] for m in said if m.get("id") == layer][::2] == ["Preparing", "Pushed"]
    assert said[-2]["status"].startswith(f"v1: digest: {found.digest} size: ")
    assert said[-1]["aux"] == pushed
    assert holding.images.inspect("app")["RepoDigests"] == [f"{repository}@{found.digest}"]


def test_what_is_there_is_not_sent(holding: Engine, registry: Registry) -> None:
    with FaultyProxy(registry.host) as proxy:
        first = push(holding, f"{proxy.address}/one:v1")
        del proxy.requests[:]
        # The same image: nothing but looks, and the manifest.
        again = push(holding, f"{proxy.address}/one:v2")
        assert again["Digest"] == first["Digest"]
        assert not [line for line in proxy.requests if line.startswith(("POST", "PATCH"))]
        del proxy.requests[:]
        # Another repository of the same registry: mounted.
        said: list[dict[str, Any]] = []
        other = push(holding, f"{proxy.address}/two:v1", progress=said.append)
        assert other["Digest"] == first["Digest"]
        assert not [line for line in proxy.requests if line.startswith("PATCH")]
        assert "Mounted from one" in [message.get("status") for message in said]
        del proxy.requests[:]
        # A further layer on a base that is there.
        holding.images.tag("app", "base")
        extended = holding.images._layers.ingest(
            io.BytesIO(TOP), holding.images.find("app").top, diff_id=digest_of(TOP)
        )
        config = holding.images.find("app").config.with_layer(
            extended.diff_id, holding.images.find("app").config.history[0]
        )
        holding.images.add(config, extended.chain_id, [])
        holding.images.tag(config.id, f"{proxy.address}/one:v3")
        holding.registries.push(f"{proxy.address}/one:v3")
        assert len([line for line in proxy.requests if line.startswith("POST")]) == 2


@pytest.mark.parametrize(
    ("form", "level", "kind"),
    [("gzip", 9, OCI_LAYER_GZIP), ("zstd", None, OCI_LAYER_ZSTD), ("none", None, OCI_LAYER)],
)
def test_compressions(
    holding: Engine, registry: Registry, form: str, level: int | None, kind: str
) -> None:
    name = f"{registry.host}/app:v1"
    push(holding, name, compression=form, level=level)
    found = registry.manifest("app", "v1")
    assert isinstance(found, Manifest)
    assert [layer.media_type for layer in found.layers] == [kind]
    image = holding.images.find("app").id
    holding.images.remove(image, force=True)
    (pulled,) = holding.registries.pull(name)
    assert pulled.image.id == image


def test_a_compression_that_was_asked_for_is_used_on_what_was_pushed_before(
    holding: Engine, registry: Registry
) -> None:
    def layers(tag: str, **options: Any) -> list[tuple[str, int]]:
        push(holding, f"{registry.host}/app:{tag}", **options)
        found = registry.manifest("app", tag)
        assert isinstance(found, Manifest)
        return [(layer.media_type, layer.size) for layer in found.layers]

    (quick,), (small,) = layers("one"), layers("nine", compression="gzip", level=9)
    assert small[1] < quick[1]
    # Without a level, what there is of that form will do; without a form, whatever there is.
    assert layers("any", compression="gzip") in ([quick], [small])
    assert layers("again", level=1) == [quick]
    (zstd,) = layers("three", compression="zstd")
    (smaller,) = layers("most", compression="zstd", level=19)
    assert smaller[1] < zstd[1]
    assert zstd[0] == smaller[0] == OCI_LAYER_ZSTD
    assert layers("same", compression="zstd", level=3) == [zstd]
    assert layers("plain", compression="none") == [(OCI_LAYER, len(BASE))]


def test_a_pulled_image_keeps_its_layers_if_they_are_of_the_form(
    holding: Engine, registry: Registry
) -> None:
    image = MadeImage([BASE])  # Docker's media types
    image.push(registry, "orig", "v1")
    holding.registries.pull(f"{registry.host}/orig:v1")
    source = f"{registry.host}/orig:v1"
    same = push(holding, f"{registry.host}/copy:v1", source, compression="gzip")
    assert same["Digest"] == image.digest
    other = push(holding, f"{registry.host}/copy:v2", source, compression="gzip", level=1)
    assert other["Digest"] != image.digest


def test_the_same_recipe_gives_the_same_bytes() -> None:
    for form, level in (("gzip", 1), ("gzip", 6), ("zstd", 3), ("none", None)):
        chosen = Compression(form, level)
        packed = []
        for _ in range(2):
            packer = chosen.packer()
            packed.append(packer.compress(BASE) + packer.flush())
        assert packed[0] == packed[1]
        again = Compression.of_recipe(chosen.recipe)
        assert again is not None
        assert (again.form, again.level) == (chosen.form, chosen.level)
    assert Compression.of_recipe("gzip 1 isal 0.0") is None
    for form, wrong in (("xz", None), ("gzip", 10), ("zstd", 0)):
        with pytest.raises(InvalidParameter):
            Compression(form, wrong)


def test_a_pulled_image_keeps_its_digest(
    holding: Engine, registry: Registry, start_registry: Start, connect: Connect
) -> None:
    # In the same registry: its very layers are there.
    image = MadeImage([BASE, TOP], annotations={"kept": "yes"})
    image.push(registry, "orig", "v1")
    holding.registries.pull(f"{registry.host}/orig:v1")
    pushed = push(holding, f"{registry.host}/copy:v1", f"{registry.host}/orig:v1")
    assert pushed["Digest"] == image.digest
    # In another one: what tiffin packed, it can pack again.
    push(holding, f"{registry.host}/own:v1", compression="gzip", level=6)
    own = registry.manifest("own", "v1")
    elsewhere = connect(start_registry())
    moved = push(holding, f"{elsewhere.host}/own:v1", f"{registry.host}/own:v1")
    assert moved["Digest"] == own.digest
    # What others packed has to be packed anew, and says so by its digest.
    other = push(holding, f"{elsewhere.host}/orig:v1", f"{registry.host}/orig:v1")
    assert other["Digest"] != image.digest
    assert elsewhere.manifest("orig", "v1").digest == other["Digest"]


def test_a_plain_image_keeps_its_digest_anywhere(
    holding: Engine, registry: Registry, start_registry: Start, connect: Connect
) -> None:
    image = MadeImage([BASE, TOP], pack=lambda tar: tar, layer_type=OCI_LAYER)
    image.push(registry, "orig", "v1")
    holding.registries.pull(f"{registry.host}/orig:v1")
    elsewhere = connect(start_registry())
    moved = push(holding, f"{elsewhere.host}/orig:v1", f"{registry.host}/orig:v1")
    assert moved["Digest"] == image.digest


def test_all_tags(holding: Engine, registry: Registry) -> None:
    for tag in ("a", "b"):
        holding.images.tag("app", f"{registry.host}/app:{tag}")
    pushed = holding.registries.push(f"{registry.host}/app")
    assert [one["Tag"] for one in pushed] == ["a", "b"]
    assert list(registry.tags("app")) == ["a", "b"]
    with pytest.raises(NotFound, match="does not exist locally"):
        holding.registries.push(f"{registry.host}/nothing")
    with pytest.raises(NotFound):
        holding.registries.push(f"{registry.host}/app:c")
    with pytest.raises(InvalidParameter, match="digest reference"):
        holding.registries.push(f"{registry.host}/app@{digest_of(b'')}")


@pytest.mark.parametrize("kind", UPLOAD_KINDS)
def test_every_request_in_turn_meets_a_fault(
    holding: Engine, registry: Registry, kind: str
) -> None:
    image = holding.images.find("app")
    at = 0
    while True:
        with FaultyProxy(registry.host, kind, at=at) as proxy:
            name = f"{proxy.address}/app{kind}{at}:v1"
            try:
                pushed = push(holding, name)
            except TiffinError:
                assert kind == "corrupt"
                (pushed,) = holding.registries.push(name)
            found = registry.manifest(f"app{kind}{at}", "v1")
            assert found.digest == pushed["Digest"]
            assert isinstance(found, Manifest)
            for layer in found.layers:
                with registry.blob(f"app{kind}{at}", layer) as stream:
                    stream.drain()
            if len(proxy.requests) <= at:
                break
        holding.registries.memory._database.execute("DELETE FROM blobs")
        holding.registries.memory._database.execute("DELETE FROM manifests")
        at += 1
    assert at >= 4
    assert holding.images.find("app").id == image.id


def test_a_private_registry(holding: Engine, start_registry: Start, tmp_path: Path) -> None:
    from registry.test_client import htpasswd
    from tiffin.registry.access import Passwords, Tokens
    from tiffin.registry.credentials import Credentials
    from tiffin.registry.protocol import Policy

    passwords = Passwords(htpasswd(tmp_path))
    server = start_registry(policy=Policy(passwords, Tokens(tmp_path, passwords, "tests")))
    name = f"{server.address}/app:v1"
    with pytest.raises(Unauthorized, match=r"push access denied .*app"):
        push(holding, name)
    push(holding, name, auth=Credentials("user", "secret"))
    push(holding, f"{server.address}/other:v1", auth=Credentials("user", "secret"))
