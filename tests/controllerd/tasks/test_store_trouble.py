"""A store that cannot write says nothing about a task: no step is taken for failed, nothing unwinds."""

from __future__ import annotations

import apsw
import pytest

from controllerd.domain.task import RUNNING, Task
from controllerd.store.database import Database, Tx
from controllerd.store.task import TASKS
from controllerd.tasks.engine import advance
from controllerd.tasks.operation import Operation, Step, start
from daemonkit.errors import Unavailable


class WriteOnFullDisk(Step):
    name = "write"

    def do(self, tx: Tx, task: Task) -> None:
        raise apsw.FullError("FullError: database or disk is full")


OPERATION = Operation("test_full_disk", 60.0, (WriteOnFullDisk(),))


async def test_a_full_disk_does_not_unwind_a_task(database: Database) -> None:
    task = await database.write(lambda tx: start(tx, OPERATION, "p", "thing", "t1"))
    with pytest.raises(Unavailable):
        await database.write(lambda tx: advance(tx, OPERATION, task))
    stored = await database.read(lambda tx: TASKS.get(tx, task.id))
    assert (stored.state, stored.step, stored.entered) == (RUNNING, 0, False)
