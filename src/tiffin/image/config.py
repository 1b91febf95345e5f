"""The config of an image: an immutable view of one JSON document, and pure changes of it.

Words: the *config* is the JSON document whose sha256 is the image's *id*. It names the layers by
their *diff IDs* (sha256 of the uncompressed tar), lowest first; a *chain ID* names a stack of
layers; the *history* has one entry for each instruction, with or without a layer.

Rules: the bytes that an image came with are kept and never written anew, so its id never changes;
fields that are unknown here survive every change; a change gives a new config with bytes that
depend on the document alone (sorted keys, no white space).

Source: OCI image specification, ``config.md``; Docker's image specification v1.2 for Healthcheck,
OnBuild and Shell.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from tiffin.errors import InvalidParameter
from tiffin.image.moment import format_moment, parse_moment
from tiffin.image.platforms import Platform
from tiffin.image.reference import is_digest

__all__ = ["HistoryEntry", "ImageConfig", "chain_ids"]

_STRINGS = ("architecture", "os", "variant", "created", "author", "os.version")
_CONFIG_STRINGS = ("User", "WorkingDir", "StopSignal")
_CONFIG_LISTS = ("Env", "Entrypoint", "Cmd", "Shell", "OnBuild")
_CONFIG_SETS = ("ExposedPorts", "Volumes")


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One instruction that an image was made by."""

    created: str | None = None
    """RFC 3339."""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False
    """Whether the instruction changed the config only, and no layer belongs to it."""

    def to_document(self) -> dict[str, Any]:
        """As in the config; fields that say nothing are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value}


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The chain ID of each stack that the layers make, lowest first; the last is the image's."""
    chains: list[str] = []
    for diff_id in diff_ids:
        if chains:
            text = f"{chains[-1]} {diff_id}".encode()
            chains.append("sha256:" + hashlib.sha256(text).hexdigest())
        else:
            chains.append(diff_id)
    return chains


class ImageConfig:
    """What an image says of itself. Equal to another if the bytes are."""

    def __init__(self, raw: bytes, document: dict[str, Any]) -> None:
        """Use ``parse``, ``scratch`` or a ``with_…`` method."""
        self._raw = raw
        self._document = document

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """The config that these bytes are.

        Raises InvalidParameter if they are no JSON object, or a field that tiffin reads has
        another type than the specification gives it.
        """
        try:
            # Bytes that are no UTF-8 become U+FFFD in what is read, as in Go; the raw bytes stay.
            document = json.loads(raw.decode("utf-8", "replace"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"invalid image config: not JSON: {error}") from error
        _check(document)
        return cls(bytes(raw), document)

    @classmethod
    def scratch(
        cls,
        *,
        os: str | None = None,
        architecture: str | None = None,
        variant: str | None = None,
        created: int | str | None = None,
    ) -> ImageConfig:
        """A config without layers, for this machine's platform where nothing else is said."""
        host = Platform.of_host()
        if variant is None:
            variant = host.variant if architecture in (None, host.architecture) else ""
        document: dict[str, Any] = {
            "architecture": architecture or host.architecture,
            "os": os or host.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
        if variant:
            document["variant"] = variant
        if created is not None:
            document["created"] = _moment_text(created)
        return cls._of(document)

    @classmethod
    def _of(cls, document: dict[str, Any]) -> ImageConfig:
        """A config of a new document, which nobody else may hold on to."""
        _check(document)
        options: dict[str, Any] = {"sort_keys": True, "separators": (",", ":"), "allow_nan": False}
        try:
            raw = json.dumps(document, ensure_ascii=False, **options).encode("utf-8")
        except UnicodeEncodeError:
            # A lone surrogate has no UTF-8, but a JSON escape.
            raw = json.dumps(document, **options).encode("ascii")
        return cls(raw, document)

    # -- identity

    def to_bytes(self) -> bytes:
        """The document: what it was parsed from, or the deterministic bytes of a changed one."""
        return self._raw

    @cached_property
    def id(self) -> str:
        """The image's id: ``sha256:`` and the digest of the bytes."""
        return "sha256:" + hashlib.sha256(self._raw).hexdigest()

    def to_document(self) -> dict[str, Any]:
        """The whole document; a copy."""
        return copy.deepcopy(self._document)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageConfig) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"ImageConfig({self.id!r})"

    # -- the platform and the origin

    @property
    def architecture(self) -> str:
        return self._text("architecture")

    @property
    def os(self) -> str:
        return self._text("os")

    @property
    def variant(self) -> str:
        return self._text("variant")

    @property
    def platform(self) -> str:
        """``linux/amd64`` or ``linux/arm/v7``."""
        return str(Platform(self.os, self.architecture, self.variant))

    @property
    def author(self) -> str:
        return self._text("author")

    @property
    def created(self) -> str | None:
        """RFC 3339 as the document has it, or None."""
        return self._text("created") or None

    @property
    def created_ns(self) -> int:
        """Nanoseconds since 1970; 0 where the document has no moment that can be read."""
        if self.created is None:
            return 0
        try:
            return parse_moment(self.created)
        except InvalidParameter:
            return 0

    # -- what a container of the image starts with

    @property
    def config(self) -> dict[str, Any]:
        """The part that says how to run a container; a copy."""
        return copy.deepcopy(self._config)

    @property
    def user(self) -> str:
        return str(self._config.get("User") or "")

    @property
    def working_dir(self) -> str:
        return str(self._config.get("WorkingDir") or "")

    @property
    def stop_signal(self) -> str:
        return str(self._config.get("StopSignal") or "")

    @property
    def env(self) -> tuple[str, ...]:
        """``NAME=value`` in the document's order."""
        return self._list("Env") or ()

    @property
    def entrypoint(self) -> tuple[str, ...] | None:
        return self._list("Entrypoint")

    @property
    def cmd(self) -> tuple[str, ...] | None:
        return self._list("Cmd")

    @property
    def shell(self) -> tuple[str, ...] | None:
        return self._list("Shell")

    @property
    def on_build(self) -> tuple[str, ...]:
        return self._list("OnBuild") or ()

    @property
    def exposed_ports(self) -> tuple[str, ...]:
        """``80/tcp``, sorted."""
        return tuple(sorted(self._config.get("ExposedPorts") or ()))

    @property
    def volumes(self) -> tuple[str, ...]:
        """Paths inside a container, sorted."""
        return tuple(sorted(self._config.get("Volumes") or ()))

    @property
    def labels(self) -> dict[str, str]:
        return dict(self._config.get("Labels") or {})

    @property
    def healthcheck(self) -> dict[str, Any] | None:
        value = self._config.get("Healthcheck")
        return copy.deepcopy(value) if value else None

    # -- layers

    @cached_property
    def diff_ids(self) -> tuple[str, ...]:
        """The layers' diff IDs, lowest first."""
        return tuple((self._document.get("rootfs") or {}).get("diff_ids") or ())

    @cached_property
    def chain_ids(self) -> tuple[str, ...]:
        """The chain ID of each stack, lowest first."""
        return tuple(chain_ids(self.diff_ids))

    @property
    def chain_id(self) -> str | None:
        """The chain ID of the whole stack; None without layers."""
        return self.chain_ids[-1] if self.diff_ids else None

    @cached_property
    def history(self) -> tuple[HistoryEntry, ...]:
        """The history as the document has it, oldest first."""
        return tuple(
            HistoryEntry(
                created=entry.get("created") or None,
                created_by=entry.get("created_by") or "",
                author=entry.get("author") or "",
                comment=entry.get("comment") or "",
                empty_layer=bool(entry.get("empty_layer")),
            )
            for entry in self._document.get("history") or ()
        )

    def steps(self) -> list[tuple[HistoryEntry, str | None]]:
        """Each history entry with the chain ID of the stack that it made; None if no layer.

        Layers that the history does not mention follow under entries that say nothing. Raises
        InvalidParameter if the history has more layers than the image.
        """
        chains = iter(self.chain_ids)
        steps: list[tuple[HistoryEntry, str | None]] = []
        for entry in self.history:
            chain = None if entry.empty_layer else next(chains, None)
            if chain is None and not entry.empty_layer:
                raise InvalidParameter(
                    f"invalid image config {self.id}: too many non-empty layers in History section"
                )
            steps.append((entry, chain))
        return steps + [(HistoryEntry(), chain) for chain in chains]

    # -- changes: each gives a new config

    def with_author(self, author: str) -> ImageConfig:
        return self._with(author=author or None)

    def with_created(self, moment: int | str | None) -> ImageConfig:
        """``moment`` in nanoseconds since 1970, or RFC 3339; None takes it out."""
        return self._with(created=None if moment is None else _moment_text(moment))

    def with_user(self, user: str) -> ImageConfig:
        return self._with_config(User=user or None)

    def with_working_dir(self, path: str) -> ImageConfig:
        return self._with_config(WorkingDir=path or None)

    def with_stop_signal(self, signal: str) -> ImageConfig:
        return self._with_config(StopSignal=signal or None)

    def with_entrypoint(self, arguments: Sequence[str] | None) -> ImageConfig:
        return self._with_config(Entrypoint=_list_or_none(arguments))

    def with_cmd(self, arguments: Sequence[str] | None) -> ImageConfig:
        return self._with_config(Cmd=_list_or_none(arguments))

    def with_shell(self, arguments: Sequence[str] | None) -> ImageConfig:
        return self._with_config(Shell=_list_or_none(arguments))

    def with_healthcheck(self, healthcheck: Mapping[str, Any] | None) -> ImageConfig:
        return self._with_config(Healthcheck=dict(healthcheck) if healthcheck else None)

    def with_env(self, name: str, value: str) -> ImageConfig:
        """Sets one variable: in its place if it is there, else after the others."""
        return self.with_env_list([*self.env, f"{name}={value}"])

    def with_env_list(self, env: Iterable[str]) -> ImageConfig:
        """Sets all variables; of several of one name the last value counts, at the first place."""
        merged = {item.partition("=")[0]: item for item in env}
        return self._with_config(Env=list(merged.values()) or None)

    def with_labels(self, labels: Mapping[str, str]) -> ImageConfig:
        """Adds labels to those that are there."""
        return self._with_config(Labels={**self.labels, **labels} or None)

    def with_exposed_ports(self, *ports: str) -> ImageConfig:
        """Adds ports (``80/tcp``) to those that are there."""
        return self._with_members("ExposedPorts", ports)

    def with_volumes(self, *paths: str) -> ImageConfig:
        """Adds volumes to those that are there."""
        return self._with_members("Volumes", paths)

    def with_on_build(self, *instructions: str) -> ImageConfig:
        """Adds triggers after those that are there."""
        return self._with_config(OnBuild=[*self.on_build, *instructions] or None)

    def without_on_build(self) -> ImageConfig:
        return self._with_config(OnBuild=None)

    def with_config(self, config: Mapping[str, Any]) -> ImageConfig:
        """Sets fields of the run part as they are in the document; a None takes a field out."""
        return self._with_config(**config)

    def with_field(self, name: str, value: Any) -> ImageConfig:
        """Sets a top-level field of the document; None takes it out."""
        return self._with(**{name: value})

    def with_layer(self, diff_id: str, entry: HistoryEntry) -> ImageConfig:
        """With one more layer on top, and the history entry that made it."""
        if entry.empty_layer:
            raise InvalidParameter(f"a history entry without a layer can't bring {diff_id}")
        rootfs = dict(self._document.get("rootfs") or {})
        rootfs.update(type="layers", diff_ids=[*self.diff_ids, diff_id])
        return self._with(rootfs=rootfs, history=self._history_and(entry))

    def with_history(self, entry: HistoryEntry) -> ImageConfig:
        """With one more history entry that has no layer."""
        if not entry.empty_layer:
            raise InvalidParameter("a history entry with a layer needs the layer's diff ID")
        return self._with(history=self._history_and(entry))

    # -- inside

    @property
    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = self._document.get("config") or {}
        return config

    def _text(self, name: str) -> str:
        return str(self._document.get(name) or "")

    def _list(self, name: str) -> tuple[str, ...] | None:
        value = self._config.get(name)
        return None if value is None else tuple(value)

    def _history_and(self, entry: HistoryEntry) -> list[dict[str, Any]]:
        return [*(self._document.get("history") or ()), entry.to_document()]

    def _with(self, **changed: Any) -> ImageConfig:
        # Nested values are shared between configs: nothing ever changes them, and all that is
        # handed out is copied.
        return self._of(_merged(self._document, copy.deepcopy(changed)))

    def _with_config(self, **changed: Any) -> ImageConfig:
        return self._of({**self._document, "config": _merged(self._config, copy.deepcopy(changed))})

    def _with_members(self, name: str, members: Iterable[str]) -> ImageConfig:
        # A set is a JSON object with empty objects as values.
        merged = dict(self._config.get(name) or {})
        merged.update({member: {} for member in members})
        return self._with_config(**{name: merged or None})


def _merged(old: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in {**old, **changed}.items()
        if name not in changed or value is not None
    }


def _list_or_none(arguments: Sequence[str] | None) -> list[str] | None:
    return None if arguments is None else list(arguments)


def _moment_text(moment: int | str) -> str:
    return format_moment(moment if isinstance(moment, int) else parse_moment(moment))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check(document: Any) -> None:
    """Raises InvalidParameter naming the first field whose type is wrong."""
    _expect(document, dict, "an object", "the document")
    for name in _STRINGS:
        _expect(document.get(name), str, "a string", name)
    config = document.get("config")
    _expect(config, dict, "an object", "config")
    _check_run_part(config or {})
    rootfs = document.get("rootfs")
    _expect(rootfs, dict, "an object", "rootfs")
    diff_ids = (rootfs or {}).get("diff_ids")
    _expect(diff_ids, list, "a list", "rootfs.diff_ids")
    for diff_id in diff_ids or ():
        if not isinstance(diff_id, str) or not is_digest(diff_id):
            raise InvalidParameter(
                f"invalid image config: rootfs.diff_ids has {diff_id!r}, which is no digest"
            )
    history = document.get("history")
    _expect(history, list, "a list", "history")
    for entry in history or ():
        if not isinstance(entry, dict):
            raise InvalidParameter("invalid image config: history must have objects only")
        for name in ("created", "created_by", "author", "comment"):
            _expect(entry.get(name), str, "a string", f"history.{name}")
        _expect(entry.get("empty_layer"), bool, "true or false", "history.empty_layer")


def _check_run_part(config: dict[str, Any]) -> None:
    for name in _CONFIG_STRINGS:
        _expect(config.get(name), str, "a string", f"config.{name}")
    for name in _CONFIG_LISTS:
        value = config.get(name)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            raise InvalidParameter(f"invalid image config: config.{name} must be a list of strings")
    for name in (*_CONFIG_SETS, "Healthcheck"):
        _expect(config.get(name), dict, "an object", f"config.{name}")
    labels = config.get("Labels")
    _expect(labels, dict, "an object", "config.Labels")
    for name, value in (labels or {}).items():
        if not isinstance(value, str):
            raise InvalidParameter(f"invalid image config: the label {name!r} must be a string")


def _expect(value: Any, kind: type, called: str, where: str) -> None:
    # Null stands for "not given" everywhere but for the document itself.
    if value is None and where != "the document":
        return
    if not isinstance(value, kind):
        raise InvalidParameter(f"invalid image config: {where} must be {called}")
