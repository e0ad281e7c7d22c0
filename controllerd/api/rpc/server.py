"""ServerService."""

from __future__ import annotations

from controllerd.api.rpc.gate import Context, Gate, once, page, rendered, timestamp
from controllerd.api.rpc.volume import render_attachment
from controllerd.app.server import NewServer, Servers, ServerView, Wish
from controllerd.app.volume import Volumes
from daemonkit.errors import InvalidArgument
from skyrack.v1 import common_pb2, server_pb2_grpc
from skyrack.v1 import server_pb2 as pb

_STATE = "SERVER_STATE_"


class ServerService(server_pb2_grpc.ServerServiceServicer):
    def __init__(self, gate: Gate, servers: Servers, volumes: Volumes) -> None:
        self._gate, self._servers, self._volumes = gate, servers, volumes

    async def CreateServer(self, request: pb.CreateServerRequest, context: Context) -> pb.Server:
        caller = await self._gate.caller(context)
        return render(await self._servers.create(caller, _new(request), once(request)))

    async def GetServer(self, request: pb.GetServerRequest, context: Context) -> pb.Server:
        caller = await self._gate.caller(context)
        return render(await self._servers.get(caller, request.server_id))

    async def ListServers(self, request: pb.ListServersRequest, context: Context) -> pb.ListServersResponse:
        caller = await self._gate.caller(context)
        found = await self._servers.list(caller, request.name, _state(request.state), request.all_projects, page(request))
        return pb.ListServersResponse(servers=await rendered(render, found.items), next_page_token=found.next_token)

    async def UpdateServer(self, request: pb.UpdateServerRequest, context: Context) -> pb.Server:
        caller = await self._gate.caller(context)
        name = request.name if request.HasField("name") else None
        metadata = request.metadata if request.replace_metadata else None
        return render(await self._servers.update(caller, request.server_id, name, metadata))

    async def DeleteServer(self, request: pb.DeleteServerRequest, context: Context) -> pb.Server:
        caller = await self._gate.caller(context)
        return render(await self._servers.delete(caller, request.server_id))

    async def StartServer(self, request: pb.StartServerRequest, context: Context) -> pb.Server:
        caller = await self._gate.caller(context)
        return render(await self._servers.start(caller, request.server_id))

    async def StopServer(self, request: pb.StopServerRequest, context: Context) -> pb.Server:
        caller = await self._gate.caller(context)
        return render(await self._servers.stop(caller, request.server_id))

    async def RebootServer(self, request: pb.RebootServerRequest, context: Context) -> pb.Server:
        caller = await self._gate.caller(context)
        return render(await self._servers.reboot(caller, request.server_id, request.hard))

    async def GetConsoleLog(self, request: pb.GetConsoleLogRequest, context: Context) -> pb.ConsoleLog:
        caller = await self._gate.caller(context)
        return pb.ConsoleLog(data=await self._servers.console_log(caller, request.server_id, request.bytes_max))

    async def AttachVolume(self, request: pb.AttachVolumeRequest, context: Context) -> pb.Attachment:
        caller = await self._gate.caller(context)
        return render_attachment(await self._volumes.attach(caller, request.server_id, request.volume_id, once(request)))

    async def DetachVolume(self, request: pb.DetachVolumeRequest, context: Context) -> pb.Attachment:
        caller = await self._gate.caller(context)
        return render_attachment(await self._volumes.detach(caller, request.server_id, request.volume_id))


def _new(request: pb.CreateServerRequest) -> NewServer:
    return NewServer(
        name=request.name, flavor_id=request.flavor_id, image_id=request.image_id,
        networks=tuple(Wish(n.network_id, n.port_id, n.fixed_ip) for n in request.networks),
        group_ids=tuple(request.security_group_ids), keypair_name=request.keypair_name, user_data=request.user_data,
        metadata=dict(request.metadata), volume_ids=tuple(request.volume_ids), config_drive=request.config_drive,
        different_node_than=request.different_node_than, node=request.node,
    )  # fmt: skip


def _state(value: int) -> str:
    """As the domain names it; "" for none given. Errors: InvalidArgument for a number that no state has."""
    if value not in pb.ServerState.values():
        raise InvalidArgument("state", f"unknown state {value}")
    return pb.ServerState.Name(pb.ServerState.ValueType(value)).removeprefix(_STATE) if value else ""


def render(view: ServerView) -> pb.Server:
    s = view.server
    return pb.Server(
        id=s.id, name=s.name, project_id=s.project_id, user_id=s.user_id, state=pb.ServerState.Value(_STATE + view.state),
        flavor_id=s.flavor_id, flavor_name=s.flavor_name, vcpus=s.vcpus, memory_mib=s.memory_mib, disk_gib=s.disk_gib,
        image_id=s.image_id, keypair_name=s.keypair_name, metadata=s.metadata, node=view.node_name, fault=_fault(view),
        task_id=view.task_id, created_at=timestamp(s.created_at), updated_at=timestamp(s.updated_at),
        launched_at=timestamp(s.launched_at), addresses=[pb.ServerAddress(**vars(a)) for a in view.addresses],
        attachments=[render_attachment(a) for a in view.attachments],
        timeline=[
            pb.TimelineEntry(name=m.name, time=timestamp(m.time), since_accepted_ms=m.since_accepted_ms)
            for m in view.timeline
        ],
    )  # fmt: skip


def _fault(view: ServerView) -> common_pb2.Fault | None:
    s = view.server
    if not s.fault_reason:
        return None
    return common_pb2.Fault(reason=s.fault_reason, message=s.fault_message, details=view.fault_details)
