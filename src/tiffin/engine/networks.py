"""The verbs on networks, and Docker's views of them.

``bridge`` is there from the beginning, and so are ``none`` and ``host``, which are none: nothing
has to be made for them.

Source: Docker Engine API v1.50, ``Network``, ``NetworkCreateRequest``.
"""

from __future__ import annotations

from typing import Any

from tiffin.engine import filters as filtering
from tiffin.engine import timestamps
from tiffin.engine.events import Events
from tiffin.engine.networkmodes import BUILT_IN, NETWORK_IDS
from tiffin.engine.roster import Roster
from tiffin.engine.sandboxes import Sandboxes
from tiffin.errors import Forbidden, InvalidParameter, NotFound, TiffinError, Unsupported
from tiffin.network.fabric import Fabric
from tiffin.network.ledger import Network
from tiffin.network.realm import DEFAULT
from tiffin.network.settings import DEFAULT_BRIDGE, HOST_BINDING, MTU, NetworkSettings
from tiffin.store.database import Database

JSON = dict[str, Any]
Rows = list[JSON]

_OPTIONS_OF_DEFAULT = {
    "com.docker.network.bridge.enable_icc": "true",
    "com.docker.network.bridge.enable_ip_masquerade": "true",
    HOST_BINDING: "0.0.0.0",
    MTU: "1500",
}
"""What Docker shows of the default network, though nobody has asked for it."""
_FILTERS = {"driver", "id", "label", "name", "scope", "type", "dangling"}
_DRIVERS = {"none": "null", "host": "host"}


class Networks:
    """The networks of a root."""

    def __init__(
        self,
        database: Database,
        roster: Roster,
        fabric: Fabric,
        sandboxes: Sandboxes,
        events: Events,
    ) -> None:
        self._database = database
        self._roster = roster
        self._fabric = fabric
        self._sandboxes = sandboxes
        self._events = events

    def create(self, body: JSON) -> JSON:
        """Make a network out of the body of ``POST /networks/create``: ``{"Id", "Warning"}``.

        Raises Conflict (the name), Forbidden (addresses overlap), InvalidParameter, Unsupported.
        """
        name = str(body.get("Name") or "")
        if name in BUILT_IN or name in (DEFAULT, "default"):
            raise Forbidden(f"operation is not permitted on predefined {name} network")
        if not name.strip():
            raise InvalidParameter("invalid network name: it is empty")
        for key, what in (
            ("ConfigOnly", "--config-only"),
            ("Ingress", "--ingress"),
        ):
            if body.get(key):
                raise Unsupported(f"{key}: {what} can't be used: there is no cluster here")
        if (body.get("ConfigFrom") or {}).get("Network"):
            raise Unsupported("ConfigFrom: --config-from can't be used: there is no cluster here")
        if body.get("Scope") not in (None, "", "local"):
            raise Unsupported(f"networks of scope {body['Scope']} can't be made: local")
        ipam = body.get("IPAM") or {}
        if ipam.get("Driver") not in (None, "", "default"):
            raise Unsupported(f"the IPAM driver {ipam['Driver']} can't be used: default")
        ipv4 = body.get("EnableIPv4")
        configs = [{k: v for k, v in one.items() if v} for one in ipam.get("Config") or []]
        if any(":" in str(one.get("Subnet", "")) for one in configs) and not body.get("EnableIPv6"):
            body = {**body, "EnableIPv6": True}
        settings = NetworkSettings(
            driver=body.get("Driver") or "bridge",
            ipv4=True if ipv4 is None else bool(ipv4),
            ipv6=bool(body.get("EnableIPv6")),
            internal=bool(body.get("Internal")),
            attachable=bool(body.get("Attachable")),
            ipam=configs,
            ipam_options=dict(ipam.get("Options") or {}),
            options={key: str(value) for key, value in (body.get("Options") or {}).items()},
            labels=dict(body.get("Labels") or {}),
        )
        if settings.driver in ("null", "host"):
            raise Forbidden(f'only one instance of "{settings.driver}" network is allowed')
        network = self._fabric.realm.create(name, settings)
        self._publish("create", network)
        return {"Id": network.id, "Warning": ""}

    def _publish(self, action: str, network: Network, **attributes: str) -> None:
        self._events.publish(
            "network",
            action,
            network.id,
            name=network.name,
            type=network.settings.driver,
            **attributes,
        )

    def list(self, filters: filtering.Filters | None = None, *, members: bool = False) -> Rows:
        """Docker's view of the networks; with ``members`` who is in them."""
        filters = filters or {}
        filtering.check(filters, _FILTERS)
        rows = [self._built_in(name) for name in BUILT_IN]
        rows += [self._view(network, members=members) for network in self._fabric.ledger.networks()]
        dangling = filtering.boolean(filters, "dangling")
        return sorted(
            (
                row
                for row in rows
                if filtering.pattern(filters, "name", [row["Name"]])
                and filtering.any_of(filters, "driver", row["Driver"])
                and filtering.any_of(filters, "scope", "local")
                and filtering.labels(filters, row["Labels"])
                and (
                    not filters.get("id")
                    or any(row["Id"].startswith(value) for value in filters["id"])
                )
                and _of_type(filters, row)
                and (dangling is None or dangling == self._dangling(row))
            ),
            key=lambda row: row["Name"],
        )

    def _dangling(self, row: JSON) -> bool:
        return _is_custom(row) and not self._sandboxes.users(row["Name"])

    def inspect(self, reference: str) -> JSON:
        """One network by name, ID or a prefix of it, with its containers; raises NotFound."""
        for name, key in NETWORK_IDS.items():
            if reference in (name, key):
                return self._built_in(name)
        return self._view(self._fabric.ledger.get(reference), members=True)

    def _built_in(self, name: str) -> JSON:
        view = _view(name, NETWORK_IDS[name], timestamps.ZERO, _DRIVERS[name])
        view["Containers"] = {
            one.id: {
                "Name": one.name,
                "EndpointID": "",
                "MacAddress": "",
                "IPv4Address": "",
                "IPv6Address": "",
            }
            for one in self._sandboxes.users(name)
            if one.running
        }
        return view

    def _view(self, network: Network, *, members: bool) -> JSON:
        settings = network.settings
        view = _view(network.name, network.id, timestamps.rfc3339(network.created), settings.driver)
        view.update(
            EnableIPv4=settings.ipv4,
            EnableIPv6=settings.ipv6,
            IPAM={
                "Driver": "default",
                "Options": settings.ipam_options or None,
                "Config": settings.ipam,
            },
            Internal=settings.internal,
            Attachable=settings.attachable,
            Options={**_OPTIONS_OF_DEFAULT, **settings.options}
            if DEFAULT_BRIDGE in settings.options
            else settings.options,
            Labels=settings.labels,
        )
        if members:
            view["Containers"] = {
                key: {
                    "Name": container.name,
                    "EndpointID": endpoint.id,
                    "MacAddress": endpoint.mac,
                    "IPv4Address": endpoint.ipv4,
                    "IPv6Address": endpoint.ipv6,
                }
                for key, (container, endpoint) in self._sandboxes.members(network).items()
            }
        return view

    def remove(self, reference: str) -> None:
        """Remove a network. Raises NotFound, and Forbidden where it is built in or in use."""
        self._refuse_built_in(reference)
        network = self._fabric.ledger.get(reference)
        if network.name == DEFAULT:
            raise Forbidden(f"{DEFAULT} is a pre-defined network and cannot be removed")
        self._fabric.remove(network)
        self._publish("destroy", network)

    @staticmethod
    def _refuse_built_in(reference: str) -> None:
        for name, key in NETWORK_IDS.items():
            if reference in (name, key):
                raise Forbidden(f"{name} is a pre-defined network and cannot be removed")

    def prune(self, filters: filtering.Filters | None = None) -> JSON:
        """Remove the networks that no container is in."""
        filters = filters or {}
        filtering.check(filters, {"until", "label", "label!"})
        until = timestamps.parse(filters["until"][0]) if filters.get("until") else None
        removed = []
        for network in self._fabric.ledger.networks():
            labels = network.settings.labels
            if (
                network.name == DEFAULT
                or self._sandboxes.users(network.name)
                or (until is not None and network.created > until)
                or not filtering.labels(filters, labels)
                or (filters.get("label!") and filtering.labels(filters, labels, "label!"))
            ):
                continue
            try:
                self.remove(network.id)
            except (Forbidden, NotFound):
                # A container came into it, or somebody removed it meanwhile.
                continue
            removed.append(network.name)
        return {"NetworksDeleted": removed}

    def connect(self, reference: str, container: str, body: JSON | None = None) -> None:
        """Put a container into a network; ``body`` is Docker's EndpointSettings."""
        if reference in (*BUILT_IN, *NETWORK_IDS.values()):
            if reference in ("none", NETWORK_IDS["none"]):
                raise InvalidParameter(
                    "container cannot be connected to multiple networks with one of the networks "
                    "in private (none) mode"
                )
            raise Forbidden(
                "container cannot be disconnected from host network or connected to host network"
            )
        network = self._fabric.ledger.get(reference)
        one = self._roster.get(container)
        with one.lock:
            self._sandboxes.connect(one, network, body)
            one.save_spec(self._database)
        self._publish("connect", network, container=one.id)

    def disconnect(self, reference: str, container: str, force: bool = False) -> None:
        """Take a container out of a network; ``force``: it is out, whatever its side says."""
        name = reference
        for built_in, key in NETWORK_IDS.items():
            if reference == key:
                name = built_in
        network = None
        if name not in BUILT_IN:
            network = self._fabric.ledger.get(reference)
            name = network.name
        one = self._roster.get(container)
        recorded: list[bool] = []

        def record() -> None:
            one.save_spec(self._database)
            recorded.append(True)

        with one.lock:
            try:
                self._sandboxes.disconnect(one, name, record)
            except TiffinError:
                if not force or not recorded:
                    raise
        if network is not None:
            self._publish("disconnect", network, container=one.id)


def _view(name: str, key: str, created: str, driver: str) -> JSON:
    return {
        "Name": name,
        "Id": key,
        "Created": created,
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": None},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {},
        "Labels": {},
    }


def _is_custom(row: JSON) -> bool:
    return row["Name"] not in (*BUILT_IN, DEFAULT)


def _of_type(filters: filtering.Filters, row: JSON) -> bool:
    types = filters.get("type")
    if not types:
        return True
    if set(types) - {"custom", "builtin"}:
        raise InvalidParameter(f"invalid filter: 'type'='{', '.join(types)}'")
    return ("custom" if _is_custom(row) else "builtin") in types
