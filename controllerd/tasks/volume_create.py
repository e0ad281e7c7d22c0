"""Creating and deleting a volume."""

from __future__ import annotations

from controllerd.domain.task import Task
from controllerd.domain.volume import AVAILABLE, ERROR, Volume
from controllerd.scheduler.volume import choose
from controllerd.store import event, image, tombstone
from controllerd.store import node as nodes
from controllerd.store import volume as store
from controllerd.store.database import Tx
from controllerd.store.volume import VOLUMES
from controllerd.tasks.operation import Operation, Step
from daemonkit.errors import NodeLost, StorageFailed

NODE_LOOK_S = 5.0  # a node that is lost meanwhile touches its servers, not its volumes


def gone(tx: Tx, volume: Volume) -> bool:
    """Whether nothing is left of it; a lost node counts, and is told by a tombstone when it comes back."""
    if not volume.node_id or volume.observed_state == "GONE":
        return True
    if nodes.is_lost(tx, volume.node_id, "storaged"):
        tombstone.put(tx, volume.node_id, "volume", volume.id)
        return True
    return False


class Place(Step):
    name = "place"

    def do(self, tx: Tx, task: Task) -> None:
        volume = VOLUMES.get(tx, task.resource_id)
        node_id = choose(image.storage_nodes(tx), store.given_out_gib(tx), volume.size_gib)
        VOLUMES.update(tx, volume.id, node_id=node_id)
        event.record(tx, "volume.scheduled", volume.project_id, volume.id)

    def undo(self, tx: Tx, task: Task) -> None:
        tx.touch(VOLUMES.get(tx, task.resource_id).node_id)
        VOLUMES.update(tx, task.resource_id, node_id="", absent=False)


class Make(Step):
    name = "make"
    poll_s = NODE_LOOK_S

    def do(self, tx: Tx, task: Task) -> None:
        tx.touch(VOLUMES.get(tx, task.resource_id).node_id)

    def done(self, tx: Tx, task: Task) -> bool:
        volume = VOLUMES.get(tx, task.resource_id)
        if volume.observed_state == "FAILED":
            raise StorageFailed(volume.observed_fault)
        if volume.observed_state != "READY" and nodes.is_lost(tx, volume.node_id, "storaged"):
            raise NodeLost("the storage node that was to make the volume does not answer any more")
        return volume.observed_state == "READY"

    def undo(self, tx: Tx, task: Task) -> None:
        VOLUMES.update(tx, task.resource_id, absent=True)
        tx.touch(VOLUMES.get(tx, task.resource_id).node_id)

    def undone(self, tx: Tx, task: Task) -> bool:
        return gone(tx, VOLUMES.get(tx, task.resource_id))


class VolumeCreate(Operation):
    def finish(self, tx: Tx, task: Task) -> None:
        VOLUMES.update(tx, task.resource_id, state=AVAILABLE)
        event.record(tx, "volume.available", task.project_id, task.resource_id)

    def fail(self, tx: Tx, task: Task) -> None:
        fault = {"fault_reason": task.fault_reason, "fault_message": task.fault_message}
        VOLUMES.update(tx, task.resource_id, state=ERROR, observed_state="", **fault)


class Remove(Step):
    """Nothing to undo: a deletion does not turn back, it only takes longer."""

    name = "remove"
    poll_s = NODE_LOOK_S

    def do(self, tx: Tx, task: Task) -> None:
        VOLUMES.update(tx, task.resource_id, absent=True)
        tx.touch(VOLUMES.get(tx, task.resource_id).node_id)

    def done(self, tx: Tx, task: Task) -> bool:
        return gone(tx, VOLUMES.get(tx, task.resource_id))


class VolumeDelete(Operation):
    def finish(self, tx: Tx, task: Task) -> None:
        volume = VOLUMES.get(tx, task.resource_id)
        VOLUMES.delete(tx, volume.id)
        event.record(tx, "volume.deleted", volume.project_id, volume.id, volume.name)
        tx.touch(volume.node_id)

    def fail(self, tx: Tx, task: Task) -> None:
        """The node is there but did not obey in time: the volume shows it, and can be deleted again."""
        fault = {"fault_reason": task.fault_reason, "fault_message": task.fault_message}
        VOLUMES.update(tx, task.resource_id, state=ERROR, **fault)


VOLUME_CREATE = VolumeCreate("volume_create", 600.0, (Place(), Make()))
VOLUME_DELETE = VolumeDelete("volume_delete", 120.0, (Remove(),))
