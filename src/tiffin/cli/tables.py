"""Tables on a terminal: columns as wide as their widest cell, at least ten, three blanks apart."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PADDING = 3
_MINIMUM = 10


def columns(rows: Sequence[Sequence[str]], *, minimum: int = _MINIMUM) -> str:
    """The rows as lines of aligned columns; the last column is never padded."""
    widths: list[int] = []
    for row in rows:
        for position, cell in enumerate(row[:-1]):
            width = max(len(cell) + _PADDING, minimum)
            if position == len(widths):
                widths.append(width)
            elif width > widths[position]:
                widths[position] = width
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append("".join(cells) + (row[-1] if row else "") + "\n")
    return "".join(lines)


def ellipsis(text: str, width: int) -> str:
    """``text`` cut to ``width`` characters, the last of which then is an ellipsis."""
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width > 1 else text[:width]


def short_id(identifier: str) -> str:
    """The first twelve digits of an ID, without the name of its algorithm."""
    return identifier.partition(":")[2][:12] if ":" in identifier else identifier[:12]
