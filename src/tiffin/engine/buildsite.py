"""What one build needs of the engine: images with the client's credentials, contexts and caches
from elsewhere, and a place to run commands (:class:`tiffin.build.backend.Backend`).

What is opened for the build (connections to registries, layouts) is closed with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiffin.build import remotecontext
from tiffin.build.backend import CacheSource, Cancelled, Output, RunResult, RunStep
from tiffin.build.cachespec import CacheSpec
from tiffin.build.context import BuildContext, from_folder
from tiffin.build.options import BuildOptions
from tiffin.build.turns import Turns
from tiffin.engine.images import Image
from tiffin.errors import InvalidParameter, NotFound, TiffinError
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import Descriptor, Index, Manifest, parse_manifest
from tiffin.image.reference import Reference
from tiffin.layer.store import LayerStore
from tiffin.registry.packing import Compression
from tiffin.registry.places import LayoutPlace, Place, RegistryPlace
from tiffin.store.database import Database

if TYPE_CHECKING:
    from tiffin.engine.builds import Builds

JSON = dict[str, Any]
LAYOUT = "oci-layout://"


class BuildSite:
    """See the module's text. A context manager."""

    def __init__(
        self,
        builds: Builds,
        options: BuildOptions,
        say: Callable[[JSON], None],
        cancelled: Cancelled,
    ) -> None:
        self._builds = builds
        self._options = options
        self._send = say
        self._cancelled = cancelled
        self._open = ExitStack()

    def __enter__(self) -> BuildSite:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _say(self, line: str) -> None:
        if not self._options.quiet:
            self._send({"stream": f"{line}\n"})

    @property
    def database(self) -> Database:
        """Where the build cache is."""
        return self._builds.database

    @property
    def layers(self) -> LayerStore:
        """The layer store."""
        return self._builds.layers

    @property
    def turns(self) -> Turns:
        """What lets builds at the same time make a step once."""
        return self._builds.turns

    @property
    def work(self) -> Path:
        """Where temporary files go."""
        return self._builds.work

    # -- what a build starts from

    def context(self, where: str) -> BuildContext:
        """What a named context is."""
        if remotecontext.is_remote(where):
            agent = self._options.ssh.get("default", "")
            return remotecontext.opened(where, self.work, content=b"FROM scratch", agent=agent)
        return from_folder(Path(where), self._builds.digests, content=b"FROM scratch")

    def known(self, reference: str) -> ImageConfig | None:
        """The configuration of an image that is here."""
        try:
            return self._builds.images.find(reference).config
        except (NotFound, InvalidParameter):
            return None

    def image(self, reference: str, platform: str, *, pull: bool = False) -> ImageConfig:
        """The configuration of a base image, which is pulled if it is not here, or if asked."""
        if reference.startswith(LAYOUT):
            return self._of_layout(reference)
        images = self._builds.images
        try:
            image = images.find(reference)
        except NotFound:
            image = self._pull(reference, platform)
        else:
            # What is named by its ID can't be had from anywhere else.
            if pull and not image.id.removeprefix("sha256:").startswith(
                reference.removeprefix("sha256:")
            ):
                image = self._pull(reference, platform)
        if platform:
            images.check_platform(image)
        if image.top:
            self.layers.keep(image.top)
        return image.config

    def _pull(self, reference: str, platform: str) -> Image:
        try:
            return (
                self._builds.registries.pull(
                    reference,
                    platform=platform,
                    auth=self._credentials(reference),
                    cancelled=self._cancelled,
                )[0]
            ).image
        except TiffinError as error:
            raise type(error)(
                f"No such image: {reference}: {error.message}; an image can also come from load, "
                "import or image pack"
            ) from error

    def _credentials(self, reference: str) -> Any:
        return self._options.credentials.get(Reference.parse(reference).domain)

    def _of_layout(self, text: str) -> ImageConfig:
        """An image of an OCI layout: ``oci-layout:///folder[:tag][@digest]``."""
        rest = text.removeprefix(LAYOUT)
        rest, _, digest = rest.partition("@")
        folder, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            folder, tag = rest, ""
        if not (Path(folder) / "index.json").exists():
            raise NotFound(f"{folder} is no OCI layout: it has no index.json")
        place = LayoutPlace(Path(folder))
        raw, media_type = place.manifest(digest or tag)
        found = parse_manifest(raw, media_type or None)
        while isinstance(found, Index):
            entries = found.best_first()
            if not entries:
                raise NotFound(f"{text} has no image for this machine")
            raw, media_type = place.manifest(entries[0].digest)
            found = parse_manifest(raw, media_type or None)
        return self._bring(place, found)

    def _bring(self, place: Place, manifest: Manifest) -> ImageConfig:
        with place.open(manifest.config) as stream:
            config = ImageConfig.parse(stream.read())
        chain: str | None = None
        for diff_id, blob in zip(config.diff_ids, manifest.layers, strict=True):
            layer = self.layers.known(chain, diff_id)
            if layer is None:
                with place.open(blob) as stream:
                    layer = self.layers.ingest(stream, chain, diff_id=diff_id)
            chain = layer.chain_id
        return config

    # -- doing it

    def run_step(self, step: RunStep, output: Output, cancelled: Cancelled) -> RunResult:
        """Run a RUN."""
        return self._builds.steps.run(step, output, cancelled)

    def save_image(self, config: ImageConfig, top: str | None, tags: list[str]) -> str:
        """Record what was built."""
        names = [Reference.parse(tag).with_default_tag() for tag in tags]
        images = self._builds.images
        with self.database.transaction():
            image = images.add(config, top, names)
            images.annotate(image.id, self._options.annotations)
        return image.id

    # -- caches elsewhere

    def cache_sources(self) -> list[CacheSource]:
        """The caches that ``--cache-from`` names, as far as they are there."""
        from tiffin.engine import remotecache

        found: list[CacheSource] = []
        for text in self._options.cache_from:
            spec = CacheSpec.source(text)
            source: CacheSource | None = None
            if "=" not in text:
                source = self._inline_here(spec.where)
            if source is None:
                name = spec.where
                try:
                    place, reference = self._place(spec)
                except TiffinError as error:
                    self._say(f"[Warning] no cache from {name}: {error.message}")
                    continue
                source = remotecache.read(place, reference, name, self._say)
            if source is not None:
                found.append(source)
        return found

    def _inline_here(self, name: str) -> CacheSource | None:
        """The cache inside of an image of the store: as Docker's first builder has images."""
        from tiffin.engine import remotecache

        try:
            return remotecache.of_image(self._builds.images.find(name).config, name, self._say)
        except TiffinError:
            return None  # it is asked for at its registry

    def _place(self, spec: CacheSpec) -> tuple[Place, str]:
        if spec.kind == "local":
            return LayoutPlace(Path(spec.where)), spec.tag or "latest"
        reference = Reference.parse(spec.where).with_default_tag()
        client = self._open.enter_context(
            self._builds.registries.client(
                reference.domain, self._credentials(spec.where), self._cancelled
            )
        )
        return RegistryPlace(client, reference.path), reference.digest or reference.tag or ""

    def inline_cache(self, config: ImageConfig, keys: list[str]) -> ImageConfig:
        """The configuration with its cache inside, if that was asked for."""
        if not any(CacheSpec.target(text).kind == "inline" for text in self._options.cache_to):
            return config
        from tiffin.engine import remotecache

        return remotecache.with_inline(config, remotecache.describe(keys, self._builds.known))

    def export_cache(self, keys: list[str], final: list[str], bases: set[str]) -> None:
        """Write the caches that ``--cache-to`` names."""
        from tiffin.engine import remotecache

        for text in self._options.cache_to:
            spec = CacheSpec.target(text)
            if spec.kind == "inline":
                continue
            self._say(f"Exporting the cache to {spec.where}")
            try:
                place, reference = self._place(spec)
                remotecache.write(
                    place,
                    reference,
                    remotecache.describe(keys if spec.complete else final, self._builds.known),
                    self.layers,
                    without=bases,
                    compression=Compression(spec.compression, spec.level),
                    known=self._forms,
                    work=self.work,
                )
                if isinstance(place, LayoutPlace):
                    place.sweep()
            except TiffinError as error:
                if not spec.ignore_error:
                    raise type(error)(
                        f"the cache can't be written to {spec.where}: {error.message}"
                    ) from error
                self._say(f"[Warning] no cache written to {spec.where}: {error.message}")

    def _forms(self, diff_id: str) -> list[Descriptor]:
        return [each.descriptor for each in self._builds.registries.memory.forms(diff_id)]
