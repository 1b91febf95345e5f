"""Engines, keepers and porters that are killed while networks change: nothing is left."""

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

from conftest import busybox_tar, kill_keeper, processes
from tiffin.engine import Engine
from tiffin.errors import TiffinError
from tiffin.network import links
from traffic import (
    child_engine,
    eventually,
    fetch,
    fetch_or_nothing,
    inside,
    leftovers,
    porters,
    serve,
    start,
)

pytestmark = pytest.mark.usefixtures("machine_without_networks")


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
    return processes(b"keeper/__main__.py", os.fsencode(root))
