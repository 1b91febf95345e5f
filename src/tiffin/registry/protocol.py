"""The registry's side of the OCI distribution specification 1.1, on top of :class:`Storage`.

Source: OCI distribution specification 1.1 (``spec.md``); the end-N numbers are of its table.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from tiffin.errors import InvalidParameter, StorageFull, TiffinError
from tiffin.image.manifest import OCI_INDEX, parse_manifest
from tiffin.image.reference import check_digest, is_digest
from tiffin.registry import sharing
from tiffin.registry.access import Passwords, Tokens, only_pulls, parse_basic
from tiffin.registry.exchange import Exchange
from tiffin.registry.faults import Fault
from tiffin.registry.passthrough import Upstream
from tiffin.registry.storage import MANIFEST_LIMIT, Storage, media_type_of
from tiffin.registry.sweeping import sweep

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_CONTENT_RANGE = re.compile(r"(?:bytes )?([0-9]+)-([0-9]+)(?:/.*)?")
_ROUTE = re.compile(
    r"/v2/(?P<name>.+?)/(?:"
    r"(?P<uploads>blobs/uploads)(?:/(?P<upload>[^/]*))?"
    r"|blobs/(?P<blob>[^/]+)"
    r"|manifests/(?P<reference>[^/]+)"
    r"|(?P<tags>tags/list)"
    r"|referrers/(?P<subject>[^/]+))"
)
_UPSTREAM = {
    401: ("DENIED", 403),
    403: ("DENIED", 403),
    404: ("MANIFEST_UNKNOWN", 404),
    429: ("TOOMANYREQUESTS", 429),
}
"""What is answered where another registry fails with a status; else 502."""
_PAGE = 1000
_REFERRERS_PAGE = 500
_OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class Policy:
    """What a registry allows."""

    passwords: Passwords | None = None
    tokens: Tokens | None = None
    """If there are passwords: whether they are asked for by ``/token`` instead of directly."""
    read_only: bool = False
    anonymous_pull: bool = False
    """Whether reading is free for all although there are passwords."""
    public_url: str = ""
    """Where clients find ``/token``; by default the host that they name."""


class Protocol:
    """Answers requests; any thread may call it."""

    def __init__(
        self, storage: Storage, policy: Policy, upstream: Upstream | None, *, tls: bool
    ) -> None:
        self.storage = storage
        self.policy = policy
        self._upstream = upstream
        self._tls = tls

    def __call__(self, request: Exchange) -> None:
        """Answer ``request``, whatever happens."""
        try:
            self._dispatch(request)
        except Fault as fault:
            if fault.http_status == 401:
                self._challenge(request, fault)
                return
            headers = {}
            if "offset" in fault.detail:
                headers = self._upload_headers(request.route, int(fault.detail["offset"]))
            request.fault(fault, headers)
        except StorageFull as error:
            request.fault(Fault("BLOB_UPLOAD_INVALID", error.message, 507))
        except TiffinError as error:
            # The registry that this one is a cache of. Its 401 is not the client's, who could do
            # nothing about it.
            code, status = _UPSTREAM.get(error.status, ("UNAVAILABLE", 502))
            request.fault(Fault(code, error.message, status))

    def _dispatch(self, request: Exchange) -> None:
        route, method = request.route, request.command
        if route in ("/v2", "/v2/"):
            self._admit(request, [])
            request.json({})
        elif route == "/v2/_catalog":
            self._admit(request, [("registry:catalog", "*")])
            self._catalog(request)
        elif route == "/token" and self.policy.tokens is not None:
            self._token(request, self.policy.tokens)
        elif route in ("/", "/tiffin/v1/sharing", "/tiffin/v1/collect"):
            self._admit(request, [("registry:catalog", "*")])
            self._own(request, route, method)
        elif (match := _ROUTE.fullmatch(route)) is not None:
            name = match["name"]
            if not _NAME.fullmatch(name) or len(name) > 255:
                raise Fault("NAME_INVALID", f"invalid repository name: {name}", name=name)
            self._repository(request, method, name, match)
        else:
            raise Fault("UNSUPPORTED", "page not found", 404)

    def _repository(self, request: Exchange, method: str, name: str, match: re.Match[str]) -> None:
        writing = method in ("POST", "PUT", "PATCH") or match["uploads"] is not None
        action = "delete" if method == "DELETE" and not match["uploads"] else "pull"
        needed = [(f"repository:{name}", "push" if writing else action)]
        source = request.parameter("from")
        if match["uploads"] and method == "POST" and source:
            needed.append((f"repository:{source}", "pull"))
        self._admit(request, needed, reading=method in ("GET", "HEAD") and not match["uploads"])
        if (writing or method == "DELETE") and (
            self.policy.read_only or self._upstream is not None
        ):
            raise Fault("UNSUPPORTED", "this registry is read-only")
        if match["uploads"]:
            self._uploads(request, method, name, match["upload"] or "")
        elif match["blob"]:
            self._blob(request, method, name, match["blob"])
        elif match["reference"]:
            self._manifest(request, method, name, match["reference"])
        elif match["tags"]:
            self._only(method, "GET")
            self._tags(request, name)
        else:
            self._only(method, "GET")
            self._referrers(request, name, match["subject"])

    @staticmethod
    def _only(method: str, *methods: str) -> None:
        if method not in methods:
            raise Fault("UNSUPPORTED", f"the method {method} is not supported here")

    # Who asks.

    def _admit(
        self, request: Exchange, needed: list[tuple[str, str]], *, reading: bool = False
    ) -> None:
        policy = self.policy
        if policy.passwords is None or (reading and policy.anonymous_pull):
            return
        header = request.headers.get("Authorization", "")
        pair = parse_basic(header)
        if pair is not None and policy.passwords.check(*pair):
            return
        if policy.tokens is not None and header[:7].lower() == "bearer ":
            allowed = policy.tokens.allows(header[7:].strip(), needed)
            if allowed:
                return
        raise Fault("UNAUTHORIZED", "authentication required", needed=needed)

    def _challenge(self, request: Exchange, fault: Fault) -> None:
        tokens = self.policy.tokens
        if tokens is None:
            challenge = 'Basic realm="tiffin registry"'
        else:
            where = self.policy.public_url or (
                f"{'https' if self._tls else 'http'}://{request.headers.get('Host', 'localhost')}"
            )
            challenge = f'Bearer realm="{where}/token",service="{tokens.service}"'
            scopes = " ".join(
                f"{resource}:{action}" for resource, action in fault.detail.get("needed", ())
            )
            if scopes:
                challenge += f',scope="{scopes}"'
        request.fault(Fault("UNAUTHORIZED", fault.message), {"WWW-Authenticate": challenge})

    def _token(self, request: Exchange, tokens: Tokens) -> None:
        passwords = self.policy.passwords
        assert passwords is not None
        if request.command == "POST":
            form = parse_qs(request.body(1 << 16).decode("utf-8", "replace"))

            def field(name: str) -> str:
                return form.get(name, [""])[0]

            scopes = field("scope").split()
            if field("grant_type") == "refresh_token":
                user = tokens.user_of_refresh(field("refresh_token"))
                refresh = False
            else:
                user = field("username")
                if not passwords.check(user, field("password")):
                    user = None
                refresh = field("access_type") == "offline"
        else:
            self._only(request.command, "GET")
            scopes = [part for text in request.query.get("scope", ()) for part in text.split()]
            given = request.headers.get("Authorization", "")
            if not given and self.policy.anonymous_pull:
                # Docker's and Podman's clients ask for a token before they ask for anything else.
                request.json(tokens.issue("", only_pulls(scopes), refresh=False))
                return
            pair = parse_basic(given)
            user = pair[0] if pair is not None and passwords.check(*pair) else None
            refresh = request.parameter("offline_token") == "true"
        if user is None:
            request.fault(
                Fault("UNAUTHORIZED", "authentication required"),
                {"WWW-Authenticate": 'Basic realm="tiffin registry"'},
            )
            return
        request.json(tokens.issue(user, scopes, refresh=refresh))

    # Blobs.

    def _blob(self, request: Exchange, method: str, name: str, digest: str) -> None:
        self._only(method, "GET", "HEAD", "DELETE")
        self._check_digest(digest)
        headers = {**_OCTETS, "Docker-Content-Digest": digest}
        if method == "DELETE":
            self.storage.delete_blob(name, digest)
            request.empty(202)
            return
        if self._upstream is not None and self.storage.has_blob(name, digest) is None:
            self._upstream.send_blob(request, name, digest, headers)
            return
        with self.storage.open_blob(name, digest) as file:
            request.file(file, file.seek(0, os.SEEK_END), headers)

    @staticmethod
    def _check_digest(digest: str) -> str:
        try:
            return check_digest(digest)
        except InvalidParameter as error:
            raise Fault("DIGEST_INVALID", error.message, digest=digest) from error

    @staticmethod
    def _upload_headers(route: str, offset: int) -> dict[str, str]:
        return {
            "Location": route,
            "Range": f"0-{max(offset - 1, 0)}",
            "Docker-Upload-UUID": route.rpartition("/")[2],
        }

    def _uploads(self, request: Exchange, method: str, name: str, upload: str) -> None:
        storage = self.storage
        if not upload:
            self._only(method, "POST")
            self._begin(request, name)
            return
        route = f"/v2/{name}/blobs/uploads/{upload}"
        if method == "GET":
            headers = self._upload_headers(route, storage.offset(name, upload))
            request.begin(204, headers, 0)
        elif method == "PATCH":
            offset = self._receive(request, name, upload)
            request.begin(202, self._upload_headers(route, offset), 0)
        elif method == "PUT":
            digest = self._check_digest(request.parameter("digest"))
            storage.upload_path(name, upload)
            if request.has_body:
                self._receive(request, name, upload)
            self._finish(request, name, upload, digest)
        elif method == "DELETE":
            storage.cancel(name, upload)
            request.empty(204)
        else:
            self._only(method, "GET", "PATCH", "PUT", "DELETE")

    def _begin(self, request: Exchange, name: str) -> None:
        storage = self.storage
        mount, digest = request.parameter("mount"), request.parameter("digest")
        algorithm = request.parameter("digest-algorithm")
        if algorithm and algorithm not in ("sha256", "sha512", "sha384"):
            raise Fault("UNSUPPORTED", f"unsupported digest algorithm: {algorithm}", 400)
        if (
            mount
            and is_digest(mount)
            and storage.mount(name, mount, request.parameter("from") or None)
        ):
            self._created(request, name, mount)
            return
        if digest:
            self._check_digest(digest)
        upload = storage.begin(name)
        if digest:
            try:
                storage.append(name, upload, request.read_into, None)
            except BaseException:
                storage.cancel(name, upload)
                raise
            self._finish(request, name, upload, digest)
            return
        headers = self._upload_headers(f"/v2/{name}/blobs/uploads/{upload}", 0)
        request.begin(202, headers, 0)

    def _receive(self, request: Exchange, name: str, upload: str) -> int:
        start = None
        text = request.headers.get("Content-Range", "")
        if text:
            match = _CONTENT_RANGE.fullmatch(text.strip())
            if match is None or int(match[2]) < int(match[1]):
                raise Fault("BLOB_UPLOAD_INVALID", f"malformed Content-Range: {text}")
            start = int(match[1])
        return self.storage.append(name, upload, request.read_into, start)

    def _finish(self, request: Exchange, name: str, upload: str, digest: str) -> None:
        self.storage.finish(name, upload, digest)
        self._created(request, name, digest)

    @staticmethod
    def _created(request: Exchange, name: str, digest: str) -> None:
        request.begin(
            201,
            {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest},
            0,
        )

    # Manifests.

    def _manifest(self, request: Exchange, method: str, name: str, reference: str) -> None:
        storage = self.storage
        if ":" in reference:
            self._check_digest(reference)
        elif not _TAG.fullmatch(reference):
            raise Fault("MANIFEST_INVALID", f"invalid tag: {reference}")
        if method in ("GET", "HEAD"):
            if self._upstream is not None:
                self._upstream.refresh(name, reference)
            found = storage.manifest(name, reference)
            if request.headers.get("If-None-Match", "").strip('"') == found.digest:
                request.begin(304, {"Etag": f'"{found.digest}"'}, 0)
                return
            request.whole(
                200,
                found.raw,
                {
                    "Content-Type": found.media_type,
                    "Docker-Content-Digest": found.digest,
                    "Etag": f'"{found.digest}"',
                },
            )
        elif method == "PUT":
            self._put_manifest(request, name, reference)
        elif method == "DELETE":
            if not storage.exists(name):
                raise Fault("NAME_UNKNOWN", "repository name not known to registry", name=name)
            if is_digest(reference):
                storage.delete_manifest(name, reference)
            else:
                storage.delete_tag(name, reference)
            request.empty(202)
        else:
            self._only(method, "GET", "HEAD", "PUT", "DELETE")

    def _put_manifest(self, request: Exchange, name: str, reference: str) -> None:
        raw = request.body(MANIFEST_LIMIT)
        document = _document(raw)
        media_type = media_type_of(document, request.content_type)
        if request.content_type and request.content_type not in (media_type, "application/json"):
            raise Fault(
                "MANIFEST_INVALID",
                f"the manifest's media type is {media_type}, and it was sent as"
                f" {request.content_type}",
            )
        try:
            parse_manifest(raw, media_type)
        except InvalidParameter as error:
            raise Fault("MANIFEST_INVALID", error.message) from error
        algorithm = reference.partition(":")[0] if is_digest(reference) else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
        tags = [tag for text in request.query.get("tag", ()) for tag in text.split(",") if tag]
        if is_digest(reference):
            if digest != reference:
                raise Fault(
                    "DIGEST_INVALID", "provided digest did not match uploaded content", found=digest
                )
        else:
            tags = [reference]
        for tag in tags:
            if not _TAG.fullmatch(tag):
                raise Fault("MANIFEST_INVALID", f"invalid tag: {tag}")
        self.storage.put_manifest(name, digest, raw, media_type, tags, document)
        headers = {
            "Location": f"/v2/{name}/manifests/{digest}",
            "Docker-Content-Digest": digest,
        }
        subject = document.get("subject")
        if isinstance(subject, dict):
            headers["OCI-Subject"] = str(subject.get("digest"))
        if tags and is_digest(reference):
            headers["OCI-Tag"] = ", ".join(tags)
        request.begin(201, headers, 0)

    # Discovery.

    def _tags(self, request: Exchange, name: str) -> None:
        if self._upstream is not None:
            names = self._upstream.tags(name)
        else:
            if not self.storage.exists(name):
                raise Fault("NAME_UNKNOWN", "repository name not known to registry", name=name)
            names = self.storage.tags(name)
        page, headers = self._page(request, names, f"/v2/{name}/tags/list")
        request.json({"name": name, "tags": page}, headers=headers)

    def _catalog(self, request: Exchange) -> None:
        self._only(request.command, "GET")
        page, headers = self._page(request, self.storage.repositories(), "/v2/_catalog")
        request.json({"repositories": page}, headers=headers)

    @staticmethod
    def _page(request: Exchange, names: list[str], route: str) -> tuple[list[str], dict[str, str]]:
        text, last = request.parameter("n"), request.parameter("last")
        if text and not text.isdigit():
            raise Fault("UNSUPPORTED", f"n must be a whole number, not {text}", 400)
        count = min(int(text), _PAGE) if text else _PAGE
        if last:
            names = [name for name in names if name > last]
        page = names[:count]
        headers = {}
        if count and len(names) > count:
            query = urlencode({"n": count, "last": page[-1]})
            headers["Link"] = f'<{route}?{query}>; rel="next"'
        return page, headers

    def _referrers(self, request: Exchange, name: str, subject: str) -> None:
        self._check_digest(subject)
        wanted, last = request.parameter("artifactType"), request.parameter("last")
        if self._upstream is not None:
            found = self._upstream.referrers(name, subject)
        else:
            found = self.storage.referrers(name, subject)
        headers = {"Content-Type": OCI_INDEX}
        if wanted:
            found = [entry for entry in found if entry.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        if last:
            found = [entry for entry in found if entry["digest"] > last]
        page = found[:_REFERRERS_PAGE]
        if len(found) > len(page):
            query = f"last={page[-1]['digest']}"
            if wanted:
                query += f"&artifactType={quote(wanted, safe='')}"
            headers["Link"] = f'</v2/{name}/referrers/{subject}?{query}>; rel="next"'
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
        request.json(document, headers=headers)

    # What is not in the specification.

    def _own(self, request: Exchange, route: str, method: str) -> None:
        if route == "/tiffin/v1/collect":
            self._only(method, "POST")
            if self.policy.read_only:
                raise Fault("UNSUPPORTED", "this registry is read-only")
            untagged = request.parameter("untagged") in ("1", "true")
            request.json(sweep(self.storage, untagged=untagged).document())
            return
        self._only(method, "GET", "HEAD")
        report = sharing.measure(self.storage)
        if route == "/":
            page = sharing.page(report).encode()
            request.whole(200, page, {"Content-Type": "text/html; charset=utf-8"})
        else:
            request.json(report.document())


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Fault("MANIFEST_INVALID", f"the manifest is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Fault("MANIFEST_INVALID", "the manifest must be an object")
    return document
