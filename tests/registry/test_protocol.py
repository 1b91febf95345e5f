"""The registry's side of the specification, by the categories of its conformance suite."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from registry.conftest import Start, digest_of
from tiffin.image.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from tiffin.registry.server import RegistryServer


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["errors"][0]["code"])


class Http:
    """Requests exactly as they are written, on one connection."""

    def __init__(self, server: RegistryServer) -> None:
        host, _, port = server.address.rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=20)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        chunked = body is not None and not isinstance(body, bytes)
        self.connection.request(method, path, body, named, encode_chunked=chunked)
        return Answer(self.connection.getresponse())

    def push_blob(self, name: str, data: bytes, algorithm: str = "sha256") -> str:
        digest = digest_of(data, algorithm)
        begun = self("POST", f"/v2/{name}/blobs/uploads/")
        assert begun.status == 202
        done = self("PUT", f"{begun.headers['Location']}?digest={digest}", data)
        assert done.status == 201
        return digest


@pytest.fixture
def ask(server: RegistryServer) -> Iterator[Http]:
    asking = Http(server)
    yield asking
    asking.connection.close()


def manifest_of(config: bytes, *layers: bytes, **more: Any) -> bytes:
    def describe(data: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(config, OCI_CONFIG),
            "layers": [describe(layer, OCI_LAYER) for layer in layers],
            **more,
        }
    ).encode()


def put(ask: Http, name: str, reference: str, raw: bytes, kind: str = OCI_MANIFEST) -> Answer:
    return ask("PUT", f"/v2/{name}/manifests/{reference}", raw, Content_Type=kind)


def test_the_version_check_and_what_nobody_knows(ask: Http) -> None:
    assert ask("GET", "/v2/").status == 200
    assert ask("GET", "/v2/a/tags/list").code == "NAME_UNKNOWN"
    assert ask("GET", "/v2/a/manifests/latest").code == "NAME_UNKNOWN"
    assert ask("GET", f"/v2/a/blobs/{digest_of(b'')}").code == "BLOB_UNKNOWN"
    assert ask("GET", "/v2/a/blobs/sha256:nothex").code == "DIGEST_INVALID"
    assert ask("GET", "/v2/UPPER/tags/list").code == "NAME_INVALID"
    assert ask("HEAD", "/v2/a/manifests/latest").body == b""
    assert ask("GET", "/nothing").status == 404


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_in_one_piece(ask: Http, algorithm: str) -> None:
    digest = ask.push_blob("team/app", b"some bytes", algorithm)
    found = ask("GET", f"/v2/team/app/blobs/{digest}")
    assert (found.status, found.body) == (200, b"some bytes")
    assert found.headers["Docker-Content-Digest"] == digest
    head = ask("HEAD", f"/v2/team/app/blobs/{digest}")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "10", b"")
    assert ask("GET", f"/v2/other/blobs/{digest}").status == 404


def test_a_blob_in_a_single_post(ask: Http) -> None:
    digest = digest_of(b"at once")
    done = ask("POST", f"/v2/a/blobs/uploads/?digest={digest}", b"at once")
    assert done.status == 201
    assert ask("GET", done.headers["Location"]).body == b"at once"


def test_an_empty_blob(ask: Http) -> None:
    digest = ask.push_blob("a", b"")
    assert ask("GET", f"/v2/a/blobs/{digest}").body == b""


def test_chunks_come_in_order_or_are_refused(ask: Http) -> None:
    begun = ask("POST", "/v2/a/blobs/uploads/")
    place = begun.headers["Location"]
    early = ask("PATCH", place, b"later", Content_Range="6-10")
    assert early.status == 416
    first = ask("PATCH", place, b"first ", Content_Range="0-5")
    assert (first.status, first.headers["Range"]) == (202, "0-5")
    again = ask("PATCH", place, b"first ", Content_Range="0-5")
    assert (again.status, again.headers["Range"]) == (416, "0-5")
    state = ask("GET", place)
    assert (state.status, state.headers["Range"]) == (204, "0-5")
    late = ask("PUT", f"{place}?digest={digest_of(b'first late')}", b"late", Content_Range="9-12")
    assert late.status == 416
    done = ask("PUT", f"{place}?digest={digest_of(b'first late')}", b"late", Content_Range="6-9")
    assert done.status == 201
    assert ask("GET", done.headers["Location"]).body == b"first late"


def test_a_chunked_body_without_a_range(ask: Http) -> None:
    place = ask("POST", "/v2/a/blobs/uploads/").headers["Location"]
    assert ask("PATCH", place, iter([b"one ", b"two"])).status == 202
    assert ask("PUT", f"{place}?digest={digest_of(b'one two')}").status == 201


def test_a_wrong_digest_leaves_nothing(ask: Http, server: RegistryServer) -> None:
    place = ask("POST", "/v2/a/blobs/uploads/").headers["Location"]
    refused = ask("PUT", f"{place}?digest={digest_of(b'other')}", b"bytes")
    assert (refused.status, refused.code) == (400, "DIGEST_INVALID")
    assert ask("GET", place).code == "BLOB_UPLOAD_UNKNOWN"
    assert not list(server.storage.uploads_folder.iterdir())
    assert ask("PUT", f"{place}?digest=md5:abc", b"bytes").code == "DIGEST_INVALID"


def test_an_upload_is_cancelled(ask: Http) -> None:
    place = ask("POST", "/v2/a/blobs/uploads/").headers["Location"]
    assert ask("DELETE", place).status == 204
    assert ask("GET", place).status == 404
    assert ask("PATCH", place, b"x").code == "BLOB_UPLOAD_UNKNOWN"


def test_an_upload_survives_the_server(
    start_registry: Start, server: RegistryServer, ask: Http
) -> None:
    place = ask("POST", "/v2/a/blobs/uploads/").headers["Location"]
    assert ask("PATCH", place, b"before ").status == 202
    other = Http(start_registry(server.storage.root))
    digest = digest_of(b"before after")
    assert other("PUT", f"{place}?digest={digest}", b"after").status == 201
    other.connection.close()


def test_mounts(ask: Http) -> None:
    digest = ask.push_blob("one", b"shared")
    mounted = ask("POST", f"/v2/two/blobs/uploads/?mount={digest}&from=one")
    assert mounted.status == 201
    assert ask("GET", mounted.headers["Location"]).body == b"shared"
    assert ask("POST", f"/v2/three/blobs/uploads/?mount={digest}").status == 201
    missing = digest_of(b"never seen")
    assert ask("POST", f"/v2/two/blobs/uploads/?mount={missing}&from=one").status == 202


@pytest.mark.parametrize(
    ("asked", "status", "body", "answered"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=x", 200, b"0123456789", None),
        ("bytes=5-2", 416, None, "bytes */10"),
    ],
)
def test_ranges(ask: Http, asked: str, status: int, body: bytes, answered: str | None) -> None:
    digest = ask.push_blob("a", b"0123456789")
    found = ask("GET", f"/v2/a/blobs/{digest}", Range=asked)
    assert found.status == status
    assert found.headers["Content-Range"] == answered
    if body is not None:
        assert found.body == body


def test_manifests_by_tag_and_digest(ask: Http) -> None:
    ask.push_blob("a", b"{}")
    ask.push_blob("a", b"layer")
    raw = manifest_of(b"{}", b"layer", extra={"kept": True})
    done = put(ask, "a", "v1", raw)
    assert done.status == 201
    digest = digest_of(raw)
    assert done.headers["Docker-Content-Digest"] == digest
    for reference in ("v1", digest):
        found = ask("GET", f"/v2/a/manifests/{reference}")
        assert (found.status, found.body) == (200, raw)
        assert found.headers["Content-Type"] == OCI_MANIFEST
    many = ask("PUT", f"/v2/a/manifests/{digest}?tag=x&tag=y", raw, Content_Type=OCI_MANIFEST)
    assert many.headers["OCI-Tag"] == "x, y"
    assert ask("GET", "/v2/a/tags/list").json() == {"name": "a", "tags": ["v1", "x", "y"]}


def test_manifests_that_are_refused(ask: Http) -> None:
    ask.push_blob("a", b"{}")
    assert put(ask, "a", "t", b"not json").code == "MANIFEST_INVALID"
    assert put(ask, "a", "t", manifest_of(b"{}"), OCI_INDEX).code == "MANIFEST_INVALID"
    assert put(ask, "a", digest_of(b"x"), manifest_of(b"{}")).code == "DIGEST_INVALID"
    missing = put(ask, "a", "t", manifest_of(b"{}", b"missing"))
    assert (missing.status, missing.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    large = put(ask, "a", "t", b" " * (9 << 20))
    assert large.status == 413


def test_a_sha512_manifest(ask: Http) -> None:
    ask.push_blob("a", b"{}")
    raw = manifest_of(b"{}")
    digest = digest_of(raw, "sha512")
    assert put(ask, "a", digest, raw).status == 201
    assert ask("GET", f"/v2/a/manifests/{digest}").body == raw


def test_pages_of_tags(ask: Http) -> None:
    ask.push_blob("a", b"{}")
    raw = manifest_of(b"{}")
    for tag in ("d", "b", "a", "c", "B"):
        put(ask, "a", tag, raw)
    first = ask("GET", "/v2/a/tags/list?n=2")
    assert first.json()["tags"] == ["B", "a"]
    assert first.headers["Link"] == '</v2/a/tags/list?n=2&last=a>; rel="next"'
    assert ask("GET", "/v2/a/tags/list?n=2&last=a").json()["tags"] == ["b", "c"]
    last = ask("GET", "/v2/a/tags/list?n=5&last=c")
    assert last.json()["tags"] == ["d"]
    assert "Link" not in last.headers
    none = ask("GET", "/v2/a/tags/list?n=0")
    assert (none.json()["tags"], none.headers["Link"]) == ([], None)
    assert ask("GET", "/v2/_catalog").json() == {"repositories": ["a"]}


def test_deletes(ask: Http) -> None:
    blob = ask.push_blob("a", b"{}")
    raw = manifest_of(b"{}")
    digest = digest_of(raw)
    for tag in ("one", "two"):
        put(ask, "a", tag, raw)
    assert ask("DELETE", "/v2/a/manifests/one").status == 202
    assert ask("GET", "/v2/a/manifests/one").status == 404
    assert ask("GET", f"/v2/a/manifests/{digest}").status == 200
    assert ask("DELETE", f"/v2/a/manifests/{digest}").status == 202
    assert ask("GET", "/v2/a/manifests/two").status == 404
    assert ask("DELETE", f"/v2/a/manifests/{digest}").code == "MANIFEST_UNKNOWN"
    assert ask("DELETE", f"/v2/a/blobs/{blob}").status == 202
    assert ask("DELETE", f"/v2/a/blobs/{blob}").code == "BLOB_UNKNOWN"
    assert ask("DELETE", "/v2/nobody/manifests/x").code == "NAME_UNKNOWN"


def test_referrers(ask: Http) -> None:
    ask.push_blob("a", b"{}")
    image = manifest_of(b"{}")
    subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(image), "size": len(image)}
    # Either order: what refers may come before what it refers to.
    bom = manifest_of(b"{}", subject=subject, artifactType="app/bom", annotations={"k": "v"})
    signature = manifest_of(b"{}", subject=subject)
    assert put(ask, "a", digest_of(bom), bom).headers["OCI-Subject"] == digest_of(image)
    put(ask, "a", "latest", image)
    put(ask, "a", digest_of(signature), signature)
    found = ask("GET", f"/v2/a/referrers/{digest_of(image)}")
    assert found.headers["Content-Type"] == OCI_INDEX
    entries = {entry["digest"]: entry for entry in found.json()["manifests"]}
    assert entries[digest_of(bom)]["artifactType"] == "app/bom"
    assert entries[digest_of(bom)]["annotations"] == {"k": "v"}
    assert entries[digest_of(signature)]["artifactType"] == OCI_CONFIG
    some = ask("GET", f"/v2/a/referrers/{digest_of(image)}?artifactType=app/bom")
    assert some.headers["OCI-Filters-Applied"] == "artifactType"
    assert [entry["digest"] for entry in some.json()["manifests"]] == [digest_of(bom)]
    assert ask("GET", f"/v2/no/referrers/{digest_of(b'')}").json()["manifests"] == []
    assert ask("GET", "/v2/a/referrers/latest").status == 400
    ask("DELETE", f"/v2/a/manifests/{digest_of(bom)}")
    left = ask("GET", f"/v2/a/referrers/{digest_of(image)}").json()["manifests"]
    assert [entry["digest"] for entry in left] == [digest_of(signature)]


def test_layers_that_lie_elsewhere_need_not_be_here(ask: Http) -> None:
    ask.push_blob("a", b"{}")
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    document = json.loads(manifest_of(b"{}"))
    document["layers"] = [{"mediaType": kind, "digest": digest_of(b"far"), "size": 3}]
    assert put(ask, "a", "t", json.dumps(document).encode()).status == 201
