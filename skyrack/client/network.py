"""Networks: L2 segments."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.v1 import network_pb2 as pb


@dataclass(frozen=True)
class Network:
    id: str
    name: str
    project_id: str
    shared: bool
    external: bool
    mtu: int
    """Bytes."""
    vni: int
    """0 for all but admins."""
    subnet_ids: tuple[str, ...]
    created_at: datetime.datetime | None


class Networks(Collection[Network]):
    kind, service, record = "network", "NetworkService", Network

    async def create(self, name: str, *, shared: bool = False, external: bool = False) -> Network:
        """Shared and external ones are made by admins. Errors: InvalidArgument, QuotaExceeded, Forbidden."""
        request = pb.CreateNetworkRequest(name=name, shared=shared, external=external, idempotency_key=new_key())
        return await self._one("CreateNetwork", request, pb.Network)

    async def get(self, ref: Ref) -> Network:
        return await self._one("GetNetwork", pb.GetNetworkRequest(network_id=id_of(ref)), pb.Network)

    def list(self, *, name: str = "", external: bool | None = None, all_projects: bool = False) -> AsyncIterator[Network]:
        """The project's own, shared and external ones; `external` True or False only (not) those. `all_projects`: admins."""
        request = pb.ListNetworksRequest(name=name, external=external, all_projects=all_projects)
        return self._pages("ListNetworks", request, pb.ListNetworksResponse, "networks")

    async def update(self, ref: Ref, *, name: str | None = None, shared: bool | None = None) -> Network:
        request = pb.UpdateNetworkRequest(network_id=id_of(ref), name=name, shared=shared)
        return await self._one("UpdateNetwork", request, pb.Network)

    async def delete(self, ref: Ref) -> None:
        """Errors: Conflict while ports of servers or routers are left."""
        await self._delete("DeleteNetwork", pb.DeleteNetworkRequest(network_id=id_of(ref)), Empty)
