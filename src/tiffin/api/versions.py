"""What changed between the versions of the API: what older clients send, and what they get.

Answers are made as the newest version has them; here members come back that a version still had,
and members go that it did not know *and* that Docker withholds from it too. (Most new members are
given to all versions, by Docker as well.) Requests are brought into the newest form, and what a
version can't ask for is left out, or refused where leaving it out would not be what was meant.

Source: moby's ``api/docs/CHANGELOG.md``; answers of dockerd 20.10 and 26.1, which
``tests/clients/test_versions.py`` compares with these.
"""

from __future__ import annotations

from typing import Any

from tiffin.errors import InvalidParameter

JSON = dict[str, Any]
Version = tuple[int, int]

_NOT_OF_IMAGES: dict[str, Any] = {
    **dict.fromkeys(("Hostname", "Domainname", "Image"), ""),
    **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr"), False),
    **dict.fromkeys(("Tty", "OpenStdin", "StdinOnce"), False),
}
"""Members of a container's Config, which older clients see in an image's too."""
_EMPTY_CONFIG: JSON = {
    **_NOT_OF_IMAGES,
    **dict.fromkeys(("User", "WorkingDir"), ""),
    **dict.fromkeys(("Env", "Cmd", "Volumes", "Entrypoint", "OnBuild", "Labels"), None),
}
_OPTIONS_OF = {"VolumeOptions": "volume", "BindOptions": "bind", "TmpfsOptions": "tmpfs"}


# -- requests ------------------------------------------------------------------------------


def container_wanted(body: JSON, version: Version) -> None:
    """Bring the body of ``POST /containers/create`` into the newest form.

    Raises InvalidParameter for what needs a newer version, in Docker's words.
    """
    host = body.get("HostConfig") or {}
    mounts = host.get("Mounts") or []
    endpoints = (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
    if version < (1, 25):
        host["AutoRemove"] = False
    if version < (1, 40) and not host.get("IpcMode"):
        host["IpcMode"] = "shareable"
    if version < (1, 42):
        host.pop("ConsoleSize", None)
    if version < (1, 43):
        host.pop("Annotations", None)
    if version < (1, 44):
        (body.get("Healthcheck") or {}).pop("StartInterval", None)
        if len(endpoints) > 1:
            raise InvalidParameter(
                "Container cannot be created with multiple network endpoints: "
                + ", ".join(endpoints)
            )
        for endpoint in endpoints.values():
            if not body.get("MacAddress"):
                (endpoint or {}).pop("MacAddress", None)
    if version < (1, 48):
        for endpoint in endpoints.values():
            (endpoint or {}).pop("GwPriority", None)
    for mount in mounts:
        _mount_wanted(mount, version)


def _mount_wanted(mount: JSON, version: Version) -> None:
    kind = mount.get("Type") or "volume"
    for options, of in _OPTIONS_OF.items():
        if mount.get(options) is not None and kind != of:
            if version >= (1, 42):
                raise InvalidParameter(f'{options} must not be specified on mount type "{kind}"')
            mount.pop(options)
    binding, volume = mount.get("BindOptions") or {}, mount.get("VolumeOptions") or {}
    if version < (1, 40):
        binding.pop("NonRecursive", None)
    if version < (1, 42):
        binding.pop("CreateMountpoint", None)
    if version < (1, 44) and binding.get("ReadOnlyForceRecursive"):
        raise InvalidParameter("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
    if version < (1, 45) and volume.get("Subpath"):
        raise InvalidParameter("VolumeOptions.Subpath needs API v1.45 or newer")
    if version < (1, 48) and kind == "image":
        raise InvalidParameter('Mount type "Image" needs API v1.48 or newer')


def readonly_is_recursive(version: Version) -> bool:
    """Whether a read-only bind is so to the bottom, unless told otherwise."""
    return version >= (1, 44)


# -- answers -------------------------------------------------------------------------------


def container_shown(view: JSON, version: Version) -> None:
    """``GET /containers/{id}/json``."""
    if version < (1, 42):
        view["HostConfig"] = {"KernelMemory": 0, "KernelMemoryTCP": 0, **view["HostConfig"]}
    if version < (1, 45):
        names = [view["Id"][:12], view["Config"]["Hostname"]]
        for endpoint in view["NetworkSettings"]["Networks"].values():
            if endpoint.get("DNSNames") is not None:
                aliases = [*(endpoint["Aliases"] or []), *filter(None, names)]
                endpoint["Aliases"] = list(dict.fromkeys(aliases))


def image_shown(view: JSON, version: Version) -> None:
    """``GET /images/{name}/json``."""
    if version < (1, 44):
        view.setdefault("VirtualSize", view["Size"])
    if version < (1, 45):
        # The container that made the image: there is none, as with BuildKit.
        view.setdefault("Container", "")
        view.setdefault("ContainerConfig", dict(_EMPTY_CONFIG))
    if version < (1, 50):
        view["Config"] = {**_NOT_OF_IMAGES, **view["Config"]}
    else:
        for member in (*_NOT_OF_IMAGES, "NetworkDisabled", "MacAddress", "StopTimeout"):
            view["Config"].pop(member, None)


def image_listed(row: JSON, version: Version) -> None:
    """A row of ``GET /images/json``, or of the images of ``GET /system/df``."""
    if version < (1, 44):
        row["VirtualSize"] = row["Size"]
    if version < (1, 43) and not row["RepoTags"] and not row["RepoDigests"]:
        row["RepoTags"], row["RepoDigests"] = ["<none>:<none>"], ["<none>@<none>"]


def engine_shown(view: JSON, version: Version) -> None:
    """``GET /info``."""
    if version < (1, 25):
        view["ExecutionDriver"] = "<not supported>"
    if version < (1, 42):
        view.update(KernelMemory=False, KernelMemoryTCP=False)
    if version < (1, 49):
        for member in ("ContainerdCommit", "RuncCommit", "InitCommit"):
            view[member] = {**view[member], "Expected": view[member]["ID"]}
        view["RegistryConfig"] = {
            "AllowNondistributableArtifactsCIDRs": None,
            "AllowNondistributableArtifactsHostnames": None,
            **view["RegistryConfig"],
        }
        view.pop("FirewallBackend", None)
    if version < (1, 50):
        view.update(BridgeNfIptables=False, BridgeNfIp6tables=False)
        view.pop("DiscoveredDevices", None)


def usage_shown(usage: JSON, version: Version) -> None:
    """``GET /system/df``."""
    if version >= (1, 42):
        usage.pop("BuilderSize", None)
    for row in usage.get("Images") or []:
        image_listed(row, version)
