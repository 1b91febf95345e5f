"""What is lent to a RUN: its mounts resolved, and what of them its key depends on.

A directory of a stage or of an image is mounted as it is. Files of the context become a layer of
their own, on nothing: then what ``.dockerignore`` leaves out is left out, owners are root's, nobody
changes them while the command reads, and the layer store shares equal ones. What a command writes
to either, if it may, goes to a snapshot that is thrown away. The contents are part of the step's
key. A cache, a secret and an agent's
socket are not: neither what they hold nor whether they are there changes the key, only how they
are asked for.
"""

from __future__ import annotations

import os
import posixpath

from tiffin.build import transfer
from tiffin.build.arguments import CACHE_MOUNT_NAMESPACE
from tiffin.build.backend import StepMount
from tiffin.build.copying import Attributes, Destination, Placement
from tiffin.build.instructions import SCRIPTS, Run
from tiffin.build.mounts import RunMount
from tiffin.build.parts import Parts
from tiffin.build.picking import Pick, Picker, picked_files
from tiffin.build.session import Session
from tiffin.build.tree import EmptyTree, Source
from tiffin.errors import BuildFailure
from tiffin.layer.entry import Kind
from tiffin.layer.writer import LayerWriter


class Loans:
    """The mounts of one RUN. Making them ready is put off until the command must run."""

    def __init__(
        self, session: Session, instruction: Run, index: int, working_directory: str
    ) -> None:
        self._session = session
        self._index = index
        self._mounts = [mount.resolved(working_directory) for mount in instruction.mounts]
        self._instruction = instruction
        self._pickers = {
            position: self._bound(mount)
            for position, mount in enumerate(self._mounts)
            if mount.type == "bind"
        }

    def describe(self, parts: Parts) -> None:
        """Add what the step's key depends on."""
        if self._instruction.network:
            parts.add("network", self._instruction.network)
        if self._instruction.security:
            parts.add("security", self._instruction.security)
        if self._instruction.program:
            parts.add("script", self._instruction.program)
        for position, mount in enumerate(self._mounts):
            parts.add(f"mount {mount.type} {mount.target or mount.env}", _asked(mount))
            if position in self._pickers:
                source, picks = self._pickers[position]
                entries = picked_files(picks)
                for entry in entries:
                    source.identify(entry)
                if picks and picks[0].entry.kind is Kind.DIRECTORY and not entries:
                    parts.add(f"files of {mount.target}", "none")
                parts.add_files(entries)

    def _bound(self, mount: RunMount) -> tuple[Source, list[Pick]]:
        source = transfer.source_named(
            self._session, mount.source_stage, self._index, self._session.options.platform
        )
        picker = Picker(source, "RUN", from_stage=bool(mount.source_stage))
        return source, picker.pick(mount.source or ".")

    def ready(self) -> tuple[list[StepMount], dict[str, str], dict[str, str]]:
        """The mounts as the engine takes them; variables; variables that are secret.

        Raises BuildFailure for a secret or an agent that is required and not given.
        """
        mounts: list[StepMount] = []
        variables: dict[str, str] = {}
        secrets: dict[str, str] = {}
        agents = 0
        for position, mount in enumerate(self._mounts):
            if mount.type == "bind":
                mounts.append(self._layer(position, mount))
            elif mount.type == "tmpfs":
                mounts.append(StepMount("tmpfs", mount.target, mount.readonly, size=mount.size))
            elif mount.type == "cache":
                mounts.append(self._cache(mount))
            elif mount.type == "secret":
                self._secret(mount, mounts, secrets)
            else:
                found = self._agent(mount, agents)
                if found is not None:
                    mounts.append(found)
                    variables.setdefault("SSH_AUTH_SOCK", found.target)
                    agents += 1
        program = self._instruction.program
        if program and self._instruction.script is not None:
            content = program.encode("utf-8", "surrogateescape")
            target = SCRIPTS + self._instruction.script.name
            mounts.append(StepMount("file", target, content=content, mode=0o755))
        return mounts, variables, secrets

    def _layer(self, position: int, mount: RunMount) -> StepMount:
        source, picks = self._pickers[position]
        only = picks[0] if len(picks) == 1 else None
        if only is not None and only.entry.kind is Kind.DIRECTORY:
            chain = getattr(source, "chain", None)
            if chain is not None:
                path = only.entry.path
                return StepMount("tree", mount.target, mount.readonly, chain=chain, path=path)
        name = b"" if only is None or only.entry.kind is Kind.DIRECTORY else b"file"

        def fill(writer: LayerWriter) -> None:
            placement = Placement(EmptyTree(), writer, Attributes())
            placement.copy(picks, Destination(name, not name))

        layer = self._session.backend.layers.write(None, fill)
        chain = layer.chain_id
        if not mount.readonly and not name:
            return StepMount("tree", mount.target, readonly=False, chain=chain)
        return StepMount("layer", mount.target, mount.readonly, chain=chain, path=name)

    def _cache(self, mount: RunMount) -> StepMount:
        chain = None
        if mount.source_stage:
            source = transfer.source_named(
                self._session, mount.source_stage, self._index, self._session.options.platform
            )
            picks = Picker(source, "RUN", from_stage=True).pick(mount.source or ".")

            def fill(writer: LayerWriter) -> None:
                Placement(EmptyTree(), writer, Attributes()).copy(picks, Destination(b"", True))

            chain = self._session.backend.layers.write(None, fill).chain_id
        space = self._session.options.build_args.get(CACHE_MOUNT_NAMESPACE) or ""
        return StepMount(
            "cache",
            mount.target,
            mount.readonly,
            chain=chain,
            mode=0o755 if mount.mode is None else mount.mode,
            uid=mount.uid,
            gid=mount.gid,
            id=f"{space}/{mount.id}" if space else mount.id,
            sharing=mount.sharing,
        )

    def _secret(self, mount: RunMount, mounts: list[StepMount], variables: dict[str, str]) -> None:
        content = self._session.options.secrets.get(mount.id)
        if content is None:
            if mount.required:
                raise BuildFailure(f"secret {mount.id}: not found (give it with --secret)")
            return
        if mount.env:
            variables[mount.env] = content.decode("utf-8", "surrogateescape")
        if mount.target:
            mounts.append(
                StepMount(
                    "file",
                    mount.target,
                    content=content,
                    mode=0o400 if mount.mode is None else mount.mode,
                    uid=mount.uid,
                    gid=mount.gid,
                    secret=True,
                )
            )

    def _agent(self, mount: RunMount, number: int) -> StepMount | None:
        socket = self._session.options.ssh.get(mount.id)
        if socket is None:
            if mount.required:
                raise BuildFailure(f"ssh agent {mount.id}: not found (give it with --ssh)")
            return None
        return StepMount(
            "socket",
            mount.target or f"/run/buildkit/ssh_agent.{number}",
            socket=os.path.abspath(socket),
            mode=0o600 if mount.mode is None else mount.mode,
            uid=mount.uid,
            gid=mount.gid,
            id=posixpath.basename(mount.id),
        )


def _asked(mount: RunMount) -> str:
    """How a mount is asked for, in one text that does not depend on how it is written."""
    members = (
        mount.type,
        mount.source_stage,
        mount.source,
        mount.target,
        mount.readonly,
        mount.id,
        mount.sharing,
        mount.size,
        mount.mode,
        mount.uid,
        mount.gid,
        mount.env,
    )
    return repr(members)
