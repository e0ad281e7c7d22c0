"""RouterService: routers and floating IPs."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controllerd.api.rpc.gate import Context, Gate, given, once, page, timestamp
from controllerd.app.floating_ip import FloatingIps
from controllerd.app.router import Routers, RouterView
from controllerd.domain.address import HostRoute
from controllerd.domain.policy import Caller
from controllerd.store.floating_ip import FloatingIpView
from skyrack.v1 import network_pb2, router_pb2_grpc
from skyrack.v1 import router_pb2 as pb


class RouterService(router_pb2_grpc.RouterServiceServicer):
    def __init__(self, gate: Gate, routers: Routers, floating_ips: FloatingIps) -> None:
        self._gate, self._routers, self._floating_ips = gate, routers, floating_ips

    # ---- routers

    async def CreateRouter(self, request: pb.CreateRouterRequest, context: Context) -> pb.Router:
        caller = await self._gate.caller(context)
        snat = request.snat if request.HasField("snat") else True
        made = await self._routers.create(caller, request.name, request.external_network_id, snat, once(request))
        return render_router(caller, made)

    async def GetRouter(self, request: pb.GetRouterRequest, context: Context) -> pb.Router:
        caller = await self._gate.caller(context)
        return render_router(caller, await self._routers.get(caller, request.router_id))

    async def ListRouters(self, request: pb.ListRoutersRequest, context: Context) -> pb.ListRoutersResponse:
        caller = await self._gate.caller(context)
        found = await self._routers.list(caller, request.name, request.all_projects, page(request))
        routers = [render_router(caller, r) for r in found.items]
        return pb.ListRoutersResponse(routers=routers, next_page_token=found.next_token)

    async def UpdateRouter(self, request: pb.UpdateRouterRequest, context: Context) -> pb.Router:
        caller = await self._gate.caller(context)
        changes = given(request, "name", "external_network_id", "snat")
        if request.replace_routes:
            changes["routes"] = tuple(HostRoute(r.destination, r.nexthop) for r in request.routes)
        return render_router(caller, await self._routers.update(caller, request.router_id, **changes))

    async def DeleteRouter(self, request: pb.DeleteRouterRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._routers.delete(caller, request.router_id)
        return Empty()

    async def AddRouterInterface(self, request: pb.AddRouterInterfaceRequest, context: Context) -> pb.Router:
        caller = await self._gate.caller(context)
        return render_router(caller, await self._routers.add_interface(caller, request.router_id, request.subnet_id))

    async def RemoveRouterInterface(self, request: pb.RemoveRouterInterfaceRequest, context: Context) -> pb.Router:
        caller = await self._gate.caller(context)
        return render_router(caller, await self._routers.remove_interface(caller, request.router_id, request.subnet_id))

    # ---- floating IPs

    async def CreateFloatingIp(self, request: pb.CreateFloatingIpRequest, context: Context) -> pb.FloatingIp:
        caller = await self._gate.caller(context)
        made = await self._floating_ips.create(
            caller, request.external_network_id, once(request), ip=request.ip, port_id=request.port_id,
            server_id=request.server_id,
        )  # fmt: skip
        return render_floating_ip(made)

    async def GetFloatingIp(self, request: pb.GetFloatingIpRequest, context: Context) -> pb.FloatingIp:
        caller = await self._gate.caller(context)
        return render_floating_ip(await self._floating_ips.get(caller, request.floating_ip_id))

    async def ListFloatingIps(self, request: pb.ListFloatingIpsRequest, context: Context) -> pb.ListFloatingIpsResponse:
        caller = await self._gate.caller(context)
        found = await self._floating_ips.list(caller, request.ip, request.all_projects, page(request))
        floating_ips = [render_floating_ip(f) for f in found.items]
        return pb.ListFloatingIpsResponse(floating_ips=floating_ips, next_page_token=found.next_token)

    async def UpdateFloatingIp(self, request: pb.UpdateFloatingIpRequest, context: Context) -> pb.FloatingIp:
        caller = await self._gate.caller(context)
        target = given(request, "port_id", "server_id")
        if not target:
            return render_floating_ip(await self._floating_ips.get(caller, request.floating_ip_id))
        return render_floating_ip(await self._floating_ips.update(caller, request.floating_ip_id, **target))

    async def DeleteFloatingIp(self, request: pb.DeleteFloatingIpRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._floating_ips.delete(caller, request.floating_ip_id)
        return Empty()


def render_router(caller: Caller, view: RouterView) -> pb.Router:
    router = view.router
    return pb.Router(
        id=router.id, name=router.name, project_id=router.project_id, snat=router.snat,
        state=pb.RouterState.Value(f"ROUTER_STATE_{view.state}"), external_network_id=router.external_network_id,
        external_ip=next((leg.ip for leg in view.legs if leg.external), ""),
        interfaces=[
            pb.RouterInterfaceInfo(port_id=leg.port.id, subnet_id=leg.subnet.id, ip=leg.ip)
            for leg in view.legs if not leg.external
        ],
        routes=[network_pb2.HostRoute(destination=r.destination, nexthop=r.nexthop) for r in router.routes],
        node=view.node_name if caller.admin else "", created_at=timestamp(router.created_at),
        fault=view.fault,
    )  # fmt: skip


def render_floating_ip(view: FloatingIpView) -> pb.FloatingIp:
    found = view.floating_ip
    return pb.FloatingIp(
        id=found.id, project_id=found.project_id, external_network_id=found.external_network_id, ip=found.ip,
        port_id=found.port_id, fixed_ip=found.fixed_ip, router_id=found.router_id, server_id=view.server_id,
        state=pb.FloatingIpState.Value(f"FLOATING_IP_STATE_{view.state}"), created_at=timestamp(found.created_at),
    )  # fmt: skip
