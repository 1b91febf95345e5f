"""Images through the library: in and out unchanged, named, shared, removed."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import busybox_tar
from tiffin.engine import Engine
from tiffin.errors import Conflict, CorruptArchive, DigestMismatch, InvalidParameter, NotFound


def small_tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def saved(engine: Engine, *names: str) -> bytes:
    output = io.BytesIO()
    engine.images.save(names, output)
    return output.getvalue()


def tree(root: Path) -> set[str]:
    """Everything on disk that belongs to layers."""
    return {
        str(path.relative_to(root))
        for folder in ("layers", "storage", "work")
        for path in (root / folder).rglob("*")
    }


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress],
    ids=["plain", "gzip", "xz", "zstd"],
)
def test_save_and_load_keep_every_digest(
    engine: Engine, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    before = engine.images.inspect("busybox")
    archive = saved(engine, "busybox")
    engine.images.remove("busybox")
    assert engine.images.list() == []
    packed = tmp_path / "archive"
    packed.write_bytes(pack(archive))
    engine.images.load(packed)
    after = engine.images.inspect("busybox")
    assert (after["Id"], after["RootFS"]) == (before["Id"], before["RootFS"])
    assert saved(engine, "busybox") == archive


def test_an_archive_is_a_docker_archive_and_an_oci_layout(engine: Engine) -> None:
    with tarfile.open(fileobj=io.BytesIO(saved(engine, "busybox"))) as tar:
        names = set(tar.getnames())
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert {"oci-layout", "index.json", "manifest.json", "repositories"} <= names
    assert manifest[0]["RepoTags"] == ["busybox:latest"]
    assert manifest[0]["Config"] in names


def test_a_shared_layer_is_kept_and_saved_once(engine: Engine) -> None:
    container = engine.containers.create({"Image": "busybox", "Cmd": ["touch", "/x"]})["Id"]
    waiter = engine.containers.wait_later(container, "next-exit")
    engine.containers.start(container)
    waiter.result(20)
    engine.containers.commit(container, "child")
    base = engine.images.inspect("busybox")
    usage = engine.system.df()
    rows = {row["RepoTags"][0]: row for row in usage["Images"]}
    assert (
        rows["child:latest"]["SharedSize"] == base["Size"] == rows["busybox:latest"]["SharedSize"]
    )
    assert usage["LayersSize"] == engine.images.inspect("child")["Size"]
    archive = saved(engine, "busybox", "child")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        layers = [layer for image in manifest for layer in image["Layers"]]
        assert len(layers) == 3 and len(set(layers)) == 2
        assert len(tar.getnames()) == len(set(tar.getnames()))


def test_history_tells_what_made_each_layer(engine: Engine) -> None:
    rows = engine.images.history("busybox")
    assert rows[0]["Id"] == engine.images.inspect("busybox")["Id"]
    assert rows[0]["Tags"] == ["busybox:latest"]
    assert sum(row["Size"] for row in rows) == engine.images.inspect("busybox")["Size"]


def test_tags_move_and_leave_a_dangling_image(engine: Engine) -> None:
    first = engine.images.inspect("busybox")["Id"]
    second = engine.images.import_(io.BytesIO(small_tar({"a": b"1"})), "other")
    engine.images.tag("busybox", "mine", "1")
    engine.images.tag("other", "mine", "1")
    assert engine.images.inspect("mine:1")["Id"] == second
    engine.images.tag("other", "busybox")
    assert engine.images.inspect(first)["RepoTags"] == []
    dangling = engine.images.list(filters={"dangling": ["true"]})
    assert [row["Id"] for row in dangling] == [first]
    pruned = engine.images.prune()
    assert {"Deleted": first} in pruned["ImagesDeleted"]
    assert pruned["SpaceReclaimed"] > 0


def test_removal_untags_first_and_deletes_last(engine: Engine) -> None:
    engine.images.tag("busybox", "second")
    assert engine.images.remove("second") == [{"Untagged": "second:latest"}]
    gone = engine.images.remove("busybox")
    assert gone[0] == {"Untagged": "busybox:latest"}
    assert [list(row) for row in gone[1:]] == [["Deleted"], ["Deleted"]]
    assert not list((engine.root.path / "layers").iterdir())
    with pytest.raises(NotFound, match="No such image: busybox:latest"):
        engine.images.inspect("busybox")


def test_an_image_of_a_paused_container_is_in_use(engine: Engine) -> None:
    body = {"Image": "busybox", "Cmd": ["sleep", "600"]}
    container = engine.containers.create(body)["Id"]
    engine.containers.start(container)
    engine.containers.pause(container)
    image = engine.images.inspect("busybox")["Id"]
    with pytest.raises(Conflict, match="cannot be forced"):
        engine.images.remove(image, force=True)
    engine.containers.remove(container, force=True)
    engine.images.remove(image)


def test_an_image_in_use_is_not_removed(engine: Engine) -> None:
    container = engine.containers.create({"Image": "busybox", "Cmd": ["true"]})["Id"]
    short = container[:12]
    with pytest.raises(Conflict, match=f"container {short} is using its referenced image"):
        engine.images.remove("busybox")
    image = engine.images.inspect("busybox")["Id"]
    with pytest.raises(Conflict, match="stopped container"):
        engine.images.remove(image)
    # Forced, the image goes; the container keeps the layers that it rests on.
    assert engine.images.remove("busybox", force=True)[-1] == {"Deleted": image}
    assert engine.containers.list(all=True)[0]["Image"] == image
    made = engine.containers.commit(container)["Id"]
    assert len(engine.images.inspect(made)["RootFS"]["Layers"]) == 2
    engine.images.remove(made)
    waiter = engine.containers.wait_later(container, "next-exit")
    engine.containers.start(container)
    assert waiter.result(20) == {"StatusCode": 0, "Error": None}
    engine.containers.remove(container)
    assert not list((engine.root.path / "layers").iterdir())


def test_prefixes_and_names_find_images(engine: Engine) -> None:
    image = engine.images.inspect("busybox")["Id"]
    for reference in (
        image,
        image[7:],
        image[7:19],
        image[:19],
        "docker.io/library/busybox:latest",
    ):
        assert engine.images.inspect(reference)["Id"] == image
    for wrong in ("Busybox", "busybox:", ":x", "a//b"):
        with pytest.raises(InvalidParameter, match="invalid reference format"):
            engine.images.inspect(wrong)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused_and_leaves_nothing(engine: Engine, keep: float) -> None:
    archive = saved(engine, "busybox")
    engine.images.remove("busybox")
    before = tree(engine.root.path)
    with pytest.raises(CorruptArchive):
        engine.images.load(io.BytesIO(archive[: int(len(archive) * keep) // 512 * 512 - 700]))
    assert engine.images.list() == []
    assert tree(engine.root.path) == before


def test_a_layer_with_another_digest_is_refused_and_leaves_nothing(engine: Engine) -> None:
    archive = bytearray(saved(engine, "busybox"))
    engine.images.remove("busybox")
    before = tree(engine.root.path)
    at = archive.index(b"root:x:0:0")
    archive[at : at + 4] = b"evil"
    with pytest.raises(DigestMismatch):
        engine.images.load(io.BytesIO(bytes(archive)))
    assert engine.images.list() == []
    assert tree(engine.root.path) == before


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(junk=st.binary(max_size=2000), at=st.floats(0, 1))
def test_whatever_is_loaded_ends_in_an_error_of_ours(
    engine: Engine, junk: bytes, at: float
) -> None:
    archive = saved(engine, "busybox")
    place = int(len(archive) * at)
    broken = archive[:place] + junk + archive[place + len(junk) :]
    try:
        engine.images.load(io.BytesIO(broken))
    except (CorruptArchive, DigestMismatch, InvalidParameter):
        pass
    assert engine.run("busybox", ["true"]).exit_code == 0


def test_an_import_for_another_platform_says_so(engine: Engine) -> None:
    image = engine.images.import_(io.BytesIO(busybox_tar()), "foreign", platform="linux/arm/v7")
    described = engine.images.inspect(image)
    assert (described["Architecture"], described["Variant"]) == ("arm", "v7")
