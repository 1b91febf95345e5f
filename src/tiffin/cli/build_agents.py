"""``build --ssh``: the agents that RUN --mount=type=ssh gets; key files get one of their own.

The agent of key files is the host's ``ssh-agent``, which ends with this command, however that ends.
Source: Docker's ``build`` reference, ``--ssh``.
"""

from __future__ import annotations

import os
import stat

from tiffin.cli.command import CommandError

_PR_SET_PDEATHSIG = 1
_PATIENCE = 60


def sockets(texts: list[str]) -> dict[str, str]:
    """The path of an agent's socket by id; raises CommandError."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, given = text.partition("=")
        paths = given.split(",") if given else []
        if not paths:
            own = os.environ.get("SSH_AUTH_SOCK", "")
            if not own:
                raise CommandError(
                    f"invalid empty ssh agent socket for {name!r}: is SSH_AUTH_SOCK set?"
                )
            paths = [own]
        found[name or "default"] = _socket(text, paths)
    return found


def _socket(text: str, paths: list[str]) -> str:
    keys: list[str] = []
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise CommandError(f"--ssh {text}: {path}: {error.strerror}") from None
        if not stat.S_ISSOCK(mode):
            keys.append(path)
        elif len(paths) > 1:
            raise CommandError(f"--ssh {text}: only a single socket is allowed")
    return _agent(text, keys) if keys else os.path.realpath(paths[0])


def _agent(text: str, keys: list[str]) -> str:
    """Starts an agent with these keys; the path of its socket."""
    import atexit
    import ctypes
    import shutil
    import signal
    import subprocess
    import tempfile
    import time

    folder = tempfile.mkdtemp(prefix="tiffin-ssh-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "agent")
    library = ctypes.CDLL(None)

    def end_with_parent() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    try:
        agent = subprocess.Popen(
            ["ssh-agent", "-D", "-a", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise CommandError(
            f"--ssh {text}: key files need ssh-agent on this machine: install OpenSSH's client, or "
            "name the socket of an agent"
        ) from None
    atexit.register(agent.wait)
    atexit.register(agent.terminate)
    deadline = time.monotonic() + _PATIENCE
    while not os.path.exists(path):
        if agent.poll() is not None or time.monotonic() > deadline:
            raise CommandError(f"--ssh {text}: ssh-agent does not start")
        time.sleep(0.01)
    for key in keys:
        done = subprocess.run(
            # By its content: ssh-add refuses a file that others may read.
            ["ssh-add", "-q", "-"],
            input=_content(text, key),
            env={**os.environ, "SSH_AUTH_SOCK": path, "SSH_ASKPASS_REQUIRE": "never"},
            capture_output=True,
            start_new_session=True,
            check=False,
        )
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip()
            raise CommandError(f"--ssh {text}: failed to parse {key}: {reason}")
    return path


def _content(text: str, key: str) -> bytes:
    try:
        with open(key, "rb") as file:
            return file.read()
    except OSError as error:
        raise CommandError(f"--ssh {text}: {key}: {error.strerror}") from None
