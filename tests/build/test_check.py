"""build --check: each rule, where it points, and how it is told."""

from __future__ import annotations

import pytest

from tiffin.build.check import check
from tiffin.build.dockerignore import Ignore
from tiffin.build.parser import parse
from tiffin.build.rules import RULES
from tiffin.errors import InvalidParameter

CASES = [
    ("StageNameCasing", "FROM a AS Big\n", 1, 11, "Stage name 'Big' should be lowercase"),
    ("FromAsCasing", "FROM a as b\n", 1, 7, "'as' and 'FROM' keywords' casing do not match"),
    ("FromAsCasing", "from a AS b\n", 1, 7, "'AS' and 'from' keywords' casing do not match"),
    ("NoEmptyContinuation", "FROM a\nRUN b \\\n\n  c\n", 2, 1, "Empty continuation line"),
    (
        "ConsistentInstructionCasing",
        "FROM a\n  run b\nUSER c\n",
        2,
        3,
        "Command 'run' should match the case of the command majority (uppercase)",
    ),
    (
        "ConsistentInstructionCasing",
        "from a\nRun b\n",
        2,
        1,
        "Command 'Run' should match the case of the command majority (lowercase)",
    ),
    (
        "DuplicateStageName",
        "FROM a AS x\nFROM b AS x\n",
        2,
        11,
        'Duplicate stage name "x", stage names should be unique',
    ),
    (
        "ReservedStageName",
        "FROM a AS scratch\n",
        1,
        11,
        'Stage name should not use the same name as reserved stage "scratch"',
    ),
    (
        "JSONArgsRecommended",
        "FROM a\nCMD run it\n",
        2,
        1,
        "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
    ),
    (
        "MaintainerDeprecated",
        "FROM a\nMAINTAINER me\n",
        2,
        1,
        "Maintainer instruction is deprecated in favor of using label",
    ),
    (
        "UndefinedArgInFrom",
        "ARG VERSION=1\nFROM a:$VERSIO\n",
        2,
        9,
        "FROM argument 'VERSIO' is not declared (did you mean VERSION?)",
    ),
    (
        "WorkdirRelativePath",
        "FROM a\nWORKDIR x/y\n",
        2,
        9,
        'Relative workdir "x/y" can have unexpected results if the base image changes',
    ),
    (
        "UndefinedVar",
        "FROM scratch\nARG name=1\nCOPY $nam ${other:-x} /\n",
        3,
        7,
        "Usage of undefined variable '$nam' (did you mean $name?)",
    ),
    (
        "MultipleInstructionsDisallowed",
        'FROM a\nCMD ["a"]\nCMD ["b"]\n',
        2,
        1,
        (
            "Multiple CMD instructions should not be used in the same stage because only the last "
            "one will be used"
        ),
    ),
    (
        "LegacyKeyValueFormat",
        "FROM a\nENV a b c\n",
        2,
        1,
        '"ENV key=value" should be used instead of legacy "ENV key value" format',
    ),
    (
        "RedundantTargetPlatform",
        "FROM --platform=$TARGETPLATFORM a\n",
        1,
        6,
        (
            "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the "
            "default behavior"
        ),
    ),
    (
        "SecretsUsedInArgOrEnv",
        "FROM a\nENV a=1 AWS_SECRET=x\n",
        2,
        9,
        'Do not use ARG or ENV instructions for sensitive data (ENV "AWS_SECRET")',
    ),
    (
        "InvalidDefaultArgInFrom",
        "ARG TAG\nFROM a:$TAG\n",
        2,
        6,
        "Default value for ARG a:$TAG results in empty or invalid base image name",
    ),
    (
        "FromPlatformFlagConstDisallowed",
        "FROM --platform=linux/amd64 a\n",
        1,
        6,
        'FROM --platform flag should not use constant value "linux/amd64"',
    ),
    (
        "CopyIgnoredFile",
        "FROM a\nCOPY ok ./tmp/x /\n",
        2,
        9,
        'Attempting to COPY file "./tmp/x" that is excluded by .dockerignore',
    ),
    (
        "ExposeProtoCasing",
        "FROM a\nEXPOSE 80/TCP\n",
        2,
        8,
        "Defined protocol '80/TCP' in EXPOSE instruction should be lowercase",
    ),
    (
        "ExposeInvalidFormat",
        "FROM a\nEXPOSE 80:81\n",
        2,
        8,
        ("EXPOSE instruction should not define an IP address or host-port mapping, found '80:81'"),
    ),
    (
        "InvalidDefinitionDescription",
        "# check=experimental=all\n\n# something else\nARG x\nFROM a\n",
        4,
        1,
        "Comment for ARG should follow the format: `# x <description>`",
    ),
]


@pytest.mark.parametrize(("rule", "text", "line", "column", "message"), CASES)
def test_rule(rule: str, text: str, line: int, column: int, message: str) -> None:
    report = check(parse(text), ignore=Ignore(["tmp"]))
    assert [(each.rule.name, each.message, each.line, each.column) for each in report.findings] == [
        (rule, message, line, column)
    ]
    directive = f"# check=skip={rule}\n"
    if not text.startswith("# check"):
        assert check(parse(directive + text), ignore=Ignore(["tmp"])).findings == ()


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(RULES)


@pytest.mark.parametrize(
    "text",
    [
        "ARG V=1\nFROM a:$V AS b\nWORKDIR /x\nWORKDIR y\nENV PUBLIC_KEY=1 a=b\nUSER $a\n",
        'FROM a\nSHELL ["/bin/bash", "-c"]\nCMD run it\n',
        "FROM scratch AS x\nARG v=1\nENV e=$v\nFROM x\nLABEL a=$v$e$HTTP_PROXY${n:+x}\n",
        "from a as b\nuser c\n",
        "# x is a stage\nFROM a AS b\n",
        "FROM a\nCMD []\nEXPOSE 80/tcp $PORT\n",
        "ARG TAG=1\nFROM a:${TAG:-2}\n",
    ],
)
def test_nothing_to_say(text: str) -> None:
    assert check(parse(text)).findings == ()


def test_variables_of_the_base_image_are_known() -> None:
    file = parse("FROM base\nCOPY $here $elsewhere /\n")
    assert check(file).findings == (), "nothing is known of the base"
    report = check(file, environment=lambda name: {"here": "1"} if name == "base" else None)
    assert [each.message for each in report.findings] == [
        "Usage of undefined variable '$elsewhere'"
    ]


def test_directives() -> None:
    text = "FROM a AS B\nCMD x\n"
    assert len(check(parse(text)).findings) == 2
    assert check(parse("# check=skip=all\n" + text)).findings == ()
    report = check(parse("# check=skip=StageNameCasing;error=true\n" + text))
    assert report.is_error and [each.rule.name for each in report.findings] == [
        "JSONArgsRecommended"
    ]
    with pytest.raises(InvalidParameter, match=r"unknown check 'StageNameCasin' \(did you mean"):
        check(parse("# check=skip=StageNameCasin\n" + text))
    with pytest.raises(InvalidParameter, match="unknown check option 'skp'"):
        check(parse("# check=skp=all\n" + text))


def test_how_a_finding_is_shown() -> None:
    file = parse("FROM a\n\nRUN b\n\n  CMD c \\\n   d\nUSER x\n")
    (finding,) = check(file).findings
    assert finding.shown("Dockerfile", file.lines) == (
        "WARNING: JSONArgsRecommended - "
        "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/\n"
        "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals\n"
        "Dockerfile:5:3\n"
        "--------------------\n"
        "  3 |     RUN b\n"
        "  4 |\n"
        "  5 | >>>   CMD c \\\n"
        "  6 | >>>    d\n"
        "  7 |     USER x\n"
        "--------------------"
    )
