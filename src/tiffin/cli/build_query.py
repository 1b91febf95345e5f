"""What ``build`` asks the daemon for: its flags as the query of ``POST /build``."""

from __future__ import annotations

import os

from tiffin.cli import values
from tiffin.cli.command import CommandError, Invocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EPOCH = "SOURCE_DATE_EPOCH"


def build_query(call: Invocation, dockerfile: str) -> dict[str, Any]:
    """The query; raises CommandError for what makes no sense."""
    from json import dumps

    options = call.options
    query: dict[str, Any] = {
        "t": options["tag"] or None,
        "dockerfile": dockerfile or None,
        "target": options["target"] or None,
        "nocache": options["no-cache"],
        "pull": options["pull"],
        "rm": "1" if options["rm"] else "0",
        "forcerm": options["force-rm"],
        "networkmode": options["network"] or None,
        "platform": options["platform"] or None,
        "extrahosts": options["add-host"] or None,
        "memory": options["memory"],
        "memswap": options["memory-swap"],
        "cpushares": options["cpu-shares"],
        "cpuperiod": options["cpu-period"],
        "cpuquota": options["cpu-quota"],
        "cpusetcpus": options["cpuset-cpus"] or None,
        "cpusetmems": options["cpuset-mems"] or None,
        "cgroupparent": options["cgroup-parent"] or None,
        "shmsize": options["shm-size"],
        "squash": options["squash"],
        "version": "1",
    }
    if arguments := _build_args(call):
        query["buildargs"] = dumps(arguments)
    if options["label"]:
        query["labels"] = dumps(values.pairs(options["label"]))
    if caches := _caches(options["cache-from"]):
        query["cachefrom"] = dumps(caches)
    if options["cache-to"]:
        query["cacheto"] = dumps(
            [_absolute(text, "dest", "--cache-to") for text in options["cache-to"]]
        )
    if options["security-opt"]:
        from tiffin.cli.container_body import security_options

        query["securityopt"] = dumps(security_options(options["security-opt"])[0])
    if options["ulimit"]:
        query["ulimits"] = dumps(options["ulimit"])
    return {**query, **_tiffins_own(call)}


def _tiffins_own(call: Invocation) -> dict[str, Any]:
    """What no other daemon knows; left out where nothing is asked."""
    from json import dumps

    options = call.options
    query: dict[str, Any] = {"why": options["why"], "verify": options["verify"]}
    if options["no-cache-filter"]:
        names = [name for text in options["no-cache-filter"] for name in text.split(",")]
        query["nocachefilter"] = dumps(names)
    if options["build-context"]:
        query["contexts"] = dumps(dict(_named_context(text) for text in options["build-context"]))
    if options["ssh"]:
        from tiffin.cli.build_agents import sockets

        query["ssh"] = dumps(sockets(options["ssh"]))
    if options["annotation"]:
        query["annotations"] = dumps(_annotations(options["annotation"]))
    if options["allow"]:
        query["allow"] = dumps([name for text in options["allow"] for name in text.split(",")])
    if options["jobs"]:
        query["jobs"] = options["jobs"]
    if options["secret"]:
        query["secrets"] = _send_secrets(call)
    return query


def _build_args(call: Invocation) -> dict[str, str | None]:
    given: dict[str, str | None] = {
        name: value if equals else None
        for name, equals, value in (
            text.partition("=") for text in values.resolve_environment(call.options["build-arg"])
        )
    }
    if _EPOCH not in given:
        moment = os.environ.get(_EPOCH) or (
            _commit_time(call.arguments[0]) if call.options["verify"] else ""
        )
        if moment:
            given[_EPOCH] = moment
    if call.options["verify"] and not given.get(_EPOCH):
        raise CommandError(
            f"--verify needs a date that both builds have: set {_EPOCH} (or build a folder of a "
            "git repository, whose last commit's time is taken)"
        )
    return given


def _commit_time(folder: str) -> str:
    import subprocess

    try:
        return subprocess.run(
            ["git", "-C", folder, "log", "-1", "--format=%ct"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""  # no repository


def fields(text: str, what: str) -> dict[str, str]:
    """``type=local,dest=x`` taken apart; raises CommandError."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise CommandError(f"invalid {what} {text!r}: {part!r} is no name=value")
        found[name.strip().lower()] = value
    return found


def _caches(texts: list[str]) -> list[str]:
    """``--cache-from`` as the daemon takes it: folders by their whole path."""
    found: list[str] = []
    for text in texts:
        if "=" not in text:
            found += text.split(",")  # images, as Docker's first builder had them
        else:
            found.append(_absolute(text, "src", "--cache-from"))
    return found


def _absolute(text: str, key: str, flag: str) -> str:
    """The text with the folder's path made whole."""
    if "=" not in text:
        return text
    members = fields(text, flag)
    if members.get("type") == "local" and members.get(key):
        members[key] = os.path.abspath(members[key])
        if "," in members[key]:
            raise CommandError(f"{flag} {text!r}: a folder with a comma in its name can't be used")
    return ",".join(f"{name}={value}" for name, value in members.items())


_KINDS = ("manifest", "manifest-descriptor", "index", "index-descriptor")


def _annotations(texts: list[str]) -> dict[str, str]:
    """``[kind[platform],…:]name=value`` as kind:name to value."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CommandError(f"invalid annotation {text!r}: expected name=value")
        kinds = "manifest"
        head, colon, rest = name.partition(":")
        if colon and all(each.partition("[")[0] in _KINDS for each in head.split(",")):
            kinds, name = head, rest
        for kind in kinds.split(","):
            plain = kind.partition("[")[0]
            if plain.startswith("index"):
                raise CommandError(
                    f"invalid annotation {text!r}: index annotations are not supported for an "
                    "image of one platform"
                )
            found[f"{plain}:{name}"] = value
    return found


def _named_context(text: str) -> tuple[str, str]:
    name, equals, where = text.partition("=")
    if not equals or not name or not where:
        raise CommandError(f"invalid --build-context {text!r}: write it as name=FOLDER")
    if where.startswith("oci-layout://"):
        return name, f"oci-layout://{os.path.abspath(where.removeprefix('oci-layout://'))}"
    if "://" in where or where.startswith(("git@", "github.com/")):
        return name, where
    if not os.path.isdir(where):
        raise CommandError(f"failed to get build context {name}: {where} is no folder")
    return name, os.path.realpath(where)


def _send_secrets(call: Invocation) -> str:
    """Hands the secrets to the daemon; what it calls them."""
    from base64 import b64encode

    found: dict[str, str] = {}
    for text in call.options["secret"]:
        name, content = _secret(text)
        found[name] = b64encode(content).decode()
    answer = call.client.call("POST", "/build/secrets", body=found).json()
    return str(answer["ID"])


def _secret(text: str) -> tuple[str, bytes]:
    members = fields(text, "--secret")
    kind, source = members.get("type", ""), members.get("src", members.get("source", ""))
    variable = members.get("env", "")
    name = members.get("id", "") or os.path.basename(source)
    if unknown := set(members) - {"type", "src", "source", "env", "id"}:
        raise CommandError(f"invalid --secret {text!r}: unexpected key {sorted(unknown)[0]!r}")
    if not name:
        raise CommandError(f"invalid --secret {text!r}: it needs an id")
    if kind == "env" or variable or (not source and name in os.environ):
        variable = variable or source or name
        if variable not in os.environ:
            raise CommandError(f"--secret {name}: the variable {variable} is not set")
        return name, os.environb[variable.encode()]
    try:
        with open(source or name, "rb") as file:
            return name, file.read()
    except OSError as error:
        raise CommandError(f"--secret {name}: {source or name}: {error.strerror}") from None
