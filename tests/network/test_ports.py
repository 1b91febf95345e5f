"""What is published, and which ports of the host it gets."""

from __future__ import annotations

import socket

import pytest

from tiffin.errors import InvalidParameter, TiffinError, Unsupported
from tiffin.network.ports import Wanted, hold, wanted


def close(held: object) -> None:
    for _, sock in held:  # type: ignore[attr-defined]
        sock.close()


def test_all_exposed_ports_are_published_when_asked_for() -> None:
    found = wanted({"80/tcp": [{"HostPort": "8080"}]}, ["80/tcp", "53/udp"], True)
    assert [(one.protocol, one.container_port, one.first) for one in found] == [
        ("tcp", 80, 8080),
        ("udp", 53, 0),
    ]
    assert not wanted({}, ["80/tcp"], False)


@pytest.mark.parametrize(
    "bindings",
    [
        {"80/icmp": []},
        {"http": []},
        {"70000": []},
        {"80": [{"HostPort": "x"}]},
        {"80": [{"HostPort": "9-8"}]},
        {"80": [{"HostIp": "nowhere"}]},
    ],
)
def test_bindings_that_make_no_sense(bindings: dict[str, list[dict[str, str]]]) -> None:
    with pytest.raises(InvalidParameter):
        wanted(bindings, [], False)


def test_a_port_in_use_is_refused_in_dockers_words() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        with pytest.raises(TiffinError, match="address already in use"):
            hold(Wanted("tcp", 80, ("0.0.0.0", "::"), number, number), set())
    # It was let go at both families.
    close(hold(Wanted("tcp", 80, ("0.0.0.0", "::"), number, number), set()))


def test_udp_and_tcp_do_not_meet() -> None:
    tcp = hold(Wanted("tcp", 80, ("127.0.0.1",), 0, 0), set())
    number = tcp[0][0].host_port
    close(hold(Wanted("udp", 80, ("127.0.0.1",), number, number), set()))
    close(tcp)


def test_a_range_gives_the_first_free_port() -> None:
    first = hold(Wanted("tcp", 80, ("127.0.0.1",), 18000, 18002), set())
    second = hold(Wanted("tcp", 80, ("127.0.0.1",), 18000, 18002), set())
    assert (first[0][0].host_port, second[0][0].host_port) == (18000, 18001)
    close(first)
    close(second)


def test_a_free_port_is_the_same_in_both_families() -> None:
    held = hold(Wanted("tcp", 80, ("0.0.0.0", "::"), 0, 0), set())
    assert len({port.host_port for port, _ in held}) == 1
    assert {port.host_address for port, _ in held} == {"0.0.0.0", "::"}
    close(held)


def test_what_the_kernel_does_not_know_is_refused_by_name() -> None:
    want = Wanted("sctp", 80, ("0.0.0.0",), 9000, 9000)
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        for first in (9000, 0):
            with pytest.raises(Unsupported, match="no SCTP"):
                hold(Wanted("sctp", 80, ("0.0.0.0",), first, first), set())
        return
    held = hold(want, set())
    with pytest.raises(TiffinError, match="already in use"):
        hold(want, set())
    close(held)
