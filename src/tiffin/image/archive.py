"""Image archives: what ``docker save`` writes and ``docker load`` reads.

An archive is a tar, itself plain or compressed, in one of these shapes:

- *docker-archive*: ``manifest.json`` lists the images: a config's member, names, and the layers'
  members (``<id>/layer.tar`` in old ones, where a repeated layer may be a symlink to the first);
- *OCI layout*: ``oci-layout``, ``index.json`` and ``blobs/<algorithm>/<hex>``;
- both at once, as Docker since 25 writes them, and as ``write_archive`` does;
- the form before Docker 1.10, ``repositories`` without ``manifest.json``: refused by name.

Rules: members are looked up by name and never extracted, so nothing in an archive can reach the
file system; whatever names a digest is checked against it; a layer that the store has is not read.
"""

from __future__ import annotations

from tiffin.image.archive_reader import LoadedImage, read_archive
from tiffin.image.archive_writer import SavedImage, SavedLayer, write_archive

__all__ = ["LoadedImage", "SavedImage", "SavedLayer", "read_archive", "write_archive"]
