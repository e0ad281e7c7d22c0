"""Between the wire's messages and our nouns. What comes in is checked here: ids become file names further down."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import grpc

from computed.spec import Account, Disk, Image, Interface, Metadata, Observed, ObservedState, Power, Server, Usage
from daemonkit.errors import InvalidArgument
from daemonkit.rpc import channel, from_rpc_error
from daemonkit.tls import TlsFiles
from skyrack.v1 import agent_pb2, blob_pb2, blob_pb2_grpc

_POWERS = {
    agent_pb2.POWER_PREPARED: Power.PREPARED,
    agent_pb2.POWER_RUNNING: Power.RUNNING,
    agent_pb2.POWER_STOPPED: Power.STOPPED,
}
_STATES = {
    ObservedState.PENDING: agent_pb2.OBSERVED_STATE_PENDING,
    ObservedState.READY: agent_pb2.OBSERVED_STATE_READY,
    ObservedState.RUNNING: agent_pb2.OBSERVED_STATE_RUNNING,
    ObservedState.STOPPED: agent_pb2.OBSERVED_STATE_STOPPED,
    ObservedState.PAUSED: agent_pb2.OBSERVED_STATE_PAUSED,
    ObservedState.FAILED: agent_pb2.OBSERVED_STATE_FAILED,
    ObservedState.GONE: agent_pb2.OBSERVED_STATE_GONE,
}


def server(server_id: str, spec: agent_pb2.ServerSpec) -> Server:
    """Errors: InvalidArgument. An absent server needs nothing but its id."""
    try:
        canonical = str(uuid.UUID(server_id))
    except ValueError:
        canonical = ""
    if canonical != server_id:
        raise InvalidArgument("id", "is not a UUID in lower case")
    if not spec.absent and (spec.vcpus < 1 or spec.memory_mib < 1):
        raise InvalidArgument("vcpus, memory_mib", "must be positive")
    if not spec.absent and spec.power not in _POWERS:
        raise InvalidArgument("power", "is not given")
    return Server(
        server_id=server_id,
        name=spec.name,
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        root_disk_gib=spec.root_disk_gib,
        image=image(spec.image),
        interfaces=tuple(Interface(i.port_id, i.device, i.mac, i.mtu) for i in spec.interfaces),
        disks=tuple(disk(d) for d in spec.disks),
        power=_POWERS.get(spec.power, Power.STOPPED),
        absent=spec.absent,
        config_drive=spec.config_drive,
        metadata=metadata(spec.metadata),
    )


def image(ref: agent_pb2.ImageRef) -> Image:
    return Image(ref.image_id, ref.sha256, ref.size_bytes, ref.format, tuple(ref.sources))


def disk(spec: agent_pb2.Disk) -> Disk:
    return Disk(spec.attachment_id, spec.volume_id, spec.target, spec.nbd_host, spec.nbd_port, spec.export_name)


def metadata(spec: agent_pb2.ServerMetadata) -> Metadata:
    return Metadata(
        hostname=spec.hostname,
        project_id=spec.project_id,
        availability_zone=spec.availability_zone,
        meta=tuple(sorted(spec.meta.items())),
        public_keys=tuple((key.name, key.data) for key in spec.public_keys),
        user_data=spec.user_data,
        launch_index=spec.launch_index,
        accounts=tuple(Account(a.name, tuple(a.public_keys), a.sudo) for a in spec.accounts),
    )


def observed(server_id: str, seen: Observed) -> agent_pb2.ObservedObject:
    message = agent_pb2.ObservedServer(
        state=_STATES[seen.state], fault=seen.fault, attached=seen.attached, foreign=seen.foreign
    )
    for name, wall_s in seen.milestones:
        milestone = message.milestones.add(name=name)
        milestone.time.FromNanoseconds(int(wall_s * 1e9))
    return agent_pb2.ObservedObject(id=server_id, server=message)


def sample(usage: Usage, wall_s: float) -> agent_pb2.Sample:
    message = agent_pb2.Sample(
        server_id=usage.server_id,
        cpu_ns=usage.cpu_ns,
        memory_kib=usage.memory_kib,
        rx_bytes=usage.rx_bytes,
        tx_bytes=usage.tx_bytes,
        read_bytes=usage.read_bytes,
        write_bytes=usage.write_bytes,
    )
    message.wall_time.FromNanoseconds(int(wall_s * 1e9))
    return message


class GrpcBlobSource:
    """Images from storage nodes, over mTLS."""

    def __init__(self, tls: TlsFiles) -> None:
        self._tls = tls

    async def read(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        connection = channel(address, self._tls.client())
        try:
            request = blob_pb2.GetBlobRequest(sha256=sha256, offset=offset)
            async for chunk in blob_pb2_grpc.BlobServiceStub(connection).Get(request):
                yield chunk.data
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        finally:
            await connection.close(None)
