"""What storage nodes report of volumes, exports and image content.

What was told to be absent is gone when the node says so, never because a report is silent about it: the report may have been
made before the node saw that it was to make the thing, and what is then taken for gone would stay there for ever.
"""

from __future__ import annotations

from controllerd.agents.intake import Taker
from controllerd.domain.node import Node
from controllerd.store import image, tombstone
from controllerd.store.database import Tx
from skyrack.v1 import agent_pb2 as pb


def state_name(state: pb.ObservedState.ValueType) -> str:
    """ "READY" for OBSERVED_STATE_READY."""
    return pb.ObservedState.Name(state).removeprefix("OBSERVED_STATE_")


# ---- volumes


def take_volume(tx: Tx, node: Node, volume_id: str, observed: pb.ObservedVolume) -> None:
    state = state_name(observed.state)
    changed = tx.run(
        "UPDATE volume SET observed_state = ?, observed_fault = ?, observed_at = ? WHERE id = ? AND node_id = ?",
        state, observed.fault, tx.now, volume_id, node.id,
    )  # fmt: skip
    if state == "GONE":
        tombstone.lift(tx, node.id, "volume", volume_id)
    if changed:
        tx.touch(volume_id)


def missing_volumes(tx: Tx, node: Node, present: set[str]) -> None:
    """What shall be there has yet to be made."""
    for row in tx.all("SELECT id FROM volume WHERE node_id = ? AND absent = 0 AND observed_state != ''", node.id):
        if row["id"] not in present:
            tx.run("UPDATE volume SET observed_state = '', observed_at = ? WHERE id = ?", tx.now, row["id"])
            tx.touch(row["id"])


# ---- exports

_ENDS = "SELECT a.volume_id, a.server_id, s.node_id FROM attachment a LEFT JOIN server s ON s.id = a.server_id WHERE a.id = ?"


def take_export(tx: Tx, node: Node, attachment_id: str, observed: pb.ObservedExport) -> None:
    _set_export(tx, node, attachment_id, state_name(observed.state), observed.fault)


def _set_export(tx: Tx, node: Node, attachment_id: str, state: str, fault: str) -> None:
    sql = (
        "UPDATE attachment SET observed_export = ?, observed_fault = ?"
        " WHERE id = ? AND volume_id IN (SELECT id FROM volume WHERE node_id = ?)"
    )
    if tx.run(sql, state, fault, attachment_id, node.id) and (ends := tx.one(_ENDS, attachment_id)):
        tx.touch(ends["volume_id"], ends["server_id"], ends["node_id"] or "")


def missing_exports(tx: Tx, node: Node, present: set[str]) -> None:
    sql = (
        "SELECT a.id FROM attachment a JOIN volume v ON v.id = a.volume_id"
        " WHERE v.node_id = ? AND a.observed_export NOT IN ('', 'GONE')"
    )
    for row in tx.all(sql, node.id):
        if row["id"] not in present:
            _set_export(tx, node, row["id"], "GONE", "")


# ---- content


def take_blob(tx: Tx, node: Node, sha256: str, observed: pb.ObservedBlob) -> None:
    state = state_name(observed.state)
    if state == "GONE":
        image.drop_blob(tx, sha256, node.id)
        tombstone.lift(tx, node.id, "blob", sha256)
    elif state == "READY" and not tombstone.stands(tx, node.id, "blob", sha256):
        image.put_blob(tx, sha256, node.id, observed.size_bytes)  # unnamed content is collected after a while


def missing_blobs(tx: Tx, node: Node, present: set[str]) -> None:
    for sha256 in image.blobs_of_node(tx, node.id):
        if sha256 not in present:
            image.drop_blob(tx, sha256, node.id)
            tx.touch(node.id)


TAKERS = {
    "volume": Taker("storaged", take_volume, missing_volumes),
    "export": Taker("storaged", take_export, missing_exports),
    "blob": Taker("storaged", take_blob, missing_blobs),
}
