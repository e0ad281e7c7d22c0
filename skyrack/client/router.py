"""Routers: join subnets and lead out through an external network."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.client.subnet import HostRoute, to_routes
from skyrack.v1 import router_pb2 as pb


@dataclass(frozen=True)
class RouterInterface:
    port_id: str
    subnet_id: str
    ip: str


@dataclass(frozen=True)
class Router:
    id: str
    name: str
    project_id: str
    state: str
    """DOWN (on no node yet), BUILD, ACTIVE or ERROR."""
    external_network_id: str
    """"" = no gateway."""
    external_ip: str
    snat: bool
    interfaces: tuple[RouterInterface, ...]
    routes: tuple[HostRoute, ...]
    node: str
    """"" for all but admins."""
    created_at: datetime.datetime | None
    fault: str


class Routers(Collection[Router]):
    kind, service, record = "router", "RouterService", Router

    async def create(self, name: str, *, external_network: Ref | None = None, snat: bool | None = None) -> Router:
        """Errors: InvalidArgument (not an external network), QuotaExceeded."""
        request = pb.CreateRouterRequest(
            name=name, external_network_id=id_of(external_network), snat=snat, idempotency_key=new_key()
        )
        return await self._one("CreateRouter", request, pb.Router)

    async def get(self, ref: Ref) -> Router:
        return await self._one("GetRouter", pb.GetRouterRequest(router_id=id_of(ref)), pb.Router)

    def list(self, *, name: str = "", all_projects: bool = False) -> AsyncIterator[Router]:
        """`all_projects`: admins."""
        request = pb.ListRoutersRequest(name=name, all_projects=all_projects)
        return self._pages("ListRouters", request, pb.ListRoutersResponse, "routers")

    async def update(
        self,
        ref: Ref,
        *,
        name: str | None = None,
        external_network: Ref | None = None,
        snat: bool | None = None,
        routes: Sequence[HostRoute] | None = None,
    ) -> Router:
        """`external_network` "" takes the gateway away; `routes` replaces them all; None leaves what is there."""
        request = pb.UpdateRouterRequest(
            router_id=id_of(ref),
            name=name,
            external_network_id=None if external_network is None else id_of(external_network),
            snat=snat,
            routes=to_routes(routes or ()),
            replace_routes=routes is not None,
        )
        return await self._one("UpdateRouter", request, pb.Router)

    async def delete(self, ref: Ref) -> None:
        """Errors: Conflict while it has interfaces."""
        await self._delete("DeleteRouter", pb.DeleteRouterRequest(router_id=id_of(ref)), Empty)

    async def add_subnet(self, ref: Ref, subnet: Ref) -> Router:
        """Takes the subnet's gateway address.

        Errors: InvalidArgument (overlap, no gateway address), Conflict (joined already, address taken).
        """
        request = pb.AddRouterInterfaceRequest(router_id=id_of(ref), subnet_id=id_of(subnet))
        return await self._one("AddRouterInterface", request, pb.Router)

    async def remove_subnet(self, ref: Ref, subnet: Ref) -> Router:
        """Errors: Conflict while a floating IP goes through it."""
        request = pb.RemoveRouterInterfaceRequest(router_id=id_of(ref), subnet_id=id_of(subnet))
        return await self._toward(
            "RemoveRouterInterface", request, pb.Router, ref,
            lambda router: id_of(subnet) not in [interface.subnet_id for interface in router.interfaces],
        )  # fmt: skip
