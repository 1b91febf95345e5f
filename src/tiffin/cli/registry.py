"""``registry``: a registry of one's own, served from a folder, and looked after."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tiffin.cli.command import Command, CommandError, Invocation, report
from tiffin.cli.flags import BOOL, STRING, Flag
from tiffin.cli.units import human_size


def serve(call: Invocation) -> int:
    """Runs a registry in the foreground."""
    import signal
    import threading

    from tiffin.registry.access import Passwords, Tokens
    from tiffin.registry.client import Registry
    from tiffin.registry.endpoints import Configuration
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
    upstream = None
    if options["proxy"]:
        from urllib.parse import urlsplit

        from tiffin.registry.credentials import CredentialsFile

        domain = urlsplit(options["proxy"]).netloc or options["proxy"]
        insecure = [domain] if options["proxy"].startswith("http://") else []
        (endpoint,) = Configuration(insecure=insecure).endpoints(domain, mirrors=False)
        upstream = Registry(endpoint, CredentialsFile().get(domain))
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
    )
    ended = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        ended.set()
        threading.Thread(target=server.close).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(
        f"Serving {folder} at {'https' if certificate else 'http'}://{server.address}", flush=True
    )
    if options["gc-interval"]:
        from tiffin.cli.units import parse_duration

        seconds = parse_duration(options["gc-interval"]) / 1e9

        def collect() -> None:
            while not ended.wait(seconds):
                sweep(server.storage)

        threading.Thread(target=collect, daemon=True).start()
    server.serve()
    return 0


def _folder(call: Invocation) -> Path:
    if call.arguments and "://" in call.arguments[0]:
        raise CommandError(
            f"{call.arguments[0]}: only local folders can hold a registry yet (no object stores)"
        )
    if call.arguments:
        return Path(call.arguments[0])
    return Path(call.endpoint.root) / "registry"


def _is_local(host: str) -> bool:
    from tiffin.registry.endpoints import is_loopback

    return is_loopback(f"[{host}]" if ":" in host else host)


def collect(call: Invocation) -> int:
    """Removes what no image of a registry's folder needs; the registry may be running."""
    from tiffin.cli.units import parse_duration
    from tiffin.registry.storage import Storage
    from tiffin.registry.sweeping import GRACE, sweep

    grace = call.options["grace"]
    seconds = parse_duration(grace) / 1e9 if grace else GRACE
    folder = _existing(call)
    swept = sweep(Storage(folder), untagged=call.options["untagged"], grace=seconds)
    print(f"Removed {swept.blobs} blobs, {swept.manifests} manifests, {swept.uploads} uploads")
    print(f"Total reclaimed space: {human_size(swept.bytes)}")
    return 0


def _existing(call: Invocation) -> Path:
    folder = _folder(call)
    if not os.path.isdir(folder / "blobs"):
        raise CommandError(f"{folder} holds no registry")
    return folder


def statistics(call: Invocation) -> int:
    """Shows what sharing layers saves in a registry's folder."""
    from json import dumps

    from tiffin.cli.tables import columns
    from tiffin.registry.sharing import measure
    from tiffin.registry.storage import Storage

    report = measure(Storage(_existing(call)))
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
    "[OPTIONS] [FOLDER]",
    (
        Flag("anonymous-pull", BOOL, "Let everybody pull although there are users"),
        Flag("gc-interval", STRING, "Collect garbage this often (1h)"),
        Flag("htpasswd", STRING, "File with the users who are let in"),
        Flag("listen", STRING, "Address to listen at", default="127.0.0.1:5000"),
        Flag("proxy", STRING, "Be a cache of this registry"),
        Flag("public-url", STRING, "Where clients find it, if not at the host they name"),
        Flag("read-only", BOOL, "Refuse pushes and deletes"),
        Flag("tls-cert", STRING, "Certificate (chain) in PEM form"),
        Flag("tls-key", STRING, "Its key"),
        Flag("token-auth", BOOL, "Give tokens to the users, instead of asking each time"),
    ),
    maximum=1,
    notes="Without FOLDER: the folder registry in the engine root.",
)
REGISTRY_GC = Command(
    collect,
    "Remove what no image of a registry needs",
    "[OPTIONS] [FOLDER]",
    (
        Flag("grace", STRING, "Keep what is younger (1h)"),
        Flag("untagged", BOOL, "Remove manifests without a tag too"),
    ),
    maximum=1,
)
REGISTRY_STATS = Command(
    statistics,
    "Show what sharing layers saves in a registry",
    "[OPTIONS] [FOLDER]",
    (Flag("json", BOOL, "As JSON"),),
    maximum=1,
)
