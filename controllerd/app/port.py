"""Ports: a MAC with addresses on a network. Tenants make free ones; servers, routers and floating IPs have theirs made here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from controllerd.app.cloud import Cloud, Once, owned
from controllerd.app.security_group import check_groups, ensure_default
from controllerd.domain import address
from controllerd.domain.network import Network
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.port import FIXED_IPS_MAX, FREE, GROUPS_MAX, SERVER, FixedIp, Port
from controllerd.domain.subnet import Subnet
from controllerd.store import event, floating_ip, quota
from controllerd.store import port as store
from controllerd.store import subnet as subnet_store
from controllerd.store.database import Tx
from controllerd.store.network import NETWORKS
from controllerd.store.port import PORTS, PortView
from daemonkit.errors import Conflict, Forbidden, InvalidArgument, NotFound, Unavailable

_MAC_TRIES = 20


@dataclass(frozen=True)
class NewPort:
    """`fixed_ips`: (subnet id, address), either may be "" for any; none given: one address of the first subnet that has one.
    `group_ids`: None = the project's default group."""

    network_id: str
    name: str = ""
    fixed_ips: tuple[tuple[str, str], ...] = ()
    group_ids: tuple[str, ...] | None = None
    port_security: bool = True
    mac: str = ""
    purpose: str = ""
    server_id: str = ""
    router_id: str = ""
    made_for_server: bool = False
    position: int = 0
    node_id: str = ""


class Ports:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def create(self, caller: Caller, new: NewPort, once: Once) -> PortView:
        authorise(caller, "port.create")
        return await self._db.write(
            lambda tx: once.run(
                tx, caller, lambda: _view(tx, make_port(tx, caller, new)), lambda i: _view(tx, PORTS.get(tx, i)),
                lambda view: view.port.id,
            )
        )  # fmt: skip

    async def get(self, caller: Caller, port_id: str) -> PortView:
        authorise(caller, "port.get")
        return await self._db.read(lambda tx: _view(tx, _own(tx, caller, port_id)))

    async def list(
        self, caller: Caller, page: Page, all_projects: bool = False, name: str = "", network_id: str = "", server_id: str = ""
    ) -> PageOf[PortView]:
        authorise(caller, "port.list")
        if all_projects:
            authorise(caller, "all_projects")

        def find(tx: Tx) -> PageOf[PortView]:
            filters = {"name": name, "network_id": network_id, "server_id": server_id}
            found = store.visible(tx, caller.project_id, all_projects, page, **filters)
            return PageOf(store.views(tx, found.items), found.next_token)

        return await self._db.read(find)

    async def update(
        self, caller: Caller, port_id: str, group_ids: tuple[str, ...] | None = None, **changes: str | bool
    ) -> PortView:
        """`changes`: name, port_security. `group_ids`: None keeps them. Takes effect on running servers."""
        authorise(caller, "port.update")

        def change(tx: Tx) -> PortView:
            port = _own(tx, caller, port_id)
            if port.purpose not in (FREE, SERVER):
                raise Conflict(f"the port is the cloud's own ({port.purpose})")
            if changes.get("port_security") is False:
                _may_unprotect(caller, NETWORKS.get(tx, port.network_id))
            if changes:
                replace(port, **changes)  # type: ignore[arg-type]  # checks them
                store.update(tx, port, **changes)
            if group_ids is not None:
                store.set_groups(tx, port, _groups(tx, port.project_id, group_ids))
            if changes or group_ids is not None:
                event.record(tx, "port.update", port.project_id, port_id)
            return _view(tx, PORTS.get(tx, port_id))

        return await self._db.write(change)

    async def delete(self, caller: Caller, port_id: str) -> None:
        """Floating IPs mapped to it are unmapped. Errors: Conflict naming the server or router whose it is."""
        authorise(caller, "port.delete")

        def remove(tx: Tx) -> None:
            port = _own(tx, caller, port_id)
            if port.server_id:
                raise Conflict(f"the port is in use by server {port.server_id}", server=port.server_id)
            if port.router_id:
                raise Conflict(f"the port is in use by router {port.router_id}", router=port.router_id)
            if port.purpose != FREE:
                raise Conflict(f"the port is the cloud's own ({port.purpose})")
            delete_port(tx, port)

        await self._db.write(remove)


# ---------------------------------------------------------------- in the transaction of another verb


def make_port(tx: Tx, caller: Caller, new: NewPort) -> Port:
    """A port of the caller's project. Errors: InvalidArgument, NotFound, Forbidden, QuotaExceeded, Conflict (address taken)."""
    network = NETWORKS.get(tx, new.network_id)
    if not caller.admin and not network.visible_to(caller.project_id):
        raise NotFound(NETWORKS.kind, new.network_id)
    if network.external:
        raise InvalidArgument("network_id", "is external: servers are reached there by floating IPs, not by ports of their own")
    if not new.port_security:
        _may_unprotect(caller, network)
    quota.take(tx, caller.project_id, ports=1)
    port = place_port(tx, network, caller.project_id, new, _groups(tx, caller.project_id, new.group_ids))
    event.record(tx, "port.create", port.project_id, port.id, port.name, network_id=network.id)
    return port


def place_port(tx: Tx, network: Network, project_id: str, new: NewPort, group_ids: tuple[str, ...] = ()) -> Port:
    """Any port on any network, the cloud's own ones too; not counted, not asked who. Errors: InvalidArgument, Conflict."""
    purpose = new.purpose or (SERVER if new.server_id else FREE)
    port = Port(
        id=tx.new_id(), name=new.name, project_id=project_id, network_id=network.id, mac=_mac(tx, network.id, new.mac),
        port_security=new.port_security, purpose=purpose, server_id=new.server_id, router_id=new.router_id,
        made_for_server=new.made_for_server, position=new.position, node_id=new.node_id, created_at=tx.now,
        observed_state="", observed_fault="",
    )  # fmt: skip
    if len(new.fixed_ips) > FIXED_IPS_MAX:
        raise InvalidArgument("fixed_ips", f"at most {FIXED_IPS_MAX}, has {len(new.fixed_ips)}")
    store.insert(tx, port, group_ids)
    subnets = subnet_store.of_network(tx, network.id)
    for subnet_id, ip in new.fixed_ips or (("", ""),):
        _take_address(tx, network, subnets, FixedIp(subnet_id, ip), port)
    return port


def take_port(tx: Tx, caller: Caller, port_id: str, server_id: str, position: int) -> Port:
    """An existing free port for a server of the caller's project. Errors: NotFound, Conflict."""
    port = _own(tx, caller, port_id)
    if port.project_id != caller.project_id:
        raise NotFound(PORTS.kind, port_id)
    if port.purpose != FREE:
        holder = f"by server {port.server_id}" if port.server_id else f"as {port.purpose}"
        raise Conflict(f"port {port_id} is in use {holder}", port=port_id)
    store.update(tx, port, purpose=SERVER, server_id=server_id, position=position)
    return PORTS.get(tx, port_id)


def release_ports(tx: Tx, server_id: str) -> None:
    """The server goes: ports made for it go too, and floating IPs mapped to them are free; others are free again and keep
    their addresses and floating IPs. Twice is once."""
    for port in store.of_server(tx, server_id):
        if port.made_for_server:
            delete_port(tx, port)
        else:
            store.move(tx, port, "")
            store.update(tx, PORTS.get(tx, port.id), purpose=FREE, server_id="", position=0)


def delete_port(tx: Tx, port: Port) -> None:
    floating_ip.unmap_port(tx, port.id)
    store.delete(tx, port)
    event.record(tx, "port.delete", port.project_id, port.id, port.name)


# ---------------------------------------------------------------- parts


def _own(tx: Tx, caller: Caller, port_id: str) -> Port:
    port = PORTS.get(tx, port_id)
    owned(caller, PORTS.kind, port_id, port.project_id)
    return port


def _view(tx: Tx, port: Port) -> PortView:
    return store.views(tx, [port])[0]


def _may_unprotect(caller: Caller, network: Network) -> None:
    if not caller.owns(network.project_id):
        raise Forbidden("port_security can be switched off by admins and on one's own networks only")


def _groups(tx: Tx, project_id: str, group_ids: tuple[str, ...] | None) -> tuple[str, ...]:
    if group_ids is None:
        return (ensure_default(tx, project_id),)
    unique = tuple(dict.fromkeys(group_ids))
    if len(unique) > GROUPS_MAX:
        raise InvalidArgument("security_group_ids", f"at most {GROUPS_MAX}, has {len(unique)}")
    check_groups(tx, project_id, "security_group_ids", unique)
    return unique


def _mac(tx: Tx, network_id: str, wanted: str) -> str:
    if wanted:
        mac = address.mac("mac", wanted)
        if store.mac_taken(tx, network_id, mac):
            raise Conflict(f"mac: {mac} is taken on this network", field="mac")
        return mac
    for _ in range(_MAC_TRIES):
        mac = address.random_mac(tx.runtime.rng)
        if not store.mac_taken(tx, network_id, mac):
            return mac
    raise Unavailable("no free MAC address found")


def _take_address(tx: Tx, network: Network, subnets: list[Subnet], wish: FixedIp, port: Port) -> FixedIp:
    if wish.ip:
        return _take_wanted(tx, network, subnets, wish, port)
    candidates = [s for s in subnets if wish.subnet_id in ("", s.id)]
    if not candidates:
        why = f"subnet {wish.subnet_id[:64]!r} is not of this network" if wish.subnet_id else "the network has no subnet"
        raise InvalidArgument("fixed_ips" if wish.subnet_id else "network_id", why)
    for subnet in candidates:
        if ip := subnet_store.lowest_free(tx, subnet):
            return subnet_store.take_address(tx, subnet.id, ip, port.id)
    full = ", ".join(s.cidr for s in candidates)
    raise Conflict(f"no address is free in the pools of {full}", field="fixed_ips", network=network.id)


def _take_wanted(tx: Tx, network: Network, subnets: list[Subnet], wish: FixedIp, port: Port) -> FixedIp:
    ip = address.address("fixed_ips", wish.ip)
    subnet = next((s for s in subnets if wish.subnet_id in ("", s.id) and ip in s.range), None)
    if subnet is None:
        ranges = ", ".join(s.cidr for s in subnets if wish.subnet_id in ("", s.id)) or "none"
        raise InvalidArgument("fixed_ips", f"{ip} is in no subnet of this network that was asked for ({ranges})")
    address.host_in("fixed_ips", str(ip), subnet.range)
    if str(ip) == subnet.gateway_ip and port.project_id not in ("", network.project_id):
        raise InvalidArgument("fixed_ips", f"{ip} is the gateway of a network of another project")
    if holder := subnet_store.owner_of(tx, subnet.id, str(ip)):
        raise Conflict(f"fixed_ips: {ip} is taken by port {holder}", field="fixed_ips", ip=str(ip))
    return subnet_store.take_address(tx, subnet.id, str(ip), port.id)
