"""The files in a container's /etc."""

from __future__ import annotations

from tiffin.network.files import Resolver, embedded_resolv_conf, hosts_text, plain_resolv_conf


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_hosts_names_the_container_at_each_address() -> None:
    text = hosts_text("box", "", ["172.17.0.2", "fd00::2"], [("db", "10.0.0.1")])
    assert text.splitlines()[0] == "127.0.0.1\tlocalhost"
    assert text.splitlines()[-3:] == ["10.0.0.1\tdb", "172.17.0.2\tbox", "fd00::2\tbox"]


def test_a_domain_gives_two_names() -> None:
    assert hosts_text("box", "example.com", ["10.0.0.2"], []).endswith(
        "10.0.0.2\tbox.example.com box\n"
    )
    assert hosts_text("box.example.com", "", ["10.0.0.2"], []).endswith(
        "10.0.0.2\tbox.example.com box\n"
    )


def test_links_are_lines() -> None:
    text = hosts_text("box", "", ["10.0.0.2"], [], [("10.0.0.3", ["db", "abc", "other"])])
    assert "10.0.0.3\tdb abc other\n" in text


HOST = Resolver.parse(
    "# a comment\nnameserver 127.0.0.53\nnameserver 9.9.9.9 ; quick\nnameserver fd00::1\n"
    "search one.example two.example\noptions edns0 trust-ad\n"
)


def test_servers_that_only_the_host_reaches_are_left_out() -> None:
    assert lines(plain_resolv_conf(HOST, ipv6=False)) == [
        "nameserver 9.9.9.9",
        "search one.example two.example",
        "options edns0 trust-ad",
    ]
    assert "nameserver fd00::1" in plain_resolv_conf(HOST, ipv6=True)
    alone = Resolver.parse("nameserver 127.0.0.1\n")
    assert lines(plain_resolv_conf(alone, ipv6=False)) == [
        "nameserver 8.8.8.8",
        "nameserver 8.8.4.4",
    ]


def test_what_was_asked_for_wins() -> None:
    changed = HOST.with_overrides(["1.1.1.1"], ["."], ["ndots:2"])
    assert lines(plain_resolv_conf(changed, ipv6=False)) == [
        "nameserver 1.1.1.1",
        "options ndots:2",
    ]


def test_the_embedded_server_is_the_one_server() -> None:
    assert lines(embedded_resolv_conf(HOST)) == [
        "nameserver 127.0.0.11",
        "search one.example two.example",
        "options edns0 trust-ad ndots:0",
    ]
    assert "options ndots:3" in embedded_resolv_conf(HOST.with_overrides([], [], ["ndots:3"]))
