"""Variables in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.build.substitution import substitute, substitute_words
from tiffin.errors import InvalidParameter

VARIABLES = {
    "a": "one",
    "empty": "",
    "path": "/usr/local/bin/x.tar.gz",
    "spaced": "x  y",
    "quote": "'\"",
    "dollar": "$a",
    "star": "a*b?c",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$a", "one"),
        ("${a}", "one"),
        ("x$a/y", "xone/y"),
        ("$ab", ""),
        ("${a}b", "oneb"),
        ("$unset", ""),
        ("$", "$"),
        ("$/x", "$/x"),
        ("$1x", "x"),
        ("$$", ""),
        ("\\$a", "$a"),
        ("\\\\$a", "\\one"),
        ("'$a'", "$a"),
        ('"$a"', "one"),
        ('"\\$a \\x \\" \\\\"', '$a \\x " \\'),
        ("a\\ b", "a b"),
        ("a\\", "a"),
        ("it\\'s", "it's"),
        ("$dollar", "$a"),
        ("$quote", "'\""),
        ("${a:-b}", "one"),
        ("${unset:-b}", "b"),
        ("${empty:-b}", "b"),
        ("${empty-b}", ""),
        ("${unset-b}", "b"),
        ("${unset:-}", ""),
        ("${a:+b}", "b"),
        ("${empty:+b}", ""),
        ("${empty+b}", "b"),
        ("${unset+b}", ""),
        ("${a:?no}", "one"),
        ("${empty?no}", ""),
        ("${unset:-${a}}", "one"),
        ("${unset:-$a-${unset:-x}}", "one-x"),
        ("${unset:-'$a b'}", "$a b"),
        ('${unset:-"}"}', "}"),
        ("${unset:-\\}}", "}"),
        ("${path#*/}", "usr/local/bin/x.tar.gz"),
        ("${path##*/}", "x.tar.gz"),
        ("${path%.*}", "/usr/local/bin/x.tar"),
        ("${path%%.*}", "/usr/local/bin/x"),
        ("${path#nothing}", "/usr/local/bin/x.tar.gz"),
        ("${a#o?}", "e"),
        ("${star#a\\*}", "b?c"),
        ("${star%\\?c}", "a*b"),
        ("${path/local/share}", "/usr/share/bin/x.tar.gz"),
        ("${path/\\//:}", ":usr/local/bin/x.tar.gz"),
        ("${path//\\//:}", ":usr:local:bin:x.tar.gz"),
        ("${a/*/x}", "x"),
        ("${a//*/x}", "x"),
        ("${a//n/$a}", "oonee"),
        ("${unset/a/b}", ""),
        ("${a/z/b}", "one"),
    ],
)
def test_substitution(text: str, expected: str) -> None:
    assert substitute(text, VARIABLES) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("${a", "syntax error: missing '}'"),
        ("${", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:x}", "syntax error: bad substitution"),
        ("${{a}}", "syntax error: bad substitution"),
        ("${a:-b", "syntax error: missing '}'"),
        ("${a^b}", "unsupported modifier (^) in substitution"),
        ("${a:x}", "unsupported modifier (:x) in substitution"),
        ("${a:#x}", "unsupported modifier (:#) in substitution"),
        ("${a/b}", "syntax error: missing '/' in ${}"),
        ("${a#\\x}", "invalid escape '\\x'"),
        ("${unset?}", "unset: is not allowed to be unset"),
        ("${unset:?say so}", "unset: say so"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("'a", "unexpected end of statement while looking for matching single-quote"),
        ('"a', "unexpected end of statement while looking for matching double-quote"),
    ],
)
def test_what_can_not_be_substituted(text: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        substitute(text, VARIABLES)
    assert problem in caught.value.message
    assert caught.value.message.startswith("failed to process ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", ["a", "b"]),
        ("$spaced", ["x", "y"]),
        ('"$spaced"', ["x  y"]),
        ("a\\ b", ["a b"]),
        ("a$spaced-z", ["ax", "y-z"]),
        ('""', []),
        ("  ", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert substitute_words(text, VARIABLES) == expected


def test_another_escape_character() -> None:
    assert substitute("c:\\x`$a", VARIABLES, "`") == "c:\\x$a"
    assert substitute('"`" \\"', VARIABLES, "`") == '" \\'


@given(st.text())
def test_single_quotes_protect_everything(text: str) -> None:
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert substitute(quoted, VARIABLES) == text


@given(st.text(alphabet="ab${}:-+?#%/\\'\" *"))
def test_any_text_is_replaced_or_refused(text: str) -> None:
    try:
        substitute(text, VARIABLES)
    except InvalidParameter as error:
        assert error.message.startswith("failed to process ")


@given(st.text(alphabet="ab/."), st.text(alphabet="ab*?/."))
def test_prefix_and_suffix_removal_are_mirror_images(value: str, pattern: str) -> None:
    pattern = pattern.replace("/", "\\/")
    for sign in ("", "%"):
        suffix = substitute(f"${{v%{sign}{pattern}}}" if pattern else "$v", {"v": value})
        assert value.startswith(suffix)
    for sign in ("", "#"):
        prefix = substitute(f"${{v#{sign}{pattern}}}" if pattern else "$v", {"v": value})
        assert value.endswith(prefix)
