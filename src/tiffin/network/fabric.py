"""The fabric: sandboxes, with all that has to be made and taken away for them.

A *sandbox* is the network side of a running container: its namespace, its endpoints, its published
ports, its names. Order, for each of them: what may be refused comes first (ports, addresses), the
rows, then links and rules; nothing has started yet. Taking away goes the other way round: links
fall silent, rules go, and only then are addresses and ports free for others.

What an engine that was killed has left is taken away by :meth:`Fabric.resume`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tiffin.errors import TiffinError, Unsupported
from tiffin.network import briefing, firewall, links
from tiffin.network.departures import Departure, Departures
from tiffin.network.forwarding import Forwarding
from tiffin.network.ledger import Ledger, Network
from tiffin.network.namespace import Namespace, make_room_for_neighbours
from tiffin.network.patience import once_released
from tiffin.network.plans import Place, SandboxPlan, is_named
from tiffin.network.porter.client import Message, PorterClient
from tiffin.network.publications import Publications, release
from tiffin.network.realm import Realm
from tiffin.network.settings import Endpoint
from tiffin.store.database import Database

_MANY = 200
"""Endpoints of a network from which on the kernel's tables of neighbours may be too small."""

logger = logging.getLogger("tiffin")


class Fabric:
    """The networks of one root. Usable from any thread."""

    def __init__(self, database: Database, root: Path, mark: str) -> None:
        self.ledger = Ledger(database)
        self._links = links.Links(mark)
        self._firewall = firewall.Firewall(mark, self._elements)
        self._porter = PorterClient(root, self._sandboxes, self._restore)
        self._forwarding = Forwarding(root / "network")
        self.realm = Realm(mark, self.ledger, self._links, self._firewall, self._forwarding)
        self._publications = Publications(self.ledger, self._firewall, self._porter)
        self._departures = Departures(self.ledger, self._unrule)
        # Of running containers: the first process, and what it has of networks.
        self._pids: dict[str, int] = {}
        self._plans: dict[str, SandboxPlan] = {}
        # Of those that have no process yet.
        self._namespaces: dict[str, Namespace] = {}

    def _elements(self) -> Iterable[firewall.Element]:
        """All that the firewall shall hold."""
        found = self.realm.elements()
        for container in self.ledger.containers():
            found += self._publications.elements(container)
        return found

    def remove(self, network: Network) -> None:
        """Remove a network; raises Forbidden while something is in it."""
        self._departures.wait()
        self.realm.remove(network)

    # -- sandboxes --------------------------------------------------------------------------

    def open(self, plan: SandboxPlan) -> Namespace:
        """Make a container's sandbox; the caller closes the namespace once the container runs.

        Raises TiffinError in Docker's words for a port in use, an address in use, an unknown
        network; then nothing is left of it.
        """
        container = plan.container
        self._departures.wait()
        held = self._publications.hold(plan)
        namespace: Namespace | None = None
        try:
            namespace = self._namespaces[container] = Namespace.new()
            links.prepare(namespace)
            used: set[str] = set()
            for place in plan.places:
                used.add(name := place.network.settings.free_interface(used))
                self._join(plan, place, name, namespace)
            self._route(container, plan, namespace)
            self._publications.lead(container, held)
            messages: list[Message] = []
            if any(is_named(place.network) for place in plan.places):
                joined = self.ledger.of_container(container)
                sockets = briefing.name_sockets(namespace)
                messages.append(briefing.names(plan, joined, sockets))
            messages += self._publications.give(container, held)
            self._porter.say(*messages)
            # Only now is it something that a new porter has to be told.
            self._plans[container] = plan
            return namespace
        except BaseException as error:
            release(held)
            self.close(container)
            self._departures.wait()
            if namespace is not None:
                namespace.close()
            if isinstance(error, OSError):
                raise TiffinError(f"the network can't be set up: {error}") from error
            raise

    def _join(
        self, plan: SandboxPlan, place: Place, interface: str, namespace: Namespace
    ) -> Endpoint:
        network, container = place.network, plan.container
        if network.settings.driver == "bridge":
            self.realm.bring_up(network)
        if len(network.endpoints) == _MANY:
            make_room_for_neighbours()
        endpoint = self.ledger.join(network, container, place.asked, interface, place.names)
        try:
            published = bool(plan.ports)
            if self._links.plug(network, endpoint, namespace, published=published):
                self._firewall.change(self.realm.elements_of(network))
        except BaseException:
            self._links.unplug(network, endpoint)
            self.ledger.leave(endpoint)
            raise
        if is_named(network):
            self._porter.say(briefing.join(network, endpoint, plan.name))
        return endpoint

    def _route(self, container: str, plan: SandboxPlan, namespace: Namespace) -> None:
        """The default routes: through the network of the highest priority, else by name."""
        priorities = {place.network.id: place.asked.priority for place in plan.places}
        gateways: dict[int, tuple[str, str]] = {}
        joined = self.ledger.of_container(container)
        joined.sort(key=lambda pair: (-priorities.get(pair[0].id, 0), pair[0].name))
        for network, endpoint in joined:
            if not network.settings.leads_out:
                continue
            for version in (4, 6):
                subnet = network.subnet(version)
                if subnet is None or version in gateways or not endpoint.address(version):
                    continue
                if subnet.gateway is not None:
                    gateways[version] = (endpoint.interface, str(subnet.gateway))
                elif network.settings.options.get("ipvlan_mode", "").startswith("l3"):
                    gateways[version] = (endpoint.interface, "")
        links.set_routes(namespace, list(gateways.values()))

    def started(self, container: str, pid: int) -> None:
        """A container that has a sandbox has its first process."""
        self._pids[container] = pid
        plan = self._plans.get(container)
        if plan is not None and (
            self.ledger.ports(container) or any(is_named(one.network) for one in plan.places)
        ):
            self._porter.say(briefing.opened(container, pid))
        # From here on it is the process that keeps it.
        self._namespaces.pop(container, None)

    def close(self, container: str) -> list[Network]:
        """A container has ended, or did not start: take its sandbox away.

        Gives the networks that it leaves by that.
        """
        self._pids.pop(container, None)
        self._namespaces.pop(container, None)
        plan = self._plans.pop(container, None)
        joined = self.ledger.of_container(container)
        published = self.ledger.ports(container)
        if not joined and not published:
            return []
        if container in self._departures:
            # It is on its way out already.
            return []
        for network, endpoint in joined:
            self._links.unplug(network, endpoint)
            if is_named(network):
                self._porter.say(briefing.leave(endpoint.id))
        told = bool(published) or any(is_named(network) for network, _ in joined)
        if told:
            self._porter.say(briefing.close(container))
        departure = Departure(container, [endpoint for _, endpoint in joined])
        if published:
            departure.elements = self._publications.elements(container)
        self._departures.leave(departure)
        return [network for network, _ in joined] if plan is not None else []

    def _unrule(self, elements: Iterable[firewall.Element]) -> None:
        self._firewall.change((), elements)
        self._porter.sync()

    # -- changes while running --------------------------------------------------------------

    def connect(self, plan: SandboxPlan, place: Place) -> Endpoint:
        """Put a running container into one more network; ``plan`` has the new place already.

        Raises TiffinError; then it is not in it.
        """
        container = plan.container
        before = self.ledger.of_container(container)
        used = {endpoint.interface for _, endpoint in before}
        name = place.network.settings.free_interface(used)
        rules = self._publications.elements(container)
        pid = self._pids[container]
        with Namespace.of_process(pid) as namespace:
            try:
                endpoint = self._join(plan, place, name, namespace)
            except OSError as error:
                raise TiffinError(f"the network can't be set up: {error}") from error
            try:
                self._route(container, plan, namespace)
                self._publications.follow(plan, rules, pid)
                if is_named(place.network):
                    self._name(plan, namespace, anew=not any(is_named(one) for one, _ in before))
                self._plans[container] = plan
            except BaseException as error:
                self._pull(plan.container, place.network, endpoint, namespace)
                if isinstance(error, OSError):
                    raise TiffinError(f"the network can't be set up: {error}") from error
                raise
        return endpoint

    def _name(self, plan: SandboxPlan, namespace: Namespace, *, anew: bool) -> None:
        joined = self.ledger.of_container(plan.container)
        if not anew:
            self._porter.say(briefing.names(plan, joined))
            return
        # What it had of names before may just be on its way out.
        self._porter.sync()
        sockets = briefing.name_sockets(namespace)
        pid = self._pids[plan.container]
        self._porter.say(
            briefing.names(plan, joined, sockets), briefing.opened(plan.container, pid)
        )

    def disconnect(self, plan: SandboxPlan, network: Network) -> None:
        """Take a running container out of a network; ``plan`` has the place no more."""
        container = plan.container
        endpoint = network.endpoints.get(container)
        if endpoint is None:
            return
        rules = self._publications.elements(container)
        pid = self._pids[container]
        with Namespace.of_process(pid) as namespace:
            self._pull(container, network, endpoint, namespace)
            self._plans[container] = plan
            self._route(container, plan, namespace)
        if is_named(network):
            joined = self.ledger.of_container(container)
            if any(is_named(one) for one, _ in joined):
                self._porter.say(briefing.names(plan, joined))
            else:
                self._porter.say(briefing.unname(container))
        self._publications.follow(plan, rules, pid)

    def _pull(
        self, container: str, network: Network, endpoint: Endpoint, namespace: Namespace
    ) -> None:
        self._links.pull(network, endpoint, namespace)
        self._porter.say(briefing.leave(endpoint.id))
        self.ledger.leave(endpoint)

    def rename(self, plan: SandboxPlan) -> None:
        """A running container has other names now."""
        self._plans[plan.container] = plan
        names = {place.network.id: place.names for place in plan.places}
        for network, endpoint in self.ledger.of_container(plan.container):
            endpoint.names = names.get(network.id, endpoint.names)
            self.ledger.save_endpoint(endpoint)
            if is_named(network):
                self._porter.say(briefing.join(network, endpoint, plan.name))

    # -- start-up and end -------------------------------------------------------------------

    def resume(self, running: Mapping[str, tuple[SandboxPlan, int]]) -> list[str]:
        """At start-up: take over what runs, take away what does not any more.

        ``running`` are the plans and first processes of the containers that run; given are those of
        them that were in other networks than their plans say.
        """
        for container in self.ledger.containers():
            if container not in running:
                for _, endpoint in self.ledger.of_container(container):
                    self.ledger.leave(endpoint)
                self.ledger.unpublish(container)
        try:
            swept = self._links.sweep(self.ledger.networks())
        except OSError as error:
            logger.error("links of ended containers could not be removed: %s", error)
            swept = False
        alive = {key: value for key, value in running.items() if self.ledger.of_container(key)}
        if not alive:
            if swept:
                try:
                    self._clear()
                except Unsupported:
                    # Then there is no table either.
                    pass
            self._meet_porter()
            return []
        for container, (plan, pid) in alive.items():
            self._plans[container], self._pids[container] = plan, pid
        self.realm.resume()
        self._firewall.install()
        self._meet_porter()
        return [key for key, (plan, _) in alive.items() if self._reconcile(key, plan)]

    def _meet_porter(self) -> None:
        self._porter.begin()
        if self._plans or self._porter.alive:
            # Whatever is said first tells the porter all the rest too, and what is over.
            self._porter.say(briefing.leave(""))

    def _reconcile(self, container: str, plan: SandboxPlan) -> bool:
        """Take a container out of what it was just being put into, or taken out of, when the
        engine was killed: what its plan does not know. Whether there was such a thing."""
        planned = {place.network.id for place in plan.places}
        strange = [
            (network, endpoint)
            for network, endpoint in self.ledger.of_container(container)
            if network.id not in planned
        ]
        for network, endpoint in strange:
            try:
                self.disconnect(plan, network)
            except (OSError, TiffinError) as error:
                logger.error(
                    "%s could not be taken out of %s: %s", container[:12], network.name, error
                )
                self.ledger.leave(endpoint)
        return bool(strange)

    def _sandboxes(self) -> list[str]:
        # Whoever has a plan has told the porter everything, or has it in the queue.
        return list(self._plans)

    def _restore(
        self, sandboxes: Sequence[str], named: set[str], held: set[str]
    ) -> Iterator[Message]:
        """What a porter is told that has just been met; ``named`` and ``held`` are the sandboxes
        whose names and ports it has."""
        for container in sandboxes:
            plan = self._plans.get(container)
            if plan is not None:
                try:
                    yield from self._restore_one(container, plan, named, held)
                except (OSError, TiffinError) as error:
                    logger.error("names or ports of %s are not served: %s", container[:12], error)
        yield {"do": "settled"}, ()

    def _restore_one(
        self, container: str, plan: SandboxPlan, named: set[str], held: set[str]
    ) -> Iterator[Message]:
        # What it is just being put into is told, with sockets, by whoever does that.
        planned = {place.network.id for place in plan.places}
        joined = [pair for pair in self.ledger.of_container(container) if pair[0].id in planned]
        for network, endpoint in joined:
            if is_named(network):
                yield briefing.join(network, endpoint, plan.name)
        published = self.ledger.ports(container)
        if published and container not in held:
            yield from self._publications.hold_again(container)
        if any(is_named(network) for network, _ in joined):
            sockets: Sequence[int] = ()
            if container not in named:
                with self._namespace(container) as namespace:
                    sockets = once_released(
                        lambda: briefing.name_sockets(namespace, redirect=False)
                    )
            yield briefing.names(plan, joined, sockets)
        elif not published:
            return
        pid = self._pids.get(container)
        if pid is not None:
            yield briefing.opened(container, pid)

    def _namespace(self, container: str) -> Namespace:
        opening = self._namespaces.get(container)
        if opening is not None:
            return opening.copy()
        pid = self._pids.get(container)
        if pid is None:
            raise ProcessLookupError("it has just ended")
        return Namespace.of_process(pid)

    def shutdown(self, *, idle: bool) -> None:
        """Let go of everything; where nothing runs (``idle``), the host is left as it was."""
        self._departures.close()
        self._porter.close(shutdown=idle)
        if idle:
            # Whoever finds bridges next time looks for rules too, but not the other way round.
            if self._firewall.installed:
                self._clear()
            self.realm.take_down()
        self._links.close()

    def _clear(self) -> None:
        """Nothing runs: no rules are needed, unless the host forwards on this engine's account."""
        if self._forwarding.switch_off():
            self._firewall.remove()
        else:
            self._firewall.install()
