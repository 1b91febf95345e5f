"""Values that options are made of: mounts, log drivers, limits, address ranges.

Each is the dictionary that the Engine API wants, made from arguments with docker-py's names. Where
one of these is wanted, such a dictionary does as well.
"""

from __future__ import annotations

from typing import Any

from tiffin.units import parse_size


def size_of(value: int | float | str) -> int:
    """Bytes, from a number or a text with a unit (``512m``); raises InvalidParameter."""
    if isinstance(value, int | float):
        return int(value)
    return -1 if value.strip() == "-1" else parse_size(value)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class Mount(dict[str, Any]):
    """A mount of a container; ``type`` is volume, bind, tmpfs or image."""

    def __init__(
        self,
        target: str,
        source: str | None,
        type: str = "volume",
        read_only: bool = False,
        consistency: str | None = None,
        propagation: str | None = None,
        no_copy: bool = False,
        labels: dict[str, str] | None = None,
        driver_config: dict[str, Any] | None = None,
        tmpfs_size: int | str | None = None,
        tmpfs_mode: int | None = None,
        subpath: str | None = None,
    ) -> None:
        super().__init__(Target=target, Type=type, ReadOnly=read_only)
        if source is not None:
            self["Source"] = source
        if consistency:
            self["Consistency"] = consistency
        if type == "bind" and propagation is not None:
            self["BindOptions"] = {"Propagation": propagation}
        elif type == "volume":
            options = _given(
                NoCopy=no_copy or None, Labels=labels, DriverConfig=driver_config, Subpath=subpath
            )
            if options:
                self["VolumeOptions"] = options
        elif type == "tmpfs":
            size = None if tmpfs_size is None else size_of(tmpfs_size)
            if options := _given(SizeBytes=size, Mode=tmpfs_mode):
                self["TmpfsOptions"] = options


class LogConfig(dict[str, Any]):
    """Where a container's output goes."""

    def __init__(self, type: str = "json-file", config: dict[str, str] | None = None) -> None:
        super().__init__(Type=type, Config=config or {})


class Ulimit(dict[str, Any]):
    """A resource limit of a container's processes."""

    def __init__(self, name: str, soft: int | None = None, hard: int | None = None) -> None:
        super().__init__(Name=name, **_given(Soft=soft, Hard=hard))


class Healthcheck(dict[str, Any]):
    """How to see that a container is well; times are nanoseconds."""

    def __init__(
        self,
        test: str | list[str] | None = None,
        interval: int | None = None,
        timeout: int | None = None,
        retries: int | None = None,
        start_period: int | None = None,
    ) -> None:
        super().__init__(
            **_given(
                Test=["CMD-SHELL", test] if isinstance(test, str) else test,
                Interval=interval,
                Timeout=timeout,
                Retries=retries,
                StartPeriod=start_period,
            )
        )


class IPAMPool(dict[str, Any]):
    """A range of a network's addresses."""

    def __init__(
        self,
        subnet: str | None = None,
        iprange: str | None = None,
        gateway: str | None = None,
        aux_addresses: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            **_given(
                Subnet=subnet, IPRange=iprange, Gateway=gateway, AuxiliaryAddresses=aux_addresses
            )
        )


class IPAMConfig(dict[str, Any]):
    """A network's addresses."""

    def __init__(
        self,
        driver: str = "default",
        pool_configs: list[IPAMPool] | None = None,
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(Driver=driver, Config=pool_configs or [], **_given(Options=options))


class EndpointConfig(dict[str, Any]):
    """How a container is connected to a network."""

    def __init__(
        self,
        aliases: list[str] | None = None,
        links: dict[str, str] | list[str] | None = None,
        ipv4_address: str | None = None,
        ipv6_address: str | None = None,
        link_local_ips: list[str] | None = None,
        driver_opt: dict[str, str] | None = None,
        mac_address: str | None = None,
    ) -> None:
        addresses = _given(
            IPv4Address=ipv4_address, IPv6Address=ipv6_address, LinkLocalIPs=link_local_ips
        )
        super().__init__(
            **_given(
                Aliases=aliases,
                Links=None if links is None else linked(links),
                DriverOpts=driver_opt,
                MacAddress=mac_address,
                IPAMConfig=addresses or None,
            )
        )


def linked(links: dict[str, str] | list[str] | list[tuple[str, str]]) -> list[str]:
    """Links as ``container:alias``."""
    given = sorted(links.items()) if isinstance(links, dict) else links
    return [
        one if isinstance(one, str) else f"{one[0]}:{one[1]}" if one[1] else one[0] for one in given
    ]
