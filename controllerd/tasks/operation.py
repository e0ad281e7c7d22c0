"""The shape of a durable operation: steps in order, each with its undo.

A step never does I/O. `do` writes what shall be (rows from which agents' desired state is computed, or a one-shot action for
an agent); `done` looks at what has been observed. Both run inside one transaction, together with the checkpoint, so a crash
at any moment leaves the operation either before or after a step, never inside one.

`do` and `undo` are idempotent; `undo` bears that `do` never ran. To fail, raise a SkyrackError: the operation unwinds, from
the last step whose `do` is stored. To wait for the world, let `done` be False: it is asked again whenever the task's resource
is touched (and every `poll_s`, where time alone can change the answer). `undone` must become true sooner or later whatever
is broken; a node that is lost counts as undone (a tombstone keeps what it must still remove).
"""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.domain.task import RUNNING, Task
from controllerd.store import agent_task, recovery
from controllerd.store import task as task_store
from controllerd.store.database import Tx
from controllerd.store.event import acting_user
from controllerd.store.task import TASKS
from daemonkit.errors import Conflict, SkyrackError
from daemonkit.log import request_id

OVERTAKEN = "OVERTAKEN"  # fault of a task that another one took over


class Step:
    """One step. Defaults: done at once, nothing to undo."""

    name: str
    poll_s: float = 0.0  # 0: nothing changes by time alone

    def do(self, tx: Tx, task: Task) -> None:
        """Errors: any SkyrackError unwinds; Unavailable is tried again until the deadline."""

    def done(self, tx: Tx, task: Task) -> bool:
        """Errors: as `do`."""
        return True

    def undo(self, tx: Tx, task: Task) -> None:
        """Takes back `do`; also when `do` was only half observed."""

    def undone(self, tx: Tx, task: Task) -> bool:
        return True


@dataclass(frozen=True)
class Operation:
    """`finish` runs with the last step's checkpoint; `fail` after the last undo, with the error that began the unwinding."""

    kind: str
    deadline_s: float
    steps: tuple[Step, ...]

    def finish(self, tx: Tx, task: Task) -> None:
        """Errors: a SkyrackError unwinds even now."""

    def fail(self, tx: Tx, task: Task) -> None:
        """The fault is in `task.fault_*`."""


def start(tx: Tx, operation: Operation, project_id: str, resource_kind: str, resource_id: str, **args: str) -> Task:
    """Records a task in the caller's transaction; the engine takes it up after the commit.

    Errors: Conflict while another task of the resource is under way; Unavailable after a restore, until nodes are released.
    """
    refuse_if_busy(tx, resource_kind, resource_id)
    recovery.refuse_while_held(tx)
    task = Task(
        id=tx.new_id(), kind=operation.kind, project_id=project_id, resource_kind=resource_kind, resource_id=resource_id,
        args=args, state=RUNNING, step=0, entered=False, step_times={}, fault_reason="", fault_message="",
        fault_details=(), created_at=tx.now, deadline=tx.now + operation.deadline_s, ended_at=0.0,
        request_id=request_id.get(), user_id=acting_user.get(),
    )  # fmt: skip
    TASKS.insert(tx, task)
    tx.touch(touch_key(task.id))
    return task


def refuse_if_busy(tx: Tx, resource_kind: str, resource_id: str) -> None:
    """Errors: Conflict naming the unfinished task of the resource."""
    if running := task_store.of_resource(tx, resource_id):
        raise Conflict(f"{resource_kind} {resource_id} is busy: task {running.id} ({running.kind})", task_id=running.id)


def overtake(tx: Tx, resource_id: str) -> Task | None:
    """Ends the resource's unfinished task where it stands; the caller starts one that cleans up whatever it had begun."""
    running = task_store.of_resource(tx, resource_id)
    if running is not None:
        agent_task.forget(tx, running.id)
        task_store.abandon(tx, running, OVERTAKEN, "another task of the resource took over")
    return running


def touch_key(task_id: str) -> str:
    return f"task:{task_id}"


def fault_details(error: SkyrackError) -> tuple[str, ...]:
    return tuple(f"{k}: {v}" for k, v in error.metadata.items())
