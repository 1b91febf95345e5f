"""Image configs: ids that never change, deterministic changes, unknown fields that survive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiffin.errors import InvalidParameter
from tiffin.image.config import HistoryEntry, ImageConfig, chain_ids

Conforms = Callable[[str, Any], None]

A = "sha256:" + "a" * 64
B = "sha256:" + "b" * 64
C = "sha256:" + "c" * 64

# As another engine might write it: odd spacing, unknown fields, an escape that JSON does not need.
FOREIGN = b"""{ "architecture":"amd64", "os":"linux", "docker_version": "20.10",
 "created":"2024-01-02T03:04:05.600700800Z",
 "container_config":{"Hostname":"x"},
 "config":{"Env":["PATH=/bin","A=\\u0062"],"Cmd":["sh"],"Entrypoint":null,"Future":[1],
  "Volumes":{"/v":{}},"ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Labels":null,"User":"1:2",
  "Healthcheck":{"Test":["CMD","true"],"Interval":1000000000},"ArgsEscaped":true},
 "rootfs":{"type":"layers","diff_ids":["%s","%s"]},
 "history":[{"created":"2024-01-02T03:04:05Z","created_by":"ADD x"},
  {"created_by":"CMD sh","empty_layer":true},{"created_by":"RUN y","comment":"c","author":"m"}]}
""" % (A.encode(), B.encode())


def test_id_is_of_the_bytes_that_came_in() -> None:
    config = ImageConfig.parse(FOREIGN)
    assert config.to_bytes() == FOREIGN
    assert config.id == "sha256:" + hashlib.sha256(FOREIGN).hexdigest()
    assert ImageConfig.parse(config.to_bytes()) == config


def test_typed_view() -> None:
    config = ImageConfig.parse(FOREIGN)
    assert config.platform == "linux/amd64"
    assert config.created == "2024-01-02T03:04:05.600700800Z"
    assert config.created_ns == 1704164645600700800
    assert config.env == ("PATH=/bin", "A=b")
    assert config.cmd == ("sh",)
    assert config.entrypoint is None
    assert config.volumes == ("/v",)
    assert config.exposed_ports == ("443/tcp", "80/tcp")
    assert config.labels == {}
    assert config.user == "1:2"
    assert config.healthcheck == {"Test": ["CMD", "true"], "Interval": 1000000000}
    assert config.diff_ids == (A, B)
    assert config.history[2] == HistoryEntry(
        created_by="RUN y", comment="c", author="m", created=None
    )


def test_a_change_keeps_what_it_does_not_know() -> None:
    changed = ImageConfig.parse(FOREIGN).with_cmd(["ls"])
    document = changed.to_document()
    assert document["docker_version"] == "20.10"
    assert document["container_config"] == {"Hostname": "x"}
    assert document["config"]["Future"] == [1]
    assert document["config"]["Cmd"] == ["ls"]
    assert document["config"]["Entrypoint"] is None


def test_changes_leave_the_original_alone() -> None:
    config = ImageConfig.parse(FOREIGN)
    before = config.to_document()
    config.with_env("A", "c").with_labels({"k": "v"}).with_volumes("/w").with_layer(
        C, HistoryEntry()
    )
    config.config["Env"].append("handed=out")
    healthcheck = {"Test": ["NONE"]}
    changed = config.with_healthcheck(healthcheck)
    healthcheck["Test"].append("later")
    assert changed.healthcheck == {"Test": ["NONE"]}
    field = {"list": [1]}
    changed = config.with_field("future", field)
    field["list"].append(2)
    assert changed.to_document()["future"] == {"list": [1]}
    assert config.to_document() == before


def test_bytes_do_not_depend_on_the_order_of_changes() -> None:
    scratch = ImageConfig.scratch(os="linux", architecture="amd64", created=0)
    one = scratch.with_user("u").with_labels({"b": "2"}).with_labels({"a": "1"}).with_cmd(["é"])
    two = scratch.with_cmd(["é"]).with_labels({"a": "1", "b": "2"}).with_user("u")
    assert one.to_bytes() == two.to_bytes()
    assert (
        one.to_bytes()
        == (
            '{"architecture":"amd64","config":{"Cmd":["é"],"Labels":{"a":"1","b":"2"},"User":"u"},'
            '"created":"1970-01-01T00:00:00Z","os":"linux",'
            '"rootfs":{"diff_ids":[],"type":"layers"}}'
        ).encode()
    )


def test_scratch_is_of_this_machine_and_conforms(conforms: Conforms) -> None:
    scratch = ImageConfig.scratch()
    conforms("config", json.loads(scratch.to_bytes()))
    assert scratch.os == "linux"
    assert scratch.diff_ids == ()
    assert scratch.chain_id is None


def test_full_config_conforms(conforms: Conforms) -> None:
    config = (
        ImageConfig.scratch(created="2024-01-02T03:04:05+00:00")
        .with_author("somebody")
        .with_user("1000")
        .with_working_dir("/w")
        .with_env("A", "1")
        .with_entrypoint(["/e"])
        .with_cmd(["c"])
        .with_shell(["/bin/sh", "-c"])
        .with_stop_signal("SIGINT")
        .with_exposed_ports("80/tcp")
        .with_volumes("/v")
        .with_labels({"k": "v"})
        .with_on_build("RUN x")
        .with_healthcheck({"Test": ["CMD-SHELL", "true"]})
        .with_layer(A, HistoryEntry(created="1970-01-01T00:00:00Z", created_by="COPY . /"))
        .with_history(HistoryEntry(created_by="CMD c", empty_layer=True))
    )
    conforms("config", json.loads(config.to_bytes()))
    assert config.created == "2024-01-02T03:04:05Z"
    assert ImageConfig.parse(config.to_bytes()) == config


def test_none_takes_a_field_out() -> None:
    scratch = ImageConfig.scratch()
    config = scratch.with_user("u").with_cmd(["c"]).with_author("a").with_healthcheck({"Test": []})
    config = config.with_user("").with_cmd(None).with_author("").with_healthcheck(None)
    assert config == scratch
    assert scratch.with_entrypoint([]).entrypoint == ()


def test_env_is_set_in_its_place() -> None:
    config = ImageConfig.scratch().with_env_list(["PATH=/a", "X=1", "PATH=/b"]).with_env("X", "2=3")
    assert config.env == ("PATH=/b", "X=2=3")


def test_chain_ids_follow_the_specification() -> None:
    chain_b = "sha256:" + hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    chain_c = "sha256:" + hashlib.sha256(f"{chain_b} {C}".encode()).hexdigest()
    assert chain_ids([A, B, C]) == [A, chain_b, chain_c]
    config = ImageConfig.parse(FOREIGN)
    assert config.chain_ids == (A, chain_b)
    assert config.chain_id == chain_b


def test_steps_pair_history_with_layers() -> None:
    config = ImageConfig.parse(FOREIGN)
    assert [chain for _, chain in config.steps()] == [A, None, config.chain_id]
    silent = config.with_field("history", None)
    assert silent.steps() == [(HistoryEntry(), chain) for chain in config.chain_ids]
    with pytest.raises(InvalidParameter, match="too many non-empty layers in History section"):
        ImageConfig.scratch().with_field("history", [{"created_by": "RUN y"}]).steps()


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "not JSON"),
        (b"\x1f\x8b", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"config":{"x":NaN}}', "not JSON"),
        (b"null", "the document must be an object"),
        (b"[]", "the document must be an object"),
        (b'{"os":1}', "os must be a string"),
        (b'{"config":[]}', "config must be an object"),
        (b'{"config":{"Cmd":"sh"}}', "config.Cmd must be a list of strings"),
        (b'{"config":{"Env":[1]}}', "config.Env must be a list of strings"),
        (b'{"config":{"Volumes":["/v"]}}', "config.Volumes must be an object"),
        (b'{"config":{"Labels":{"a":1}}}', "the label 'a' must be a string"),
        (b'{"rootfs":{"diff_ids":"x"}}', "rootfs.diff_ids must be a list"),
        (b'{"rootfs":{"diff_ids":["sha256:../../x"]}}', "no digest"),
        (b'{"history":[1]}', "history must have objects only"),
        (b'{"history":[{"empty_layer":1}]}', "history.empty_layer must be true or false"),
    ],
)
def test_malformed_config_is_refused_by_field(raw: bytes, what: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid image config") as refused:
        ImageConfig.parse(raw)
    assert what in refused.value.message


def test_bytes_that_are_no_utf8_keep_their_id() -> None:
    raw = b'{"author":"\xff","config":{"Env":["A=\\udcff"]}}'
    config = ImageConfig.parse(raw)
    assert config.to_bytes() == raw
    assert ImageConfig.parse(config.with_user("u").to_bytes()).env == ("A=\udcff",)


text = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(text.map("x-".__add__), json_values, max_size=4), st.data())
def test_unknown_fields_survive_every_change(unknown: dict[str, Any], data: st.DataObject) -> None:
    raw = json.dumps({**unknown, "config": unknown}).encode()
    config = ImageConfig.parse(raw)
    for change in data.draw(st.permutations(["user", "env", "layer", "label"])):
        match change:
            case "user":
                config = config.with_user("u")
            case "env":
                config = config.with_env("A", "1")
            case "layer":
                config = config.with_layer(A, HistoryEntry(created_by="RUN"))
            case _:
                config = config.with_labels({"a": "b"})
    document = json.loads(config.to_bytes())
    assert unknown.items() <= document.items()
    assert unknown.items() <= document["config"].items()
    assert ImageConfig.parse(config.to_bytes()).to_document() == config.to_document()
