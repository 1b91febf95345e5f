"""Images come in: everything once, verified, resumed, and nothing left over."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from registry.conftest import HASTY, Connect, MadeImage, Start, digest_of, layer_tar
from registry.faulty import KINDS, FaultyProxy
from tiffin.engine import Engine
from tiffin.errors import (
    DigestMismatch,
    InvalidParameter,
    NotFound,
    TiffinError,
    Unauthorized,
    Unreachable,
    Unsupported,
)
from tiffin.image.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_LAYER,
    OCI_LAYER_ZSTD,
    Index,
    Platform,
)
from tiffin.registry.client import Registry

pytestmark = pytest.mark.root

BASE = layer_tar({"etc/base": b"base" * 20_000, "bin/sh": b"x" * 300_000})
MIDDLE = layer_tar({"etc/middle": bytes(range(256)) * 1000})
TOP = layer_tar({"opt/top": b"top"})
IMAGE = MadeImage([BASE, MIDDLE, TOP])


@pytest.fixture
def bare(root: Path) -> Iterator[Engine]:
    """An engine without an image."""
    with Engine(root, what="a test") as engine:
        engine.registries.patience = HASTY
        yield engine


def leftovers(engine: Engine) -> list[str]:
    """Files of what was under way."""
    root = engine.root.path
    return [
        str(path.relative_to(root))
        for folder in (root / "work", root / "ingest")
        for path in folder.iterdir()
    ]


def files_of(engine: Engine, image: str) -> dict[str, bytes]:
    import io
    import tarfile

    found = {}
    stack = engine.images._layers.chain(engine.images.find(image).top)
    for layer in stack:
        output = io.BytesIO()
        engine.images._layers.write_tar(layer, output)
        output.seek(0)
        with tarfile.open(fileobj=output) as tar:
            for member in tar:
                if member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None
                    found[member.name] = file.read()
    return found


def test_an_image_is_pulled(bare: Engine, registry: Registry) -> None:
    IMAGE.push(registry, "team/app", "v1")
    said: list[dict[str, Any]] = []
    name = f"{registry.host}/team/app:v1"
    (pulled,) = bare.registries.pull(name, progress=said.append)
    assert pulled.image.id == IMAGE.id
    assert files_of(bare, name)["etc/middle"] == bytes(range(256)) * 1000
    seen = bare.images.inspect(name)
    assert seen["RepoTags"] == [name]
    assert seen["RepoDigests"] == [f"{registry.host}/team/app@{IMAGE.digest}"]
    assert bare.images.find(f"{registry.host}/team/app@{IMAGE.digest}").id == IMAGE.id
    assert said[0] == {"status": "Pulling from team/app", "id": "v1"}
    assert said[-2:] == [
        {"status": f"Digest: {IMAGE.digest}"},
        {"status": f"Status: Downloaded newer image for {name}"},
    ]
    for layer in IMAGE.layers:
        told = [m["status"] for m in said if m.get("id") == layer.digest[7:19]]
        assert told[0] == "Pulling fs layer"
        assert told[-1] == "Pull complete"
    assert leftovers(bare) == []
    said.clear()
    bare.registries.pull(name, progress=said.append)
    assert said[-1] == {"status": f"Status: Image is up to date for {name}"}


def test_a_tag_that_moved_fetches_only_what_is_new(
    bare: Engine, registry: Registry, connect: Connect
) -> None:
    IMAGE.push(registry, "app", "v1")
    other = MadeImage([BASE, MIDDLE, layer_tar({"opt/other": b"new"})])
    with FaultyProxy(registry.host) as proxy:
        name = f"{proxy.address}/app:v1"
        bare.registries.pull(name)
        other.push(registry, "app", "v1")
        del proxy.requests[:]
        (pulled,) = bare.registries.pull(name)
        blobs = [line.split("/")[-1] for line in proxy.requests if "/blobs/" in line]
        assert sorted(blobs) == sorted([other.config_descriptor.digest, other.layers[2].digest])
    why = pulled.why()
    assert [layer["Origin"] for layer in why["Layers"]] == ["here", "here", "fetched"]
    assert [layer["Before"] for layer in why["Layers"]] == [True, True, False]
    assert why["Fetched"] == other.layers[2].size
    assert why["Previous"] == IMAGE.id
    assert [layer["CreatedBy"] for layer in why["Layers"]] == ["step 0", "step 1", "step 2"]
    # The image of before has no tag any more, and its digest still names it.
    assert bare.images.find(f"{proxy.address}/app@{IMAGE.digest}").id == IMAGE.id


def test_the_last_tag_takes_its_digests_along(bare: Engine, registry: Registry) -> None:
    IMAGE.push(registry, "app", "v1")
    name = f"{registry.host}/app:v1"
    bare.registries.pull(name)
    gone = bare.images.remove(name)
    assert {"Untagged": name} in gone
    assert {"Deleted": IMAGE.id} in gone
    assert bare.images.list() == []


def test_an_equal_layer_on_another_stack_is_not_fetched(bare: Engine, registry: Registry) -> None:
    IMAGE.push(registry, "one", "v1")
    swapped = MadeImage([layer_tar({"a": b"a"}), MIDDLE])
    swapped.push(registry, "two", "v1")
    bare.registries.pull(f"{registry.host}/one:v1")
    (pulled,) = bare.registries.pull(f"{registry.host}/two:v1")
    assert [report.origin for report in pulled.layers] == ["fetched", "shared"]


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (lambda tar: tar, OCI_LAYER),
        (lambda tar: zstandard.compress(tar), OCI_LAYER_ZSTD),
        (lambda tar: b"".join(zstandard.compress(tar[at : at + 70_000]) for at in
                              range(0, len(tar), 70_000)), OCI_LAYER_ZSTD),
        (lambda tar: gzip.compress(tar[:5000]) + gzip.compress(tar[5000:]), None),
    ],
    ids=["plain", "zstd", "zstd-frames", "gzip-members"],
)  # fmt: skip
def test_forms_of_layers(bare: Engine, registry: Registry, pack: Any, kind: str | None) -> None:
    options = {"layer_type": kind} if kind else {}
    image = MadeImage([BASE, MIDDLE], pack=pack, **options)
    image.push(registry, "app", "v1")
    bare.registries.pull(f"{registry.host}/app:v1")
    assert files_of(bare, f"{registry.host}/app:v1")["etc/base"] == b"base" * 20_000


def test_layers_that_depend_on_those_below(bare: Engine, registry: Registry) -> None:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("etc/no-entry-for-its-folder")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"in"))
        info = tarfile.TarInfo("linked")
        info.type, info.linkname = tarfile.LNKTYPE, "etc/base"
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("bin/.wh.sh"))
    image = MadeImage([BASE, MIDDLE, buffer.getvalue(), TOP])
    image.push(registry, "app", "v1")
    (pulled,) = bare.registries.pull(f"{registry.host}/app:v1")
    assert pulled.image.config.diff_ids == tuple(map(digest_of, image.tars))
    lower = bare.images._layers.lower(pulled.image.top)
    assert lower.entry(b"bin/sh") is None
    assert lower.read(b"linked") == b"base" * 20_000
    assert leftovers(bare) == []


def test_platforms(bare: Engine, registry: Registry) -> None:
    images = {
        name: MadeImage([layer_tar({"arch": name.encode()})], architecture=name)
        for name in ("amd64", "arm64", "sparc64")
    }
    entries = []
    for name, image in images.items():
        image.push(registry, "app", f"only-{name}")
        descriptor = type(image.config_descriptor)(
            DOCKER_MANIFEST, image.digest, len(image.manifest), {}, Platform("linux", name)
        )
        entries.append(descriptor)
    index = Index.make(entries, media_type=DOCKER_INDEX)
    registry.put_manifest("app", "all", index.raw, DOCKER_INDEX)
    where = f"{registry.host}/app"
    (pulled,) = bare.registries.pull(f"{where}:all", platform="linux/arm64")
    assert pulled.image.id == images["arm64"].id
    assert pulled.digest == index.digest
    (foreign,) = bare.registries.pull(f"{where}:all", platform="linux/sparc64")
    # Nobody has an interpreter for it.
    with pytest.raises(InvalidParameter, match=r"for linux/sparc64, .*binfmt_misc"):
        bare.images.check_platform(foreign.image)
    (pulled,) = bare.registries.pull(f"{where}:all")
    assert pulled.image.id == images["amd64"].id
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x"):
        bare.registries.pull(f"{where}:all", platform="linux/s390x")
    with pytest.raises(NotFound, match="does not match the specified platform"):
        bare.registries.pull(f"{where}:only-arm64", platform="linux/sparc64")
    assert len(bare.registries.pull(where, all_tags=True)) == 4
    assert bare.registries.distribution(f"{where}:all")["Platforms"][1] == {
        "architecture": "arm64",
        "os": "linux",
    }


def test_what_is_no_image_is_refused(bare: Engine, registry: Registry) -> None:
    document = json.loads(IMAGE.manifest)
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    IMAGE.push(registry, "app", "v1")
    registry.put_manifest("app", "chart", json.dumps(document).encode(), DOCKER_MANIFEST)
    with pytest.raises(Unsupported, match=r"artifact .*image copy"):
        bare.registries.pull(f"{registry.host}/app:chart")
    with pytest.raises(NotFound, match="not found"):
        bare.registries.pull(f"{registry.host}/app:none")
    with pytest.raises(InvalidParameter):
        bare.registries.pull(f"{registry.host}/app:v1", all_tags=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_in_turn_meets_a_fault(root: Path, registry: Registry, kind: str) -> None:
    IMAGE.push(registry, "app", "v1")
    at = 0
    while True:
        with Engine(root / f"{kind}{at}", what="a test") as engine:
            engine.registries.patience = HASTY
            with FaultyProxy(registry.host, kind, at=at) as proxy:
                name = f"{proxy.address}/app:v1"
                try:
                    (pulled,) = engine.registries.pull(name)
                except TiffinError as error:
                    # Only bytes that are wrong are not made good by asking again.
                    assert kind == "corrupt"
                    assert isinstance(error, DigestMismatch | InvalidParameter | Unreachable)
                    assert engine.images.list() == []
                    work = engine.root.path / "work"
                    assert list(work.iterdir()) == []
                    (pulled,) = engine.registries.pull(name)
                assert pulled.image.id == IMAGE.id
                assert leftovers(engine) == []
                if len(proxy.requests) <= at:
                    break
            engine.images.remove(name)
            assert not list(engine.images._layers.driver.keys())
        at += 1
    assert at >= 5


def test_finished_layers_stay_when_another_fails(bare: Engine, registry: Registry) -> None:
    IMAGE.push(registry, "app", "v1")
    with FaultyProxy(registry.host) as proxy:
        name = f"{proxy.address}/app:v1"
        missing = IMAGE.layers[2].digest
        registry.delete_blob("app", missing)
        with pytest.raises(NotFound, match=missing):
            bare.registries.pull(name)
        assert bare.images.list() == []
        registry.put_blob("app", IMAGE.blobs[2])
        # Layers that were not begun when the other failed may have to be fetched still.
        kept = [path.stat().st_size for path in (bare.root.path / "ingest").iterdir()]
        del proxy.requests[:], proxy.ranges[:]
        (pulled,) = bare.registries.pull(name)
        assert sum(report.fetched for report in pulled.layers) == (
            sum(layer.size for layer in IMAGE.layers) - sum(kept)
        )
    assert leftovers(bare) == []


def test_a_pull_goes_on_after_the_engine_ended(root: Path, registry: Registry) -> None:
    IMAGE.push(registry, "app", "v1")
    name = f"{registry.host}/app:v1"
    with Engine(root, what="a test") as engine:
        folder = engine.root.path / "ingest"
        for layer, blob in zip(IMAGE.layers, IMAGE.blobs, strict=True):
            (folder / layer.digest.replace(":", "-")).write_bytes(blob[: len(blob) // 2])
    with Engine(root, what="a test") as engine:
        (pulled,) = engine.registries.pull(name)
        assert all(report.resumed == report.size // 2 for report in pulled.layers)
        assert leftovers(engine) == []


def test_what_an_attempt_left_may_be_wrong(bare: Engine, registry: Registry) -> None:
    IMAGE.push(registry, "app", "v1")
    spool = bare.root.path / "ingest" / IMAGE.layers[0].digest.replace(":", "-")
    spool.write_bytes(bytes(100))
    (pulled,) = bare.registries.pull(f"{registry.host}/app:v1")
    assert pulled.image.id == IMAGE.id
    assert leftovers(bare) == []


def test_pulls_at_once_fetch_a_layer_once(bare: Engine, registry: Registry) -> None:
    images = [MadeImage([BASE, MIDDLE, layer_tar({"n": bytes([n])})]) for n in range(4)]
    for number, image in enumerate(images):
        image.push(registry, f"app{number}", "v1")
    failures: list[BaseException] = []
    with FaultyProxy(registry.host) as proxy:

        def pull(number: int) -> None:
            try:
                bare.registries.pull(f"{proxy.address}/app{number}:v1")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=pull, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for layer in images[0].layers[:2]:
            assert sum(layer.digest in line for line in proxy.requests) == 1
    assert len(bare.images.list()) == 4
    assert leftovers(bare) == []


def test_a_mirror_is_asked_first_and_need_not_have_it(
    bare: Engine, registry: Registry, start_registry: Start, connect: Connect
) -> None:
    mirror = start_registry()
    IMAGE.push(registry, "app", "v1")
    (bare.root.path / "registries.toml").write_text(
        f'[registry."{registry.host}"]\nmirrors = ["http://{mirror.address}"]\n'
    )
    bare.registries.pull(f"{registry.host}/app:v1")
    bare.images.remove(f"{registry.host}/app:v1")
    IMAGE.push(connect(mirror), "app", "v1")
    registry.delete_manifest("app", "v1")
    (pulled,) = bare.registries.pull(f"{registry.host}/app:v1")
    assert pulled.image.id == IMAGE.id


def test_a_private_registry(
    bare: Engine, start_registry: Start, connect: Connect, tmp_path: Path
) -> None:
    from registry.test_client import htpasswd
    from tiffin.registry.access import Passwords
    from tiffin.registry.credentials import Credentials
    from tiffin.registry.protocol import Policy

    server = start_registry(policy=Policy(Passwords(htpasswd(tmp_path))))
    right = Credentials("user", "secret")
    IMAGE.push(connect(server, right), "app", "v1")
    with pytest.raises(Unauthorized, match=r"pull access denied for .*app"):
        bare.registries.pull(f"{server.address}/app:v1")
    bare.registries.pull(f"{server.address}/app:v1", auth=right)
    assert bare.registries.login(server.address, right)["Status"] == "Login Succeeded"
    with pytest.raises(Unauthorized):
        bare.registries.login(server.address, Credentials("user", "wrong"))
