"""What a build is asked for by the API."""

from __future__ import annotations

import pytest

from tiffin.build.options import BuildOptions
from tiffin.errors import InvalidParameter, Unsupported


def test_what_the_docker_cli_sends() -> None:
    options = BuildOptions.from_query(
        {
            "t": ["a:1", "b"],
            "dockerfile": ["sub/Dockerfile"],
            "buildargs": ['{"A":"1","B":null}'],
            "labels": ['{"l":"v"}'],
            "cachefrom": ["[]"],
            "cgroupparent": [""],
            "cpuperiod": ["0"],
            "cpuquota": ["0"],
            "cpusetcpus": [""],
            "cpusetmems": [""],
            "cpushares": ["0"],
            "memory": ["0"],
            "memswap": ["0"],
            "networkmode": ["default"],
            "rm": ["1"],
            "forcerm": ["1"],
            "shmsize": ["0"],
            "ulimits": ["null"],
            "nocache": ["1"],
            "target": ["x"],
            "q": ["1"],
            "version": ["1"],
        }
    )
    assert options == BuildOptions(
        tags=["a:1", "b"],
        dockerfile="sub/Dockerfile",
        build_args={"A": "1", "B": None},
        labels={"l": "v"},
        no_cache=True,
        target="x",
        quiet=True,
    )
    assert BuildOptions.from_query({}) == BuildOptions(tags=[])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pull", "1", "--pull"),
        ("squash", "1", "--squash"),
        ("remote", "https://x/y.git", "a remote context"),
        ("cachefrom", '["a"]', "--cache-from"),
        ("extrahosts", "a:1.2.3.4", "--add-host"),
        ("memory", "1000", "--memory"),
        ("ulimits", '[{"Name":"nofile"}]', "--ulimit"),
        ("outputs", '[{"Type":"local"}]', "--output"),
        ("networkmode", "mynet", "network mode 'mynet'"),
        ("version", "2", "DOCKER_BUILDKIT=0"),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(name: str, value: str, said: str) -> None:
    with pytest.raises(Unsupported) as caught:
        BuildOptions.from_query({name: [value]})
    assert said in caught.value.message


@pytest.mark.parametrize(
    "query",
    [{"buildargs": ["{"]}, {"buildargs": ['["a"]']}, {"labels": ['{"a":null}']}, {"t": ["A b"]}],
)
def test_malformed_parameters(query: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidParameter):
        BuildOptions.from_query(query)
