"""The reconciliation at start-up: what the rows say of containers, beside what the keeper knows.

Containers go on without a daemon, and a daemon may die between any two steps. So a row may say
"running" of what has ended, or not yet know of a run; a run is told by the time that it started.
What the keeper has and no row names is killed: nobody could reach it any more.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from typing import Any

from tiffin.engine import restarts
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.errors import NotFound
from tiffin.store.database import Database

JSON = dict[str, Any]


class Reconciliation:
    """Brings the containers of a root up to date with the keeper."""

    def __init__(
        self, database: Database, root: Root, roster: Roster, lifecycle: Lifecycle
    ) -> None:
        self._database = database
        self._root = root
        self._roster = roster
        self._lifecycle = lifecycle

    def run(self, lasting: bool) -> None:
        """Learn what became of the containers that were running, and start again what policies
        want with the start of a daemon: one that stays (``lasting``), or another.
        """
        # The keeper's events are heard meanwhile: what is listed may have ended, been removed, or
        # been restarted by the time that it is looked at.
        running = {
            container.id: (container, container.state.runs)
            for container in self._roster.all()
            if container.running
        }
        if running or (self._root.keeper / "keeper.sock").exists():
            self._lifecycle.keeper.ensure()
            for entry in self._lifecycle.keeper.list():
                if not entry["exec"]:
                    running.pop(entry["id"], None)
                    self._meet(entry)
            for container, runs in running.values():
                with container.lock:
                    if container.state.runs == runs:
                        self._lifecycle.ended(container, None, time.time_ns(), False)
        for container in self._roster.all():
            with container.lock:
                if restarts.wanted_anew(container, self._lifecycle.boot, lasting):
                    container.state.status = "restarting"
                    container.save_state(self._database)
                if container.state.status == "restarting":
                    self._lifecycle.plan_restart(container, 0)
                elif container.running:
                    self._lifecycle.look(container)
                elif container.auto_remove and container.state.runs:
                    self._lifecycle.finish(container)

    def _meet(self, entry: JSON) -> None:
        container = self._roster.find(entry["id"])
        if container is None:
            # Its row is gone, or was never written: nobody can reach it any more.
            if entry["status"] == "running":
                with suppress(NotFound):
                    # It has ended meanwhile.
                    self._lifecycle.keeper.signal(entry["id"], signal.SIGKILL)
            else:
                self._lifecycle.keeper.forget(entry["id"])
            return
        with container.lock:
            state = container.state
            over = state.started == entry["started"] and not container.running
            if over and entry["status"] == "exited":
                # The daemon died between writing the end down and telling the keeper so.
                self._lifecycle.keeper.forget(container.id)
            if over or state.started > entry["started"] or container.removed:
                return
            if not container.running or state.started != entry["started"]:
                # The daemon died between the start and writing it down.
                self._lifecycle.begun(container, entry["pid"], entry["started"])
            state.pid = entry["pid"]
            container.save_state(self._database)
            self._lifecycle.let_go(container)
        if entry["status"] == "exited":
            self._lifecycle.ended(container, entry["code"], entry["at"], bool(entry.get("oom")))
