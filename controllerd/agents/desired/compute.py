"""What a compute node shall have: its servers, and what it must still remove."""

from __future__ import annotations

from controllerd.agents.desired.metadata import Metadata
from controllerd.domain.port import device_name
from controllerd.domain.server import POWER_ABSENT, POWER_PREPARED, POWER_RUNNING, POWER_STOPPED, Server
from controllerd.store import image, tombstone
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from controllerd.store.server import DiskSource, Nic
from skyrack.v1 import agent_pb2 as pb

_POWERS = {
    POWER_PREPARED: pb.POWER_PREPARED,
    POWER_RUNNING: pb.POWER_RUNNING,
    POWER_STOPPED: pb.POWER_STOPPED,
}


def compile_compute(tx: Tx, node_id: str) -> list[pb.DesiredObject]:
    """A fixed number of queries, however many servers there are."""
    servers = [s for s in server_store.of_node(tx, node_id) if s.power]
    nics, disks = server_store.nics_of_node(tx, node_id), server_store.disks_of_node(tx, node_id)
    sources = {sha256: image.sources(tx, sha256) for sha256 in {s.image_sha256 for s in servers}}
    metadata = Metadata(tx, (s for s in servers if s.config_drive))
    objects = []
    for server in servers:
        if server.power == POWER_ABSENT:
            spec = pb.ServerSpec(absent=True)
        else:
            spec = _spec(server, nics.get(server.id, []), disks.get(server.id, []), sources[server.image_sha256])
            if server.config_drive:
                spec.metadata.CopyFrom(metadata.of(server))
        objects.append(pb.DesiredObject(id=server.id, server=spec))
    for server_id in tombstone.of_node(tx, node_id, "server"):
        objects.append(pb.DesiredObject(id=server_id, server=pb.ServerSpec(absent=True)))
    return objects


def _spec(server: Server, nics: list[Nic], disks: list[DiskSource], sources: list[str]) -> pb.ServerSpec:
    return pb.ServerSpec(
        name=server.name, project_id=server.project_id, vcpus=server.vcpus, memory_mib=server.memory_mib,
        root_disk_gib=server.disk_gib, power=_POWERS[server.power], config_drive=server.config_drive,
        image=pb.ImageRef(
            image_id=server.image_id, sha256=server.image_sha256, size_bytes=server.image_size_bytes,
            format=server.image_format, virtual_bytes=server.image_virtual_bytes, sources=sources,
        ),
        interfaces=[
            pb.Interface(port_id=n.port_id, device=device_name(n.port_id), mac=n.mac, mtu=n.mtu) for n in nics
        ],
        disks=[
            pb.Disk(
                attachment_id=d.attachment_id, volume_id=d.volume_id, target=d.device, nbd_host=d.nbd_host,
                nbd_port=d.nbd_port, export_name=d.export_name,
            )
            for d in disks
        ],
    )  # fmt: skip
