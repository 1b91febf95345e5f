"""``registry``: a registry of one's own in a folder or an object store, served and looked after."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tiffin.cli.command import Command, CommandError, Invocation, report
from tiffin.cli.flags import BOOL, STRING, Flag
from tiffin.cli.values import DURATION
from tiffin.units import human_size

if TYPE_CHECKING:
    from tiffin.registry.client import Registry
    from tiffin.registry.storage import Storage
    from tiffin.registry.stores import ObjectStore

_WORK = Flag("work", STRING, "Local folder of a registry in an object store: uploads, locks")


def serve(call: Invocation) -> int:
    """Runs a registry in the foreground."""
    import signal
    import threading

    from tiffin.registry.access import Passwords, Tokens
    from tiffin.registry.protocol import Policy
    from tiffin.registry.server import RegistryServer
    from tiffin.registry.sweeping import sweep

    options = call.options
    folder = _folder(call)
    host, colon, port = options["listen"].rpartition(":")
    if not colon or not port.isdigit():
        raise CommandError(f"invalid address {options['listen']!r}: expected HOST:PORT")
    host = host.strip("[]") or "0.0.0.0"
    if bool(options["tls-cert"]) != bool(options["tls-key"]):
        raise CommandError("--tls-cert and --tls-key belong together")
    passwords = Passwords(Path(options["htpasswd"])) if options["htpasswd"] else None
    if options["token-auth"] and passwords is None:
        raise CommandError("--token-auth needs the users of --htpasswd")
    tokens = None
    if options["token-auth"] and passwords is not None:
        folder.mkdir(parents=True, exist_ok=True)
        tokens = Tokens(folder, passwords, "tiffin registry")
    upstream = _upstream(options["proxy"]) if options["proxy"] else None
    policy = Policy(
        passwords,
        tokens,
        options["read-only"],
        options["anonymous-pull"],
        options["public-url"].rstrip("/"),
    )
    if policy.passwords is None and not _is_local(host):
        report(f"WARNING! Whoever reaches {host}:{port} may push: use --htpasswd or --read-only.")
    certificate = None
    if options["tls-cert"]:
        certificate = (Path(options["tls-cert"]), Path(options["tls-key"]))
    server = RegistryServer(
        folder,
        host=host,
        port=int(port),
        policy=policy,
        certificate=certificate,
        upstream=upstream,
        store=_store(call),
    )
    ended = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        ended.set()
        threading.Thread(target=server.close).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(
        f"Serving {_url(call) or folder} at"
        f" {'https' if certificate else 'http'}://{server.address}",
        flush=True,
    )
    interval = options["gc-interval"]
    if interval is not None and interval > 0:

        def collect() -> None:
            while not ended.wait(interval / 1e9):
                sweep(server.storage)

        threading.Thread(target=collect, daemon=True).start()
    server.serve()
    return 0


def _upstream(url: str) -> Registry:
    """A client of the registry that is to be cached."""
    from dataclasses import replace
    from urllib.parse import urlsplit

    from tiffin.registry.client import Patience, Registry
    from tiffin.registry.credentials import CredentialsFile
    from tiffin.registry.endpoints import Configuration

    parts = urlsplit(url if "://" in url else f"//{url}")
    if parts.scheme not in ("", "http", "https") or not parts.netloc:
        raise CommandError(f"invalid registry {url!r}: expected HOST or https://HOST")
    insecure = [parts.netloc] if parts.scheme == "http" else []
    (endpoint,) = Configuration(insecure=insecure).endpoints(parts.netloc, mirrors=False)
    if parts.scheme:
        prefix = parts.path.rstrip("/")
        endpoint = replace(endpoint, schemes=(parts.scheme,), prefix=prefix)
    # Somebody waits for the answer, who may be patient too.
    patience = Patience(attempts=3, connect=5.0)
    return Registry(endpoint, CredentialsFile().get(parts.netloc), patience=patience)


def _url(call: Invocation) -> str:
    """The object store that is meant, or nothing."""
    return call.arguments[0] if call.arguments and "://" in call.arguments[0] else ""


def _folder(call: Invocation) -> Path:
    """The local folder: all of the registry, or what goes with an object store."""
    if call.options["work"]:
        if not _url(call):
            raise CommandError("--work is for object stores: a folder has its work in itself")
        return Path(call.options["work"])
    if call.arguments and not _url(call):
        return Path(call.arguments[0])
    return Path(call.endpoint.root) / "registry"


def _store(call: Invocation) -> ObjectStore | None:
    from tiffin.registry.stores import ObjectStore

    return ObjectStore(_url(call)) if _url(call) else None


def _is_local(host: str) -> bool:
    from tiffin.registry.endpoints import is_loopback

    return is_loopback(f"[{host}]" if ":" in host else host)


def collect(call: Invocation) -> int:
    """Removes what no image of a registry's folder needs; the registry may be running."""
    from tiffin.registry.sweeping import GRACE, sweep

    grace = call.options["grace"]
    seconds = GRACE if grace is None else grace / 1e9
    swept = sweep(_existing(call), untagged=call.options["untagged"], grace=seconds)
    print(f"Removed {swept.blobs} blobs, {swept.manifests} manifests, {swept.uploads} uploads")
    print(f"Total reclaimed space: {human_size(swept.bytes)}")
    return 0


def _existing(call: Invocation) -> Storage:
    from tiffin.registry.storage import Storage

    folder = _folder(call)
    if not _url(call) and not os.path.isdir(folder / "uploads"):
        raise CommandError(f"{folder} holds no registry")
    return Storage(folder, _store(call))


def statistics(call: Invocation) -> int:
    """Shows what sharing layers saves in a registry's folder."""
    from json import dumps

    from tiffin.cli.tables import columns
    from tiffin.registry.sharing import measure

    report = measure(_existing(call))
    if call.options["json"]:
        print(dumps(report.document(), indent=2))
        return 0
    saved = report.referenced - report.stored
    print(f"{report.images} images in {report.repositories} repositories, {report.tags} tags")
    print(
        f"{human_size(report.referenced)} referenced, {human_size(report.stored)} stored: sharing"
        f" layers saves {human_size(saved)}"
    )
    rows = [["LAYER", "SIZE", "IMAGES", "SAVED"]]
    for layer in report.layers[:20]:
        if len(layer.images) > 1:
            rows.append(
                [
                    layer.digest.partition(":")[2][:12],
                    human_size(layer.size),
                    str(len(layer.images)),
                    human_size(layer.size * (len(layer.images) - 1)),
                ]
            )
    if len(rows) > 1:
        sys.stdout.write("\n" + columns(rows))
    return 0


REGISTRY_SERVE = Command(
    serve,
    "Run a registry in the foreground",
    "[OPTIONS] [FOLDER|URL]",
    (
        Flag("anonymous-pull", BOOL, "Let everybody pull although there are users"),
        Flag("gc-interval", DURATION, "Collect garbage this often (1h)"),
        Flag("htpasswd", STRING, "File with the users who are let in"),
        Flag("listen", STRING, "Address to listen at", default="127.0.0.1:5000"),
        Flag("proxy", STRING, "Be a cache of this registry"),
        Flag("public-url", STRING, "Where clients find it, if not at the host they name"),
        Flag("read-only", BOOL, "Refuse pushes and deletes"),
        Flag("tls-cert", STRING, "Certificate (chain) in PEM form"),
        Flag("tls-key", STRING, "Its key"),
        Flag("token-auth", BOOL, "Give tokens to the users, instead of asking each time"),
        _WORK,
    ),
    maximum=1,
    notes=(
        "Without FOLDER: the folder registry in the engine root. URL is an object store, as"
        " s3://BUCKET/FOLDER; its credentials and endpoint are the environment's."
    ),
)
REGISTRY_GC = Command(
    collect,
    "Remove what no image of a registry needs",
    "[OPTIONS] [FOLDER|URL]",
    (
        Flag("grace", DURATION, "Keep what is younger (1h)"),
        Flag("untagged", BOOL, "Remove manifests without a tag too"),
        _WORK,
    ),
    maximum=1,
)
REGISTRY_STATS = Command(
    statistics,
    "Show what sharing layers saves in a registry",
    "[OPTIONS] [FOLDER|URL]",
    (Flag("json", BOOL, "As JSON"), _WORK),
    maximum=1,
)
