"""Changes of an image's configuration by instructions, as ``commit --change`` takes them."""

from __future__ import annotations

import pytest

from tiffin.build.changes import apply_changes, created_by, working_directory
from tiffin.build.stages import single
from tiffin.errors import InvalidParameter
from tiffin.image.config import ImageConfig

CONFIG = ImageConfig.scratch().with_env("A", "1").with_cmd(["old"]).with_working_dir("/w")


def test_changes_are_applied_in_order() -> None:
    config = apply_changes(
        CONFIG,
        ["ENV B=$A", "WORKDIR $B", "CMD new", 'ENTRYPOINT ["x"]', "LABEL b=$B", "EXPOSE 8-9"],
    )
    assert config.env == ("A=1", "B=1")
    assert config.working_dir == "/w/1"
    assert config.cmd == ("/bin/sh", "-c", "new")
    assert config.entrypoint == ("x",)
    assert config.labels == {"b": "1"}
    assert config.exposed_ports == ("8/tcp", "9/tcp")
    assert CONFIG.env == ("A=1",), "the configuration that is changed stays as it is"


def test_an_entrypoint_alone_drops_the_command() -> None:
    assert apply_changes(CONFIG, ["ENTRYPOINT x"]).cmd is None
    assert apply_changes(CONFIG, []) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("RUN x", "run is not a valid change command"),
        ("FROM x", "from is not a valid change command"),
        ("ENV A=1\nENV B=2", "should be a single instruction"),
        ("NOPE", "nope is not a valid change command"),
        ("EXPOSE 80/xyz", "invalid proto: xyz"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("EXPOSE 9-8", "invalid containerPort: 9-8"),
    ],
)
def test_what_is_no_change(change: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        apply_changes(CONFIG, [change])


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/a", "/a"), ("a", "/w/a"), ("..", "/"), ("../../..", "/"), ("//a//b/", "/a/b"), ("", "/w")],
)
def test_working_directories(path: str, expected: str) -> None:
    assert working_directory(CONFIG, path) == expected


@pytest.mark.parametrize(
    ("instruction", "history"),
    [
        ("run  make   x", "RUN /bin/sh -c make   x"),
        ('RUN ["make", "x y"]', "RUN make x y"),
        (
            "COPY --chown=a:b --from=c --chmod=1 x y /z",
            "COPY --from=c --chown=a:b --chmod=1 x y /z",
        ),
        ('cmd ["a b", "\\"c"]', 'CMD ["a b" "\\"c"]'),
        ("ENV a b c", "ENV a=b c"),
        ("ARG a b=1", "ARG a b=1"),
        ("VOLUME /a /b", "VOLUME [/a /b]"),
        ('SHELL ["a", "-c"]', "SHELL [a -c]"),
        ("USER me", "USER me"),
        ("EXPOSE 2 1", "EXPOSE 1 2"),
        ("STOPSIGNAL 9", "STOPSIGNAL 9"),
        ("ONBUILD RUN x", "ONBUILD RUN x"),
        ("MAINTAINER me", "MAINTAINER me"),
        ("HEALTHCHECK NONE", "HEALTHCHECK NONE"),
        ("LABEL a=b", "LABEL a=b"),
    ],
)
def test_history(instruction: str, history: str) -> None:
    assert created_by(CONFIG, single(instruction)) == history
