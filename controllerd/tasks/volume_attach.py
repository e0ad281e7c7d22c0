"""Attaching a volume to a server that exists, and detaching it.

The order is the safety: the storage node offers the volume before the guest connects, and takes the offer back (hard) only
after the guest has let go, or when its node is lost and could not write any more through a revoked export.
"""

from __future__ import annotations

from controllerd.domain.task import Task
from controllerd.domain.volume import ATTACHED, Attachment
from controllerd.store import attachment as attachments
from controllerd.store import event
from controllerd.store.attachment import ATTACHMENTS, guest_has_it, still_offered
from controllerd.store.database import Tx
from controllerd.tasks.operation import Operation, Step
from controllerd.tasks.volume_create import NODE_LOOK_S
from daemonkit.errors import StorageFailed


def _attachment(tx: Tx, task: Task) -> Attachment:
    return ATTACHMENTS.get(tx, task.args["attachment_id"])


def _change(tx: Tx, task: Task, **changes: bool | str) -> None:
    ATTACHMENTS.update(tx, task.args["attachment_id"], **changes)
    attachments.touch_ends(tx, _attachment(tx, task))


class Export(Step):
    name = "export"

    def do(self, tx: Tx, task: Task) -> None:
        _change(tx, task, exported=True)

    def done(self, tx: Tx, task: Task) -> bool:
        attachment = _attachment(tx, task)
        if attachment.observed_export == "FAILED":
            raise StorageFailed(attachment.observed_fault)
        return attachment.observed_export == "READY"

    def undo(self, tx: Tx, task: Task) -> None:
        _change(tx, task, exported=False)

    def undone(self, tx: Tx, task: Task) -> bool:
        return not still_offered(tx, _attachment(tx, task))


class Connect(Step):
    name = "connect"

    def do(self, tx: Tx, task: Task) -> None:
        _change(tx, task, connected=True)

    def done(self, tx: Tx, task: Task) -> bool:
        return guest_has_it(tx, _attachment(tx, task))

    def undo(self, tx: Tx, task: Task) -> None:
        _change(tx, task, connected=False)

    def undone(self, tx: Tx, task: Task) -> bool:
        return not guest_has_it(tx, _attachment(tx, task))


class Disconnect(Step):
    name = "disconnect"
    poll_s = NODE_LOOK_S

    def do(self, tx: Tx, task: Task) -> None:
        _change(tx, task, connected=False)

    def done(self, tx: Tx, task: Task) -> bool:
        return not guest_has_it(tx, _attachment(tx, task))

    def undo(self, tx: Tx, task: Task) -> None:
        """The guest did not let go in time, or the storage node did not take its offer back: the guest keeps its disk."""
        _change(tx, task, exported=True, connected=True, state=ATTACHED)


class Withdraw(Step):
    """Undone with the step before."""

    name = "withdraw"
    poll_s = NODE_LOOK_S

    def do(self, tx: Tx, task: Task) -> None:
        _change(tx, task, exported=False)

    def done(self, tx: Tx, task: Task) -> bool:
        return not still_offered(tx, _attachment(tx, task))


def _forget(tx: Tx, task: Task) -> Attachment:
    attachment = _attachment(tx, task)
    ATTACHMENTS.delete(tx, attachment.id)
    attachments.touch_ends(tx, attachment)
    return attachment


class VolumeAttach(Operation):
    def finish(self, tx: Tx, task: Task) -> None:
        _change(tx, task, state=ATTACHED)
        attachment = _attachment(tx, task)
        event.record(tx, "volume.attached", task.project_id, task.resource_id, server_id=attachment.server_id)

    def fail(self, tx: Tx, task: Task) -> None:
        _forget(tx, task)


class VolumeDetach(Operation):
    def finish(self, tx: Tx, task: Task) -> None:
        attachment = _forget(tx, task)
        event.record(tx, "volume.detached", task.project_id, task.resource_id, server_id=attachment.server_id)


VOLUME_ATTACH = VolumeAttach("volume_attach", 60.0, (Export(), Connect()))
VOLUME_DETACH = VolumeDetach("volume_detach", 60.0, (Disconnect(), Withdraw()))
