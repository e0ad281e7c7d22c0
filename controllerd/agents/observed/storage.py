"""What storage nodes report of volumes, exports and image content.

What was told to be absent is gone when the node says so, never because a report is silent about it: the report may have been
made before the node saw that it was to make the thing, and what is then taken for gone would stay there for ever.
"""

from __future__ import annotations

import re

from controllerd.agents.intake import FAULT_LENGTH_MAX, Taker
from controllerd.domain.node import Node
from controllerd.store import attachment, foreign, image, tombstone, volume
from controllerd.store.database import Tx
from daemonkit.errors import InvalidArgument
from skyrack.v1 import agent_pb2 as pb

_SHA256 = re.compile(r"[0-9a-f]{64}")
BYTES_MAX = (1 << 63) - 1  # SQLite's integers


def state_name(state: pb.ObservedState.ValueType) -> str:
    """ "READY" for OBSERVED_STATE_READY."""
    return pb.ObservedState.Name(state).removeprefix("OBSERVED_STATE_")


# ---- volumes


def take_volume(tx: Tx, node: Node, volume_id: str, observed: pb.ObservedVolume) -> None:
    state = state_name(observed.state)
    ours = volume.observe(tx, node.id, volume_id, state, observed.fault[:FAULT_LENGTH_MAX])
    if ours or state == "GONE":
        foreign.forget(tx, node.id, "volume", volume_id)
    else:
        foreign.report(tx, node.id, "volume", volume_id, state)
    if state == "GONE":
        tombstone.lift(tx, node.id, "volume", volume_id)


def missing_volumes(tx: Tx, node: Node, present: set[str]) -> None:
    """What shall be there has yet to be made."""
    foreign.forget_missing(tx, node.id, "volume", present)
    for volume_id in volume.seen_on(tx, node.id):
        if volume_id not in present:
            volume.observe(tx, node.id, volume_id, "", "")


# ---- exports


def take_export(tx: Tx, node: Node, attachment_id: str, observed: pb.ObservedExport) -> None:
    fault = observed.fault[:FAULT_LENGTH_MAX]
    attachment.observe_export(tx, node.id, attachment_id, state_name(observed.state), fault)


def missing_exports(tx: Tx, node: Node, present: set[str]) -> None:
    for attachment_id in attachment.offered_by(tx, node.id):
        if attachment_id not in present:
            attachment.observe_export(tx, node.id, attachment_id, "GONE", "")


# ---- content


def take_blob(tx: Tx, node: Node, sha256: str, observed: pb.ObservedBlob) -> None:
    """Errors: InvalidArgument for what is no content."""
    if not _SHA256.fullmatch(sha256) or observed.size_bytes > BYTES_MAX:
        raise InvalidArgument("blob", f"is not content: {sha256[:64]!r} of {observed.size_bytes} bytes")
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
