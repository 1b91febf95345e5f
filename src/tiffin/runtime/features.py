"""What the native runtime can do, as engines ask for it before they use it.

Source: OCI runtime specification 1.2, ``features.md``.
"""

from __future__ import annotations

from typing import Any

from tiffin.linux import capabilities, mounts
from tiffin.runtime import seccomp
from tiffin.runtime.record import SPECIFICATION
from tiffin.version import __version__


def features() -> dict[str, Any]:
    """The document of ``features.md``."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPECIFICATION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "mountOptions": mounts.known_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": [f"CAP_{name}" for name in capabilities.NAMES],
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False},
            "seccomp": {"enabled": seccomp.available(), **seccomp.features()},
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
        },
        "annotations": {"org.tiffin.version": __version__},
    }  # fmt: skip
