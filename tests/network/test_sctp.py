"""SCTP through a published port, where the kernel has it: ``tests/vm/run networks`` has a guest."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tiffin.engine import Engine
from tiffin.network.namespace import Namespace
from traffic import HOST, OUTSIDE, address, start


def is_there() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.usefixtures("machine_without_networks"),
    # Also with CI=true: the guest of the same run has it.
    pytest.mark.skipif(not is_there(), reason="this kernel has no SCTP (CONFIG_IP_SCTP)"),
]


def namespace(engine: Engine, container: str) -> Namespace:
    return Namespace.of_process(engine.containers.inspect(container)["State"]["Pid"])


@contextmanager
def answering(place: Namespace) -> Iterator[None]:
    """Somebody at port 5000, who says what was said, and who said it: a message each."""
    with place.visit():
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
        server.bind(("0.0.0.0", 5000))
        server.listen(8)

    # SCTP sockets that listen can't be shut down, and one that is closed wakes nobody.
    here, there = socket.socketpair()

    def run() -> None:
        while there not in select.select([server, there], [], [])[0]:
            connection, peer = server.accept()
            with connection:
                connection.settimeout(60)
                while said := connection.recv(1 << 16):
                    connection.send(said + b" from " + peer[0].encode())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        here.close()
        thread.join(60)
        there.close()
        server.close()


def say(where: str, *words: bytes, patience: float = 30) -> list[str]:
    """What is answered, from where the calling thread is."""
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as sock:
        sock.settimeout(patience)
        sock.connect((where, 5000))
        for word in words:
            sock.send(word)
        return [sock.recv(1 << 16).decode() for _ in words]


def test_messages_arrive_from_everywhere(engine: Engine, outside: Namespace) -> None:
    engine.networks.create({"Name": "net"})
    engine.networks.create({"Name": "other"})
    ports = {"5000/sctp": [{"HostPort": "5000"}]}
    box = start(engine, "sleep 1000", "net", PortBindings=ports)
    view = engine.containers.inspect(box)["NetworkSettings"]
    assert view["Ports"] == {
        "5000/sctp": [{"HostIp": one, "HostPort": "5000"} for one in ("0.0.0.0", "::")]
    }
    gateway = view["Networks"]["net"]["Gateway"]
    with namespace(engine, box) as place, answering(place):
        with outside.visit():
            assert say(HOST, b"hello") == [f"hello from {OUTSIDE}"]
        assert say("127.0.0.1", b"hello") == [f"hello from {gateway}"]
        (heard,) = say(HOST, b"hello")
        assert heard.startswith("hello from ")
        # Carried by the porter: each message stays one.
        assert say("::1", b"one", b"two" * 1000, b"three") == [
            f"{word} from {gateway}" for word in ("one", "two" * 1000, "three")
        ]
        # From the same network, from another, and from itself.
        neighbour = start(engine, "sleep 1000", "net")
        stranger = start(engine, "sleep 1000", "other")
        for one in (neighbour, box, stranger):
            with namespace(engine, one) as there, there.visit():
                (heard,) = say(HOST, b"hello")
            # What comes back into its own network has the address of the host there.
            assert heard.startswith("hello from ")
            assert one == stranger or heard == f"hello from {gateway}"
        # Past the port nobody gets in from another network.
        target = address(engine, box, "net")
        with namespace(engine, stranger) as there, there.visit(), pytest.raises(OSError):
            say(target, patience=2)
    engine.containers.stop(box, timeout=0)
    with outside.visit(), pytest.raises(OSError):
        say(HOST, patience=2)
