"""Older versions of the API: their answers have the members, of the same types, that a real
dockerd of that time gives to the same requests."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from clients.peers import Peer

pytestmark = [pytest.mark.peer, pytest.mark.root]

VERSIONS = ("1.24", "1.30", "1.41")
BODY = {
    "Image": "busybox",
    "Cmd": ["sleep", "1000"],
    "ExposedPorts": {"80/tcp": {}},
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**9},
    "HostConfig": {
        "NetworkMode": "net1",
        "Binds": ["vol1:/v", "/tmp:/host:ro"],
        "Mounts": [{"Type": "tmpfs", "Target": "/t"}],
    },
    "NetworkingConfig": {"EndpointsConfig": {"net1": {"Aliases": ["other"]}}},
}
ASKED = (
    *("/version", "/info", "/system/df", "/containers/json?all=1&size=1"),
    *("/containers/c1/json?size=1", "/containers/c2/json", "/containers/c1/top"),
    *("/containers/c1/changes", "/containers/c1/stats?stream=0", "/containers/absent/json"),
    *("/images/json", "/images/busybox/json", "/images/made:1/json", "/images/made:1/history"),
    *("/networks", "/networks/net1", "/volumes", "/volumes/vol1", "/exec/EXEC/json"),
)

BY_NATURE = re.compile(
    "|".join(
        (
            # Which runtimes there are; what is merged by the kernel alone has no place.
            r"/info \.Runtimes\.",
            r"/images/[^ ]* \.GraphDriver\.Data\.(Merged|Upper|Work)Dir",
            r"/containers/c2/json \.GraphDriver\.Data\.MergedDir",
            # Null in Docker's answers, where its description has a number.
            r"\.HostConfig\.MemorySwappiness",
            # Kernels differ, and so do versions of dockerd in what they add to them.
            r"\.memory_stats\.",
            # A commit's labels are none, where they were an empty object.
            r"Labels$",
        )
    )
)
"""What dockerd has and tiffin has not."""


def members(value: Any, path: str, found: dict[str, set[str]]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            here = path if re.fullmatch("[0-9a-f]{64}", name) else f"{path}.{name}"
            found.setdefault(here, set()).add(type(item).__name__)
            members(item, here, found)
    for item in value if isinstance(value, list) else ():
        members(item, f"{path}[]", found)


def answers(peer: Peer) -> dict[str, dict[str, set[str]]]:
    """The members of each answer, with the names of their types."""

    def post(path: str, body: Any = None) -> Any:
        return peer.request("POST", path, json.dumps(body).encode() if body is not None else None)

    post("/networks/create", {"Name": "net1", "Labels": {"a": "b"}})
    post("/volumes/create", {"Name": "vol1"})
    post("/containers/create?name=c1", BODY)
    post("/containers/c1/start")
    none = {"HostConfig": {"NetworkMode": "none"}}
    post("/containers/create?name=c2", {"Image": "busybox", "Cmd": ["false"], **none})
    post("/containers/c2/start")
    post("/containers/c2/wait")
    post("/commit?container=c2&repo=made&tag=1", {})
    key = post("/containers/c1/exec", {"Cmd": ["sleep", "1000"]})["Id"]
    post(f"/exec/{key}/start", {"Detach": True})
    while peer.request("GET", "/containers/c1/json")["State"]["Health"]["Status"] == "starting":
        time.sleep(0.1)
    found: dict[str, dict[str, set[str]]] = {}
    for version in VERSIONS:
        for path in ASKED:
            answer = peer.request("GET", f"/v{version}{path.replace('EXEC', key)}")
            members(answer, "", found.setdefault(f"{version} {path}", {}))
    return found


def test_members_of_answers(dockerd: Peer, tiffin: Peer) -> None:
    if dockerd.request("GET", "/version")["ApiVersion"] != VERSIONS[-1]:
        pytest.skip("dockerd here is not 20.10")
    theirs: dict[str, dict[str, set[str]]] = {}
    ours: dict[str, dict[str, set[str]]] = {}
    for peer, found in ((dockerd, theirs), (tiffin, ours)):
        peer.reset()
        found.update(answers(peer))
        peer.reset()
    faults = []
    for where, known in theirs.items():
        for member, kinds in known.items():
            path = f"{where} {member}"
            if BY_NATURE.search(path):
                continue
            got = ours[where].get(member)
            if got is None:
                faults.append(f"{path} is missing")
            elif kinds - got - {"NoneType", "list"} and got - kinds - {"NoneType", "list"}:
                faults.append(f"{path} is {got}, not {kinds}")
    assert not faults, "\n".join(faults)
