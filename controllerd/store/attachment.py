"""Attachments in the store. The unique index on volume_id is the rule that a volume has one user."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from controllerd.domain.volume import ATTACHED, Attachment
from controllerd.store import node
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


@dataclass(frozen=True)
class Export:
    """What a storage node offers, and to the certificate of which node."""

    attachment_id: str
    volume_id: str
    export_name: str
    client_node: str


def exports_of_node(tx: Tx, node_id: str) -> list[Export]:
    """Of volumes on the storage node, to the nodes of servers that are placed."""
    sql = (
        "SELECT a.id, a.volume_id, a.export_name, n.name FROM attachment a"
        " JOIN volume v ON v.id = a.volume_id JOIN server s ON s.id = a.server_id JOIN node n ON n.id = s.node_id"
        " WHERE v.node_id = ? AND v.absent = 0 AND a.exported = 1 ORDER BY a.id"
    )
    return [Export(r["id"], r["volume_id"], r["export_name"], r["name"]) for r in tx.each(sql, node_id)]


def offered_by(tx: Tx, node_id: str) -> list[str]:
    """Ids of the attachments that the storage node was last seen to offer, or to try to."""
    sql = (
        "SELECT a.id FROM attachment a JOIN volume v ON v.id = a.volume_id"
        " WHERE v.node_id = ? AND a.observed_export NOT IN ('', 'GONE')"
    )
    return [row["id"] for row in tx.each(sql, node_id)]


def observe_export(tx: Tx, node_id: str, attachment_id: str, state: str, fault: str) -> None:
    """As the storage node reports it; of another node's volume nothing is believed."""
    sql = (
        "UPDATE attachment SET observed_export = ?, observed_fault = ?"
        " WHERE id = ? AND volume_id IN (SELECT id FROM volume WHERE node_id = ?)"
    )
    if tx.run(sql, state, fault, attachment_id, node_id):
        touch_ends(tx, ATTACHMENTS.get(tx, attachment_id))


def guest_has_it(tx: Tx, attachment: Attachment) -> bool:
    """As the compute node last reported. A server on a lost node, or on none, has nothing."""
    row = tx.one("SELECT node_id, observed_attached FROM server WHERE id = ?", attachment.server_id)
    if row is None or not row["node_id"] or node.is_lost(tx, row["node_id"], "computed"):
        return False
    return attachment.id in json.loads(row["observed_attached"] or "[]")


def still_offered(tx: Tx, attachment: Attachment) -> bool:
    """As the storage node last reported; a lost one offers nothing."""
    node_id = tx.value("SELECT node_id FROM volume WHERE id = ?", attachment.volume_id)
    if not node_id or node.is_lost(tx, node_id, "storaged"):
        return False
    return attachment.observed_export not in ("", "GONE")


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
