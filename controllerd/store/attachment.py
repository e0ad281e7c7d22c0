"""Attachments in the store. The unique index on volume_id is the rule that a volume has one user."""

from __future__ import annotations

import json
from collections.abc import Collection

from controllerd.domain.volume import ATTACHED, Attachment
from controllerd.store.database import Tx
from controllerd.store.table import Table
from daemonkit.errors import StorageFailed

ATTACHMENTS = Table(Attachment, "attachment", "attachment")


def of_volume(tx: Tx, volume_id: str) -> Attachment | None:
    found = ATTACHMENTS.where(tx, "volume_id = ?", volume_id)
    return found[0] if found else None


def of_server(tx: Tx, server_id: str) -> list[Attachment]:
    return ATTACHMENTS.where(tx, "server_id = ? ORDER BY device", server_id)


def of_volumes(tx: Tx, volume_ids: Collection[str]) -> dict[str, Attachment]:
    """volume id -> attachment, for a page of a list."""
    among = "volume_id IN (SELECT value FROM json_each(?))"
    return {a.volume_id: a for a in ATTACHMENTS.where(tx, among, json.dumps(list(volume_ids)))}


def of_servers(tx: Tx, server_ids: Collection[str]) -> dict[str, list[Attachment]]:
    """server id -> attachments in order of device, for a page of a list."""
    among = "server_id IN (SELECT value FROM json_each(?)) ORDER BY device"
    found: dict[str, list[Attachment]] = {}
    for item in ATTACHMENTS.where(tx, among, json.dumps(list(server_ids))):
        found.setdefault(item.server_id, []).append(item)
    return found


def touch_ends(tx: Tx, attachment: Attachment) -> None:
    """Whatever changes an attachment concerns its storage node, its compute node, and the tasks of both."""
    volume_node = tx.value("SELECT node_id FROM volume WHERE id = ?", attachment.volume_id)
    server_node = tx.value("SELECT node_id FROM server WHERE id = ?", attachment.server_id)
    tx.touch(volume_node or "", server_node or "", attachment.volume_id, attachment.server_id)


def touch_ends_of_server(tx: Tx, server_id: str) -> None:
    """For a server that was placed: from now on its volumes can be exported to its node."""
    for attachment in of_server(tx, server_id):
        touch_ends(tx, attachment)


def exports_ready(tx: Tx, server_id: str) -> bool:
    """Whether every volume that the server shall have is offered by its storage node. Errors: StorageFailed."""
    wanted = [a for a in of_server(tx, server_id) if a.connected]
    for attachment in wanted:
        if attachment.observed_export == "FAILED":
            raise StorageFailed(f"volume {attachment.volume_id}: {attachment.observed_fault}")
    return all(a.observed_export == "READY" for a in wanted)


def mark_attached(tx: Tx, server_id: str) -> None:
    """After a launch: the disks it was launched with are there."""
    for attachment in of_server(tx, server_id):
        if attachment.connected and attachment.state != ATTACHED:
            ATTACHMENTS.update(tx, attachment.id, state=ATTACHED)
            touch_ends(tx, attachment)
