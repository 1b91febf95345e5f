"""The removal of images: names, rows, and the layers that nothing rests on any more.

Rows go first; :meth:`ImageRemoval.collect` then frees layers by mark and sweep, from what images,
containers, mounts, the build cache and leases hold.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tiffin.engine import filters as filtering
from tiffin.engine import timestamps
from tiffin.engine.container import ACTIVE
from tiffin.engine.events import Events
from tiffin.engine.images import Image, Images, is_tag
from tiffin.engine.spools import Spools
from tiffin.errors import Conflict, NotFound
from tiffin.image.reference import Reference
from tiffin.layer.store import Layer, LayerStore
from tiffin.store.database import Database

JSON = dict[str, Any]
Rows = list[JSON]


class ImageRemoval:
    """Removes the images of a root."""

    def __init__(
        self,
        images: Images,
        database: Database,
        layers: LayerStore,
        events: Events,
        spools: Spools,
    ) -> None:
        self._images = images
        self._database = database
        self._layers = layers
        self._events = events
        self._spools = spools
        self._collecting = threading.Lock()
        self.mounted: Callable[[], set[str]] = set
        """The layers that containers have mounted beside their own."""

    def remove(
        self, reference: str, force: bool = False, noprune: bool = False, platform: str = ""
    ) -> Rows:
        """Remove a name, or the image with all its names: ``[{"Untagged"} | {"Deleted"}]``.

        ``noprune`` changes nothing: what an image was made from is an image of its own, or none.
        Raises Conflict where a container uses it, or where an ID has several names; NotFound where
        it is not for ``platform``, if that is not empty.
        """
        del noprune
        self._images.find(reference, platform)
        image, name = self._images.named(reference)
        tags = self._images.tags(image.id)
        done: Rows = []
        if name is not None:
            going = _with_digests(name, tags)
            if len(going) < len(tags):
                self._untag(image, going, done)
                return done
        users = self._database.all(
            "SELECT id, state FROM containers WHERE image = ? ORDER BY created", (image.id,)
        )
        running = [row for row in users if json.loads(row["state"])["status"] in ACTIVE]
        short = image.id.removeprefix("sha256:")[:12]
        shown = reference if name is not None else short
        if name is not None and users and not force:
            kind = "running container" if running else "container"
            raise Conflict(
                f'conflict: unable to remove repository reference "{shown}" (must force) - '
                f"{kind} {(running or users)[0]['id'][:12]} is using its referenced image {short}"
            )
        if name is None:
            repositories = {Reference.parse(tag).familiar_name for tag in tags}
            if len(repositories) > 1 and not force:
                raise Conflict(
                    f"conflict: unable to delete {short} (must be forced) - image is referenced in "
                    "multiple repositories"
                )
            if running:
                raise Conflict(
                    f"conflict: unable to delete {short} (cannot be forced) - image is being used "
                    f"by running container {running[0]['id'][:12]}"
                )
            if users and not force:
                raise Conflict(
                    f"conflict: unable to delete {short} (must be forced) - image is being used by "
                    f"stopped container {users[0]['id'][:12]}"
                )
        self._untag(image, tags, done)
        if running:
            # A container still rests on it: the name is gone, the image stays until it is.
            return done
        self._images.drop(image.id)
        done.append({"Deleted": image.id})
        self._events.publish("image", "delete", image.id, name=image.id)
        done.extend({"Deleted": layer.chain_id} for layer in self.collect())
        return done

    def _untag(self, image: Image, names: Sequence[str], done: Rows) -> None:
        for name in names:
            self._database.execute(
                "DELETE FROM tags WHERE name = ? AND image = ?", (name, image.id)
            )
            familiar = Reference.parse(name).familiar
            done.append({"Untagged": familiar})
            self._events.publish("image", "untag", image.id, name=image.id)

    def collect(self) -> list[Layer]:
        """Free the layers that no image, container, build cache record or lease needs.

        Gives back those that are gone, the topmost first.
        """
        with self._collecting:
            roots = {
                row["top"]
                for row in self._database.all(
                    "SELECT top FROM images UNION SELECT base FROM containers "
                    "UNION SELECT frozen FROM containers UNION SELECT top FROM build_cache"
                )
                if row["top"]
            }
            return self._layers.collect(roots | self.mounted())

    def prune(self, filters: filtering.Filters | None = None) -> JSON:
        """Remove images that nothing names (or, with ``dangling=false``, that nothing uses)."""
        filters = filters or {}
        filtering.check(filters, {"dangling", "until", "label", "label!"})
        only_dangling = filtering.boolean(filters, "dangling", True)
        until = timestamps.parse(filters["until"][0]) if filters.get("until") else None
        before = self._layers.total_size()
        deleted: Rows = []
        for image in self._images.unused():
            tags = self._images.tags(image.id)
            if (
                (only_dangling and any(map(is_tag, tags)))
                or (until is not None and image.config.created_ns > until)
                or not filtering.labels(filters, image.config.labels)
                or (
                    filters.get("label!")
                    and filtering.labels(filters, image.config.labels, "label!")
                )
            ):
                continue
            try:
                deleted.extend(self.remove(image.id, force=True))
            except (Conflict, NotFound):
                # It came into use, or went, meanwhile.
                continue
        space = max(0, before - self._layers.total_size())
        # Images that came in half go too.
        space += self._spools.sweep(0)
        self._events.publish("image", "prune", "", reclaimed=str(space))
        return {"ImagesDeleted": deleted, "SpaceReclaimed": space}


def _with_digests(name: str, names: Sequence[str]) -> list[str]:
    """A name that goes, and with the last tag of a repository its digests."""
    gone = Reference.parse(name)
    if gone.digest is not None:
        return [name]
    same = [one for one in names if Reference.parse(one).name == gone.name]
    if any(is_tag(one) for one in same if one != name):
        return [name]
    return [name, *(one for one in same if one != name)]
