"""A parsed Dockerfile as text again: parsed once more, it says the same.

Comments, blanks and the division into lines are not kept; everything that means something is.
"""

from __future__ import annotations

import json

from tiffin.build.parser import Dockerfile, Node

_PAIRS = ("ENV", "LABEL")


def printed(file: Dockerfile) -> str:
    """The whole file."""
    lines = [f"# {name}={value}" for name, value in file.directives.items()]
    for node in file.nodes:
        lines.append(line(node, file.escape))
        for heredoc in node.heredocs:
            lines.append(heredoc.content + heredoc.name)
    return "\n".join(lines) + "\n"


def line(node: Node, escape: str = "\\") -> str:
    """One instruction on one line, without the texts of its heredocs."""
    words = [node.name, *(_flag(flag, escape) for flag in node.flags)]
    if node.child is not None:
        return " ".join([*words, line(node.child, escape)])
    rest = list(node.arguments)
    if node.name.upper() == "HEALTHCHECK" and rest:
        words.append(rest.pop(0))
    if rest and rest[0].startswith("--") and not node.is_json:
        words.append("--")  # what follows is no flag
    if node.is_json:
        words.append(json.dumps(rest, ensure_ascii=False))
    elif node.name.upper() in _PAIRS and not node.is_legacy:
        words += [f"{name}={value}" for name, value in zip(rest[::2], rest[1::2], strict=True)]
    else:
        words += rest
    return " ".join(words)


def _flag(flag: str, escape: str) -> str:
    special = set(" \t\v\f'\"") | {escape}
    return "".join(
        escape + character if character in special or character.isspace() else character
        for character in flag
    )
