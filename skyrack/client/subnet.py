"""Subnets: address ranges on a network. IPv4."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.v1 import network_pb2 as pb


@dataclass(frozen=True)
class AddressPool:
    first: str
    last: str


@dataclass(frozen=True)
class HostRoute:
    destination: str
    """CIDR."""
    nexthop: str


@dataclass(frozen=True)
class Subnet:
    id: str
    name: str
    project_id: str
    network_id: str
    cidr: str
    gateway_ip: str
    """"" = none."""
    dhcp: bool
    pools: tuple[AddressPool, ...]
    dns_servers: tuple[str, ...]
    routes: tuple[HostRoute, ...]
    created_at: datetime.datetime | None


class Subnets(Collection[Subnet]):
    kind, service, record = "subnet", "NetworkService", Subnet

    async def create(
        self,
        name: str,
        *,
        network: Ref,
        cidr: str,
        gateway_ip: str | None = None,
        dhcp: bool | None = None,
        pools: Sequence[AddressPool] = (),
        dns_servers: Sequence[str] = (),
        routes: Sequence[HostRoute] = (),
    ) -> Subnet:
        """`gateway_ip` None = the first address, "" = none; `pools` none = all free addresses. Errors: InvalidArgument."""
        request = pb.CreateSubnetRequest(
            network_id=id_of(network),
            name=name,
            cidr=cidr,
            gateway_ip=gateway_ip,
            dhcp=dhcp,
            pools=[pb.AddressPool(first=pool.first, last=pool.last) for pool in pools],
            dns_servers=dns_servers,
            routes=to_routes(routes),
            idempotency_key=new_key(),
        )
        return await self._one("CreateSubnet", request, pb.Subnet)

    async def get(self, ref: Ref) -> Subnet:
        return await self._one("GetSubnet", pb.GetSubnetRequest(subnet_id=id_of(ref)), pb.Subnet)

    def list(self, *, name: str = "", network: Ref | None = None, all_projects: bool = False) -> AsyncIterator[Subnet]:
        """Of the networks that the project sees. `all_projects`: admins."""
        request = pb.ListSubnetsRequest(name=name, network_id=id_of(network), all_projects=all_projects)
        return self._pages("ListSubnets", request, pb.ListSubnetsResponse, "subnets")

    async def update(
        self,
        ref: Ref,
        *,
        name: str | None = None,
        dns_servers: Sequence[str] | None = None,
        routes: Sequence[HostRoute] | None = None,
    ) -> Subnet:
        """What is given replaces what was there; None leaves it."""
        request = pb.UpdateSubnetRequest(
            subnet_id=id_of(ref),
            name=name,
            dns_servers=dns_servers or (),
            replace_dns_servers=dns_servers is not None,
            routes=to_routes(routes or ()),
            replace_routes=routes is not None,
        )
        return await self._one("UpdateSubnet", request, pb.Subnet)

    async def delete(self, ref: Ref) -> None:
        await self._delete("DeleteSubnet", pb.DeleteSubnetRequest(subnet_id=id_of(ref)), Empty)


def to_routes(routes: Sequence[HostRoute]) -> Sequence[pb.HostRoute]:
    return [pb.HostRoute(destination=route.destination, nexthop=route.nexthop) for route in routes]
