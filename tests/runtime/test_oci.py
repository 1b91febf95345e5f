"""The OCI configuration is valid by the specification's own schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import referencing.jsonschema

from tiffin.linux.accounts import Account
from tiffin.runtime.oci import oci_config
from tiffin.runtime.settings import (
    NAMESPACES,
    ContainerSettings,
    Device,
    MountPoint,
    ProcessSettings,
    Resources,
)
from tiffin.storage.driver import Mount

SCHEMAS = Path(__file__).parent.parent / "spec/oci-runtime"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft4Validator:
    def resource(path: Path) -> referencing.Resource[Any]:
        content = json.loads(path.read_text())
        content.pop("id", None)
        content.pop("$schema", None)
        return referencing.jsonschema.DRAFT4.create_resource(content)

    registry: referencing.Registry[Any] = referencing.Registry().with_resources(
        (path.name, resource(path)) for path in SCHEMAS.glob("*.json")
    )
    schema = json.loads((SCHEMAS / "config-schema.json").read_text())
    schema["id"] = "config-schema.json"
    return jsonschema.Draft4Validator(schema, registry=registry)


def minimal(**changes: Any) -> ContainerSettings:
    rootfs = [Mount("overlay", "overlay", ("lowerdir=a",), "/s")]
    return ContainerSettings(
        "abc", changes.pop("process", ProcessSettings(["sh"])), rootfs, **changes
    )


def test_the_schema_refuses_nonsense(validator: jsonschema.Draft4Validator) -> None:
    config = oci_config(minimal())
    config["linux"]["namespaces"] = [{"type": "moon"}]
    config["linux"]["resources"]["pids"] = {"limit": "many"}
    assert len(list(validator.iter_errors(config))) >= 2


def test_a_minimal_container(validator: jsonschema.Draft4Validator) -> None:
    config = oci_config(minimal())
    validator.validate(config)
    assert config["process"]["args"] == ["sh"]
    assert config["linux"]["cgroupsPath"] == "/tiffin/abc"
    assert {item["type"] for item in config["linux"]["namespaces"]} == set(NAMESPACES)


def test_a_container_with_everything(validator: jsonschema.Draft4Validator) -> None:
    process = ProcessSettings(
        ["python", "/app/app.py"],
        env=["A=b"],
        cwd="/app",
        user="cook",
        terminal=True,
        console_size=(24, 80),
        no_new_privileges=True,
        rlimits=[("nofile", 10, 20), ("RLIMIT_CORE", -1, -1)],
        oom_score_adj=500,
    )
    config = oci_config(
        minimal(
            process=process,
            hostname="box",
            domainname="kitchen",
            readonly_rootfs=True,
            mounts=[
                MountPoint("bind", "/data", "/data", ("ro", "rprivate")),
                MountPoint("tmpfs", "tmpfs", "/run", ("size=1m",)),
            ],
            namespaces=dict.fromkeys(NAMESPACES) | {"network": "/proc/1/ns/net"},
            devices=[Device("/dev/fuse", "c", 10, 229)],
            sysctls={"kernel.shm_rmid_forced": "1"},
            resources=Resources(memory=1 << 26, memory_swap=1 << 27, cpu_shares=5, pids_limit=9),
            init=True,
        ),
        Account(1000, 100, [50, 100], "/home/cook"),
    )
    validator.validate(config)
    assert config["process"]["user"] == {"uid": 1000, "gid": 100, "additionalGids": [50, 100]}
    assert config["process"]["rlimits"][1]["soft"] == (1 << 64) - 1
    assert config["process"]["capabilities"]["effective"] == []
    assert config["linux"]["resources"]["memory"] == {"limit": 1 << 26, "swap": 1 << 27}
    assert config["mounts"][-2]["options"] == ["rbind", "ro", "rprivate"]


def test_a_privileged_container(validator: jsonschema.Draft4Validator) -> None:
    config = oci_config(minimal(privileged=True))
    validator.validate(config)
    assert config["linux"]["maskedPaths"] == []
    assert config["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
