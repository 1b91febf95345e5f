"""The filters of ``ps``."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tiffin.engine import Engine
from tiffin.errors import InvalidParameter

pytestmark = pytest.mark.root


def create(engine: Engine, name: str, **config: Any) -> str:
    body = {"Image": "busybox", "Cmd": ["sleep", "600"], **config}
    return str(engine.containers.create(body, name)["Id"])


def listed(engine: Engine, **filters: str) -> list[str]:
    wanted = {name.replace("_", "-"): [value] for name, value in filters.items()}
    rows = engine.containers.list(all=True, filters=wanted)
    return sorted(row["Names"][0].lstrip("/") for row in rows)


def test_ports_are_filtered(engine: Engine) -> None:
    create(engine, "web", ExposedPorts={"80/tcp": {}, "53/udp": {}})
    create(engine, "plain")
    published = create(
        engine, "out", HostConfig={"PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1"}]}}
    )
    engine.containers.start(published)
    port = engine.containers.inspect(published)["NetworkSettings"]["Ports"]["8080/tcp"][0]
    assert listed(engine, expose="8080") == ["out"]
    assert listed(engine, expose="8000-8090/tcp") == ["out"]
    assert listed(engine, expose="8080/udp") == []
    assert listed(engine, publish=port["HostPort"]) == ["out"]
    assert listed(engine, publish="8080/sctp") == []
    for wrong in ("127.0.0.1:80", "80/dccp", "http", "9-1"):
        with pytest.raises(InvalidParameter, match=r"expose|port"):
            listed(engine, expose=wrong)


def test_there_are_no_tasks_and_one_isolation(engine: Engine) -> None:
    create(engine, "one")
    assert listed(engine, is_task="true") == []
    assert listed(engine, is_task="false") == ["one"]
    assert listed(engine, isolation="default") == ["one"]
    assert listed(engine, isolation="hyperv") == []


def test_what_is_being_removed_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    container = create(engine, "going")
    inside, go = threading.Event(), threading.Event()
    drop = engine.containers._lifecycle.removal._roster.drop

    def slow_drop(one: Any) -> None:
        inside.set()
        go.wait(60)
        drop(one)

    monkeypatch.setattr(engine.containers._lifecycle.removal._roster, "drop", slow_drop)
    remover = threading.Thread(target=engine.containers.remove, args=(container,))
    remover.start()
    try:
        assert inside.wait(60)
        assert listed(engine, status="removing") == ["going"]
        assert listed(engine, status="created") == []
        (row,) = engine.containers.list(all=True)
        assert (row["State"], row["Status"]) == ("removing", "Removal In Progress")
        assert engine.containers.inspect(container)["State"]["Status"] == "removing"
    finally:
        go.set()
        remover.join(60)
    assert listed(engine) == []
