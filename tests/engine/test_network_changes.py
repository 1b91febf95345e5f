"""Networks of containers that run: connected, disconnected, renamed; and what is left by kills."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import busybox_tar, kill_keeper
from tiffin.engine import Engine
from tiffin.errors import Conflict, InvalidParameter, NotFound, TiffinError
from tiffin.network import links
from traffic import (
    address,
    child_engine,
    clear_networks,
    create,
    eventually,
    fetch,
    fetch_or_nothing,
    inside,
    leftovers,
    porters,
    reaches,
    serve,
    start,
)


@pytest.fixture(autouse=True)
def machine_without_networks() -> None:
    clear_networks()


def test_in_and_out_of_a_network_again_and_again(engine: Engine) -> None:
    engine.networks.create({"Name": "net", "IPAM": {"Config": [{"Subnet": "10.77.0.0/24"}]}})
    serve(engine, "web", "net")
    box = start(engine, "sleep 100")
    for last in (17, 18, 17):
        wanted = f"10.77.0.{last}"
        engine.networks.connect("net", box, {"IPAMConfig": {"IPv4Address": wanted}})
        assert address(engine, box, "net") == wanted
        assert eventually(lambda: inside(engine, box, "wget -q -O - http://web/")) == "web\n"
        engine.networks.disconnect("net", box)
        assert "net" not in engine.containers.inspect(box)["NetworkSettings"]["Networks"]
        assert not inside(engine, box, "ip addr show eth1")
        # It has left the names too: there is no name server in the default network.
        assert "127.0.0.11" not in inside(engine, box, "cat /etc/resolv.conf")
    with pytest.raises(Conflict, match="is not connected to network net"):
        engine.networks.disconnect("net", box, force=True)


def test_the_first_to_need_a_porter_may_run_already(engine: Engine) -> None:
    box = start(engine, "sleep 100")
    assert not porters(engine.root.path)
    engine.networks.create({"Name": "net"})
    engine.networks.connect("net", box, {"Aliases": ["one.more"]})
    assert "127.0.0.11" in inside(engine, box, "cat /etc/resolv.conf")
    mine = address(engine, box, "net")
    assert eventually(lambda: mine in inside(engine, box, "nslookup one.more"))


def test_ports_go_where_the_container_goes(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    engine.networks.create({"Name": "inner", "Internal": True})
    web = serve(engine, "web", PortBindings={"80/tcp": [{"HostPort": "8120"}]})
    for reach in ("127.0.0.1", "::1"):
        assert fetch(reach, 8120) == "web"
    engine.networks.disconnect("bridge", web)
    # As with Docker, nothing is published where it is in no network.
    assert not engine.containers.inspect(web)["NetworkSettings"]["Ports"].get("80/tcp")
    assert not reaches("127.0.0.1", 8120)
    engine.networks.connect("inner", web)
    assert not reaches("127.0.0.1", 8120)
    engine.networks.connect("net", web)
    for reach in ("127.0.0.1", "::1"):
        assert fetch(reach, 8120) == "web"
    # From one to the other without a gap.
    engine.networks.connect("bridge", web)
    engine.networks.disconnect("net", web)
    for reach in ("127.0.0.1", "::1"):
        assert fetch(reach, 8120) == "web"
    engine.networks.disconnect("bridge", web)
    other = serve(engine, "other", PortBindings={"80/tcp": [{"HostPort": "8120"}]})
    assert fetch("127.0.0.1", 8120) == "other"
    with pytest.raises(TiffinError, match="already allocated"):
        engine.networks.connect("net", web)
    # What could not be had was not done by half.
    assert "net" not in engine.containers.inspect(web)["NetworkSettings"]["Networks"]
    engine.containers.remove(other, force=True)
    eventually(lambda: not reaches("127.0.0.1", 8120))
    engine.networks.connect("net", web)
    assert fetch("127.0.0.1", 8120) == "web"


def test_a_chosen_mac_is_shown_before_the_start_and_used(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    box = create(engine, "sleep 100")
    mac = "02:42:ac:11:00:fe"
    engine.networks.connect("net", box, {"MacAddress": mac})

    def shown() -> str:
        view = engine.containers.inspect(box)["NetworkSettings"]["Networks"]["net"]
        return str(view["MacAddress"])

    assert shown() == mac
    engine.containers.start(box)
    assert shown() == mac
    assert mac in inside(engine, box, "ip link show eth1")


def test_names_of_networks_may_be_anything(engine: Engine) -> None:
    engine.networks.create({"Name": "my net, 2nd"})
    web = serve(engine, "web", "my net, 2nd")
    box = start(engine, "sleep 100", "my net, 2nd")
    assert inside(engine, box, "wget -q -O - http://web/") == "web\n"
    for one in (web, box):
        engine.containers.remove(one, force=True)
    engine.networks.remove("my net, 2nd")
    with pytest.raises(InvalidParameter):
        engine.networks.create({"Name": "  "})


def test_a_link_is_kept_by_identity_and_can_be_removed(engine: Engine) -> None:
    db = start(
        engine,
        "sleep 100",
        name="db",
        config={"Env": ["USER=me", "HOME=/x"], "ExposedPorts": {"443/tcp": {}, "80/tcp": {}}},
    )
    box = create(engine, "sleep 100", name="box", Links=["db:store"])
    engine.containers.rename("db", "database")
    engine.containers.start(box)
    environment = inside(engine, box, "env").splitlines()
    host = address(engine, db)
    assert {
        "STORE_NAME=/box/store",
        f"STORE_PORT=tcp://{host}:80",
        f"STORE_PORT_443_TCP_ADDR={host}",
        "STORE_ENV_USER=me",
    } <= set(environment)
    assert not [line for line in environment if line.startswith("STORE_ENV_HOME")]
    assert engine.containers.inspect(box)["HostConfig"]["Links"] == ["/database:/box/store"]
    (row,) = [one for one in engine.containers.list() if one["Id"] == db]
    assert row["Names"] == ["/database", "/box/store"]
    with pytest.raises(NotFound):
        engine.containers.remove("box/other", link=True)
    engine.containers.remove("box/store", link=True)
    assert not engine.containers.inspect(box)["HostConfig"]["Links"]
    assert {one["Id"] for one in engine.containers.list()} == {db, box}


# -- kills ----------------------------------------------------------------------------------


def ready(root: Path) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
        for name in ("one", "two"):
            engine.networks.create({"Name": name})


def killed_after(root: Path, seconds: float, work: Callable[[Engine], None]) -> None:
    """Do something with an engine in another process, which is killed in the midst of it."""
    pid = os.fork()
    if pid == 0:
        try:
            engine = Engine(root)
            threading.Thread(
                target=lambda: (time.sleep(seconds), os.kill(os.getpid(), signal.SIGKILL)),
                daemon=True,
            ).start()
            work(engine)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_while_it_makes_a_bridge(root: Path, busybox: Path) -> None:
    """What is half made is no network's bridge."""

    make = links.Links._make_bridge

    def die_once_made(*arguments: object) -> None:
        make(*arguments)  # type: ignore[arg-type]
        die()

    def first(engine: Engine) -> None:
        links.Links._make_bridge = die_once_made  # type: ignore[method-assign,assignment]
        start(engine, "sleep 1000", "one", name="half")

    def further(engine: Engine) -> None:
        engine.networks._fabric._links._capacity = 1
        start(engine, "sleep 1000", "one", name="first")
        links.Links._make_bridge = die_once_made  # type: ignore[method-assign,assignment]
        start(engine, "sleep 1000", "one", name="second")

    ready(root)
    child_engine(root, first)
    with Engine(root) as engine:
        web = serve(engine, "web", "one", PortBindings={"80/tcp": [{"HostPort": "8150"}]})
        assert fetch("127.0.0.1", 8150) == "web"
        engine.containers.remove(web, force=True)
    child_engine(root, further)
    with Engine(root) as engine:
        engine.networks._fabric._links._capacity = 1
        serve(engine, "web", "one")
        assert eventually(lambda: inside(engine, "first", "wget -q -O - http://web/")) == "web\n"
        for name in ("first", "second", "web"):
            engine.containers.remove(name, force=True)
        engine.shutdown_keeper()
    eventually(lambda: leftovers() == ([], ""))


def test_killed_before_its_container_starts(root: Path, busybox: Path) -> None:
    """Whoever holds its ports lets go of them."""
    ready(root)

    def work(engine: Engine) -> None:
        def die_once_held(*_: object, **__: object) -> None:
            engine.networks._fabric._porter.sync()
            die()

        engine.containers._lifecycle.keeper.start = die_once_held  # type: ignore[method-assign,assignment]
        start(engine, "sleep 1000", PortBindings={"80/tcp": [{"HostPort": "8151"}]})

    child_engine(root, work)
    assert porters(root)
    with Engine(root) as engine:
        web = serve(engine, "web", PortBindings={"80/tcp": [{"HostPort": "8151"}]})
        assert fetch("127.0.0.1", 8151) == "web"
        engine.containers.remove(web, force=True)
        engine.shutdown_keeper()
    eventually(lambda: not porters(root))


def links_inside(engine: Engine, container: str) -> int:
    return inside(engine, container, "ip -o link").count(": eth")


def test_killed_while_connecting_and_disconnecting(root: Path, busybox: Path) -> None:
    """Whatever was under way, the networks that a container is in are those that it says."""
    ready(root)

    def begin(engine: Engine) -> None:
        serve(engine, "web", "two")
        start(
            engine,
            "sleep 1000",
            "one",
            name="box",
            PortBindings={"80/tcp": [{"HostPort": "8130"}]},
        )

    child_engine(root, begin)

    def work(engine: Engine) -> None:
        while True:
            engine.networks.connect("two", "box", {"Aliases": ["thebox"]})
            engine.networks.disconnect("one", "box")
            engine.networks.connect("one", "box")
            engine.networks.disconnect("two", "box")

    chance = random.Random(5)
    for _ in range(8):
        killed_after(root, chance.uniform(0.0, 0.08), work)
        with Engine(root) as engine:
            joined = engine.containers.inspect("box")["NetworkSettings"]["Networks"]
            assert joined.keys() <= {"one", "two"}
            assert all(one["IPAddress"] for one in joined.values())
            assert links_inside(engine, "box") == len(joined)
            for name in ("one", "two"):
                members = [
                    one["Name"] for one in engine.networks.inspect(name)["Containers"].values()
                ]
                assert ("box" in members) == (name in joined)
                if name not in joined:
                    engine.networks.connect(name, "box")
            assert eventually(lambda: inside(engine, "box", "wget -q -O - http://web/")) == "web\n"
            assert inside(engine, "web", "nslookup -type=a box")
            engine.networks.disconnect("two", "box")
            eventually(lambda: not inside(engine, "web", "nslookup -type=a box"))
    with Engine(root) as engine:
        for name in ("web", "box"):
            engine.containers.remove(name, force=True)
        for name in ("one", "two"):
            engine.networks.remove(name)
        assert not engine._database.all("SELECT * FROM endpoints")
        assert not engine._database.all("SELECT * FROM published_ports")
        engine.shutdown_keeper()
    eventually(lambda: leftovers() == ([], ""))
    eventually(lambda: not porters(root))


@pytest.mark.parametrize("victims", ["daemon", "keeper and porter", "all"])
def test_killed_while_containers_come_and_go(root: Path, busybox: Path, victims: str) -> None:
    """Nothing is left over: interfaces, rules, addresses, ports, names."""
    ready(root)

    def work(engine: Engine) -> None:
        number = 0
        while True:
            number += 1
            names = [f"c{number}", f"d{number}"]
            for name, network in zip(names, ("one", "bridge"), strict=True):
                start(
                    engine,
                    "sleep 1000",
                    network,
                    name=name,
                    PortBindings={"80/tcp": [{"HostPort": "8140" if network == "one" else "8141"}]},
                )
            for name in names:
                engine.containers.remove(name, force=True)

    chance = random.Random(victims)
    for _ in range(3):
        seconds = chance.uniform(0.05, 0.4)
        if victims == "keeper and porter":
            with Engine(root) as engine:
                attack(engine, root, seconds, work)
        else:
            killed_after(root, seconds, work)
        if victims == "all":
            kill_keeper(root)
        with Engine(root) as engine:
            for row in engine.containers.list(all=True):
                engine.containers.remove(row["Id"], force=True)
            eventually(lambda: not [one for one in leftovers()[0] if one.startswith("tf")])
            rows = "SELECT container FROM endpoints UNION SELECT container FROM published_ports"
            eventually(lambda query=rows: not engine._database.all(query))
            assert "8140" not in leftovers()[1] and "8141" not in leftovers()[1]
            # The next one gets the same ports, and finds nobody of those before.
            port = {"80/tcp": [{"HostPort": "8140"}]}
            web = serve(engine, "web", "one", PortBindings=port)
            eventually(lambda: fetch_or_nothing("127.0.0.1", 8140) == "web")
            assert not inside(engine, web, "nslookup -type=a c1")
            engine.containers.remove(web, force=True)
    with Engine(root) as engine:
        engine.shutdown_keeper()
    eventually(lambda: leftovers() == ([], ""))
    eventually(lambda: not porters(root))
    assert "tiffin" not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout


def attack(engine: Engine, root: Path, seconds: float, work: Callable[[Engine], None]) -> None:
    """Kill the keeper and the porter, again and again, while an engine of this process works."""
    stopped = threading.Event()

    def until_stopped() -> None:
        while not stopped.is_set():
            try:
                work(Interrupted(engine, stopped))  # type: ignore[arg-type]
            except (TiffinError, Stopped):
                for row in engine.containers.list(all=True):
                    with contextlib.suppress(TiffinError):
                        engine.containers.remove(row["Id"], force=True)

    thread = threading.Thread(target=until_stopped)
    thread.start()
    try:
        for _ in range(3):
            time.sleep(seconds)
            for pid in [*porters(root), *keepers(root)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    finally:
        stopped.set()
        thread.join(120)
    assert not thread.is_alive()


class Stopped(Exception):
    """The work is to end."""


class Interrupted:
    """An engine whose containers can't be had any more once an event is set."""

    def __init__(self, engine: Engine, stopped: threading.Event) -> None:
        self._engine = engine
        self._stopped = stopped

    def __getattr__(self, name: str) -> object:
        if self._stopped.is_set():
            raise Stopped
        return getattr(self._engine, name)


def keepers(root: Path) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", name, "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"keeper/__main__.py" in command and os.fsencode(root) in command:
            found.append(int(name))
    return found
