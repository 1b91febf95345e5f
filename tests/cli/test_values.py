"""Values of single flags that no daemon has to be asked about."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.cli import values
from tiffin.cli.container_list import ports_text
from tiffin.cli.image_tree import draw, grow
from tiffin.cli.moments import seconds_of, timestamp
from tiffin.cli.mounts import mount
from tiffin.cli.ports import exposed, published
from tiffin.cli.progress import bar
from tiffin.cli.tables import columns, ellipsis, short_id
from tiffin.client.sources import walk
from tiffin.errors import InvalidParameter


def test_variables_come_from_here_and_the_last_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert values.resolve_environment(["A=1", "HERE", "NOT_HERE", "A=2"]) == [
        "A=2",
        "HERE=yes",
        "NOT_HERE",
    ]


def test_a_file_of_variables_has_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("\ufeff# comment\n\nA=1 # kept\n  B=2\nC\nQ='x'\n")
    assert values.read_lines(str(path)) == ["A=1 # kept", "B=2", "C", "Q='x'"]
    path.write_text("A B=1\n")
    with pytest.raises(InvalidParameter, match="variable 'A B' contains whitespaces"):
        values.read_lines(str(path))
    path.write_text("=1\n")
    with pytest.raises(InvalidParameter, match="no variable name"):
        values.read_lines(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=bind,src=/a", "target is required"),
        ("type=,dst=/a", "type is required"),
        ("foo=x", "unexpected key 'foo' in 'foo=x'"),
        ("foo", "invalid field 'foo' must be a key=value pair"),
        (
            "type=bind,dst=/a,volume-nocopy",
            "cannot mix 'volume-\\*' options with mount type 'bind'",
        ),
        ("dst=/a,readonly=maybe", "invalid value for readonly: maybe"),
        ("type=tmpfs,dst=/a,tmpfs-size=x", "invalid value for tmpfs-size: x"),
        ("type=tmpfs,dst=/a,tmpfs-mode=9", "invalid value for tmpfs-mode: 9"),
        ("type=bind,dst=/a,bind-recursive=x", "invalid value for bind-recursive: x"),
    ],
)
def test_a_mount_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mount(text)


def test_a_mount_may_quote_fields_that_have_commas() -> None:
    assert mount('type=bind,"src=/a,b",dst=/c')["Source"] == "/a,b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "invalid containerPort: abc"),
        ("x:80", "invalid hostPort: x"),
        ("80/foo", "invalid proto: foo"),
        ("1-3:5-6", "invalid ranges specified"),
        ("70000", "invalid containerPort"),
        ("9-5", "invalid containerPort"),
        ("80:", "no port specified"),
    ],
)
def test_a_port_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        published([text])


@given(st.integers(1, 65000), st.integers(1, 65000), st.integers(0, 20), st.booleans())
def test_a_range_of_ports_is_published_one_by_one(
    host: int, container: int, count: int, udp: bool
) -> None:
    protocol = "udp" if udp else "tcp"
    text = f"{host}-{host + count}:{container}-{container + count}/{protocol}"
    assert published([text]) == {
        f"{container + offset}/{protocol}": [{"HostIp": "", "HostPort": str(host + offset)}]
        for offset in range(count + 1)
    }
    assert exposed([f"{container}-{container + count}/{protocol}"]) == [
        f"{container + offset}/{protocol}" for offset in range(count + 1)
    ]


def test_ports_in_a_row_are_shown_together() -> None:
    ports = [
        {"Type": "tcp", "PrivatePort": 9001, "PublicPort": 81, "IP": "0.0.0.0"},
        {"Type": "tcp", "PrivatePort": 9000, "PublicPort": 80, "IP": "0.0.0.0"},
        {"Type": "tcp", "PrivatePort": 9000, "PublicPort": 80, "IP": "::"},
        {"Type": "udp", "PrivatePort": 53},
        {"Type": "tcp", "PrivatePort": 70},
        {"Type": "tcp", "PrivatePort": 71},
    ]
    assert ports_text(ports) == (
        "53/udp, 70-71/tcp, 0.0.0.0:80-81->9000-9001/tcp, [::]:80->9000/tcp"
    )
    assert ports_text([]) == ""


def test_tables_have_columns_of_ten_and_more() -> None:
    rows = [["A", "LONGER HEADER", "LAST"], ["value that is long", "x", ""]]
    assert columns(rows) == (
        "A                    LONGER HEADER   LAST\nvalue that is long   x               \n"
    )
    assert columns([["A", "B"]]) == "A         B\n"
    assert columns([]) == ""


@given(st.text(), st.integers(1, 30))
def test_what_is_cut_fits(text: str, width: int) -> None:
    cut = ellipsis(text, width)
    assert len(cut) <= width
    assert cut == text or cut.rstrip("…") == text[: len(cut.rstrip("…"))]


def test_ids_are_short_without_their_algorithm() -> None:
    assert short_id("sha256:0123456789abcdef") == short_id("0123456789abcdef") == "0123456789ab"


def test_moments_are_read_in_every_notation() -> None:
    assert seconds_of("2024-01-31T12:00:00Z") == 1706702400
    assert seconds_of("2024-01-31T12:00:00.123456789Z") == pytest.approx(1706702400.123456789)
    assert seconds_of("2024-01-31T13:00:00+01:00") == 1706702400
    assert timestamp("10m", 1000.0) == "400.000000000"
    assert timestamp("1706702400.5") == "1706702400.5"
    assert timestamp("2024-01-31T12:00:00Z") == "1706702400.000000000"
    assert timestamp("yesterday") == "yesterday"
    assert timestamp("") == ""


def image(name: str, layers: str, size: int) -> dict[str, object]:
    return {
        "Id": f"sha256:{name:0<64}",
        "RepoTags": [f"{name}:latest"] if name != "none" else [],
        "Size": size,
        "Created": "2024",
        "RootFS": {"Layers": list(layers)},
    }


class Inspecting:
    """A daemon that knows some images."""

    def __init__(self, *images: dict[str, object]) -> None:
        self.images = images

    def get(self, path: str) -> dict[str, object]:
        return next(each for each in self.images if str(each["Id"]).replace(":", "%3A") in path)


def test_the_tree_shows_what_rests_on_what_and_what_is_shared() -> None:
    images = (
        image("base", "ab", 100),
        image("app", "abc", 130),
        image("same", "ab", 100),
        image("left", "xyl", 50),
        image("right", "xyr", 60),
        image("none", "abcd", 131),
        image("scratch", "", 0),
    )
    drawn = draw(Inspecting(*images), list(images), truncate=True)  # type: ignore[arg-type]
    shape = [" ".join(line.split()) for line in drawn.splitlines()]
    assert shape == [
        "IMAGE IMAGE ID SIZE ADDED LAYERS",
        "scratch:latest scratch00000 0B 0B 0",
        "base:latest base00000000 100B 100B 2",
        "└─ same:latest same00000000 100B 0B 2",
        "└─ app:latest app000000000 130B 30B 3",
        "└─ <none> none00000000 131B 1B 4",
        "(2 layers shared by 2 images) 2",
        "├─ left:latest left00000000 50B 50B 3",
        "└─ right:latest right0000000 60B 60B 3",
    ]


@given(st.lists(st.text("ab", max_size=4), max_size=8))
def test_every_image_is_in_the_tree_once_and_above_what_rests_on_it(stacks: list[str]) -> None:
    images = [image(f"{number:x}", layers, 1) for number, layers in enumerate(stacks)]
    found = []

    def visit(node: object, below: tuple[str, ...]) -> None:
        assert node.layers[: len(below)] == below  # type: ignore[attr-defined]
        if node.image is not None:  # type: ignore[attr-defined]
            found.append(node.image["Id"])  # type: ignore[attr-defined]
        else:
            assert len(node.below) > 1  # type: ignore[attr-defined]
        for child in node.below:  # type: ignore[attr-defined]
            visit(child, node.layers)  # type: ignore[attr-defined]

    for root in grow(images):
        visit(root, ())
    assert sorted(found) == sorted(str(each["Id"]) for each in images)


def test_bars_show_how_far_it_is() -> None:
    assert bar({}) == ""
    assert bar({"current": 500}) == "500B"
    assert bar({"current": 500, "total": 1000}) == f"[{'=' * 14}>{' ' * 15}] 500B/1kB"
    assert bar({"current": 2000, "total": 1000}).startswith(f"[{'=' * 29}>]")


def test_a_folder_is_walked_in_order_without_what_is_ignored(tmp_path: Path) -> None:
    for name in ("b/c/d", "a", "b/x.md", "link"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "link":
            path.symlink_to("b")
        else:
            path.write_text("")
    assert list(walk(str(tmp_path), [])) == ["a", "b", "b/c", "b/c/d", "b/x.md", "link"]
    assert list(walk(str(tmp_path), ["**/*.md", "b/c"])) == ["a", "b", "link"]
    assert list(walk(str(tmp_path), ["b", "!b/c"])) == ["a", "b/c", "b/c/d", "link"]
