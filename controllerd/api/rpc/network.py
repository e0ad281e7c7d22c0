"""NetworkService: networks, subnets, ports."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controllerd.api.rpc.gate import Context, Gate, given, once, page, rendered, timestamp
from controllerd.app.network import Networks, NetworkView
from controllerd.app.port import NewPort, Ports
from controllerd.app.subnet import Subnets
from controllerd.domain.address import AddressPool, HostRoute
from controllerd.domain.policy import Caller
from controllerd.domain.subnet import Subnet
from controllerd.store.port import PortView
from skyrack.v1 import network_pb2 as pb
from skyrack.v1 import network_pb2_grpc


class NetworkService(network_pb2_grpc.NetworkServiceServicer):
    def __init__(self, gate: Gate, networks: Networks, subnets: Subnets, ports: Ports) -> None:
        self._gate, self._networks, self._subnets, self._ports = gate, networks, subnets, ports

    # ---- networks

    async def CreateNetwork(self, request: pb.CreateNetworkRequest, context: Context) -> pb.Network:
        caller = await self._gate.caller(context)
        made = await self._networks.create(caller, request.name, request.shared, request.external, once(request))
        return render_network(caller, made)

    async def GetNetwork(self, request: pb.GetNetworkRequest, context: Context) -> pb.Network:
        caller = await self._gate.caller(context)
        return render_network(caller, await self._networks.get(caller, request.network_id))

    async def ListNetworks(self, request: pb.ListNetworksRequest, context: Context) -> pb.ListNetworksResponse:
        caller = await self._gate.caller(context)
        external = request.external if request.HasField("external") else None
        found = await self._networks.list(caller, request.name, external, request.all_projects, page(request))
        networks = [render_network(caller, n) for n in found.items]
        return pb.ListNetworksResponse(networks=networks, next_page_token=found.next_token)

    async def UpdateNetwork(self, request: pb.UpdateNetworkRequest, context: Context) -> pb.Network:
        caller = await self._gate.caller(context)
        changed = await self._networks.update(caller, request.network_id, **given(request, "name", "shared"))
        return render_network(caller, changed)

    async def DeleteNetwork(self, request: pb.DeleteNetworkRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._networks.delete(caller, request.network_id)
        return Empty()

    # ---- subnets

    async def CreateSubnet(self, request: pb.CreateSubnetRequest, context: Context) -> pb.Subnet:
        caller = await self._gate.caller(context)
        made = await self._subnets.create(
            caller, request.network_id, request.name, request.cidr, once(request), **given(request, "gateway_ip", "dhcp"),
            pools=tuple(AddressPool(p.first, p.last) for p in request.pools), dns_servers=tuple(request.dns_servers),
            routes=tuple(HostRoute(r.destination, r.nexthop) for r in request.routes),
        )  # fmt: skip
        return render_subnet(made)

    async def GetSubnet(self, request: pb.GetSubnetRequest, context: Context) -> pb.Subnet:
        caller = await self._gate.caller(context)
        return render_subnet(await self._subnets.get(caller, request.subnet_id))

    async def ListSubnets(self, request: pb.ListSubnetsRequest, context: Context) -> pb.ListSubnetsResponse:
        caller = await self._gate.caller(context)
        found = await self._subnets.list(caller, request.name, request.network_id, request.all_projects, page(request))
        return pb.ListSubnetsResponse(subnets=[render_subnet(s) for s in found.items], next_page_token=found.next_token)

    async def UpdateSubnet(self, request: pb.UpdateSubnetRequest, context: Context) -> pb.Subnet:
        caller = await self._gate.caller(context)
        changes = given(request, "name")
        if request.replace_dns_servers:
            changes["dns_servers"] = tuple(request.dns_servers)
        if request.replace_routes:
            changes["routes"] = tuple(HostRoute(r.destination, r.nexthop) for r in request.routes)
        return render_subnet(await self._subnets.update(caller, request.subnet_id, **changes))

    async def DeleteSubnet(self, request: pb.DeleteSubnetRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._subnets.delete(caller, request.subnet_id)
        return Empty()

    # ---- ports

    async def CreatePort(self, request: pb.CreatePortRequest, context: Context) -> pb.Port:
        caller = await self._gate.caller(context)
        new = NewPort(
            network_id=request.network_id, name=request.name, mac=request.mac,
            fixed_ips=tuple((f.subnet_id, f.ip) for f in request.fixed_ips),
            group_ids=tuple(request.security_group_ids) or None,
            port_security=request.port_security if request.HasField("port_security") else True,
        )  # fmt: skip
        return render_port(caller, await self._ports.create(caller, new, once(request)))

    async def GetPort(self, request: pb.GetPortRequest, context: Context) -> pb.Port:
        caller = await self._gate.caller(context)
        return render_port(caller, await self._ports.get(caller, request.port_id))

    async def ListPorts(self, request: pb.ListPortsRequest, context: Context) -> pb.ListPortsResponse:
        caller = await self._gate.caller(context)
        filters = {"name": request.name, "network_id": request.network_id, "server_id": request.server_id}
        found = await self._ports.list(caller, page(request), request.all_projects, **filters)
        ports = await rendered(lambda p: render_port(caller, p), found.items)
        return pb.ListPortsResponse(ports=ports, next_page_token=found.next_token)

    async def UpdatePort(self, request: pb.UpdatePortRequest, context: Context) -> pb.Port:
        caller = await self._gate.caller(context)
        groups = tuple(request.security_group_ids) if request.replace_security_groups else None
        changes = given(request, "name", "port_security")
        return render_port(caller, await self._ports.update(caller, request.port_id, groups, **changes))

    async def DeletePort(self, request: pb.DeletePortRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._ports.delete(caller, request.port_id)
        return Empty()


def render_network(caller: Caller, view: NetworkView) -> pb.Network:
    network = view.network
    return pb.Network(
        id=network.id, name=network.name, project_id=network.project_id, shared=network.shared, external=network.external,
        mtu=network.mtu, vni=network.vni if caller.admin else 0, subnet_ids=view.subnet_ids,
        created_at=timestamp(network.created_at),
    )  # fmt: skip


def render_subnet(subnet: Subnet) -> pb.Subnet:
    return pb.Subnet(
        id=subnet.id, name=subnet.name, project_id=subnet.project_id, network_id=subnet.network_id, cidr=subnet.cidr,
        gateway_ip=subnet.gateway_ip, dhcp=subnet.dhcp, dns_servers=subnet.dns_servers,
        pools=[pb.AddressPool(first=p.first, last=p.last) for p in subnet.pools],
        routes=[pb.HostRoute(destination=r.destination, nexthop=r.nexthop) for r in subnet.routes],
        created_at=timestamp(subnet.created_at),
    )  # fmt: skip


def render_port(caller: Caller, view: PortView) -> pb.Port:
    port = view.port
    return pb.Port(
        id=port.id, name=port.name, project_id=port.project_id, network_id=port.network_id, mac=port.mac,
        fixed_ips=[pb.PortIp(subnet_id=f.subnet_id, ip=f.ip) for f in view.fixed_ips],
        security_group_ids=view.group_ids, port_security=port.port_security, server_id=port.server_id,
        router_id=port.router_id, state=pb.PortState.Value(f"PORT_STATE_{port.state}"), purpose=port.purpose,
        node=view.node_name if caller.admin else "", created_at=timestamp(port.created_at),
        fault=port.observed_fault if port.node_id else "",
    )  # fmt: skip
