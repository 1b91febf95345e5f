"""Where a build's result goes besides the image store: ``--output`` and ``--metadata-file``.

An image that is only exported is removed from the store again, unless something else names it; its
steps stay in the cache.
"""

from __future__ import annotations

import os
import sys

from tiffin.cli.build_query import fields
from tiffin.cli.command import CommandError, Invocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from tiffin.client.connection import Response

_TYPES = ("local", "tar", "oci", "docker", "image", "registry")
_COMPRESSIONS = {"": "", "gzip": "gzip", "zstd": "zstd", "uncompressed": "none"}


class Output:
    """One ``--output``."""

    def __init__(self, text: str) -> None:
        """Raises CommandError."""
        if text == "-":
            members = {"type": "tar", "dest": "-"}
        elif "=" not in text:
            members = {"type": "local", "dest": text}
        else:
            members = fields(text, "--output")
        self.kind = members.pop("type", "")
        self.destination = members.pop("dest", members.pop("destination", ""))
        self.name = members.pop("name", "")
        self.pushed = members.pop("push", "") in ("true", "1") or self.kind == "registry"
        self.digest = ""
        """What the image was pushed as."""
        if self.kind not in _TYPES:
            raise CommandError(
                f"--output type={self.kind} is not supported yet: one of {', '.join(_TYPES)}"
            )
        self._compression = ""
        self._level = ""
        if self.kind in ("image", "registry"):
            given = members.pop("compression", "")
            if given not in _COMPRESSIONS:
                raise CommandError(f"--output compression={given}: gzip, zstd or uncompressed")
            self._compression = _COMPRESSIONS[given]
            self._level = members.pop("compression-level", "")
            members.pop("force-compression", "")
        if self.pushed and self.kind not in ("image", "registry"):
            raise CommandError(f"--output type={self.kind} can't be pushed: type=image can")
        if members:
            raise CommandError(f"--output {sorted(members)[0]}= is not supported yet")
        if self.kind == "local" and self.destination in ("", "-"):
            raise CommandError("output destination required for type=local: dest=FOLDER")

    @property
    def tags(self) -> list[str]:
        """The names that the image gets beside those of ``--tag``."""
        if self.kind not in ("image", "registry") or not self.name:
            return []
        return self.name.split(",")

    @property
    def stays(self) -> bool:
        """Whether the image stays in the store."""
        return self.kind in ("image", "registry") or (
            self.kind == "docker" and not self.destination
        )

    @property
    def to_stdout(self) -> bool:
        """Whether it is written to stdout, where nothing else may be then."""
        return not self.stays and self.destination in ("", "-")

    def write(self, call: Invocation, image: str, *, quiet: bool) -> None:
        """Export the image."""
        if self.pushed:
            for name in self.tags or call.options["tag"]:
                self._push(call, name, quiet)
        if self.stays:
            return
        if self.kind == "local":
            response = call.client.call("GET", "/build/rootfs", {"image": image})
            _unpack(response, self.destination)
            return
        if self.kind == "tar":
            response = call.client.call("GET", "/build/rootfs", {"image": image})
        else:
            names = [self.name] if self.name else call.options["tag"] or [image]
            response = call.client.call("GET", "/images/get", {"names": names})
        if self.to_stdout:
            _copy(response, sys.stdout.buffer)
            return
        temporary = f"{self.destination}.{os.getpid():x}"
        try:
            with open(temporary, "wb") as file:
                _copy(response, file)
            os.replace(temporary, self.destination)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def _push(self, call: Invocation, text: str, quiet: bool) -> None:
        from io import StringIO

        from tiffin.cli.progress import show_messages
        from tiffin.cli.registries import auth_headers
        from tiffin.client.connection import escape
        from tiffin.image.reference import Reference

        def pushed(message: Any) -> None:
            self.digest = message.get("Digest", self.digest)

        reference = Reference.parse(text).with_default_tag()
        query = {
            "tag": reference.tag,
            "compression": self._compression or None,
            "compression-level": self._level or None,
        }
        response = call.client.call(
            "POST",
            f"/images/{escape(reference.name_only().familiar)}/push",
            query,
            headers=auth_headers(reference.domain),
        )
        show_messages(response, StringIO() if quiet else sys.stdout, aux=pushed)


def _copy(response: Response, target: BinaryIO) -> None:
    for part in response.parts():
        target.write(part)
    target.flush()


def _unpack(response: Response, folder: str) -> None:
    """Files as the one who builds owns them, as BuildKit's local exporter writes them."""
    import tarfile

    from tiffin.client.sources import readable

    os.makedirs(folder, exist_ok=True)
    with tarfile.open(fileobj=readable(response.parts()), mode="r|") as tar:
        # The tar is of a merged tree: nothing in it lies behind a symlink of its own.
        tar.extraction_filter = lambda member, path: member
        for entry in tar:
            entry.uid, entry.gid = os.geteuid(), os.getegid()
            entry.uname = entry.gname = ""
            if entry.isdev():
                continue
            place = os.path.join(folder, entry.name)
            if os.path.lexists(place) and (os.path.islink(place) or not os.path.isdir(place)):
                os.unlink(place)
            tar.extract(entry, folder, set_attrs=True, numeric_owner=True)


def discard(call: Invocation, image: str) -> None:
    """Remove an image that was made only to be exported."""
    inspected = call.client.call("GET", f"/images/{image}/json").json()
    if not inspected.get("RepoTags") and not inspected.get("RepoDigests"):
        call.client.call("DELETE", f"/images/{image}", {"noprune": "1"}).read()


def write_metadata(call: Invocation, path: str, image: str, digest: str) -> None:
    """A JSON file that says what was built, with the names that buildx uses."""
    from json import dump

    names: list[str] = call.options["tag"]
    metadata: dict[str, Any] = {
        "containerimage.config.digest": image,
        "containerimage.digest": digest or image,
    }
    if names:
        metadata["image.name"] = ",".join(names)
    with open(path, "w", encoding="utf-8") as file:
        dump(metadata, file, indent=2)
        file.write("\n")
