"""Floating IPs: public addresses of a project, mapped to its ports one to one."""

from __future__ import annotations

from controllerd.app.cloud import Cloud, Once, owned
from controllerd.app.network import external
from controllerd.app.port import NewPort, place_port
from controllerd.domain import address
from controllerd.domain.floating_ip import FloatingIp
from controllerd.domain.network import Network
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.port import FLOATING_IP, FREE, SERVER, FixedIp, Port
from controllerd.store import event, port, quota, router, subnet
from controllerd.store import floating_ip as store
from controllerd.store.database import Tx
from controllerd.store.floating_ip import FLOATING_IPS, FloatingIpView
from controllerd.store.port import PORTS
from controllerd.store.server import SERVERS
from daemonkit.errors import Conflict, InvalidArgument


class FloatingIps:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def create(
        self, caller: Caller, external_network_id: str, once: Once, *, ip: str = "", port_id: str = "", server_id: str = ""
    ) -> FloatingIpView:
        """`ip`: this address (of the pools; admins: any of the subnets), "" = the lowest free. With a port or a server it is
        mapped at once."""
        authorise(caller, "floating_ip.create")

        def make(tx: Tx) -> FloatingIpView:
            network = external(tx, caller, "external_network_id", external_network_id)
            quota.take(tx, caller.project_id, floating_ips=1)
            made = _allocate(tx, caller, network, ip)
            event.record(tx, "floating_ip.create", caller.project_id, made.id, made.ip)
            if port_id or server_id:
                _map(tx, caller, made, port_id, server_id)
            return _view(tx, made.id)

        return await self._db.write(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: _view(tx, i), lambda v: v.floating_ip.id)
        )

    async def get(self, caller: Caller, floating_ip_id: str) -> FloatingIpView:
        authorise(caller, "floating_ip.get")
        return await self._db.read(lambda tx: _view(tx, _own(tx, caller, floating_ip_id).id))

    async def list(self, caller: Caller, ip: str, all_projects: bool, page: Page) -> PageOf[FloatingIpView]:
        authorise(caller, "floating_ip.list")
        if all_projects:
            authorise(caller, "all_projects")

        def find(tx: Tx) -> PageOf[FloatingIpView]:
            found = store.visible(tx, caller.project_id, all_projects, ip, page)
            return PageOf(store.views(tx, found.items), found.next_token)

        return await self._db.read(find)

    async def update(self, caller: Caller, floating_ip_id: str, port_id: str = "", server_id: str = "") -> FloatingIpView:
        """Maps it to a port, or to a server's first port that can be reached; with neither it is unmapped."""
        authorise(caller, "floating_ip.update")

        def change(tx: Tx) -> FloatingIpView:
            found = _own(tx, caller, floating_ip_id)
            if port_id or server_id:
                _map(tx, caller, found, port_id, server_id)
            elif found.port_id:
                store.assign(tx, found, "", "", "")
                event.record(tx, "floating_ip.unmap", found.project_id, found.id, port_id=found.port_id)
            return _view(tx, floating_ip_id)

        return await self._db.write(change)

    async def delete(self, caller: Caller, floating_ip_id: str) -> None:
        authorise(caller, "floating_ip.delete")

        def remove(tx: Tx) -> None:
            found = _own(tx, caller, floating_ip_id)
            store.assign(tx, found, "", "", "")
            FLOATING_IPS.delete(tx, found.id)
            port.delete(tx, PORTS.get(tx, found.holder_port_id))
            event.record(tx, "floating_ip.delete", found.project_id, found.id, found.ip)

        await self._db.write(remove)


def _own(tx: Tx, caller: Caller, floating_ip_id: str) -> FloatingIp:
    found = FLOATING_IPS.get(tx, floating_ip_id)
    owned(caller, FLOATING_IPS.kind, floating_ip_id, found.project_id)
    return found


def _view(tx: Tx, floating_ip_id: str) -> FloatingIpView:
    return store.views(tx, [FLOATING_IPS.get(tx, floating_ip_id)])[0]


def _allocate(tx: Tx, caller: Caller, network: Network, ip: str) -> FloatingIp:
    """The address is held by a port of its own on the external network."""
    if not subnet.of_network(tx, network.id):
        raise InvalidArgument("external_network_id", "has no subnet yet")
    if ip:
        _check_wanted(tx, caller, network, ip)
    wishes = (("", ip),) if ip else ()
    holder = place_port(tx, network, "", NewPort(network.id, fixed_ips=wishes, purpose=FLOATING_IP))
    held = port.fixed_ips(tx, [holder.id])[holder.id][0]
    made = FloatingIp(
        tx.new_id(), caller.project_id, network.id, held.subnet_id, held.ip, holder.id, "", "", "", tx.now
    )  # fmt: skip
    return FLOATING_IPS.insert(tx, made)


def _check_wanted(tx: Tx, caller: Caller, network: Network, ip: str) -> None:
    wanted = address.address("ip", ip)
    on = next((s for s in subnet.of_network(tx, network.id) if wanted in s.range), None)
    if on is None:
        raise InvalidArgument("ip", f"{wanted} is in no subnet of network {network.name!r}")
    address.host_in("ip", ip, on.range)
    pooled = any(low <= int(wanted) <= high for low, high in (pool.bounds for pool in on.pools))
    if not pooled and (not caller.admin or str(wanted) == on.gateway_ip):
        raise InvalidArgument("ip", f"{wanted} is not in the pools of {on.cidr}")
    if subnet.owner_of(tx, on.id, str(wanted)):
        raise Conflict(f"ip: {wanted} is taken", field="ip")


# ---------------------------------------------------------------- mapping


def _map(tx: Tx, caller: Caller, found: FloatingIp, port_id: str, server_id: str) -> None:
    if port_id and server_id:
        raise InvalidArgument("server_id", "not together with port_id")
    candidates = _ports_of_server(tx, caller, server_id) if server_id else [_port(tx, caller, port_id)]
    field = "server_id" if server_id else "port_id"
    if any(candidate.project_id != found.project_id for candidate in candidates):
        raise InvalidArgument(field, "is of another project than the floating IP")
    target, fixed, router_id = _reachable(tx, found, candidates)
    for other in store.of_port(tx, target.id):
        if other.fixed_ip == fixed.ip and other.id != found.id:
            raise Conflict(f"{fixed.ip} has the floating IP {other.ip} already", floating_ip=other.id)
    store.assign(tx, found, target.id, fixed.ip, router_id)
    event.record(tx, "floating_ip.map", found.project_id, found.id, f"{found.ip} to {fixed.ip}", port_id=target.id)


def _port(tx: Tx, caller: Caller, port_id: str) -> Port:
    found = PORTS.get(tx, port_id)
    owned(caller, PORTS.kind, port_id, found.project_id)
    if found.purpose not in (FREE, SERVER):
        raise InvalidArgument("port_id", f"the port is the cloud's own ({found.purpose})")
    return found


def _ports_of_server(tx: Tx, caller: Caller, server_id: str) -> list[Port]:
    server = SERVERS.get(tx, server_id)
    owned(caller, SERVERS.kind, server_id, server.project_id)
    found = port.of_server(tx, server_id)
    if not found:
        raise Conflict("the server has no port", server=server_id)
    return found


def _reachable(tx: Tx, found: FloatingIp, candidates: list[Port]) -> tuple[Port, FixedIp, str]:
    """The first address that a router joins to the external network; and that router."""
    addresses = port.fixed_ips(tx, (p.id for p in candidates))
    for candidate in candidates:
        for fixed in addresses.get(candidate.id, ()):
            if through := router.leading_out(tx, fixed.subnet_id, found.external_network_id):
                return candidate, fixed, through.id
    raise Conflict(
        f"no router leads from port {candidates[0].id} to the network of {found.ip}: it needs an interface on the port's"
        " subnet and a gateway on that network", port=candidates[0].id,
    )  # fmt: skip
