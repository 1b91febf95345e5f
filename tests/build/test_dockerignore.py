"""``.dockerignore``: Docker's rules, not git's."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.build.dockerignore import Ignore, read_patterns
from tiffin.build.wildcards import compiled, has_wildcards
from tiffin.errors import InvalidParameter


@pytest.mark.parametrize(
    ("pattern", "path", "out"),
    [
        # the top level only, unless ** says otherwise
        ("*.md", "README.md", True),
        ("*.md", "docs/README.md", False),
        ("**/*.md", "docs/README.md", True),
        ("**/*.md", "README.md", True),
        ("*/*.md", "docs/README.md", True),
        ("*/*.md", "docs/a/README.md", False),
        # what is inside a matched directory is out too
        ("docs", "docs/a/b", True),
        ("doc*", "docs/a/b", True),
        ("*/temp", "a/temp/b", True),
        # slashes at the ends say nothing
        ("/docs", "docs", True),
        ("docs/", "docs/a", True),
        ("./docs//a/../b", "docs/b", True),
        ("/", "docs", False),
        # **
        ("**", "a", True),
        ("**/", "a/b", True),
        ("**/dir", "dir", True),
        ("**/dir2/*", "dir/dir2/file", True),
        ("dir/**", "dir", False),
        ("dir/**", "dir/a/b", True),
        ("a**/*.txt", "a/dir/dir/file.txt", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "a/xb", False),
        ("**/.git", "sub/.git/config", True),
        ("**/.foo", "bar.foo", False),
        ("**file", "dir/myfile", True),
        ("**file*", "dir/myfile", False),
        ("**file*", "dir/file.txt", True),
        ("**/**/*.txt", "dir/dir/file.txt", True),
        ("**/**/*.txt2", "dir/dir/file.txt", False),
        ("a/*.txt**", "a/file.txt", True),
        # the wildcards of one name
        ("temp?", "tempa", True),
        ("temp?", "temp", False),
        ("a?b", "a/b", False),
        ("a?b", "a☺b", True),
        ("a[b-d]e", "ace", True),
        ("a[b-d]e", "aae", False),
        ("a[^b-d]e", "aze", True),
        ("[!a]", "!", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "axb", False),
        # nothing else is special
        ("abc.def", "abcZdef", False),
        ("a(b)c/def", "a(b)c/def", True),
        ("a.|)$(}+{bc", "a.|)$(}+{bc", True),
        (".*", ".foo", True),
        (".*", "foo", False),
    ],
)
def test_one_pattern(pattern: str, path: str, out: bool) -> None:
    assert Ignore(read_patterns(pattern.encode())).excludes(path) is out


@pytest.mark.parametrize(
    ("patterns", "path", "out"),
    [
        ("*.md\n!README.md", "README.md", False),
        ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", True),
        ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", False),
        ("!a.go\n*.go", "a.go", True),
        ("docs\n!docs/README.md", "docs/README.md", False),
        ("docs\n!docs/README.md", "docs/a.md", True),
        ("**\n!util/docker/web", "util/docker/web/foo", False),
        ("**\n!util/docker/web\nutil/docker/web/foo", "util/docker/web/foo", True),
        ("*\n! /src", "src/a", False),
        ("a\n!b", "b", False),
    ],
)
def test_the_last_pattern_that_matches_decides(patterns: str, path: str, out: bool) -> None:
    assert Ignore(read_patterns(patterns.encode())).excludes(path) is out


def test_reading_the_file() -> None:
    content = b"\xef\xbb\xbf# comment\n\n  /a/ \r\n ! /b/c/\n #not-a-comment\n!\xff\n"
    assert read_patterns(content) == ["a", "!b/c", "#not-a-comment", "!\udcff"]


@pytest.mark.parametrize("pattern", ["!", "[", "a[", "a\\", "[a-", "[]a]"])
def test_patterns_that_make_no_sense_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidParameter, match=r"\.dockerignore"):
        Ignore(read_patterns(pattern.encode()))


NAMES = st.text(alphabet="ab.", min_size=1, max_size=3).filter(lambda name: set(name) != {"."})
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PATTERNS = st.lists(
    st.one_of(NAMES, st.sampled_from(["*", "**", "a*", "?", "[ab]", "**b"])), min_size=1, max_size=3
).map("/".join)
RULES = st.lists(st.tuples(st.booleans(), PATTERNS), max_size=4).map(
    lambda rules: [f"!{pattern}" if exception else pattern for exception, pattern in rules]
)


def reference(rules: list[str], path: str) -> bool:
    """The rule as written in Docker's documentation, with no thought of speed."""
    parts = path.split("/")
    prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    out = False
    for rule in rules:
        exception = rule.startswith("!")
        one = Ignore([rule.removeprefix("!")])
        if any(one.check(prefix, one.root)[0] for prefix in prefixes):
            out = not exception
    return out


@given(RULES, PATHS)
def test_a_walk_with_states_gives_what_the_rule_says(rules: list[str], path: str) -> None:
    assert Ignore(rules).excludes(path) is reference(rules, path)


@given(RULES, PATHS)
def test_a_directory_that_holds_no_exceptions_is_out_whole(rules: list[str], path: str) -> None:
    ignore = Ignore(rules)
    parts = path.split("/")
    for count in range(1, len(parts)):
        directory = "/".join(parts[:count])
        if ignore.excludes(directory) and not ignore.may_hold_exceptions(directory):
            assert ignore.excludes(path)


@given(st.text(alphabet="ab*?", max_size=6), st.text(alphabet="ab", max_size=6))
def test_wildcards_of_copy_are_those_of_the_shell(pattern: str, name: str) -> None:
    assert bool(compiled(pattern).fullmatch(name)) == fnmatch.fnmatchcase(name, pattern)


def test_wildcards_do_not_cross_slashes() -> None:
    assert not compiled("a*").fullmatch("a/b")
    assert not compiled("a[^b]c").fullmatch("a/c")
    assert has_wildcards("a*") and has_wildcards("[a]") and not has_wildcards("a\\*")
