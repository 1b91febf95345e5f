"""Typed instructions: what is understood, what is refused and in which words."""

from __future__ import annotations

import pytest

from tiffin.build import instructions as i
from tiffin.build.mounts import RunMount
from tiffin.build.parser import Heredoc, parse
from tiffin.build.stages import read, single
from tiffin.errors import InvalidParameter, Unsupported


def one(text: str) -> i.Instruction:
    return single(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a", i.From("", 0, "a")),
        ("FROM --platform=$P a:1 AS Base", i.From("", 0, "a:1", "base", "$P")),
        ("RUN make /app", i.Run("", 0, ("make /app",), True)),
        ('RUN ["make", "/app"]', i.Run("", 0, ("make", "/app"), False)),
        ("CMD", i.Cmd("", 0, (), True)),
        ("CMD []", i.Cmd("", 0, (), False)),
        ("ENTRYPOINT top -b", i.Entrypoint("", 0, ("top -b",), True)),
        ("ENV a=1 b=2", i.Env("", 0, (("a", "1"), ("b", "2")))),
        ("LABEL a b c", i.Label("", 0, (("a", "b c"),))),
        ("ARG a b=1 c=", i.Arg("", 0, (("a", None), ("b", "1"), ("c", "")))),
        ("WORKDIR /a b", i.Workdir("", 0, "/a b")),
        ("USER me:us", i.User("", 0, "me:us")),
        ("EXPOSE 80 443/tcp", i.Expose("", 0, ("443/tcp", "80"))),
        ("VOLUME /a /b", i.Volume("", 0, ("/a", "/b"))),
        ("COPY a b/ /c/", i.Copy("", 0, ("a", "b/"), "/c/")),
        (
            "COPY --from=0 --chown=1:2 --chmod=755 a /c",
            i.Copy("", 0, ("a",), "/c", "0", "1:2", "755"),
        ),
        (
            "COPY --link --parents=false --exclude=*.md --exclude=x a /c",
            i.Copy("", 0, ("a",), "/c", link=True, excludes=("*.md", "x")),
        ),
        ("COPY --parents --link=FALSE a /c", i.Copy("", 0, ("a",), "/c", parents=True)),
        (
            "COPY a <<E <<-'F' /c/\n\t$x\nE\n\t$y\nF",
            i.Copy(
                "",
                0,
                ("a",),
                "/c/",
                heredocs=(
                    Heredoc("E", "\t$x\n"),
                    Heredoc("F", "\t$y\n", expand=False, chomp=True),
                ),
            ),
        ),
        (
            "ADD --keep-git-dir --checksum=abc https://x/y.git#v1:d /c",
            i.Add("", 0, ("https://x/y.git#v1:d",), "/c", keep_git_dir=True, checksum="abc"),
        ),
        ("ADD --unpack=false a.tar /c", i.Add("", 0, ("a.tar",), "/c", unpack=False)),
        (
            "RUN --mount=type=cache,dst=/c,sharing=locked --network=none --security=insecure x",
            i.Run(
                "",
                0,
                ("x",),
                True,
                (RunMount("", "cache", target="/c", sharing="locked", readonly=False),),
                "none",
                "insecure",
            ),
        ),
        ("RUN <<E\nmake\nE", i.Run("", 0, ("<<E",), heredocs=(Heredoc("E", "make\n"),))),
        ('ADD ["a b", "/"]', i.Add("", 0, ("a b",), "/")),
        ('SHELL ["/bin/bash", "-c"]', i.Shell("", 0, ("/bin/bash", "-c"))),
        ("STOPSIGNAL SIGINT", i.StopSignal("", 0, "SIGINT")),
        ("HEALTHCHECK NONE", i.Healthcheck("", 0, ("NONE",))),
        (
            "HEALTHCHECK --interval=1m30s --retries=3 --timeout=1.5s CMD curl x",
            i.Healthcheck("", 0, ("CMD-SHELL", "curl x"), 90 * 10**9, 1_500_000_000, retries=3),
        ),
        ('HEALTHCHECK CMD ["a"]', i.Healthcheck("", 0, ("CMD", "a"))),
        ("ONBUILD RUN x", i.OnBuild("", 0, "RUN x")),
        ("MAINTAINER me", i.Maintainer("", 0, "me")),
    ],
)
def test_instruction(text: str, expected: i.Instruction) -> None:
    assert one(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FORM a", "unknown instruction: FORM (did you mean FROM?)"),
        ("rnu x", "unknown instruction: rnu (did you mean run?)"),
        ("ENTRPOINT x", "unknown instruction: ENTRPOINT (did you mean ENTRYPOINT?)"),
        ("BREAKFAST", "unknown instruction: BREAKFAST"),
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a AS 1x", 'invalid name for build stage: "1x", name can\'t start with a number '),
        ("COPY a", "COPY requires at least two arguments, but only one was provided. Dest"),
        ("COPY --form=x a b", "unknown flag: --form (did you mean from?)"),
        ("COPY --chown a b", "missing a value on flag: --chown"),
        ("COPY --chown=1 --chown=2 a b", "duplicate flag specified: --chown"),
        ("COPY http://a/b /", "source can't be a URL for COPY"),
        ("COPY http://a/b.git /", "source can't be a git ref for COPY"),
        ("COPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe"),
        ("COPY --link --link a b", "duplicate flag specified: --link"),
        ("COPY a <<EOF\nEOF", "COPY cannot accept a heredoc as a destination"),
        ("COPY --checksum=sha256:a a b", "unknown flag: --checksum"),
        ("ADD --parents a b", "unknown flag: --parents"),
        ("ADD --checksum=sha256:a a b", "checksum requires HTTP(S) or Git sources"),
        ("ADD --checksum=sha256:a http://a http://b c/", "checksum can't be specified for mult"),
        ("RUN --mount=type=cash,target=/x y", 'unsupported mount type "cash" (did you mean cache'),
        ("RUN --mount=type=cache y", "invalid cache mount: a target is required"),
        ("RUN --mount=target=/x,mode=7 y", "unexpected key 'mode' for mount type 'bind'"),
        ("RUN --mount=taget=/x y", "unexpected key 'taget' in 'taget=/x' (did you mean target?)"),
        ("RUN --mount=target y", "invalid field 'target' must be a key=value pair"),
        ("RUN --mount=from=$a,target=/x y", "'from' doesn't support variable expansion"),
        ("RUN --mount=type=secret y", "invalid secret mount. one of source, target required"),
        ("RUN --mount=type=secret,id=a,src=b y", "both source and id can't be set"),
        ("RUN --mount=type=secret,id=a,sharing=locked y", "unexpected key 'sharing' for mount"),
        ("RUN --mount=type=cache,target=/x,sharing=lock y", 'unsupported sharing value "lock"'),
        ("RUN --mount=type=cache,target=/x,mode=9 y", "invalid value 9 for mode"),
        ("RUN --mount=type=tmpfs,target=/x,size=1y y", "invalid value for size: 1y"),
        ("RUN --mount=type=cache,target=/x,ro=2 y", "invalid value for readonly: 2"),
        ("RUN --network=hots y", "--network=hots is not valid: one of default, none, host (did"),
        ("RUN --security=open y", "--security=open is not valid: one of sandbox, insecure"),
        ("RUN <<EOF\nnever ends", "unterminated heredoc: no line is EOF alone"),
        ("RUN", "RUN requires at least one argument"),
        ("ENV =x", "ENV names can not be blank"),
        ("ENV", "ENV requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ('VOLUME [" "]', "VOLUME specified can not be an empty string"),
        ("SHELL bash -c", "SHELL requires the arguments to be in JSON form"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK curl x", 'Unknown type "CURL" in HEALTHCHECK (try CMD)'),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK --interval=5 CMD x", '--interval: invalid duration "5"'),
        ("HEALTHCHECK --interval=5us CMD x", 'Interval "interval" cannot be less than 1ms'),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD COPI a b", "unknown instruction: COPI (did you mean COPY?)"),
    ],
)
def test_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        read(parse(f"FROM x\n\n{text}\n"))
    assert caught.value.message.startswith(f"dockerfile parse error on line 3: {message}")


def test_what_comes_later_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"line 2: RUN --device is not supported yet"):
        read(parse("FROM x\nRUN --device=a make"))


def test_stages_and_their_names() -> None:
    found = read(parse("ARG V=1\nFROM a:$V AS One\nRUN x\nFROM one\nRUN y\nRUN z\n"))
    assert [len(stage.instructions) for stage in found.stages] == [1, 2]
    assert [argument.arguments for argument in found.arguments] == [(("V", "1"),)]
    assert (found.find("ONE"), found.find("1"), found.find("2"), found.find("x")) == (
        0,
        1,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RUN x\nFROM a", "line 1: no build stage in current context"),
        ("ARG a", "line 1: no FROM"),
        ("FROM a AS x\nFROM b AS X", "line 2: duplicate name x"),
    ],
)
def test_files_that_make_no_stages(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        read(parse(text))


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("FROM a:$v", "image", "a:1"),
        ("ENV $k=x$v", "pairs", (("key", "x1"),)),
        ("ENV a=new b=$a", "pairs", (("a", "new"), ("b", "old"))),
        ("LABEL l='$v' m=\"$v\"", "pairs", (("l", "$v"), ("m", "1"))),
        ("ARG x=$v y=$x", "arguments", (("x", "1"), ("y", "1"))),
        ("WORKDIR /$k", "path", "/key"),
        ("USER $k:$v", "user", "key:1"),
        ("EXPOSE $ports", "ports", ("80", "443")),
        ("VOLUME /$k", "paths", ("/key",)),
        ("COPY $k-$v /$v/", "sources", ("key-1",)),
        ("COPY --chown=$k a /$v/", "chown", "key"),
        ("ADD a /${v}/", "destination", "/1/"),
        ("COPY --exclude=$k a b", "excludes", ("key",)),
        (
            "COPY <<E /c\n$v '$v' \"${k}\" \\$v\nE",
            "heredocs",
            (Heredoc("E", "1 '1' \"key\" $v\n"),),
        ),
        ("COPY <<'E' /c\n$v\nE", "heredocs", (Heredoc("E", "$v\n", expand=False),)),
        ("RUN <<E\n$v\nE", "heredocs", (Heredoc("E", "$v\n"),)),
        ("RUN --mount=target=/$k x", "mounts", (RunMount("", target="/key"),)),
        ("ADD --checksum=$k http://x /", "checksum", "key"),
        ("STOPSIGNAL $v", "signal", "1"),
        ("RUN echo $v", "command", ("echo $v",)),
        ("CMD echo $v", "command", ("echo $v",)),
        ("ENTRYPOINT echo $v", "command", ("echo $v",)),
        ("ONBUILD RUN $v", "expression", "RUN $v"),
        ("HEALTHCHECK CMD echo $v", "test", ("CMD-SHELL", "echo $v")),
    ],
)
def test_where_variables_are_replaced(text: str, field: str, expected: object) -> None:
    variables = {"v": "1", "k": "key", "a": "old", "ports": "80 443"}
    assert getattr(one(text).substituted(variables), field) == expected


def test_an_image_name_that_comes_out_empty_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"line 1: base name \(\$nothing\) should not be"):
        one("FROM $nothing").substituted({})
