"""The rule that leads a container's questions to the embedded name server."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tiffin.errors import TiffinError
from tiffin.network.namespace import Namespace
from tiffin.network.redirection import redirect

pytestmark = pytest.mark.root
ADDRESS = "127.0.0.11"


@pytest.fixture
def inside() -> Iterator[None]:
    with Namespace.new() as namespace, namespace.visit():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield


def _udp_server() -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.settimeout(60)
    server.bind((ADDRESS, 0))
    return server


def _ask() -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(60)
    client.sendto(b"question", (ADDRESS, 53))
    return client


def test_questions_arrive_and_answers_come_from_port_53(inside: None) -> None:
    with _udp_server() as server:
        redirect(ADDRESS, server.getsockname()[1])
        with _ask() as client:
            data, asker = server.recvfrom(100)
            server.sendto(data + b" answered", asker)
            assert client.recvfrom(100) == (b"question answered", (ADDRESS, 53))


def test_by_tcp_too(inside: None) -> None:
    with socket.create_server((ADDRESS, 0)) as server:
        server.settimeout(60)
        redirect(ADDRESS, server.getsockname()[1])
        with socket.create_connection((ADDRESS, 53), 60) as client:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello")
            assert client.recv(10) == b"hello"


def test_the_last_call_holds_and_leaves_one_rule_a_protocol(inside: None) -> None:
    redirect(ADDRESS, 61000)
    with _udp_server() as server:
        redirect(ADDRESS, server.getsockname()[1])
        with _ask():
            assert server.recv(100) == b"question"
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    assert rules.stdout.count("dnat to") == 2
    assert ":61000" not in rules.stdout


def test_other_ports_and_addresses_are_left_alone(inside: None) -> None:
    redirect(ADDRESS, 61000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(60)
        server.bind(("127.0.0.1", 53))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"mine", ("127.0.0.1", 53))
            assert server.recv(100) == b"mine"


def test_thousands_of_descriptors_are_no_hindrance(inside: None) -> None:
    before, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    fds: list[int] = []
    try:
        while not fds or fds[-1] <= 1100:  # more than select(2) takes
            fds.append(os.open("/dev/null", os.O_RDONLY))
        redirect(ADDRESS, 61000)
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, highest))


def test_a_kernel_that_refuses_is_told_of(inside: None) -> None:
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            redirect(ADDRESS, 61000)
        except TiffinError as error:
            os._exit(0 if "not permitted" in error.message else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
