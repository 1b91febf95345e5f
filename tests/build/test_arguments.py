"""Build arguments: declarations, defaults, given values, and who sees them."""

from __future__ import annotations

from tiffin.build.arguments import Arguments
from tiffin.build.instructions import Arg
from tiffin.build.stages import single
from tiffin.image.platforms import Platform


def arg(text: str) -> Arg:
    instruction = single(text)
    assert isinstance(instruction, Arg)
    return instruction


def test_a_given_value_comes_before_a_default() -> None:
    arguments = Arguments({"a": "given", "b": None})
    arguments.declare(arg("ARG a=default b=default c"))
    assert arguments.visible({}) == {"a": "given", "b": "default"}


def test_a_global_argument_counts_in_a_stage_that_declares_it() -> None:
    arguments = Arguments({"g2": "given"})
    arguments.declare_global(arg("ARG g=1 g2=2"))
    assert arguments.globals["g"] == "1" and arguments.globals["g2"] == "given"
    assert arguments.visible({}) == {}
    arguments.declare(arg("ARG g"))
    arguments.declare(arg("ARG g2=stage"))
    assert arguments.visible({}) == {"g": "1", "g2": "given"}
    below = arguments
    arguments = below.of_stage("x")
    assert arguments.visible({}) == {}
    assert below.of_stage("x", below).visible({}) == {"g": "1", "g2": "given"}
    arguments.declare(arg("ARG g=own"))
    assert arguments.visible({}) == {"g": "own"}


def test_the_environment_hides_an_argument() -> None:
    arguments = Arguments({"a": "1"})
    arguments.declare(arg("ARG a b=2"))
    assert arguments.visible({"a": "env"}) == {"a": "env", "b": "2"}
    assert arguments.of_run({"a": "env"}) == {"b": "2"}


def test_proxies_and_the_platform_need_no_declaration() -> None:
    arguments = Arguments({"http_proxy": "x", "other": "y"})
    assert arguments.visible({}) == {"http_proxy": "x"}
    assert arguments.of_run({}) == {}
    assert arguments.proxies({}) == {"http_proxy": "x"}
    assert arguments.proxies({"http_proxy": "env"}) == {}
    assert arguments.globals["TARGETARCH"] == Platform.of_host().architecture
    arguments.declare(arg("ARG TARGETOS"))
    assert arguments.of_run({}) == {"TARGETOS": "linux"}
    assert arguments.unused() == ["other"]
