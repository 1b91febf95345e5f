"""DNS messages: what is asked, what is answered."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.network.porter import wire
from tiffin.network.porter.names import Directory, Entry


def query(name: str, kind: int = wire.A, *, edns: int = 0) -> bytes:
    option = b"\0" + struct.pack("!HHIH", wire.OPT, edns, 0, 0) if edns else b""
    header = struct.pack("!HHHHHH", 0x1234, 0x0100, 1, 0, 0, 1 if edns else 0)
    return header + wire.encode_name(name) + struct.pack("!HH", kind, wire.IN) + option


def test_a_question_is_read() -> None:
    question = wire.parse(query("Web.Net", wire.AAAA, edns=1400))
    assert question is not None
    assert (question.name, question.kind, question.size) == ("web.net", wire.AAAA, 1400)
    plain = wire.parse(query("web"))
    assert plain is not None
    assert plain.size == 512


@given(st.binary(max_size=80))
def test_nonsense_is_no_question(data: bytes) -> None:
    wire.parse(data)


@given(st.binary(max_size=40), st.integers(0, 60))
def test_a_broken_question_is_none(junk: bytes, cut: int) -> None:
    wire.parse(query("some.name")[:cut] + junk)


def test_an_answer_has_the_records_and_the_question() -> None:
    message = query("web")
    question = wire.parse(message)
    assert question is not None
    answer = wire.answer(message, question, [(wire.A, socket.inet_aton("10.0.0.2"))])
    identity, flags, questions, answers, _, _ = struct.unpack_from("!HHHHHH", answer)
    assert (identity, questions, answers, flags & 0x800F) == (0x1234, 1, 1, 0x8000)
    assert answer[12 : question.end] == message[12:]
    assert answer.endswith(struct.pack("!HHIH", 1, 1, wire.TTL, 4) + b"\x0a\0\0\2")


def test_too_many_records_are_cut_and_marked() -> None:
    message = query("web")
    question = wire.parse(message)
    assert question is not None
    records = [(wire.A, struct.pack("!I", number)) for number in range(100)]
    answer = wire.answer(message, question, records, limit=question.size)
    assert len(answer) <= 512
    assert struct.unpack_from("!H", answer, 2)[0] & 0x0200
    assert len(wire.answer(message, question, records)) > 1600


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.0.17.172.in-addr.arpa", "172.17.0.2"),
        ("1." + "0." * 30 + "f.ip6.arpa", "f000:" + "0000:" * 6 + "0001"),
        ("17.172.in-addr.arpa", None),
        ("web", None),
    ],
)
def test_reversed_names(name: str, address: str | None) -> None:
    assert wire.reversed_address(name) == address


def entry(endpoint: str, names: list[str], v4: str, network: str = "n") -> Entry:
    return Entry(endpoint, network, f"box {endpoint}", names, f"{names[0]}.net", v4, "")


def test_a_shared_name_goes_around() -> None:
    directory = Directory()
    for number in range(3):
        directory.join(entry(str(number), [f"c{number}", "All"], f"10.0.0.{number + 2}"))
    firsts = {directory.find("all", ["n"])[0].v4 for _ in range(3)}
    assert firsts == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}
    directory.leave("1")
    assert len(directory.find("all", ["n"])) == 2
    directory.leave_all("box 0")
    assert [one.v4 for one in directory.find("all", ["n"])] == ["10.0.0.4"]
    assert not directory.find("c0", ["n"])


def test_names_of_other_networks_are_not_known() -> None:
    directory = Directory()
    directory.join(entry("1", ["web"], "10.0.0.2", "one"))
    directory.join(entry("2", ["web"], "10.9.0.2", "two"))
    assert [one.v4 for one in directory.find("web", ["two"])] == ["10.9.0.2"]
    assert not directory.find("web", ["three"])
    assert directory.title("10.0.0.2", ["one"]) == "web.net"
    assert directory.title("10.0.0.2", ["two"]) == ""


def test_whoever_is_not_told_again_is_forgotten_once_all_is_told() -> None:
    directory = Directory()
    directory.join(entry("1", ["stays"], "10.0.0.2"))
    directory.join(entry("2", ["goes"], "10.0.0.3"))
    directory.begin()
    assert directory.find("goes", ["n"])
    directory.join(entry("1", ["stays"], "10.0.0.2"))
    directory.settle()
    assert directory.find("stays", ["n"])
    assert not directory.find("goes", ["n"])
