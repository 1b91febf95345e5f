"""What a container's child does between clone and exec, as data: one small class a step.

An operation has ``describe()`` (a line for a person), ``execute(kernel)``, and a JSON form: a list
of its name and its fields (:meth:`Operation.dump`). Fields are plain JSON values, so that the
daemon can plan and the keeper, which imports next to nothing, can execute. The table of them all,
which a JSON form is read with, is in :mod:`tiffin.runtime.operations`.

Host paths and inside paths are as in :mod:`tiffin.linux.kernel`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from tiffin.linux.kernel import Kernel


class Operation:
    """One step."""

    __slots__: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[tuple[str, ...]] = ()
    """In the order of ``__init__``, and of the JSON form."""
    name: ClassVar[str]

    def describe(self) -> str:
        """The step in one line."""
        raise NotImplementedError

    def execute(self, kernel: Kernel) -> None:
        """Do it. Raises OSError."""
        raise NotImplementedError

    def dump(self) -> list[Any]:
        """The JSON form."""
        return [self.name, *[getattr(self, field) for field in self.fields]]
