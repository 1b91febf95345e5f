"""Lists of things, and the ``--format`` that shows them.

A format is empty or ``table`` (the usual columns), ``table TEMPLATE`` (these columns, with their
headers), ``json`` (one object a line), or a template that is printed for each thing.
"""

from __future__ import annotations

import sys

from tiffin.cli.command import CommandError
from tiffin.cli.flags import STRING, Flag
from tiffin.cli.tables import columns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    Getter = Callable[[Any], Any]


FORMAT = Flag("format", STRING, "table, json, or a Go template ('table TEMPLATE': with headers)")


class Row:
    """One thing, whose fields are computed when a template asks for them."""

    __slots__ = ("_item", "_listing")

    def __init__(self, listing: Listing, item: Any) -> None:
        self._listing = listing
        self._item = item

    @property
    def template_type(self) -> str:
        """The type that messages name."""
        return self._listing.kind

    def template_field(self, name: str, arguments: list[Any]) -> Any:
        """A field's or method's value; raises KeyError for none of that name."""
        method = self._listing.methods.get(name)
        if method is not None:
            return method(self._item, *arguments)
        return self._listing.fields[name][1](self._item)

    def template_fields(self) -> dict[str, Any]:
        """All fields by name, for ``json``."""
        fields = self._listing.fields
        return {name: fields[name][1](self._item) for name in sorted(fields)}

    def template_text(self) -> str:
        """What ``{{.}}`` prints."""
        from tiffin.cli.gotemplate import text_of

        return text_of(self.template_fields())


class Header:
    """The row of headers of ``table TEMPLATE``."""

    __slots__ = ("_listing",)

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    @property
    def template_type(self) -> str:
        """The type that messages name."""
        return self._listing.kind

    def template_field(self, name: str, arguments: list[Any]) -> str:
        """A field's header; the argument of a method is its own header."""
        if name in self._listing.methods:
            words = str(arguments[0]) if arguments else name
            return words.rpartition(".")[2].replace("-", " ").replace("_", " ")
        return self._listing.fields[name][0]


class Listing:
    """The fields that a kind of things has: name, header and how it is computed."""

    def __init__(
        self,
        kind: str,
        fields: Mapping[str, tuple[str, Getter]],
        methods: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.kind = kind
        self.fields = fields
        self.methods = methods or {}

    def table(self, items: Iterable[Any], names: Sequence[str]) -> str:
        """The usual table of these fields."""
        rows = [[self.fields[name][0] for name in names]]
        rows.extend([str(self.fields[name][1](item)) for name in names] for item in items)
        return columns(rows)

    def show(self, items: Iterable[Any], form: str, names: Sequence[str]) -> None:
        """Prints the things in the format asked for; ``names`` are the usual columns."""
        sys.stdout.write(self.text(items, form, names))

    def text(self, items: Iterable[Any], form: str, names: Sequence[str]) -> str:
        """What ``show`` prints; raises CommandError for a template that is wrong."""
        if form in ("", "table"):
            return self.table(items, names)
        from tiffin.cli.gotemplate import Template, TemplateError, json_of

        if form == "json":
            return "".join(json_of(Row(self, item).template_fields()) + "\n" for item in items)
        headed = form.startswith("table")
        source = form.removeprefix("table").strip() if headed else form
        source = unescape(source)
        try:
            template = Template(source)
        except TemplateError as error:
            raise CommandError(f"failed to parse template: {error}") from None
        try:
            lines = [template.render(Header(self))] if headed else []
            lines.extend(template.render(Row(self, item)) for item in items)
        except TemplateError as error:
            raise CommandError(f"failed to execute template: {error}") from None
        if headed:
            return columns([line.split("\t") for line in lines])
        return "".join(line + "\n" for line in lines)


def unescape(form: str) -> str:
    r"""Turns ``\t`` and ``\n`` as typed in a shell into what they mean."""
    return form.replace("\\t", "\t").replace("\\n", "\n")


def render(form: str, value: Any) -> str:
    """One value through a template (``info``, ``version``); ``json`` prints all of it."""
    from tiffin.cli.gotemplate import Template, TemplateError, json_of

    if form == "json":
        return json_of(value) + "\n"
    try:
        return Template(unescape(form)).render(value) + "\n"
    except TemplateError as error:
        raise CommandError(f"template parsing error: {error}") from None
