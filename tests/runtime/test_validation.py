"""``tiffin-runtime`` against the programs of opencontainers/runtime-tools, ``validation/``.

They are no package of any system: ``RUNTIME_TOOLS`` names a checkout, which is built with Go where
it isn't yet. Programs that no runtime can pass on a machine without certain controllers or
capabilities, and those that contradict the specification, are not here; ``docs/security.md`` tells
which and why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiffin

SOURCE = Path(tiffin.__file__).parents[1]
PROGRAMS = """
    config_updates_without_affect create default delete delete_only_create_resources hooks_stdin
    hostname kill kill_no_effect killsig linux_cgroups_cpus linux_cgroups_relative_cpus
    linux_devices linux_masked_paths linux_mount_label linux_ns_itype linux_ns_nopath linux_ns_path
    linux_ns_path_type linux_readonly_paths linux_rootfs_propagation linux_seccomp linux_sysctl
    linux_uid_mappings mounts process process_oom_score_adj process_user root_readonly_true state
""".split()

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout, with its programs built."""
    if "RUNTIME_TOOLS" not in os.environ:
        pytest.skip("RUNTIME_TOOLS names no checkout of opencontainers/runtime-tools")
    if not os.path.isdir("/sys/fs/cgroup/memory"):
        pytest.skip("the programs know cgroup version 1")
    source = Path(os.environ["RUNTIME_TOOLS"])
    wanted = {"runtimetest": "./cmd/runtimetest"}
    wanted |= {f"validation/{name}/{name}.t": f"./validation/{name}" for name in PROGRAMS}
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=vendor"}
    for program, package in wanted.items():
        if not (source / program).exists():
            command = ["go", "build", "-o", program, package]
            subprocess.run(command, cwd=source, env=environment, check=True)
    runtime = tmp_path_factory.mktemp("r") / "tiffin-runtime"
    runtime.write_text(
        f'#!/bin/sh\nPYTHONPATH={SOURCE} exec {sys.executable} -m tiffin.runtime.entry "$@"\n'
    )
    runtime.chmod(0o755)
    os.environ["RUNTIME"] = str(runtime)
    return source


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_the_validation(tools: Path, name: str) -> None:
    assert shutil.which("unshare") is not None
    # In a mount namespace of its own: one of them mounts where the host would see it.
    command = ["unshare", "-m", f"validation/{name}/{name}.t"]
    done = subprocess.run(
        command, cwd=tools, capture_output=True, text=True, timeout=120, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [line for line in lines if line.startswith("not ok")] == [], done.stdout
    assert any(line.startswith("ok") for line in lines), done.stdout
