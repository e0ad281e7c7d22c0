"""VolumeService."""

from __future__ import annotations

from controllerd.api.rpc.gate import Context, Gate, once, page, rendered, timestamp
from controllerd.app.volume import Volumes, VolumeView
from controllerd.domain import volume as domain
from skyrack.v1 import common_pb2, server_pb2, volume_pb2_grpc
from skyrack.v1 import volume_pb2 as pb

# An attached volume shows its attachment's state.
_IN_USE = {
    domain.ATTACHING: pb.VOLUME_STATE_ATTACHING,
    domain.ATTACHED: pb.VOLUME_STATE_IN_USE,
    domain.DETACHING: pb.VOLUME_STATE_DETACHING,
}


class VolumeService(volume_pb2_grpc.VolumeServiceServicer):
    def __init__(self, gate: Gate, volumes: Volumes) -> None:
        self._gate, self._volumes = gate, volumes

    async def CreateVolume(self, request: pb.CreateVolumeRequest, context: Context) -> pb.Volume:
        caller = await self._gate.caller(context)
        return render(await self._volumes.create(caller, request.name, request.size_gib, request.image_id, once(request)))

    async def GetVolume(self, request: pb.GetVolumeRequest, context: Context) -> pb.Volume:
        caller = await self._gate.caller(context)
        return render(await self._volumes.get(caller, request.volume_id))

    async def ListVolumes(self, request: pb.ListVolumesRequest, context: Context) -> pb.ListVolumesResponse:
        caller = await self._gate.caller(context)
        found = await self._volumes.list(caller, request.name, request.all_projects, page(request))
        return pb.ListVolumesResponse(volumes=await rendered(render, found.items), next_page_token=found.next_token)

    async def UpdateVolume(self, request: pb.UpdateVolumeRequest, context: Context) -> pb.Volume:
        caller = await self._gate.caller(context)
        if not request.HasField("name"):
            return render(await self._volumes.get(caller, request.volume_id))
        return render(await self._volumes.rename(caller, request.volume_id, request.name))

    async def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: Context) -> pb.Volume:
        caller = await self._gate.caller(context)
        return render(await self._volumes.delete(caller, request.volume_id))


def render(view: VolumeView) -> pb.Volume:
    volume = view.volume
    state = pb.VolumeState.Value(f"VOLUME_STATE_{volume.state}")
    if view.attachment and volume.state == domain.AVAILABLE:
        state = _IN_USE[view.attachment.state]
    fault = common_pb2.Fault(reason=volume.fault_reason, message=volume.fault_message) if volume.fault_reason else None
    return pb.Volume(
        id=volume.id, name=volume.name, project_id=volume.project_id, state=state, size_gib=volume.size_gib,
        image_id=volume.image_id, attachment=render_attachment(view.attachment) if view.attachment else None, fault=fault,
        created_at=timestamp(volume.created_at), node=view.node_name, task_id=view.task_id,
    )  # fmt: skip


def render_attachment(attachment: domain.Attachment) -> server_pb2.Attachment:
    return server_pb2.Attachment(
        id=attachment.id, server_id=attachment.server_id, volume_id=attachment.volume_id, device=f"/dev/{attachment.device}",
        state=server_pb2.AttachmentState.Value(f"ATTACHMENT_STATE_{attachment.state}"),
    )  # fmt: skip
