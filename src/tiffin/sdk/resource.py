"""What all objects of the SDK have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from tiffin.errors import NotFound

if TYPE_CHECKING:
    from tiffin.sdk.client import Client


class Model:
    """One object of the engine: its ID, and what the API last said of it (``attrs``)."""

    _id_attribute: ClassVar[str] = "Id"

    def __init__(self, client: Client, attrs: dict[str, Any]) -> None:
        self.client = client
        self.attrs = attrs

    @property
    def id(self) -> str:
        """The whole ID."""
        return str(self.attrs[self._id_attribute])

    @property
    def short_id(self) -> str:
        """The first twelve characters of the ID."""
        return self.id[:12]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.short_id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.id == other.id

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.id))

    def _inspect(self) -> dict[str, Any]:
        raise NotImplementedError

    def reload(self) -> None:
        """Asks the engine again; raises NotFound if it is gone."""
        self.attrs = self._inspect()


class Removable(Model):
    """An object that, as a context manager, is removed at the end of the block."""

    def _take_away(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._take_away()
        except NotFound:
            # It was removed in the block, or removes itself.
            pass


def api_filters(given: dict[str, Any] | None) -> str | None:
    """The API's form of filters: each value a list of texts; True and False in JSON's words."""
    if not given:
        return None
    from json import dumps

    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return dumps(
        {
            name: [text(one) for one in (value if isinstance(value, list | tuple) else [value])]
            for name, value in given.items()
        }
    )
