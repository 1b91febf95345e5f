"""Copies and tokens over connections that fail: each request in turn meets each fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.conftest import Connect, MadeImage, layer_tar
from registry.faulty import KINDS, FaultyProxy
from registry.issuer import PASSWORD, USER, Guarded, Issuer
from tiffin.errors import DigestMismatch, TiffinError
from tiffin.registry.client import Registry
from tiffin.registry.copying import Copy
from tiffin.registry.credentials import Credentials
from tiffin.registry.places import LayoutPlace, RegistryPlace

IMAGE = MadeImage([layer_tar({"etc/a": b"a" * 50_000}), layer_tar({"etc/b": bytes(range(256))})])


def whole(client: Registry, repository: str) -> None:
    """The image is in the repository, to its last byte."""
    assert client.raw_manifest(repository, "v1")[0] == IMAGE.manifest
    for descriptor in (*IMAGE.layers, IMAGE.config_descriptor):
        with client.blob(repository, descriptor) as stream:
            stream.drain()


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_a_registry(registry: Registry, connect: Connect, tmp_path: Path, kind: str) -> None:
    IMAGE.push(registry, "app", "v1")
    at = 0
    while True:
        layout = tmp_path / f"{kind}{at}"
        with FaultyProxy(registry.host, kind, at=at) as proxy:
            source = RegistryPlace(connect(proxy.address), "app")
            copy = Copy(source, LayoutPlace(layout))
            try:
                digest = copy.run("v1", "v1")
            except TiffinError:
                # Only bytes that are wrong are not made good by asking again.
                assert kind == "corrupt"
                digest = Copy(source, LayoutPlace(layout)).run("v1", "v1")
            assert digest == IMAGE.digest
            blobs = sorted(path.name for path in (layout / "blobs" / "sha256").iterdir())
            wanted = [layer.digest for layer in IMAGE.layers] + [IMAGE.id, IMAGE.digest]
            assert blobs == sorted(each.partition(":")[2] for each in wanted)
            if len(proxy.requests) <= at:
                break
        at += 1
    assert at >= 4


@pytest.mark.parametrize(
    "kind", ["corrupt", "cut-head", "500", "redirect", "half", "lost", "unheard"]
)
def test_into_a_registry(registry: Registry, connect: Connect, tmp_path: Path, kind: str) -> None:
    IMAGE.push(registry, "app", "v1")
    layout = LayoutPlace(tmp_path / "layout")
    Copy(RegistryPlace(registry, "app"), layout).run("v1", "v1")
    at = 0
    while True:
        repository = f"copy{at}"
        with FaultyProxy(registry.host, kind, at=at) as proxy:
            target = RegistryPlace(connect(proxy.address), repository)
            try:
                Copy(layout, target).run("v1", "v1")
            except TiffinError:
                assert kind == "corrupt"
                Copy(layout, target).run("v1", "v1")
            whole(registry, repository)
            if len(proxy.requests) <= at:
                break
        at += 1
    assert at >= 7


@pytest.mark.parametrize("kind", KINDS)
def test_the_issuer_of_tokens(registry: Registry, connect: Connect, kind: str) -> None:
    IMAGE.push(registry, "app", "v1")
    with (
        Issuer() as issuer,
        FaultyProxy(issuer.address, kind, at=0) as proxy,
        Guarded(registry.host, issuer) as guarded,
    ):
        issuer.address = proxy.address
        client = connect(guarded.address, Credentials(USER, PASSWORD))
        try:
            whole(client, "app")
        except TiffinError as error:
            assert kind in ("corrupt", "redirect")
            assert not isinstance(error, DigestMismatch)
            whole(connect(guarded.address, Credentials(USER, PASSWORD)), "app")
        assert len(proxy.requests) >= 2 or kind in ("delay", "corrupt")
