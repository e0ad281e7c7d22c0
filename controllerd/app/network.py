"""Networks: a project's own L2 segments; admins also make shared and external ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from controllerd.app.cloud import Cloud, Once
from controllerd.domain.network import Network
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.store import event, port, quota, subnet
from controllerd.store import network as store
from controllerd.store.database import Tx
from controllerd.store.network import NETWORKS
from daemonkit.errors import Conflict, Forbidden, InvalidArgument, NotFound

MTU_DEFAULT = 1450  # an underlay of 1500 less the 50 bytes of VXLAN over IPv4
EXTERNAL_MTU_DEFAULT = 1500


@dataclass(frozen=True)
class NetworkView:
    network: Network
    subnet_ids: tuple[str, ...]


class Networks:
    def __init__(self, cloud: Cloud, *, mtu: int = MTU_DEFAULT, external_mtu: int = EXTERNAL_MTU_DEFAULT) -> None:
        """MTUs in bytes, of networks made from now on."""
        self._db, self._mtu, self._external_mtu = cloud.database, mtu, external_mtu

    async def create(self, caller: Caller, name: str, shared: bool, external: bool, once: Once) -> NetworkView:
        authorise(caller, "network.create")
        if shared or external:
            authorise(caller, "public_resource")

        def make(tx: Tx) -> NetworkView:
            mtu, vni = (self._external_mtu, 0) if external else (self._mtu, store.free_vni(tx))
            network = Network(tx.new_id(), name, caller.project_id, shared, external, mtu, vni, tx.now)
            quota.take(tx, caller.project_id, networks=1)
            NETWORKS.insert(tx, network)
            event.record(tx, "network.create", caller.project_id, network.id, name)
            return NetworkView(network, ())

        return await self._db.write(
            lambda tx: once.run(
                tx, caller, lambda: make(tx), lambda i: _view(tx, NETWORKS.get(tx, i)), lambda view: view.network.id
            )
        )

    async def get(self, caller: Caller, network_id: str) -> NetworkView:
        authorise(caller, "network.get")
        return await self._db.read(lambda tx: _view(tx, visible(tx, caller, network_id)))

    async def list(
        self, caller: Caller, name: str, external: bool | None, all_projects: bool, page: Page
    ) -> PageOf[NetworkView]:
        authorise(caller, "network.list")
        if all_projects:
            authorise(caller, "all_projects")

        def find(tx: Tx) -> PageOf[NetworkView]:
            found = store.visible(tx, caller.project_id, all_projects, name, external, page)
            return PageOf(_views(tx, found.items), found.next_token)

        return await self._db.read(find)

    async def update(self, caller: Caller, network_id: str, **changes: str | bool) -> NetworkView:
        """`changes`: name, shared."""
        authorise(caller, "network.update")
        if "shared" in changes:
            authorise(caller, "public_resource")

        def change(tx: Tx) -> NetworkView:
            network = changeable(tx, caller, network_id)
            changed = replace(network, **changes)  # type: ignore[arg-type]
            if network.shared and not changed.shared and (guest := store.foreign_port(tx, network)):
                raise Conflict(f"port {guest} of another project is on it", port=guest)
            if changes:
                NETWORKS.update(tx, network_id, **changes)
                event.record(tx, "network.update", network.project_id, network_id)
            return _view(tx, changed)

        return await self._db.write(change)

    async def delete(self, caller: Caller, network_id: str) -> None:
        """With its subnets. Errors: Conflict naming a port that is on it."""
        authorise(caller, "network.delete")

        def remove(tx: Tx) -> None:
            network = changeable(tx, caller, network_id)
            if user := store.used_by(tx, network_id):
                raise Conflict(f"the network is in use by {user}")
            for dhcp_port in port.of_network(tx, network_id):
                port.delete(tx, dhcp_port)
            subnet.delete_of_network(tx, network_id)
            NETWORKS.delete(tx, network_id)
            event.record(tx, "network.delete", network.project_id, network_id, network.name)

        await self._db.write(remove)


def visible(tx: Tx, caller: Caller, network_id: str) -> Network:
    """The caller's own, a shared or an external one; admins see all. Errors: NotFound."""
    network = NETWORKS.get(tx, network_id)
    if not caller.admin and not network.visible_to(caller.project_id):
        raise NotFound(NETWORKS.kind, network_id)
    return network


def changeable(tx: Tx, caller: Caller, network_id: str) -> Network:
    """Errors: NotFound; Forbidden for a network that is seen, but another project's."""
    network = visible(tx, caller, network_id)
    if not caller.owns(network.project_id):
        raise Forbidden("the network is another project's; its owner or an admin can change it")
    return network


def external(tx: Tx, caller: Caller, field: str, network_id: str) -> Network:
    """An external network. Errors: NotFound, InvalidArgument naming `field`."""
    network = visible(tx, caller, network_id)
    if not network.external:
        raise InvalidArgument(field, f"network {network.name!r} is not external")
    return network


def _view(tx: Tx, network: Network) -> NetworkView:
    return _views(tx, [network])[0]


def _views(tx: Tx, networks: Sequence[Network]) -> list[NetworkView]:
    subnets = store.subnet_ids(tx, (n.id for n in networks))
    return [NetworkView(n, tuple(subnets.get(n.id, ()))) for n in networks]
