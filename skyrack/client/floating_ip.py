"""Floating IPs: public addresses mapped 1:1 to a port."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.v1 import router_pb2 as pb


@dataclass(frozen=True)
class FloatingIp:
    id: str
    project_id: str
    external_network_id: str
    ip: str
    port_id: str
    """"" = not mapped."""
    fixed_ip: str
    router_id: str
    state: str
    """DOWN (not mapped), BUILD or ACTIVE."""
    created_at: datetime.datetime | None
    server_id: str


class FloatingIps(Collection[FloatingIp]):
    """Their name is the address: `find("203.0.113.5")`."""

    kind, service, record = "floating_ip", "RouterService", FloatingIp

    async def create(
        self, external_network: Ref, *, port: Ref | None = None, server: Ref | None = None, ip: str = ""
    ) -> FloatingIp:
        """`ip` "" = any free one. Errors: InvalidArgument, Conflict (taken), QuotaExceeded."""
        request = pb.CreateFloatingIpRequest(
            external_network_id=id_of(external_network),
            port_id=id_of(port),
            server_id=id_of(server),
            ip=ip,
            idempotency_key=new_key(),
        )
        return await self._one("CreateFloatingIp", request, pb.FloatingIp)

    async def get(self, ref: Ref) -> FloatingIp:
        return await self._one("GetFloatingIp", pb.GetFloatingIpRequest(floating_ip_id=id_of(ref)), pb.FloatingIp)

    def list(self, *, name: str = "", all_projects: bool = False) -> AsyncIterator[FloatingIp]:
        """`all_projects`: admins."""
        request = pb.ListFloatingIpsRequest(ip=name, all_projects=all_projects)
        return self._pages("ListFloatingIps", request, pb.ListFloatingIpsResponse, "floating_ips")

    def _name(self, row: FloatingIp) -> str:
        return row.ip

    async def map(self, ref: Ref, *, port: Ref | None = None, server: Ref | None = None) -> FloatingIp:
        """To a port, or to a server's port that a router joins to the external network. Errors: Conflict, NotFound."""
        request = pb.UpdateFloatingIpRequest(
            floating_ip_id=id_of(ref), port_id=id_of(port) or None, server_id=id_of(server) or None
        )
        return await self._one("UpdateFloatingIp", request, pb.FloatingIp)

    async def unmap(self, ref: Ref) -> FloatingIp:
        """The address stays the project's."""
        return await self._one(
            "UpdateFloatingIp", pb.UpdateFloatingIpRequest(floating_ip_id=id_of(ref), port_id=""), pb.FloatingIp
        )

    async def delete(self, ref: Ref) -> None:
        await self._delete("DeleteFloatingIp", pb.DeleteFloatingIpRequest(floating_ip_id=id_of(ref)), Empty)
