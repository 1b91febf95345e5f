"""Nonsense at every path of the API: it is refused, and never an internal error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_schema import api_schema
from tiffin.engine import Engine

pytestmark = pytest.mark.root

OPERATIONS = [
    (method, path)
    for method, path in api_schema().operations()
    # These last until something happens.
    if path not in ("/events", "/containers/{id}/stats", "/containers/{id}/wait")
    # Registries and the network are elsewhere.
    and not path.startswith(("/distribution", "/auth", "/images/search", "/networks"))
    and not path.endswith("/push")
]
ODD = [
    *("", "0", "-1", "1", "true", "busybox", "one", "a" * 70, "/", "..", "sha256:", "{}", "[]"),
    *('{"label":["a"]}', '{"until":["x"]}', '{"x":1}', "null", "9" * 20, "é", "\0"),
]
WORDS = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=8),
)
NAMES = st.one_of(st.sampled_from(["one", "busybox", "nothing"]), WORDS.filter(bool))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
CONFIG = (
    "Hostname Domainname User AttachStdin Tty OpenStdin Env Cmd Healthcheck Image Volumes "
    "WorkingDir Entrypoint OnBuild Labels StopSignal StopTimeout Shell ExposedPorts Name Driver "
    "DriverOpts HostConfig NetworkingConfig Privileged DetachKeys ConsoleSize Detach"
).split()
HOST = (
    "CpuShares Memory CgroupParent BlkioWeight CpuPeriod CpuQuota CpusetCpus Devices "
    "DeviceCgroupRules MemorySwap NanoCpus OomKillDisable Init PidsLimit Ulimits Binds LogConfig "
    "NetworkMode PortBindings RestartPolicy AutoRemove VolumesFrom Mounts ConsoleSize CapAdd "
    "CapDrop Dns ExtraHosts GroupAdd IpcMode OomScoreAdj PidMode Privileged ReadonlyRootfs "
    "SecurityOpt Tmpfs ShmSize Sysctls Runtime MaskedPaths"
).split()
HOST_CONFIG = st.dictionaries(st.sampled_from(HOST), VALUES, max_size=3)
BODY = st.one_of(
    VALUES,
    st.builds(
        lambda config, host: {"Image": "busybox", "Cmd": ["true"], **config, "HostConfig": host},
        st.dictionaries(st.sampled_from(CONFIG), VALUES, max_size=3),
        HOST_CONFIG,
    ),
    HOST_CONFIG,
)


@pytest.fixture
def docker(engine: Engine, api: Callable[[Any], Any]) -> Any:
    engine.containers.create(
        {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}, "one"
    )
    return api(engine)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    operation=st.sampled_from(OPERATIONS),
    name=NAMES,
    values=st.lists(WORDS, min_size=20, max_size=20),
    body=BODY,
)
def test_nonsense_is_refused(
    docker: Any, operation: tuple[str, str], name: str, values: list[str], body: Any
) -> None:
    method, path = operation
    target = path.replace("{id}", quote(name)).replace("{name}", quote(name))
    parameters = zip(api_schema().parameters(method, path), values, strict=False)
    target += "?" + "&".join(f"{key}={quote(value)}" for key, value in parameters if value != "")
    content = json.dumps(body).encode() if method in ("POST", "PUT") else b""
    client = docker.client()
    lines = [f"{method} {target} HTTP/1.1", "Host: d", f"Content-Length: {len(content)}"]
    kind = {"Content-Type": "application/json"} if content else {}
    lines += [f"{key}: {value}" for key, value in kind.items()]
    client.send("\r\n".join([*lines, "", ""]).encode() + content)
    answer = client.head()
    client.close()
    if answer.status == 500:
        answer = docker.request(method, target, content, kind)
    # Some nonsense is the name of an image on Docker Hub, which can't be reached from everywhere.
    reached = b"docker.io" not in answer.body
    assert answer.status != 500 or not reached, (method, target, content, answer.body)
    assert docker.request("GET", "/_ping").body == b"OK"
