"""Platforms as people name them, and which images run where."""

from __future__ import annotations

import pytest

from tiffin.errors import InvalidParameter
from tiffin.image.platforms import Platform

HOST = Platform.of_host()


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
        ("linux/arm64", Platform("linux", "arm64", "v8")),
        ("Linux/AARCH64", Platform("linux", "arm64", "v8")),
        ("s390x", Platform("linux", "s390x")),
        ("windows/amd64", Platform("windows", "amd64")),
        ("", HOST),
        ("linux", HOST),
    ],
)
def test_platforms_are_read(text: str, platform: Platform) -> None:
    assert Platform.parse(text) == platform


@pytest.mark.parametrize("text", ["/", "linux/", "linux//v7", "linux/arm/v7/more"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="expected os/architecture"):
        Platform.parse(text)


def test_a_platform_is_written_as_it_is_read() -> None:
    for text in ("linux/amd64", "linux/arm/v7", "linux/arm64/v8"):
        assert str(Platform.parse(text)) == text
