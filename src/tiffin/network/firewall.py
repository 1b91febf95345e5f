"""The firewall: one nftables table of this engine's own, changed in transactions.

The table is ``inet tiffin_MARK``; no other table is ever read or written. Its rules are fixed; what
changes are elements of its sets and maps, so that a packet, and a change, cost the same with one
published port and with thousands.

- ``published…`` maps lead from (address,) protocol and port of the host to a container's.
- ``bridges`` are the interfaces that lead to containers: nothing is forwarded into one but answers,
  what was sent to a published port, and what comes from the same network (``within``). So networks
  do not see each other, and nobody routes past the published ports.
- Out of an ``internal`` one nothing is forwarded.
- Those at one bridge of ``apart`` do not see each other (its ports are isolated); what they send to
  published ports of the host is not redirected: where bridged packets pass the rules too
  (br_netfilter), they would be sent straight from port to port, which is cut off. The porter, which
  holds the port, carries it.
- Between ``foreign`` interfaces nothing passes (:mod:`tiffin.network.forwarding`).
- What leaves a ``masquerade…`` subnet for elsewhere gets the host's address; so does what comes
  back into the subnet that it was sent from (``hairpin…``), since the answer must pass the host,
  and what the host sent from 127.0.0.1: the interfaces accept such addresses
  (``route_localnet``), and the ``guard`` drops them where they arrive from a container.

nftables is reached through its library, in this process: a transaction takes 0.1 ms, a start of the
``nft`` program twenty times that. Where the library is missing the program is used; where that is
missing too, or the kernel has no nftables, networks are refused with a sentence that says so.

Source: nft(8), libnftables(3).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterable
from typing import Any

from tiffin.errors import TiffinError, Unsupported
from tiffin.network.settings import Port

_LIBRARIES = ("libnftables.so.1", "libnftables.so")
_NEEDED = "networks need nftables (package nftables, and a kernel with CONFIG_NF_TABLES)"
_INSTEAD = "use --network none or --network host instead"

_RULES = """
  set bridges {{ type ifname; }}
  set internal {{ type ifname; }}
  set apart {{ type ifname; }}
  set foreign4 {{ type ifname; }}
  set foreign6 {{ type ifname; }}
  set within {{ type ifname . ifname; }}
  set masquerade4 {{ type ipv4_addr; flags interval; }}
  set masquerade6 {{ type ipv6_addr; flags interval; }}
  set hairpin4 {{ type ipv4_addr . ipv4_addr; flags interval; }}
  set hairpin6 {{ type ipv6_addr . ipv6_addr; flags interval; }}
  map published4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map published6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  map published4_any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map published6_any {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  chain guard {{
    type filter hook prerouting priority raw; policy accept;
    ip daddr 127.0.0.0/8 iifname @bridges drop
  }}
  chain publish {{
    dnat ip to ip daddr . meta l4proto . th dport map @published4
    dnat ip to meta l4proto . th dport map @published4_any
    ip6 daddr ::1 return
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @published6
    dnat ip6 to meta l4proto . th dport map @published6_any
  }}
  chain arriving {{
    type nat hook prerouting priority -100; policy accept;
    iifname @apart return
    fib daddr type local jump publish
  }}
  chain own {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump publish
  }}
  chain inward {{
    ip saddr 127.0.0.0/8 masquerade
    ct status dnat ip saddr . ip daddr @hairpin4 masquerade
    ct status dnat ip6 saddr . ip6 daddr @hairpin6 masquerade
    return
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname @bridges goto inward
    ip saddr @masquerade4 masquerade
    ip6 saddr @masquerade6 masquerade
  }}
  chain passing {{
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    oifname @bridges ct status dnat accept
    iifname . oifname @within accept
    oifname @bridges drop
    iifname @internal drop
    meta nfproto ipv4 iifname @foreign4 oifname @foreign4 drop
    meta nfproto ipv6 iifname @foreign6 oifname @foreign6 drop
  }}
"""

Element = tuple[str, str]
"""A set or map, and an element of it as nft writes it (``key`` or ``key : value``)."""


class _Library:
    """libnftables in this process; one context, used by one thread at a time."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in (
            "nft_ctx_buffer_error",
            "nft_ctx_buffer_output",
            "nft_ctx_get_error_buffer",
        ):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

    def context(self) -> int:
        """A context; it keeps the socket of the namespace that it was made in."""
        context = int(self._library.nft_ctx_new(0))
        self._library.nft_ctx_buffer_error(context)
        self._library.nft_ctx_buffer_output(context)
        return context

    def run(self, context: int, text: str) -> str:
        """Run commands; what went wrong, or nothing."""
        if not self._library.nft_run_cmd_from_buffer(context, text.encode()):
            return ""
        said = self._library.nft_ctx_get_error_buffer(context) or b""
        return said.decode(errors="replace").strip() or "nftables gave no reason"


def _run_program(text: str) -> str:
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise Unsupported(
            f"{_NEEDED}: the library {_LIBRARIES[0]} can't be used here, and the program nft is "
            f"not there; {_INSTEAD}"
        ) from error
    return "" if not done.returncode else done.stderr.strip() or "nft gave no reason"


class _Nftables:
    """How nft commands are run: by the library where that is possible, else by the program."""

    def __init__(self) -> None:
        self._library: _Library | None = None
        self._looked = False
        self._begin()
        # A child that shared the context's socket would read its parent's answers.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._host: int | None = None

    def prepare(self) -> None:
        """Make the context of the host's namespace, before descriptors become scarce."""
        with self._lock:
            self._prepare()

    def _prepare(self) -> _Library | None:
        if not self._looked:
            self._looked = True
            for name in _LIBRARIES:
                try:
                    self._library = _Library(ctypes.CDLL(name))
                    break
                except OSError:
                    continue
        if self._library is not None and self._host is None and _has_low_descriptor():
            self._host = self._library.context()
        return self._library

    def run(self, text: str) -> str:
        """Run commands as one transaction in the host's namespace; the error, if any.

        Raises Unsupported where there is no nftables.
        """
        with self._lock:
            library = self._prepare()
            if library is not None and self._host is not None:
                return library.run(self._host, text)
        return _run_program(text)


_LOW = 900


def _has_low_descriptor() -> bool:
    """Whether the next descriptor is one that select(2) takes: the library uses that, and ends the
    process where it can't."""
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return fd < _LOW


nftables = _Nftables()


class Firewall:
    """The table of one engine. ``state`` gives every element that it shall hold."""

    def __init__(self, mark: str, state: Callable[[], Iterable[Element]]) -> None:
        self._table = f"tiffin_{mark}"
        self._state = state
        self._lock = threading.RLock()
        self._installed = False

    @property
    def table(self) -> str:
        """The table's name; its family is ``inet``."""
        return self._table

    @property
    def installed(self) -> bool:
        """Whether the table was made, as far as this object knows."""
        return self._installed

    def install(self) -> None:
        """Make the table as it shall be, whatever was there. Raises Unsupported, TiffinError."""
        with self._lock:
            elements = "".join(self._add(element) for element in self._state())
            # Adding before deleting makes the deletion work where there is none; all of it is one
            # transaction, so no packet ever meets half a table.
            problem = nftables.run(
                f"add table inet {self._table}\ndelete table inet {self._table}\n"
                f"table inet {self._table} {{{_RULES.format()}}}\n{elements}"
            )
            if problem:
                lack = "not supported" in problem or "No such file" in problem
                if lack or "Protocol" in problem or "Invalid" in problem:
                    raise Unsupported(f"{_NEEDED}; {_INSTEAD}. nftables said: {problem}")
                raise TiffinError(f"the firewall can't be set up: {problem}")
            self._installed = True

    def prepare(self) -> None:
        """Be ready for :meth:`change`, whatever happens to descriptors meanwhile."""
        nftables.prepare()

    def _add(self, element: Element) -> str:
        return f"add element inet {self._table} {element[0]} {{ {element[1]} }}\n"

    def _delete(self, element: Element) -> str:
        key = element[1].partition(" : ")[0]
        return f"delete element inet {self._table} {element[0]} {{ {key} }}\n"

    def change(self, add: Iterable[Element] = (), delete: Iterable[Element] = ()) -> None:
        """Add and delete elements in one transaction; ``state`` has to know of them already.

        If the table is not as it was left (somebody flushed it), it is made anew.
        """
        text = "".join(self._delete(element) for element in delete)
        text += "".join(self._add(element) for element in add)
        with self._lock:
            if not self._installed or (text and nftables.run(text)):
                self.install()

    def remove(self) -> None:
        """Take the table away."""
        with self._lock:
            self._installed = False
            # An error here means that there is none, or no nftables at all.
            nftables.run(f"delete table inet {self._table}")


def bridge_elements(
    interfaces: Iterable[str],
    subnets: Iterable[str],
    *,
    icc: bool,
    internal: bool,
    masquerade: bool,
) -> list[Element]:
    """The elements of a network."""
    names = [f'"{name}"' for name in interfaces]
    elements: list[Element] = [("bridges", name) for name in names]
    if icc:
        elements += [("within", f"{one} . {other}") for one in names for other in names]
    else:
        elements += [("apart", name) for name in names]
    if internal:
        elements += [("internal", name) for name in names]
    for subnet in subnets:
        version = 6 if ":" in subnet else 4
        if masquerade:
            elements.append((f"masquerade{version}", subnet))
        elements.append((f"hairpin{version}", f"{subnet} . {subnet}"))
    return elements


def port_element(port: Port, address: str) -> Element | None:
    """The element of a published port that leads to a container's address; None where the host's
    and the container's are of different families."""
    version = 6 if ":" in address else 4
    if (":" in port.host_address) != (version == 6):
        return None
    target = f"{address} . {port.container_port}"
    key = f"{port.protocol} . {port.host_port}"
    if port.host_address in ("0.0.0.0", "::"):
        return (f"published{version}_any", f"{key} : {target}")
    return (f"published{version}", f"{port.host_address} . {key} : {target}")
