"""Proxies from the environment: for which hosts, how, and what they are told."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from registry.conftest import HASTY, Connect, MadeImage, Start, layer_tar
from registry.faulty import FaultyProxy
from registry.forward import ForwardProxy
from registry.issuer import PASSWORD, USER, Guarded, Issuer
from registry.test_client import certificate
from tiffin.errors import Unreachable
from tiffin.registry.client import Registry
from tiffin.registry.credentials import Credentials
from tiffin.registry.endpoints import Configuration

IMAGE = MadeImage([layer_tar({"etc/a": b"a" * 50_000})])
SECRET = "p@ss-word"
BASIC = "Basic " + b64encode(f"user:{SECRET}".encode()).decode()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def insecure(folder: Path, *hosts: str) -> tuple[Path, ...]:
    """Where hosts are named that speak plain HTTP."""
    text = "".join(f'[registry."{host}"]\ninsecure = true\n' for host in hosts)
    (folder / "registries.toml").write_text(text)
    return (folder,)


def pull(client: Registry) -> None:
    assert client.manifest("app", "v1").digest == IMAGE.digest
    with client.blob("app", IMAGE.layers[0]) as stream:
        assert b"".join(iter(stream.read, b"")) == IMAGE.blobs[0]


def test_plain_http(
    registry: Registry, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    IMAGE.push(registry, "app", "v1")
    with ForwardProxy(registry.host, BASIC) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss-word@{proxy.address}")
        client = connect("registry.test:5000", None, insecure(tmp_path, "registry.test:5000"))
        pull(client)
        assert "GET http://registry.test:5000/v2/app/manifests/v1" in proxy.requests
        assert set(proxy.authorizations) == {BASIC}
        # This machine is reached without.
        del proxy.requests[:]
        pull(connect(registry.host))
        assert proxy.requests == []


def test_tls_goes_through_a_tunnel(
    start_registry: Start, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path, "own")
    server = start_registry(certificate=(cert, key))
    IMAGE.push(connect(server), "app", "v1")
    place = tmp_path / "certs.d" / "registry.test"
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(cert.read_bytes())
    with ForwardProxy(server.address, BASIC) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss-word@{proxy.address}")
        pull(connect("registry.test", None, (tmp_path,)))
        # All that the proxy sees is the host.
        assert set(proxy.requests) == {"CONNECT registry.test:443"}
        assert set(proxy.authorizations) == {BASIC}
        # The certificate is checked inside the tunnel, for the registry's name.
        with pytest.raises(Unreachable, match=r"certs\.d/other\.test"):
            connect("other.test").ping()


def test_hosts_that_need_none(
    registry: Registry, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    IMAGE.push(registry, "app", "v1")
    # An address of this machine that is not of its loopback.
    host = registry.host.replace("127.0.0.1", "0.0.0.0")
    folders = insecure(tmp_path, host)
    with ForwardProxy(registry.host) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        pull(connect(host, None, folders))
        assert proxy.requests
        del proxy.requests[:]
        monkeypatch.setenv("NO_PROXY", "example.test,0.0.0.0")
        pull(connect(host, None, folders))
        assert proxy.requests == []


def test_a_redirect_goes_by_its_own_host(
    registry: Registry, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    IMAGE.push(registry, "app", "v1")
    with (
        Issuer() as issuer,
        FaultyProxy(registry.host) as near,
        Guarded(registry.host, issuer, elsewhere=near.address) as guarded,
        ForwardProxy(guarded.address) as proxy,
    ):
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        folders = insecure(tmp_path, "registry.test:5000")
        pull(connect("registry.test:5000", Credentials(USER, PASSWORD), folders))
        # The registry is far; the issuer, and where its blobs are, are this machine.
        assert {line.split("/")[2] for line in proxy.requests if "//" in line} == {
            "registry.test:5000"
        }
        assert len(issuer.asked) == 1
        assert len(near.requests) == 1


def test_a_proxy_that_refuses_is_named_without_its_password(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ForwardProxy(registry.host, "Basic other") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss-word@{proxy.address}")
        (endpoint,) = Configuration(()).endpoints("registry.test", mirrors=False)
        with (
            Registry(endpoint, patience=HASTY) as client,
            pytest.raises(Unreachable, match="407") as caught,
        ):
            client.ping()
    # Nobody listens.
    with (
        Registry(endpoint, patience=HASTY) as client,
        pytest.raises(Unreachable) as refused,
    ):
        client.ping()
    for error in (caught.value, refused.value):
        for text in (str(error), repr(error), repr(error.__cause__)):
            assert SECRET not in text
            assert "p%40ss" not in text
            assert BASIC.partition(" ")[2] not in text
