"""What a storage node shall have: its volumes, the exports of attached ones, the image content it keeps."""

from __future__ import annotations

from controllerd.domain.volume import Volume
from controllerd.store import attachment, image, tombstone, volume
from controllerd.store.attachment import Export
from controllerd.store.database import Tx
from skyrack.v1 import agent_pb2 as pb


def compile_storage(tx: Tx, node_id: str) -> list[pb.DesiredObject]:
    objects = [pb.DesiredObject(id=v.id, volume=_volume(tx, v)) for v in volume.of_node(tx, node_id)]
    objects += [_export(e) for e in attachment.exports_of_node(tx, node_id)]
    objects += [pb.DesiredObject(id=sha256, blob=pb.BlobSpec()) for sha256 in image.blobs_of_node(tx, node_id)]
    known = {o.id for o in objects}
    for volume_id in tombstone.of_node(tx, node_id, "volume"):
        objects.append(pb.DesiredObject(id=volume_id, volume=pb.VolumeSpec(absent=True)))
    for sha256 in tombstone.of_node(tx, node_id, "blob"):
        if sha256 not in known:
            objects.append(pb.DesiredObject(id=sha256, blob=pb.BlobSpec(absent=True)))
    return objects


def _volume(tx: Tx, item: Volume) -> pb.VolumeSpec:
    spec = pb.VolumeSpec(size_gib=item.size_gib, absent=item.absent)
    if item.image_sha256 and item.state == "CREATING":
        # Only while it is made: the image may be gone later, the volume no longer needs it.
        spec.image.CopyFrom(
            pb.ImageRef(
                image_id=item.image_id, sha256=item.image_sha256, size_bytes=item.image_size_bytes,
                format=item.image_format, virtual_bytes=item.image_virtual_bytes, sources=image.sources(tx, item.image_sha256),
            )
        )  # fmt: skip
    return spec


def _export(item: Export) -> pb.DesiredObject:
    spec = pb.ExportSpec(volume_id=item.volume_id, export_name=item.export_name, client_node=item.client_node)
    return pb.DesiredObject(id=item.attachment_id, export=spec)
