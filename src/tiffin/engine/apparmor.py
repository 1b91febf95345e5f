"""AppArmor: the profile that containers run under unless told otherwise, on hosts that have it.

The profile lets a container's programs do what its capabilities and mounts allow, but for what a
container never needs: mounting, the kernel's files in ``/proc`` and ``/sys``, and other programs'
processes. It is loaded into the kernel once a boot, by the host's ``apparmor_parser``.

Source: apparmor.d(5), apparmor_parser(8).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading

from tiffin.errors import Conflict

DEFAULT = "tiffin-default"
UNCONFINED = "unconfined"
_FILES = "/sys/kernel/security/apparmor"
_LOADED = f"{_FILES}/profiles"
_PROFILE = """
#include <tunables/global>

profile tiffin-default flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,

  # From the engine, and among the container's own programs.
  signal (receive) peer=unconfined,
  signal (send,receive) peer=tiffin-default,
  ptrace (trace,read,tracedby,readby) peer=tiffin-default,

  deny mount,

  # Of /proc, processes' own files, and the parameters of the container's namespaces.
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny @{PROC}/sys/[^kn]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
"""
_lock = threading.Lock()


def enabled() -> bool:
    """Whether the host's kernel enforces AppArmor profiles, and they can be loaded here: for that
    its files have to be mounted (securityfs)."""
    try:
        with open("/sys/module/apparmor/parameters/enabled") as file:
            return file.read(1) == "Y" and os.path.isdir(_FILES)
    except OSError:
        # The kernel is built without it.
        return False


def parser() -> str | None:
    """The program that loads profiles; None if the host doesn't have it."""
    return shutil.which("apparmor_parser", path="/usr/sbin:/sbin:/usr/bin:/bin")


def loaded(name: str) -> bool:
    """Whether the kernel knows a profile."""
    try:
        with open(_LOADED) as file:
            return any(line.rpartition(" (")[0] == name for line in file)
    except OSError:
        # It is not shown to us: loading it once more does no harm.
        return False


def default() -> str | None:
    """The default profile's name, once it is loaded; None where it can't be had.

    Raises Conflict if the kernel or its parser refuses it.
    """
    if not enabled() or parser() is None:
        return None
    with _lock:
        if not loaded(DEFAULT):
            _load(_PROFILE)
    return DEFAULT


def _load(text: str) -> None:
    program = parser() or "apparmor_parser"
    done = subprocess.run(
        [program, "--replace", "--skip-cache"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.defpath},
    )
    if done.returncode:
        raise Conflict(f"AppArmor's default profile can't be loaded: {done.stderr.strip()}")
