"""Many sessions ask at once, and some leave while they wait: everybody else is served."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

from controllerd.agents.compilation import BATCH_MAX, Compilation, Compiled, Wanted
from controllerd.agents.desired.network import compile_network
from controllerd.domain.node import Node
from controllerd.leadership.commit_log import LocalLog
from controllerd.store.database import Database
from controllerd.store.node import NODES
from daemonkit.errors import Forbidden
from daemonkit.runtime import system_runtime

ASKING, HANG_S = 8 * BATCH_MAX, 60.0


async def test_who_leaves_keeps_nobody_waiting(tmp_path: Path) -> None:
    """With the real threads."""
    runtime, rng = system_runtime(), random.Random(1)
    database = Database(tmp_path / "state.db", LocalLog(), runtime)
    await database.open()
    commits = asyncio.create_task(database.run())
    node = Node("n1", "n1", ("compute", "edge"), True, "1", 0.0)
    await database.write(lambda tx: NODES.insert(tx, node))
    compilation = Compilation(database, {"networkd": compile_network})

    async def ask(number: int) -> Compiled | None:
        await asyncio.sleep(rng.random() * 0.05)
        known = node if number % 7 else Node("gone", "gone", (), True, "1", 0.0)
        with suppress(Forbidden):
            return await compilation.compile(Wanted(known, "networkd", None, number % 2 == 0, b""))
        assert number % 7 == 0
        return None

    try:
        tasks = [asyncio.create_task(ask(number)) for number in range(ASKING)]
        for _ in range(ASKING // 3):
            await asyncio.sleep(rng.random() * 0.002)
            rng.choice(tasks).cancel()
        async with asyncio.timeout(HANG_S):
            await asyncio.wait(tasks)
        served = [task.result() for task in tasks if not task.cancelled()]
        assert len(served) > ASKING // 2
    finally:
        commits.cancel()
        with suppress(asyncio.CancelledError):
            await commits
        await database.close()
