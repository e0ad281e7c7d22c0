"""Volumes in the store."""

from __future__ import annotations

from controllerd.domain.page import Page, PageOf
from controllerd.domain.volume import Volume
from controllerd.store.database import Tx
from controllerd.store.table import Table, like_name

VOLUMES = Table(Volume, "volume", "volume")


def page_of(tx: Tx, project_id: str, name: str, page: Page) -> PageOf[Volume]:
    """`project_id` "" = every project."""
    condition, values = like_name(name)
    if project_id:
        condition, values = f"project_id = ? AND {condition}", [project_id, *values]
    return VOLUMES.page(tx, page, condition, *values)


def of_node(tx: Tx, node_id: str) -> list[Volume]:
    return VOLUMES.where(tx, "node_id = ? ORDER BY id", node_id)


def observe(tx: Tx, node_id: str, volume_id: str, state: str, fault: str) -> bool:
    """As the node reports it; of another node's volume nothing is believed. False: it is none of this node's."""
    sql = "UPDATE volume SET observed_state = ?, observed_fault = ?, observed_at = ? WHERE id = ? AND node_id = ?"
    ours = bool(tx.run(sql, state, fault, tx.now, volume_id, node_id))
    if ours:
        tx.touch(volume_id)
    return ours


def seen_on(tx: Tx, node_id: str) -> list[str]:
    """Ids of the volumes that shall be on the node and of which it has told something."""
    sql = "SELECT id FROM volume WHERE node_id = ? AND absent = 0 AND observed_state != ''"
    return [row["id"] for row in tx.each(sql, node_id)]


def given_out_gib(tx: Tx) -> dict[str, int]:
    """node id -> GiB of all its volumes, as promised to tenants."""
    sql = "SELECT node_id, sum(size_gib) AS gib FROM volume WHERE node_id != '' GROUP BY node_id"
    return {row["node_id"]: row["gib"] for row in tx.each(sql)}
