"""The parser against its golden cases: ``cases/<name>/{Dockerfile,result.json}``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from build.printing import printed
from tiffin.build.parser import Node, parse
from tiffin.errors import InvalidParameter, TiffinError

CASES = Path(__file__).parent / "cases"


def shown(node: Node) -> dict[str, Any]:
    result: dict[str, Any] = {"name": node.name, "lines": [node.line, node.last_line]}
    if node.flags:
        result["flags"] = list(node.flags)
    if node.is_json:
        result["json"] = True
    result["arguments"] = list(node.arguments)
    if node.heredocs:
        result["heredocs"] = [
            {
                "name": each.name,
                "content": each.content,
                "expand": each.expand,
                "chomp": each.chomp,
            }
            for each in node.heredocs
        ]
    if node.child is not None:
        result["child"] = shown(node.child)
    return result


def outcome(content: bytes) -> dict[str, Any]:
    try:
        file = parse(content)
    except TiffinError as error:
        return {"error": error.message, "kind": type(error).__name__}
    result: dict[str, Any] = {"nodes": [shown(node) for node in file.nodes]}
    if file.directives:
        result["directives"] = file.directives
    if file.warnings:
        result["warnings"] = list(file.warnings)
    return result


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir()))
def test_golden_case(case: str) -> None:
    expected = json.loads((CASES / case / "result.json").read_text())
    assert outcome((CASES / case / "Dockerfile").read_bytes()) == expected


def test_every_bad_case_is_an_error_that_names_a_line() -> None:
    for path in CASES.iterdir():
        result = json.loads((path / "result.json").read_text())
        assert ("error" in result) == path.name.startswith("bad-")
        if "error" in result:
            assert result["error"].startswith("dockerfile parse error on line ")


def meaning(node: Node) -> dict[str, Any]:
    result = shown(node)
    for each in (result, result.get("child", {})):
        each.pop("lines", None)
    return result


_pieces = st.sampled_from(
    [
        "RUN", "COPY", "ADD", "ENV", "LABEL", "ARG", "ONBUILD", "HEALTHCHECK", "CMD", "EXPOSE",
        "<<EOF", "<<-EOF", "<<'EOF'", "3<<EOF", "EOF", "--mount=a", "--x='a b'", "--from=a", "--",
        "\\", "\n", "\n", " ", " ", "\t", "#", "=", "a", "b=c", '"q r"', "'s'", "$x", '["a", "b"]',
        "[", "NONE", "CMD", "`", "\r\n", "# escape=`\n",
    ]
)  # fmt: skip


@given(st.lists(_pieces, max_size=25).map("".join))
@example("ENV a b\nLABEL c=d e='f g'\n")
@example("COPY <<-EOF /x\n\ta\n\tEOF\nONBUILD RUN cat <<A <<B\n1\nA\n2\nB\n")
def test_a_file_printed_and_parsed_again_is_the_same(text: str) -> None:
    try:
        file = parse(text)
    except InvalidParameter:
        return
    again = parse(printed(file))
    assert [meaning(node) for node in again.nodes] == [meaning(node) for node in file.nodes]
    assert again.directives == file.directives


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir()))
def test_a_golden_case_printed_and_parsed_again_is_the_same(case: str) -> None:
    if not case.startswith("bad-"):
        file = parse((CASES / case / "Dockerfile").read_bytes())
        again = parse(printed(file))
        assert [meaning(node) for node in again.nodes] == [meaning(node) for node in file.nodes]


@given(st.text(alphabet=st.sampled_from("RUN COPY\\\n\r\t #=[]\"'`$ab-<")))
@example("RUN a \\\n\n\n")
@example('HEALTHCHECK --a="')
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        file = parse("FROM x\n" + text)
    except InvalidParameter:
        return
    assert all(node.line <= node.last_line for node in file.nodes)
    assert [node.line for node in file.nodes] == sorted({node.line for node in file.nodes})


def test_bytes_that_are_no_utf8_survive() -> None:
    (node,) = parse(b"RUN echo \xff").nodes
    assert node.arguments[0].encode("utf-8", "surrogateescape") == b"echo \xff"
