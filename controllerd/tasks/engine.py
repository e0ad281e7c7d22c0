"""The task engine: carries every unfinished task forward until it is done or unwound.

`advance` is the whole mechanism and runs in one transaction: as many steps as are ready, each with its checkpoint. The engine
only decides when to ask: within the commit that touches the task's resource, when a step wants to be polled or tried again, and
when a deadline passes. A step that fails takes only its own writes with it; an undo that fails is tried again for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from controllerd.domain.task import DONE, FAILED, RUNNING, UNWINDING, Task
from controllerd.store import agent_task, event
from controllerd.store import task as task_store
from controllerd.store.database import STORE_ERRORS, Database, Tx
from controllerd.store.event import acting_user
from controllerd.store.task import TASKS
from controllerd.store.writer import Receiver
from controllerd.tasks.operation import Operation, fault_details
from daemonkit.errors import DeadlineExceeded, SkyrackError, Unavailable
from daemonkit.log import request_id
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

RETRY_S = 1.0  # a step whose `do` was Unavailable, and whatever is unwinding
RESUME_GRACE_S = 30.0  # a task found at the start has at least so long: its agents must come into session first
IDLE_S = 60.0


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
    if not task.unfinished:
        agent_task.forget(tx, task.id)
    return task


def _forward(tx: Tx, operation: Operation, task: Task) -> Task:
    try:
        while task.step < len(operation.steps):
            step = operation.steps[task.step]
            with tx.savepoint():
                if not task.entered:
                    step.do(tx, task)
                done = step.done(tx, replace(task, entered=True))
                if not done and tx.now > task.deadline:
                    raise DeadlineExceeded(f"{step.name} was not done within {operation.deadline_s:g} s")
            task = replace(task, entered=True)
            if not done:
                return task
            times = {**task.step_times, step.name: tx.now}
            task = replace(task, step=task.step + 1, entered=False, step_times=times)
        with tx.savepoint():
            operation.finish(tx, task)
    except Unavailable as error:
        if tx.now <= task.deadline:
            return task
        return _begin_unwinding(task, DeadlineExceeded(f"not possible within {operation.deadline_s:g} s: {error.message}"))
    except STORE_ERRORS:  # the store's own trouble says nothing about the task: nothing of this is kept
        raise
    except Exception as error:
        return _begin_unwinding(task, error)
    return replace(task, state=DONE, ended_at=tx.now)


def _begin_unwinding(task: Task, error: Exception) -> Task:
    """From the step whose `do` is stored: the failed transaction part of one that had not been entered is undone already."""
    if not isinstance(error, SkyrackError):
        log.error("a step raised", exc_info=error, extra={"task": task.id, "kind": task.kind})
        error = SkyrackError("internal error")
    return replace(
        task, state=UNWINDING, step=task.step if task.entered else task.step - 1, entered=True,
        fault_reason=error.reason, fault_message=error.message, fault_details=fault_details(error),
    )  # fmt: skip


def _backward(tx: Tx, operation: Operation, task: Task) -> Task:
    """`entered` here: the undo of this step has not run yet."""
    try:
        while task.step >= 0:
            step = operation.steps[task.step]
            with tx.savepoint():
                if task.entered:
                    step.undo(tx, task)
                undone = step.undone(tx, task)
            task = replace(task, entered=False)
            if not undone:
                return task
            task = replace(task, step=task.step - 1, entered=True)
        with tx.savepoint():
            operation.fail(tx, task)
            event.record(
                tx, f"{task.resource_kind}.task_failed", task.project_id, task.resource_id, task.fault_message,
                task=task.kind, reason=task.fault_reason,
            )  # fmt: skip
    except STORE_ERRORS:
        raise
    except Exception:
        log.exception("an undo raised; it is tried again", extra={"task": task.id, "kind": task.kind, "step": task.step})
        return task
    return replace(task, step=0, entered=False, state=FAILED, ended_at=tx.now)


@dataclass
class _Watched:
    resource_id: str
    due_s: float  # the store's time at which to ask even if nothing was touched


class _Followed:
    """A task that is advanced within the commit that touched it: told the outcome in the place of a future."""

    def __init__(self, engine: TaskEngine, task_id: str) -> None:
        self._engine, self.task_id = engine, task_id
        self.resource_id = ""
        self.touched: set[str] = set()

    def advance(self, tx: Tx) -> Task | None:
        task = self._engine.advance_stored(tx, self.task_id)
        self.resource_id, self.touched = task.resource_id if task else "", set(tx.touched)
        return task

    def done(self) -> bool:
        return False

    def set_result(self, task: Task | None, /) -> None:
        self._engine.take_followed(self, task)

    def set_exception(self, _error: BaseException, /) -> None:
        self._engine.due_again(self.task_id)


class TaskEngine:
    def __init__(self, database: Database, operations: Mapping[str, Operation], runtime: Runtime) -> None:
        """`operations`: by kind."""
        self._db, self._operations, self._runtime = database, operations, runtime
        self._watched: dict[str, _Watched] = {}  # task id ->
        self._of_resource: dict[str, set[str]] = {}
        self._ready: set[str] = set()
        self._touched_meanwhile: set[str] = set()  # while tasks are advanced: one of them may be about to watch it
        self._followed: dict[str, _Followed] = {}  # in the commit that is being published, by task id
        self._wakes_at_s = 0.0
        self._wake = asyncio.Event()

    def follow(self, touched: set[str]) -> list[tuple[Callable[[Tx], Any], Receiver]]:
        """Follower of the store's transactions: a task goes on in the commit that tells it to; it need not wait for another."""
        followed = [_Followed(self, task_id) for task_id in sorted(self._concerned(touched))]
        return [(one.advance, one) for one in followed]

    def notice(self, touched: set[str]) -> None:
        """Subscriber of the store: what has followed already was not touched since, unless by another task."""
        self._touched_meanwhile |= touched
        followed, self._followed = self._followed, {}
        for task_id in self._concerned(touched):
            one = followed.get(task_id)
            if one is None or any(one.resource_id in other.touched for other in followed.values() if other is not one):
                self._ready.add(task_id)
        if self._ready:
            self._wake.set()

    def _concerned(self, touched: set[str]) -> set[str]:
        """Tasks. Also in the writer's thread, while which nothing is published: what is watched changes little meanwhile."""
        found = {key[5:] for key in touched if key.startswith("task:")}
        for key in touched:
            found.update(tuple(self._of_resource.get(key, ())))
        return found

    def take_followed(self, one: _Followed, task: Task | None) -> None:
        self._followed[one.task_id] = one
        self._take(one.task_id, task)
        watched = self._watched.get(one.task_id)
        if watched is not None and watched.due_s < self._wakes_at_s:
            self._wake.set()

    async def run(self) -> None:
        """Takes up what an earlier process left, then works until cancelled."""
        self._db.subscribe(self.notice)
        self._db.follow(self.follow)
        self._ready |= await self._db.write(_take_up)
        while True:
            ready, self._ready = self._ready | self._overdue(), set()
            self._touched_meanwhile.clear()
            await asyncio.gather(*(self._advance(task_id) for task_id in sorted(ready)))
            if not self._ready:
                await self._sleep()

    async def _sleep(self) -> None:
        now_s = self._db.now_s()
        soonest_s = min((w.due_s for w in self._watched.values()), default=now_s + IDLE_S)
        self._wakes_at_s = min(soonest_s, now_s + IDLE_S)
        try:
            async with asyncio.timeout(max(0.01, self._wakes_at_s - now_s)):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _overdue(self) -> set[str]:
        now_s = self._db.now_s()
        return {task_id for task_id, watched in self._watched.items() if watched.due_s <= now_s}

    async def _advance(self, task_id: str) -> None:
        try:
            task = await self._db.write(lambda tx: self.advance_stored(tx, task_id))
        except Exception:
            log.exception("a task could not be advanced; it is tried again", extra={"task": task_id})
            self.due_again(task_id)
            return
        self._take(task_id, task)

    def _take(self, task_id: str, task: Task | None) -> None:
        """`task`: as it is stored now."""
        if task is None or not task.unfinished:
            self._forget(task_id)
        else:
            self._watch(task)

    def advance_stored(self, tx: Tx, task_id: str) -> Task | None:
        task = TASKS.find(tx, task_id)
        if task is None or not task.unfinished:
            return task
        operation = self._operations.get(task.kind)
        if operation is None:
            log.error("a task of a kind that this software does not know", extra={"task": task_id, "kind": task.kind})
            task_store.abandon(tx, task, "UNKNOWN_KIND", f"this software knows no operation {task.kind}")
            return None
        advanced = advance(tx, operation, task)
        if advanced.step != task.step or advanced.state != task.state:
            tx.touch(task.resource_id)
        return advanced

    def _watch(self, task: Task) -> None:
        known = self._watched.get(task.id)
        if (known is None or not known.resource_id) and task.resource_id in self._touched_meanwhile:
            self._ready.add(task.id)
        self._watched[task.id] = _Watched(task.resource_id, self._due_s(task))
        self._of_resource.setdefault(task.resource_id, set()).add(task.id)

    def _due_s(self, task: Task) -> float:
        now_s = self._db.now_s()
        if task.state == UNWINDING or not task.entered:
            return now_s + RETRY_S
        poll_s = self._operations[task.kind].steps[task.step].poll_s
        deadline_s = task.deadline + 0.001
        return min(deadline_s, now_s + poll_s) if poll_s else deadline_s

    def due_again(self, task_id: str) -> None:
        due_s = self._db.now_s() + RETRY_S
        if task_id in self._watched:
            self._watched[task_id].due_s = due_s
        else:
            self._watched[task_id] = _Watched("", due_s)

    def _forget(self, task_id: str) -> None:
        watched = self._watched.pop(task_id, None)
        if watched is not None:
            tasks = self._of_resource.get(watched.resource_id, set())
            tasks.discard(task_id)
            if not tasks:
                self._of_resource.pop(watched.resource_id, None)


def _take_up(tx: Tx) -> set[str]:
    task_store.extend_deadlines(tx, tx.now + RESUME_GRACE_S)
    return {task.id for task in task_store.unfinished(tx)}
