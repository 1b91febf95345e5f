"""The verbs on registries: pull, push, log in, search, look.

Credentials are given with each call and kept nowhere. Where registries are is read from the root's
``registries.toml`` at each call (:mod:`tiffin.registry.endpoints`), so that it can be changed
while the engine runs. urllib3 is imported by the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from tiffin.engine import platforms
from tiffin.engine.blobs import BlobMemory
from tiffin.engine.endpoints import Endpoints
from tiffin.engine.events import Events
from tiffin.engine.images import Image, Images
from tiffin.engine.pulled import Pulled
from tiffin.engine.root import Root
from tiffin.engine.spools import Spools
from tiffin.errors import (
    Forbidden,
    InvalidParameter,
    NotFound,
    TiffinError,
    Unauthorized,
    Unsupported,
)
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import Index, Manifest, Platform
from tiffin.image.reference import Reference
from tiffin.layer.store import LayerStore
from tiffin.registry.credentials import Credentials, host_of, parse_config_header, parse_header
from tiffin.registry.endpoints import SYSTEM_FOLDERS, Configuration
from tiffin.store.database import Database

if TYPE_CHECKING:
    from tiffin.registry.client import Patience, Registry

JSON = dict[str, Any]
Progress = Callable[[JSON], None]
Cancelled = Callable[[], bool]

_SEARCH_LIMIT = 100


class Registries:
    """See the module's text."""

    def __init__(
        self,
        database: Database,
        root: Root,
        layers: LayerStore,
        images: Images,
        events: Events,
        spools: Spools,
    ) -> None:
        self._root = root
        self._layers = layers
        self._images = images
        self._events = events
        self._database = database
        self.memory = BlobMemory(database)
        self.memory.sweep()
        self.spools = spools
        self.patience: Patience | None = None
        """How patient to be with registries; None is the usual."""

    def configuration(self) -> Configuration:
        """What the root and the system say about registries; raises InvalidParameter."""
        return Configuration((self._root.path, *SYSTEM_FOLDERS))

    def described(self) -> tuple[JSON, list[str]]:
        """The configuration as ``info`` has it, and what is wrong with it."""
        warnings = []
        try:
            found = self.configuration()
        except InvalidParameter as error:
            found = Configuration(())
            warnings = [f"WARNING: {error.message}"]
        indexes = {"docker.io": (found.mirrors, "docker.io" not in found.insecure)}
        indexes |= {domain: ([], False) for domain in found.insecure if domain != "docker.io"}
        return {
            "InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"],
            "IndexConfigs": {
                domain: {
                    "Name": domain,
                    "Mirrors": mirrors,
                    "Secure": secure,
                    "Official": domain == "docker.io",
                }
                for domain, (mirrors, secure) in indexes.items()
            },
            "Mirrors": found.mirrors,
        }, warnings

    @contextmanager
    def _clients(
        self,
        domain: str,
        auth: Credentials | None,
        cancelled: Cancelled = lambda: False,
        *,
        mirrors: bool = False,
    ) -> Iterator[list[Registry]]:
        """Clients of all endpoints of a domain; the credentials are for the domain itself."""
        from tiffin.registry.client import Registry

        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    Registry(
                        endpoint,
                        None if endpoint.mirror else auth,
                        patience=self.patience,
                        cancelled=cancelled,
                    )
                )
                for endpoint in self.configuration().endpoints(domain, mirrors=mirrors)
            ]

    @contextmanager
    def client(
        self, domain: str, auth: Credentials | None, cancelled: Cancelled = lambda: False
    ) -> Iterator[Registry]:
        """A client of a registry itself, for the time of the block."""
        with self._clients(domain, auth, cancelled) as clients:
            yield clients[-1]

    @contextmanager
    def packed_layer(
        self, diff_id: str, credentials: Mapping[str, Credentials] | None = None
    ) -> Iterator[BinaryIO | None]:
        """A layer's packed bytes from a registry that it is known to be in; None for nowhere.

        ``credentials`` are by host.
        """
        for known in self.memory.forms(diff_id):
            for registry, repository in self.memory.places(known.descriptor.digest):
                with self._clients(registry, (credentials or {}).get(registry)) as clients:
                    for client in clients:
                        spool = self.spools.path(known.descriptor.digest)
                        try:
                            stream = client.blob(repository, known.descriptor, spool=spool)
                        except TiffinError:
                            continue
                        with stream:
                            yield cast(BinaryIO, stream)
                        return
        yield None

    # Pulling.

    def pull(
        self,
        name: str,
        *,
        platform: str = "",
        all_tags: bool = False,
        auth: Credentials | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = lambda: False,
    ) -> list[Pulled]:
        """Bring an image, or all that a repository has tags for.

        ``platform`` is ``os/architecture[/variant]``, by default this machine's. Messages are
        Docker's. Raises NotFound, Unauthorized, Unreachable, TooManyRequests, DigestMismatch,
        Unsupported; complete layers stay for the next attempt then.
        """
        reference = Reference.parse(name)
        wanted = Platform.parse(platform)
        say = progress or (lambda message: None)
        if all_tags and not reference.is_name_only:
            raise InvalidParameter("tag can't be used with --all-tags/-a")
        with self._clients(reference.domain, auth, cancelled, mirrors=True) as clients:
            endpoints = Endpoints(clients)
            if not all_tags:
                one = reference.with_default_tag()
                return [self._pull(one, wanted, bool(platform), endpoints, say)]
            tags = endpoints.lead(reference, lambda client: list(client.tags(reference.path)))
            done = []
            for tag in tags:
                one = reference.with_tag(tag)
                try:
                    done.append(self._pull(one, wanted, bool(platform), endpoints, say))
                except Unsupported as error:
                    # An artifact among the images.
                    say({"status": f"{one.familiar}: {error.message}"})
            return done

    def _pull(
        self,
        reference: Reference,
        wanted: Platform,
        strict: bool,
        endpoints: Endpoints,
        say: Progress,
    ) -> Pulled:
        from tiffin.engine.pulling import Pull

        repository = reference.path
        asked = reference.digest or reference.tag or ""
        top = endpoints.lead(reference, lambda client: client.manifest(repository, asked))
        say({"status": f"Pulling from {reference.path}", "id": asked})
        manifest = endpoints.image(top, wanted, repository)
        names = [reference.without_tag().with_digest(top.digest)]
        if reference.digest is None:
            names.append(reference)
        previous = self._named(names[-1])
        work = Pull(self._layers, self.spools, endpoints, repository, say)
        with self._layers.lease():
            config = work.config(manifest)
            if strict and top is manifest:
                platforms.match(config, wanted, reference.familiar)
            chain = work.run(manifest, config)
            image = self._record(config, chain, names, manifest, reference, endpoints)
        pulled = Pulled(image, reference, top.digest, previous, work.reports)
        say({"status": f"Digest: {top.digest}"})
        fresh = "Downloaded newer image for" if pulled.fresh else "Image is up to date for"
        say({"status": f"Status: {fresh} {reference.familiar}"})
        self._events.publish("image", "pull", reference.familiar, name=reference.familiar)
        return pulled

    def _record(
        self,
        config: ImageConfig,
        chain: str | None,
        names: list[Reference],
        manifest: Manifest,
        reference: Reference,
        endpoints: Endpoints,
    ) -> Image:
        with self._database.transaction():
            image = self._images.add(config, chain, names)
            # What a mirror has, the registry itself need not have.
            if not endpoints.clients[0].endpoint.mirror:
                for diff_id, descriptor in zip(config.diff_ids, manifest.layers, strict=True):
                    self.memory.remember(diff_id, descriptor, reference.domain, reference.path)
            self.memory.remember_manifest(image.id, manifest)
        return image

    def _named(self, name: Reference) -> Image | None:
        try:
            return self._images.find(name.canonical)
        except NotFound:
            return None

    # Pushing.

    def push(
        self,
        name: str,
        tag: str = "",
        *,
        auth: Credentials | None = None,
        compression: str = "",
        level: int | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = lambda: False,
    ) -> list[JSON]:
        """Push an image, or all images of a repository: ``[{"Tag", "Digest", "Size"}]``.

        ``compression`` is gzip, zstd or none; without it an image that was pulled goes out as it
        was where that can be. Raises NotFound before anything is sent, Unauthorized, Unreachable.
        """
        from tiffin.registry.packing import Compression

        reference = Reference.parse(name)
        if reference.digest is not None:
            raise InvalidParameter("cannot push a digest reference")
        if tag:
            reference = reference.with_tag(tag)
        packing = Compression(compression, level)
        say = progress or (lambda message: None)
        tags = [reference] if reference.tag else self._tags(reference)
        images = [(one, self._images.find(one.canonical)) for one in tags]
        say({"status": f"The push refers to repository [{reference.name}]"})
        done = []
        with self._clients(reference.domain, auth, cancelled) as clients:
            for one, image in images:
                done.append(self._push(clients[-1], one, image, packing, say))
        return done

    def _tags(self, reference: Reference) -> list[Reference]:
        prefix = f"{reference.name}:"
        rows = self._database.all(
            "SELECT name FROM tags WHERE substr(name, 1, ?) = ? ORDER BY name",
            (len(prefix), prefix),
        )
        if not rows:
            raise NotFound(
                "An image does not exist locally with the tag: " + reference.familiar_name
            )
        return [Reference.parse(row["name"]) for row in rows]

    def _push(
        self,
        client: Registry,
        reference: Reference,
        image: Image,
        compression: Any,
        say: Progress,
    ) -> JSON:
        from tiffin.engine.pushing import Push

        work = Push(
            self._layers,
            self.memory,
            client,
            reference.domain,
            reference.path,
            compression,
            say,
            self._images.annotations(image.id, "manifest"),
        )
        with self._layers.lease():
            stack = self._layers.chain(image.top)
            for layer in stack:
                self._layers.keep(layer.chain_id)
            tag = reference.tag or ""
            try:
                manifest = work.run(image.id, image.config, stack, tag)
            except (Unauthorized, Forbidden) as error:
                raise type(error)(
                    f"push access denied to {reference.familiar_name}: {error.message}"
                ) from error
        named = reference.without_tag().with_digest(manifest.digest)
        self._images.add(image.config, image.top, [named])
        size = len(manifest.raw)
        say({"status": f"{tag}: digest: {manifest.digest} size: {size}"})
        result = {"Tag": tag, "Digest": manifest.digest, "Size": size}
        say({"progressDetail": {}, "aux": result})
        self._events.publish("image", "push", reference.familiar, name=reference.familiar)
        return result

    # The rest.

    def login(self, server: str, credentials: Credentials) -> JSON:
        """Check credentials: ``{"Status", "IdentityToken"}``. Raises Unauthorized."""
        domain = host_of(server) if server else "docker.io"
        with self._clients(domain, credentials) as clients:
            token = clients[-1].login()
        return {"Status": "Login Succeeded", "IdentityToken": token}

    def distribution(self, name: str, auth: Credentials | None = None) -> JSON:
        """What a registry says of an image: its descriptor and platforms."""
        reference = Reference.parse(name).with_default_tag()
        asked = reference.digest or reference.tag or ""
        with self._clients(reference.domain, auth, mirrors=True) as clients:
            endpoints = Endpoints(clients)
            found = endpoints.lead(reference, lambda client: client.manifest(reference.path, asked))
            platforms = []
            if isinstance(found, Index):
                platforms = [entry.platform for entry in found.manifests if entry.platform]
            elif found.is_image:
                config = ImageConfig.parse(
                    endpoints.clients[0].read_blob(reference.path, found.config)
                )
                platforms = [Platform(config.os, config.architecture, config.variant)]
        return {
            "Descriptor": {
                "mediaType": found.media_type,
                "digest": found.digest,
                "size": len(found.raw),
            },
            "Platforms": [
                {
                    "architecture": platform.architecture,
                    "os": platform.os,
                    **({"variant": platform.variant} if platform.variant else {}),
                }
                for platform in platforms
            ],
        }

    def search(
        self,
        term: str,
        limit: int = 25,
        *,
        official: bool | None = None,
        stars: int = 0,
        auth: Credentials | None = None,
    ) -> list[JSON]:
        """Images whose name or description has the term, on Docker Hub or ``host/term``."""
        from tiffin.registry.searching import search

        if not term:
            raise InvalidParameter("no term to search for")
        if not 1 <= limit <= _SEARCH_LIMIT:
            raise InvalidParameter(f"limit {limit} is outside the range of [1, {_SEARCH_LIMIT}]")
        first, slash, rest = term.partition("/")
        named = slash and ("." in first or ":" in first or first == "localhost")
        domain, words = (first, rest) if named else ("docker.io", term)
        endpoint = self.configuration().endpoints(host_of(domain), mirrors=False)[-1]
        found = search(endpoint, words, limit, auth, self.patience)
        return [
            row
            for row in found
            if (official is None or row["is_official"] == official) and row["star_count"] >= stars
        ][:limit]


def credentials_of(header: str | None) -> Credentials | None:
    """The credentials of an ``X-Registry-Auth`` header; raises InvalidParameter."""
    return parse_header(header)


def credentials_by_host(header: str) -> dict[str, Credentials]:
    """The credentials of an ``X-Registry-Config`` header, by host; raises InvalidParameter."""
    return parse_config_header(header)


def credentials_in(document: JSON) -> Credentials:
    """The credentials of the API's AuthConfig; raises InvalidParameter."""
    return Credentials.of_document(document)
