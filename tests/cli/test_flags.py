"""The grammar of flags, and what is said about a wrong one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.cli.flags import (
    BOOL,
    INT,
    LIST,
    STRING,
    Flag,
    FlagError,
    FlagSet,
    HelpWanted,
    quote,
)

FLAGS = (
    Flag("interactive", BOOL, "", short="i"),
    Flag("tty", BOOL, "", short="t"),
    Flag("proxy", BOOL, "", default=True),
    Flag("name", STRING, ""),
    Flag("env", LIST, "", short="e"),
    Flag("publish", LIST, "", short="p"),
    Flag("last", INT, "", short="n", default=-1),
)


def parse(*words: str, interspersed: bool = True) -> tuple[dict[str, object], list[str]]:
    options, arguments = FlagSet(FLAGS, interspersed=interspersed).parse(words)
    return {name: options[name] for name in options.given}, arguments


@pytest.mark.parametrize(
    ("words", "values", "arguments"),
    [
        (["-it", "x"], {"interactive": True, "tty": True}, ["x"]),
        (["-p80:80", "x"], {"publish": ["80:80"]}, ["x"]),
        (["-p=80:80"], {"publish": ["80:80"]}, []),
        (["-p", "1", "--publish=2", "--publish", "3"], {"publish": ["1", "2", "3"]}, []),
        (["-ite", "A=b"], {"interactive": True, "tty": True, "env": ["A=b"]}, []),
        (["-iteA=b"], {"interactive": True, "tty": True, "env": ["A=b"]}, []),
        (["--name=", "x"], {"name": ""}, ["x"]),
        (["--name", "--tty"], {"name": "--tty"}, []),
        (["--proxy=false"], {"proxy": False}, []),
        (["-t=false", "x"], {"tty": False}, ["x"]),
        (["-n5", "-n", "0x10"], {"last": 16}, []),
        (["x", "-t", "y"], {"tty": True}, ["x", "y"]),
        (["-t", "--", "-i", "--name"], {"tty": True}, ["-i", "--name"]),
        (["-", "-t"], {"tty": True}, ["-"]),
        (["--name", "a=b"], {"name": "a=b"}, []),
    ],
)
def test_flags_are_read_as_docker_reads_them(
    words: list[str], values: dict[str, object], arguments: list[str]
) -> None:
    assert parse(*words) == (values, arguments)


def test_flags_end_at_the_image_for_commands_that_pass_the_rest_on() -> None:
    assert parse("-t", "image", "ls", "-i", "--foo", interspersed=False) == (
        {"tty": True},
        ["image", "ls", "-i", "--foo"],
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--foo"], "unknown flag: --foo"),
        (["--foo=1"], "unknown flag: --foo"),
        (["-tx"], "unknown shorthand flag: 'x' in -x"),
        (["-txi"], "unknown shorthand flag: 'x' in -xi"),
        (["--name"], "flag needs an argument: --name"),
        (["-tn"], "flag needs an argument: 'n' in -n"),
        (["--=x"], "bad flag syntax: --=x"),
        (["---x"], "bad flag syntax: ---x"),
        (
            ["-n", "x"],
            (
                'invalid argument "x" for "-n, --last" flag: '
                'strconv.ParseInt: parsing "x": invalid syntax'
            ),
        ),
        (
            ["-t=maybe"],
            (
                'invalid argument "maybe" for "-t, --tty" flag: '
                'strconv.ParseBool: parsing "maybe": invalid syntax'
            ),
        ),
        (
            ["--proxy=2"],
            (
                'invalid argument "2" for "--proxy" flag: '
                'strconv.ParseBool: parsing "2": invalid syntax'
            ),
        ),
    ],
)
def test_a_wrong_flag_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(*words)
    assert str(caught.value) == message


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["x", "--help"], ["-th"]])
def test_help_is_asked_for_by_both_its_names(words: list[str]) -> None:
    with pytest.raises(HelpWanted):
        parse(*words)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("env"), st.text(min_size=1)),
            st.tuples(st.just("name"), st.text()),
            st.tuples(st.just("last"), st.integers(-(2**63), 2**63 - 1)),
            st.tuples(st.just("tty"), st.booleans()),
        )
    ),
    st.lists(st.text().filter(lambda text: not text.startswith("-"))),
    st.data(),
)
def test_what_is_written_in_any_notation_is_what_is_read(
    settings: list[tuple[str, object]], arguments: list[str], data: st.DataObject
) -> None:
    short = {flag.name: flag.short for flag in FLAGS}
    words: list[str] = []
    expected: dict[str, object] = {}
    for name, value in settings:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        notations = [[f"--{name}={text}"]]
        if name != "tty":
            notations.append([f"--{name}", text])
            if short[name]:
                notations.append([f"-{short[name]}", text])
                if text and not text.startswith("="):
                    notations.append([f"-{short[name]}{text}"])
        words += data.draw(st.sampled_from(notations))
        if name == "env":
            expected.setdefault(name, [])
            expected[name].append(text)  # type: ignore[attr-defined]
        else:
            expected[name] = value
    assert parse(*words, *arguments) == (expected, arguments)


@given(st.lists(st.text()))
def test_any_command_line_is_read_or_refused(words: list[str]) -> None:
    try:
        parse(*words)
    except (FlagError, HelpWanted):
        return


def test_texts_are_quoted_as_go_does() -> None:
    assert quote('a"b\\c\n\td…\x01') == r'"a\"b\\c\n\td…\x01"'
