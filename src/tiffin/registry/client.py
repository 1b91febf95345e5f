"""A client of one registry endpoint: the verbs of the OCI distribution specification 1.1.

Whatever comes from a registry is checked: manifests against the digest they were asked by, their
media type and their size, blobs against their descriptor. Docker's schema 1 is refused by name.

Source: OCI distribution specification 1.1 (``spec.md``); the end-N numbers are of its table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from tiffin.errors import (
    DigestMismatch,
    InvalidParameter,
    NotFound,
    TiffinError,
    Unauthorized,
    Unreachable,
)
from tiffin.image.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    parse_manifest,
)
from tiffin.image.reference import is_digest
from tiffin.registry.answers import Answer, failure, shown
from tiffin.registry.blobs import BlobStream, Progress
from tiffin.registry.credentials import Credentials
from tiffin.registry.endpoints import Endpoint
from tiffin.registry.transport import Cancelled, Patience, Transport
from tiffin.registry.upload import Upload

__all__ = ["Cancelled", "Patience", "Registry"]

MANIFEST_LIMIT = 8 << 20
_ACCEPT = ", ".join((OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST, "*/*;q=0.1"))
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"


class Registry:
    """One endpoint; any thread may use it. A context manager: leaving it closes connections."""

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials | None = None,
        *,
        patience: Patience | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.endpoint = endpoint
        self.transport = Transport(endpoint, credentials, patience=patience, cancelled=cancelled)

    @property
    def host(self) -> str:
        """The host and port of the endpoint."""
        return self.endpoint.host

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.transport.close()

    def _request(
        self, method: str, repository: str, rest: str, actions: str = "pull", **options: Any
    ) -> Answer:
        scopes = options.pop("scopes", frozenset({f"repository:{repository}:{actions}"}))
        return self.transport.request(method, f"/v2/{repository}/{rest}", scopes=scopes, **options)

    # The registry as a whole.

    def ping(self) -> None:
        """Raise what is wrong if this is no registry, or one that does not let us in (end-1)."""
        answer = self.transport.request("GET", "/v2/")
        if answer.status != 200:
            raise failure(answer, "ping")
        answer.close()

    def login(self) -> str:
        """Check the credentials; the identity token that the registry gives in return, or "".

        Raises Unauthorized, and Unreachable.
        """
        answer = self.transport.login("/v2/")
        if answer.status == 401:
            answer.close()
            raise Unauthorized(f"login attempt to {self.host} failed with status: 401 Unauthorized")
        if answer.status != 200:
            raise failure(answer, "login")
        answer.close()
        return self.transport.authorization.identity_token

    def catalog(self) -> Iterator[str]:
        """The repositories, where the registry lists them (an extension of Docker's)."""
        scopes = frozenset({"registry:catalog:*"})
        yield from self._pages("/v2/_catalog", "repositories", scopes, "catalog")

    # Manifests.

    def manifest(
        self, repository: str, reference: str, descriptor: Descriptor | None = None
    ) -> Manifest | Index:
        """The manifest or index of a tag or digest (end-3), checked against ``descriptor``.

        Raises NotFound, DigestMismatch, InvalidParameter (no manifest), Unsupported (schema 1).
        """
        raw, media_type = self.raw_manifest(repository, reference)
        if descriptor is not None and len(raw) != descriptor.size:
            raise DigestMismatch(
                f"manifest {reference} has {len(raw)} bytes, and its index says {descriptor.size}"
            )
        known: str | None = media_type
        if media_type in ("application/json", "text/plain", "application/octet-stream", ""):
            # A server of files; the document says what it is.
            known = None
        found = parse_manifest(raw, known)
        if descriptor is not None and found.media_type != descriptor.media_type:
            raise InvalidParameter(
                f"manifest {reference} has the media type {found.media_type}, and its index says"
                f" {descriptor.media_type}"
            )
        return found

    def raw_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """The bytes and the media type of any manifest; raises NotFound, DigestMismatch."""
        answer, raw = self.transport.fetch(
            f"/v2/{repository}/manifests/{reference}",
            headers={"Accept": _ACCEPT},
            scopes=frozenset({f"repository:{repository}:pull"}),
            limit=MANIFEST_LIMIT,
        )
        if answer.status == 404:
            answer.close()
            raise NotFound(f"manifest for {self.host}/{repository}:{reference} not found")
        if answer.status != 200:
            raise failure(answer, f"manifest {repository}:{reference}")
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        said = answer.headers.get("Docker-Content-Digest", "")
        for digest in {reference if is_digest(reference) else "", said}:
            # A schema 1's digest is over a part of its bytes; it is refused by its name below.
            if digest and is_digest(digest) and not media_type.startswith(_SCHEMA_1):
                found = _digest(raw, digest)
                if found != digest:
                    raise DigestMismatch(
                        f"manifest verification failed for digest {digest}: what registry"
                        f" {self.host} gives has {found}"
                    )
        return raw, media_type

    def find_manifest(self, repository: str, reference: str) -> Descriptor | None:
        """The descriptor of a manifest that is there, without reading it; else None."""
        answer = self._request(
            "HEAD", repository, f"manifests/{reference}", headers={"Accept": _ACCEPT}
        )
        status, headers, length = answer.status, answer.headers, answer.length
        if status not in (200, 404):
            raise failure(answer, f"manifest {repository}:{reference}")
        answer.close()
        if status == 404:
            return None
        digest = headers.get("Docker-Content-Digest", "")
        if not is_digest(digest) or length is None:
            raw, media_type = self.raw_manifest(repository, reference)
            return Descriptor.of(raw, media_type)
        media_type = headers.get("Content-Type", "").partition(";")[0].strip()
        return Descriptor(media_type, digest, length)

    def put_manifest(self, repository: str, reference: str, raw: bytes, media_type: str) -> str:
        """Store a manifest under a tag or digest (end-7); its digest.

        Raises NotFound where it names what the registry does not have. A registry that knows no
        referrers gets the list of them under the tag that stands for it.
        """
        answer = self._request(
            "PUT",
            repository,
            f"manifests/{reference}",
            "pull,push",
            headers={"Content-Type": media_type},
            body=raw,
        )
        if answer.status not in (200, 201, 202):
            error = failure(answer, f"manifest {repository}:{reference}")
            if answer.status == 404:
                raise NotFound(error.message)
            raise error
        subject_known = "OCI-Subject" in answer.headers
        answer.close()
        digest = _digest(raw, reference if is_digest(reference) else "sha256:")
        subject = json.loads(raw).get("subject")
        if subject and not subject_known:
            self._refer(repository, raw, media_type, digest, subject)
        return digest

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Remove a tag, or a manifest with its tags (end-9); raises NotFound."""
        answer = self._request("DELETE", repository, f"manifests/{reference}", "delete,pull,push")
        self._accepted(answer, f"manifest {repository}:{reference}")

    def _accepted(self, answer: Answer, what: str) -> None:
        if answer.status == 404:
            answer.close()
            raise NotFound(f"{what} not found in registry {self.host}")
        if answer.status not in (200, 202, 204):
            raise failure(answer, what)
        answer.close()

    # Discovery.

    def tags(self, repository: str) -> Iterator[str]:
        """The tags of a repository, page by page (end-8); raises NotFound."""
        scopes = frozenset({f"repository:{repository}:pull"})
        yield from self._pages(f"/v2/{repository}/tags/list", "tags", scopes, repository)

    def _pages(self, target: str, member: str, scopes: frozenset[str], what: str) -> Iterator[Any]:
        seen = set()
        while target and target not in seen:
            seen.add(target)
            answer, body = self.transport.fetch(target, scopes=scopes)
            if answer.status == 404:
                answer.close()
                raise NotFound(f"repository {self.host}/{what} not found")
            if answer.status != 200:
                raise failure(answer, what)
            try:
                items = json.loads(body).get(member) or []
            except (ValueError, AttributeError) as error:
                raise InvalidParameter(f"{what}: registry {self.host} answers no JSON") from error
            yield from items
            target = _next_page(answer)

    def referrers(
        self, repository: str, digest: str, artifact_type: str = ""
    ) -> list[dict[str, Any]]:
        """The descriptors of the manifests whose subject is ``digest`` (end-12)."""
        scopes = frozenset({f"repository:{repository}:pull"})
        query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        try:
            target = f"/v2/{repository}/referrers/{digest}{query}"
            found = list(self._pages(target, "manifests", scopes, repository))
        except NotFound:
            # An older registry: clients keep the list under a tag.
            try:
                raw, _ = self.raw_manifest(repository, referrers_tag(digest))
                found = json.loads(raw).get("manifests") or []
            except (NotFound, ValueError):
                found = []
        return [
            entry
            for entry in found
            if isinstance(entry, dict)
            and (not artifact_type or entry.get("artifactType") == artifact_type)
        ]

    def _refer(
        self, repository: str, raw: bytes, media_type: str, digest: str, subject: dict[str, Any]
    ) -> None:
        """The specification's fallback: keep the list of referrers under a tag."""
        document = json.loads(raw)
        tag = referrers_tag(str(subject.get("digest", "")))
        try:
            index = json.loads(self.raw_manifest(repository, tag)[0])
        except NotFound:
            index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        if index.get("mediaType") != OCI_INDEX:
            raise TiffinError(f"the tag {tag} of {repository} is no index: referrers are not kept")
        if any(entry.get("digest") == digest for entry in index["manifests"]):
            return
        index["manifests"].append(referrer(document, media_type, digest, len(raw)))
        data = json.dumps(index, separators=(",", ":")).encode()
        self.put_manifest(repository, tag, data, OCI_INDEX)

    # Blobs.

    def find_blob(self, repository: str, digest: str, *, push: bool = False) -> int | None:
        """The size of a blob that is there (end-2), else None."""
        actions = "pull,push" if push else "pull"
        answer = self._request("HEAD", repository, f"blobs/{digest}", actions)
        status, length = answer.status, answer.length
        if status == 404:
            answer.close()
            return None
        if status != 200:
            raise failure(answer, f"blob {digest}")
        answer.close()
        return length if length is not None else -1

    def blob(
        self,
        repository: str,
        descriptor: Descriptor,
        *,
        spool: Path | None = None,
        progress: Progress | None = None,
    ) -> BlobStream:
        """The bytes of a blob, verified and resumed as :class:`BlobStream` says; from its URLs
        where the registry does not have it."""

        def open_at(offset: int) -> Answer:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            answer = self._request("GET", repository, f"blobs/{descriptor.digest}", headers=headers)
            if answer.status == 404 and descriptor.urls:
                answer.close()
                answer = self._elsewhere(descriptor.digest, descriptor.urls, headers)
            if answer.status == 404:
                answer.close()
                raise NotFound(f"blob {descriptor.digest} not found in {self.host}/{repository}")
            if answer.status not in (200, 206):
                raise failure(answer, f"blob {descriptor.digest}")
            return answer

        return BlobStream(self.transport, descriptor, open_at, spool=spool, progress=progress)

    def _elsewhere(self, digest: str, urls: Sequence[str], headers: Mapping[str, str]) -> Answer:
        """The first good answer of other places, of which those without TLS are not asked."""
        places = ", ".join(shown(url) for url in urls)
        refusal: TiffinError = NotFound(f"blob {digest} is nowhere with TLS: {places}")
        for url in urls:
            if urlsplit(url).scheme != "https":
                continue
            try:
                answer = self.transport.request("GET", url, headers=headers)
            except Unreachable as error:
                refusal = error
                continue
            if answer.status in (200, 206):
                return answer
            refusal = failure(answer, f"blob {digest}")
        raise refusal

    def read_blob(self, repository: str, descriptor: Descriptor) -> bytes:
        """A small blob (a configuration), whole."""
        if descriptor.size > MANIFEST_LIMIT:
            raise InvalidParameter(
                f"blob {descriptor.digest} has {descriptor.size} bytes, and at most"
                f" {MANIFEST_LIMIT} were expected"
            )
        with self.blob(repository, descriptor) as stream:
            parts = []
            while part := stream.read():
                parts.append(part)
            return b"".join(parts)

    def delete_blob(self, repository: str, digest: str) -> None:
        """Remove a blob from a repository (end-10); raises NotFound."""
        answer = self._request("DELETE", repository, f"blobs/{digest}", "delete,pull,push")
        self._accepted(answer, f"blob {digest}")

    def begin_upload(
        self, repository: str, *, mount: str = "", source: str = "", algorithm: str = "sha256"
    ) -> Upload | None:
        """Begin to store a blob (end-4); None where ``mount`` from the repository ``source`` made
        it unnecessary (end-11)."""
        query = ""
        scopes = {f"repository:{repository}:pull,push"}
        if mount:
            query = f"?mount={mount}"
            if source:
                query += f"&from={quote(source, safe='')}"
                scopes.add(f"repository:{source}:pull")
        elif algorithm != "sha256":
            query = f"?digest-algorithm={algorithm}"
        answer = self._request(
            "POST",
            repository,
            f"blobs/uploads/{query}",
            scopes=frozenset(scopes),
            headers={"Content-Length": "0"},
            body=b"",
        )
        if mount and answer.status == 201:
            answer.close()
            return None
        if answer.status not in (200, 202):
            error = failure(answer, f"push to {repository}")
            if answer.status == 404:
                raise NotFound(error.message)
            raise error
        answer.close()
        location = urljoin(answer.url, answer.headers.get("Location", ""))
        minimum = answer.headers.get("OCI-Chunk-Min-Length", "")
        return Upload(
            self.transport,
            frozenset({f"repository:{repository}:pull,push"}),
            location,
            int(minimum) if minimum.isdigit() else 0,
            partial(self._location, repository, algorithm),
            lambda digest: self.find_blob(repository, digest, push=True) is not None,
        )

    def _location(self, repository: str, algorithm: str) -> str:
        """Where another upload is."""
        upload = self.begin_upload(repository, algorithm=algorithm)
        assert upload is not None
        return upload.location

    def put_blob(self, repository: str, content: bytes) -> str:
        """Store a small blob, unless it is there; its digest."""
        digest = _digest(content, "sha256:")
        if self.find_blob(repository, digest, push=True) is None:
            upload = self.begin_upload(repository)
            assert upload is not None
            upload.finish(digest, content)
        return digest


def referrers_tag(digest: str) -> str:
    """The tag that older registries keep the referrers of a digest under."""
    algorithm, _, encoded = digest.partition(":")
    text = f"{algorithm[:32]}-{encoded[:64]}"
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)


def referrer(document: dict[str, Any], media_type: str, digest: str, size: int) -> dict[str, Any]:
    """The descriptor of a manifest in a list of referrers."""
    entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": size}
    artifact_type = document.get("artifactType")
    if not artifact_type and isinstance(document.get("config"), dict):
        artifact_type = document["config"].get("mediaType")
    if artifact_type:
        entry["artifactType"] = artifact_type
    if document.get("annotations"):
        entry["annotations"] = document["annotations"]
    return entry


def _digest(raw: bytes, like: str) -> str:
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


def _next_page(answer: Answer) -> str:
    for link in answer.headers.get("Link", "").split(","):
        url, _, parameters = link.partition(";")
        if 'rel="next"' in parameters or "rel=next" in parameters:
            target = urljoin(answer.url, url.strip().removeprefix("<").removesuffix(">"))
            if urlsplit(target).netloc == urlsplit(answer.url).netloc:
                return target
    return ""
