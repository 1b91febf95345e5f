"""What a build says while it runs: Docker's classic messages, as the docker CLI prints them.

Each message is one JSON object: ``{"stream": "Step 1/4 : FROM scratch\\n"}``, ``{"aux": {"ID":
…}}``. Where a client asks for them there are *events* instead of the lines of stages, ``{"build":
{"stage": 0, "step": 3, "total": 9, "state": "cached", …}}``, of which everything can be drawn.

Stages that run side by side would mix up their lines, so one of them has the *floor* and speaks at
once, and what the others say is kept until it is their turn, in the file's order. Events are not
kept back.
"""

from __future__ import annotations

import codecs
import threading
from collections.abc import Callable, Iterable
from typing import Any

Messages = Callable[[dict[str, Any]], None]


def short(image_id: str) -> str:
    """The twelve digits that an id is shown by."""
    return image_id.removeprefix("sha256:")[:12]


class Progress:
    """Tells one build's story; a quiet one tells the image's id alone."""

    def __init__(
        self, send: Messages, *, quiet: bool, events: bool = False, colour: bool = False
    ) -> None:
        self._send = send
        self._quiet = quiet
        self._events = events
        self.colour = colour
        self._lock = threading.Lock()
        self._waiting: list[StageProgress] = []

    def line(self, text: str) -> None:
        """One line of any kind, of the build as a whole."""
        self.message({"stream": f"{text}\n"})

    def message(self, message: dict[str, Any]) -> None:
        """A message of the build as a whole."""
        if not self._quiet:
            with self._lock:
                self._send(message)

    def event(self, **members: Any) -> None:
        """An event, if anybody asked for them."""
        if self._events:
            with self._lock:
                self._send({"build": members})

    def stage(self, index: int, total: int, first: int) -> StageProgress:
        """What a stage tells its story with; ``first`` is the number of its first step."""
        stage = StageProgress(self, index, total, first)
        self._waiting.append(stage)
        return stage

    def said(self, stage: StageProgress, text: str) -> None:
        """A stage's text: sent, or kept until the stage has the floor."""
        if self._quiet or self._events:
            return  # the events say it all
        with self._lock:
            if self._waiting and self._waiting[0] is stage:
                self._send({"stream": text})
            else:
                stage.kept.append(text)

    def ended(self, stage: StageProgress) -> None:
        """A stage is done: the floor goes on to the next that is not."""
        with self._lock:
            stage.is_done = True
            while self._waiting and self._waiting[0].is_done:
                self._waiting.pop(0)
                if self._waiting:
                    for text in self._waiting[0].kept:
                        self._send({"stream": text})
                    self._waiting[0].kept.clear()

    def built(self, image_id: str, names: Iterable[str]) -> None:
        """The end of it all."""
        if self._quiet:
            self._send({"stream": f"{image_id}\n"})
            return
        self._send({"aux": {"ID": image_id}})
        self.line(f"Successfully built {short(image_id)}")
        for name in names:
            self.line(f"Successfully tagged {name}")


class StageProgress:
    """The story of one stage."""

    def __init__(self, build: Progress, index: int, total: int, first: int) -> None:
        self._build = build
        self._index = index
        self._total = total
        self._number = first - 1
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = (decoder("replace"), decoder("replace"))
        self.kept: list[str] = []
        self.is_done = False

    def _event(self, state: str, **members: Any) -> None:
        self._build.event(
            stage=self._index, step=self._number, total=self._total, state=state, **members
        )

    def line(self, text: str) -> None:
        """One line of any kind."""
        self._build.said(self, f"{text}\n")

    def step(self, text: str) -> None:
        """The next step begins."""
        self._number += 1
        self._event("started", text=text)
        self.line(f"Step {self._number}/{self._total} : {text}")

    def trigger(self, text: str) -> None:
        """A step of the base image's begins, which has no number."""
        self._event("started", text=text)

    def done(self, image_id: str, *, told: bool = True) -> None:
        """A step's end: the id that an image would have now; ``told``: it has a line."""
        self._event("done", id=image_id)
        if told:
            self.line(f" ---> {short(image_id)}" if image_id else " ---> ")

    def using_cache(self) -> None:
        self._event("cached")
        self.line(" ---> Using cache")

    def missed(self, why: str) -> None:
        """Why a step did not come from the cache."""
        self._event("missed", why=why)
        self.line(f" ---> Not cached: {why}")

    def running(self, container_id: str) -> None:
        self._event("running", container=container_id)
        self.line(f" ---> Running in {container_id[:12]}")

    def removed(self, container_id: str) -> None:
        for is_stderr in (False, True):
            self.output(b"", is_stderr, final=True)
        self.line(f" ---> Removed intermediate container {container_id[:12]}")

    def output(self, data: bytes, is_stderr: bool, *, final: bool = False) -> None:
        """What a RUN prints, as it comes; stderr in red, as Docker's builder sends it."""
        text = self._decoders[is_stderr].decode(data, final)
        if text:
            self._event("output", text=text)
            self._build.said(
                self, f"\x1b[91m{text}\x1b[0m" if is_stderr and self._build.colour else text
            )

    def end(self) -> None:
        """The stage is done."""
        self._build.ended(self)
