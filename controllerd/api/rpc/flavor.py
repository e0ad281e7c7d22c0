"""FlavorService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controllerd.api.rpc.gate import Context, Gate, given, once, page, timestamp
from controllerd.app.flavor import Flavors
from controllerd.domain import flavor as domain
from skyrack.v1 import flavor_pb2 as pb
from skyrack.v1 import flavor_pb2_grpc


class FlavorService(flavor_pb2_grpc.FlavorServiceServicer):
    def __init__(self, gate: Gate, flavors: Flavors) -> None:
        self._gate, self._flavors = gate, flavors

    async def CreateFlavor(self, request: pb.CreateFlavorRequest, context: Context) -> pb.Flavor:
        caller = await self._gate.caller(context)
        return render(
            await self._flavors.create(
                caller, request.name, request.vcpus, request.memory_mib, request.disk_gib, request.description,
                request.public, once(request),
            )
        )  # fmt: skip

    async def GetFlavor(self, request: pb.GetFlavorRequest, context: Context) -> pb.Flavor:
        caller = await self._gate.caller(context)
        return render(await self._flavors.get(caller, request.flavor_id))

    async def ListFlavors(self, request: pb.ListFlavorsRequest, context: Context) -> pb.ListFlavorsResponse:
        caller = await self._gate.caller(context)
        found = await self._flavors.list(caller, request.name, page(request))
        return pb.ListFlavorsResponse(flavors=[render(f) for f in found.items], next_page_token=found.next_token)

    async def UpdateFlavor(self, request: pb.UpdateFlavorRequest, context: Context) -> pb.Flavor:
        caller = await self._gate.caller(context)
        changes = given(request, "name", "vcpus", "memory_mib", "disk_gib", "description")
        return render(await self._flavors.update(caller, request.flavor_id, **changes))

    async def DeleteFlavor(self, request: pb.DeleteFlavorRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._flavors.delete(caller, request.flavor_id)
        return Empty()


def render(flavor: domain.Flavor) -> pb.Flavor:
    return pb.Flavor(
        id=flavor.id, name=flavor.name, project_id=flavor.project_id, vcpus=flavor.vcpus, memory_mib=flavor.memory_mib,
        disk_gib=flavor.disk_gib, description=flavor.description, created_at=timestamp(flavor.created_at),
    )  # fmt: skip
