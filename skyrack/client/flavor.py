"""Flavors: named sizes of servers."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.v1 import flavor_pb2 as pb


@dataclass(frozen=True)
class Flavor:
    id: str
    name: str
    project_id: str
    """"" = public."""
    vcpus: int
    memory_mib: int
    disk_gib: int
    description: str
    created_at: datetime.datetime | None


class Flavors(Collection[Flavor]):
    kind, service, record = "flavor", "FlavorService", Flavor

    async def create(
        self, name: str, *, vcpus: int, memory_mib: int, disk_gib: int, description: str = "", public: bool = False
    ) -> Flavor:
        """Private to the project; admins may make it public. Errors: InvalidArgument, AlreadyExists, QuotaExceeded."""
        request = pb.CreateFlavorRequest(
            name=name,
            vcpus=vcpus,
            memory_mib=memory_mib,
            disk_gib=disk_gib,
            description=description,
            public=public,
            idempotency_key=new_key(),
        )
        return await self._one("CreateFlavor", request, pb.Flavor)

    async def get(self, ref: Ref) -> Flavor:
        return await self._one("GetFlavor", pb.GetFlavorRequest(flavor_id=id_of(ref)), pb.Flavor)

    def list(self, *, name: str = "") -> AsyncIterator[Flavor]:
        """Public ones and the project's own."""
        return self._pages("ListFlavors", pb.ListFlavorsRequest(name=name), pb.ListFlavorsResponse, "flavors")

    async def update(
        self,
        ref: Ref,
        *,
        name: str | None = None,
        vcpus: int | None = None,
        memory_mib: int | None = None,
        disk_gib: int | None = None,
        description: str | None = None,
    ) -> Flavor:
        """Later servers get the new size; running ones keep theirs."""
        request = pb.UpdateFlavorRequest(
            flavor_id=id_of(ref), name=name, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib, description=description
        )
        return await self._one("UpdateFlavor", request, pb.Flavor)

    async def delete(self, ref: Ref) -> None:
        await self._delete("DeleteFlavor", pb.DeleteFlavorRequest(flavor_id=id_of(ref)), Empty)
