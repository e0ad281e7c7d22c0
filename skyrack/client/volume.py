"""Volumes: block devices that outlive servers."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass

from skyrack.client.attachment import Attachment
from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.client.fault import Fault
from skyrack.v1 import volume_pb2 as pb


@dataclass(frozen=True)
class Volume:
    id: str
    name: str
    project_id: str
    state: str
    """CREATING, AVAILABLE, ATTACHING, IN_USE, DETACHING, DELETING or ERROR."""
    size_gib: int
    image_id: str
    attachment: Attachment | None
    fault: Fault | None
    created_at: datetime.datetime | None
    node: str
    """"" for all but admins."""
    task_id: str


class Volumes(Collection[Volume]):
    kind, service, record = "volume", "VolumeService", Volume

    async def create(self, name: str, *, size_gib: int, image: Ref | None = None) -> Volume:
        """Answers in state CREATING; `wait(volume, "AVAILABLE")`. 1 to 16384 GiB. Errors: InvalidArgument, QuotaExceeded."""
        request = pb.CreateVolumeRequest(name=name, size_gib=size_gib, image_id=id_of(image), idempotency_key=new_key())
        return await self._one("CreateVolume", request, pb.Volume)

    async def get(self, ref: Ref) -> Volume:
        return await self._one("GetVolume", pb.GetVolumeRequest(volume_id=id_of(ref)), pb.Volume)

    def list(self, *, name: str = "", all_projects: bool = False) -> AsyncIterator[Volume]:
        request = pb.ListVolumesRequest(name=name, all_projects=all_projects)
        return self._pages("ListVolumes", request, pb.ListVolumesResponse, "volumes")

    async def update(self, ref: Ref, *, name: str | None = None) -> Volume:
        return await self._one("UpdateVolume", pb.UpdateVolumeRequest(volume_id=id_of(ref), name=name), pb.Volume)

    async def delete(self, ref: Ref) -> None:
        """`wait_gone` for the end of it. Errors: Conflict while attached."""
        await self._delete("DeleteVolume", pb.DeleteVolumeRequest(volume_id=id_of(ref)), pb.Volume)
