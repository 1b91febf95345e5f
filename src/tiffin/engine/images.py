"""The verbs on images: list, inspect, history, tags; removal and archives are modules of their own.

An image is a row with its configuration, byte for byte, and the chain ID of its top layer. Layers
are the layer store's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiffin.engine import filters as filtering
from tiffin.engine import platforms, timestamps
from tiffin.engine.blobs import BlobMemory
from tiffin.engine.events import Events
from tiffin.engine.root import Root
from tiffin.engine.spools import Spools
from tiffin.errors import InvalidParameter, NotFound
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.image.platforms import Platform
from tiffin.image.reference import Reference
from tiffin.layer.store import Layer, LayerStore
from tiffin.store.database import Database, Row

JSON = dict[str, Any]
Rows = list[JSON]
Layers = list[Layer]
Progress = Callable[[JSON], None]


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the store."""

    id: str
    config: ImageConfig
    top: str | None
    size: int
    """Bytes of its layers."""
    created: int
    tagged: int | None


Found = list[Image]


class Images:
    """The images of a root."""

    def __init__(
        self,
        database: Database,
        root: Root,
        layers: LayerStore,
        events: Events,
        spools: Spools,
    ) -> None:
        self._database = database
        self._root = root
        self._layers = layers
        self._events = events
        self._parsed: dict[str, ImageConfig] = {}
        # Here, since they know what an image is.
        from tiffin.engine.archives import Archives
        from tiffin.engine.image_removal import ImageRemoval

        self.removal = ImageRemoval(self, database, layers, events, spools)
        self.remove = self.removal.remove
        self.prune = self.removal.prune
        self.collect = self.removal.collect
        archives = Archives(self, root, layers, events)
        self.load = archives.load
        self.save = archives.save
        self.import_ = archives.import_

    # -- finding ----------------------------------------------------------------------------

    def _image(self, row: Row) -> Image:
        config = self._parsed.get(row["id"])
        if config is None:
            config = self._parsed[row["id"]] = ImageConfig.parse(bytes(row["config"]))
        return Image(row["id"], config, row["top"], row["size"], row["created"], row["tagged"])

    def by_id(self, image_id: str) -> Image | None:
        """The image of a full ID (``sha256:…``), or None."""
        row = self._database.one("SELECT * FROM images WHERE id = ?", (image_id,))
        return self._image(row) if row else None

    def unused(self) -> Found:
        """The images that no container is made of."""
        rows = self._database.all(
            "SELECT * FROM images WHERE id NOT IN (SELECT image FROM containers)"
        )
        return [self._image(row) for row in rows]

    def find(self, reference: str, platform: str = "") -> Image:
        """The image that a name, an ID or a prefix of an ID names, if it is for ``platform``
        (``os/architecture[/variant]``; empty: whatever it is for).

        Raises NotFound with Docker's sentence, InvalidParameter for a malformed reference.
        """
        image = self.named(reference)[0]
        if platform:
            platforms.match(image.config, Platform.parse(platform), reference)
        return image

    def named(self, reference: str) -> tuple[Image, str | None]:
        """As :meth:`find`: the image, and the tag that named it, if a tag did."""
        if not reference:
            raise InvalidParameter("no image named: give a name or an ID")
        bare = reference.removeprefix("sha256:")
        if len(bare) == 64 and is_hex(bare):
            image = self.by_id(f"sha256:{bare}")
            if image is not None:
                return image, None
            raise NotFound(f"No such image: {reference}")
        if reference.startswith("sha256:"):
            name = None
        else:
            name = Reference.parse(reference).with_default_tag()
            if name.digest is not None:
                # The digest says which one it is; a tag beside it is for people.
                name = name.without_tag()
            row = self._database.one(
                "SELECT images.* FROM tags JOIN images ON images.id = tags.image "
                "WHERE tags.name = ?",
                (name.canonical,),
            )
            if row is not None:
                return self._image(row), name.canonical
        if is_hex(bare):
            rows = self._database.all(
                "SELECT * FROM images WHERE id >= ? AND id < ? LIMIT 2",
                (f"sha256:{bare}", f"sha256:{bare}g"),
            )
            if len(rows) == 1:
                return self._image(rows[0]), None
            if rows:
                raise InvalidParameter(f"multiple IDs found with provided prefix: {reference}")
        raise NotFound(f"No such image: {name.familiar if name else reference}")

    def check_platform(self, image: Image) -> str:
        """Raise InvalidParameter where the image does not run here; else "", or a warning."""

        def has(path: bytes) -> bool:
            return self._layers.lookup(image.top, path, follow=True) is not None

        return platforms.check(image.config, image.id, has)

    def tags(self, image_id: str) -> list[str]:
        """The canonical names of an image, sorted."""
        rows = self._database.all(
            "SELECT name FROM tags WHERE image = ? ORDER BY name", (image_id,)
        )
        return [row["name"] for row in rows]

    def descendants(self, image: Image) -> set[str]:
        """The IDs of the image and of all images that rest on it."""
        if image.top is None:
            return {image.id}
        rows = self._database.all(
            "WITH RECURSIVE above(chain) AS (SELECT ? UNION SELECT chain_id FROM layers JOIN above "
            "ON layers.parent = above.chain) SELECT id FROM images JOIN above ON top = chain",
            (image.top,),
        )
        return {row["id"] for row in rows}

    # -- adding -----------------------------------------------------------------------------

    def add(self, config: ImageConfig, top: str | None, names: Iterable[Reference] = ()) -> Image:
        """Record an image whose layers are in the store, and give it names."""
        with self._database.transaction():
            known = self.by_id(config.id)
            if known is None:
                self._database.execute(
                    "INSERT INTO images VALUES (?, ?, ?, ?, ?, NULL)",
                    (
                        config.id,
                        config.to_bytes(),
                        top,
                        self._layers.size(top) if top else 0,
                        time.time_ns(),
                    ),
                )
            for name in names:
                self._name(config.id, name)
        image = self.by_id(config.id)
        assert image is not None
        return image

    def annotate(self, image_id: str, annotations: Mapping[str, str]) -> None:
        """What the image's manifests say when it is saved or pushed, by kind and name
        (``manifest:org.example.name``); replaces what was said before."""
        if annotations:
            self._database.execute(
                "INSERT OR REPLACE INTO annotations VALUES (?, ?)",
                (image_id, json.dumps(dict(annotations), sort_keys=True)),
            )
        else:
            self._database.execute("DELETE FROM annotations WHERE image = ?", (image_id,))

    def annotations(self, image_id: str, kind: str) -> dict[str, str]:
        """The annotations of one kind (``manifest``, ``manifest-descriptor``)."""
        row = self._database.one("SELECT given FROM annotations WHERE image = ?", (image_id,))
        given: dict[str, str] = json.loads(row["given"]) if row is not None else {}
        prefix = f"{kind}:"
        return {
            name.removeprefix(prefix): value
            for name, value in given.items()
            if name.startswith(prefix)
        }

    def drop(self, image_id: str) -> None:
        """Take an image's row away; its names must be gone."""
        self._database.execute("DELETE FROM images WHERE id = ?", (image_id,))
        self._parsed.pop(image_id, None)

    def _name(self, image_id: str, name: Reference) -> None:
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO tags VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET image = ?",
                (name.canonical, image_id, image_id),
            )
            self._database.execute(
                "UPDATE images SET tagged = ? WHERE id = ?", (time.time_ns(), image_id)
            )

    def tag(self, reference: str, repository: str, tag: str = "") -> None:
        """Give an image another name; a name that another image had moves."""
        image = self.find(reference)
        name = name_of(repository, tag)
        self._name(image.id, name)
        self._events.publish("image", "tag", image.id, name=name.familiar)

    # -- looking ----------------------------------------------------------------------------

    def list(
        self,
        all: bool = False,
        filters: filtering.Filters | None = None,
        shared_size: bool = False,
        manifests: bool = False,
    ) -> Rows:
        """The rows of ``images``, the newest first. ``all`` changes nothing: there are no
        intermediate images here, the build cache keeps layers without them."""
        del all
        filters = filters or {}
        filtering.check(filters, {"before", "since", "dangling", "label", "reference", "until"})
        dangling = filtering.boolean(filters, "dangling")
        bounds = {
            key: self.find(filters[key][0]).config.created_ns
            for key in ("before", "since")
            if filters.get(key)
        }
        until = timestamps.parse(filters["until"][0]) if filters.get("until") else None
        names: dict[str, list[str]] = {}
        for row in self._database.all("SELECT name, image FROM tags ORDER BY name"):
            names.setdefault(row["image"], []).append(row["name"])
        uses = {
            row["image"]: row["uses"]
            for row in self._database.all(
                "SELECT image, count(*) AS uses FROM containers GROUP BY image"
            )
        }
        shared = self.shared_sizes() if shared_size else {}
        rows = []
        for row in self._database.all("SELECT * FROM images"):
            image = self._image(row)
            tags = [Reference.parse(name) for name in names.get(image.id, [])]
            if filters.get("reference"):
                tags = [tag for tag in tags if _matches(tag, filters["reference"])]
                if not tags:
                    continue
            created = image.config.created_ns
            if (
                (dangling is not None and dangling == any(map(is_tag, names.get(image.id, ()))))
                or not filtering.labels(filters, image.config.labels)
                or ("before" in bounds and created >= bounds["before"])
                or ("since" in bounds and created <= bounds["since"])
                or (until is not None and created >= until)
            ):
                continue
            rows.append(
                {
                    **({"Manifests": self._manifests(image)} if manifests else {}),
                    "Id": image.id,
                    "ParentId": "",
                    "RepoTags": [tag.familiar for tag in tags if tag.digest is None],
                    "RepoDigests": [tag.familiar for tag in tags if tag.digest],
                    "Created": created // 10**9,
                    "Size": image.size,
                    "SharedSize": shared.get(image.id, -1),
                    "Labels": image.config.labels or None,
                    "Containers": uses.get(image.id, 0) if shared_size else -1,
                }
            )
        return sorted(rows, key=lambda view: (view["Created"], view["RepoTags"]), reverse=True)

    def shared_sizes(self) -> dict[str, int]:
        """For each image the bytes of those of its layers that other images rest on too."""
        users: dict[str, int] = {}
        stacks: dict[str, Layers] = {}
        for row in self._database.all("SELECT id, top FROM images"):
            stacks[row["id"]] = self._layers.chain(row["top"]) if row["top"] else []
            for layer in stacks[row["id"]]:
                users[layer.chain_id] = users.get(layer.chain_id, 0) + 1
        return {
            image: sum(layer.size for layer in stack if users[layer.chain_id] > 1)
            for image, stack in stacks.items()
        }

    def inspect(self, reference: str, *, manifests: bool = False) -> JSON:
        """Docker's whole view of an image."""
        image = self.find(reference)
        config = image.config
        tags = [Reference.parse(name) for name in self.tags(image.id)]
        view: JSON = {
            "Id": image.id,
            "RepoTags": [tag.familiar for tag in tags if tag.digest is None],
            "RepoDigests": [tag.familiar for tag in tags if tag.digest],
            "Parent": self._parent(image),
            "Comment": config.history[-1].comment if config.history else "",
            "Created": config.created or timestamps.ZERO,
            "DockerVersion": config.to_document().get("docker_version", ""),
            "Author": config.author,
            "Config": _config_view(config.config),
            "Architecture": config.architecture,
            "Os": config.os,
            "Size": image.size,
            "GraphDriver": {"Name": self._layers.driver_of(image.top).name, "Data": {}},
            "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
            "Metadata": {"LastTagTime": timestamps.rfc3339(image.tagged or 0)},
        }
        if config.variant:
            view["Variant"] = config.variant
        if manifests:
            view["Manifests"] = self._manifests(image)
        return view

    def _manifests(self, image: Image) -> Rows:
        """The manifests that an image was pulled or pushed as; layers are kept unpacked alone."""
        config = image.config
        users = self._database.all("SELECT id FROM containers WHERE image = ?", (image.id,))
        data = {
            "Platform": {
                "architecture": config.architecture,
                "os": config.os,
                **({"variant": config.variant} if config.variant else {}),
            },
            "Containers": [row["id"] for row in users],
            "Size": {"Unpacked": image.size},
        }
        found = []
        for manifest in BlobMemory(self._database).manifests(image.id):
            content = len(manifest.raw) + manifest.config.size
            found.append(
                {
                    "ID": manifest.digest,
                    "Descriptor": {
                        "mediaType": manifest.media_type,
                        "digest": manifest.digest,
                        "size": len(manifest.raw),
                    },
                    "Available": True,
                    "Size": {"Content": content, "Total": content + image.size},
                    "Kind": "image",
                    "ImageData": data,
                }
            )
        return found

    def _parent(self, image: Image) -> str:
        """The ID of the image that a commit made this one from, if it is there: it has all the
        layers but the last, and the same history up to there."""
        if image.top is None:
            return ""
        below = self._layers.get(image.top).parent
        steps = image.config.history
        for row in self._database.all("SELECT * FROM images WHERE top IS ?", (below,)):
            other = self._image(row)
            if other.config.history == steps[:-1]:
                return other.id
        return ""

    def history(self, reference: str) -> Rows:
        """What made the image, the newest step first."""
        image = self.find(reference)
        rows = []
        for step, chain in image.config.steps():
            rows.append(
                {
                    "Id": "<missing>",
                    "Created": _created_seconds(step),
                    "CreatedBy": step.created_by,
                    "Tags": None,
                    "Size": self._layers.get(chain).size if chain else 0,
                    "Comment": step.comment,
                }
            )
        rows.reverse()
        if rows:
            rows[0]["Id"] = image.id
            names = [Reference.parse(name).familiar for name in self.tags(image.id)]
            rows[0]["Tags"] = names or None
        return rows


def _created_seconds(step: HistoryEntry) -> int:
    return timestamps.parse(step.created) // 10**9 if step.created else 0


def is_tag(name: str) -> bool:
    """Whether a canonical name is a tag's; an image that only digests name is dangling."""
    return "@" not in name


def is_hex(text: str) -> bool:
    """Whether a text could be an ID or the beginning of one."""
    return bool(text) and all(digit in "0123456789abcdef" for digit in text)


def _matches(name: Reference, patterns: Sequence[str]) -> bool:
    from fnmatch import fnmatchcase

    return any(
        fnmatchcase(candidate, pattern)
        for pattern in patterns
        for candidate in (name.familiar, name.familiar_name)
    )


def _config_view(config: JSON) -> JSON:
    """The ``Config`` object of ``inspect``, with the members that clients expect to be there."""
    defaults: JSON = {
        "Hostname": "",
        "Domainname": "",
        "User": "",
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": None,
        "Cmd": None,
        "Image": "",
        "Volumes": None,
        "WorkingDir": "",
        "Entrypoint": None,
        "OnBuild": None,
        "Labels": None,
    }
    return {**defaults, **config}


def name_of(repository: str, tag: str = "") -> Reference:
    """The full name for a repository and a tag given apart; raises InvalidParameter."""
    name = Reference.parse(repository)
    if tag:
        name = name.with_tag(tag)
    return name.with_default_tag()
