"""Ports: a MAC with IPs on a network."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.v1 import network_pb2 as pb


@dataclass(frozen=True)
class PortIp:
    subnet_id: str
    ip: str
    """In a request "" = any of that subnet."""


@dataclass(frozen=True)
class Port:
    id: str
    name: str
    project_id: str
    network_id: str
    mac: str
    fixed_ips: tuple[PortIp, ...]
    security_group_ids: tuple[str, ...]
    port_security: bool
    server_id: str
    router_id: str
    state: str
    """DOWN (on no node yet), BUILD, ACTIVE or ERROR."""
    node: str
    """"" for all but admins."""
    purpose: str
    created_at: datetime.datetime | None
    fault: str


class Ports(Collection[Port]):
    kind, service, record = "port", "NetworkService", Port

    async def create(
        self,
        name: str = "",
        *,
        network: Ref,
        fixed_ips: Sequence[PortIp] = (),
        security_groups: Sequence[Ref] = (),
        port_security: bool | None = None,
        mac: str = "",
    ) -> Port:
        """No `fixed_ips`: one address of a subnet; no `security_groups`: the project's "default"."""
        request = pb.CreatePortRequest(
            network_id=id_of(network),
            name=name,
            fixed_ips=[pb.PortIp(subnet_id=pair.subnet_id, ip=pair.ip) for pair in fixed_ips],
            security_group_ids=[id_of(group) for group in security_groups],
            port_security=port_security,
            mac=mac,
            idempotency_key=new_key(),
        )
        return await self._one("CreatePort", request, pb.Port)

    async def get(self, ref: Ref) -> Port:
        return await self._one("GetPort", pb.GetPortRequest(port_id=id_of(ref)), pb.Port)

    def list(
        self, *, name: str = "", network: Ref | None = None, server: Ref | None = None, all_projects: bool = False
    ) -> AsyncIterator[Port]:
        """`all_projects`: admins; then the cloud's own ports, of no project, are there too."""
        request = pb.ListPortsRequest(name=name, network_id=id_of(network), server_id=id_of(server), all_projects=all_projects)
        return self._pages("ListPorts", request, pb.ListPortsResponse, "ports")

    async def update(
        self,
        ref: Ref,
        *,
        name: str | None = None,
        security_groups: Sequence[Ref] | None = None,
        port_security: bool | None = None,
    ) -> Port:
        """`security_groups` given replaces them all; None leaves them."""
        request = pb.UpdatePortRequest(
            port_id=id_of(ref),
            name=name,
            security_group_ids=[id_of(group) for group in security_groups or ()],
            replace_security_groups=security_groups is not None,
            port_security=port_security,
        )
        return await self._one("UpdatePort", request, pb.Port)

    async def delete(self, ref: Ref) -> None:
        await self._delete("DeletePort", pb.DeletePortRequest(port_id=id_of(ref)), Empty)
