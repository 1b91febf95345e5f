"""Whether an image's programs run here: it is for this machine, or the kernel has an interpreter.

Images for other machines are kept, copied and pushed like others. Running one is refused before
anything is made, with what is missing; where binfmt_misc has a handler for it, it runs, with
Docker's warning.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tiffin.errors import InvalidParameter, NotFound
from tiffin.image.config import ImageConfig
from tiffin.image.platforms import Platform
from tiffin.linux import binfmt

_ALSO = {"amd64": ("386",)}
"""What the kernel of a machine runs too."""


def check(config: ImageConfig, name: str, has: Callable[[bytes], bool]) -> str:
    """Raise InvalidParameter where the image ``name`` can't run here; else "", or a warning.

    ``has`` says whether a path is a file of the image.
    """
    if config.os and config.os != "linux":
        raise InvalidParameter(f"image {name} is for {config.os}, this machine runs linux")
    here = Platform.of_host().architecture
    wanted = config.architecture
    if not wanted or wanted == here or wanted in _ALSO.get(here, ()):
        return ""
    refusal = f"image {name} is for {config.platform}, this machine is linux/{here}"
    handler = binfmt.handler_of(wanted)
    if handler is None:
        raise InvalidParameter(
            f"{refusal}: build or load it for this platform, or have the kernel run programs for"
            f" {wanted} (binfmt_misc has no handler for them; Debian's package qemu-user-static"
            " brings one)"
        )
    if not handler.fixed and not has(os.fsencode(handler.interpreter.lstrip("/"))):
        raise InvalidParameter(
            f"{refusal}: the handler {handler.name} of binfmt_misc is registered without the flag"
            f" F, and the image has no {handler.interpreter}"
        )
    return (
        f"The requested image's platform ({config.platform}) does not match the detected host"
        f" platform (linux/{here}) and no specific platform was requested"
    )


def match(config: ImageConfig, wanted: Platform, name: str) -> None:
    """Raise NotFound, in Docker's words, where the image ``name`` is not for a platform."""
    actual = Platform(config.os, config.architecture, config.variant)
    if not wanted.runs(actual):
        raise NotFound(
            f"image with reference {name} was found but does not match the specified platform:"
            f" wanted {wanted}, actual: {actual}"
        )
