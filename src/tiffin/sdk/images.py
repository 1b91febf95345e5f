"""Images: the collection ``client.images``, and the objects that it gives."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from json import dumps
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

from tiffin.client.connection import Response
from tiffin.errors import (
    BuildFailure,
    Conflict,
    CorruptArchive,
    ImageNotFound,
    InvalidParameter,
    NotFound,
    TiffinError,
)
from tiffin.sdk import streams
from tiffin.sdk.resource import Model, api_filters
from tiffin.sdk.streams import CHUNK, Output, last_error
from tiffin.sdk.transport import Source, escape

if TYPE_CHECKING:
    import builtins

    from tiffin.registry.credentials import Credentials
    from tiffin.sdk.client import Client

_BUILT = re.compile(r"^(?:Successfully built |sha256:)([0-9a-f]+)$")
_LOADED = re.compile(r"^Loaded image(?: ID)?: (.+)$")
_ABSENT = ("not found", "does not exist", "manifest unknown", "no such")


class Image(Model):
    """One image."""

    def __repr__(self) -> str:
        return f"<Image: {', '.join(self.tags) or self.short_id}>"

    @property
    def short_id(self) -> str:
        """``sha256:`` and the first twelve characters."""
        return self.id[:19] if self.id.startswith("sha256:") else self.id[:12]

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return dict((self.attrs.get("Config") or {}).get("Labels") or {})

    @property
    def tags(self) -> list[str]:
        """Its names."""
        return [tag for tag in self.attrs.get("RepoTags") or [] if tag != "<none>:<none>"]

    def _inspect(self) -> dict[str, Any]:
        return dict(self.client.transport.call("GET", f"/images/{self.id}/json"))

    def history(self) -> list[dict[str, Any]]:
        """How it was made, the last step first."""
        return list(self.client.transport.call("GET", f"/images/{self.id}/history"))

    def tag(self, repository: str, tag: str | None = None) -> bool:
        """Gives it a further name; True, or an error."""
        query = {"repo": repository, "tag": tag}
        self.client.transport.call("POST", f"/images/{self.id}/tag", query)
        return True

    def remove(self, *, force: bool = False, noprune: bool = False) -> list[dict[str, str]]:
        """Removes it with all its names."""
        return self.client.images.remove(self.id, force=force, noprune=noprune)

    def save(self, chunk_size: int | None = CHUNK, named: str | bool = False) -> Output[bytes]:
        """It as an archive for ``images.load``; ``named``: with its first name, or with this."""
        name = self.id
        if isinstance(named, str):
            if named not in self.tags:
                raise InvalidParameter(f"{named} is not a tag of this image")
            name = named
        elif named and self.tags:
            name = self.tags[0]
        answer = self.client.transport.stream("GET", f"/images/{escape(name)}/get")
        return streams.chunks(answer, chunk_size)


class RegistryData:
    """What a registry says of an image that need not be here."""

    def __init__(self, client: Client, name: str, attrs: dict[str, Any]) -> None:
        self._client = client
        self.image_name = name
        self.attrs = attrs

    @property
    def id(self) -> str:
        """The digest."""
        return str(self.attrs["Descriptor"]["digest"])

    @property
    def short_id(self) -> str:
        """``sha256:`` and the first twelve characters."""
        return self.id[:19]

    def pull(self, platform: str | None = None) -> Image:
        """Brings it here, by its digest."""
        name = _split(self.image_name)[0]
        return self._client.images.pull(name, tag=self.id, platform=platform)

    def has_platform(self, platform: str | dict[str, str]) -> bool:
        """Whether there is a variant for ``os[/architecture[/variant]]``."""
        if isinstance(platform, str):
            names = platform.split("/")
            if len(names) > 3:
                raise InvalidParameter(f"{platform!r} is not a platform")
            platform = dict(zip(("os", "architecture", "variant"), names, strict=False))
        if "os" not in platform or "architecture" not in platform:
            here = self._client.version()
            platform = {"os": here["Os"], "architecture": here["Arch"], **platform}
        return platform in self.attrs["Platforms"]


class Images:
    """All images of an engine."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, name: str) -> Image:
        """The image of a name or ID; raises ImageNotFound."""
        attrs = self._client.transport.call("GET", f"/images/{escape(name)}/json")
        return Image(self._client, attrs)

    def list(
        self,
        name: str | None = None,
        *,
        all: bool = False,
        filters: dict[str, Any] | None = None,
    ) -> builtins.list[Image]:
        """The images, or those of the repository ``name``."""
        given = {**(filters or {}), **({"reference": name} if name else {})}
        query = {"all": all, "filters": api_filters(given)}
        rows = self._client.transport.call("GET", "/images/json", query)
        return [self.get(row["Id"]) for row in rows]

    def remove(
        self, image: str, *, force: bool = False, noprune: bool = False
    ) -> builtins.list[dict[str, str]]:
        """Removes a name, and the image with its last one."""
        query = {"force": force, "noprune": noprune}
        path = f"/images/{escape(image)}"
        return [*self._client.transport.call("DELETE", path, query)]

    def prune(self, filters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Removes those without a name (``{"dangling": False}``: all that nothing uses)."""
        query = {"filters": api_filters(filters)}
        return dict(self._client.transport.call("POST", "/images/prune", query))

    def prune_builds(
        self,
        *,
        filters: dict[str, Any] | None = None,
        keep_storage: int | None = None,
        all: bool | None = None,
    ) -> dict[str, Any]:
        """Removes what builds have kept for others to come."""
        query = {"filters": api_filters(filters), "keep-storage": keep_storage, "all": all}
        return dict(self._client.transport.call("POST", "/build/prune", query))

    def search(self, term: str, limit: int | None = None) -> builtins.list[dict[str, Any]]:
        """Images of Docker Hub."""
        query = {"term": term, "limit": limit}
        return [*self._client.transport.call("GET", "/images/search", query)]

    def load(self, data: Source) -> builtins.list[Image]:
        """Brings in the images of an archive (bytes, an open file, or pieces)."""
        answer = self._client.transport.upload("POST", "/images/load", {}, data)
        names = []
        with streams.messages(answer) as messages:
            for message in messages:
                if complaint := last_error(message):
                    raise CorruptArchive(complaint)
                if match := _LOADED.match(message.get("stream", "").strip()):
                    names.append(match[1])
        return [self.get(name) for name in names]

    def import_image(
        self,
        data: Source,
        repository: str | None = None,
        tag: str | None = None,
        *,
        message: str | None = None,
        changes: builtins.list[str] | None = None,
    ) -> Image:
        """An image out of a root file system's tar; ``changes`` are lines of a Dockerfile."""
        query = {
            "fromSrc": "-",
            "repo": repository,
            "tag": tag,
            "message": message,
            "changes": changes,
        }
        answer = self._client.transport.upload("POST", "/images/create", query, data)
        image = ""
        for one in self._told(answer):
            image = one.get("status", "")
        return self.get(image)

    @staticmethod
    def _told(answer: Response) -> Iterator[dict[str, Any]]:
        """The messages of a stream; raises what one of them complains of."""
        with streams.messages(answer) as messages:
            for message in messages:
                if complaint := last_error(message):
                    absent = any(words in complaint.lower() for words in _ABSENT)
                    raise (ImageNotFound if absent else TiffinError)(complaint)
                yield message

    def _auth(self, repository: str, given: dict[str, str] | None) -> dict[str, str]:
        from tiffin.image.reference import Reference
        from tiffin.registry.credentials import Credentials, CredentialsFile, key_of

        domain = Reference.parse(repository).domain
        found: Credentials | None
        if given is not None:
            found = Credentials.of_document(given)
        else:
            found = self._client.credentials.get(key_of(domain)) or CredentialsFile().get(domain)
        return {"X-Registry-Auth": found.header(key_of(domain))} if found else {}

    @overload
    def pull(
        self,
        repository: str,
        tag: str | None = ...,
        all_tags: Literal[False] = ...,
        *,
        platform: str | None = ...,
        auth_config: dict[str, str] | None = ...,
    ) -> Image: ...
    @overload
    def pull(
        self,
        repository: str,
        tag: str | None = ...,
        *,
        all_tags: Literal[True],
        platform: str | None = ...,
        auth_config: dict[str, str] | None = ...,
    ) -> builtins.list[Image]: ...
    def pull(
        self,
        repository: str,
        tag: str | None = None,
        all_tags: bool = False,
        *,
        platform: str | None = None,
        auth_config: dict[str, str] | None = None,
    ) -> Image | builtins.list[Image]:
        """Brings an image (the tag ``latest`` if none is named), or all of a repository."""
        name, own_tag = _split(repository)
        tag = tag or own_tag or "latest"
        query = {"fromImage": name, "tag": None if all_tags else tag, "platform": platform}
        headers = self._auth(name, auth_config)
        try:
            answer = self._client.transport.stream("POST", "/images/create", query, headers=headers)
        except NotFound as error:
            raise ImageNotFound(error.message) from None
        for _ in self._told(answer):
            continue
        if all_tags:
            return self.list(name)
        return self.get(f"{name}{'@' if ':' in tag else ':'}{tag}")

    @overload
    def push(
        self,
        repository: str,
        tag: str | None = ...,
        *,
        stream: Literal[False] = ...,
        decode: bool = ...,
        auth_config: dict[str, str] | None = ...,
    ) -> str: ...
    @overload
    def push(
        self,
        repository: str,
        tag: str | None = ...,
        *,
        stream: Literal[True],
        decode: Literal[True],
        auth_config: dict[str, str] | None = ...,
    ) -> Output[dict[str, Any]]: ...
    @overload
    def push(
        self,
        repository: str,
        tag: str | None = ...,
        *,
        stream: Literal[True],
        decode: Literal[False] = ...,
        auth_config: dict[str, str] | None = ...,
    ) -> Output[bytes]: ...
    def push(
        self,
        repository: str,
        tag: str | None = None,
        *,
        stream: bool = False,
        decode: bool = False,
        auth_config: dict[str, str] | None = None,
    ) -> Any:
        """Sends an image to its registry; what was said meanwhile, as JSON lines.

        ``stream``: as it comes, errors included; otherwise they are raised.
        """
        name, own_tag = _split(repository)
        headers = self._auth(name, auth_config)
        path = f"/images/{escape(name)}/push"
        answer = self._client.transport.stream(
            "POST", path, {"tag": tag or own_tag}, headers=headers or {"X-Registry-Auth": "e30="}
        )
        if stream:
            return streams.messages(answer) if decode else streams.lines(answer)
        return "".join(f"{dumps(message)}\r\n" for message in self._told(answer))

    def get_registry_data(
        self, name: str, auth_config: dict[str, str] | None = None
    ) -> RegistryData:
        """What its registry says of an image, without bringing it."""
        headers = self._auth(name, auth_config)
        path = f"/distribution/{escape(name)}/json"
        attrs = self._client.transport.call("GET", path, headers=headers)
        return RegistryData(self._client, name, attrs)

    def build(
        self,
        *,
        path: str | os.PathLike[str] | None = None,
        fileobj: BinaryIO | None = None,
        tag: str | None = None,
        quiet: bool = False,
        nocache: bool = False,
        rm: bool = True,
        forcerm: bool = False,
        pull: bool = False,
        custom_context: bool = False,
        dockerfile: str | None = None,
        buildargs: dict[str, str] | None = None,
        container_limits: dict[str, Any] | None = None,
        shmsize: int | None = None,
        labels: dict[str, str] | None = None,
        cache_from: builtins.list[str] | None = None,
        target: str | None = None,
        network_mode: str | None = None,
        squash: bool = False,
        extra_hosts: dict[str, str] | None = None,
        platform: str | None = None,
    ) -> tuple[Image, Output[dict[str, Any]]]:
        """Builds an image: the image, and what the build said (once it has ended).

        Of a folder (``path``) or the address of a git repository, of a Dockerfile alone
        (``fileobj``), or of a whole context as a tar (``fileobj`` with ``custom_context``; it may
        be compressed). Raises BuildFailure, whose ``build_log`` has what was said.
        """
        limits = container_limits or {}
        hosts = (
            [f"{host}:{address}" for host, address in extra_hosts.items()] if extra_hosts else None
        )
        query: dict[str, Any] = {
            "t": tag,
            "q": quiet,
            "nocache": nocache,
            "rm": "1" if rm else "0",
            "forcerm": forcerm,
            "pull": pull,
            "dockerfile": dockerfile,
            "buildargs": dumps(buildargs) if buildargs else None,
            "memory": limits.get("memory"),
            "memswap": limits.get("memswap"),
            "cpushares": limits.get("cpushares"),
            "cpusetcpus": limits.get("cpusetcpus"),
            "shmsize": shmsize,
            "labels": dumps(labels) if labels else None,
            "cachefrom": dumps(cache_from) if cache_from else None,
            "target": target,
            "networkmode": network_mode,
            "squash": squash,
            "extrahosts": hosts,
            "platform": platform,
        }
        answer = self._send_context(query, path, fileobj, custom_context)
        said: builtins.list[dict[str, Any]] = []
        image = ""
        with streams.messages(answer) as messages:
            for message in messages:
                said.append(message)
                if complaint := last_error(message):
                    code = (message.get("errorDetail") or {}).get("code") or 1
                    failure = BuildFailure(complaint, code)
                    failure.build_log = said
                    raise failure
                if match := _BUILT.match(message.get("stream", "").strip()):
                    image = match[1]
        if not image:
            raise BuildFailure("the build ended without an image")
        return self.get(image), Output(iter(said), lambda: None)

    def _send_context(
        self,
        query: dict[str, Any],
        path: str | os.PathLike[str] | None,
        fileobj: BinaryIO | None,
        custom_context: bool,
    ) -> Response:
        transport = self._client.transport
        if fileobj is not None:
            alone = None if custom_context else _only(fileobj.read())
            return transport.upload("POST", "/build", query, alone or fileobj)
        if path is None:
            raise TypeError("Either path or fileobj needs to be provided.")
        text = os.fspath(path)
        if re.match(r"(https?|git|ssh)://|git@|github\.com/", text):
            return transport.stream("POST", "/build", {**query, "remote": text})
        from tiffin.client.sources import folder_tar, ignored_names, source_header

        folder = os.path.realpath(text)
        if not os.path.isdir(folder):
            raise InvalidParameter(f"{text} is no folder to build from")
        name = query["dockerfile"] or "Dockerfile"
        if os.path.isabs(name):
            name = query["dockerfile"] = os.path.relpath(os.path.realpath(name), folder)
        if name.startswith("../"):
            raise InvalidParameter(f"the Dockerfile {name} lies outside of {folder}")
        if transport.reads_in_place:
            try:
                return transport.stream("POST", "/build", query, headers=source_header(folder))
            except Conflict:
                # It sees something else there: it gets the bytes.
                pass
        context = folder_tar(folder, ignored_names(folder, name))
        return transport.upload("POST", "/build", query, context)


def _only(dockerfile: bytes | str) -> bytes:
    """A context of a Dockerfile alone."""
    import io
    import tarfile

    data = dockerfile.encode() if isinstance(dockerfile, str) else dockerfile
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _split(name: str) -> tuple[str, str]:
    """A repository, and its tag or digest if it has one."""
    head, at, digest = name.partition("@")
    if at:
        return head, digest
    head, colon, tag = name.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (name, "")
