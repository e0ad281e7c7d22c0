"""Images, and which storage node holds which content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controllerd.domain.image import Image
from controllerd.domain.page import Page, PageOf
from controllerd.store import tombstone
from controllerd.store.database import Tx
from controllerd.store.table import Table, like_name

IMAGES = Table(Image, "image", "image")

UNREFERENCED_KEPT_S = 600.0  # an upload records its image a moment after its node reports the content


@dataclass(frozen=True)
class StorageNode:
    node_id: str
    address: str  # of its BlobService, "host:port"
    images_free_bytes: int
    volumes_total_gib: int


def visible(tx: Tx, project_id: str, everything: bool, name: str, page: Page) -> PageOf[Image]:
    """Public ones and the project's own; `everything`: all projects'."""
    condition, values = like_name(name)
    whose = "1 OR ?" if everything else "public = 1 OR project_id = ?"
    return IMAGES.page(tx, page, f"({whose}) AND {condition}", project_id, *values)


def storage_nodes(tx: Tx) -> Sequence[StorageNode]:
    """Enabled storage nodes in session, most free space for images first."""
    sql = (
        "SELECT a.node_id, json_extract(a.inventory, '$.address') AS address,"
        " CAST(coalesce(json_extract(a.inventory, '$.storage.images_free_bytes'), 0) AS INTEGER) AS free,"
        " CAST(coalesce(json_extract(a.inventory, '$.storage.volumes_total_gib'), 0) AS INTEGER) AS total"
        " FROM agent a JOIN node n ON n.id = a.node_id"
        " WHERE a.kind = 'storaged' AND a.connected = 1 AND n.enabled = 1 ORDER BY free DESC, a.node_id"
    )
    return [StorageNode(r["node_id"], r["address"] or "", r["free"], r["total"]) for r in tx.each(sql)]


def sources(tx: Tx, sha256: str) -> list[str]:
    """ "host:port" of the storage nodes in session that hold the content."""
    sql = (
        "SELECT json_extract(a.inventory, '$.address') AS address FROM blob b"
        " JOIN agent a ON a.node_id = b.node_id AND a.kind = 'storaged'"
        " WHERE b.sha256 = ? AND a.connected = 1 ORDER BY a.node_id"
    )
    return [row["address"] for row in tx.each(sql, sha256) if row["address"]]


# ---- content


def put_blob(tx: Tx, sha256: str, node_id: str, size_bytes: int) -> None:
    sql = "INSERT OR IGNORE INTO blob (sha256, node_id, size_bytes, created_at) VALUES (?, ?, ?, ?)"
    if tx.run(sql, sha256, node_id, size_bytes, tx.now):
        tx.touch(node_id)


def drop_blob(tx: Tx, sha256: str, node_id: str) -> None:
    tx.run("DELETE FROM blob WHERE sha256 = ? AND node_id = ?", sha256, node_id)


def blobs_of_node(tx: Tx, node_id: str) -> list[str]:
    return [row["sha256"] for row in tx.each("SELECT sha256 FROM blob WHERE node_id = ? ORDER BY sha256", node_id)]


def collect(tx: Tx, before: float) -> int:
    """Content that no image, server or unfinished volume names and that came before `before` is told to go; after a restore
    from a backup not before its node is released."""
    sql = (
        "SELECT sha256, node_id FROM blob b WHERE created_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM image WHERE sha256 = b.sha256)"
        " AND NOT EXISTS (SELECT 1 FROM server WHERE image_sha256 = b.sha256)"
        " AND NOT EXISTS (SELECT 1 FROM volume WHERE image_sha256 = b.sha256 AND state = 'CREATING')"
        " AND NOT EXISTS (SELECT 1 FROM restore WHERE released_at = 0) AND node_id NOT IN (SELECT node_id FROM hold)"
    )
    found = tx.all(sql, before)
    for row in found:
        drop_blob(tx, row["sha256"], row["node_id"])
        tombstone.put(tx, row["node_id"], "blob", row["sha256"])
    return len(found)


def end_uploads(tx: Tx) -> int:
    """At the start of a controller: uploads ended with the process that took them."""
    return tx.run("UPDATE image SET state = 'QUEUED' WHERE state = 'SAVING'")


def end_upload(tx: Tx, image_id: str, state: str, fault_reason: str = "", fault_message: str = "") -> bool:
    """Without content. False when the upload had ended already, or the image is gone."""
    sql = "UPDATE image SET state = ?, fault_reason = ?, fault_message = ? WHERE id = ? AND state = 'SAVING'"
    ended = bool(tx.run(sql, state, fault_reason, fault_message, image_id))
    if ended:
        tx.touch(image_id)
    return ended
