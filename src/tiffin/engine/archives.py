"""Images in and out of archives: ``load``, ``save`` and ``import``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from tiffin.engine.events import Events
from tiffin.engine.images import Image, Images, is_hex, name_of
from tiffin.engine.root import Root
from tiffin.errors import Unsupported
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.image.moment import format_moment
from tiffin.image.platforms import Platform
from tiffin.image.reference import Reference
from tiffin.layer.compression import decompressed
from tiffin.layer.store import Layer, LayerStore

if TYPE_CHECKING:
    from tiffin.image.archive import SavedLayer

JSON = dict[str, Any]
Progress = Callable[[JSON], None]


class Archives:
    """Reads and writes archives of a root's images."""

    def __init__(self, images: Images, root: Root, layers: LayerStore, events: Events) -> None:
        self._images = images
        self._root = root
        self._layers = layers
        self._events = events

    @contextmanager
    def _opened(self, source: BinaryIO | str | os.PathLike[str]) -> Iterator[BinaryIO]:
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb", buffering=0) as file:
                yield file
        else:
            yield source

    @contextmanager
    def _collected_on_failure(self) -> Iterator[None]:
        """Free the layers that an attempt has brought in before it failed."""
        try:
            yield
        except BaseException:
            self._images.collect()
            raise

    def load(
        self,
        source: BinaryIO | str | os.PathLike[str],
        progress: Progress | None = None,
        platform: str = "",
    ) -> list[Image]:
        """Take in the images of a ``docker save`` archive or an OCI layout; only those for
        ``platform``, if it is not empty.

        Raises CorruptArchive, DigestMismatch, and InvalidParameter where it has none for the
        platform; then nothing of the archive stays.
        """
        # Loaded when somebody loads or saves, as the start of the daemon is waited for.
        from tiffin.image.archive import read_archive

        say = progress or (lambda message: None)
        loaded = []
        with self._collected_on_failure(), self._layers.lease(), self._opened(source) as file:
            for one in read_archive(
                file,
                self._ingest,
                known=self._layers.known,
                spool=self._root.work,
                platform=Platform.parse(platform) if platform else None,
            ):
                names = [Reference.parse(name) for name in one.names]
                image = self._images.add(one.config, one.top, names)
                loaded.append(image)
                for name in names:
                    say({"stream": f"Loaded image: {name.familiar}\n"})
                if not names:
                    say({"stream": f"Loaded image ID: {image.id}\n"})
                self._events.publish("image", "load", image.id, name=image.id)
        return loaded

    def _ingest(self, stream: BinaryIO, parent: str | None, diff_id: str | None) -> Layer:
        return self._layers.ingest(stream, parent, diff_id=diff_id)

    def save(self, references: Sequence[str], output: BinaryIO) -> None:
        """Write images with their names as one archive: OCI layout and ``docker save`` in one.

        Raises NotFound before the first byte is written.
        """
        from tiffin.image.archive import SavedImage, write_archive

        found: dict[str, tuple[Image, list[Reference]]] = {}
        with self._layers.lease():
            for reference in references:
                image, name = self._images.named(reference)
                _, names = found.setdefault(image.id, (image, []))
                if name is not None:
                    names.append(Reference.parse(name))
                elif ":" not in reference and not is_hex(reference):
                    names += [Reference.parse(tag) for tag in self._images.tags(image.id)]
            write_archive(
                output,
                [
                    SavedImage(
                        image.config,
                        [name.familiar for name in names],
                        [self._saved(layer) for layer in self._stack(image)],
                        self._images.annotations(image.id, "manifest"),
                        self._images.annotations(image.id, "manifest-descriptor"),
                    )
                    for image, names in found.values()
                ],
            )
        for image_id in found:
            self._events.publish("image", "save", image_id, name=image_id)

    def _stack(self, image: Image) -> list[Layer]:
        return self._layers.chain(image.top) if image.top else []

    def _saved(self, layer: Layer) -> SavedLayer:
        from tiffin.image.archive import SavedLayer

        return SavedLayer(
            layer.diff_id,
            layer.tar_size,
            lambda output: self._layers.write_tar(layer, output),
        )

    def import_(
        self,
        source: BinaryIO | str | os.PathLike[str],
        repository: str = "",
        tag: str = "",
        message: str = "",
        changes: Sequence[str] = (),
        platform: str = "",
        progress: Progress | None = None,
        created: int | None = None,
    ) -> str:
        """Make an image of one layer out of a tar of a root file system; its ID.

        ``created`` (seconds since the epoch) makes the ID depend on the tar alone.
        """
        from tiffin.build.changes import apply_changes

        name = name_of(repository, tag) if repository else None
        made_for = Platform.parse(platform)
        if made_for.os != "linux":
            raise Unsupported(f"images for {made_for.os} can't be imported: linux")
        config = ImageConfig.scratch(architecture=made_for.architecture, variant=made_for.variant)
        config = apply_changes(config, changes)
        with self._collected_on_failure(), self._layers.lease(), self._opened(source) as file:
            layer = self._layers.ingest(decompressed(file), None)
            now = format_moment(time.time_ns() if created is None else created * 10**9)
            config = config.with_created(now).with_layer(
                layer.diff_id,
                HistoryEntry(created=now, comment=message or "Imported from -"),
            )
            image = self._images.add(config, layer.chain_id, [name] if name else [])
        if progress:
            progress({"status": image.id})
        if name:
            self._events.publish("image", "tag", image.id, name=name.familiar)
        self._events.publish("image", "import", image.id, name=image.id)
        return image.id
