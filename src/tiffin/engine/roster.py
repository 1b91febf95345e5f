"""The containers that there are: by ID, by name, by a prefix of the ID."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable

from tiffin.engine.container import Container
from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.store.database import Database


class Roster:
    """All containers of a root, in memory, as the database has them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._containers = {
            row["id"]: Container.from_row(row)
            for row in database.all("SELECT * FROM containers ORDER BY created")
        }
        self._names = {container.name: container.id for container in self._containers.values()}

    def all(self) -> list[Container]:
        """Every container, the oldest first."""
        with self._lock:
            return list(self._containers.values())

    def find(self, container_id: str) -> Container | None:
        """The container of a full ID, or None."""
        return self._containers.get(container_id)

    def get(self, reference: str) -> Container:
        """The container that a full ID, a name or an unambiguous prefix of an ID names.

        Raises NotFound, or InvalidParameter where a prefix fits several.
        """
        name = reference.removeprefix("/")
        with self._lock:
            found = self._containers.get(reference)
            if found is None and name in self._names:
                found = self._containers[self._names[name]]
            if found is not None:
                return found
            matches = [key for key in self._containers if reference and key.startswith(reference)]
            if len(matches) == 1:
                return self._containers[matches[0]]
        if matches:
            raise InvalidParameter(f"multiple IDs found with provided prefix: {reference}")
        raise NotFound(f"No such container: {reference}")

    def name_taken(self, name: str) -> bool:
        """Whether a container has the name."""
        return name in self._names

    def add(self, container: Container, another_name: Callable[[], str] | None = None) -> None:
        """Record a new container; raises Conflict, in Docker's words, if its name is taken.

        One that nobody chose gives way to ``another_name`` instead.
        """
        with self._lock:
            holder = self._names.get(container.name)
            while holder is not None and another_name is not None:
                container.name = another_name()
                holder = self._names.get(container.name)
            if holder is not None:
                raise Conflict(_conflict(container.name, holder))
            try:
                container.insert(self._database)
            except sqlite3.IntegrityError as error:
                raise Conflict(_conflict(container.name, "?")) from error
            self._containers[container.id] = container
            self._names[container.name] = container.id

    def rename(self, container: Container, name: str) -> None:
        """Give a container another name; raises Conflict if it is taken."""
        with self._lock:
            holder = self._names.get(name)
            if holder is not None:
                raise Conflict("Error when allocating new name: " + _conflict(name, holder))
            self._database.execute(
                "UPDATE containers SET name = ? WHERE id = ?", (name, container.id)
            )
            del self._names[container.name]
            container.name = name
            self._names[name] = container.id

    def drop(self, container: Container) -> None:
        """Forget a container; its row goes first."""
        with self._lock:
            self._database.execute("DELETE FROM containers WHERE id = ?", (container.id,))
            self._containers.pop(container.id, None)
            self._names.pop(container.name, None)


def _conflict(name: str, holder: str) -> str:
    return (
        f'Conflict. The container name "/{name}" is already in use by container "{holder}". You '
        "have to remove (or rename) that container to be able to reuse that name."
    )
