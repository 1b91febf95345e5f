"""The default network, none, host, and the network of another container.

Real packets go between containers, the host, and a machine outside.
"""

from __future__ import annotations

import pytest

from tiffin.engine import Engine
from tiffin.errors import Conflict, InvalidParameter, TiffinError
from tiffin.network.namespace import Namespace
from traffic import HOST, OUTSIDE, Echo, address, client, create, fetch, reaches, serve, start

pytestmark = pytest.mark.usefixtures("machine_without_networks")


def test_containers_of_the_default_network_reach_each_other_and_the_host(engine: Engine) -> None:
    web = serve(engine, "hello")
    target = address(engine, web)
    assert client(engine, f"wget -q -O - http://{target}/") == (0, "hello\n")
    assert fetch(target, 80) == "hello"
    view = engine.networks.inspect("bridge")
    assert view["Containers"][web]["IPv4Address"] == f"{target}/16"
    # Nobody knows names there.
    assert client(engine, "wget -q -O - http://hello/")[0] == 1


def test_what_leaves_comes_from_the_host(engine: Engine, outside: Namespace) -> None:
    echo = Echo(outside, 7)
    try:
        assert client(engine, f"nc {OUTSIDE} 7") == (0, f"{HOST}\n")
    finally:
        echo.close()


def test_nobody_outside_routes_into_a_network(engine: Engine, outside: Namespace) -> None:
    web = serve(engine, "hidden")
    with outside.visit():
        assert not reaches(address(engine, web), 80)


def test_addresses_are_free_again(engine: Engine) -> None:
    engine.networks.create({"Name": "small", "IPAM": {"Config": [{"Subnet": "10.9.0.0/29"}]}})
    for _ in range(12):
        assert client(engine, "true", "small")[0] == 0
    assert engine.networks.inspect("small")["Containers"] == {}
    held = [start(engine, "sleep 100", "small") for _ in range(5)]
    with pytest.raises(TiffinError, match="no available IPv4 addresses"):
        start(engine, "true", "small")
    engine.containers.remove(held[0], force=True)
    assert client(engine, "true", "small")[0] == 0


def test_none_and_host(engine: Engine) -> None:
    assert client(engine, "ip -o link | wc -l", "none") == (0, "1\n")
    echo = Echo(None, 7)
    try:
        assert client(engine, "nc 127.0.0.1 7", "host") == (0, "127.0.0.1\n")
    finally:
        echo.close()
    with pytest.raises(InvalidParameter, match="conflicting options"):
        engine.containers.create(
            {
                "Image": "busybox",
                "HostConfig": {"NetworkMode": "none"},
                "NetworkingConfig": {"EndpointsConfig": {"bridge": {}, "none": {}}},
            }
        )


def test_another_containers_network(engine: Engine) -> None:
    web = serve(engine, "shared", config={"Hostname": "boss"})
    assert client(
        engine, "wget -q -O - http://127.0.0.1/; cat /etc/hostname", f"container:{web}"
    ) == (0, "shared\nboss\n")
    other = create(engine, "true", "container:shared")
    engine.containers.stop("shared", timeout=0)
    with pytest.raises(Conflict, match="cannot join network of a non running container"):
        engine.containers.start(other)
    for body, host in (
        ({"Hostname": "x"}, {}),
        ({}, {"PortBindings": {"80/tcp": [{}]}}),
        ({}, {"Dns": ["1.1.1.1"]}),
        ({"ExposedPorts": {"80/tcp": {}}}, {}),
    ):
        with pytest.raises(InvalidParameter, match="conflicting options"):
            create(engine, "true", "container:shared", config=body, **host)
