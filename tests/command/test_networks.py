"""`tiffin network`, `tiffin volume` and published ports as a user types them; docker's CLI sees the
same."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess

import pytest

from command.conftest import Command, eventually

SERVE = "mkdir /w; echo hello > /w/index.html; exec httpd -f -p 80 -h /w"


def page(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


@pytest.fixture
def web(tiffin: Command) -> Command:
    """A network, and a web server in it."""
    tiffin(
        "network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.254",
        "--label", "kind=test", "-o", "com.docker.network.driver.mtu=1400", "net",
    )  # fmt: skip
    tiffin(
        "run", "-d", "--name", "web", "--network", "net", "--ip", "10.77.0.10", "-p", "8120:80",
        "--network-alias", "www", "--expose", "7000", "--add-host", "gw:host-gateway", "busybox",
        "sh", "-c", SERVE,
    )  # fmt: skip
    eventually(lambda: page(8120))
    return tiffin


def test_a_network_from_the_command_line(web: Command) -> None:
    assert page(8120) == "hello\n"
    listed = web("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}").splitlines()
    assert listed == ["bridge bridge local", "host host local", "net bridge local",
                      "none null local"]  # fmt: skip
    assert web("network", "ls", "-q", "-f", "label=kind=test").strip()
    view = json.loads(web("network", "inspect", "net"))[0]
    assert view["IPAM"]["Config"] == [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.254"}]
    assert [one["Name"] for one in view["Containers"].values()] == ["web"]
    assert web("port", "web") == "80/tcp -> 0.0.0.0:8120\n80/tcp -> [::]:8120\n"
    assert "0.0.0.0:8120->80/tcp" in web("ps", "--format", "{{.Ports}}")
    fetched = web(
        "run", "--rm", "--network", "net", "busybox", "wget", "-q", "-O", "-", "http://www/"
    )
    assert fetched == "hello\n"
    assert "10.77.0.254\tgw" in web("exec", "web", "cat", "/etc/hosts")


def test_connecting_and_removing(web: Command) -> None:
    web("network", "create", "other")
    web("network", "connect", "--alias", "guest", "other", "web")
    fetch = ("run", "--rm", "--network", "other", "busybox", "wget", "-q", "-O", "-")
    assert web(*fetch, "http://guest/") == "hello\n"
    web("network", "disconnect", "other", "web")
    assert web("network", "rm", "other") == "other\n"
    refused = web.result("network", "rm", "net")
    assert refused.returncode == 1
    assert b"has active endpoints" in refused.stderr
    taken = web.result("run", "--rm", "-p", "8120:80", "busybox", "true")
    assert taken.returncode == 125
    assert b"port is already allocated" in taken.stderr
    missing = web.result("run", "--rm", "--network", "nope", "busybox", "true")
    assert (missing.returncode, b"network nope not found" in missing.stderr) == (125, True)
    web("rm", "-f", "web")
    assert "net" in web("network", "prune", "-f")


@pytest.mark.peer
def test_dockers_own_command_sees_the_same(web: Command) -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("docker's CLI is not installed")

    def run(*words: str) -> str:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{web.root}/tiffin.sock"}
        done = subprocess.run(
            [docker, *words], env=environment, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr
        return done.stdout

    assert run("port", "web") == web("port", "web")
    assert "0.0.0.0:8120->80/tcp" in run("ps")
    assert json.loads(run("network", "inspect", "net")) == json.loads(
        web("network", "inspect", "net")
    )
    assert run("inspect", "-f", "{{.NetworkSettings.Networks.net.IPAddress}}", "web") == (
        "10.77.0.10\n"
    )
    run("network", "create", "--internal", "inner")
    run("network", "connect", "inner", "web")
    command = (
        "run",
        "--rm",
        "--network",
        "inner",
        "busybox",
        "wget",
        "-q",
        "-O",
        "-",
        "http://web/",
    )
    assert run(*command) == "hello\n"
    run("network", "disconnect", "inner", "web")
    run("network", "rm", "inner")
    run("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", "ram")
    mounted = run("run", "--rm", "-v", "ram:/ram", "busybox", "df", "-k", "/ram")
    assert mounted.splitlines()[-1].split()[1] == "1024"
