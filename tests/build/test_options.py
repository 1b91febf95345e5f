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
        as_docker=True,
        quiet=True,
    )
    assert BuildOptions.from_query({}) == BuildOptions(tags=[], as_docker=True)


def test_everything_else() -> None:
    options = BuildOptions.from_query(
        {
            "squash": ["1"],
            "memory": ["1000"],
            "shmsize": ["65536"],
            "cpusetcpus": ["0-1"],
            "cgroupparent": ["/some/where"],
            "securityopt": ['["no-new-privileges"]'],
            "networkmode": ["mine"],
            "extrahosts": ["a:1.2.3.4", "b:::1"],
            "ulimits": ['[{"Name":"nofile","Soft":1,"Hard":2}]'],
            "nocachefilter": ['["a"]'],
            "contexts": ['{"Docs":"/docs","img":"docker-image://x"}'],
            "ssh": ['{"default":"/agent"}'],
            "allow": ['["security.insecure"]'],
            "jobs": ["3"],
            "debug": ["tty"],
            "events": ["1"],
            "as-docker": ["0"],
            "cachefrom": ['["image:1","type=local,src=/cache"]'],
            "cacheto": ['["type=local,dest=/out,mode=min"]'],
            "remote": ["https://example.org/x.git"],
            "annotations": ['{"manifest:a":"b"}'],
        }
    )
    assert options == BuildOptions(
        tags=[],
        squash=True,
        network_mode="mine",
        host={
            "Memory": 1000,
            "ShmSize": 65536,
            "CpusetCpus": "0-1",
            "CgroupParent": "/some/where",
            "SecurityOpt": ["no-new-privileges"],
            "ExtraHosts": ["a:1.2.3.4", "b:::1"],
            "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
        },
        no_cache_filter=["a"],
        contexts={"docs": "/docs", "img": "docker-image://x"},
        ssh={"default": "/agent"},
        allow=["security.insecure"],
        jobs=3,
        debug="tty",
        events=True,
        cache_from=["image:1", "type=local,src=/cache"],
        cache_to=["type=local,dest=/out,mode=min"],
        remote="https://example.org/x.git",
        annotations={"manifest:a": "b"},
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("cacheto", '["type=s3,bucket=x"]', "--cache-to type=s3"),
        ("outputs", '[{"Type":"local"}]', "--output"),
        ("version", "2", "DOCKER_BUILDKIT=0"),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(name: str, value: str, said: str) -> None:
    with pytest.raises(Unsupported) as caught:
        BuildOptions.from_query({name: [value]})
    assert said in caught.value.message


@pytest.mark.parametrize(
    "query",
    [
        {"buildargs": ["{"]},
        {"buildargs": ['["a"]']},
        {"labels": ['{"a":null}']},
        {"t": ["A b"]},
        {"memory": ["x"]},
        {"ulimits": ['{"a":1}']},
        {"nocachefilter": ["[1]"]},
        {"jobs": ["-1"]},
        {"allow": ['["all"]']},
        {"debug": ["1"]},
        {"cachefrom": ['["type=local"]']},
        {"cachefrom": ['["type=inline"]']},
        {"cachefrom": ['["type=registry,reff=x"]']},
        {"cacheto": ['["type=local,dest=/x,mode=all"]']},
        {"cacheto": ['["type=cloud"]']},
    ],
)
def test_malformed_parameters(query: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidParameter):
        BuildOptions.from_query(query)
