"""The engine: when it asks. With the real clock and threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controllerd.domain.task import DONE, FAILED, RUNNING, Task
from controllerd.leadership.commit_log import LocalLog
from controllerd.store.database import Database, Tx
from controllerd.store.task import TASKS
from controllerd.tasks.engine import RESUME_GRACE_S, TaskEngine
from controllerd.tasks.operation import Operation, Step, start
from daemonkit.errors import Unavailable
from daemonkit.runtime import system_runtime

HANG_S = 20.0


@dataclass
class Gate(Step):
    name: str = "gate"
    poll_s: float = 0.0
    open: bool = False
    away: int = 0
    asked: int = 0

    def do(self, tx: Tx, task: Task) -> None:
        if self.away:
            self.away -= 1
            raise Unavailable("away")

    def done(self, tx: Tx, task: Task) -> bool:
        self.asked += 1
        return self.open


@dataclass
class Stage:
    path: Path
    database: Database = field(init=False)

    @asynccontextmanager
    async def running(self, *operations: Operation) -> AsyncIterator[None]:
        runtime = system_runtime()
        self.database = Database(self.path, LocalLog(), runtime)
        await self.database.open()
        warm = Operation("warm", 60.0, ())
        engine = TaskEngine(self.database, {o.kind: o for o in (*operations, warm)}, runtime)
        jobs = [asyncio.create_task(self.database.run()), asyncio.create_task(engine.run())]
        try:
            await self.until(task_id=await self.begin(warm, "warm"), state=DONE)  # it has taken up what was there
            yield
        finally:
            for job in reversed(jobs):
                job.cancel()
                with suppress(asyncio.CancelledError):
                    await job
            await self.database.close()

    async def begin(self, operation: Operation, resource_id: str = "r") -> str:
        return (await self.database.write(lambda tx: start(tx, operation, "p", "server", resource_id))).id

    async def task(self, task_id: str) -> Task:
        return await self.database.read(lambda tx: TASKS.get(tx, task_id))

    async def until(self, condition: Callable[[], bool] | None = None, task_id: str = "", state: str = "") -> None:
        async with asyncio.timeout(HANG_S):
            while not (condition() if condition else (await self.task(task_id)).state == state):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state.db")


async def test_a_touch_of_the_resource_wakes_its_task(stage: Stage) -> None:
    gate = Gate()
    operation = Operation("op", 60.0, (gate,))
    async with stage.running(operation):
        task_id = await stage.begin(operation)
        await stage.until(lambda: gate.asked > 0)
        gate.open = True
        await asyncio.sleep(0.1)
        assert (await stage.task(task_id)).state == RUNNING
        await stage.database.write(lambda tx: tx.touch("r"))
        await stage.until(task_id=task_id, state=DONE)


async def test_a_touch_between_first_commit_and_watch_is_not_missed(stage: Stage) -> None:
    """The world may be quicker than we are: what is touched while a task is advanced is looked at again."""
    gates = [Gate() for _ in range(50)]
    operations = [Operation(f"op{n}", 60.0, (gate,)) for n, gate in enumerate(gates)]
    async with stage.running(*operations):
        ids = await asyncio.gather(*(stage.begin(o, f"r{n}") for n, o in enumerate(operations)))

        async def open_soon(number: int) -> None:
            while not gates[number].asked:  # noqa: ASYNC110 - the sooner the better
                await asyncio.sleep(0)
            gates[number].open = True
            await stage.database.write(lambda tx: tx.touch(f"r{number}"))

        await asyncio.gather(*(open_soon(n) for n in range(len(gates))))
        for task_id in ids:
            await stage.until(task_id=task_id, state=DONE)


async def test_a_deadline_wakes_it(stage: Stage) -> None:
    operation = Operation("op", 0.3, (Gate(),))
    async with stage.running(operation):
        task_id = await stage.begin(operation)
        await stage.until(task_id=task_id, state=FAILED)
        assert (await stage.task(task_id)).fault_reason == "DEADLINE_EXCEEDED"


async def test_a_step_that_is_unavailable_is_asked_again(stage: Stage) -> None:
    operation = Operation("op", 60.0, (Gate(away=1, open=True),))
    async with stage.running(operation):
        await stage.until(task_id=await stage.begin(operation), state=DONE)


async def test_a_step_that_wants_to_be_polled_is(stage: Stage) -> None:
    gate = Gate(poll_s=0.05)
    operation = Operation("op", 60.0, (gate,))
    async with stage.running(operation):
        task_id = await stage.begin(operation)
        await stage.until(lambda: gate.asked > 3)
        gate.open = True
        await stage.until(task_id=task_id, state=DONE)


async def test_a_restart_takes_tasks_up_and_gives_them_time(stage: Stage) -> None:
    operation = Operation("op", 0.2, (Gate(),))
    async with stage.running():
        task_id = await stage.begin(Operation("op", 0.2, ()))
        await stage.until(task_id=task_id, state=FAILED)  # nobody knows it here
        await stage.database.write(lambda tx: tx.run("UPDATE task SET state = 'RUNNING', deadline = 1.0 WHERE id = ?", task_id))
    gate = Gate()
    operation = Operation("op", 0.2, (gate,))
    async with stage.running(operation):
        await stage.until(lambda: gate.asked > 0)
        task = await stage.task(task_id)
        assert task.state == RUNNING and task.deadline > task.created_at + RESUME_GRACE_S - 1
        gate.open = True
        await stage.database.write(lambda tx: tx.touch("r"))
        await stage.until(task_id=task_id, state=DONE)


async def test_a_task_of_an_unknown_kind_ends(stage: Stage) -> None:
    async with stage.running():
        task_id = await stage.begin(Operation("of a newer software", 60.0, ()))
        await stage.until(task_id=task_id, state=FAILED)
        assert (await stage.task(task_id)).fault_reason == "UNKNOWN_KIND"
