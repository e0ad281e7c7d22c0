"""Volumes: made, attached, detached, deleted. The work of each is a task on the volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from controllerd.app import image as images
from controllerd.app.cloud import Cloud, Once, owned
from controllerd.domain import volume as domain
from controllerd.domain.image import Image
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.volume import Attachment, Volume, free_device
from controllerd.store import attachment as attachments
from controllerd.store import event, node, quota, task
from controllerd.store import volume as store
from controllerd.store.attachment import ATTACHMENTS
from controllerd.store.database import Tx
from controllerd.store.server import SERVERS
from controllerd.store.volume import VOLUMES
from controllerd.tasks.operation import overtake, refuse_if_busy, start
from controllerd.tasks.volume_attach import VOLUME_ATTACH, VOLUME_DETACH
from controllerd.tasks.volume_create import VOLUME_CREATE, VOLUME_DELETE
from daemonkit.errors import Conflict, InvalidArgument, NotFound

GIB = 1 << 30


@dataclass(frozen=True)
class VolumeView:
    volume: Volume
    attachment: Attachment | None
    task_id: str
    node_name: str  # "" unless the caller is an admin


class Volumes:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def create(self, caller: Caller, name: str, size_gib: int, image_id: str, once: Once) -> VolumeView:
        authorise(caller, "volume.create")

        def make(tx: Tx) -> Volume:
            image = images.usable(tx, caller, image_id) if image_id else None
            volume = new_volume(tx, caller.project_id, name, size_gib, image)
            quota.take(tx, caller.project_id, volumes=1, volume_gib=size_gib)
            VOLUMES.insert(tx, volume)
            event.record(tx, "volume.create", caller.project_id, volume.id, name)
            start(tx, VOLUME_CREATE, volume.project_id, "volume", volume.id)
            return volume

        def run(tx: Tx) -> VolumeView:
            volume = once.run(tx, caller, lambda: make(tx), lambda i: VOLUMES.get(tx, i), lambda v: v.id)
            return views(tx, caller, [volume])[0]

        return await self._db.write(run)

    async def get(self, caller: Caller, volume_id: str) -> VolumeView:
        authorise(caller, "volume.get")
        return await self._db.read(lambda tx: views(tx, caller, [own(tx, caller, volume_id)])[0])

    async def list(self, caller: Caller, name: str, all_projects: bool, page: Page) -> PageOf[VolumeView]:
        authorise(caller, "volume.list")
        if all_projects:
            authorise(caller, "all_projects")

        def find(tx: Tx) -> PageOf[VolumeView]:
            found = store.page_of(tx, "" if all_projects else caller.project_id, name, page)
            return PageOf(views(tx, caller, found.items), found.next_token)

        return await self._db.read(find)

    async def rename(self, caller: Caller, volume_id: str, name: str) -> VolumeView:
        authorise(caller, "volume.update")

        def change(tx: Tx) -> VolumeView:
            volume = replace(own(tx, caller, volume_id), name=name)
            VOLUMES.update(tx, volume_id, name=name)
            event.record(tx, "volume.update", volume.project_id, volume_id)
            return views(tx, caller, [volume])[0]

        return await self._db.write(change)

    async def delete(self, caller: Caller, volume_id: str) -> VolumeView:
        """In any state but attached. A creation under way is overtaken."""
        authorise(caller, "volume.delete")

        def remove(tx: Tx) -> VolumeView:
            volume = own(tx, caller, volume_id)
            if attachment := attachments.of_volume(tx, volume_id):
                raise Conflict(f"volume {volume.name!r} is attached to server {attachment.server_id}; detach it first")
            if volume.state != domain.DELETING or task.of_resource(tx, volume_id) is None:
                overtake(tx, volume_id)
                VOLUMES.update(tx, volume_id, state=domain.DELETING)
                event.record(tx, "volume.delete", volume.project_id, volume_id, volume.name)
                start(tx, VOLUME_DELETE, volume.project_id, "volume", volume_id)
            return views(tx, caller, [replace(volume, state=domain.DELETING)])[0]

        return await self._db.write(remove)

    async def attach(self, caller: Caller, server_id: str, volume_id: str, once: Once) -> Attachment:
        """To a server that is ACTIVE or STOPPED."""
        authorise(caller, "server.attach")

        def make(tx: Tx) -> Attachment:
            server = SERVERS.get(tx, server_id)
            owned(caller, "server", server_id, server.project_id)
            if server.state not in ("ACTIVE", "STOPPED"):
                raise Conflict(f"server {server.name!r} is {server.state}; volumes can be attached when ACTIVE or STOPPED")
            attachment = attach(tx, caller, server_id, volume_id, connected=False)
            start(tx, VOLUME_ATTACH, attachment.project_id, "volume", volume_id, attachment_id=attachment.id)
            return attachment

        return await self._db.write(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: ATTACHMENTS.get(tx, i), lambda a: a.id)
        )

    async def detach(self, caller: Caller, server_id: str, volume_id: str) -> Attachment:
        authorise(caller, "server.detach")

        def change(tx: Tx) -> Attachment:
            volume = own(tx, caller, volume_id)
            attachment = attachments.of_volume(tx, volume_id)
            if attachment is None or attachment.server_id != server_id:
                raise NotFound("attachment", volume_id)
            if attachment.state == domain.DETACHING and task.of_resource(tx, volume_id):
                return attachment
            if attachment.state == domain.ATTACHING:
                refuse_if_busy(tx, "server", server_id)  # it is being launched with the volume
            ATTACHMENTS.update(tx, attachment.id, state=domain.DETACHING)
            event.record(tx, "volume.detach", volume.project_id, volume_id, volume.name, server_id=server_id)
            start(tx, VOLUME_DETACH, volume.project_id, "volume", volume_id, attachment_id=attachment.id)
            return replace(attachment, state=domain.DETACHING)

        return await self._db.write(change)


def new_volume(tx: Tx, project_id: str, name: str, size_gib: int, image: Image | None) -> Volume:
    """Errors: InvalidArgument, also when the image does not fit."""
    needed = max(-(-image.virtual_bytes // GIB), image.min_disk_gib) if image else 0
    if image and needed > size_gib:
        raise InvalidArgument("size_gib", f"image {image.name!r} needs at least {needed}, is {size_gib}")
    return Volume(
        id=tx.new_id(), name=name, project_id=project_id, size_gib=size_gib, state=domain.CREATING,
        image_id=image.id if image else "", image_sha256=image.sha256 if image else "",
        image_format=image.format if image else "", image_size_bytes=image.size_bytes if image else 0,
        image_virtual_bytes=image.virtual_bytes if image else 0, node_id="", absent=False, fault_reason="",
        fault_message="", created_at=tx.now, observed_state="", observed_fault="", observed_at=0.0,
    )  # fmt: skip


def own(tx: Tx, caller: Caller, volume_id: str) -> Volume:
    volume = VOLUMES.get(tx, volume_id)
    owned(caller, "volume", volume_id, volume.project_id)
    return volume


def attach(tx: Tx, caller: Caller, server_id: str, volume_id: str, *, connected: bool = True) -> Attachment:
    """Links volume and server; `connected`: the server is to have the disk from its launch on.

    Errors: NotFound (also when server and volume are of two projects), Conflict (not AVAILABLE, attached, busy, no slot free).
    """
    volume = own(tx, caller, volume_id)
    server = SERVERS.find(tx, server_id)
    if server and server.project_id != volume.project_id:  # an admin sees both
        raise NotFound("volume", volume_id)
    if volume.state != domain.AVAILABLE:
        raise Conflict(f"volume {volume.name!r} is {volume.state}, not {domain.AVAILABLE}")
    if other := attachments.of_volume(tx, volume_id):
        raise Conflict(f"volume {volume.name!r} is attached to server {other.server_id}")
    refuse_if_busy(tx, "volume", volume_id)
    attachment = Attachment(
        id=tx.new_id(), volume_id=volume_id, server_id=server_id, project_id=volume.project_id,
        device=free_device({a.device for a in attachments.of_server(tx, server_id)}),
        export_name=tx.runtime.new_secret(24), state=domain.ATTACHING, exported=True, connected=connected,
        created_at=tx.now, observed_export="", observed_fault="",
    )  # fmt: skip
    ATTACHMENTS.insert(tx, attachment)
    event.record(tx, "volume.attach", volume.project_id, volume_id, volume.name, server_id=server_id, device=attachment.device)
    attachments.touch_ends(tx, attachment)
    return attachment


def detach_all(tx: Tx, server_id: str) -> None:
    """For a server that is gone: its volumes are free at once; their exports go with the rows."""
    for attachment in attachments.of_server(tx, server_id):
        overtake(tx, attachment.volume_id)
        ATTACHMENTS.delete(tx, attachment.id)
        attachments.touch_ends(tx, attachment)
        event.record(tx, "volume.detached", attachment.project_id, attachment.volume_id, server_id=server_id)


def views(tx: Tx, caller: Caller, volumes: Sequence[Volume]) -> list[VolumeView]:
    linked = attachments.of_volumes(tx, [v.id for v in volumes])
    tasks = task.of_resources(tx, [v.id for v in volumes])
    names = node.names(tx) if caller.admin else {}
    return [VolumeView(v, linked.get(v.id), tasks.get(v.id, ""), names.get(v.node_id, "")) for v in volumes]
