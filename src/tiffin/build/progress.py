"""What a build says while it runs: Docker's classic messages, as the docker CLI prints them.

Each message is one JSON object: ``{"stream": "Step 1/4 : FROM scratch\\n"}``, ``{"aux": {"ID":
…}}``.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from typing import Any

Messages = Callable[[dict[str, Any]], None]


def short(image_id: str) -> str:
    """The twelve digits that an id is shown by."""
    return image_id.removeprefix("sha256:")[:12]


class Progress:
    """Tells one build's story; a quiet one tells the image's id alone."""

    def __init__(self, send: Messages, *, quiet: bool) -> None:
        self._send = send
        self._quiet = quiet
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def line(self, text: str) -> None:
        """One line of any kind."""
        if not self._quiet:
            self._send({"stream": f"{text}\n"})

    def step(self, number: int, total: int, text: str) -> None:
        self.line(f"Step {number}/{total} : {text}")

    def done(self, image_id: str) -> None:
        """A step's end: the id that an image would have now."""
        self.line(f" ---> {short(image_id)}" if image_id else " ---> ")

    def using_cache(self) -> None:
        self.line(" ---> Using cache")

    def missed(self, why: str) -> None:
        """Why a step did not come from the cache."""
        self.line(f" ---> Not cached: {why}")

    def running(self, container_id: str) -> None:
        self.line(f" ---> Running in {container_id[:12]}")

    def removed(self, container_id: str) -> None:
        self.output(b"", final=True)
        self.line(f" ---> Removed intermediate container {container_id[:12]}")

    def output(self, data: bytes, *, final: bool = False) -> None:
        """What a RUN prints, as it comes."""
        text = self._decoder.decode(data, final)
        if text and not self._quiet:
            self._send({"stream": text})

    def built(self, image_id: str, names: Iterable[str]) -> None:
        """The end of it all."""
        if self._quiet:
            self._send({"stream": f"{image_id}\n"})
            return
        self._send({"aux": {"ID": image_id}})
        self.line(f"Successfully built {short(image_id)}")
        for name in names:
            self.line(f"Successfully tagged {name}")
