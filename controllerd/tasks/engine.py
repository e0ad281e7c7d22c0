"""The task engine: carries every unfinished task forward until it is done or unwound.

`advance` is the whole mechanism and runs in one transaction: as many steps as are ready, each with its checkpoint. The engine
only decides when to ask: after a commit that touched the task's resource, and when a deadline passes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from controllerd.domain.task import DONE, FAILED, RUNNING, UNWINDING, Task
from controllerd.store import event
from controllerd.store.database import Database, Tx
from controllerd.store.event import acting_user
from controllerd.store.task import TASKS, unfinished
from controllerd.tasks.operation import Operation, fault_details
from daemonkit.errors import DeadlineExceeded, SkyrackError, Unavailable
from daemonkit.log import request_id
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

RETRY_S = 1.0  # a step whose `do` was Unavailable, and an undo that failed


def advance(tx: Tx, operation: Operation, task: Task) -> Task:
    """Runs every step that is ready now; gives the task as it then stands (and as it is stored)."""
    request_id.set(task.request_id)
    acting_user.set(task.user_id)
    before = task
    if task.state == RUNNING:
        task = _forward(tx, operation, task)
    if task.state == UNWINDING:
        task = _backward(tx, operation, task)
    if task != before:
        changed = {k: v for k, v in vars(task).items() if v != getattr(before, k)}
        TASKS.update(tx, task.id, **changed)
    return task


def _forward(tx: Tx, operation: Operation, task: Task) -> Task:
    while task.step < len(operation.steps):
        step = operation.steps[task.step]
        try:
            with tx.savepoint():
                if tx.now > task.deadline:
                    raise DeadlineExceeded(f"{step.name} was not done within {operation.deadline_s:g} s")
                if not task.entered:
                    step.do(tx, task)
                task = replace(task, entered=True)
                if not step.done(tx, task):
                    return task
        except Unavailable:
            return task
        except Exception as error:
            return _begin_unwinding(task, error)
        times = {**task.step_times, step.name: tx.now}
        task = replace(task, step=task.step + 1, entered=False, step_times=times)
    operation.finish(tx, task)
    return replace(task, state=DONE, ended_at=tx.now)


def _begin_unwinding(task: Task, error: Exception) -> Task:
    if not isinstance(error, SkyrackError):
        log.error("a step raised", exc_info=error, extra={"task": task.id, "kind": task.kind})
        error = SkyrackError("internal error")
    return replace(
        task, state=UNWINDING, fault_reason=error.reason, fault_message=error.message, fault_details=fault_details(error),
        entered=True,
    )  # fmt: skip


def _backward(tx: Tx, operation: Operation, task: Task) -> Task:
    while task.step >= 0:
        if task.step < len(operation.steps):
            step = operation.steps[task.step]
            with tx.savepoint():
                if task.entered:
                    step.undo(tx, task)
                task = replace(task, entered=False)
                if not step.undone(tx, task):
                    return task
        task = replace(task, step=task.step - 1, entered=True)
    operation.fail(tx, task)
    event.record(
        tx, f"{task.resource_kind}.task_failed", task.project_id, task.resource_id, task.fault_message,
        task=task.kind, reason=task.fault_reason,
    )  # fmt: skip
    return replace(task, step=0, entered=False, state=FAILED, ended_at=tx.now)


@dataclass
class _Watched:
    resource_id: str
    due_s: float  # wall time at which to ask even if nothing was touched


class TaskEngine:
    def __init__(self, database: Database, operations: Mapping[str, Operation], runtime: Runtime) -> None:
        self._db, self._operations, self._runtime = database, operations, runtime
        self._watched: dict[str, _Watched] = {}  # task id ->
        self._of_resource: dict[str, set[str]] = {}
        self._ready: set[str] = set()
        self._wake = asyncio.Event()

    def notice(self, touched: set[str]) -> None:
        """Subscriber of the store."""
        for key in touched:
            if key.startswith("task:"):
                self._ready.add(key[5:])
            elif key in self._of_resource:
                self._ready |= self._of_resource[key]
        if self._ready:
            self._wake.set()

    async def run(self) -> None:
        """Takes up what an earlier process left, then works until cancelled."""
        self._db.subscribe(self.notice)
        for task in await self._db.read(unfinished):
            self._ready.add(task.id)
        while True:
            ready, self._ready = self._ready | self._overdue(), set()
            await asyncio.gather(*(self._advance(task_id) for task_id in ready))
            if not self._ready:
                await self._sleep()

    async def _sleep(self) -> None:
        now_s = self._runtime.clock.wall_s()
        soonest_s = min((w.due_s for w in self._watched.values()), default=now_s + 60.0)
        try:
            async with asyncio.timeout(max(0.01, min(soonest_s - now_s, 60.0))):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _overdue(self) -> set[str]:
        now_s = self._runtime.clock.wall_s()
        return {task_id for task_id, watched in self._watched.items() if watched.due_s <= now_s}

    async def _advance(self, task_id: str) -> None:
        try:
            task = await self._db.write(lambda tx: self._advance_stored(tx, task_id))
        except Exception:
            log.exception("an undo raised; it is tried again", extra={"task": task_id})
            self._due_again(task_id)
            return
        if task is None or not task.unfinished:
            self._forget(task_id)
        else:
            self._watch(task)

    def _advance_stored(self, tx: Tx, task_id: str) -> Task | None:
        task = TASKS.find(tx, task_id)
        if task is None or not task.unfinished:
            return task
        advanced = advance(tx, self._operations[task.kind], task)
        if advanced.step != task.step or advanced.state != task.state:
            tx.touch(task.resource_id)
        return advanced

    def _watch(self, task: Task) -> None:
        now_s = self._runtime.clock.wall_s()
        trying = not task.entered and task.state == RUNNING  # its `do` was Unavailable
        due_s = now_s + RETRY_S if trying or task.state == UNWINDING else task.deadline + 0.001
        self._watched[task.id] = _Watched(task.resource_id, due_s)
        self._of_resource.setdefault(task.resource_id, set()).add(task.id)

    def _due_again(self, task_id: str) -> None:
        if task_id in self._watched:
            self._watched[task_id].due_s = self._runtime.clock.wall_s() + RETRY_S
        else:
            self._watched[task_id] = _Watched("", self._runtime.clock.wall_s() + RETRY_S)

    def _forget(self, task_id: str) -> None:
        watched = self._watched.pop(task_id, None)
        if watched is not None:
            tasks = self._of_resource.get(watched.resource_id, set())
            tasks.discard(task_id)
            if not tasks:
                self._of_resource.pop(watched.resource_id, None)
